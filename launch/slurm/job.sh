# What the text of every job does around its step; `<run>/submit.sbatch` (script.py) sources it from the
# snapshot of the code, after it has set run, code, home, max_restarts, signal_s and exclude, and defined
#   prepare   what is done before the step: modules, the profile's own lines, variables
#   run_step  the step: srun of launch/jobs/job.py, once per rank
#
# - Before the time limit Slurm sends USR2 to this shell alone, which hands it on: the tasks stop with a checkpoint. When a
#   grace time begins it sends TERM to the tasks alone: they do the same. On requeue, cancellation, preemption at once and
#   the loss of another node it sends TERM to everything, srun too, which then kills the tasks: what counts is the last
#   checkpoint. What srun and slurmstepd write into the log then is the only exact word on the cause.
# - Only a job that Slurm calls running, and by the number of this start, is requeued from here: one that was cancelled
#   must not come back, and one that was preempted or has lost a node is in the queue already.
# - A start that Slurm has given up may be alive, where only slurmd died or the network did. Once the next start has
#   begun, it does nothing more in the run directory.
# - A node that was lost may be back before the job is. For an hour this run keeps away from what it lost last: nodes that
#   a job leaves out can be changed only while it is pending, so that is done right after its requeue, by the shell that
#   still runs. Nobody changes it again while the job waits: so only one loss counts, and only while enough nodes are up.
# - Every restart leaves a line in restarts.tsv: launch/jobs/restarts.py says which.
AVOID_S=3600
PATIENCE=5 # seconds until srun is tried again

job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}
restart=${SLURM_RESTART_COUNT:-0}
log=$run/logs/${job}_${restart}_batch.log
before=$run/logs/${job}_$((restart - 1))_batch.log
next=$run/logs/${job}_$((restart + 1))_batch.log
# Exit codes of toolkit/errors.py. 138, 140 and 143: tasks that USR1, USR2 or TERM ended before they could listen to it,
# as Python was still starting; there was nothing to save.
REQUEUE=3 BUSY=7
is_stop() { [[ $1 == @(3|138|140|143) ]]; }

fail() {
  echo "error: $*" >&2
  [ ! -w "$run" ] || echo "job $job: $*" >"$run/FAILED"
  exit 2
}

tell() { echo "$(date '+%F %T') $*"; }

lost() { # prints the nodes of list $1 that Slurm calls lost, or whose slurmd began after second $2
  scontrol --oneliner show node "$1" 2>/dev/null |
    sed -nE 's/^NodeName=([^ ]+) .* State=([^ ]+) .* SlurmdStartTime=([^ ]+).*/\1 \2 \3/p' |
    while read -r name state began; do
      case $state in
        *DOWN* | *FAIL* | *'*'* | *NOT_RESP*) echo "$name" ;;
        *) (($(date -d "$began" +%s 2>/dev/null || echo 0) <= $2)) || echo "$name" ;;
      esac
    done | paste -sd, -
}

lost_by() { # prints the nodes that srun has lost by log $1
  sed -nE 's/^srun: error: Node failure on ([^ ]+).*/\1/p' "$1" 2>/dev/null |
    xargs -r -n 1 scontrol show hostnames | sort -u | paste -sd, -
}

ended_by() { # prints why Slurm has ended the step by log $1
  case $(grep -m 1 ' CANCELLED AT .* DUE TO ' "$1" 2>/dev/null) in
    *PREEMPTION*) echo "preempted" ;;
    *REQUEUE*) echo "requeued" ;;
    *) echo "preempted or requeued" ;;
  esac
}

cause() { # prints why Slurm has sent signal $1; TASKS: it was sent to the tasks alone
  local about gone end
  about=$(scontrol --oneliner show job "$job" 2>/dev/null)
  gone=$(lost_by "$log")
  gone=${gone:-$(lost "$SLURM_JOB_NODELIST" 9999999999)}
  end=$(sed -nE 's/.* EndTime=([^ ]+).*/\1/p' <<<"$about")
  end=$(date -d "${end:-unknown}" +%s 2>/dev/null || echo 9999999999) # no answer: date would take nothing for midnight
  case $1,$about in
    *JobState=CANCELLED* | TERM,*JobState=COMPLETING*" Restarts=$restart "*) echo "cancelled" ;; # else it would be one more
    *' PreemptTime=2'*) echo "preempted" ;;
    TERM,*) [ -n "$gone" ] && echo "lost $gone" || ended_by "$log" ;;
    # Slurm sends it up to a minute early, and may be late itself.
    *) ((end - $(date +%s) > signal_s + 90)) && echo "asked by a signal" || echo "time limit" ;;
  esac
}

cause_before() { # sets nodes, gone and why: those of the start before, those lost of them, why it ended
  nodes=$(sed -n '1s/.* on //p' "$before" 2>/dev/null)
  why=$(sed -nE 's/^.{19} told to stop: //p' "$before" 2>/dev/null | head -n 1)
  gone=$(lost_by "$before")
  case $nodes,$why in
    ,*) why="it could not begin" ;;
    *,lost*) gone=${gone:-${why#lost }} ;;
    *,preempted\ or\ requeued) why=$(ended_by "$before") ;;
    *,) gone=${gone:-$(lost "$nodes" "$(date -d "$(head -c 19 "$before")" +%s)")} ;;
  esac
  [ -z "$gone" ] || why="lost $gone"
  why=${why:-cut off without a word}
}

avoided() { # prints nodes $1 or, without, those that this run has lost last, if lately; none if too few others are up
  local since names others
  since=$(($(date +%s) - AVOID_S))
  names=${1:-$(awk -F'\t' -v since="$since" '$1 >= since && $5 {last = $5} END {print last}' "$run/restarts.tsv" 2>/dev/null)}
  [ -n "$names" ] || return
  others=$(sinfo --noheader --Node --partition="$SLURM_JOB_PARTITION" --states=idle,mixed,allocated,completing --format=%N |
    sort -u | grep -cvxF "$(tr , '\n' <<<"$names")")
  ((others < SLURM_JOB_NUM_NODES)) || echo "$names"
}

unreachable() { # prints the nodes of this job on which no task can be started, though Slurm may not know it for minutes
  local node
  ((SLURM_JOB_NUM_NODES > 1)) && reaches "$SLURMD_NODENAME" || return # alone, or it can't be found out in this way
  for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do reaches "$node" || echo "$node"; done | paste -sd, -
}

reaches() { timeout 30 srun --overlap --nodes=1 --ntasks=1 --nodelist="$1" true >/dev/null 2>&1; }

keep_away() { # from nodes $1
  [ -n "$1" ] || return
  tell "keeps away from $1"
  scontrol update "jobid=$job" "excnodelist=${exclude:+$exclude,}$1"
}

again() { # requeue the job; Slurm then sends TERM to all that runs here
  trap '' TERM
  scontrol requeue "$job" || return
  tell "requeued"
  keep_away "$(avoided "$gone")"
  exit $REQUEUE
}

stop() { # on signal $1
  [ -z "$step" ] || kill -USR2 "$step" 2>/dev/null # srun hands USR2 on to all tasks, but ends them on a TERM
  asked=1
  [ -z "$said" ] || return
  said=$(cause "$1")
  tell "told to stop: $said"
  case $said in lost*) (trap '' TERM && keep_away "$(avoided "${said#lost }")") ;; esac
}

no_step() { # whether srun has started nothing: a controller that is away, or still ends an earlier start of this job
  ((result != 0)) && tail -n "+$((mark + 1))" "$log" | grep -qE '^srun: error: Unable to (create step|confirm allocation)'
}

leave_to_the_next() {
  [ ! -e "$next" ] || { tell "Slurm has begun this job again: left to that start" && exit $REQUEUE; }
}

# --- it begins

[ -r "$run/config.yaml" ] || fail "node $(hostname) can't see $run: put runs where all nodes can (--runs DIR)"
mkdir -p "$run/logs"
exec >>"$log" 2>&1
tell "job $job, start $((restart + 1)), on $SLURM_JOB_NODELIST"
if ((restart > 0)); then
  cause_before
  ((restart <= max_restarts)) || why="$why; not begun again, as max_restarts is $max_restarts"
  printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$(date +%s)" "$job" $((restart + 1)) "$nodes" "$gone" "$why" >>"$run/restarts.tsv"
  tell "the start before, on ${nodes:-no node}: $why"
  ((restart <= max_restarts)) || exit $REQUEUE
fi
cd "$home" || fail "node $(hostname) can't see $home, where the run was submitted"
rm -f "$run/FAILED"
names=$(avoided '' | tr , '\n')
if [ -n "$names" ] && scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -qxF "$names"; then
  tell "told to stop: on a node that this run has lost lately"
  gone=
  again
fi

# --- the step

prepare
gone=
step=
said=
asked=
trap 'stop USR2' USR2
trap 'stop TERM' TERM
for attempt in 1 2 3 4 5 6; do
  mark=$(wc -l <"$log")
  run_step &
  step=$!
  [ -z "$asked" ] || kill -USR2 "$step"
  while kill -0 "$step" 2>/dev/null; do wait "$step"; done # a signal ends a wait
  wait "$step"
  result=$?
  tell "srun returned $result"
  [ -z "$asked" ] && no_step || break
  sleep $PATIENCE
done

# --- it ends

leave_to_the_next
if ((result == 0 || result == BUSY)); then
  exit $result # done; or another job has the run
fi
if ! is_stop $result || [ -e "$run/FAILED" ]; then
  # Ranks see the loss of a node long before Slurm does, and fail of it. That is no failure of the run.
  gone=$(lost_by "$log")
  gone=${gone:-$(unreachable)}
  about=$(scontrol --oneliner show job "$job" 2>/dev/null)
  if [ -z "$gone" ] && ! no_step && [[ -z $about || $about == *" Restarts=$restart "* ]]; then
    [ -e "$run/FAILED" ] || echo "job $job: srun returned $result; see $log" >"$run/FAILED"
    exit $result
  fi
  rm -f "$run/FAILED"
  no_step && said="no step could be started"
  [ -z "$gone" ] || said="lost $gone"
  tell "told to stop: ${said:=$(ended_by "$log")}"
fi
[ -n "$said" ] || tell "told to stop: $(cause TASKS)"
if ((restart >= max_restarts)); then
  tell "stopped with a checkpoint; not requeued after start $((restart + 1)): max_restarts is $max_restarts"
  exit $REQUEUE
fi
for attempt in 1 2 3 4 5 6 7 8 9 10; do
  about=$(scontrol --oneliner show job "$job") # by its number in the array: the plain id may be that of the whole array
  leave_to_the_next
  case $about in
    *" JobState=RUNNING "*" Restarts=$restart "*) again ;;
    *" JobState="*)
      tell "not requeued: Slurm has the job as $(sed -nE 's/.* JobState=([^ ]+).*/\1/p' <<<"$about")"
      exit $REQUEUE
      ;;
  esac
  sleep 3
done
tell "not requeued: Slurm doesn't answer; submit the run again"
exit $REQUEUE

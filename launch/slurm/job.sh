# What the text of every job does around its step; `<run>/submit.sbatch` (script.py) sources it from the snapshot of the
# code, after it has set run, code, home, python, max_restarts, signal_s and exclude, and defined
#   prepare   what is done before the step: modules, the profile's own lines, variables; cleanup: what is done after it
#   run_step  the step: srun of launch/jobs/job.py, once per rank, or of pack.py; then `run` is a submission's folder
#
# - causes.py says which signals Slurm sends, and finds why, and what nodes were lost; where no Python starts it, jobs
#   stop and requeue all the same. It records restarts and failures in events.jsonl (toolkit/rundir/events.py).
# - Only a job that Slurm calls running, and by the number of this start, is requeued from here: one that was cancelled
#   must not come back, and one that was preempted or has lost a node is in the queue already.
# - A start that Slurm has given up may be alive, where only slurmd died or the network did. Once the next start has
#   begun, it does nothing more in the run directory.
PATIENCE=5 # seconds until srun is tried again
UNKNOWN="cause unknown: no Python on this node could look for it"
REFUSAL='presently disabled|ermission denied|Invalid job' # what scontrol says where asking again is no use
REQUEUE=3 BUSY=7 # exit codes (toolkit/errors.py)
is_stop() { [[ $1 == @(3|138|140|143) ]]; } # 128 + n: signal n ended tasks while Python was starting: nothing to save
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}
verdict=$run/FAILED && [ ! -e "$run/pack.json" ] || verdict=$run/logs/$job.failed
restart=${SLURM_RESTART_COUNT:-0} log=$run/logs/${job}_${restart}_batch.log
next=$run/logs/${job}_$((restart + 1))_batch.log gone='' why='' step='' said='' asked='' answer=''
tell() { echo "$(date '+%F %T') $*"; }
told() { said=$1 && tell "asked to stop: $1"; }
about() { scontrol --oneliner show job "$job"; } # an array's task by its number: the plain id may be the whole array's
fail() { echo "error: $*" >&2; [ ! -w "$run" ] || failed "$*"; exit 2; }
failed() { echo "job $job: $1" >"$verdict" && causes fail --cause "job $job: $1" "${@:2}"; }
causes() ( # prints causes.py's answer to question $1, by the run's Python or, where only a container has that, another
  trap '' TERM
  cd "$code" && for program in "$python" python3; do
    command -v "$program" >/dev/null || continue
    "$program" -ESB -m launch.slurm.causes "$1" "$run" "$job" "$restart" "${@:2}" && exit
  done
  [[ $1 != @(signal|step) ]] || echo "$UNKNOWN"
)
keep_away() { # from nodes $1 or, without, those that this run has lost last
  local nodes="$(causes avoid --lost "$1")"
  [ -n "$nodes" ] || return
  tell "keeps away from $nodes"
  scontrol update "jobid=$job" "excnodelist=${exclude:+$exclude,}$nodes"
}
again() { # requeue the job; Slurm then sends TERM to all that runs here
  trap '' TERM
  answer=$(scontrol requeue "$job" 2>&1) || { tell "$answer" && return; }
  tell "requeued"
  keep_away "$gone"
  exit $REQUEUE
}
stop() { # on signal $1
  [ -z "$step" ] || kill -USR2 "$step" 2>/dev/null # srun hands USR2 on to all tasks, but ends them on a TERM
  asked=1
  [ -z "$said" ] || return
  told "$(causes signal --signal "$1" --warning "$signal_s")"
  [[ $said != lost* ]] || (trap '' TERM && keep_away "${said#lost }")
}
news() { tail -n "+$((mark + 1))" "$log"; } # the output of the step and of srun
no_step() { # whether srun has started nothing: a controller that is away, or still ends an earlier start of this job
  ((result != 0)) && news | grep -qE '^srun: error: Unable to (create step|confirm allocation)'
}
leave_to_next() { [ ! -e "$next" ] || { tell "Slurm has begun this job again: left to that start"; exit $REQUEUE; }; }

# --- it begins
[ -r "$run" ] || fail "node $(hostname) can't see $run: put runs where all nodes can (--runs DIR)"
mkdir -p "$run/logs"
exec >>"$log" 2>&1
tell "job $job, start $((restart + 1)), on $SLURM_JOB_NODELIST"
if ((restart > 0)); then
  why=$(causes restart --max-restarts "$max_restarts")
  [ -n "$why" ] || printf '{"time": "%s", "event": "restart", "host": "%s", "job": "%s", "start": %d, "cause": "%s"}\n' \
    "$(date -u +%FT%TZ)" "$(hostname)" "$job" $((restart + 1)) "${why:=$UNKNOWN}" >>"$run/events.jsonl"
  tell "the start before, on $why"
  ((restart <= max_restarts)) || exit $REQUEUE
fi
cd "$home" || fail "node $(hostname) can't see $home, where the run was submitted"
rm -f "$verdict"
[ -z "$(causes revisited)" ] || { told "on a node that this run has lost lately" && again; }
# --- the step
said='' && prepare
trap 'stop USR2' USR2; trap 'stop TERM' TERM
for attempt in {1..6}; do
  mark=$(wc -l <"$log")
  run_step & step=$!
  [ -z "$asked" ] || kill -USR2 "$step"
  while kill -0 "$step" 2>/dev/null; do wait "$step"; done # a signal ends a wait
  wait "$step"; result=$?
  tell "srun returned $result"
  [ -z "$asked" ] && no_step || break
  sleep $PATIENCE
done
(cleanup)
# --- it ends
leave_to_next
((result != 0 && result != BUSY)) || exit $result # done; or another job has the run
if ! is_stop $result || [ -e "$verdict" ]; then
  # Ranks see the loss of a node long before Slurm does, and fail of it. That is no failure of the run.
  gone=$(causes lost) state=$(about 2>/dev/null)
  if [ -z "$gone" ] && ! no_step && [[ -z $state || $state == *" Restarts=$restart "* ]]; then
    [ -e "$verdict" ] || failed "srun returned $result; see $log" --exit-code $result
    ! news | grep -qiE 'oom.kill|out of memory' || echo "OUT_OF_MEMORY, says Slurm: raise mem in the profile" >>"$verdict"
    exit $result
  fi
  rm -f "$verdict"
  no_step && said="no step could be started"
  [ -z "$gone" ] || said="lost $gone"
  told "${said:-$(causes step)}"
fi
[ -n "$said" ] || told "$(causes signal --warning "$signal_s")"
if ((restart >= max_restarts)); then
  tell "stopped with a checkpoint; not requeued after start $((restart + 1)): max_restarts is $max_restarts"
  exit $REQUEUE
fi
answer=''
for attempt in {1..10}; do
  state=$(about)
  leave_to_next
  if [[ $state == *" JobState=RUNNING "*" Restarts=$restart "* ]]; then
    again
    if [[ $answer =~ $REFUSAL ]]; then
      tell "not requeued: Slurm refuses it"
      failed "Slurm refuses to requeue it (${answer##*: }): --retry failed submits it again, to resume from its last checkpoint"
      exit $REQUEUE
    fi
  elif [[ $state =~ \ JobState=([^ ]+) ]]; then
    tell "not requeued: Slurm has the job as ${BASH_REMATCH[1]}"; exit $REQUEUE
  fi
  sleep 3
done
tell "not requeued: ${answer:-Slurm doesn't answer}; submit the run again"
exit $REQUEUE

# Processes of the cluster. $LAB/run/NAME.pid keeps an id with its start time, so that an id that the machine has given
# to someone else is never taken for ours.

say() { echo "cluster: $*" >&2; }

stat_of() { # prints the state and the start time of a process
  local text
  { text=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
  set -- ${text##*) }
  echo "$1 ${20}"
}

pid_of() { # prints the process id of NAME if it is alive; a zombie is not
  local pid began state start
  read -r pid began 2>/dev/null <"$LAB/run/$1.pid" || return 1
  read -r state start < <(stat_of "$pid") || return 1
  [[ $state != Z && $start == "$began" ]] && echo "$pid"
}

launch() { # launch NAME CMD ...: in the background, in a session of its own
  local name=$1
  shift
  setsid "$@" </dev/null >>"$LAB/log/$name.out" 2>&1 9>&- &
  echo "$! $(stat_of $! | cut -d' ' -f2)" >"$LAB/run/$name.pid"
  disown # bash would report its end
}

stop() { # stop NAME [SIGNAL [SECONDS]]: signal it, wait, then kill it
  local pid
  if pid=$(pid_of "$1"); then
    kill -"${2:-TERM}" "$pid" 2>/dev/null || true
    if ! within "${3:-4}" gone "$1"; then
      kill -KILL "$pid" 2>/dev/null || true
      within 4 gone "$1" || say "$1 (process $pid) does not end"
    fi
  fi
  rm -f "$LAB/run/$1.pid"
}

gone() { ! pid_of "$1"; }

signal_node() { # signal_node NAME SIGNAL: to the process 1 of a node (space.sh)
  local pid
  pid=$(pid_of "$1") || fail "$1 is off: cluster start $1"
  [[ $NET == plain ]] || pid=$(<"/proc/$pid/task/$pid/children")
  kill -"$2" $pid
}

kill_jobs() { # what jobs of this cluster have left, where no namespace took it along
  local file pid
  for file in /proc/[0-9]*/environ; do
    if { grep -qzxF "SLURM_CONF=$SLURM_CONF" "$file" && grep -qz '^SLURM_JOB_ID=' "$file"; } 2>/dev/null; then
      pid=${file#/proc/}
      kill -KILL "${pid%/environ}" 2>/dev/null || true
    fi
  done
}

within() { # within SECONDS CMD ...: try until it succeeds
  local end=$((${EPOCHREALTIME/[.,]/} + $1 * 1000000))
  shift
  until "$@" >/dev/null 2>&1; do
    ((${EPOCHREALTIME/[.,]/} < end)) || return 1
    sleep 0.05
  done
}

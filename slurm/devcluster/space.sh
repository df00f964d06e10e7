# What runs inside the namespaces of the login node (space.sh head) or of a node (space.sh node NAME).
set -euo pipefail
source "$LAB/settings"
source "$(dirname "${BASH_SOURCE[0]}")/config.sh"

own_names() { # host name and names of the nodes, for this namespace alone
  [[ $NET != plain ]] || return 0
  hostname "$1"
  mount --bind "$LAB/etc/hosts" /etc/hosts
  mount --bind "$LAB/etc/nsswitch.conf" /etc/nsswitch.conf
}

head() {
  own_names head
  if [[ $NET == netns ]]; then
    ip link set lo up
    ip link add br0 type bridge
    ip addr add "$(address 0)/24" dev br0
    ip link set br0 up
  fi
  touch "$LAB/run/head.ready"
  exec sleep infinity
}

node() { # process 1 of a node: starts slurmd, again on USR1, kills it on USR2, and reaps what it leaves behind
  local slurmd stop=
  own_names "$1"
  if [[ $NET == netns ]]; then
    ip link set lo up
    until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
    ip addr add "$(address "${1#node}")/24" dev eth0
    ip link set eth0 up
  fi
  begin() {
    slurmd -D -N "$1" -f "$SLURM_CONF" &
    slurmd=$!
  }
  trap 'kill -0 $slurmd 2>/dev/null || begin "$1"' USR1
  trap 'kill -KILL $slurmd 2>/dev/null' USR2
  trap 'stop=1; kill -TERM $slurmd 2>/dev/null' TERM INT
  begin "$1"
  while [[ -z $stop ]]; do
    wait "$slurmd" || true
    kill -0 "$slurmd" 2>/dev/null || sleep 0.2
  done
  wait "$slurmd" || true
}

"$@"

# The cluster's configuration, written anew by every `up`.

address() { # of node number $1; 0 is the login node
  case $NET in
    netns) echo "10.77.0.$(($1 ? $1 : 254))" ;;
    host) if (($1)); then echo "127.0.2.$1"; else echo 127.0.0.1; fi ;;
    plain) echo 127.0.0.1 ;;
  esac
}

range() { # range FIRST LAST: [1-4], or 1 where they are equal, since Slurm refuses some ranges of one
  if (($1 == $2)); then echo "$1"; else echo "[$1-$2]"; fi
}

make_gpus() { # device files with NVIDIA's major number, which no driver here answers
  local n
  for ((n = 0; n < GPUS; n++)); do
    [[ -e $LAB/dev/nvidia$n ]] || mknod "$LAB/dev/nvidia$n" c 195 "$n" || return 1
  done
}

write_config() {
  local n port nodes host hostnames addresses ports user
  user=$(id -un)
  # A block of ports for this folder: on a shared network, clusters in other folders have another.
  port=$((20000 + $(cksum <<<"$LAB" | cut -d' ' -f1) % 90 * 100))
  echo "$port" >"$LAB/etc/port"
  nodes=node$(range 1 "$NODES")
  host=head hostnames=$nodes ports=$(range $((port + 10)) $((port + 9 + NODES)))
  addresses=$(address 1) addresses=${addresses%.*}.$(range 1 "$NODES")
  case $NET in
    netns) ports=$((port + 10)) ;;
    plain) host=$(hostname -s) hostnames=$(hostname -s) addresses=127.0.0.1 ;;
  esac
  {
    slurm_conf
    [[ $ACCT != dbd ]] || accounting_conf
    printf '%s\n' "${CONF:-}"
  } >"$LAB/etc/slurm.conf"
  : >"$LAB/etc/gres.conf"
  ((GPUS == 0)) || echo "NodeName=$nodes Name=gpu File=$LAB/dev/nvidia$(range 0 $((GPUS - 1)))" >"$LAB/etc/gres.conf"
  [[ $ACCT != dbd ]] || (umask 077 && slurmdbd_conf >"$LAB/etc/slurmdbd.conf")
  {
    echo "127.0.0.1 localhost"
    echo "$(address 0) head"
    for ((n = 1; n <= NODES; n++)); do echo "$(address "$n") node$n"; done
  } >"$LAB/etc/hosts"
  {
    echo "hosts: files"
    grep -sv '^hosts:' /etc/nsswitch.conf || true
  } >"$LAB/etc/nsswitch.conf"
}

slurm_conf() {
  cat <<TEXT
ClusterName=devcluster
SlurmctldHost=$host($(address 0))
SlurmctldPort=$port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits: 120 s by default, 5 s at least.
AuthInfo=socket=$LAB/run/munge.socket,cred_expire=5
# Ids grow from cluster to cluster: no log or record of an older one is taken for a new job's.
FirstJobId=$((1 + $(date +%s) % 60000000))
StateSaveLocation=$LAB/state
SlurmdSpoolDir=$LAB/spool/%n
SlurmctldPidFile=$LAB/run/slurmctld.own
SlurmdPidFile=$LAB/run/slurmd-%n.own
SlurmctldLogFile=$LAB/log/slurmctld.log
SlurmdLogFile=$LAB/log/slurmd-%n.log
LogTimeFormat=iso8601_ms
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
MpiDefault=none
# Nodes may claim more CPUs, memory and GPUs than the machine has.
SlurmdParameters=config_overrides
$(if [[ $SELECT == linear ]]; then printf '%s\n' SelectType=select/linear SelectTypeParameters=CR_Memory
else printf '%s\n' SelectType=select/cons_tres SelectTypeParameters=CR_Core_Memory; fi)
DefMemPerCPU=$((MEM / CPUS))
GresTypes=gpu
# Quick to schedule, quick to see that a node is dead.
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=1,bf_interval=1,bf_resolution=1
PriorityType=priority/basic
EnforcePartLimits=ALL
MinJobAge=300
KillWait=5
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=5
MessageTimeout=5
TCPTimeout=2
BatchStartTimeout=20
UnkillableStepTimeout=30
ReturnToService=2
RebootProgram=/bin/true
# Partition high preempts low at once, and lowgrace after a grace time.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$nodes NodeHostname=$hostnames NodeAddr=$addresses Port=$ports CPUs=$CPUS RealMemory=$MEM $( ((GPUS == 0)) || echo "Gres=gpu:$GPUS")
PartitionName=main Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF DefaultTime=60
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 DefaultTime=60
PartitionName=lowgrace Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 DefaultTime=60
PartitionName=high Nodes=ALL PriorityTier=20 PreemptMode=OFF DefaultTime=60
# Nodes are given whole; and a job that names no time has a minute.
PartitionName=whole Nodes=ALL PriorityTier=10 PreemptMode=OFF DefaultTime=60 OverSubscribe=EXCLUSIVE
PartitionName=brief Nodes=ALL PriorityTier=10 PreemptMode=OFF DefaultTime=1
TEXT
}

accounting_conf() {
  cat <<TEXT
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=$(address 0)
AccountingStoragePort=$((port + 1))
# Clients of slurmdbd find munge by this, not by AuthInfo.
AccountingStoragePass=$LAB/run/munge.socket
AccountingStorageTRES=gres/gpu
$([[ -z $QOS ]] || echo AccountingStorageEnforce=associations,limits,qos)
TEXT
}

slurmdbd_conf() {
  cat <<TEXT
DbdHost=localhost
DbdAddr=$(address 0)
DbdPort=$((port + 1))
SlurmUser=$user
AuthType=auth/munge
AuthInfo=socket=$LAB/run/munge.socket
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((port + 2))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
LogFile=$LAB/log/slurmdbd.log
PidFile=$LAB/run/slurmdbd.own
TEXT
}

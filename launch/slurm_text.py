"""The sbatch texts: one per run, which a person can sbatch again by hand, and one per array, which runs those.

submitit renders the #SBATCH lines. Its pickled functions and their checkpoint hooks have no part in a job: what a job
runs is launch/job.py on a run directory, once per rank, and requeueing is running the same text again.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from launch.ranks import RANK_VARIABLES
from launch.slurm_profile import Profile
from launch.snapshot import MARK
from toolkit.errors import EXIT_BUSY, EXIT_REQUEUE, ConfigError

# 3 is what launch/job.py returns after a checkpoint. 138, 140 and 143 are tasks that a signal to stop (USR1, USR2,
# TERM) ended before they could listen to it: Python was still starting, and there was nothing to save.
STOPPED_CODES = (EXIT_REQUEUE, 138, 140, 143)

RUN = """\
run={run}
code={code}
home={cwd}
job=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_}}${{SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}}
restart=${{SLURM_RESTART_COUNT:-0}}
log=$run/logs/${{job}}_${{restart}}_batch.log

fail() {{
  echo "error: $*" >&2
  [ ! -w "$run" ] || echo "job $job: $*" >"$run/FAILED"
  exit 2
}}
[ -r "$run/config.yaml" ] || fail "node $(hostname) can't see $run: put runs where all nodes can (--runs DIR)"
mkdir -p "$run/logs"
exec >>"$log" 2>&1
echo "$(date '+%F %T') job $job, start $((restart + 1)), on $SLURM_JOB_NODELIST"
[ -r "$code/{mark}" ] || fail "node $(hostname) can't see the code in $code; submit the run again"
cd "$home" || fail "node $(hostname) can't see $home, where the run was submitted"
rm -f "$run/FAILED"

unset {rank_variables}
export PYTHONPATH="$code${{PYTHONPATH:+:$PYTHONPATH}}"
{setup}

step=
asked=
# Before the time limit Slurm sends USR2 to this shell alone. srun hands USR2 on to all tasks, but ends them on a TERM.
trap 'asked=1; [ -z "$step" ] || kill -USR2 "$step" 2>/dev/null' USR2 TERM
{srun} \\
  {command} &
step=$!
[ -z "$asked" ] || kill -USR2 "$step"
while kill -0 "$step" 2>/dev/null; do wait "$step"; done # a signal ends a wait
wait "$step"
result=$?
echo "$(date '+%F %T') srun returned $result"

case $result in
  0 | {busy}) exit "$result" ;; # done; or another job has the run
  {stopped}) [ -e "$run/FAILED" ] || stopped=1 ;;
esac
if [ -z "${{stopped:-}}" ]; then
  [ -e "$run/FAILED" ] || echo "job $job: srun returned $result; see $log" >"$run/FAILED"
  exit "$result"
fi
if [ "$restart" -ge {max_restarts} ]; then
  echo "stopped with a checkpoint; not requeued after start $((restart + 1)): max_restarts is {max_restarts}"
  exit {requeue}
fi
for attempt in 1 2 3 4 5 6 7 8 9 10; do
  # Only a job that Slurm still calls running: one that was cancelled must not come back, and one that was preempted is
  # in the queue already. By its number in the array: the plain id may be that of the whole array.
  state=$(squeue --noheader --jobs="$job" --format=%T)
  case $state in
    RUNNING) scontrol requeue "$job" && echo "requeued" && exit {requeue} ;;
    ?*) echo "not requeued: Slurm has the job as $state" && exit {requeue} ;;
  esac
  sleep 3
done
echo "not requeued: Slurm doesn't answer; submit the run again"
exit {requeue}"""

ARRAY = """\
run=$(sed -n "$((${{SLURM_ARRAY_TASK_ID:-0}} + 1))p" {runs})
if [ ! -r "$run/submit.sbatch" ]; then
  echo "error: node $(hostname) can't see '$run', line $((${{SLURM_ARRAY_TASK_ID:-0}} + 1)) of {runs}" >&2
  exit 2
fi
exec bash "$run/submit.sbatch" """

COMMAND = """\
home={cwd}
index=${{SLURM_ARRAY_TASK_ID:-0}}
fail() {{ echo "error: $*" >&2; echo 2 >{folder}/"$index.code"; exit 2; }}
cd "$home" || fail "node $(hostname) can't see $home"
[ -r {folder} ] || fail "node $(hostname) can't see {folder}"

unset {rank_variables}
export PYTHONPATH={path}"${{PYTHONPATH:+:$PYTHONPATH}}"
{setup}

{srun} {command}
result=$?
echo "$result" >{folder}/"$index.code" # how it ended, where nobody keeps accounts
exit "$result\""""


@dataclass(frozen=True)
class Shape:
    """What a run takes of the cluster."""

    nodes: int
    gpus_per_node: int
    ranks: int

    @staticmethod
    def of(profile: Profile, nodes: int | None, gpus_per_node: int | None, ranks: int | None) -> Shape:
        """The profile's, less what the command line says; one rank per GPU, or one per node without GPUs.

        Raises:
            ConfigError: ranks that can't be spread evenly.
        """
        nodes = nodes or profile.nodes
        gpus = profile.gpus_per_node if gpus_per_node is None else gpus_per_node
        total = ranks or nodes * max(1, gpus)
        if total % nodes:
            raise ConfigError(f"--ranks {total} can't be spread evenly over {nodes} nodes: use a multiple of {nodes}")
        return Shape(nodes, gpus, total)

    @property
    def ranks_per_node(self) -> int:
        return self.ranks // self.nodes


class Executor(submitit.SlurmExecutor):
    """submitit's Slurm back end for a text of ours instead of a pickled function."""

    @classmethod
    def affinity(cls) -> int:
        return 2  # a text can be made where there is no Slurm

    def text(self, command: str) -> str:
        return self._make_submission_file_text(command, uid="") + "\n"

    def job_id(self, answer: str) -> str:
        """The number in what sbatch printed."""
        return self._get_job_id_from_submission_command(answer)


def run_text(
    profile: Profile, shape: Shape, sweep: Path, run: Path, code: Path, command: Sequence[str], cwd: Path
) -> str:
    """`<run>/submit.sbatch`; `command` is what each rank runs."""
    srun = ["srun", "--kill-on-bad-exit=1", "--wait=0", "--distribution=block", *profile.srun]
    inner = [*shlex.split(profile.container or ""), *command]
    body = RUN.format(
        run=shlex.quote(str(run)),
        code=shlex.quote(str(code)),
        cwd=shlex.quote(str(cwd)),
        mark=MARK,
        rank_variables=" ".join(RANK_VARIABLES),
        setup="\n".join(_setup(profile)),
        srun=shlex.join(srun),
        command=shlex.join(inner),
        busy=EXIT_BUSY,
        requeue=EXIT_REQUEUE,
        stopped=" | ".join(map(str, STOPPED_CODES)),
        max_restarts=profile.max_restarts,
    )
    executor = _executor(profile, shape, sweep, run.name, cwd, run / "logs" / "sbatch-%j.log")
    return executor.text(body)


def array_text(
    profile: Profile,
    shape: Shape,
    sweep: Path,
    folder: Path,
    name: str,
    array: str | None,
    after: str | None,
    cwd: Path,
) -> str:
    """`<sweep>/slurm/<key>/submit.sbatch`: runs the submit.sbatch of line n + 1 of runs.txt beside it.

    Args:
        array: indices and throttle, for example `0-99%10`; None: a plain job, for the first line.
        after: a job that has to end first.
    """
    body = ARRAY.format(runs=shlex.quote(str(folder / "runs.txt")))
    output = folder / ("%A_%a.log" if array else "%j.log")
    more = {"array": array, "dependency": f"afterany:{after}" if after else None}
    return _executor(profile, shape, sweep, name, cwd, output, **more).text(body.rstrip())


def command_text(
    profile: Profile,
    cpus: int,
    folder: Path,
    name: str,
    command: Sequence[str],
    path: Path,
    cwd: Path,
    comment: str,
    array: str | None = None,
    after: Sequence[str] = (),
    numbered: bool = False,
) -> str:
    """A text for something else than a run: one task on `cpus` processors, no GPU, in the profile's surroundings.

    Args:
        folder: where its log goes, and `<index>.code`, its exit code.
        command: what each task runs.
        path: folder that Python's packages are taken from.
        after: jobs that have to end first.
        numbered: the task's number in the array is added to the command.
    """
    srun = ["srun", "--ntasks=1", f"--cpus-per-task={cpus}", *profile.srun]
    plain = profile.model_copy(update={"cpus_per_task": cpus})
    body = COMMAND.format(
        cwd=shlex.quote(str(cwd)),
        folder=shlex.quote(str(folder)),
        path=shlex.quote(str(path)),
        rank_variables=" ".join(RANK_VARIABLES),
        setup="\n".join(_setup(plain)),
        srun=shlex.join(srun),
        command=shlex.join([*shlex.split(profile.container or ""), *command]) + (' "$index"' if numbered else ""),
    )
    output = folder / ("%A_%a.log" if array else "%j.log")
    more = {"array": array, "dependency": f"afterany:{':'.join(after)}" if after else None}
    more |= {"comment": comment, "signal": "B:CONT@60"}  # nothing listens, and submitit's own would end the task
    return _executor(plain, Shape(1, 0, 1), folder, name, cwd, output, **more).text(body)


def _executor(
    profile: Profile, shape: Shape, sweep: Path, name: str, cwd: Path, output: Path, **more: str | None
) -> Executor:
    gpus = f"{profile.gpu_type}:{shape.gpus_per_node}" if profile.gpu_type else shape.gpus_per_node
    options: dict[str, Any] = {
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "exclude": profile.exclude,
        "time": profile.time,
        "mem": profile.mem,
        "gpus-per-node": gpus if shape.gpus_per_node else None,
        "requeue": True,
        # To the batch shell (B:), which asks the tasks to stop and requeues the job.
        "signal": f"B:USR2@{profile.signal_s}",
        "chdir": str(cwd),
        "output": str(output),
        "comment": str(sweep),  # launch/slurm.py knows by it that a job of this name is of this sweep
        **more,
        **{key: True if value == "true" else value for key, value in profile.sbatch.items()},
    }
    executor = Executor(folder=output.parent)
    executor.update_parameters(
        job_name=name,
        nodes=shape.nodes,
        ntasks_per_node=shape.ranks_per_node,
        cpus_per_task=profile.cpus_per_task,
        time=None,
        wckey=None,  # submitit's own would be refused where keys are checked
        stderr_to_stdout=True,
        use_srun=False,
        additional_parameters={key: value for key, value in options.items() if value is not None},
    )
    return executor


def _setup(profile: Profile) -> list[str]:
    """Lines before the step: modules, the profile's own lines, variables."""
    lines = []
    if profile.modules:
        lines.append("command -v module >/dev/null || . /etc/profile")
        lines += [
            f'module load {shlex.quote(name)} || fail "module load {name}: failed on $(hostname)"'
            for name in profile.modules
        ]
    lines += profile.setup
    variables = {
        "SRUN_CPUS_PER_TASK": str(profile.cpus_per_task),  # since 22.05 srun doesn't take it over from sbatch
        "OMP_NUM_THREADS": str(profile.cpus_per_task),
    }
    if profile.interface:
        variables |= dict.fromkeys(("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"), profile.interface)
    variables |= profile.env
    return [*lines, *(f"export {key}={shlex.quote(value)}" for key, value in variables.items())]

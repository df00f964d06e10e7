"""The sbatch texts: one per run, which a person can sbatch again by hand, and one per array, which runs those.

submitit renders the #SBATCH lines. Its pickled functions and their checkpoint hooks have no part in a job: what a job
runs is launch/jobs/job.py on a run directory, once per rank, and requeueing is running the same text again.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit

from launch.jobs.ranks import RANK_VARIABLES
from launch.jobs.snapshot import MARK
from launch.slurm.profile import Profile
from toolkit.errors import ConfigError

RUN = """\
run={run}
code={code}
home={cwd}
python={python}
max_restarts={max_restarts} signal_s={signal_s} exclude={exclude}

prepare() {{
unset {rank_variables}
export PYTHONPATH="$code${{PYTHONPATH:+:$PYTHONPATH}}"
{setup}
}}
run_step() {{
exec {srun} \\
  {command}
}}

if [ ! -r "$code/{mark}" ]; then
  echo "error: node $(hostname) can't see the code in $code; submit the run again" | tee "$run/FAILED" >&2
  exit 2
fi
source "$code/launch/slurm/job.sh" """

# Paths are given to variables, quoted, and stand nowhere else: within "..." their own quotes would end, and $(...) run.
ARRAY = """\
runs={runs}
line=$((${{SLURM_ARRAY_TASK_ID:-0}} + 1))
run=$(sed -n "${{line}}p" "$runs")
if [ ! -r "$run/submit.sbatch" ]; then
  echo "error: node $(hostname) can't see '$run', line $line of $runs" >&2
  exit 2
fi
exec bash "$run/submit.sbatch" """

COMMAND = """\
home={cwd}
folder={folder}
index=${{SLURM_ARRAY_TASK_ID:-0}}
fail() {{ echo "error: $*" >&2; echo 2 >"$folder/$index.code"; exit 2; }}
cd "$home" || fail "node $(hostname) can't see $home"
[ -r "$folder" ] || fail "node $(hostname) can't see $folder"

unset {rank_variables}
export PYTHONPATH={path}"${{PYTHONPATH:+:$PYTHONPATH}}"
{setup}

{srun} {command}
result=$?
echo "$result" >"$folder/$index.code" # how it ended, where nobody keeps accounts
exit "$result\""""


@dataclass(frozen=True)
class Shape:
    """What a run takes of the cluster."""

    nodes: int
    gpus_per_node: int
    ranks: int

    @staticmethod
    def of(profile: Profile, nodes: int | None, gpus_per_node: int | None, ranks: int | None) -> Shape:
        """Return the values of the profile, overridden by the command line; one rank per GPU, or per node without GPUs.

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


def run_text(
    profile: Profile, shape: Shape, sweep: Path, run: Path, code: Path, command: Sequence[str], cwd: Path
) -> str:
    """`<run>/submit.sbatch`; `command` is what each rank runs, its Python first, which finds causes too."""
    srun = ["srun", "--kill-on-bad-exit=1", "--wait=0", "--distribution=block", *profile.srun]
    inner = [*shlex.split(profile.container or ""), *command]
    body = RUN.format(
        run=shlex.quote(str(run)),
        code=shlex.quote(str(code)),
        cwd=shlex.quote(str(cwd)),
        python=shlex.quote(command[0]),
        mark=MARK,
        rank_variables=" ".join(RANK_VARIABLES),
        setup="\n".join(_setup(profile)),
        srun=shlex.join(srun),
        command=shlex.join(inner),
        max_restarts=profile.max_restarts,
        signal_s=profile.signal_s,
        exclude=shlex.quote(profile.exclude or ""),
    )
    executor = _executor(profile, shape, sweep, run.name, cwd, run / "logs" / "sbatch-%j.log")
    return executor.text(body.rstrip())


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
    """Return a batch script for another task than a run: `cpus` processors, no GPU, in the profile's environment.

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
    options: dict[str, object] = {
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
        "comment": str(sweep),  # launch/slurm/queue.py knows by it that a job of this name is of this sweep
        **more,
        **{key: True if value == "true" else value for key, value in profile.sbatch.items()},
    }
    for key, value in {"job-name": name, **options}.items():
        if re.search(r"[\n\r\0]", str(value)):  # the rest would be a line of its own, which bash runs
            raise ConfigError(
                f"{key} of a job: {str(value)!r} holds the end of a line, which no #SBATCH line can: "
                "rename that folder, or change the profile"
            )
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
            f'module load {shlex.quote(name)} || fail {shlex.quote(f"module load {name}: failed on")} "$(hostname)"'
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

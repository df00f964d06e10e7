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
from toolkit.wording import count

RUN_TEXT, EVALUATION_TEXT = "submit.sbatch", "evaluate.sbatch"  # of a run directory

JOB = """\
run={run}
code={code}
home={cwd}
python={python}
max_restarts={max_restarts} signal_s={signal_s} exclude={exclude}

prepare() {{
{setup}
unset {rank_variables}
export PYTHONPATH="$code${{PYTHONPATH:+:$PYTHONPATH}}"
}}
cleanup() {{
{teardown}
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
if [ ! -r "$run/{text}" ]; then
  echo "error: node $(hostname) can't see '$run', line $line of $runs" >&2
  exit 2
fi
exec bash "$run/{text}" """

COMMAND = """\
home={cwd}
folder={folder}
index=${{SLURM_ARRAY_TASK_ID:-0}}
fail() {{ echo "error: $*" >&2; echo 2 >"$folder/$index.code"; exit 2; }}
cd "$home" || fail "node $(hostname) can't see $home"
[ -r "$folder" ] || fail "node $(hostname) can't see $folder"

prepare() {{
{setup}
unset {rank_variables}
export PYTHONPATH={path}"${{PYTHONPATH:+:$PYTHONPATH}}"
}}
cleanup() {{
{teardown}
}}

prepare
{srun} {command}
result=$?
(cleanup)
echo "$result" >"$folder/$index.code" # how it ended, where nobody keeps accounts
exit "$result\""""


@dataclass(frozen=True)
class Shape:
    """What a job takes of the cluster: one run, or with `pack` that many runs side by side on one node."""

    nodes: int
    gpus_per_node: int
    ranks: int  # of each run
    pack: int | None = None
    asks_for_gpus: bool = True  # select/linear gives nodes whole, and starts no step of a job that asks for GPUs

    @staticmethod
    def of(profile: Profile, ranks: int | None = None) -> Shape:
        """Return the shape of a profile.

        Args:
            ranks: of each run; None: one for each GPU, or for each node without GPUs.

        Raises:
            ConfigError: ranks that can't be spread evenly, that share a GPU, or that leave a GPU idle.
        """
        nodes, gpus = profile.nodes, profile.gpus_per_node
        if profile.pack is not None:
            return _packed(nodes, gpus, ranks, profile.pack)
        total = ranks or nodes * max(1, gpus)
        if total % nodes:
            raise ConfigError(f"--ranks {total} can't be spread evenly over {nodes} nodes: use a multiple of {nodes}")
        if gpus and total != nodes * gpus:
            raise ConfigError(
                f"--ranks {total} on {count(nodes * gpus, 'GPU')} ({count(nodes, 'node')} with {gpus} each): a rank "
                f"takes one GPU; give --gpus-per-node {total // nodes}, or leave --ranks out. Several runs share the "
                "GPUs of a node with --pack"
            )
        return Shape(nodes, gpus, total)

    @property
    def tasks_per_node(self) -> int:
        """Return how many tasks srun starts on a node: a rank each, or what starts the runs of a packed job."""
        return 1 if self.pack else self.ranks // self.nodes

    def cpus_per_task(self, each: int) -> int:
        """Return the processors of a task at `each` per rank."""
        return each * self.ranks * self.pack if self.pack else each

    @property
    def alone(self) -> Shape:
        """Return the shape of a job of one of these runs."""
        if self.pack is None:
            return self
        gpus = min(self.ranks, self.gpus_per_node)
        return Shape(1, gpus, self.ranks, asks_for_gpus=self.asks_for_gpus)


def _packed(nodes: int, gpus: int, ranks: int | None, pack: str) -> Shape:
    """Return the shape of a job of several runs; their ranks take all its GPUs, or each run shares one with others."""
    if nodes > 1:
        raise ConfigError(f"--pack {pack} runs several runs on one node, and --nodes is {nodes}: leave one of them out")
    if pack == "auto" and not gpus:
        raise ConfigError("--pack auto counts the GPUs of a node, and --gpus-per-node is 0: give a number of runs")
    places = gpus // (ranks or 1) if pack == "auto" else int(pack)
    each = ranks or max(1, gpus // max(1, places))
    if gpus and places * each != gpus and (each > 1 or places < gpus):
        divides = places and gpus % places == 0
        runs, of_each = (gpus // each, each) if gpus % each == 0 else (places, gpus // places) if divides else (gpus, 1)
        idle = 0 < places * each < gpus
        raise ConfigError(
            f"--pack {pack}: {count(places, 'run')} of {count(each, 'rank')} on {count(gpus, 'GPU')}: "
            + (f"{gpus - places * each} would stay idle" if idle else "ranks of a run can't share GPUs")
            + f"; give --pack {runs} --ranks {of_each}, or --gpus-per-node {max(1, places) * each}"
        )
    return Shape(1, gpus, each, places)


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
    """Return `<run>/submit.sbatch` or `evaluate.sbatch`; each rank runs `command`, whose Python finds causes too."""
    body = _job_body(profile, shape, run, code, command, cwd)
    executor = _executor(profile, shape, sweep, run.name, cwd, run / "logs" / "sbatch-%j.log")
    return executor.text(body)


def _of_array(
    folder: Path, array: str | None, after: Sequence[str], trained_by: str | None = None
) -> tuple[Path, dict[str, str | None]]:
    """Return the log of the jobs of an array, and its options of sbatch."""
    conditions = [f"{'aftercorr' if array else 'afterok'}:{trained_by}"] if trained_by else []
    conditions += [f"afterany:{':'.join(after)}"] if after else []
    more = {
        "array": array,
        "dependency": ",".join(conditions) or None,
        "kill-on-invalid-dep": "yes" if trained_by else None,  # else it would wait for a failed training permanently
    }
    return folder / ("%A_%a.log" if array else "%j.log"), more


def _job_body(profile: Profile, shape: Shape, run: Path, code: Path, command: Sequence[str], cwd: Path) -> str:
    srun = ["srun", "--kill-on-bad-exit=1", "--wait=0", "--distribution=block", *profile.srun]
    inner = [*shlex.split(profile.container or ""), *command]
    return JOB.format(
        run=shlex.quote(str(run)),
        code=shlex.quote(str(code)),
        cwd=shlex.quote(str(cwd)),
        python=shlex.quote(command[0]),
        mark=MARK,
        rank_variables=" ".join(RANK_VARIABLES),
        setup="\n".join(_setup(profile, shape)),
        teardown="\n".join(_teardown(profile)),
        srun=shlex.join(srun),
        command=shlex.join(inner),
        max_restarts=profile.max_restarts,
        signal_s=profile.signal_s,
        exclude=shlex.quote(profile.exclude or ""),
    ).rstrip()


def array_text(
    profile: Profile,
    shape: Shape,
    sweep: Path,
    folder: Path,
    name: str,
    array: str | None,
    after: Sequence[str],
    cwd: Path,
    code: Path,
    command: Sequence[str] = (),
    text: str = RUN_TEXT,
    trained_by: str | None = None,
) -> str:
    """`<sweep>/slurm/<key>/submit.sbatch`: a job runs the submit.sbatch of line n + 1 of runs.txt beside it.

    Args:
        array: indices and throttle, for example `0-99%10`; None: a plain job, for the first line.
        after: jobs that have to end first.
        code: the snapshot of the code.
        command: of a packed submission: launch/jobs/pack.py of the folder, its Python first, which runs what waits.
        text: the batch script of each run.
        trained_by: the job, or the array of as many tasks, each of which has to succeed before the one that evaluates
            its run; where it fails, that one is dropped.
    """
    single = ARRAY.format(runs=shlex.quote(str(folder / "runs.txt")), text=text).rstrip()
    body = _job_body(profile, shape, folder, code, command, cwd) if command else single
    output, more = _of_array(folder, array, after, trained_by)
    return _executor(profile, shape, sweep, name, cwd, output, **more).text(body)


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
    plain, shape = profile.model_copy(update={"cpus_per_task": cpus}), Shape(1, 0, 1)
    body = COMMAND.format(
        cwd=shlex.quote(str(cwd)),
        folder=shlex.quote(str(folder)),
        path=shlex.quote(str(path)),
        rank_variables=" ".join(RANK_VARIABLES),
        setup="\n".join(_setup(plain, shape)),
        teardown="\n".join(_teardown(plain)),
        srun=shlex.join(srun),
        command=shlex.join([*shlex.split(profile.container or ""), *command]) + (' "$index"' if numbered else ""),
    )
    output, more = _of_array(folder, array, after)
    more |= {"comment": comment, "signal": "B:CONT@60"}  # nothing listens, and submitit's own would end the task
    return _executor(plain, shape, folder, name, cwd, output, **more).text(body)


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
        "gpus-per-node": gpus if shape.gpus_per_node and shape.asks_for_gpus else None,
        "requeue": True,
        # To the batch shell (B:), which asks the tasks to stop and requeues the job.
        "signal": f"B:USR2@{profile.signal_s}",
        "chdir": str(cwd),
        "output": str(output.parent).replace("%", "%%") + f"/{output.name}",  # sbatch reads %j in a path as the job
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
        ntasks_per_node=shape.tasks_per_node,
        cpus_per_task=shape.cpus_per_task(profile.cpus_per_task),
        time=None,
        wckey=None,  # submitit's own would be refused where keys are checked
        stderr_to_stdout=True,
        use_srun=False,
        additional_parameters={key: value for key, value in options.items() if value is not None},
    )
    return executor


SAVED = """\
local IFS=$' \\t\\n' options=$(set +o; shopt -p)
line=''
failed_line() { trap - EXIT; fail "setup: '$line' $* on node $(hostname)"; }
trap 'failed_line "ended the job"' EXIT"""
RESTORED = """\
eval "$options" # what these lines set of the shell itself holds for them alone
trap - EXIT"""


def _setup(profile: Profile, shape: Shape) -> list[str]:
    """Return the lines before the step: modules, the profile's own lines, each checked, and variables."""
    lines = ["command -v module >/dev/null || . /etc/profile"] if profile.modules else []
    own = [f"module load {shlex.quote(name)}" for name in profile.modules] + list(profile.setup)
    lines += [f'line={shlex.quote(text)}; eval "$line" || failed_line "returned $?"' for text in own]
    variables = {
        "SRUN_CPUS_PER_TASK": str(shape.cpus_per_task(profile.cpus_per_task)),  # since 22.05 srun doesn't take it over
        "OMP_NUM_THREADS": str(profile.cpus_per_task),
    }
    if profile.interface:
        variables |= dict.fromkeys(("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"), profile.interface)
    variables |= profile.env
    exports = [f"export {key}={shlex.quote(value)}" for key, value in variables.items()]
    return [SAVED, *lines, RESTORED, *exports] if own else exports


def _teardown(profile: Profile) -> list[str]:
    """Return the lines after the step; one that fails is named in the log."""
    said = "echo \"teardown: '$line' returned $? on node $(hostname)\" >&2"
    return [f'line={shlex.quote(text)}; eval "$line" || {said}' for text in profile.teardown] or [":"]

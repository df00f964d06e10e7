"""Slurm's commands, each with a limit of time, and their refusals with what to do about them."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launch.slurm.profile import Profile
from launch.slurm.refusals import explain
from toolkit.errors import EXIT_USAGE, ToolkitError

TIMEOUT_S = 90
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
NEEDED = ("sbatch", "squeue", "scontrol")
# What a shell may say to sbatch by SBATCH_ variables; other such variables would contradict our texts.
SITE_VARIABLES = ("ACCOUNT", "PARTITION", "QOS", "CONSTRAINT", "RESERVATION")
# These change what Slurm's other commands print or do, and are the caller's business alone.
OTHERS_VARIABLES = ("SQUEUE_", "SCANCEL_", "SCONTROL_", "SINFO_", "SACCT_", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")


class SlurmError(ToolkitError):
    """Slurm refused, or can't be reached."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class QueuedJob:
    """A line of squeue; array tasks one by one."""

    name: str  # 4711 or 4711_3
    state: str
    job_name: str
    comment: str
    reason: str = ""  # why it waits
    nodes: str = ""
    packed: bool = False  # it runs several runs

    @property
    def index(self) -> int:
        """Its number in its array; 0 for a plain job."""
        return int(self.name.partition("_")[2] or 0)

    @property
    def base(self) -> str:
        """The id that stands for its whole array."""
        return self.name.partition("_")[0]

    @property
    def waiting(self) -> bool:
        """Whether no node has it."""
        return self.state in WAITING


def call(*command: str, environ: Mapping[str, str] | None = None, timeout_s: float | None = None) -> str:
    """Return the output of a command.

    Args:
        environ: its environment; None: this one without what changes the output of Slurm's commands.
        timeout_s: default: TIMEOUT_S.

    Raises:
        SlurmError: it isn't here, failed, or took longer than it may.
    """
    return _run(command, environ, TIMEOUT_S if timeout_s is None else timeout_s).stdout


def _run(
    command: Sequence[str], environ: Mapping[str, str] | None, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Raises:
        SlurmError: it isn't here, failed, or took longer than it may.
    """
    if environ is None:
        environ = {key: value for key, value in os.environ.items() if not key.startswith(OTHERS_VARIABLES)}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            env=environ,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]}: no answer within {timeout_s:g} s: the controller is busy or away") from None
    except OSError as error:
        raise SlurmError(f"{command[0]}: {error.strerror}: not on this machine's PATH") from None
    if done.returncode:
        raise SlurmError(explain(command[0], done.stderr.strip() or f"exit code {done.returncode}"))
    return done


def check_installed() -> None:
    """Check that Slurm is installed.

    Raises:
        SlurmError: this machine has no Slurm.
    """
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        raise SlurmError(
            f"--cluster slurm: {', '.join(missing)} not found here. On a cluster, submit from its login node; "
            "--cluster local runs on this machine; slurm/devcluster/cluster makes a small Slurm of it to try "
            "(slurm/README.md)"
        )


def configuration() -> dict[str, str]:
    """Return the cluster's settings, by key."""
    return dict(re.findall(r"^(\w+)\s*=[ \t]*(.*?)[ \t]*$", call("scontrol", "show", "config"), re.MULTILINE))


def max_array_size(settings: Mapping[str, str] | None = None) -> int:
    """Return how many tasks an array may have; 1 or less: no arrays."""
    given = (configuration() if settings is None else settings).get("MaxArraySize", "")
    return int(given) if given.isdecimal() else 0


def queue(user: str | None = None, timeout_s: float | None = None) -> list[QueuedJob]:
    """All jobs of a user (default: this one) that wait, run or are ending; array tasks one by one."""
    user = user or user_name()
    form = "--format=%i|%T|%r|%N|%j|%k"
    jobs = []
    for line in call("squeue", "--noheader", "--array", f"--user={user}", form, timeout_s=timeout_s).splitlines():
        parts = line.strip().split("|", 5)
        if len(parts) == 6:  # else a warning that went to the wrong stream
            name, state, reason, nodes, job_name, comment = parts
            jobs += [QueuedJob(one, state, job_name, comment, reason, nodes) for one in tasks_of(name)]
    return jobs


def tasks_of(name: str) -> list[str]:
    """Array tasks that wait are shown together by some versions: `12_[2,4-6%3]` is 12_2, 12_4, 12_5, 12_6."""
    match = re.fullmatch(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]", name)
    if match is None:
        return [name]
    tasks = []
    for part in match[2].split(","):
        ends, _, step = part.partition(":")
        first, _, last = ends.partition("-")
        tasks += [f"{match[1]}_{index}" for index in range(int(first), int(last or first) + 1, int(step or 1))]
    return tasks


def exit_reason(name: str) -> str | None:
    """How Slurm says that a job ended, for example `FAILED, exit code 1:0`; None when it has forgotten."""
    try:
        line = call("scontrol", "--oneliner", "show", "job", name)
    except SlurmError:
        return None
    said = dict(re.findall(r"\b(JobState|Reason|ExitCode|NodeList|BatchHost)=(\S+)", line))
    state, code = said.get("JobState", "?"), said.get("ExitCode", "?")
    if code == "0:53":
        return f"{state}: node {said.get('BatchHost', '?')} can't write the job's log: it doesn't see this folder"
    reason = "" if said.get("Reason") in (None, "None") else f", {said['Reason']}"
    return f"{state}{reason}, exit code {code}, on {said.get('NodeList', '?')}"


def submission_environment(profile: Profile) -> dict[str, str]:
    """Return the environment for sbatch and the job: without variables of an outer job, so that
    submissions do not depend on where they are made."""
    kept = {"SLURM_CONF", "SLURM_CONF_SERVER"}
    kept |= {f"SBATCH_{key}" for key in SITE_VARIABLES if getattr(profile, key.lower(), None) is None}
    outer = (*OTHERS_VARIABLES, "SLURM", "SRUN_", "SBATCH_", "SUBMITIT_", "PMI_", "PMIX_", "TORCHELASTIC_")
    return {key: value for key, value in os.environ.items() if key in kept or not key.startswith(outer)}


def sbatch(file: str, environ: Mapping[str, str]) -> str:
    """Submit a text; returns the job's number, whatever else a site lets sbatch say.

    Raises:
        SlurmError: refused, no answer, or no number in it. After the latter two the job may be there all the same.
    """
    answer = call("sbatch", file, environ=environ)
    numbers = re.findall(r"^(?:Submitted batch job )?(\d+)(?:;\S*| on cluster \S+)?$", answer, re.MULTILINE)
    if not numbers:
        raise SlurmError(f"sbatch: names no job in its answer: {answer.strip()!r}")
    return str(numbers[-1])


def sbatch_test(text: str, environ: Mapping[str, str]) -> str:
    """Return what sbatch says of a text that it only tests: when the job would begin, and where.

    Raises:
        SlurmError: it would be refused, or Slurm does not answer.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".sbatch") as file:
        file.write(text)
        file.flush()
        done = _run(["sbatch", "--test-only", file.name], environ, TIMEOUT_S)
    return (done.stderr + done.stdout).strip()


def cancel(names: Sequence[str]) -> None:
    """Take jobs out of the queue; running ones get SIGTERM, then SIGKILL after Slurm's KillWait."""
    if names:
        call("scancel", *names)


def user_name() -> str:
    """Return this user's name, or the number where the system has no name for it (containers)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the latter since Python 3.13
        return str(os.getuid())

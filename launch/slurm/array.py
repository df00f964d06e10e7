"""A command run N times side by side as one array of a cluster, and waited for. Does not import torch.

What isn't a run of a sweep goes to a cluster by this: setup.py registers it as the job layer of conversions (see
shards/cluster.py). The profiles are those of sweeps. Tasks must bear to be run twice: what a cluster
interrupts, it starts again.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from launch.cli.parser import make_parser, positive, run_script
from launch.slurm import client
from launch.slurm.client import SlurmError
from launch.slurm.profile import read_profile
from launch.slurm.script import command_text
from toolkit.atomic import write_atomic
from toolkit.errors import EXIT_FAILURE, EXIT_OK
from toolkit.wording import first_line

POLL_S = 2.0
ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = """\
  python -m launch.slurm.array --name shards-mmnist --folder jobs --count 8 --profile cpu -- python work.py"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns 0 when every task returned 0."""
    parser = make_parser(
        "launch.slurm.array", "Run a command N times as an array of a Slurm cluster, and wait.", EXAMPLES
    )
    parser.add_argument(
        "--name",
        required=True,
        help="name of the job; jobs of that name and folder left by an earlier call are cancelled",
    )
    parser.add_argument(
        "--folder", required=True, type=Path, metavar="DIR", help="folder for the batch script, logs and exit codes"
    )
    parser.add_argument("--count", required=True, type=positive, metavar="N", help="number of tasks")
    parser.add_argument("--cpus", type=positive, default=1, metavar="N", help="CPUs per task (default: 1)")
    parser.add_argument("--profile", metavar="NAME", help="slurm/profiles/NAME.yaml, or a file (default: default)")
    parser.add_argument(
        "command",
        nargs="+",
        metavar="COMMAND",
        help="command of each task; the task's number is appended to its arguments",
    )
    options = parser.parse_args(argv)
    given = read_profile(options.profile)
    profile = given.light_request(given.time)
    client.check_installed()
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    _clear(options.name, folder)
    size = client.max_array_size()
    if options.count > max(1, size):
        raise SlurmError(f"{options.count} jobs: this cluster takes arrays of at most {max(1, size)}; ask for fewer")
    array = f"0-{options.count - 1}" if options.count > 1 else None
    path, comment = ROOT, str(folder)
    text = command_text(
        profile, options.cpus, folder, options.name, options.command, path, Path.cwd(), comment, array, numbered=True
    )
    write_atomic(folder / "submit.sbatch", text)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        job = client.sbatch(str(folder / "submit.sbatch"), client.submission_environment(profile))
        kind = f"array of {options.count}" if array else "job"
        print(f"submitted {kind} {job}; its logs: {folder}", file=sys.stderr, flush=True)
        _wait(options.name, folder)
    except BaseException:
        _cancel(options.name, folder)
        raise
    names = [f"{job}_{index}" if array else job for index in range(options.count)]
    failed = [name for index, name in enumerate(names) if _code(folder, index) != 0]
    for name in failed:
        reason = client.exit_reason(name) or "exited without a final status"
        print(f"job {name} failed ({reason}); its log: {folder / name}.log", file=sys.stderr)
    return EXIT_FAILURE if failed else EXIT_OK


def _clear(name: str, folder: Path) -> None:
    """End what an interrupted call left in the queue, and forget how earlier tasks ended."""
    if left := _queued(name, folder):
        print(f"cancelling the jobs of an interrupted call: {', '.join(left)}", file=sys.stderr, flush=True)
        client.cancel(left)
        _wait(name, folder)
    for file in folder.glob("*.code"):
        file.unlink()


def _queued(name: str, folder: Path) -> list[str]:
    """Return the IDs of the jobs of that name and folder, an array's once."""
    jobs = client.queue()
    return sorted({job.base for job in jobs if job.job_name == name and job.comment == str(folder)})


def _wait(name: str, folder: Path) -> None:
    """Wait until none of these jobs is in the queue; it is queried less often where it doesn't answer."""
    pause, absent = POLL_S, 0
    while absent < 2:  # twice: a job is not seen at once everywhere
        time.sleep(pause if absent == 0 else min(pause, 0.5))
        try:
            absent = 0 if _queued(name, folder) else absent + 1
            pause = POLL_S
        except SlurmError as error:
            print(f"{first_line(error)}; asking again", file=sys.stderr, flush=True)
            pause = min(2 * pause, 120.0)


def _cancel(name: str, folder: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # By name: sbatch may have been interrupted before it could say which number.
    with contextlib.suppress(SlurmError):
        client.cancel(_queued(name, folder))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _code(folder: Path, index: int) -> int | None:
    try:
        return int((folder / f"{index}.code").read_text())
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    run_script(main)

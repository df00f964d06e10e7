"""Run several runs side by side in one job, each in a place with its own GPUs, processors, log, lock and exit code.

    python launch/jobs/pack.py runs/demo/slurm/1a2b3c4d

The folder is that of a submission (launch/slurm/submitter.py): `runs.txt` lists its runs, `pack.json` says how many
places a job has, and how many ranks a run. The jobs of an array share the list: a place that gets free takes the next
run that waits, whichever job it was meant for, and the run's lock keeps others from it. A run is started by
launch/jobs/job.py, as in a job of its own; signals are handed on to all of them.

Returns 3 ("run me again") when it was asked to stop and a run is neither done nor failed; 1 when a run has failed in
this job; else 0. A run that fails stops no other. Imports neither torch nor a scheduler.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.cli.parser import make_parser, run_script
from launch.jobs.attempts import why_not_begun
from launch.jobs.machine import Machine, share_of_processors
from launch.jobs.mps import shared_gpus
from launch.jobs.ranks import SignalRelay, die_with_parent, end_group, meaning
from launch.jobs.submitter import JOB_SCRIPT, job_command
from toolkit.atomic import write_atomic
from toolkit.distributed import slurm
from toolkit.errors import EXIT_BUSY, EXIT_FAILURE, EXIT_OK, EXIT_REQUEUE, ConfigError, ToolkitError
from toolkit.rundir import RunDir
from toolkit.rundir.events import append_event, read_restarts
from toolkit.rundir.lock import FD_VARIABLE, lock_for_child, read_lock
from toolkit.rundir.status import missing_scores
from toolkit.wording import count

logger = logging.getLogger(__name__)

PACK_SCRIPT = Path(__file__).resolve()
PACK = "pack.json"
RUNS = "runs.txt"
POLL_S = 0.1
SCAN_S = 2.0  # between two looks for runs that wait, while a place is free
EXAMPLES = """\
  python launch/jobs/pack.py runs/demo/slurm/1a2b3c4d   # in a job: run what waits of that submission, side by side"""


@dataclass(frozen=True)
class Pack:
    """How the runs of a submission share a job."""

    places: int
    ranks: int  # of each run
    gpus: int  # of a job; 0: runs on CPUs

    def write(self, folder: Path) -> None:
        write_atomic(folder / PACK, json.dumps(asdict(self)) + "\n")


def read_pack(folder: Path) -> Pack | None:
    """Return how the runs of a submission are packed; None: each has a job of its own.

    Raises:
        ConfigError: the file is there and can't be used.
    """
    try:
        values = json.loads((folder / PACK).read_text(encoding="utf-8"))
        return Pack(int(values["places"]), int(values["ranks"]), int(values["gpus"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / PACK}: can't be used ({error}); cancel the sweep and submit it again") from None


def find_pack(folder: Path) -> Pack | None:
    """Return the same for those who look on: None also for a file that can't be used, which is logged."""
    try:
        return read_pack(folder)
    except ConfigError as error:
        logger.warning("%s", error)
        return None


def listed_runs(folder: Path) -> list[Path]:
    """Return the runs of a submission in its order; none where there is no list."""
    try:
        return [Path(line) for line in (folder / RUNS).read_text(encoding="utf-8", errors="replace").splitlines()]
    except FileNotFoundError:
        return []


def is_unfinished(run: RunDir, since: float) -> bool:
    """Return whether a packed job still has this run to do: it is neither done and scored, nor failed after `since`.

    Args:
        since: when the run was submitted, UNIX time; a failure from before was submitted to be run again.
    """
    try:
        if _failed_since(run, since):
            return False
        if not run.config_file.exists():
            return False  # deleted since
        return not run.done or bool(missing_scores(run)) or bool(missing_scores(run, run.config().eval.split))
    except (OSError, ToolkitError):
        return True  # the job that takes it finds the same, and reports it


def _failed_since(run: RunDir, since: float) -> bool:
    try:
        return (run.path / "FAILED").stat().st_mtime >= since
    except FileNotFoundError:
        return False


class _Place:
    """A run at work in a place."""

    def __init__(self, run: RunDir, process: subprocess.Popen[bytes]) -> None:
        self.run = run
        self.process = process


class PackedJob:
    """The places of one job."""

    def __init__(self, folder: Path, job: Path = JOB_SCRIPT) -> None:
        """
        Args:
            job: the script that runs one run directory.

        Raises:
            ConfigError: the folder isn't that of a packed submission, or the job lacks GPUs that it was promised.
        """
        pack = read_pack(folder)
        if pack is None:
            raise ConfigError(f"{folder}: no {PACK} there: not the folder of a packed submission of launch/sweep.py")
        self.folder = folder
        self.pack = pack
        self.job = job
        self.since = (folder / RUNS).stat().st_mtime
        self.machine = Machine.here()
        if len(self.machine.gpus) < pack.gpus:
            raise ConfigError(
                f"this job was submitted for {count(pack.gpus, 'GPU')}, and CUDA_VISIBLE_DEVICES="
                f"{os.environ.get('CUDA_VISIBLE_DEVICES', '(not set)')} names {len(self.machine.gpus)} on this node"
            )
        runs = [RunDir(path) for path in listed_runs(folder)]
        first = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0")) * pack.places  # its own ones come first
        self.left = [*runs[first:], *runs[:first]]
        self.places: dict[int, _Place] = {}
        self.failed = 0
        self._scan_at = 0.0
        self._waiting = False  # whether runs were there that others hold, at the last look

    def work(self) -> int:
        """Run what waits until nothing does, or until a signal asks to stop; returns the exit code."""
        looks = 0  # in a row at which nothing was left to do
        processes = self.pack.places * self.pack.ranks
        with SignalRelay() as relay, shared_gpus(processes, self.machine) as (environment, self.machine):
            try:
                while looks < 2:
                    self._hand_on(relay)
                    self._reap(bool(relay.received))
                    if not relay.received and self._fill(environment):
                        looks = 0 if self.places or self._waiting else looks + 1
                    if relay.received and not self.places:
                        break
                    time.sleep(POLL_S)
            finally:
                for place in self.places.values():
                    end_group(place.process)
        if relay.received and any(is_unfinished(run, self.since) for run in self.left):
            return EXIT_REQUEUE
        if not relay.received:
            _drop_siblings()
        return EXIT_FAILURE if self.failed else EXIT_OK

    def _hand_on(self, relay: SignalRelay) -> None:
        for number in relay.take():
            for place in self.places.values():
                place.process.send_signal(number)

    def _reap(self, stopping: bool) -> None:
        for number, place in list(self.places.items()):
            code = place.process.poll()
            if code is None:
                continue
            code = code if code >= 0 else 128 - code
            del self.places[number]
            self._scan_at = 0.0
            logger.info("place %d: %s: %s", number, place.run.path.name, meaning(code))
            killed = stopping and code > 128  # with the whole job: it isn't the run that failed
            if code not in (EXIT_OK, EXIT_REQUEUE, EXIT_BUSY) and not killed:
                self._note_failure(place.run, f"the job of this run in place {number}: {meaning(code)}")

    def _note_failure(self, run: RunDir, reason: str) -> None:
        """Count a failed run, and leave a reason in its directory unless there is one of this submission."""
        self.failed += 1
        try:
            if run.failure() is None or not _failed_since(run, self.since):
                run.mark_failed(reason)
        except OSError as error:
            logger.warning("%s: can't be marked as failed (%s): %s", run.path, error, reason)

    def _fill(self, environment: dict[str, str]) -> bool:
        """Give free places what waits; true when it was looked for."""
        free = [number for number in range(self.pack.places) if number not in self.places]
        if not free or time.monotonic() < self._scan_at:
            return False
        self._scan_at = time.monotonic() + SCAN_S
        self._waiting = False
        mine = {place.run for place in self.places.values()}
        for run in list(self.left):
            if not free:
                self._scan_at = 0.0
                break
            if run in mine:
                continue
            try:
                begun = self._begin(run, free[0], environment)
            except (OSError, ToolkitError) as error:  # of this run alone: the others continue
                logger.error("%s: can't be run: %s", run.path, error)
                self._note_failure(run, f"can't be run: {error}")
                self.left.remove(run)
                continue
            if begun:
                free.pop(0)
        return True

    def _begin(self, run: RunDir, number: int, environment: dict[str, str]) -> bool:
        """Begin a run in a place, if there is something to do and no other job has it; true when it was begun.

        Raises:
            OSError, ToolkitError: its directory can't be used.
        """
        if not is_unfinished(run, self.since):
            self.left.remove(run)
            return False
        if why := why_not_begun(run):
            logger.error("%s is not begun: %s", run.path.name, why)
            self.failed += 1
            self.left.remove(run)
            return False
        run.config()
        lock = lock_for_child(run.path)
        if lock is None:
            # Of this very job: Slurm may have begun it again while its start before is alive, on a node that was
            # given up. What that one leaves is this one's to do.
            self._waiting |= slurm.is_earlier_start(read_lock(run.path).get("job"))
            return False
        try:
            self._note_restart(run)
            self._start(run, number, lock, environment)
        finally:
            os.close(lock)
        return True

    def _start(self, run: RunDir, number: int, lock: int, environment: dict[str, str]) -> None:
        logger.info("place %d: %s", number, run.path.name)
        share = self.machine.environment(self.pack.places, self.pack.ranks, number)
        processors = share_of_processors(self.pack.places, number)

        def prepare() -> None:
            die_with_parent()
            os.sched_setaffinity(0, processors)

        run.logs.mkdir(exist_ok=True)
        process = subprocess.Popen(
            ["env", *share, *job_command(run.path, self.pack.ranks, True, self.job)],
            env={**os.environ, **environment, FD_VARIABLE: str(lock)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # signals come to this process alone, which hands them on
            pass_fds=[lock],
            preexec_fn=prepare,
        )
        self.places[number] = _Place(run, process)

    def _note_restart(self, run: RunDir) -> None:
        """Note why a run begins again that a job of this submission began, as job.sh does for a job of one run."""
        record, this = read_lock(run.path), str(slurm.job_name())
        before, of_array = str(record.get("job", "")), this.partition("_")[0] + "_"
        if not before.startswith(of_array) or before == this or run.done or _failed_since(run, self.since):
            return
        name = this.rpartition("_")[0]
        causes = [restart for restart in read_restarts(self.folder) if restart.job == name]
        if slurm.is_earlier_start(before) and causes:
            nodes, lost, cause = causes[-1].nodes, causes[-1].lost, causes[-1].cause
        else:
            nodes, lost, other = str(record.get("host", "")), "", f"job {before.rpartition('_')[0]}"
            # Killed, or its node lost: an end of another kind is in its record.
            gone = f"lost with {other}, which exited without a final status"
            cause = f"{other} did not finish it" if "ended" in record else gone
        # A run that another job began has no restart of this job: its own are counted.
        number = len(read_restarts(run.path)) + 2
        append_event(run.path, "restart", job=name, start=number, nodes=nodes, lost=lost, cause=cause)


def _drop_siblings() -> None:
    """Take jobs of this array that never began out of the queue: no run waits for them any more.

    What others run at this moment is theirs to finish: Slurm begins such a job again, and those are left in the queue.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is None or shutil.which("squeue") is None:
        return
    form = "--Format=ArrayTaskID:20,RestartCnt:20"
    command = ["squeue", "--noheader", "--array", f"--jobs={array}", "--states=PENDING", form]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        lines = [line.split() for line in done.stdout.splitlines()]
        names = [f"{array}_{line[0]}" for line in lines if len(line) == 2 and line[0].isdigit() and line[1] == "0"]
        if names:
            logger.info("no run waits any more: %s of this array need not begin", count(len(names), "job"))
            subprocess.run(["scancel", "--state=PENDING", *names], timeout=60, check=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = make_parser("jobs/pack.py", "Run the runs of a packed submission side by side, in a job.", EXAMPLES)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the submission: <sweep>/slurm/<key>")
    parser.add_argument(
        "--job", type=Path, default=JOB_SCRIPT, metavar="FILE", help="what runs each run (default: launch/jobs/job.py)"
    )
    options = parser.parse_args(argv)
    return PackedJob(options.folder.resolve(), options.job).work()


if __name__ == "__main__":
    run_script(main)

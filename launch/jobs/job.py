"""What a job runs: train the run directory if it isn't DONE, then score its checkpoints.

Its only argument that matters is the run directory, so requeueing is running the same command again. Returns the code
of the training (see toolkit/errors.py): 3 means "run me again". Imports neither torch nor a scheduler.

In a step of Slurm with several tasks it runs once per rank: the first task is the job, the others only train with it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.cli.parser import make_parser, positive, run_script
from launch.jobs.attempts import count_starts, going_in_circles, note_early_failure, why_not_begun
from launch.jobs.ranks import SignalRelay, meaning, run_ranks
from toolkit.distributed import slurm
from toolkit.errors import EXIT_FAILURE, EXIT_OK, EXIT_REQUEUE
from toolkit.models.plugins import FileModel, entry_of
from toolkit.rundir import RunDir
from toolkit.rundir.heartbeat import beats_of
from toolkit.rundir.lock import LOCK_NAME, HeldLock, RunBusyError, hold, read_lock
from toolkit.rundir.mend import mend
from toolkit.rundir.status import missing_scores

SCRIPTS = Path(__file__).resolve().parents[1]  # with train.py and evaluate.py
TRAIN, EVALUATE = "train", "evaluate"
LOG_WAIT_S = 10.0
logger = logging.getLogger(__name__)
WAIT_S = 0.2  # between two looks at the run's lock
EXAMPLES = """\
  python -m launch.jobs.job runs/demo/modernn-seed1-1a2b3c4d             # start or resume a run, in the foreground
  python -m launch.jobs.job runs/demo/modernn-seed1-1a2b3c4d --ranks 2   # on two processes"""


def job_id() -> str:
    """Return the scheduler's job ID, or one made of the process ID."""
    local = os.environ.get("SUBMITIT_LOCAL_JOB_ID")
    return f"local-{local}" if local else slurm.job_name() or f"hand-{os.getpid()}"


def run_job(
    run: RunDir, ranks: int = 1, scripts: Path = SCRIPTS, log_files: bool = False, only: str | None = None
) -> int:
    """Train and score a run directory as its only job.

    Args:
        run: the run directory.
        ranks: processes to train with.
        scripts: the folder with train.py and evaluate.py.
        log_files: send the output to files in the run's `logs/` instead of this process's output.
        only: `train`: another job evaluates the run; `evaluate`: another job trains it, so that an unfinished training
            is left alone.

    Returns:
        0 when the run is trained and scored, or as far as `only` asks, 3 when it was stopped and is to be run again,
        else what failed.

    Raises:
        ConfigError: when the folder is not a run directory.
        RunBusyError: when another job has it.
    """
    config = run.config()
    split = config.eval.split
    task = slurm.task()
    if task is not None and task.rank > 0:
        return _train_along(run, task, scripts, log_files)
    if why := why_not_begun(run):
        print(f"not begun: {why}", file=sys.stderr, flush=True)
        return EXIT_OK
    with SignalRelay() as relay, contextlib.ExitStack() as stack:
        before = read_lock(run.path)
        lock = _acquire_lock(run, ranks, relay, stack)
        if lock is None:
            return EXIT_REQUEUE
        mend(run)
        job = _Job(run, relay, lock, log_files, task)
        code = EXIT_OK
        unready = only == EVALUATE and not run.done and entry_of(config.model).trained
        if unready:
            logger.warning("%s: its training has not finished: it is not evaluated", run.path)
        elif not run.done:
            code = job.train(before, [str(scripts / "train.py"), *_run_given(run)], ranks)
        if code == EXIT_OK and not unready and only != TRAIN and missing_scores(run, split):
            code = job.phase("evaluate", [str(scripts / "evaluate.py"), *_run_given(run)], 1)
            if code == EXIT_OK:
                code = _mark_scored(run, split)
        lock.note(ended=time.time(), exit=code)
        return code


def _run_given(run: RunDir) -> list[str]:
    """Return the arguments that name a run, and the copy of its model's file: a job runs what its directory holds."""
    own = isinstance(run.config().model, FileModel)
    return ["--run", str(run.path), *(["--model-file", str(run.model_file)] if own else [])]


def _acquire_lock(run: RunDir, ranks: int, relay: SignalRelay, stack: contextlib.ExitStack) -> HeldLock | None:
    """Return the run's lock, held until the end of `stack`; None if this job was asked to stop while waiting.

    Slurm may begin a job again that is still alive (slurmd or the network died, not the node), or the file system may
    keep a lost node's lock for a while: an earlier start of this very job is waited for, any other job is not.
    """
    logged = False
    while not relay.received:
        try:
            return stack.enter_context(hold(run.path, job=job_id(), ranks=ranks, submitted=_submitted(run)))
        except RunBusyError as error:
            if not slurm.is_earlier_start(read_lock(run.path).get("job")):
                raise
            if not logged:
                logger.warning("%s: an earlier start of this job; waiting until it has ended", error)
            logged = True
            time.sleep(WAIT_S)
    return None


def _submitted(run: RunDir) -> float | None:
    """Return when this job was submitted: when its text was written. None where that is unknown, or it was requeued."""
    if slurm.job_name() is None or os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        return None
    try:
        return (run.path / "submit.sbatch").stat().st_mtime
    except OSError:
        return None


def _train_along(run: RunDir, task: slurm.Task, scripts: Path, log_files: bool) -> int:
    """Run a rank other than the first of a job with several tasks. Slurm ends all tasks at the first nonzero code."""
    logs = [run.logs / f"{job_id()}_{task.rank}.log"] if log_files else []
    with SignalRelay() as relay:
        began, logged = time.monotonic(), False
        while read_lock(run.path).get("job") != job_id():  # until the first task has the run
            if relay.received or why_not_begun(run):
                return EXIT_OK
            if not logged and time.monotonic() - began > LOG_WAIT_S:
                logged = True
                logger.warning("%s: rank %d waits until the first task holds %s", run.path, task.rank, LOCK_NAME)
            time.sleep(WAIT_S)
        if run.done:
            return EXIT_OK
        command = [sys.executable, str(scripts / "train.py"), *_run_given(run)]
        code = run_ranks(command, 1, relay, logs, environment=task.environment)
    if code in (EXIT_OK, EXIT_REQUEUE) or code - 128 in relay.received:
        return EXIT_OK  # that it was stopped is the first task's to report, when it has written the checkpoint
    if run.failure() is None:
        where = f"; see {logs[0]}" if logs else ""
        run.mark_failed(f"train: rank {task.rank} on {socket.gethostname()}: {meaning(code)}{where}")
    return code


def _mark_scored(run: RunDir, split: str) -> int:
    """After an evaluation that returned 0: scores that it left, because they hold, count as new."""
    files = [run.eval / f"{name}.json" for name in missing_scores(run, split)]
    absent = [file.name for file in files if not file.exists()]
    if absent:
        run.mark_failed(f"evaluate: returned 0 without writing {', '.join(absent)}")
        return EXIT_FAILURE
    for file in files:
        os.utime(file)
    return EXIT_OK


class _Job:
    """The phases of one job."""

    def __init__(
        self, run: RunDir, relay: SignalRelay, lock: HeldLock, log_files: bool, task: slurm.Task | None
    ) -> None:
        self.run = run
        self.relay = relay
        self.lock = lock
        self.log_files = log_files
        self.task = task

    def train(self, before: Mapping[str, Any], arguments: list[str], ranks: int) -> int:
        """Train, unless the starts before, of which `before` is the last one's lock, have gained no step."""
        counted = count_starts(self.run, before)
        self.lock.note(**counted)
        if why := going_in_circles(self.run, counted):
            self.run.mark_failed(why)
            return EXIT_FAILURE
        code = self.phase("train", arguments, ranks)
        if code == EXIT_OK and not self.run.done:
            self.run.mark_failed("train: returned 0 without marking the run DONE")
            code = EXIT_FAILURE
        if code not in (EXIT_OK, EXIT_REQUEUE):
            note_early_failure(self.run, float(self.lock.record["started"]))
        return code

    def phase(self, name: str, arguments: list[str], ranks: int) -> int:
        """Run one script; on failure leave a reason in the run directory, unless the script did."""
        if self.relay.received:
            return EXIT_REQUEUE
        self.run.clear_failed()
        logs = self._logs(name, ranks)
        self.lock.note(phase=name, log=str(logs[0]) if logs else None)
        command = [sys.executable, *arguments]
        environment = {**self.lock.environment, **self._place(name)}
        code = run_ranks(
            command, ranks, self.relay, logs, environment, [self.lock.fd], self._describe_rank, self.lock.check
        )
        if code == EXIT_REQUEUE and job_id() not in (self.run.failure() or ""):
            # Not this start's (`_train_along`): a rank says it that an earlier one left on a node that was given up.
            self.run.clear_failed()
        # A script that a signal ended before it could set its handlers was stopped too: it had nothing to save.
        stopped = {EXIT_REQUEUE, EXIT_OK, *(128 + number for number in self.relay.received)}
        if self.relay.received and code in stopped:
            finished = code == EXIT_OK and name == "evaluate"
            return EXIT_OK if finished else EXIT_REQUEUE
        if code not in (EXIT_OK, EXIT_REQUEUE) and self.run.failure() is None:
            self.run.mark_failed(f"{name}: {meaning(code)}" + (f"; see {logs[0]}" if logs else ""))
        return code

    def _place(self, name: str) -> dict[str, str]:
        """Several tasks train as one world; the first one evaluates alone."""
        if self.task is None:
            return {}
        return self.task.environment if name == "train" else {"RANK": "0", "WORLD_SIZE": "1"}

    def _describe_rank(self, rank: int) -> str:
        beat = beats_of(self.run.path).get(rank)
        return f"rank {rank}" if beat is None else str(beat)

    def _logs(self, name: str, ranks: int) -> list[Path]:
        if not self.log_files:
            return []
        self.run.logs.mkdir(exist_ok=True)
        parts = [str(rank) for rank in range(ranks)] if name == "train" else [name]
        return [self.run.logs / f"{job_id()}_{part}.log" for part in parts]


def main(argv: Sequence[str] | None = None, scripts: Path = SCRIPTS) -> int:
    options = _parse(argv)
    return run_job(RunDir(options.run), options.ranks, scripts, options.log_files, options.only)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(
        "launch.jobs.job", "Train and evaluate one run directory, as the jobs of a sweep do.", EXAMPLES
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="the run directory")
    parser.add_argument("--ranks", type=positive, default=1, metavar="N", help="processes to train with (default: 1)")
    parser.add_argument("--log-files", action="store_true", help="write the output to RUN_DIR/logs instead of here")
    parser.add_argument(
        "--only",
        choices=(TRAIN, EVALUATE),
        help="one of the two; evaluate: nothing is done while the training has not finished",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main)

"""Show the status of runs, from their directories and from Slurm where they are its jobs. Does not import torch."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from launch.cli.parser import make_parser, positive, run_script
from launch.cli.runs import find_folder
from launch.cli.table import render
from launch.jobs.attempts import why_stopped
from launch.slurm.queue import Scheduler
from launch.sweeps.efficiency import efficiency
from launch.sweeps.progress import RUN_HEADER, run_row
from toolkit.errors import EXIT_OK, ConfigError
from toolkit.rundir import RunDir
from toolkit.rundir.status import RunView, read_status
from toolkit.rundir.sweep import RECORD_NAME, RecordedRun, read_runs
from toolkit.shipped import command
from toolkit.wording import count

EXAMPLES = """\
  python launch/status.py runs/demo                    # every run of a sweep
  python launch/status.py runs/demo --watch            # refresh every 5 seconds; Ctrl-C ends it
  python launch/status.py runs/demo/modernn-seed1-*    # some runs
  python launch/status.py runs/demo --efficiency       # hours, data wait, cost of restarts
  python launch/status.py runs/demo --json             # for scripts

states: new; queued: see the note for the reason; starting, first step, running, validating, evaluating: a job is active
        stopped: on request, with a checkpoint   interrupted: killed, or its node was lost   (both: resume it)
        cancelled, timeout, node failed, preempted, out of memory: how Slurm ended its job   (resume it)
        silent: its job runs but writes nothing      suspended
        failed, hung, not finite, bad data, killed, out of memory: see the note    trained: to be evaluated    done"""


def runs_of(folder: Path) -> list[RecordedRun]:
    """Return the runs of a sweep directory, or the run directory itself.

    Raises:
        ConfigError: when it is neither.
    """
    if RunDir(folder).config_file.exists():
        return [RecordedRun(RunDir(folder), folder.name)]
    runs = read_runs(folder)
    if not runs and not (folder / RECORD_NAME).exists():
        below = sorted({record.parent.name for record in folder.glob(f"*/{RECORD_NAME}")})
        hint = f"sweeps there: {', '.join(below)}" if below else f"start one: {command('sweep', 'FILE')}"
        kind = "holds no runs" if folder.is_dir() else "no such folder"
        raise ConfigError(f"{folder}: {kind}; {hint}")
    return runs


def views_of(folders: Sequence[Path]) -> list[RunView]:
    """How all runs of these folders stand now."""
    return [read_status(item.run, item.name) for folder in folders for item in runs_of(folder)]


def again(view: RunView) -> RunView:
    """Read the current status of the same run."""
    return read_status(RunDir(Path(view.path)), view.name)


def report(views: Sequence[RunView], width: int | None, note: str | None = None) -> list[str]:
    """Return the table and a line of counts; `note` reports failed queries to the scheduler."""
    counts = Counter(view.label for view in views)
    total = ", ".join(f"{number} {state}" for state, number in counts.most_common())
    stopped = [why for root in dict.fromkeys(Path(view.path).parent for view in views) if (why := why_stopped(root))]
    lines = [
        *render(RUN_HEADER, [run_row(view) for view in views], width),
        "",
        f"{count(len(views), 'run')}: {total}",
        *(f"stopped: {why}" for why in stopped),
    ]
    return [*lines, note] if note else lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = make_parser(
        "status.py", "Show a table of runs: state, step, speed, ETA, last scores, reason of a failure.", EXAMPLES
    )
    parser.add_argument(
        "folders", nargs="*", metavar="RUN", help="sweeps or runs: directories, or names, which may be shortened"
    )
    parser.add_argument(
        "--run", dest="runs", action="append", default=[], metavar="RUN", help="same as the argument RUN; repeatable"
    )
    parser.add_argument(
        "--watch",
        nargs="?",
        type=positive,
        const=5,
        metavar="S",
        help="refresh every S seconds (default: 5); Ctrl-C ends it",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object per run")
    parser.add_argument("--no-queue", action="store_true", help="read run directories only: do not query Slurm")
    parser.add_argument(
        "--efficiency", action="store_true", help="show the hours spent on steps, data loading, restarts and start-up"
    )
    options = parser.parse_args(argv)
    folders = [find_folder(name) for name in (*options.folders, *options.runs)]
    if not folders:
        raise ConfigError("no run is given: name a sweep or a run (see --help)")
    if options.watch and (options.json or options.efficiency):
        parser.error("--json and --efficiency do not refresh: leave --watch out")
    if options.json and options.efficiency:
        parser.error("--json prints the state of runs, which --efficiency does not: give one")
    scheduler = None if options.no_queue else Scheduler()
    while True:
        views = views_of(folders)
        if scheduler:
            views = scheduler.merge(views, again)
        note = scheduler.note if scheduler else None
        if options.json:
            print(json.dumps([asdict(view) for view in views], indent=1))
            if note:
                print(note, file=sys.stderr)
            return EXIT_OK
        terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if terminal else None
        lines = efficiency(views, width) if options.efficiency else report(views, width, note)
        clear = "\x1b[H\x1b[2J" if options.watch and terminal else ""
        print(clear + "\n".join(lines), flush=True)
        if not options.watch:
            return EXIT_OK
        time.sleep(options.watch)


if __name__ == "__main__":
    run_script(main)

"""Show and follow the logs of a run, across restarts. Does not import torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from launch.cli.parser import add_run, make_parser, positive, run_given, run_script
from launch.cli.runs import find_run
from launch.sweeps.run_logs import Log, Reader, Start, chosen, follow, listing, starts_of
from toolkit.errors import EXIT_OK, ConfigError
from toolkit.rundir import RunDir
from toolkit.rundir.status import read_status

LINES = 50
EXAMPLES = """\
  python launch/logs.py runs/demo/modernn-seed1          # a name may be shortened to its unique beginning
  python launch/logs.py RUN -f                                 # follow, across restarts; ends with the run
  python launch/logs.py RUN --rank 3 --lines 500                # the log of rank 3
  python launch/logs.py RUN --list                              # list the log files
  python launch/logs.py RUN --start 1 --lines 0                 # the whole log of the first start"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = make_parser("logs.py", "Show the logs of a run: of the last start, or as they grow.", EXAMPLES)
    add_run(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="follow the logs as they grow, across restarts")
    parser.add_argument(
        "--rank", type=int, metavar="R", help="only the log of rank R (default: batch script, rank 0, evaluation)"
    )
    parser.add_argument("--start", type=positive, metavar="N", help="logs of the Nth start (default: the last)")
    parser.add_argument(
        "--lines", type=int, default=LINES, metavar="N", help=f"number of last lines; 0: all (default: {LINES})"
    )
    parser.add_argument("--list", action="store_true", help="list the log files")
    options = parser.parse_args(argv)
    if options.follow and (options.start or options.list):
        parser.error("-f follows the last start: leave --start and --list out")
    if options.list and (options.start or options.rank is not None or options.lines != LINES):
        parser.error("--list lists all files: leave --start, --rank and --lines out")
    if options.lines < 0:
        parser.error(f"--lines {options.lines}: must be at least 0")
    run = find_run(run_given(options))
    starts = starts_of(run)
    if options.list:
        print("\n".join(listing(starts)) if starts else _nothing(run))
        return EXIT_OK
    logs = _chosen_logs(run, starts, options)
    reader = Reader(sys.stdout)
    for log in logs:
        reader.show(log, options.lines)
    if options.follow:
        if not logs:
            print(_nothing(run), file=sys.stderr)
        follow(run, options.rank, reader, logs)
        view = read_status(run)
        print(f"{view.label}" + (f": {view.reason}" if view.reason else ""), file=sys.stderr)
    return EXIT_OK


def _chosen_logs(run: RunDir, starts: Sequence[Start], options: argparse.Namespace) -> list[Log]:
    """Return the logs that the options name; none only where they are to be followed.

    Raises:
        ConfigError: the run has no such start, or no logs of that rank.
    """
    if options.start and options.start > len(starts):
        raise ConfigError(f"--start {options.start}: {run.path} has logs of {len(starts)} starts; see --list")
    logs = chosen(starts[(options.start or 0) - 1], options.rank) if starts else []
    if not logs and not options.follow:
        ranks = sorted({log.part for start in starts for log in start.logs if log.part.isdigit()}, key=int)
        hint = f"the ranks with logs: {', '.join(ranks)}; see --list" if ranks else _nothing(run)
        raise ConfigError(f"{run.path}: " + (f"no log of rank {options.rank}; {hint}" if starts else hint))
    return logs


def _nothing(run: RunDir) -> str:
    return (
        f"no logs yet (state: {read_status(run).label}): its job has not begun, or it ran by hand or with "
        "--cluster debug, whose output goes to the terminal"
    )


if __name__ == "__main__":
    run_script(main)

"""What the jobs of a run printed: shown, and followed across restarts. Does not import torch."""

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
  python launch/logs.py runs/demo/modernn-slots4-seed1          # the beginning of the name will do, if it is one run's
  python launch/logs.py RUN -f                                 # follow, across restarts; ends with the run
  python launch/logs.py RUN --rank 3 --lines 500                # what rank 3 said
  python launch/logs.py RUN --list                              # which logs there are
  python launch/logs.py RUN --start 1 --lines 0                 # all of the first start's"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = make_parser("logs.py", "What the jobs of a run printed: the last start's, or all that comes.", EXAMPLES)
    add_run(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on as it grows, also after a restart")
    parser.add_argument(
        "--rank", type=int, metavar="R", help="that rank's alone (default: batch script, rank 0, scoring)"
    )
    parser.add_argument("--start", type=positive, metavar="N", help="the N-th start's (default: the last's)")
    parser.add_argument("--lines", type=int, default=LINES, metavar="N", help=f"last lines; 0: all (default: {LINES})")
    parser.add_argument("--list", action="store_true", help="which logs there are")
    options = parser.parse_args(argv)
    if options.follow and (options.start or options.list):
        parser.error("-f follows what comes; leave --start and --list out")
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

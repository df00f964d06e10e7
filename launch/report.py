"""Write the report of a sweep: HTML, CSV and Markdown. Does not import torch. See --help."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launch.cli.parser import add_run, make_parser, run_given, run_script
from launch.cli.runs import find_folder
from toolkit.errors import EXIT_OK
from toolkit.rundir import CHECKPOINTS

EXAMPLES = """\
  python launch/report.py runs/demo                  # writes runs/demo/report/index.html, table.csv, table.md
  python launch/report.py runs/demo --out shown      # in another folder
  python launch/report.py runs/demo/modernn-seed1-1a2b3c4d    # a single run
  python launch/report.py --paper runs/paper         # the paper's Tables 1-7 with these runs' numbers beside its own:
                                                     # HTML, Markdown, CSV and LaTeX in runs/paper/report/paper"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = make_parser(
        "report.py", "Write tables, curves and frames of a sweep's runs to one self-contained HTML page.", EXAMPLES
    )
    add_run(parser, "a sweep's directory or its name in runs/, or a single run, whose name may be shortened")
    parser.add_argument(
        "--out", metavar="PATH", type=Path, help="folder to write to (default: report in the sweep's directory)"
    )
    parser.add_argument("--force", action="store_true", help="write the page even if nothing has changed")
    parser.add_argument(
        "--paper",
        action="store_true",
        help="write the paper's tables instead, from a sweep whose runs have their names (configs/sweeps/paper.yaml)",
    )
    parser.add_argument("--which", choices=CHECKPOINTS, help="with --paper: checkpoint (default: best)")
    arguments = parser.parse_args(argv)
    if arguments.which and not arguments.paper:
        parser.error("--which goes with --paper: the report does not choose a checkpoint")
    if arguments.force and arguments.paper:
        parser.error("--paper always writes its tables: leave --force out")
    folder = find_folder(run_given(arguments))

    from toolkit.report.build import build_paper, build_report  # late: --help doesn't wait for matplotlib

    if arguments.paper:
        page = build_paper(folder, arguments.out, arguments.which or "best")
    else:
        page = build_report(folder, arguments.out, arguments.force)
    print(page.resolve())
    return EXIT_OK


if __name__ == "__main__":
    run_script(main)

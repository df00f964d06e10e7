"""The command line: convert here, and the commands about stores that exist in commands.py.

Exit codes: 0 done, 1 failure (disk full, no permission), 2 wrong usage (a path that does not exist, a package that is
missing), 5 bad data (an archive or a store that is damaged). Results go to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards import __version__, log
from shards.commands import add_commands, add_store_options, as_typed, chosen_cluster, report
from shards.convert import convert
from shards.damaged import DEFAULT_LIMIT
from shards.errors import ShardError, UsageError, printable
from shards.manifest import DTYPES
from shards.sources import SOURCES, SourceEntry
from shards.sources.base import add_dtype_argument, check_dtype, dtype_of
from shards.sources.choose import AUTO, resolve
from shards.writing import FileWriteError

# Options of `convert` that don't change what is written, or that the manifest records elsewhere.
if TYPE_CHECKING:
    from shards.commands import Commands

UNRECORDED = (
    "command",
    "run",
    "entry",
    "output",
    "workers",
    "overwrite",
    "format",
    "name",
    "channel_names",
    "shard_mb",
    "encoding",
    "cluster",
    "jobs",
    "profile",
    "on_error",
    "skip_limit",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code. Usage errors found by argparse raise SystemExit(2), as is its habit."""
    log.configure()
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        _check_utf8(words)
        entries, words = resolve(words, SOURCES, lambda text: print(text, file=sys.stderr))
        args = _parser(entries).parse_args(words)
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `info STORE | head`: nobody reads what is left to print
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ShardError as error:
        print(as_typed(f"error: {error}"), file=sys.stderr)
        return error.exit_code
    except FileWriteError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(
            f"error: {printable(str(error))}; free space or grant access, then run the same command again",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command resumes after the shards that were finished", file=sys.stderr)
        return 130


def _check_utf8(words: Sequence[str]) -> None:
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{word}: isn't UTF-8, which a store can't record; rename it, or link to it") from None


class _Parser(argparse.ArgumentParser):
    """Line breaks of help stay, options are not abbreviated."""

    def __init__(self, epilog: str = "", **options: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, epilog=as_typed(epilog), **options
        )


def _parser(entries: Mapping[str, SourceEntry]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog=as_typed("python -m shards"), description="Make, check and describe sequence stores."
    )
    parser.add_argument("--version", action="version", version=f"modernn-toolkit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_convert(commands, entries)
    add_commands(commands)
    return parser


def _add_convert(commands: Commands, entries: Mapping[str, SourceEntry]) -> None:
    examples = "\n".join(f"  {entry.example}" for entry in entries.values())
    parser = commands.add_parser(
        "convert",
        help="turn an archive into a store",
        description="Turn an archive into a store. Each source has options of its own: see convert SOURCE --help.",
        epilog=f"examples:\n{examples}",
    )
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    _add_auto(sources)
    for name, entry in entries.items():
        source = sources.add_parser(
            name,
            help=entry.summary,
            description=entry.summary,
            epilog=f"example: {entry.example}",
        )
        if entry.input_help is not None:
            source.add_argument("input", metavar="INPUT", help=entry.input_help)
        source.add_argument("output", type=Path, metavar="OUTPUT", help="folder to make; it appears when all is done")
        entry.add_arguments(source)
        add_dtype_argument(source)
        source.add_argument("--name", help="name in the manifest (default: the source's)")
        source.add_argument(
            "--channel-names",
            nargs="+",
            metavar="NAME",
            help="names of the channels of a frame, in order, such as radar ir wv; a training chooses channels by them",
        )
        source.add_argument(
            "--on-error",
            choices=("stop", "skip"),
            default="stop",
            help="a damaged file ends the conversion, or is left out: its moment is a gap, and it is listed in the "
            "manifest; all files are then decoded twice (default: %(default)s)",
        )
        source.add_argument(
            "--skip-limit",
            type=int,
            default=DEFAULT_LIMIT,
            metavar="N",
            help="with --on-error skip: more damaged frames than these end the conversion (default: %(default)s)",
        )
        add_store_options(source, defaults=True)
        source.set_defaults(run=_convert, entry=entry)


def _add_auto(sources: Commands) -> None:
    """For the help alone: `resolve` puts the source that it finds in the place of `auto`."""
    auto = sources.add_parser(
        AUTO,
        help="detect which of these an archive is",
        description="Detect the source of an archive by the names of its files, report it, and convert with it.",
        epilog=f"example: python -m shards convert {AUTO} ~/archive stores/mine\n"
        "A file my_source.py in place of a name is a source of your own: docs/new-dataset.md",
    )
    auto.add_argument("input", metavar="INPUT", help="folder or file of the archive")
    auto.add_argument("output", metavar="OUTPUT", help="folder to make, then the options of the source that it is")


def _convert(args: argparse.Namespace) -> int:
    source = args.entry.build(args)
    check_dtype(args, source.describe())
    if dtype_of(args) == DTYPES[0]:
        vars(args).pop("dtype", None)  # as if it had been left out: the same store
    arguments = {key: value for key, value in vars(args).items() if key not in UNRECORDED}
    outcome = convert(
        source,
        args.output,
        format=args.format,
        encoding=args.encoding,
        arguments=arguments,
        name=args.name,
        channel_names=args.channel_names,
        shard_mb=args.shard_mb,
        workers=args.workers,
        cluster=chosen_cluster(args),
        overwrite=args.overwrite,
        skip_limit=args.skip_limit if args.on_error == "skip" else None,
    )
    return report(args.output, outcome.already_complete)

"""The commands about stores that exist: verify, info, bench, repack."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from shards.bench import bench
from shards.cluster import CLUSTERS, Cluster, job_layer
from shards.coverage import text_of
from shards.errors import UsageError
from shards.info import describe, summary
from shards.manifest import ENCODINGS, FORMATS
from shards.overlap import overlap_warnings
from shards.repack import repack
from shards.sheet import draw_sheet
from shards.store import open_store
from shards.verify import verify

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

BAD_DATA = 5
PLACE = "folder or URL of the store"


def add_commands(commands: Commands) -> None:
    """Add the commands; `run` of each takes the parsed arguments and gives the exit code."""
    _add_verify(commands)
    _add_info(commands)
    _add_bench(commands)
    _add_repack(commands)


def add_store_options(parser: argparse.ArgumentParser, defaults: bool) -> None:
    """Add the options of how a store is written. Without `defaults` what isn't given is None."""
    store = parser.add_argument_group("the store")
    store.add_argument(
        "--format", choices=FORMATS, default="webdataset" if defaults else None, help=_default("webdataset", defaults)
    )
    store.add_argument(
        "--encoding",
        choices=ENCODINGS,
        default="raw" if defaults else None,
        help=f"raw is the fastest to read; zstd and lz4 are smaller, see docs/shards.md {_default('raw', defaults)}",
    )
    store.add_argument(
        "--shard-mb",
        type=float,
        default=256.0 if defaults else None,
        metavar="MB",
        help=f"size of a shard before compression {_default('256', defaults)}",
    )
    store.add_argument("--workers", type=int, default=1, metavar="N", help="processes; the bytes don't depend on it")
    store.add_argument(
        "--cluster",
        choices=CLUSTERS,
        help="write in jobs of --workers processes each: on this machine, or as an array of a Slurm cluster",
    )
    store.add_argument("--jobs", type=int, metavar="N", help="how many jobs, with --cluster (default: 1)")
    store.add_argument("--profile", metavar="NAME", help="slurm/profiles/NAME.yaml, or a file, with --cluster slurm")
    store.add_argument("--overwrite", action="store_true", help="replace the store that OUTPUT holds")


def chosen_cluster(args: argparse.Namespace) -> Cluster | None:
    """Return where --cluster, --jobs and --profile want shards to be written. Raises UsageError where one goes without
    its other.
    """
    if args.profile is not None and args.cluster != "slurm":
        raise UsageError(f"--profile {args.profile} goes with --cluster slurm")
    if args.cluster is None:
        if args.jobs is not None:
            raise UsageError(f"--jobs {args.jobs} needs --cluster ({', '.join(CLUSTERS)}); --workers is for processes")
        return None
    if args.cluster == "slurm":
        job_layer(args.cluster)  # refused before anything is planned
    return Cluster(args.cluster, 1 if args.jobs is None else args.jobs, args.profile)


def _default(value: str, given: bool) -> str:
    return f"(default: {value})" if given else "(default: as it is)"


def _add(commands: Commands, name: str, help: str, description: str, example: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=f"example: python -m shards {example}",
    )


def _add_verify(commands: Commands) -> None:
    parser = _add(
        commands,
        "verify",
        "check a store against its manifest",
        "Check a store against its manifest; every problem is named with its shard, event and byte.",
        "verify stores/mmnist",
    )
    parser.add_argument("path", metavar="PATH", help="folder of the store")
    parser.add_argument("--quick", action="store_true", help="sizes, indexes and counts only; frames aren't read")
    parser.set_defaults(run=_verify)


def _verify(args: argparse.Namespace) -> int:
    problems = verify(args.path, quick=args.quick)
    for problem in problems:
        print(f"{args.path}/{problem}", file=sys.stderr)
    if problems:
        print(
            f"error: {args.path}: {len(problems)} problem{'s' if len(problems) > 1 else ''}; "
            "convert the archive again with --overwrite, or fetch the files named above from a good copy",
            file=sys.stderr,
        )
        return BAD_DATA
    if args.quick:
        print(f"{args.path}: OK: sizes, indexes and counts match (without --quick: checksums of all frames too)")
    else:
        for warning in overlap_warnings(open_store(args.path)):
            print(f"warning: {args.path}: {warning}", file=sys.stderr)
        print(f"{args.path}: OK: all checksums match")
    for name, split in open_store(args.path).splits.items():
        if text := text_of(split):
            print(f"{name}: {text} of the pixels")
    return 0


def _add_info(commands: Commands) -> None:
    parser = _add(
        commands,
        "info",
        "show what a store holds",
        "Show what a store holds: a table, or with --sheet a picture of some events.",
        "info stores/mmnist --sheet mmnist.png",
    )
    parser.add_argument("path", metavar="PATH", help=PLACE)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE", help="also draw events of every split and mode into FILE (.png .pdf .svg)"
    )
    parser.add_argument("--events", type=int, default=8, metavar="N", help="rows of the sheet (default: %(default)s)")
    parser.set_defaults(run=_info)


def _info(args: argparse.Namespace) -> int:
    print(json.dumps(summary(args.path), indent=1, ensure_ascii=False) if args.json else describe(args.path))
    if args.sheet is not None:
        draw_sheet(open_store(args.path), args.sheet, rows=args.events)
        print(f"drawn: {args.sheet}", file=sys.stderr)
    return 0


def _add_bench(commands: Commands) -> None:
    parser = _add(
        commands,
        "bench",
        "measure how fast a store is read",
        "Measure how fast a store is read, beside a bare loop that copies the same bytes from a memory map (copy),\n"
        "plain webdataset and the zarr library. A window of T frames is a sequence.",
        "bench stores/mmnist --workers 1,2,4",
    )
    parser.add_argument("path", metavar="PATH", help=PLACE)
    parser.add_argument("--split", help="(default: the one with the most frames)")
    parser.add_argument("--length", type=int, metavar="T", help="frames of a window (default: an event, at most 20)")
    parser.add_argument("--workers", type=_counts, default=(1,), metavar="1,2,...", help="processes (default: 1)")
    parser.add_argument(
        "--events", type=int, default=256, metavar="N", help="events to read, at most (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=0.4, help="per method and round (default: %(default)s)")
    parser.set_defaults(run=_bench)


def _counts(text: str) -> tuple[int, ...]:
    """Parse "1,2,4"."""
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: numbers of processes with commas between, such as 1,2,4")
    return tuple(int(part) for part in parts)


def _bench(args: argparse.Namespace) -> int:
    manifest = open_store(args.path).manifest
    print(f"{args.path}: {manifest.format}, {manifest.encoding}")
    print(f"{'pattern':<12}{'method':<12}{'workers':>7}{'seq/s':>10}{'MB/s':>10}{'of copy':>9}")
    options = {"split": args.split, "length": args.length, "events": args.events, "seconds": args.seconds}
    for row in bench(args.path, workers=args.workers, **options):
        share = "" if row.of_copy is None else f"{row.of_copy:.0%}"
        print(
            f"{row.pattern:<12}{row.method:<12}{row.workers:>7}{row.sequences_per_s:>10.0f}{row.mb_per_s:>10.0f}{share:>9}",
            flush=True,
        )
    return 0


def _add_repack(commands: Commands) -> None:
    parser = _add(
        commands,
        "repack",
        "rewrite a store in another format, shard size or encoding",
        "Write the events of a store into another one. The frames stay the same byte for byte, and so do the files\n"
        "when a store is repacked back again.",
        "repack stores/mmnist stores/mmnist-zarr --format zarr --encoding zstd",
    )
    parser.add_argument("path", metavar="INPUT", help=PLACE)
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder to make; it appears when all is done")
    add_store_options(parser, defaults=False)
    parser.set_defaults(run=_repack)


def _repack(args: argparse.Namespace) -> int:
    outcome = repack(
        args.path,
        args.output,
        format=args.format,
        shard_mb=args.shard_mb,
        encoding=args.encoding,
        workers=args.workers,
        cluster=chosen_cluster(args),
        overwrite=args.overwrite,
    )
    return report(args.output, outcome.already_complete)


def as_typed(text: str) -> str:
    """Return a text in which `python -m shards` is replaced by the command that was typed, if that is `NAME shards`."""
    program = Path(sys.argv[0])
    if sys.argv[1:2] != ["shards"] or program.suffix == ".py":
        return text
    return text.replace("python -m shards", f"{program.name} shards")


def report(output: Path, already_complete: bool) -> int:
    """Print what `convert` and `repack` have made."""
    if already_complete:
        print(f"{output}: already complete, nothing to do")
        return 0
    print(describe(output))
    print(as_typed(f"next: python -m shards verify {output}"))
    return 0

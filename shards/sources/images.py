"""Any folders of images: a folder that holds images is a sequence; its frames are they, in natural order (2 before 10).

Folders train, val and test at the top are splits; otherwise whole sequences are drawn. Frames are grey or RGB, all of
one size. A long sequence becomes several consecutive events, which windows may span.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from pathlib import Path

from shards.errors import SourceError
from shards.sources.base import PlannedEvent, RawEvent, Source, SourceEntry
from shards.sources.geometry import Geometry, parse_crop, parse_size
from shards.sources.inputs import (
    IMAGE_SUFFIXES,
    Listing,
    image_channels,
    image_size,
    plural,
    read_sequence,
    walk,
)
from shards.sources.sequences import Sequence, Sequences, add_sequence_arguments, sequence_options


class Images(Sequences):
    """A scanned folder; a sequence's payload is the tuple of its files."""

    def read(self, event: PlannedEvent) -> RawEvent:
        """Decode, crop and resize, uint8 [L, C, height, width]; `details` name the folder."""
        files: tuple[str, ...] = event.recipe
        frames = read_sequence(self.folder, files, self.channels, self.geometry.source)
        return RawEvent(self.geometry.apply(frames), {"sequence": files[0].rpartition("/")[0]})


def natural(name: str) -> list[tuple[int, int | str]]:
    """A sorting key by which frame2 comes before frame10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part]


def _build(args: argparse.Namespace) -> Source:
    options = sequence_options(args)
    folder = Path(args.input)
    files = walk(folder)
    grouped: dict[str, list[str]] = defaultdict(list)
    for file in files:
        if file.lower().endswith(IMAGE_SUFFIXES):
            grouped[file.rpartition("/")[0]].append(file)
    if not grouped:
        raise SourceError(
            f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}); it has "
            + (f"{plural(len(files), 'file')}, the first is {files[0]}" if files else "no files")
        )
    sequences = [
        Sequence(name or ".", len(part), tuple(sorted(part, key=natural))) for name, part in sorted(grouped.items())
    ]
    first = folder / sequences[0].payload[0]
    channels = image_channels(first) if args.channels == "auto" else {"grey": 1, "rgb": 3}[args.channels]
    size = image_size(first)
    notes = []
    others = [file for file in files if not file.lower().endswith(IMAGE_SUFFIXES)]
    if others:
        notes.append(f"{plural(len(others), 'other file')} passed over, the first is {others[0]}")
    return Images(
        name="images",
        folder=folder,
        sequences=tuple(sequences),
        channels=channels,
        geometry=Geometry(size, parse_crop(args.crop, size), parse_size(args.size)),
        step_seconds=args.step,
        options=options,
        notes=tuple(notes),
    )


def _guess(listing: Listing) -> str | None:
    files = [file for file in listing.files if file.lower().endswith(IMAGE_SUFFIXES)]
    if not files:
        return None
    folders = {file.rpartition("/")[0] for file in files}
    return f"{plural(len(files), 'image')} in {plural(len(folders), 'folder')}"


ENTRY = SourceEntry(
    summary="any folders of images, a folder a sequence",
    example="python -m shards convert images ~/frames stores/mine --size 128 --channels grey",
    add_arguments=add_sequence_arguments,
    build=_build,
    input_help="folder whose sub-folders hold the images of one sequence each",
    guess=_guess,
    generic=True,
)

"""Any folders of images: a folder that holds images is a sequence; its frames are they, in natural order (2 before 10),
or in order of the dates in their names. A file of several images (a TIFF stack, a GIF) is a sequence too.

Folders train, val and test at the top are splits; otherwise whole sequences are drawn. Frames are grey or RGB, all of
one size. A long sequence becomes several consecutive events, which windows may span; where names say that frames are
missing, a run ends. Transparent pixels are missing ones.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from shards.errors import SourceError
from shards.sources.base import PlannedEvent, RawEvent, Source, SourceEntry, dtype_of
from shards.sources.frame_names import Order, by_moment, by_number, moment, natural, usual_step
from shards.sources.geometry import Geometry, parse_crop, parse_size
from shards.sources.inputs import IMAGE_SUFFIXES, Listing, plural, two_sizes, walk
from shards.sources.pictures import Picture, probe, read_sequence, transparent_pixels
from shards.sources.sequences import Sequence, Sequences, add_sequence_arguments, kept, sequence_options

ABSENT = Picture((0, 0), False, False, 1)  # a file that can't be read, and has its place in the order


class Images(Sequences):
    """A scanned folder; a sequence's payload is the tuple of its files, or of `FILE#PAGE`."""

    by_frame = True

    def read(self, event: PlannedEvent) -> RawEvent:
        """Decode, crop and resize, [L, C, height, width]; `details` name the folder."""
        files: tuple[str, ...] = event.recipe
        frames = read_sequence(self.folder, files, self.channels, self.geometry.source, self.missing, self.dtype)
        return RawEvent(self.geometry.apply(frames), {"sequence": files[0].rpartition("/")[0]})


def _build(args: argparse.Namespace) -> Source:
    options, dtype = sequence_options(args), dtype_of(args)
    largest = int(np.iinfo(dtype).max)
    path = Path(args.input)
    folder, files = (path.parent, [path.name]) if path.is_file() else (path, walk(path))
    chosen = [file for file in files if file.lower().endswith(IMAGE_SUFFIXES)]
    if not chosen:
        raise SourceError(
            f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}); it has "
            + (f"{plural(len(files), 'file')}, the first is {files[0]}" if files else "no files")
        )
    pictures, skipped = kept(chosen, lambda file: probe(folder / file, dtype), args)
    places = {file: pictures.get(file, ABSENT) for file in chosen}
    orders, step, notes = _orders(places, args.names if "names" in args else "auto", args.step)
    args.step = step
    sequences = [
        Sequence(name, len(order.files), order.files, order.breaks, order.times)
        for name, order in sorted(orders.items())
        if order.files
    ]
    size = next(iter(pictures.values())).size
    for file, picture in pictures.items():
        if picture.size != size:
            raise two_sizes(folder / file, picture.size, size)
    channels, colours = _channels(pictures, args.channels)
    transparent = {file: count for file, count in _transparent(folder, pictures) if count}
    others = [file for file in files if file not in pictures]
    notes += [
        *colours,
        *([f"{plural(len(others), 'other file')} skipped, the first is {others[0]}"] if others else []),
        *([_tell_transparent(transparent, largest)] if transparent else []),
    ]
    geometry = Geometry(size, parse_crop(args.crop, size), parse_size(args.size))
    return Images(
        name="images",
        folder=folder,
        sequences=tuple(sequences),
        channels=channels,
        geometry=dataclasses.replace(geometry, missing_code=largest if transparent else None),
        step_seconds=step,
        options=options,
        notes=tuple(notes),
        missing=bool(transparent),
        dtype=dtype,
        skipped=skipped,
    )


def _orders(
    pictures: Mapping[str, Picture], names: str, step: float | None
) -> tuple[dict[str, Order], float | None, list[str]]:
    """Return the frames of every sequence in order, the time step, and what to tell."""
    grouped: dict[str, list[str]] = defaultdict(list)
    orders: dict[str, Order] = {}
    for file, picture in pictures.items():
        if picture.pages > 1:
            orders[file] = Order(tuple(f"{file}#{page}" for page in range(picture.pages)))
        else:
            grouped[file.rpartition("/")[0] or "."].append(file)
    notes = [f"{plural(len(orders), 'file')} of several images, each a sequence"] if orders else []
    times = {name: [moment(file) for file in part] for name, part in grouped.items()} if names == "auto" else {}
    known = {name: [time for time in part if time is not None] for name, part in times.items()}
    unique = all(len(set(known[name])) == len(grouped[name]) for name in known)
    if known and unique and not orders:
        step = step or usual_step(list(known.values()))
        orders = {name: by_moment(part, known[name], step or 1.0) for name, part in grouped.items()}
        first, last = (min(map(min, known.values())), max(map(max, known.values())))
        notes.append(
            f"times by the files' names, as UTC: {first:%Y-%m-%dT%H:%M:%SZ} to {last:%Y-%m-%dT%H:%M:%SZ}"
            + (f", a frame every {step:g} s" if step else "")
        )
    elif names == "auto":
        orders |= {name: by_number(part) for name, part in grouped.items()}
        if dated := sum(map(len, known.values())):
            notes.append(
                f"{dated} of {plural(len(pictures), 'name')} look like dates, but are not unique or not all: no times"
            )
    else:
        orders |= {name: Order(tuple(sorted(part, key=natural))) for name, part in grouped.items()}
    absent = {file for file, picture in pictures.items() if picture is ABSENT}
    orders = {name: order.without(absent) for name, order in orders.items()}
    broken = {name: order for name, order in orders.items() if order.breaks}
    if broken:
        order = broken[min(broken)]
        notes.append(
            f"{plural(sum(len(order.breaks) for order in broken.values()), 'gap')} by the files' names, "
            f"{plural(sum(order.missing for order in broken.values()), 'frame')} missing, the first before "
            f"{order.files[order.breaks[0]]}: runs end there (--names order takes names as an order alone)"
        )
    return orders, step, notes


def _channels(pictures: Mapping[str, Picture], asked: str) -> tuple[int, list[str]]:
    """Return the number of channels, by all files, and what to tell of those that differ."""
    coloured = [file for file, picture in pictures.items() if picture.colour]
    grey = len(pictures) - len(coloured)
    channels = (3 if coloured else 1) if asked == "auto" else {"grey": 1, "rgb": 3}[asked]
    if channels == 3 and coloured and grey:
        return 3, [f"{plural(grey, 'grey image')} among {plural(len(coloured), 'coloured one')}: all become RGB"]
    if channels == 1 and coloured:
        return 1, [f"{plural(len(coloured), 'coloured image')} become grey (ITU-R 601), the first is {coloured[0]}"]
    return channels, []


def _transparent(folder: Path, pictures: Mapping[str, Picture]) -> Iterator[tuple[str, int]]:
    for file, picture in pictures.items():
        yield file, transparent_pixels(folder / file, picture.pages) if picture.alpha else 0


def _tell_transparent(transparent: Mapping[str, int], largest: int) -> str:
    return (
        f"{plural(sum(transparent.values()), 'transparent pixel')} in {plural(len(transparent), 'file')} are missing "
        f"(code {largest}), so values of {largest} become {largest - 1}; the first file is {min(transparent)}"
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sequence_arguments(parser)
    parser.add_argument(
        "--names",
        choices=("auto", "order"),
        default=argparse.SUPPRESS,  # so that the manifests of stores without it stay as they were
        help="auto: dates and numbers in names say when a frame was taken and where one is missing; order: they only "
        "give the order (default: auto)",
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
    add_arguments=_add_arguments,
    build=_build,
    input_help="folder whose sub-folders hold the images of one sequence each, or a file of several images",
    guess=_guess,
    generic=True,
)

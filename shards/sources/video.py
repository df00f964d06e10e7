"""Any folder of video files: a file is a sequence. Splits, modes, sizes and long files are as for images.

Frames are the stream's own, all of them, at its rate; grey is of the full range 0..255.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from shards.errors import SourceError
from shards.sources import videos
from shards.sources.base import PlannedEvent, RawEvent, Source, SourceEntry
from shards.sources.geometry import Geometry, parse_crop, parse_size
from shards.sources.inputs import Listing, plural, two_sizes, walk
from shards.sources.sequences import Sequence, Sequences, add_sequence_arguments, kept, sequence_options
from shards.sources.videos import VIDEO_SUFFIXES, VideoInfo


class Videos(Sequences):
    """A scanned folder; a sequence's payload is its frames' time stamps, or nothing where it has none."""

    def recipe(self, sequence: Sequence, offset: int, length: int) -> tuple[str, int, int | None]:
        """Return file, first frame, and its time stamp."""
        return sequence.name, offset, sequence.payload[offset] if sequence.payload else None

    def read(self, event: PlannedEvent) -> RawEvent:
        """Decode, crop and resize, uint8 [L, C, height, width]; `details` name the file."""
        name, first, stamp = event.recipe
        frames = videos.read_frames(self.folder / name, self.channels, first, event.length, stamp)
        if frames.shape[2:] != self.geometry.source:
            raise two_sizes(self.folder / name, frames.shape[2:], self.geometry.source)
        return RawEvent(self.geometry.apply(frames), {"file": name})


def _build(args: argparse.Namespace) -> Source:
    options = sequence_options(args)
    folder = Path(args.input)
    files = walk(folder)
    chosen = [file for file in files if file.lower().endswith(VIDEO_SUFFIXES)]
    if not chosen:
        raise SourceError(
            f"{folder}: no video files ({', '.join(VIDEO_SUFFIXES)}); it has "
            + (f"{plural(len(files), 'file')}, the first is {files[0]}" if files else "no files")
        )
    infos, skipped = kept(chosen, lambda file: videos.probe(folder / file), args)
    first = next(iter(infos.values()))
    size = (first.height, first.width)
    for file, info in infos.items():
        if (info.height, info.width) != size:
            raise two_sizes(folder / file, (info.height, info.width), size)
    notes = []
    if len(chosen) < len(files):
        others = sorted(set(files) - set(chosen))
        notes.append(f"{plural(len(others), 'other file')} skipped, the first is {others[0]}")
    args.step, told = _step(args.step, infos)
    args.channels = "rgb" if args.channels == "auto" else args.channels
    return Videos(
        name="video",
        folder=folder,
        sequences=tuple(Sequence(file, info.frames, info.stamps or ()) for file, info in infos.items()),
        channels=1 if args.channels == "grey" else 3,
        geometry=Geometry(size, parse_crop(args.crop, size), parse_size(args.size)),
        step_seconds=args.step,
        options=options,
        notes=(*notes, *told),
        skipped=skipped,
    )


def _step(asked: float | None, infos: dict[str, VideoInfo]) -> tuple[float | None, list[str]]:
    """Seconds from frame to frame, if all files agree, and what to tell."""
    rates = sorted({round(info.rate, 3) for info in infos.values() if info.rate})
    if asked is not None or not rates:
        return asked, []
    if len(rates) > 1:
        return None, [
            f"from {rates[0]:g} to {rates[-1]:g} frames a second, so the store has no time step; or say --step"
        ]
    return 1 / rates[0], []


def _guess(listing: Listing) -> str | None:
    files = [file for file in listing.files if file.lower().endswith(VIDEO_SUFFIXES)]
    return plural(len(files), "video file") if files else None


ENTRY = SourceEntry(
    summary="any folder of video files, a file a sequence",
    example="python -m shards convert video ~/clips stores/clips --size 128 --keep-together 'person\\d+'",
    add_arguments=add_sequence_arguments,
    build=_build,
    input_help="folder of the files; sub-folders are searched too",
    guess=_guess,
    generic=True,
)

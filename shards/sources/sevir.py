"""SEVIR: vertically integrated liquid (VIL) of storms over the United States, 384x384 km, 49 frames of 5 minutes; also
SEVIR-LR, its 128x128 version with 25 frames of 10 minutes.

CATALOG.csv names events (sevir_catalog.py), data/vil/YEAR/SEVIR_VIL_*.h5 hold them: `vil` uint8 [event, row, column,
time] with row 0 in the south, and `id` (not in SEVIR-LR). Here time comes first and north is up. Levels 0..254 are kept
as they are, 255 is missing; the manifest's mapping turns levels into kg/m2, which isn't linear. The literature's
thresholds (16, 74, 133, 160, 181, 219) are levels, and so are those of a store.

Splits by an event's time, as published: train before 2019, val to the end of May 2019, test from June 2019. Published
scores leave out events with missing pixels; so does the default of --max-missing.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np

from shards.errors import SourceError, UsageError
from shards.manifest import FrameSpec, Scale, SourceInfo
from shards.sources import hdf, timeline
from shards.sources.base import Description, Plan, PlannedEvent, RawEvent, Source, SourceEntry
from shards.sources.geometry import Crop, Geometry, add_geometry_arguments, parse_crop, parse_size
from shards.sources.inputs import Listing, plural
from shards.sources.sevir_catalog import Row, find_catalog, read_catalog

IMG_TYPE = "vil"
PUBLISHED = ("train=..2018-12-31", "val=2019-01-01..2019-05-31", "test=2019-06-01..")
LEVELS = Scale(
    quantity="vertically integrated liquid, SEVIR level",
    unit="1",
    offset=0.0,
    gain=1.0,
    max_code=254,
    missing_code=255,
    mapping="sevir-vil",
)


@dataclass(frozen=True)
class Sevir:
    """Chosen rows of a catalog. `stride` says which of a row's minute offsets the files hold: every, or every
    second.
    """

    data: Path
    rows: tuple[Row, ...]
    geometry: Geometry
    length: int
    stride: int
    periods: tuple[timeline.Period, ...]
    published: bool  # the periods are the default: an empty split is told, not refused
    mode_by: str
    notes: tuple[str, ...]

    def describe(self) -> Description:
        """Return one channel of levels; the step is 5 or 10 minutes."""
        height, width = self.geometry.shape
        return Description(
            name="sevir-vil" if self.stride == 1 else "sevir-lr-vil",
            frames=FrameSpec(channels=1, height=height, width=width),
            step_seconds=300.0 * self.stride,
            scale=LEVELS,
            modes=tuple(sorted({mode for row in self.rows if (mode := self._mode(row)) is not None})),
            source=_INFO,
        )

    def plan(self) -> Plan:
        """Make every row an event and a run by itself."""
        ordered = sorted(self.rows, key=lambda row: (row.time, row.id))
        stamped = [timeline.Stamped(row.time, str(i)) for i, row in enumerate(ordered)]
        periods = self.periods
        notes = list(self.notes)
        if self.published:
            periods = tuple(p for p in periods if any(p.holds(row.time) for row in ordered))
            empty = [p.split for p in self.periods if p not in periods]
            if empty:
                notes.append(f"no event in the published period of {' and '.join(empty)}; choose others with --split")
        parts, left_out = timeline.assign_splits(stamped, periods)
        splits = {name: [self._event(ordered[int(item.file)]) for item in part] for name, part in parts.items()}
        notes += [f"{name}: {plural(len(part), 'event')}" for name, part in splits.items()]
        if left_out:
            notes.append(f"in no --split, so left out: {plural(left_out, 'event')}")
        return Plan(splits, tuple(notes))

    def _event(self, row: Row) -> PlannedEvent:
        times = [row.time + timedelta(minutes=offset) for offset in row.offsets[:: self.stride]]
        if len(times) != self.length:
            raise SourceError(
                f"CATALOG: {row.id} has {len(row.offsets)} minute_offsets, that is {len(times)} frames at this step, "
                f"{row.file_name} has {self.length}; the catalog belongs to other files"
            )
        even = all(time == times[0] + timedelta(minutes=5 * self.stride * i) for i, time in enumerate(times))
        return PlannedEvent(
            key=f"{row.time:%Y%m%dT%H%M%SZ}-{row.id}",
            length=self.length,
            mode=self._mode(row),
            start_time=timeline.iso(times[0]),
            times=None if even else tuple(timeline.iso(time) for time in times),
            recipe=(row.file_name, row.file_index, row.id),
        )

    def _mode(self, row: Row) -> str | None:
        if self.mode_by == "event-type":
            return re.sub(r"[^a-z0-9]+", "-", row.event_type.lower()) or "random"
        return timeline.mode_label(row.time, self.mode_by)

    def read(self, event: PlannedEvent) -> RawEvent:
        """Read one event of its file, north up, uint8 [L, 1, height, width]."""
        name, index, id = event.recipe
        path = self.data / name
        with hdf.opened(path, "reading SEVIR") as file:
            vil = hdf.dataset(file, IMG_TYPE, (None, *self.geometry.source, self.length), ("uint8",))
            if index >= len(vil):
                raise SourceError(
                    f"{path}: {len(vil)} events, the catalog says that {id} is number {index}; fetch both again"
                )
            stored = hdf.dataset(file, "id")[index] if "id" in file else id
            stored = stored.decode() if isinstance(stored, bytes) else str(stored)
            if stored != id:
                raise SourceError(
                    f"{path}: event {index} is {stored}, the catalog says {id}; the catalog belongs to other files"
                )
            raw = vil[index]
        frames = np.ascontiguousarray(raw.transpose(2, 0, 1)[:, None, ::-1, :])
        return RawEvent(self.geometry.apply(frames), {"id": id})


def _choose(rows: Sequence[Row], data: Path, max_missing: float, where: Path) -> tuple[list[Row], list[str]]:
    """Rows with few enough missing pixels whose files are there, and notes. Raises SourceError if none is left."""
    notes = []
    kept = [row for row in rows if row.missing <= max_missing]
    if len(kept) < len(rows):
        notes.append(
            f"{len(rows) - len(kept)} of {len(rows)} events have more than --max-missing {max_missing:g} missing"
        )
    if not kept:
        least = min(row.missing for row in rows)
        raise SourceError(
            f"{where}: all {len(rows)} events have missing pixels, the least {least:.3f} of them; "
            f"raise --max-missing (now {max_missing:g})"
        )
    there = {name for name in {row.file_name for row in kept} if (data / name).is_file()}
    absent = sorted({row.file_name for row in kept} - there)
    found = [row for row in kept if row.file_name in there]
    if not found:
        raise SourceError(f"{where}: none of its {len(absent)} files is there, the first is {data / absent[0]}")
    if absent:
        notes.append(
            f"{len(kept) - len(found)} events lie in {plural(len(absent), 'file')} that are not here, the first is "
            f"{absent[0]}"
        )
    return found, notes


def _geometry(path: Path, crop: str, size: str | None) -> tuple[Geometry, int, int]:
    """From the first file: the geometry, the frames per event, and the stride of SEVIR or of SEVIR-LR."""
    with hdf.opened(path, "reading SEVIR") as file:
        shape = hdf.dataset(file, IMG_TYPE, (None, None, None, None), ("uint8",)).shape
    source = (int(shape[1]), int(shape[2]))
    cut: Crop = parse_crop(crop, source)
    if shape[3] not in (49, 25):
        raise SourceError(f"{path}: {shape[3]} frames per event, expected 49 (SEVIR) or 25 (SEVIR-LR)")
    return Geometry(source, cut, parse_size(size), LEVELS.missing_code), int(shape[3]), 1 if shape[3] == 49 else 2


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-missing", type=float, default=0.0, metavar="SHARE", help="pixels without data (default: %(default)s)"
    )
    parser.add_argument(
        "--mode-by",
        choices=("event-type", *timeline.MODES),
        default="none",
        help="label events for analysis: by the catalog's type of storm, or by time (default: %(default)s)",
    )
    timeline.add_split_argument(parser, ", ".join(PUBLISHED))
    add_geometry_arguments(parser, "none", None)


def _build(args: argparse.Namespace) -> Source:
    if not 0 <= args.max_missing <= 1:
        raise UsageError(f"--max-missing {args.max_missing:g}: a share of 0..1")
    catalog = find_catalog(Path(args.input))
    data = catalog.parent / "data"
    rows, notes = read_catalog(catalog, IMG_TYPE)
    chosen, more = _choose(rows, data, args.max_missing, catalog)
    geometry, length, stride = _geometry(data / chosen[0].file_name, args.crop, args.size)
    periods = tuple(timeline.parse_period(text) for text in args.split or PUBLISHED)
    return Sevir(data, tuple(chosen), geometry, length, stride, periods, not args.split, args.mode_by, (*notes, *more))


def _guess(listing: Listing) -> str | None:
    catalogs = [file for file in listing.files if file.startswith("CATALOG") and file.endswith(".csv")]
    files = [file for file in listing.files if file.endswith(".h5") and "SEVIR_" in file]
    return f"{catalogs[0]} and {plural(len(files), 'SEVIR file')}" if catalogs else None


_INFO = SourceInfo(
    name="SEVIR, vertically integrated liquid",
    licence="approved for public release, distribution unlimited (MIT); see the registry page",
    citation="Veillette, Samsi, Mattioli, SEVIR: a storm event imagery dataset, NeurIPS 2020",
    url="https://registry.opendata.aws/sevir",
)
ENTRY = SourceEntry(
    summary="SEVIR's vertically integrated liquid, and SEVIR-LR",
    example="python -m shards convert sevir ~/sevir stores/sevir",
    add_arguments=_add_arguments,
    build=_build,
    input_help="folder with CATALOG.csv and data/, or the catalog",
    guess=_guess,
)

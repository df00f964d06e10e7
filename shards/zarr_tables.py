"""The arrays of a zarr split beside its frames: coordinates, grid mapping, and the table of its events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shards.clock import times_of_frames
from shards.georeference import MAPPING, Grid
from shards.manifest import Scale
from shards.writer import WrittenEvent

if TYPE_CHECKING:
    import zarr


EPOCH = datetime(1970, 1, 1)


def cf_attributes(scale: Scale) -> dict[str, Any]:
    """Return the CF attributes that turn codes into values: value = add_offset + scale_factor * code."""
    attributes: dict[str, object] = {
        "long_name": scale.quantity,
        "units": scale.unit,
        "scale_factor": scale.gain,
        "add_offset": scale.offset,
        "valid_max": scale.max_code,
    }
    if scale.missing_code is not None:
        attributes["_FillValue"] = scale.missing_code
    return attributes


def write_tables(group: zarr.Group, events: Sequence[WrittenEvent], step_seconds: float | None) -> None:
    """Write everything of a split but its frames and grid: which event and time a frame has, and the events' table,
    whose dimension is `event_index`, as `event` is the coordinate of the frames.
    """
    planned = [event.planned for event in events]
    lengths = np.array([event.length for event in planned], dtype=np.int32)
    number = np.repeat(np.arange(len(planned), dtype=np.int32), lengths)
    _put(group, "event", number, "time", {"long_name": "index of the frame's event in the split"})
    stamps = [times_of_frames(event.length, event.start_time, event.times, step_seconds) for event in planned]
    if planned and all(stamp is not None for stamp in stamps):
        whole = [round((time - EPOCH).total_seconds()) for stamp in stamps for time in stamp or ()]
        seconds = np.array(whole, dtype=np.int64)
        attributes = {"standard_name": "time", "units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"}
        _put(group, "time", seconds, "time", attributes)
    first = np.cumsum(lengths, dtype=np.int64) - lengths
    _put(group, "event_first", first, "event_index", {"long_name": "index of the event's first frame along time"})
    _put(group, "event_length", lengths, "event_index", {"long_name": "frames of the event"})
    crc = np.array([event.crc32 for event in events], dtype=np.uint32)
    _put(group, "event_crc32", crc, "event_index", {"long_name": "zlib.crc32 of the event's frames"})
    offsets = np.array([event.run_offset for event in planned], dtype=np.int64)
    _put(group, "event_run_offset", offsets, "event_index", {"long_name": "index of its first frame in the run"})
    texts = {
        "event_key": [event.key for event in planned],
        "event_mode": [event.mode or "" for event in planned],
        "event_run": [event.run or event.key for event in planned],
        "event_start_time": [event.start_time or "" for event in planned],
        "event_metadata": [event.metadata for event in events],
    }
    for name, column in texts.items():
        _put(group, name, np.array(column, dtype=object), "event_index", {})


def write_grid(group: zarr.Group, grid: Grid | None) -> None:
    """Write the coordinates x and y and CF's grid mapping of a split, where its archive knows its grid."""
    if grid is None:
        return
    for axis, values in (("x", grid.x), ("y", grid.y)):
        _put(group, axis, values, axis, dict(grid.axis_attributes(axis)))
    attributes = grid.mapping_attributes()
    mapping = group.create_array(MAPPING, shape=(), dtype="int32", compressors=None, attributes=attributes)
    mapping[...] = np.int32(0)


def _put(group: zarr.Group, name: str, values: npt.NDArray[Any], dimension: str, attributes: dict[str, Any]) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=values.shape,
        dtype="string" if values.dtype == object else values.dtype,
        compressors=None,
        dimension_names=(dimension,),
        attributes=attributes,
    )
    array[:] = values

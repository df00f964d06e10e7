"""What a store holds, for people and for programs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from shards.coverage import text_of
from shards.georeference import Grid
from shards.manifest import SHARES, Scale
from shards.store import Store, open_store


def summary(path: str | Path) -> dict[str, Any]:
    """Return plain JSON: the manifest's facts, and per split its events, frames, bytes, modes, runs and time range."""
    store = open_store(path)
    manifest = store.manifest
    return {
        "path": str(path),
        "name": manifest.name,
        "format": manifest.format,
        "encoding": manifest.encoding,
        "frames": {
            "channels": manifest.frames.channels,
            "height": manifest.frames.height,
            "width": manifest.frames.width,
            "dtype": manifest.frames.dtype,
            **({"names": list(manifest.frames.names)} if manifest.frames.names else {}),
        },
        "step_seconds": manifest.step_seconds,
        "scale": {
            "quantity": manifest.scale.quantity,
            "unit": manifest.scale.unit,
            "offset": manifest.scale.offset,
            "gain": manifest.scale.gain,
            "max_code": manifest.scale.max_code,
            "missing_code": manifest.scale.missing_code,
            "mapping": manifest.scale.mapping,
        },
        "grid": None if manifest.grid is None else manifest.grid.to_json(),
        "splits": {split: _split(store, split) for split in store.splits},
        "source": {"name": manifest.source.name, "licence": manifest.source.licence, "url": manifest.source.url},
        "generator": manifest.generator,
        "conversion": dict(manifest.conversion),
    }


def _split(store: Store, split: str) -> dict[str, object]:
    events, info = store.events(split), store.splits[split]
    lengths = [event.length for event in events]
    starts = sorted(event.start_time for event in events if event.start_time is not None)
    return {
        "events": info.events,
        "frames": info.frames,
        "shards": len(info.shards),
        "bytes": sum(shard.bytes for shard in info.shards),
        "event_frames": [min(lengths), max(lengths)] if lengths else [0, 0],
        "runs": len({event.run for event in events}),
        "modes": dict(sorted(Counter(event.mode for event in events if event.mode is not None).items())),
        "first_event": starts[0] if starts else None,
        "last_event": starts[-1] if starts else None,
        **{f"{share}_share": getattr(info, share) for share in SHARES},
    }


def describe(path: str | Path) -> str:
    """Return a table."""
    data = summary(path)
    manifest = open_store(path).manifest
    frames = data["frames"]
    step = f", every {data['step_seconds']:g} s" if data["step_seconds"] else ""
    lines = [
        f"{path}: {data['name']} ({data['format']}, {data['encoding']})",
        f"frames   {frames['channels']} x {frames['height']} x {frames['width']} {frames['dtype']}{step}",
        *([f"channels {', '.join(frames['names'])}"] if "names" in frames else []),
        f"scale    {_scale(manifest.scale)}",
        *_grid(manifest.grid),
        f"source   {data['source']['name']}",
        f"licence  {data['source']['licence']}",
        "",
        f"{'split':<8}{'events':>9}{'frames':>10}{'per event':>11}{'runs':>7}{'shards':>8}{'MB':>10}  modes, times",
    ]
    for name, split in data["splits"].items():
        low, high = split["event_frames"]
        per_event = str(low) if low == high else f"{low}-{high}"
        notes = [text] if (text := text_of(manifest.splits[name])) else []
        notes += [f"{mode} {count}" for mode, count in list(split["modes"].items())[:6]]
        if len(split["modes"]) > 6:
            notes.append(f"and {len(split['modes']) - 6} more")
        if split["first_event"]:
            notes.append(f"events begin {split['first_event']} .. {split['last_event']}")
        lines.append(
            f"{name:<8}{split['events']:>9}{split['frames']:>10}{per_event:>11}{split['runs']:>7}{split['shards']:>8}"
            f"{split['bytes'] / 1e6:>10.1f}  {', '.join(notes)}".rstrip()
        )
    return "\n".join(lines)


def _grid(grid: Grid | None) -> list[str]:
    if grid is None:
        return []
    across, down = grid.metres_per_pixel
    lon, lat = zip(*grid.corners, strict=True)
    return [
        f"grid     {across:g} x {down:g} m per pixel, longitude {min(lon):g}..{max(lon):g}, latitude "
        f"{min(lat):g}..{max(lat):g}; {grid.proj4}"
    ]


def _scale(scale: Scale) -> str:
    low, high = scale.offset, scale.offset + scale.gain * scale.max_code
    missing = "" if scale.missing_code is None else f", code {scale.missing_code} is missing"
    unit = "" if scale.unit == "1" else f" {scale.unit}"
    mapped = "" if scale.mapping is None else f"; in {scale.physical_unit} by {scale.mapping}"
    return f"{scale.quantity}: codes 0..{scale.max_code} are {low:g}..{high:g}{unit}{missing}{mapped}"

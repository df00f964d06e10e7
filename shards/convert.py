"""Conversion: a source in, a store out, all of it or nothing.

Everything is written into a partial folder beside the output folder, flushed to disk, and renamed at the end: the final
name never shows half a store. A conversion that was interrupted at any point, by an error, a kill or a power cut, is
taken up by the next identical call: finished shards are compared with their digests and kept, the others are written,
and the store comes out with the same bytes, on any number of workers (partial.py, workers.py).

For the memory that a conversion needs see writer.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.cluster import CLUSTERS, Cluster, run_on_cluster
from shards.coverage import shares_of, warnings_of
from shards.damaged import without_damaged
from shards.encoding import LARGEST_UNPACKED
from shards.errors import ManifestError, SourceError, UsageError
from shards.manifest import (
    ENCODINGS,
    FORMATS,
    MANIFEST_NAME,
    FileInfo,
    Manifest,
    SplitInfo,
    check_channel_names,
)
from shards.overlap import overlap_warnings
from shards.partial import partial_code, partial_folder, put_in_place, remove_partials
from shards.plan_check import check_plan, in_utc
from shards.progress import Progress
from shards.sources.base import Description, Plan, PlannedEvent, Source
from shards.store import open_store
from shards.verify import stray_files, verify
from shards.workers import run_jobs
from shards.writer import HashedFile, ShardResult, StorePlan, StoreWriter, recorded
from shards.writing import writes


@dataclass(frozen=True)
class Outcome:
    """What `convert` did: the store's manifest, and whether it was there already."""

    manifest: Manifest
    already_complete: bool


def convert(
    source: Source,
    output: Path,
    *,
    format: str = "webdataset",
    encoding: str = "raw",
    arguments: Mapping[str, object],
    name: str | None = None,
    shard_mb: float = 256.0,
    workers: int = 1,
    cluster: Cluster | None = None,
    overwrite: bool = False,
    skip_limit: int | None = None,
    plan_sha256: str | None = None,
    channel_names: Sequence[str] | None = None,
    report: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> Outcome:
    """Convert `source` into a new store in folder `output`, or resume where an earlier call was interrupted.

    `arguments` (plain JSON) go into the manifest: with the digest of the plan they say whether a store that stands
    there already is the very one asked for. `workers` processes write shards side by side, here or in each job of a
    `cluster`; their number doesn't show in the bytes. `overwrite` replaces another store, and nothing but a store.
    `plan_sha256` is recorded instead of the digest of the source's own plan (where the source is a store, that of the
    archive). `channel_names` name the channels of a frame, in order. With a `skip_limit`, at most that many damaged
    frames are left out (damaged.py); None: the first one ends the conversion. Raises ShardErrors.
    """
    if cluster is not None and (cluster.name not in CLUSTERS or cluster.jobs < 1):
        raise UsageError(f"cluster {cluster.name!r} ({', '.join(CLUSTERS)}) with {cluster.jobs} jobs (>= 1)")
    if format not in FORMATS or encoding not in ENCODINGS or not 0 < shard_mb < math.inf or workers < 1:
        raise UsageError(
            f"format {format!r} ({' or '.join(FORMATS)}), encoding {encoding!r} ({', '.join(ENCODINGS)}), "
            f"shard size {shard_mb} MB (> 0), {workers} workers (>= 1)"
        )
    if skip_limit is not None and skip_limit < 0:
        raise UsageError(f"--skip-limit {skip_limit}: a number of frames, 0 or more")
    description = source.describe()
    if channel_names:
        check_channel_names(channel_names, description.frames.channels)
        frames = dataclasses.replace(description.frames, names=tuple(channel_names))
        description = dataclasses.replace(description, frames=frames)
    _check_manifest(_manifest(description, {**arguments, "name": name or description.name}, format, encoding))
    plan = in_utc(source.plan(), description.step_seconds)
    check_plan(plan)
    _check_unpacked(plan, description, encoding)
    skipped: Mapping[str, object] = {}
    if skip_limit is not None:
        plan, damages = without_damaged(source, plan, skip_limit, workers, getattr(source, "skipped", ()))
        check_plan(plan)
        skipped = {"on_error": "skip", "skipped": [damage.as_json() for damage in damages]}
    digest = plan_digest(plan)
    named = {"channel_names": list(channel_names)} if channel_names else {}
    conversion = {
        **arguments,
        **named,
        **skipped,
        "format": format,
        "name": name or description.name,
        "shard_mb": shard_mb,
    }
    if encoding != "raw":
        conversion["encoding"] = encoding
    conversion["plan_sha256"] = plan_sha256 or digest
    _check_manifest(_manifest(description, conversion, format, encoding))
    standing = _look_at_target(output, conversion, overwrite)
    if standing is not None:
        remove_partials(output)
        return Outcome(standing, already_complete=True)
    for note in plan.notes:
        report(note)
    with writes(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    with partial_folder(output, partial_code(conversion, digest, source), report) as folder:
        writer = _writer(format, _store_plan(folder, description, plan, int(shard_mb * 1e6), encoding))
        results = _write(writer, source, workers, cluster, report)
        with writes(writer.plan.store):
            files = writer.finish(results)
        splits = {split: _split_info(split, events, results) for split, events in writer.plan.splits.items()}
        manifest = _manifest(description, conversion, format, encoding, splits, files)
        _check_manifest(manifest)
        with HashedFile(writer.plan.store / MANIFEST_NAME, writer.plan.work) as file:
            file.write(manifest.to_json().encode())
        with writes(output):
            put_in_place(writer.plan.store, output)
    for warning in (*warnings_of(manifest), *overlap_warnings(open_store(output))):
        report(f"warning: {warning}")
    return Outcome(manifest, already_complete=False)


def _write(
    writer: StoreWriter, source: Source, workers: int, cluster: Cluster | None, report: Callable[[str], None]
) -> list[ShardResult]:
    """Every shard of the store, with progress on stderr."""
    jobs = writer.jobs()
    if finished := sum(recorded(writer.plan, job) for job in jobs):
        report(f"resuming: {finished} of {len(jobs)} shards were finished by an earlier call")
    progress = Progress(sum(len(events) for events in writer.plan.splits.values()))
    if cluster is None:
        results = run_jobs(writer, source, jobs, workers, progress)
    else:
        results = run_on_cluster(writer, source, jobs, workers, cluster, progress)
    progress.close()
    return results


def _store_plan(folder: Path, description: Description, plan: Plan, shard_bytes: int, encoding: str) -> StorePlan:
    return StorePlan(
        folder=folder,
        frames=description.frames,
        scale=description.scale,
        step_seconds=description.step_seconds,
        grid=description.grid,
        splits={split: events for split, events in plan.splits.items() if events},
        shard_bytes=shard_bytes,
        encoding=encoding,
    )


def _manifest(
    description: Description,
    conversion: Mapping[str, Any],
    format: str,
    encoding: str,
    splits: Mapping[str, SplitInfo] | None = None,
    files: tuple[FileInfo, ...] = (),
) -> Manifest:
    """Return what the store holds; without splits and files, what is known before anything is written."""
    return Manifest(
        format=format,
        encoding=encoding,
        name=conversion["name"],
        frames=description.frames,
        step_seconds=description.step_seconds,
        scale=description.scale,
        splits=splits or {},
        modes=description.modes,
        source=description.source,
        conversion=conversion,
        files=files,
        grid=description.grid,
    )


def _check_manifest(manifest: Manifest) -> None:
    """Refuse what could be written but not read again: control characters, long texts, numbers that aren't finite."""
    try:
        Manifest.from_json(manifest.to_json(), "the manifest to be written")
    except ManifestError as error:
        what = str(error).replace("; convert the archive again", "")
        raise SourceError(
            f"{what}: no program could read this store again; correct that option, or what the source describes"
        ) from None


def plan_digest(plan: Plan) -> str:
    """Return the SHA-256 over every planned event with its files: an archive that has grown since gives another."""
    digest = hashlib.sha256()
    for split, events in plan.splits.items():
        for event in events:
            digest.update(f"{split} {event!r}\n".encode())
    return digest.hexdigest()


def _check_unpacked(plan: Plan, description: Description, encoding: str) -> None:
    """Refuse events too large to be unpacked again."""
    longest = max((event.length for events in plan.splits.values() for event in events), default=0)
    if encoding != "raw" and longest * description.frames.bytes > LARGEST_UNPACKED:
        raise UsageError(
            f"an event of {longest} frames has {longest * description.frames.bytes} bytes, compressed ones may have "
            f"{LARGEST_UNPACKED}; shorten them (--event-frames), or write them with --encoding raw"
        )


def _look_at_target(output: Path, conversion: Mapping[str, object], overwrite: bool) -> Manifest | None:
    """Return the manifest of the store that is there already if it is the one asked for; None if the way is free.

    Raises UsageError if the folder holds anything else, or another store without `overwrite`.
    """
    if not output.exists() and not output.is_symlink():
        return None
    if output.is_symlink() or not output.is_dir():
        raise UsageError(f"{output} is there and is not a folder; choose another name for the store")
    if not any(output.iterdir()):
        return None
    try:
        manifest = Manifest.load(output)
        strays = stray_files(output, manifest)
    except ManifestError as error:
        if (output / MANIFEST_NAME).exists():
            raise UsageError(f"{error}; or choose another output folder: this one is left as it is") from None
        names = sorted(path.name for path in output.iterdir())
        more = " ..." if len(names) > 5 else ""
        raise UsageError(
            f"{output} is not a store; it holds {', '.join(names[:5])}{more}; choose a folder that doesn't exist yet"
        ) from None
    if not overwrite:
        problems = verify(output, quick=True)
        if dict(manifest.conversion) == json.loads(json.dumps(conversion)) and not problems:
            return manifest
        state = f"damaged ({problems[0]})" if problems else "made with other arguments or from another archive"
        raise UsageError(
            f"{output} holds the store {manifest.name!r} ({manifest.format}), {state}; "
            "choose another output folder, or replace it with --overwrite"
        )
    if strays:
        raise UsageError(
            f"{output} holds the store {manifest.name!r}, but also {strays[0]}, which is no part of it; "
            "--overwrite replaces only stores: move that away, or choose another output folder"
        )
    return None


def _writer(format: str, plan: StorePlan) -> StoreWriter:
    """Return the format's writer; zarr is imported only by those who want it."""
    if format == "zarr":
        from shards.zarr_writer import ZarrWriter

        return ZarrWriter(plan)
    from shards.tar_store import TarWriter

    return TarWriter(plan)


def _split_info(split: str, events: Sequence[PlannedEvent], results: Sequence[ShardResult]) -> SplitInfo:
    shards = tuple(result.info for result in results if result.job.split == split)
    written = [event for result in results if result.job.split == split for event in result.events]
    return SplitInfo(len(events), sum(event.length for event in events), shards, **shares_of(written))

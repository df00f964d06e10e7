"""How fast stores are made and read, beside the fastest that could be, in one run.

    python benchmarks/shards.py                        2 GB of 20x384x384 radar-like events: minutes, and 8 GB of disk
    python benchmarks/shards.py --gb 0.3 --events 2000 --seconds 0.2 --rounds 3     a minute, to see that it works
    python benchmarks/shards.py --folder /scratch/me   measure that disk; the folder is removed again
    python benchmarks/shards.py --uint16               only what codes of 16 bits cost beside those of 8

Prints a table and writes benchmarks/shards-DATE-DEVICE.md and .json. Every ratio is between two things that took turns
in this run; rates are medians over rounds. Reading is from the page cache where the store fits into memory: a slower
disk limits all methods alike.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import device, in_child, timed, write_report  # noqa: E402
from shards import open_store  # noqa: E402
from shards.bench import READERS, Task, make_task, measure  # noqa: E402
from shards.convert import convert  # noqa: E402
from shards.manifest import FrameSpec, Scale, SourceInfo  # noqa: E402
from shards.repack import repack  # noqa: E402
from shards.sources.base import Description, Plan, PlannedEvent, RawEvent  # noqa: E402
from shards.sources.radar_readers import DBZ, FINE_DBZ  # noqa: E402
from toolkit.data.windows import to_unit  # noqa: E402

LENGTH = 20
DISTINCT = 12  # PNG-coded events that the decoder test reads over and over
COMPOSITE = (640, 710)  # MeteoSwiss's; the conversion keeps 384x384 of it


@lru_cache(maxsize=1)
def rain() -> np.ndarray:
    """A field uint8 [768, 768], two thirds of it dry, smooth where it rains."""
    rng = np.random.default_rng(0)
    field_ = np.zeros((768, 768))
    for scale in (6, 12, 24, 48):
        coarse = Image.fromarray(rng.normal(size=(scale, scale)).astype(np.float32))
        field_ += np.asarray(coarse.resize((768, 768), Image.Resampling.BICUBIC)) / np.sqrt(scale)
    wet = np.clip((field_ - np.quantile(field_, 0.62)) * 120, 0, 200)
    return np.where(wet > 0, wet + rng.integers(0, 12, wet.shape), 0).astype(np.uint8)


@dataclass(frozen=True)
class Storms:
    """`count` events of a drifting rain field; or, with the folder `pngs`, decoded from PNGs of whole composites there
    and cropped, as a radar archive's.
    """

    count: int
    size: int = 384
    pngs: Path | None = None
    scale: Scale = DBZ  # of FINE_DBZ: the same echoes with values between the quarters

    def describe(self) -> Description:
        info = SourceInfo("generated", "CC0-1.0", "benchmarks/shards.py", "-")
        return Description(
            "storms", FrameSpec(1, self.size, self.size, self.scale.code_type.name), 300.0, self.scale, (), info
        )

    def plan(self) -> Plan:
        return Plan({"train": [PlannedEvent(f"e{i:06d}", LENGTH, recipe=i) for i in range(self.count)]})

    def read(self, event: PlannedEvent) -> RawEvent:
        if self.pngs is not None:
            first = event.recipe % DISTINCT * LENGTH
            frames = [np.asarray(Image.open(self.pngs / f"{first + i}.png")) for i in range(LENGTH)]
            return RawEvent(np.stack([frame[: self.size, : self.size] for frame in frames])[:, None])
        codes = storm(event.recipe, self.size, self.size)
        if self.scale != FINE_DBZ:
            return RawEvent(codes)
        between = np.random.default_rng(event.recipe).integers(0, 258, codes.shape, dtype=np.uint16)
        return RawEvent(np.where(codes > 0, codes * np.uint16(258) + between, 0).astype(np.uint16))


@lru_cache(maxsize=1)
def noise() -> np.ndarray:
    """Speckle uint8, from which frames take their own at random places: without it, neighbours compress to nothing."""
    return np.random.default_rng(1).integers(0, 8, 1 << 23, dtype=np.uint8)


def storm(number: int, height: int, width: int) -> np.ndarray:
    """Frames uint8 [20, 1, height, width]."""
    rng = random.Random(number)  # noqa: S311
    top, left, down, right = (rng.randrange(384) for _ in range(4))
    wide = np.pad(rain(), ((0, 400), (0, 400)), mode="wrap")
    frames = np.empty((LENGTH, 1, height, width), dtype=np.uint8)
    for i, frame in enumerate(frames[:, 0]):
        row, column = (top + i * (down % 5)) % 384, (left + i * (right % 5)) % 384
        first = rng.randrange(len(noise()) - frame.size)
        speckle = noise()[first : first + frame.size].reshape(frame.shape)
        field_ = wide[row : row + height, column : column + width]
        np.multiply(field_ + speckle, field_ > 0, out=frame)
    return frames


def write_pngs(folder: Path) -> Path:
    """The frames of DISTINCT events of whole composites."""
    folder.mkdir()
    for number in range(DISTINCT):
        for i, frame in enumerate(storm(number, *COMPOSITE)[:, 0]):
            Image.fromarray(frame).save(folder / f"{number * LENGTH + i}.png", compress_level=6)
    return folder


@dataclass
class Report:
    """What was measured, as it becomes known."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self, what: str, value: float, unit: str, target: str = "", met: bool | None = None, note: str = ""
    ) -> None:
        self.rows.append({"what": what, "value": value, "unit": unit, "target": target, "met": met, "note": note})
        mark = {True: "met", False: "MISSED", None: ""}[met]
        print(f"{what:<74}{shown(value):>10} {unit:<6} {target:<10}{mark:<7}{note}", flush=True)

    def ratio(self, what: str, value: float, least: float) -> None:
        self.add(what, value, "x", f">= {least:g}", value >= least)


def shown(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def make(source: Storms, folder: Path, **options: Any) -> Path:
    convert(source, folder, arguments={"benchmark": "shards"}, report=lambda text: None, **options)
    return folder


def scattered(path: Path, length: int, events: int) -> Task:
    """Windows of `length` frames at random places of random events."""
    store = open_store(path)
    order = random.Random(1)  # noqa: S311
    task = make_task(store, "train", length, 1 << 30)
    chosen = order.sample(task.windows, min(events, len(task.windows)))
    return Task(str(path), "train", length, tuple((i, order.randint(0, LENGTH - length)) for i, _ in chosen))


def reading(report: Report, stores: dict[str, Path], options: argparse.Namespace) -> None:
    """Windows per second of every way to read."""
    tar, packed = stores["webdataset raw"], {"zstd": stores["webdataset zstd"], "lz4": stores["webdataset lz4"]}
    touched = 1 << 30 if options.all else 300  # events read per method; those of one shard are neighbours in no case
    for length in (LENGTH, LENGTH // 2):
        task = scattered(tar, length, touched)
        found = measure(task, ["store", "copy"], 1, options.seconds, options.rounds)
        label = f"random windows of {length} frames, 1 process"
        report.add(f"indexed tar, {label}", found["store"][0], "seq/s", note=f"{found['store'][1] / 1e9:.1f} GB/s")
        report.add(f"bare mmap-and-copy, {label}", found["copy"][0], "seq/s", note=f"{found['copy'][1] / 1e9:.1f} GB/s")
        report.ratio(f"indexed tar / bare copy, {label}", found["store"][0] / found["copy"][0], 0.8)
    whole = make_task(open_store(tar), "train", LENGTH, touched)
    found = measure(whole, ["store", "webdataset"], 1, options.seconds, options.rounds)
    report.add("plain webdataset .decode() of the same tar, 1 process", found["webdataset"][0], "seq/s")
    report.ratio("indexed tar / plain webdataset, sequential", found["store"][0] / found["webdataset"][0], 3.0)
    for encoding, path in packed.items():
        size = sum(shard.bytes for shard in open_store(path).splits["train"].shards)
        share = size / sum(shard.bytes for shard in open_store(tar).splits["train"].shards)
        found = measure(scattered(path, LENGTH, 60), ["store"], 1, options.seconds, options.rounds)
        report.add(f"indexed tar, {encoding}", found["store"][0], "seq/s", note=f"{share:.2f} of the raw bytes")
    zarr_task = scattered(stores["zarr raw"], LENGTH, touched)
    found = measure(zarr_task, ["store", "zarr", "zarr chunks"], 1, options.seconds, options.rounds)
    report.add("sharded zarr read here, random windows", found["store"][0], "seq/s")
    report.add("the zarr library, same shards", found["zarr"][0], "seq/s")
    report.add("the zarr library's best: one raw chunk and file per event", found["zarr chunks"][0], "seq/s")
    report.ratio("sharded zarr / the zarr library's best chunk read", found["store"][0] / found["zarr chunks"][0], 0.6)


def wide(report: Report, folder: Path, options: argparse.Namespace) -> None:
    """What uint16 costs: the same echoes, rounded to quarters of dBZ as uint8, and to 1/1032 dBZ."""
    count = max(DISTINCT, round(options.gb * 1e9 / (LENGTH * 384 * 384)))
    for format, encoding in itertools.product(("webdataset", "zarr"), ("raw", "zstd", "lz4")):
        tasks, sizes, rates, fed = {}, {}, {}, {}
        for scale in (DBZ, FINE_DBZ):
            name = scale.code_type.name
            path = make(
                Storms(count, scale=scale), folder / f"{format}-{encoding}-{name}", format=format, encoding=encoding
            )
            sizes[name] = sum(shard.bytes for shard in open_store(path).splits["train"].shards)
            tasks[name], rates[name], fed[name] = scattered(path, LENGTH, 60), [], []
        for _ in range(options.rounds):
            for scale in (DBZ, FINE_DBZ):
                name = scale.code_type.name
                rates[name].append(measure(tasks[name], ["store"], 1, options.seconds, 1)["store"][0])
                frames = torch.from_numpy(READERS["store"](tasks[name])(0))
                fed[name].append(1 / timed(lambda frames=frames, scale=scale: to_unit(frames, scale)))
        label = f"{format} {encoding}, uint16 / uint8"
        report.add(f"bytes of {label}", sizes["uint16"] / sizes["uint8"], "x")
        speeds = {name: statistics.median(values) for name, values in rates.items()}
        note = f"{speeds['uint16']:.0f} of {speeds['uint8']:.0f} windows of {LENGTH} frames a second"
        report.add(f"random windows a second, {label}", speeds["uint16"] / speeds["uint8"], "x", note=note)
        if encoding == "raw":
            speeds = {name: statistics.median(values) for name, values in fed.items()}
            report.add(f"codes to 0..1 with a mask on the CPU, {label}", speeds["uint16"] / speeds["uint8"], "x")


def first_touch(report: Report, path: Path, options: argparse.Namespace) -> None:
    """The first read of an event also compares its CRC."""
    task = scattered(path, LENGTH, 100)
    rates: dict[str, list[float]] = {"first": [], "never": []}
    for _ in range(options.rounds):
        for check, store in (("first", open_store(path)), ("never", open_store(path, check="never"))):
            store.events("train")
            begin = time.perf_counter()
            for event, start in task.windows:
                store.read("train", event, start, start + LENGTH)
            rates[check].append(len(task.windows) / (time.perf_counter() - begin))
    report.add(
        "indexed tar, events touched for the first time (CRC compared)", statistics.median(rates["first"]), "seq/s"
    )


def zarr_chunks_reader(task: Task) -> Callable[[int], Any]:
    """The same events as zarr likes them best: a file for each, uncompressed; made on the first call."""
    import zarr

    folder = Path(f"{task.path}-chunks")
    store = open_store(task.path)
    if not folder.exists():
        shape = store.manifest.frames.shape
        array = zarr.create_array(
            folder, shape=(len(task.windows) * LENGTH, *shape), chunks=(LENGTH, *shape), dtype="uint8", compressors=None
        )
        for i, (event, _) in enumerate(task.windows):
            array[i * LENGTH : (i + 1) * LENGTH] = store.read("train", event, 0, LENGTH)
    opened = zarr.open_array(folder, mode="r")
    return lambda i: np.asarray(opened[i * LENGTH : (i + 1) * LENGTH])


READERS["zarr chunks"] = zarr_chunks_reader


def converting(report: Report, folder: Path, options: argparse.Namespace) -> None:
    """A source whose decoder is the limit: 20 PNGs an event."""
    source = Storms(options.png_events, pngs=write_pngs(folder / "pngs"))
    events = source.plan().splits["train"]
    for event in events[:DISTINCT]:
        source.read(event)
    alone, one, two = [], [], []
    for i in range(max(1, options.rounds // 2)):
        alone.append(timed(lambda: [source.read(event) for event in events]))
        one.append(timed(lambda i=i: make(source, folder / f"one{i}", workers=1, shard_mb=32)))
        two.append(timed(lambda i=i: make(source, folder / f"two{i}", workers=2, shard_mb=32)))
        shutil.rmtree(folder / f"one{i}")
        shutil.rmtree(folder / f"two{i}")
    times = [statistics.median(values) for values in (alone, one, two)]
    for label, seconds in zip(("decoding alone", "conversion, 1 worker", "conversion, 2 workers"), times, strict=True):
        report.add(
            label,
            len(events) / seconds,
            "seq/s",
            note=f"{len(events)} events of 20 PNGs of 640x710, cropped to 384x384, in {seconds:.1f} s",
        )
    overhead = times[1] / times[0] - 1
    report.add("overhead of conversion over decoding alone", 100 * overhead, "%", "< 20", overhead < 0.2)
    report.ratio("conversion, 2 workers / 1 worker", times[1] / times[2], 1.7)


FIRST_BATCH = """
import sys, time, json
from toolkit.data.batches import Share, read_batches
from toolkit.data.windows import WindowSet
from shards import open_store
path, step, more = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
begin = time.perf_counter()
batches = read_batches(WindowSet(open_store(path), "train", 20), 0, Share(8, 8, 0, 1), step)
next(batches)
first = time.perf_counter() - begin
for _ in range(more):
    next(batches)
print(json.dumps([first, time.perf_counter() - begin - first]))
"""
EPOCH = """
import os, sys
from toolkit.data.batches import Share, read_batches
from toolkit.data.windows import WindowSet
from shards import open_store
windows = WindowSet(open_store(sys.argv[1]), "train", 20)
batches = read_batches(windows, 0, Share(8, 8, 0, 1), 0)
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
before = 0
for _ in range(6):  # two batches live side by side for a moment; what that takes is no growth
    next(batches)
    before = max(before, resident())
peak = before
for _ in range(len(windows) // 8):
    next(batches)
    peak = max(peak, resident())
print(peak - before)
"""


def child(code: str, *arguments: object) -> Any:
    """What a fresh process prints."""
    return in_child(["-c", code, *(str(argument) for argument in arguments)], "a reader")


def loading(report: Report, many: Path, stores: dict[str, Path], options: argparse.Namespace) -> None:
    """Through toolkit.data: the first batch, resuming, memory."""
    for name, path in (("tar", many), ("zarr", Path(f"{many}-zarr"))):
        seconds = [child(FIRST_BATCH, path, 0, 0)[0] for _ in range(options.rounds)]
        value = statistics.median(seconds)
        report.add(f"open a {name} store of {options.events} events, first batch of 8", value, "s", "< 1", value < 1)
    late = options.events * 9 // 10 // 8
    more = min(200, options.events // 80)
    early, resumed = [], []
    for _ in range(options.rounds):
        early.append(child(FIRST_BATCH, many, 0, more))
        resumed.append(child(FIRST_BATCH, many, late, more))
    begin, rest = (statistics.median(b[k] for b in resumed) / statistics.median(a[k] for a in early) for k in (0, 1))
    note = "medians in fresh processes"
    report.add("first batch at 90 % of an epoch / at 0 %", begin, "x", "<= 1.2", begin <= 1.2, note)
    report.add(f"the next {more} batches at 90 % / at 0 %", rest, "x", "<= 1.2", rest <= 1.2, note)
    small, large = child(EPOCH, stores["quarter"]), child(EPOCH, stores["webdataset raw"])
    size = sum(shard.bytes for shard in open_store(stores["webdataset raw"]).splits["train"].shards) / 2**20
    report.add("a loader's peak memory grows in an epoch of a quarter of the store", small, "MiB")
    told = f"the store has {size:.0f} MiB"
    report.add("... and of all of it", large, "MiB", "< 64 more", large < small + 64, told)


def write(report: Report, options: argparse.Namespace) -> Path:
    """The table and the same as JSON, beside this file."""
    settings = {key: value for key, value in vars(options).items() if key not in ("folder", "out")}
    met = {True: "yes", False: "**no**", None: ""}
    lines = [
        [row["what"], shown(row["value"]), row["unit"], row["target"], met[row["met"]], row["note"]]
        for row in report.rows
    ]
    what = "uint16 beside uint8" if options.uint16 else "Stores"
    title = f"{what}, {options.gb:g} GB of 20x384x384 events"
    head = ("what", "value", "unit", "target", "met", "note")
    facts = {"settings": settings, "rows": report.rows}
    return write_report("shards-uint16" if options.uint16 else "shards", title, head, lines, facts, options.out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0, help="size of the store of 20x384x384 events (default 2)")
    parser.add_argument("--events", type=int, default=10_000, help="of the store that is opened (default 10000)")
    parser.add_argument("--png-events", type=int, default=400, help="decoded per conversion (default 600)")
    parser.add_argument("--seconds", type=float, default=1.0, help="per method and round (default 1)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--all", action="store_true", help="read all events in turn, not 300 of them")
    parser.add_argument("--uint16", action="store_true", help="only what codes of 16 bits cost beside those of 8")
    parser.add_argument("--folder", type=Path, help="where to put the stores (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="where to write the report (default: beside this file)")
    options = parser.parse_args()
    report = Report()
    print(f"{device()}\n", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="shards-bench-") as name:
        folder = Path(name)
        if options.uint16:
            wide(report, folder, options)
            print(f"\nwritten: {write(report, options)}")
            return 0
        count = max(DISTINCT, round(options.gb * 1e9 / (LENGTH * 384 * 384)))
        stores = {
            "webdataset raw": make(Storms(count), folder / "tar"),
            "quarter": make(Storms(count // 4), folder / "q"),
        }
        for format, encoding in (("zarr", "raw"), ("webdataset", "zstd"), ("webdataset", "lz4")):
            target = stores[f"{format} {encoding}"] = folder / f"{format}-{encoding}"
            repack(stores["webdataset raw"], target, format=format, encoding=encoding, report=lambda text: None)
        reading(report, stores, options)
        first_touch(report, stores["webdataset raw"], options)
        many = make(Storms(options.events, size=64), folder / "many")
        repack(many, Path(f"{many}-zarr"), format="zarr", report=lambda text: None)
        loading(report, many, stores, options)
        converting(report, folder, options)
    print(f"\nwritten: {write(report, options)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

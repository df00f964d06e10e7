"""Damage files in every format that is read, at random, and look for anything but an error of ours.

    python benchmarks/fuzz.py --minutes 60             every target in turn, in child processes
    python benchmarks/fuzz.py --minutes 1 --only npy   one target

Writes benchmarks/fuzz-DATE.log: for every target the number of inputs, how many were taken and how many refused, the
longest time, and each input that ended in another exception, took too long, asked for too much memory or killed the
process. Its bytes are in benchmarks/fuzz-DATE/, and --seed repeats it. The exit code is 1 if there is one.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from shards import Manifest, ShardError, open_store  # noqa: E402
from shards.convert import convert  # noqa: E402
from shards.encoding import declared_size, decode, encode  # noqa: E402
from shards.info import describe  # noqa: E402
from shards.manifest import FrameSpec, Scale, SourceInfo, manifest_digest  # noqa: E402
from shards.sources import SOURCES  # noqa: E402
from shards.sources.base import Description, Plan, PlannedEvent, RawEvent  # noqa: E402
from shards.sources.idx import read_images  # noqa: E402
from shards.sources.pictures import probe, read_picture  # noqa: E402
from shards.verify import verify  # noqa: E402

SECONDS = 20  # for one input
MEMORY = 4 << 30  # bytes beyond what the process has at the start
ODD = (
    0,
    -1,
    1,
    255,
    256,
    1 << 31,
    1 << 40,
    1 << 62,
    10**400,
    0.5,
    -0.0,
    1e300,
    None,
    True,
    "",
    "\0",
    "\n\x1b[2J",
    "../x",
)
ODD_JSON: tuple[object, ...] = (*ODD, [], {}, [[]], {"a": 1}, float("nan"), float("inf"), "\ud800", "9" * 300)


@dataclass(frozen=True)
class Target:
    """One format: `make` writes a sound file, or a store, below a folder and returns the file to damage; `read` reads
    it, and may raise ShardErrors alone. `reseal` makes a store's digests fit again.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path, Path], None]
    is_json: bool = False
    reseal: bool = False


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return damaged bytes: flipped, overwritten with great and small numbers, cut, doubled, or random."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 12))):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(7)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice((0, 1, (1 << 8 * width) - 1, 1 << (8 * width - 1), rng.randrange(1 << 8 * width)))
            out[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + rng.randrange(1, 40)]
        elif kind == 4:
            begin = rng.randrange(len(out) + 1)
            out[at:at] = out[begin : begin + rng.randrange(1, 200)]
        elif kind == 5:
            out[at : at + 1] = rng.choice((b"9" * 30, b"-", b"(" * 200, b"[", b"{", b'"', b"\0" * 16, b"\xff" * 8))
        else:
            out[at : at + 4] = rng.randbytes(4)
    return bytes(out)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Return JSON in which some values are others, or bytes as `mutate` damages them."""
    if rng.random() < 0.2:
        return mutate(data, rng)
    lines = data.split(b"\n") if data.count(b"\n{") + data.count(b"\n[") else [data]
    place = rng.randrange(len(lines)) if len(lines) > 1 else 0
    try:
        tree = json.loads(lines[place])
    except ValueError:
        return mutate(data, rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        holder, key = _anywhere(tree, rng)
        if holder is None:
            break
        if rng.random() < 0.15 and isinstance(holder, dict):
            del holder[key]
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD_JSON))  # or later changes would change what is shared
    lines[place] = json.dumps(tree).encode()
    return b"\n".join(lines)


def _anywhere(tree: Any, rng: random.Random) -> tuple[Any, Any]:
    holder, key = None, None
    while isinstance(tree, (dict, list)) and tree:
        if holder is not None and rng.random() < 0.1:
            break
        holder, key = tree, rng.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
        tree = tree[key]
    return holder, key


# --- sound files


@dataclass(frozen=True)
class Noise:
    """A source of random frames."""

    def describe(self) -> Description:
        """Return what its frames have in common."""
        scale = Scale("noise", "K", -3.0, 0.5, 254, 255)
        return Description("noise", FrameSpec(1, 8, 8), 60.0, scale, ("a",), SourceInfo("me", "CC0", "-", "-"))

    def plan(self) -> Plan:
        """Return three events in two splits."""
        events = [PlannedEvent(f"e{i}", 4 + i, "a", start_time=f"2020-01-0{i + 1}T00:00:00Z") for i in range(3)]
        return Plan({"train": events[:2], "test": events[2:]})

    def read(self, event: PlannedEvent) -> RawEvent:
        """Return its frames."""
        return RawEvent(np.random.default_rng(event.length).integers(0, 256, (event.length, 1, 8, 8), dtype=np.uint8))


def _store(format: str, file: str, encoding: str = "raw") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        arguments = {"source": "noise"}
        convert(Noise(), folder / "s", format=format, encoding=encoding, arguments=arguments, report=lambda text: None)
        return folder / "s" / file

    return make


def _read_store(folder: Path, file: Path) -> None:
    refused: list[ShardError] = []
    for read in (_read_events, describe, _verified):
        try:
            read(folder / "s")
        except ShardError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def _verified(path: Path) -> None:
    problems = verify(path)
    if problems:
        raise ShardError(str(problems[0]))


def _read_events(path: Path) -> None:
    store = open_store(path)
    for split in store.splits:
        for event in store.events(split):
            store.read(split, event.index, 0, event.length)
            store.metadata(split, event.index)


def reseal(store: Path) -> None:
    """Make sizes and digests those of the files that are there, where the manifest can be read at all."""
    path = store / "manifest.json"
    try:
        data = json.loads(path.read_bytes())
        for entry in [*data["files"], *(shard for split in data["splits"].values() for shard in split["shards"])]:
            contents = (store / entry["file"]).read_bytes()
            entry.update(bytes=len(contents), sha256=hashlib.sha256(contents).hexdigest())
            if entry.get("index_sha256"):
                index = (store / entry["file"]).with_suffix(".idx").read_bytes()
                entry["index_sha256"] = hashlib.sha256(index).hexdigest()
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        pass
    try:
        data["digest"] = manifest_digest(data)
        path.write_text(json.dumps(data))
    except (NameError, TypeError, AttributeError, ValueError, UnboundLocalError):
        pass


def _source(name: str, *options: str) -> Callable[[Path, Path], None]:
    def read(folder: Path, file: Path) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("input")
        SOURCES[name].add_arguments(parser)
        source = SOURCES[name].build(parser.parse_args([str(file), *options]))
        source.describe()
        for events in source.plan().splits.values():
            for event in events:
                source.read(event)

    return read


def _frames(count: int = 30) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16), dtype=np.uint8)


def _npy(folder: Path) -> Path:
    np.save(folder / "a.npy", _frames())
    return folder / "a.npy"


def _npz(folder: Path) -> Path:
    np.savez_compressed(folder / "a.npz", X=_frames(40).reshape(20, 2, 16, 16), Y=_frames(40).reshape(20, 2, 16, 16))
    return folder / "a.npz"


def _clips(folder: Path) -> Path:
    clips = np.array([[(0, 10), (20, 10)], [(10, 10), (30, 10)]], dtype=np.int32)
    np.savez_compressed(folder / "a.npz", clips=clips, input_raw_data=_frames(40)[:, None])
    return folder / "a.npz"


def _hdf5(folder: Path) -> Path:
    import h5py

    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("data", data=_frames(), chunks=(1, 16, 16), compression="gzip")
        file["data"].attrs["units"] = "dBZ"
    return folder / "a.h5"


def _idx(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        data = struct.pack(">IIII", 0x803, 30, 16, 16) + _frames().tobytes()
        path = folder / f"train-images-idx3-ubyte{suffix}"
        path.write_bytes(gzip.compress(data) if suffix else data)
        return path

    return make


def _image(suffix: str, pages: int = 1) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        images = [Image.fromarray(frame) for frame in _frames(pages)]
        images[0].save(folder / f"a.{suffix}", **({"save_all": True, "append_images": images[1:]} if pages > 1 else {}))
        return folder / f"a.{suffix}"

    return make


def _read_picture(folder: Path, file: Path) -> None:
    pages = probe(file).pages
    for page in range(min(pages, 50)):
        read_picture(file.with_name(f"{file.name}#{page}") if pages > 1 else file, 1)


def _packed(encoding: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "packed").write_bytes(encode(encoding, _frames().tobytes()))
        return folder / "packed"

    return make


def _unpack(encoding: str) -> Callable[[Path, Path], None]:
    def read(folder: Path, file: Path) -> None:
        data = file.read_bytes()
        try:
            declared_size(data[:32])
            decode(encoding, np.frombuffer(data, dtype=np.uint8), 30 * 16 * 16)
        except ValueError as error:  # what both promise
            raise ShardError(str(error)) from None

    return read


def _read_manifest(folder: Path, file: Path) -> None:
    _read_store(folder, file)
    Manifest.load(folder / "s")


_ALL = ("--val-fraction", "0", "--test-fraction", "0")
TARGETS: dict[str, Target] = {
    "manifest": Target(_store("webdataset", "manifest.json"), _read_manifest, is_json=True, reseal=True),
    "manifest-zarr": Target(_store("zarr", "manifest.json"), _read_manifest, is_json=True, reseal=True),
    "index": Target(_store("webdataset", "train/000000.idx"), _read_store, is_json=True, reseal=True),
    "tar": Target(_store("webdataset", "train/000000.tar"), _read_store, reseal=True),
    "tar-zstd": Target(_store("webdataset", "train/000000.tar", "zstd"), _read_store, reseal=True),
    "tar-lz4": Target(_store("webdataset", "train/000000.tar", "lz4"), _read_store, reseal=True),
    "zarr-metadata": Target(_store("zarr", "train/zarr.json"), _read_store, is_json=True, reseal=True),
    "zarr-texts": Target(_store("zarr", "train/event_key/c/0"), _read_store, reseal=True),
    "zarr-numbers": Target(_store("zarr", "train/event_length/c/0"), _read_store, reseal=True),
    "zarr-shard": Target(_store("zarr", "train/frames/c/0/0/0/0", "lz4"), _read_store, reseal=True),
    "npy": Target(_npy, _source("arrays", "--layout", "thw", *_ALL)),
    "npy-guessed": Target(_npy, _source("arrays")),
    "npz": Target(_npz, _source("arrays", *_ALL)),
    "npz-clips": Target(_clips, _source("moving-mnist-file", *_ALL)),
    "hdf5": Target(_hdf5, _source("arrays", "--layout", "thw", *_ALL)),
    "idx": Target(_idx(""), lambda folder, file: (read_images(file), None)[1]),
    "idx-gz": Target(_idx(".gz"), lambda folder, file: (read_images(file), None)[1]),
    **{
        f"image-{suffix}": Target(_image(suffix), _read_picture)
        for suffix in ("png", "bmp", "jpg", "webp", "pgm", "gif")
    },
    "image-tiff-stack": Target(_image("tif", 5), _read_picture),
    "image-gif-animated": Target(_image("gif", 5), _read_picture),
    "image-apng": Target(_image("png", 5), _read_picture),
    "zstd": Target(_packed("zstd"), _unpack("zstd")),
    "lz4": Target(_packed("lz4"), _unpack("lz4")),
}


@dataclass
class Case:
    """A target that stands below a folder, ready to be damaged again and again."""

    target: Target
    folder: Path
    file: Path
    sound: bytes
    manifest: bytes

    @staticmethod
    def of(name: str, folder: Path) -> Case:
        """Write the target's sound files."""
        target = TARGETS[name]
        file = target.make(folder)
        manifest = folder / "s/manifest.json"
        return Case(target, folder, file, file.read_bytes(), manifest.read_bytes() if target.reseal else b"")

    def damaged(self, rng: random.Random) -> bytes:
        """Return other contents of the file."""
        return (mutate_json if self.target.is_json else mutate)(self.sound, rng)

    def read(self, data: bytes) -> bool:
        """Read the file with these contents; returns False where that is refused. Any other exception is a finding."""
        if self.target.reseal:
            (self.folder / "s/manifest.json").write_bytes(self.manifest)
        self.file.unlink(missing_ok=True)  # not over a file that is mapped
        self.file.write_bytes(data)
        if self.target.reseal:
            reseal(self.folder / "s")
        for cached in _CACHES:
            cached.cache_clear()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow warns of metadata that we don't use
                self.target.read(self.folder, self.file)
        except ShardError as error:
            if not str(error).isprintable():
                raise AssertionError(f"control characters in {str(error)!r}") from None
            return False
        return True


def _caches() -> list[Any]:
    from shards.sources import array_files, moving_mnist_file

    return [array_files.mapped, array_files._unpacked, moving_mnist_file._stream]


_CACHES = _caches()


def _out_of_time(signum: int, frame: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def _run(name: str, seed: int, seconds: float, pipe: Any) -> None:
    """Damage and read until the time is over; what goes wrong is sent through the pipe before each input is tried."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    signal.signal(signal.SIGALRM, _out_of_time)
    taken = refused = 0
    longest, end = 0.0, time.monotonic() + seconds
    sys.stderr = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        case = Case.of(name, Path(folder))
        assert case.read(case.sound), f"{name}: the sound file is refused"
        number = 0
        while time.monotonic() < end:
            data = case.damaged(random.Random(f"{seed}:{name}:{number}"))  # noqa: S311 - no secret
            pipe.send(("input", number, data))
            begin = time.monotonic()
            signal.alarm(SECONDS)
            try:
                if case.read(data):
                    taken += 1
                else:
                    refused += 1
            except BaseException:
                signal.alarm(0)
                pipe.send(("finding", number, data, traceback.format_exc()))
            signal.alarm(0)
            longest = max(longest, time.monotonic() - begin)
            number += 1
    pipe.send(("done", taken, refused, longest))


def fuzz(name: str, seed: int, seconds: float) -> tuple[str, list[tuple[str, bytes, str]]]:
    """Fuzz one target in a process of its own; return a line for the log and findings: case, bytes, what happened."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(name, seed, seconds, theirs), daemon=True)
    process.start()
    theirs.close()
    last: tuple[int, bytes] = (0, b"")
    findings: list[tuple[str, bytes, str]] = []
    line = ""
    while True:
        try:
            message = ours.recv() if ours.poll(3 * SECONDS) else None
        except EOFError:
            break
        if message is None:
            findings.append((f"{name}-{seed}-{last[0]}", last[1], "hangs beyond signals"))
            process.kill()
            break
        if message[0] == "input":
            last = message[1:]
        elif message[0] == "finding":
            findings.append((f"{name}-{seed}-{message[1]}", *message[2:]))
        else:
            line = f"{name:<20}{message[1] + message[2]:>9} inputs{message[1]:>9} taken{message[2]:>9} refused"
            line += f"{message[3]:>8.2f} s longest"
    process.join()
    if not line and process.exitcode:
        findings.append((f"{name}-{seed}-{last[0]}", last[1], f"the process ended with {process.exitcode}"))
    return line or f"{name:<20} ended early", findings


def main() -> int:
    """Fuzz the targets and write the log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="in all (default: %(default)s)")
    parser.add_argument("--only", choices=sorted(TARGETS), action="append", help="a target; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks", help="for the log (default: benchmarks)")
    args = parser.parse_args()
    names = args.only or list(TARGETS)
    stem = f"fuzz-{datetime.now(timezone.utc):%Y-%m-%d}"
    lines, bad = [], 0
    for name in names:
        line, findings = fuzz(name, args.seed, args.minutes * 60 / len(names))
        lines.append(f"{line}{len(findings):>5} findings")
        print(lines[-1], flush=True)
        for label, data, what in findings:
            bad += 1
            folder = args.folder / stem
            folder.mkdir(exist_ok=True)
            (folder / label).write_bytes(data)
            lines.append(f"  {label}: {what.strip().splitlines()[-1]}")
            print(what, file=sys.stderr)
    header = f"python benchmarks/fuzz.py --minutes {args.minutes:g} --seed {args.seed}, {os.cpu_count()} cores"
    (args.folder / f"{stem}.log").write_text("\n".join([header, "", *lines, "", f"{bad} findings in all"]) + "\n")
    if not bad:
        shutil.rmtree(args.folder / stem, ignore_errors=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

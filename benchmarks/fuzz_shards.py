"""Archives and stores for fuzz.py: sound files of every format that shards reads, and how each is read."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from shards import Manifest, ShardError, open_store
from shards.convert import convert
from shards.encoding import declared_size, decode, encode
from shards.info import describe
from shards.manifest import FrameSpec, Scale, SourceInfo, manifest_digest
from shards.sources import SOURCES, array_files, cf_layout, moving_mnist_file
from shards.sources.base import Description, Plan, PlannedEvent, RawEvent
from shards.sources.idx import read_images
from shards.sources.pictures import probe, read_picture
from shards.verify import verify


@dataclass(frozen=True)
class Target:
    """One format: `make` writes a sound file, or a store, below a folder and returns the file to damage; `read` reads
    it, and may raise ShardErrors and ToolkitErrors alone. `reseal` makes a store's digests fit again. `text`: values in
    it are damaged, not only bytes.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path, Path], None]
    text: Literal["", "json", "yaml"] = ""
    reseal: bool = False


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


def _radar(reader: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from tests.support.radar_files import place_archive

        place_archive(folder / "radar", reader, 4)
        return min(path for path in (folder / "radar").rglob("*") if path.is_file())

    return make


def _read_radar(reader: str) -> Callable[[Path, Path], None]:
    name, *options = ("radar", "--reader", reader) if reader != "cf" else ("cf",)
    read = _source(name, *options, "--crop", "none", *_ALL)
    return lambda folder, file: read(folder, folder / "radar")


_ALL = ("--val-fraction", "0", "--test-fraction", "0")
TARGETS: dict[str, Target] = {
    "manifest": Target(_store("webdataset", "manifest.json"), _read_manifest, text="json", reseal=True),
    "manifest-zarr": Target(_store("zarr", "manifest.json"), _read_manifest, text="json", reseal=True),
    "index": Target(_store("webdataset", "train/000000.idx"), _read_store, text="json", reseal=True),
    "tar": Target(_store("webdataset", "train/000000.tar"), _read_store, reseal=True),
    "tar-zstd": Target(_store("webdataset", "train/000000.tar", "zstd"), _read_store, reseal=True),
    "tar-lz4": Target(_store("webdataset", "train/000000.tar", "lz4"), _read_store, reseal=True),
    "zarr-metadata": Target(_store("zarr", "train/zarr.json"), _read_store, text="json", reseal=True),
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
    **{
        f"radar-{reader}": Target(_radar(reader), _read_radar(reader))
        for reader in ("meteoswiss", "knmi", "bom", "fmi", "odim", "geotiff", "radolan", "mrms", "cf")
    },
    "zstd": Target(_packed("zstd"), _unpack("zstd")),
    "lz4": Target(_packed("lz4"), _unpack("lz4")),
}
CACHES: tuple[Any, ...] = (array_files.mapped, array_files._unpacked, moving_mnist_file._stream, cf_layout.opened)

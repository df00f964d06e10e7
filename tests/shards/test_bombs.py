"""Small files that would become large: no more is unpacked than the header promises, or than is read of any file."""

import bz2
import gzip
import struct
import tracemalloc
import zlib
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from shards import SourceError
from shards.sources import hdf, radar_readers
from shards.sources.inputs import read_image
from shards.sources.radar_grib import first_message
from shards.sources.radar_hdf import Knmi
from shards.sources.radar_odim import Odim
from shards.sources.radar_pictures import FmiPgm
from shards.sources.radar_radolan import Radolan
from tests.support.archives import write_knmi
from tests.support.radar_files import write_odim, write_radolan

TIMES = [datetime(2017, 5, 30, 22, 0)]
MEMORY = 16 << 20  # bytes that a refusal may take
ZEROS = bytes(1 << 24)


def refused(call, message):
    tracemalloc.start()
    with pytest.raises(SourceError, match=message):
        call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY


def packed(path: Path, head: bytes) -> Path:
    """A file of a GiB in a few kilobytes: many members of zeros after the first."""
    pack = {".gz": gzip.compress, ".bz2": bz2.compress}[path.suffix]
    path.write_bytes(pack(head) + pack(ZEROS) * 64)
    assert path.stat().st_size < 1 << 21
    return path


@pytest.mark.parametrize("suffix", [".gz", ".bz2"])
@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"P5\n# obstime 201705302200\n10 20\n255\n", "more than 236 bytes unpacked, what its header promises"),
        (b"", "no binary PGM: it begins with"),
        (b"P5 40000 40000 255\n", "the header's size is 40000x40000, expected 134217728 pixels"),
        (b"P5 " + b"9" * 5000 + b" 1 255\n", "no binary PGM"),
    ],
)
def test_a_pgm(tmp_path, suffix, head, message):
    path = packed(tmp_path / f"201705302200_fmi.x.pgm{suffix}", head)
    for call in (FmiPgm().read, FmiPgm().grid):
        refused(lambda call=call: call(path), message)


def test_a_pgm_that_is_not_packed(tmp_path):
    path = tmp_path / "201705302200_fmi.x.pgm"
    with path.open("wb") as file:
        file.write(b"P5 10 20 255\n")
        file.truncate(4 << 30)  # a hole
    refused(lambda: FmiPgm().read(path), "more than 213 bytes")


@pytest.mark.parametrize("suffix", [".gz", ".bz2"])
@pytest.mark.parametrize("product", ["RX", "RY"])
def test_a_radolan_composite(tmp_path, suffix, product):
    kind = np.uint8 if product == "RX" else np.uint16
    write_radolan(tmp_path, TIMES, np.zeros((1, 6, 5), kind), product)
    (path,) = tmp_path.iterdir()
    head = path.read_bytes()
    bomb = packed(path.with_name(path.name + suffix), head)
    for call in (Radolan().read, Radolan().grid):
        refused(lambda call=call: call(bomb), f"more than {len(head)} bytes unpacked, what its header promises")


@pytest.mark.parametrize("name", ["a.h5.gz", "a.h5.bz2"])
def test_formats_whose_headers_promise_nothing(tmp_path, monkeypatch, name):
    monkeypatch.setattr(radar_readers, "LARGEST", 1 << 20)
    path = packed(tmp_path / name, b"\x89HDF\r\n\x1a\n")
    refused(lambda: Odim().read(path), "more than 1048576 bytes unpacked, the most that is read")


@pytest.mark.parametrize("reader", ["odim", "knmi"])
def test_datasets_that_claim_more_than_they_hold(tmp_path, reader):
    h5py = pytest.importorskip("h5py")
    frames = np.zeros((1, 32, 40), np.uint8)
    if reader == "odim":
        write_odim(tmp_path, TIMES, {"DBZH": {"data": frames}})
    else:
        write_knmi(tmp_path, TIMES, frames)
    (path,) = tmp_path.iterdir()
    name, call, kind = {"odim": ("dataset1/data1/data", Odim(), "u1"), "knmi": ("image1/image_data", Knmi(), "u2")}[
        reader
    ]
    for shape, chunks, message in (
        ((60_000, 60_000), (100, 100), "the header's size is 60000x60000"),
        ((70_000, 1), (100, 1), "the header's size is 70000x1"),
        ((60_000, 60_000), (40_000, 40_000), f"has chunks of {1_600_000_000 * np.dtype(kind).itemsize} bytes"),
    ):
        with h5py.File(path, "r+") as file:
            del file[name]
            file.create_dataset(name, shape, kind, chunks=chunks, compression="gzip")
        assert path.stat().st_size < 1 << 20
        refused(lambda: call.read(path), message)


def test_an_array_in_chunks_that_are_too_large(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (1, 40_000, 40_000), "u1", chunks=(1, 40_000, 40_000), compression="gzip")
        refused(lambda: hdf.dataset(file, "x"), f"chunks of 1600000000 bytes, at most {hdf.LARGEST_CHUNK}")


def test_a_grib_message_of_one_value(tmp_path):
    def values(handle):
        raise AssertionError("memory was taken for the grid")

    keys = {"gridType": "regular_ll", "jPointsAreConsecutive": 0, "iScansNegatively": 0, "Nj": 60_000, "Ni": 60_000}
    fake = SimpleNamespace(
        codes_new_from_message=lambda data: 1,
        codes_get=lambda handle, key: keys[key],
        codes_get_values=values,
        codes_release=lambda handle: None,
    )
    with pytest.raises(SourceError, match="the header's size is 60000x60000"):
        first_message(fake, tmp_path / "a.grib2", b"GRIB\0\0\0\x02" + (20).to_bytes(8, "big") + b"7777")


def test_a_picture(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(ZEROS)), chunk(b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    (tmp_path / "a.gif").write_bytes(b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0x80, 0, 0) + bytes(6) + b";")
    for name in ("a.png", "a.gif"):
        refused(lambda name=name: read_image(tmp_path / name), "unreadable frame")

"""What is wrong with an .npz is one kind of error, whichever library finds it."""

import zipfile

import numpy as np
import pytest

from shards import SourceError, npz
from shards.npz import load_npz
from tests.support.archives import build

# Where the damage is, and the library's error that it would be: zlib's, zipfile's, numpy's.
DAMAGE = {
    "stream": lambda data: data[:70] + b"\xff" * 20 + data[90:],
    "directory": lambda data: data[: len(data) - 30],
    "checksum": lambda data: data.replace(data[14:18], b"\x01\x02\x03\x04"),
    "empty": lambda data: b"",
    "text": lambda data: b"no archive",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage(tmp_path, damage):
    file = tmp_path / "a.npz"
    np.savez_compressed(file, data=np.random.default_rng(0).integers(0, 256, (6, 5, 8, 8), dtype=np.uint8))
    assert load_npz(file)["data"].shape == (6, 5, 8, 8)
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    with pytest.raises(ValueError) as refused:
        load_npz(file)
    assert type(refused.value) is ValueError and str(refused.value)

    def read():
        source = build("arrays", tmp_path, "--layout", "nthw")
        source.read(source.plan().splits["train"][0])

    with pytest.raises(SourceError, match=r"a\.npz"):
        read()


def test_a_header_of_an_array_that_does_not_parse_or_ends_early(tmp_path):
    file = tmp_path / "a.npz"
    for header in (b"\x93NUMPY\x01\x00\x08\x00{'a': (\n", b"\x93NUMPY\x01\x00\xff\x00{"):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("data.npy", header)
        with pytest.raises(ValueError) as refused:
            load_npz(file)
        assert type(refused.value) is ValueError and str(refused.value), header


def test_objects_and_sizes_are_refused(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", data=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        load_npz(tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "b.npz", data=np.zeros(5000, np.uint8))
    monkeypatch.setattr(npz, "LARGEST", 4000)
    with pytest.raises(ValueError, match="unpacks to 5128 bytes, at most 4000 are read"):
        load_npz(tmp_path / "b.npz")

"""Compressed events: the same frames, files that other tools unpack, and nothing unpacked that shouldn't be."""

import contextlib
import io
import shutil
import struct
import subprocess
import tarfile
import threading

import numpy as np
import pytest
import webdataset
import zarr
from hypothesis import given
from hypothesis import strategies as st

from shards import StoreError, decode_npy, encoding, open_store
from shards.encoding import declared_size, decode, decode_chunk, encode, encode_chunk
from shards.manifest import ENCODINGS
from shards.verify import verify
from tests.support.clips import Clips, make_store, tree
from tests.support.damage import rewrite_store

PACKED = ("zstd", "lz4")


def array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8)


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("size", [1, 17, 300, 70_000, (4 << 20) - 1, 4 << 20, (8 << 20) + 5])
def test_there_and_back(name, size):
    noise = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    for data in (noise, np.zeros(size, np.uint8), np.sort(noise)):
        packed = encode(name, data.tobytes())
        assert np.array_equal(decode(name, array(packed), size), data)
        assert np.array_equal(decode_chunk(name, array(bytes(encode_chunk(name, data))), size), data)
        if name != "raw":
            assert declared_size(packed[:32]) == size


@pytest.mark.parametrize("name", PACKED)
@given(data=st.binary(min_size=1, max_size=400), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_damaged_data_gives_an_error_or_that_many_bytes(name, data, place, bit):
    """Whether they are the right ones, the CRC in the index tells."""
    for there, back in ((encode, decode), (lambda n, d: bytes(encode_chunk(n, array(d))), decode_chunk)):
        packed = bytearray(there(name, data))
        packed[int(place * len(packed))] ^= 1 << bit
        with contextlib.suppress(ValueError):
            assert len(back(name, array(bytes(packed)), len(data))) == len(data)
        with pytest.raises(ValueError):
            back(name, array(bytes(packed[: int(place * len(packed))])), len(data))


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize(("there", "back"), [(encode, decode), (encode_chunk, decode_chunk)])
def test_a_bomb_is_refused_before_a_byte_is_unpacked(name, there, back, monkeypatch):
    """16 MiB of zeros in a few kB, where 1,000 bytes are expected; then with its size forged to be 1,000."""
    zeros = np.zeros(1 << 24, np.uint8)
    real = bytes(there(name, zeros.tobytes() if there is encode else zeros))
    for module in ("zstd", "lz4", "blosc"):
        codec = getattr(encoding.numcodecs, module)
        monkeypatch.setattr(codec, "decompress", lambda *args: pytest.fail("was unpacked"))
    with pytest.raises(ValueError, match="holds 16777216 bytes, 1000 were expected"):
        back(name, array(real), 1000)
    monkeypatch.undo()
    forged = bytearray(real)
    if there is encode_chunk and name == "lz4":
        forged[4:8] = struct.pack("<I", 1000)  # blosc
    elif name == "zstd":
        at = bytes(forged).index(struct.pack("<I", 1 << 24))
        forged[at : at + 4] = struct.pack("<I", 1000)
    else:
        descriptor = struct.pack("<BBQ", 0x68, 0x70, 1000)
        forged[4:15] = descriptor + bytes([encoding._lz4_check(descriptor)])
    with pytest.raises(ValueError):
        back(name, array(bytes(forged)), 1000)


@pytest.mark.parametrize("data", [b"", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18" + bytes(28), b"PK\x03\x04" + bytes(28)])
def test_what_is_neither(data):
    with pytest.raises(ValueError):
        declared_size(data)


def test_a_zstd_frame_that_hides_its_size():
    with pytest.raises(ValueError, match="doesn't tell its size"):
        declared_size(b"\x28\xb5\x2f\xfd\x00\x58" + bytes(26))


def test_blosc_gives_the_same_bytes_beside_other_threads():
    """With blosc's own threads, blocks lie in the order in which they finish."""
    data = np.random.default_rng(0).integers(0, 9, 6_000_000, dtype=np.uint8)
    expected = encode_chunk("lz4", data)
    found = []
    threads = [threading.Thread(target=lambda: found.append(encode_chunk("lz4", data))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 3


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_store_holds_the_same_events(tmp_path, format, name):
    source = Clips(lengths={"train": (4, 4, 9, 1), "test": (2,)}, size=(1, 40, 40))
    store = make_store(tmp_path / "s", format, source, encoding=name, shard_mb=0.02)
    assert verify(tmp_path / "s") == [] and store.manifest.encoding == name
    for split, planned in source.plan().splits.items():
        for i, event in enumerate(planned):
            assert np.array_equal(store.read(split, i, 0, event.length), source.frames(event))
            for first in range(event.length - 1):
                window = open_store(tmp_path / "s", check="never").read(split, i, first, first + 2)
                assert np.array_equal(window, source.frames(event)[first : first + 2])
                assert window.flags.owndata and window.flags.c_contiguous
    make_store(tmp_path / "t", format, source, encoding=name, shard_mb=0.02, workers=2)
    assert tree(tmp_path / "s") == tree(tmp_path / "t")


@pytest.mark.parametrize("name", ENCODINGS)
def test_zarr_itself_reads_and_writes_the_same_shards(tmp_path, name):
    """Our shards are zarr's, byte for byte; the last one ends within a chunk, and chunks of zeros are there."""
    source = Clips(lengths={"train": (4, 4, 4, 4, 4, 3)}, size=(1, 16, 16))
    make_store(tmp_path / "s", "zarr", source, encoding=name, shard_mb=0.0025)
    array = zarr.open_array(tmp_path / "s/train/frames", mode="r")
    frames = np.concatenate([source.frames(event) for event in source.plan().splits["train"]])
    assert np.array_equal(array[:], frames)
    shutil.copytree(tmp_path / "s/train/frames", tmp_path / "again")
    shutil.rmtree(tmp_path / "again/c")
    zarr.open_array(tmp_path / "again", mode="r+", config={"write_empty_chunks": True})[:] = frames
    assert tree(tmp_path / "again") == tree(tmp_path / "s/train/frames")
    assert len(list((tmp_path / "again/c").iterdir())) == 3


@pytest.mark.parametrize(("name", "tool"), [("zstd", "zstd"), ("lz4", "lz4")])
def test_the_usual_tools_unpack_members(tmp_path, name, tool):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    source = Clips()
    make_store(tmp_path / "s", "webdataset", source, encoding=name)
    with tarfile.open(tmp_path / "s/train/000000.tar") as tar:
        member = next(m for m in tar if m.name == f"train-0001.frames.npy{encoding.SUFFIXES[name]}")
        packed = tar.extractfile(member).read()
    done = subprocess.run([tool, "-dc"], input=packed, capture_output=True, check=True)
    assert np.array_equal(np.load(io.BytesIO(done.stdout)), source.frames(source.plan().splits["train"][1]))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files to the garbage collector
@pytest.mark.parametrize("name", ENCODINGS)
def test_plain_webdataset_reads_it_with_our_decoder(tmp_path, name):
    source = Clips()
    make_store(tmp_path / "s", "webdataset", source, encoding=name)
    samples = list(webdataset.WebDataset(str(tmp_path / "s/train/000000.tar"), shardshuffle=False).decode(decode_npy))
    assert [sample["__key__"] for sample in samples] == ["train-0000", "train-0001", "train-0002"]
    for sample, event in zip(samples, source.plan().splits["train"], strict=True):
        assert np.array_equal(sample["frames.npy" + encoding.SUFFIXES[name]], source.frames(event))


def npy(value: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=True)
    return buffer.getvalue()


def test_the_decoder_for_webdataset_refuses_pickles_and_bombs():
    with pytest.raises(ValueError, match="allow_pickle=False"):
        decode_npy(".frames.npy.zst", encode("zstd", npy(np.array([{}], dtype=object))))
    huge = bytearray(encode("lz4", bytes(100)))
    descriptor = struct.pack("<BBQ", 0x68, 0x70, 1 << 40)
    huge[4:15] = descriptor + bytes([encoding._lz4_check(descriptor)])
    with pytest.raises(ValueError, match="more than 2147483648"):
        decode_npy(".frames.npy.lz4", bytes(huge))
    assert decode_npy(".frames.npy", b"") is None and decode_npy(".json", b"{}") is None


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("kind", ["bomb", "shape", "pickle", "garbage"])
def test_a_hostile_member_in_a_consistent_store(tmp_path, name, kind):
    """Whoever made this store also made its indexes and digests to match."""
    source = Clips()
    make_store(tmp_path / "s", "webdataset", source, encoding=name)
    frames = source.frames(source.plan().splits["train"][1])
    payload = {
        "bomb": npy(np.zeros((4000, *frames.shape[1:]), np.uint8)),
        "shape": npy(frames.transpose(0, 1, 3, 2)),
        "pickle": npy(np.array([{"x": 1}] * 9, dtype=object)),
        "garbage": b"",
    }[kind]
    packed = encode(name, payload) if payload else b"garbage" * 9
    rewrite_store(tmp_path / "s", "train-0001" + ".frames.npy" + encoding.SUFFIXES[name], packed)
    store = open_store(tmp_path / "s")
    with pytest.raises(StoreError, match="train-0001 at byte") as caught:
        store.read("train", 1, 0, 2)
    assert (caught.value.shard, caught.value.key) == ("train/000000.tar", "train-0001")
    assert caught.value.offset == store.locate("train", 1)[1]
    assert any(problem.key == "train-0001" for problem in verify(tmp_path / "s"))
    assert store.read("train", 0, 0, 5).shape[0] == 5

"""Arrays as other toolkits save them: layouts, values that are never rounded away in silence, damaged headers."""

import pickle
import zipfile

import numpy as np
import pytest

from shards import SourceError, UsageError, open_store
from shards.cli import main
from shards.sources import hdf
from shards.sources.layouts import frames_of, guess_layout, parse_layout
from shards.verify import verify
from tests.support.archives import build

ALL = ("--val-fraction", "0", "--test-fraction", "0")


def frames(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def read_all(source, split: str = "train") -> list[np.ndarray]:
    return [source.read(event).frames for event in source.plan().splits[split]]


@pytest.mark.parametrize("layout", ["nthw", "tnhw", "ntchw", "nthwc", "tnchw", "nhwt", "hwtn", "cnthw"])
@pytest.mark.parametrize("suffix", ["npy", "npz", "h5"])
def test_any_layout_that_is_said(tmp_path, layout, suffix):
    sides = {"n": 7, "t": 5, "c": 2, "h": 6, "w": 9}
    whole = frames(7, 5, 2 if "c" in layout else 1, 6, 9)
    order = ["ntchw".index(letter) for letter in layout]
    given = whole.transpose(*order, *([2] if "c" not in layout else []))
    given = given[..., 0] if "c" not in layout else given
    assert given.shape == tuple(sides[letter] for letter in layout)
    if suffix == "npy":
        np.save(tmp_path / "a.npy", given)
    elif suffix == "npz":
        np.savez_compressed(tmp_path / "a.npz", data=given)
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("group/data", data=given, compression="gzip")
    source = build("arrays", tmp_path, "--layout", layout, *ALL)
    assert source.describe().frames.shape == whole.shape[2:]
    assert [np.array_equal(one, two) for one, two in zip(read_all(source), whole, strict=True)] == [True] * 7
    pickle.loads(pickle.dumps(source))


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((20, 10000, 64, 64), "tnhw"),
        ((10000, 20, 64, 64), "nthw"),
        ((10000, 20, 1, 64, 64), "ntchw"),
        ((500, 20, 64, 64, 3), "nthwc"),
        ((20, 500, 2, 32, 32), "tnchw"),
        ((300, 64, 64), "thw"),
        ((300, 3, 64, 64), "tchw"),
        ((300, 64, 64, 3), "thwc"),
        ((6, 53, 64, 64), None),
        ((53, 6, 64, 64), None),
        ((64, 64, 49), None),
        ((64, 48, 3), None),
        ((5, 3, 4, 3), None),
        ((100, 8, 9, 64, 64), None),
        ((100, 8, 3, 64, 3), None),
        ((64, 64), None),
        ((1, 20, 64, 64), "nthw"),  # no sequence has a single frame
        ((1, 20, 1, 64, 64), "ntchw"),
        ((20, 1, 1, 64, 64), "tnchw"),
        ((2, 2, 2, 2, 2, 2), None),
    ],
)
def test_a_layout_is_guessed_only_where_one_is_plausible(shape, layout):
    if layout is None:
        with pytest.raises(SourceError, match="say --layout"):
            guess_layout("a.npy", shape)
    else:
        assert guess_layout("a.npy", shape) == layout


def test_what_is_to_be_said_of_five_axes_has_five_letters():
    with pytest.raises(SourceError, match="can be read as ntchw or tnchw or nthwc or tnhwc; say --layout ntchw or"):
        guess_layout("a.npy", (12, 8, 3, 64, 3))


def test_complex_numbers_are_named(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 8, 8), np.complex64))
    with pytest.raises(SourceError, match=r"no array of real numbers with 3 to 5 axes in 1 file; arrays: .* complex64"):
        build("arrays", tmp_path)


@pytest.mark.parametrize("text", ["", "nthh", "nth", "ntwh", "xthw", "t h w", "nthwcc"])
def test_layouts_that_are_none(text):
    with pytest.raises(Exception, match="letters for the axes"):
        parse_layout(text)


def test_six_videos_of_fifty_three_frames(tmp_path, capsys):
    whole = frames(6, 53, 8, 8)
    np.save(tmp_path / "a.npy", whole)
    arguments = ["convert", "arrays", str(tmp_path / "a.npy"), str(tmp_path / "out")]
    assert main(arguments) == 5
    assert "can be read as nthw or tnhw; say --layout nthw" in capsys.readouterr().err
    assert main([*arguments, "--layout", "nthw"]) == 0
    store = open_store(tmp_path / "out")
    assert {split: info.events for split, info in store.splits.items()} == {"train": 4, "val": 1, "test": 1}
    met = {
        store.metadata(split, event.index)["details"]["index"]
        for split in store.splits
        for event in store.events(split)
    }
    assert met == set(range(6)) and not verify(tmp_path / "out")


def test_a_file_a_sequence(tmp_path):
    for i in range(4):
        (tmp_path / "train").mkdir(exist_ok=True)
        np.save(tmp_path / f"train/{i}.npy", frames(30 + i, 8, 8))
    source = build("arrays", tmp_path)
    assert [event.length for event in source.plan().splits["train"]] == [30, 31, 32, 33]
    assert "layout thw (30 frames, 8 rows, 8 columns), by its shape" in "; ".join(source.plan().notes)


def test_one_long_array_is_divided_in_time(tmp_path):
    np.save(tmp_path / "a.npy", frames(500, 8, 8))
    splits = build("arrays", tmp_path).plan().splits
    assert {split: sum(event.length for event in part) for split, part in splits.items()} == {
        "train": 368,
        "val": 46,
        "test": 46,
    }


@pytest.mark.parametrize("suffix", ["npz", "h5"])
def test_inputs_and_targets_are_joined_in_time(tmp_path, suffix):
    x, y, x2, y2 = frames(40, 4, 2, 8, 8), frames(40, 6, 2, 8, 8), frames(9, 4, 2, 8, 8), frames(9, 6, 2, 8, 8)
    arrays = {"X_train": x, "Y_train": y, "X_test": x2, "Y_test": y2, "max_min": np.array([0.0, 1.0])}
    if suffix == "npz":
        np.savez(tmp_path / "dataset.npz", **arrays)
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(tmp_path / "dataset.h5", "w") as file:
            for key, value in arrays.items():
                file[key] = value
    source = build("arrays", tmp_path)
    plan = source.plan()
    assert {split: len(part) for split, part in plan.splits.items()} == {"train": 40, "test": 9}
    assert np.array_equal(np.array(read_all(source)), np.concatenate([x, y], axis=1))
    assert np.array_equal(np.array(read_all(source, "test")), np.concatenate([x2, y2], axis=1))
    said = "; ".join(plan.notes)
    assert "joined in time with 6 frames of Y_train" in said and "1 other array skipped" in said
    cut = build("arrays", tmp_path, "--event-frames", "3").plan().splits["test"]
    assert [(e.length, e.run_offset) for e in cut[:4]] == [(3, 0), (3, 3), (3, 6), (1, 9)]
    assert np.array_equal(source.read(cut[1]).frames, np.concatenate([x2, y2], axis=1)[0, 3:6])


def test_pairs_that_do_not_fit(tmp_path):
    np.savez(tmp_path / "a.npz", X=frames(40, 4, 1, 8, 8), Y=frames(39, 4, 1, 8, 8))
    with pytest.raises(SourceError, match="can't be joined in time"):
        build("arrays", tmp_path)
    only = build("arrays", tmp_path, "--key", "X", "--layout", "ntchw", *ALL)
    assert len(read_all(only)) == 40
    with pytest.raises(SourceError, match="no array of real numbers named Z"):
        build("arrays", tmp_path, "--key", "Z")


def test_clips_are_named_as_what_they_are(tmp_path):
    np.savez(tmp_path / "a.npz", clips=np.zeros((2, 3, 2)), input_raw_data=frames(30, 1, 8, 8))
    with pytest.raises(SourceError, match="convert moving-mnist-file"):
        build("arrays", tmp_path)


# --- values


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([0.0, 1.02], (), r"from 0 to 1.02: neither all of 0..1 nor whole numbers"),
        ([-1.0, 1.0], (), r"from -1 to 1: neither"),
        ([0.0, 1.0000001], (), r"from 0 to 1.0000001\d*: neither .* such as --range=0,1.0000001"),
        ([0.0, 300.5], (), "neither"),
        ([0.0, np.inf], (), "1 of 160 numbers are infinite"),
        ([0.0, np.inf], ("--range", "0,1"), "1 of 160 numbers are infinite"),
    ],
)
def test_floats_without_a_range_of_their_own_are_refused(tmp_path, values, options, message):
    array = np.full((40, 2, 2), values[0], np.float32)
    array[5, 0, 0] = values[1]
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(SourceError, match=message):
        build("arrays", tmp_path, *options)


@pytest.mark.parametrize("dtype", ["uint8", "int64", ">u2"])
def test_zeros_and_ones_that_are_whole_numbers_are_reported(tmp_path, dtype):
    array = (np.arange(40 * 64).reshape(40, 8, 8) % 2).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    assert "pass --range=0,1 if 1 is the greatest value" in "; ".join(build("arrays", tmp_path, *ALL).plan().notes)
    ranged = build("arrays", tmp_path, "--range=0,1", *ALL)
    assert "--range" not in "; ".join(ranged.plan().notes)
    assert np.array_equal(np.concatenate(read_all(ranged))[:, 0], 255 * array)
    array[3, 2, 1] = 2
    np.save(tmp_path / "a.npy", array)
    assert "--range" not in "; ".join(build("arrays", tmp_path, *ALL).plan().notes)


def test_what_is_clipped_and_rounded_is_counted(tmp_path, capsys):
    array = np.linspace(0, 1, 40 * 4, dtype=np.float32).reshape(40, 2, 2)
    array[5, 0, 0], array[6, 0, 0], array[7, 0, 0] = 1.02, 1.5, -0.2
    np.save(tmp_path / "a.npy", array)
    out = tmp_path / "out"
    assert main(["convert", "arrays", str(tmp_path / "a.npy"), str(out), "--range=0,1", *ALL]) == 0
    said = capsys.readouterr().err
    assert "from -0.2 to 1.5: 1 below 0 and 2 above 1 are clipped" in said
    assert "values 0..1 are rounded to steps of 0.00392" in said
    store = open_store(out)
    back = store.manifest.scale.to_physical(store.read("train", 0, 0, 40))
    assert np.abs(back[:, 0] - np.clip(array, 0, 1)).max() <= 0.5 / 255 + 1e-6


def test_not_a_number_is_missing(tmp_path):
    array = np.zeros((40, 2, 2), np.float32)
    array[3, 1, 1], array[4] = np.nan, 0.5
    np.save(tmp_path / "a.npy", array)
    source = build("arrays", tmp_path, *ALL)
    (event,) = source.plan().splits["train"]
    scale, codes = source.describe().scale, source.read(event).frames
    assert (
        (scale.missing_code, scale.max_code) == (255, 254)
        and int((codes == 255).sum()) == 1
        and codes[4, 0, 0, 0] == 127
    )
    assert "1 of 160 numbers are NaN: missing (code 255)" in "; ".join(source.plan().notes)
    assert np.array_equal(np.isnan(scale.to_physical(codes)[:, 0]), np.isnan(array))


@pytest.mark.parametrize("dtype", ["uint8", "int64", "uint16", ">i4", "float64", "bool", "float16"])
def test_whole_numbers_are_kept_as_they_are(tmp_path, dtype):
    array = frames(40, 4, 4) if dtype not in ("bool", "float16") else frames(40, 4, 4) % 2
    np.save(tmp_path / "a.npy", array.astype(dtype))
    source = build("arrays", tmp_path, *ALL)
    scale = source.describe().scale
    assert np.allclose(scale.to_physical(read_all(source)[0][:, 0]) * (255 if array.max() > 1 else 1), array)


def test_physical_values(tmp_path):
    array = np.random.default_rng(0).uniform(-10, 60, (40, 4, 4)).astype(np.float32)
    np.save(tmp_path / "a.npy", array)
    source = build("arrays", tmp_path, "--range=-10,60", "--unit", "dBZ", "--quantity", "radar reflectivity", *ALL)
    scale = source.describe().scale
    assert (scale.quantity, scale.unit) == ("radar reflectivity", "dBZ")
    assert np.abs(scale.to_physical(read_all(source)[0][:, 0]) - array).max() <= 70 / 255 / 2 + 1e-5


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_a_range_of_0_to_255_that_was_asked_for_is_in_its_unit(tmp_path, dtype):
    array = frames(40, 4, 4).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    source = build("arrays", tmp_path, "--range=0,255", "--unit", "K", *ALL)
    scale = source.describe().scale
    assert scale.unit == "K" and np.array_equal(scale.to_physical(read_all(source)[0][:, 0]), array)
    with pytest.raises(UsageError, match=r"--unit K: .* --range=0,255"):
        build("arrays", tmp_path, "--unit", "K", *ALL)


def test_whole_numbers_mean_the_same_with_and_without_a_missing_one(tmp_path):
    array = frames(40, 4, 4).astype(np.float32) % 255
    array[0, 0, 0] = 254
    np.save(tmp_path / "a.npy", array)
    whole = build("arrays", tmp_path, *ALL)
    array[3, 1, 1] = np.nan
    np.save(tmp_path / "a.npy", array)
    source = build("arrays", tmp_path, *ALL)
    values = [one.describe().scale.to_physical(read_all(one)[0][:, 0]) for one in (whole, source)]
    assert np.allclose(values[1] * 255, array, equal_nan=True)
    values[0][3, 1, 1] = np.nan
    assert np.allclose(*values, equal_nan=True)


def test_files_of_two_ranges(tmp_path):
    np.save(tmp_path / "a.npy", np.full((40, 2, 2), 0.5))
    np.save(tmp_path / "b.npy", np.full((40, 2, 2), 200.0))
    with pytest.raises(SourceError, match="values of several ranges"):
        build("arrays", tmp_path)


# --- files that do harm


def npy_with(header: bytes, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


HEADERS = [
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 64, 64)}" % (1 << 62),
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 64, 64)}",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (1e9, 64, 64)}",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (9" + b"9" * 400 + b", 1, 1)}",
    b"{'descr': '|O', 'fortran_order': False, 'shape': (9, 1, 1)}",
    b"{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (9, 1, 1)}",
    b"{'descr': '|V99999999999', 'fortran_order': False, 'shape': (9, 1, 1)}",
    b"{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (0, 4, 4)}",
    b"__import__('os').system('touch ran')",
    b"(" * 5000,
    b"\xff" * 90,
    b"",
    b"{" + b"'a':1," * 3000 + b"}",
]


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("name", ["arrays", "moving-mnist-file"])
def test_headers_that_do_harm(tmp_path, monkeypatch, header, suffix, name):
    monkeypatch.chdir(tmp_path)
    if suffix == "npy":
        (tmp_path / "a.npy").write_bytes(npy_with(header, b"x" * 16))
    else:
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("input_raw_data.npy" if name != "arrays" else "x.npy", npy_with(header, b"x" * 16))
            archive.writestr("clips.npy", npy_with(header, b"x" * 16))
    with pytest.raises(SourceError):
        build(name, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_bomb_in_an_npz(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.sources.array_files.LARGEST", 1 << 20)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((600, 64, 64), np.uint8))
    with pytest.raises(SourceError, match=r"at most 1048576 are unpacked at once; save it as .npy"):
        build("arrays", tmp_path)


def h5(path):
    h5py = pytest.importorskip("h5py")
    return h5py, h5py.File(path, "w")


def test_numbers_in_other_files_are_not_read(tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"secret" * 1000)
    for kind in ("external storage", "external link", "virtual", "soft link to an external one"):
        folder = tmp_path / kind.replace(" ", "-")
        folder.mkdir()
        h5py, file = h5(folder / "a.h5")
        with file:
            if kind == "external storage":
                file.create_dataset("data", (30, 8, 8), "u1", external=[(str(secret), 0, 1920)])
            elif kind == "virtual":
                with h5py.File(tmp_path / "other.h5", "w") as other:
                    other["x"] = frames(30, 8, 8)
                layout = h5py.VirtualLayout((30, 8, 8), "u1")
                layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (30, 8, 8))
                file.create_virtual_dataset("data", layout)
            else:
                file["out" if "soft" in kind else "data"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "x")
                if "soft" in kind:
                    file["data"] = h5py.SoftLink("/out")
        with pytest.raises(SourceError, match=r"another file|no array of real numbers named data"):
            build("arrays", folder, "--key", "data")
        with pytest.raises(SourceError, match="another file"), hdf.opened(folder / "a.h5", "x") as opened:
            hdf.dataset(opened, "data")


@pytest.mark.parametrize("target", ["/data", "/gone", "./data", "/a/b/c"])
def test_links_that_lead_nowhere_or_in_circles(tmp_path, target):
    h5py, file = h5(tmp_path / "a.h5")
    with file:
        file["data"] = h5py.SoftLink(target)
    with pytest.raises(SourceError, match=r"circle|no dataset data"), hdf.opened(tmp_path / "a.h5", "x") as opened:
        hdf.dataset(opened, "data")
    with pytest.raises(SourceError):
        build("arrays", tmp_path)


def test_a_dataset_of_two_to_the_sixty_two_pixels(tmp_path):
    _, file = h5(tmp_path / "a.h5")
    with file:
        file.create_dataset("data", (1 << 30, 1 << 16, 1 << 16), "u1", chunks=(1, 64, 64))
    with pytest.raises(SourceError, match="claims"):
        build("arrays", tmp_path, "--layout", "thw")


def test_damaged_hdf5(tmp_path):
    _, file = h5(tmp_path / "good.h5")
    with file:
        file.create_dataset("data", data=frames(30, 16, 16), chunks=(1, 16, 16), compression="gzip")
    data = (tmp_path / "good.h5").read_bytes()
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    told = 0
    for _ in range(120):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 8):
            broken[at] = int(rng.integers(256))
        (tmp_path / "in/a.h5").write_bytes(broken[: int(rng.integers(len(data) // 2, len(data) + 1))])
        try:
            source = build("arrays", tmp_path / "in", *ALL)
            for event in source.plan().splits["train"]:
                source.read(event)
        except SourceError:
            told += 1
    assert told > 60


@pytest.mark.parametrize("place", [b"da\xffta", b"group/da\xffta"])
def test_a_name_in_hdf5_that_is_not_utf_8(tmp_path, place):
    _, file = h5(tmp_path / "a.h5")
    with file:
        file.create_dataset(place, data=frames(30, 16, 16))
    with pytest.raises(SourceError, match=r"a\.h5: the name b'.*\\xff.*' isn't UTF-8"):
        build("arrays", tmp_path, *ALL)


def test_frames_of_reads_only_what_is_asked():
    array = frames(5, 9, 4, 4)
    assert np.array_equal(frames_of(array, "nthw", 2, 3, 6)[:, 0], array[2, 3:6])

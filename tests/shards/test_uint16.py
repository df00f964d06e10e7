"""Codes of 16 bits: what goes in comes out, of every kind of archive and in both formats; uint8 stays what it was."""

import dataclasses
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from shards import ManifestError, Scale, SourceError, UsageError, decode_npy, open_store, stream_events
from shards.cli import main
from shards.colours import code_colours, palette, upper_bits
from shards.manifest import FrameSpec, Manifest
from shards.plain import from_plain, to_plain
from shards.recent import open_archive
from shards.repack import repack
from shards.sources.cf_layout import opened
from shards.sources.radar import READERS
from shards.sources.radar_readers import DBZ, FINE_DBZ, own_scale
from tests.support import archives
from tests.support.archives import radar_times
from tests.support.radar_files import dbz, wet, write_geotiff, write_odim

ALL_TRAIN = ("--val-fraction", "0", "--test-fraction", "0")
WIDE = ("--dtype", "uint16")


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 65536, shape, dtype=np.uint16)


def convert(source, path, output, *options):
    """The store that a command makes, verified."""
    assert main(["convert", source, str(path), str(output), *ALL_TRAIN, *map(str, options)]) == 0
    assert main(["verify", str(output)]) == 0
    return open_store(output)


def frames_of(store) -> np.ndarray:
    return np.concatenate([store.read("train", event.index, 0, event.length) for event in store.events("train")])


@pytest.mark.parametrize("encoding", ["raw", "zstd", "lz4"])
@pytest.mark.parametrize("format", ["webdataset", "zarr"])
def test_a_round_trip_is_exact(tmp_path, format, encoding):
    array = noise(3, 7, 12, 10)
    np.save(tmp_path / "a.npy", array)
    layout = ("--layout", "nthw", "--format", format, "--encoding", encoding, "--shard-mb", "0.003")
    store = convert("arrays", tmp_path / "a.npy", tmp_path / "s", *layout, *WIDE)
    manifest = store.manifest
    assert manifest.frames == FrameSpec(1, 12, 10, "uint16") and manifest.frames.bytes == 240
    assert manifest.conversion["dtype"] == "uint16"
    assert manifest.scale == Scale("intensity", "1", 0.0, 1 / 65535, 65535)
    assert len(manifest.splits["train"].shards) == 3
    for event in store.events("train"):
        found = store.read("train", event.index, 2, 6)
        assert found.dtype == np.uint16 and found.flags.owndata and found.flags.writeable
        assert np.array_equal(found[:, 0], array[event.index, 2:6])
    for event, frames in stream_events(store, "train"):
        assert frames.dtype == np.uint16 and np.array_equal(frames[:, 0], array[event.index])
    other = "zarr" if format == "webdataset" else "webdataset"
    repack(tmp_path / "s", tmp_path / "other", format=other)
    assert np.array_equal(frames_of(open_store(tmp_path / "other")), frames_of(store))
    repack(tmp_path / "other", tmp_path / "back", format=format)
    assert open_store(tmp_path / "back").manifest.digest == manifest.digest


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("encoding", ["raw", "zstd", "lz4"])
def test_other_programs_read_it(tmp_path, encoding):
    import webdataset

    array = noise(2, 5, 8, 8)
    np.save(tmp_path / "a.npy", array)
    layout = ("--layout", "nthw", "--encoding", encoding)
    convert("arrays", tmp_path / "a.npy", tmp_path / "tar", *layout, *WIDE)
    tar = tmp_path / "tar/train/000000.tar"
    samples = list(webdataset.WebDataset(str(tar), shardshuffle=False).decode(decode_npy))
    suffix = "frames.npy" + {"raw": "", "zstd": ".zst", "lz4": ".lz4"}[encoding]
    assert np.array_equal(np.stack([sample[suffix][:, 0] for sample in samples]), array)
    if encoding == "raw":
        with tarfile.open(tar) as members:
            first = members.extractfile(members.getmembers()[0])
            assert np.array_equal(np.load(io.BytesIO(first.read()))[:, 0], array[0])
    zarr, xarray = pytest.importorskip("zarr"), pytest.importorskip("xarray")
    convert("arrays", tmp_path / "a.npy", tmp_path / "zarr", *layout, *WIDE, "--format", "zarr")
    stored = zarr.open_array(tmp_path / "zarr/train/frames", mode="r")
    assert stored.dtype == np.uint16 and np.array_equal(stored[:, 0], array.reshape(-1, 8, 8))
    values = xarray.open_zarr(tmp_path / "zarr", group="train", consolidated=False)["frames"].values
    assert np.allclose(values[:, 0], array.reshape(-1, 8, 8) / 65535, atol=1e-7)


@pytest.mark.parametrize("options", [(), ("--dtype", "uint8")])
def test_a_store_of_uint8_has_the_digest_that_it_had_before_uint16(tmp_path, options, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the manifest keeps paths as they were typed
    (tmp_path / "in").mkdir()
    np.save("in/a.npy", (np.arange(2 * 5 * 8 * 9).reshape(2, 5, 8, 9) * 7 % 256).astype(np.uint8))
    command = ["convert", "arrays", "in", "webdataset-raw", "--layout", "nthw", "--format", "webdataset"]
    splits = ["--val-fraction", "0", "--test-fraction", "0.5"]
    assert main([*command, "--encoding", "raw", *splits, *options]) == 0
    store = open_store("webdataset-raw")
    assert store.manifest.digest == "adfe8bbe8078aed97585733338a1cfbd71795a0b21559e0a3d2082f93354ef69"
    assert "dtype" not in store.manifest.conversion and store.manifest.frames.dtype == "uint8"
    assert store.read("train", 0, 0, 1).dtype == np.uint8


def test_uint8_and_uint16_are_two_stores(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 5, 8, 8), np.uint8))
    convert("arrays", tmp_path / "a.npy", tmp_path / "s", "--layout", "nthw")
    command = ["convert", "arrays", str(tmp_path / "a.npy"), str(tmp_path / "s"), *ALL_TRAIN, "--layout", "nthw"]
    assert main([*command, *WIDE]) == UsageError.exit_code
    assert main(command) == 0


def test_a_manifest_keeps_to_its_type():
    spec, scale = FrameSpec(1, 4, 4, "uint16"), Scale("x", "K", 180.0, 0.01, 20000, 65535)
    from shards.manifest import SourceInfo

    manifest = Manifest("zarr", "x", spec, None, scale, {}, (), SourceInfo("", "", "", ""), {})
    assert Manifest.from_json(manifest.to_json()) == manifest
    for wrong in (
        dataclasses.replace(manifest, frames=FrameSpec(1, 4, 4)),
        dataclasses.replace(manifest, frames=FrameSpec(1, 4, 4, "uint32")),
        dataclasses.replace(manifest, frames=FrameSpec(1, 4, 4, "float16")),
        dataclasses.replace(manifest, scale=dataclasses.replace(scale, missing_code=65536)),
        dataclasses.replace(manifest, scale=dataclasses.replace(scale, max_code=65536)),
    ):
        text = json.dumps({**json.loads(json.dumps(dataclasses.asdict(wrong))), "digest": ""})
        with pytest.raises(ManifestError):
            Manifest.from_json(text, sealed=False)


def test_values_of_codes_and_back():
    scale = Scale("temperature", "K", 180.0, 0.002, 65534, 65535)
    codes = np.arange(65536, dtype=np.uint16)
    values = scale.to_physical(codes)
    assert np.isnan(values[65535]) and not np.isnan(values[:65535]).any()
    back = scale.to_code(values)
    assert back.dtype == np.uint16 and np.array_equal(back, codes)
    assert scale.normalise(codes)[65534] == 1 and scale.normalise(codes)[65535] == 0
    mapped = dataclasses.replace(scale, offset=0.0, gain=254 / 65532, max_code=65532, mapping="sevir-vil")
    assert np.array_equal(mapped.to_code(mapped.to_physical(codes[2000:65533:997])), codes[2000:65533:997])


def test_colours_of_65536_codes():
    codes = np.arange(65533, dtype=np.uint16)
    assert np.array_equal(code_colours(FINE_DBZ)[258 * np.arange(255)], code_colours(DBZ)[:255])
    for scale in (FINE_DBZ, Scale("temperature", "K", 180.0, 0.002, 65534, 65535)):
        colours, places = palette(scale)
        assert len(colours) <= 256 and np.array_equal(colours[places], code_colours(scale))
        assert colours[places[65535]].tolist() == [0xC4] * 3
    assert upper_bits(codes[[0, 255, 256, 65532]]).tolist() == [0, 0, 1, 255]


# Arrays


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
def test_arrays_of_uint16_stay_as_they_are(tmp_path, suffix):
    array, path = noise(2, 6, 8, 8), tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    elif suffix == ".npz":
        np.savez(path, data=array)
    else:
        import h5py

        with h5py.File(path, "w") as file:
            file["data"] = array.astype(">u2")
    store = convert("arrays", path, tmp_path / "s", "--layout", "nthw", *WIDE)
    assert np.array_equal(frames_of(store)[:, 0], array.reshape(-1, 8, 8))


def test_floats_in_a_range_are_rounded_to_half_a_code_and_nan_is_missing(tmp_path, capsys):
    values = np.random.default_rng(0).uniform(180, 320, (2, 6, 8, 8))
    values[0, 0, 0, :3] = np.nan
    np.save(tmp_path / "a.npy", values)
    options = ("--layout", "nthw", "--range", "180,320", "--quantity", "temperature", "--unit", "K")
    store = convert("arrays", tmp_path / "a.npy", tmp_path / "s", *options, *WIDE)
    assert "3 of 768 numbers are NaN: missing (code 65535)" in capsys.readouterr().err
    assert store.manifest.scale == Scale("temperature", "K", 180.0, 140 / 65534, 65534, 65535)
    found = store.manifest.scale.to_physical(frames_of(store))[:, 0].reshape(values.shape)
    assert np.array_equal(np.isnan(found), np.isnan(values))
    assert np.nanmax(np.abs(found - values)) <= 140 / 65534 / 2 + 2e-5  # float32 of 320 K
    assert store.manifest.splits["train"].missing == pytest.approx(3 / 768, abs=1e-6)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.arange(256).astype(np.uint8), np.arange(256) * 257),
        (np.array([0, 1000, 40000], np.int32), np.array([0, 1000, 40000])),
        (np.array([0.0, 0.5, 1.0], np.float32), np.array([0, 32768, 65535])),
    ],
)
def test_numbers_that_say_what_they_are(tmp_path, values, expected):
    array = np.resize(values, (1, 4, 16, 16))
    np.save(tmp_path / "a.npy", array)
    store = convert("arrays", tmp_path / "a.npy", tmp_path / "s", "--layout", "nthw", *WIDE)
    assert np.array_equal(frames_of(store).ravel(), np.resize(expected, 1024))
    low, high = store.manifest.scale.to_physical(np.array([0, 65535], np.uint16))
    assert (low, high) == (0, pytest.approx(1))


def test_without_the_option_uint16_is_told_of_it(tmp_path, capsys):
    np.save(tmp_path / "a.npy", noise(2, 6, 8, 8))
    command = ["convert", "arrays", str(tmp_path / "a.npy"), str(tmp_path / "s"), "--layout", "nthw"]
    assert main(command) == SourceError.exit_code
    assert "--dtype uint16" in capsys.readouterr().err


def test_resized_frames_keep_their_precision(tmp_path):
    array = np.repeat(np.repeat(noise(1, 4, 6, 6), 2, axis=2), 2, axis=3)
    np.save(tmp_path / "a.npy", array)
    store = convert("arrays", tmp_path / "a.npy", tmp_path / "s", "--layout", "nthw", "--size", "6", *WIDE)
    assert np.array_equal(frames_of(store)[:, 0], array[0, :, ::2, ::2])


# Images


def test_grey_png_and_tiff_of_16_bits(tmp_path, capsys):
    frames = noise(6, 16, 12)
    for i, frame in enumerate(frames):
        for suffix in ("png", "tif"):
            archives.save(tmp_path / suffix / f"clip/{i}.{suffix}", frame)
    for suffix in ("png", "tif"):
        assert main(["convert", "images", str(tmp_path / suffix), str(tmp_path / "no")]) == SourceError.exit_code
        said = capsys.readouterr().err
        assert f"0.{suffix}: more than 8 bits" in said and "--dtype uint16" in said
        store = convert("images", tmp_path / suffix, tmp_path / f"s-{suffix}", *WIDE)
        assert store.manifest.frames == FrameSpec(1, 16, 12, "uint16")
        assert np.array_equal(frames_of(store)[:, 0], frames)


def test_a_stack_of_16_bits(tmp_path):
    frames = noise(5, 16, 12)
    pages = [Image.fromarray(frame) for frame in frames]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    store = convert("images", tmp_path / "stack.tif", tmp_path / "s", *WIDE)
    assert np.array_equal(frames_of(store)[:, 0], frames)


def write_bands(path, bands: np.ndarray) -> None:
    """An image of bands [count, height, width] by GDAL: Pillow writes no colours of 16 bits."""
    rasterio = pytest.importorskip("rasterio")
    path.parent.mkdir(parents=True, exist_ok=True)
    driver = {".png": "PNG", ".tif": "GTiff"}[path.suffix]
    more = {"photometric": "RGB"} if driver == "GTiff" and len(bands) > 2 else {}
    with rasterio.open(
        path, "w", driver=driver, width=bands.shape[2], height=bands.shape[1], count=len(bands), dtype="uint16", **more
    ) as file:
        file.write(bands)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_colours_of_16_bits(tmp_path, suffix):
    frames = noise(4, 3, 16, 12)
    for i, frame in enumerate(frames):
        write_bands(tmp_path / f"in/clip/{i}{suffix}", frame)
    assert main(["convert", "images", str(tmp_path / "in"), str(tmp_path / "no")]) == SourceError.exit_code
    store = convert("images", tmp_path / "in", tmp_path / "s", *WIDE)
    assert np.array_equal(frames_of(store), frames)
    grey = convert("images", tmp_path / "in", tmp_path / "grey", "--channels", "grey", *WIDE)
    luma = np.tensordot(frames, [0.299, 0.587, 0.114], (1, 0))
    assert np.abs(frames_of(grey)[:, 0] - luma).max() <= 0.5


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("colours", [1, 3])
def test_transparent_pixels_of_16_bits_are_missing(tmp_path, colours):
    frames = noise(4, colours + 1, 16, 12)
    frames[:, -1] = np.where(frames[:, -1] < 20000, 0, frames[:, -1])
    frames[:, :-1, 0, 0], frames[:, -1, 0, 0] = 65535, 1  # all but transparent: a value, the one below the missing code
    for i, frame in enumerate(frames):
        write_bands(tmp_path / f"in/clip/{i}.png", frame)
    store = convert("images", tmp_path / "in", tmp_path / "s", *WIDE)
    assert (store.manifest.scale.max_code, store.manifest.scale.missing_code) == (65534, 65535)
    expected = np.where(frames[:, -1:] == 0, 65535, np.minimum(frames[:, :-1], 65534))
    assert np.array_equal(frames_of(store), expected)


def test_images_of_8_bits_among_those_of_16(tmp_path):
    deep, bytes_ = noise(16, 16), archives.numbered(7)
    archives.save(tmp_path / "in/clip/0.png", deep)
    archives.save(tmp_path / "in/clip/1.png", bytes_)
    store = convert("images", tmp_path / "in", tmp_path / "s", *WIDE)
    assert np.array_equal(frames_of(store)[:, 0], [deep, bytes_.astype(np.uint16) * 257])


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_images_whose_numbers_are_no_brightness_are_refused(tmp_path, dtype, capsys):
    for i in range(3):
        archives.save(tmp_path / f"in/clip/{i}.tif", np.full((16, 16), 7, dtype))
    assert main(["convert", "images", str(tmp_path / "in"), str(tmp_path / "s"), *WIDE]) == SourceError.exit_code
    assert "convert arrays --range" in capsys.readouterr().err


# Radar


def test_finer_readers_are_handed_to_the_jobs_of_a_cluster():
    for name, reader in READERS.items():
        finer = dataclasses.replace(reader, scale=FINE_DBZ)
        assert from_plain(json.loads(json.dumps(to_plain(finer))), "shards") == finer, name


def test_all_values_of_dbz_are_values_of_the_finer_scale():
    codes = np.arange(255, dtype=np.uint8)
    assert np.array_equal(FINE_DBZ.to_code(DBZ.to_physical(codes)), 258 * codes.astype(np.uint16))
    assert np.array_equal(FINE_DBZ.normalise(258 * codes.astype(np.uint16)), DBZ.normalise(codes))


def test_odim_of_uint16_keeps_its_own_codes(tmp_path):
    raw = np.random.default_rng(0).integers(1, 9500, (4, 32, 40)).astype(np.uint16)
    raw[:, 0], raw[:, 1], raw[0, 2, 0] = 65535, 0, 12000  # outside, no echo, above 63.5 dBZ
    field = {"data": raw, "gain": 0.01, "offset": -32.0, "nodata": 65535.0, "undetect": 0.0}
    write_odim(tmp_path / "in", radar_times(4), {"DBZH": field})
    store = convert("radar", tmp_path / "in", tmp_path / "s", *WIDE)
    assert store.manifest.scale == Scale("radar reflectivity", "dBZ", -32.0, 0.01, 9550, 65535)
    assert np.array_equal(frames_of(store)[:, 0], np.where(raw == 12000, 9550, raw))
    assert store.manifest.splits["train"].clipped == pytest.approx(1 / raw.size, abs=1e-6)
    assert store.manifest.splits["train"].missing == pytest.approx(1 / 32)
    archive = open_archive(tmp_path / "in", store.manifest.conversion)  # where a forecast takes its context from
    assert archive.description.scale == store.manifest.scale
    assert np.array_equal(archive.read(archive.frames), frames_of(store))


def test_odim_of_uint8_is_exact_where_its_steps_are_quarters(tmp_path):
    raw = np.random.default_rng(0).integers(64, 190, (4, 32, 40)).astype(np.uint8)
    raw[:, 0], raw[:, 1] = 255, 0
    field = {"data": raw, "gain": 0.5, "offset": -32.0, "nodata": 255.0, "undetect": 0.0}
    write_odim(tmp_path / "in", radar_times(4), {"DBZH": field})
    store = convert("radar", tmp_path / "in", tmp_path / "s", *WIDE)
    assert store.manifest.scale == FINE_DBZ
    expected = np.where(raw == 255, np.nan, np.where(raw == 0, 0.0, raw * 0.5 - 32.0))
    assert np.array_equal(store.manifest.scale.to_physical(frames_of(store))[:, 0], expected, equal_nan=True)


def test_geotiff_of_uint16_keeps_its_own_codes(tmp_path):
    pytest.importorskip("rasterio")
    raw = np.random.default_rng(0).integers(0, 9500, (4, 32, 40)).astype(np.uint16)
    raw[:, 0] = 65535
    write_geotiff(tmp_path / "in", radar_times(4), [raw], gain=0.01, offset=-32.0, nodata=65535)
    store = convert("radar", tmp_path / "in", tmp_path / "s", "--reader", "geotiff", *WIDE)
    assert (store.manifest.scale.offset, store.manifest.scale.gain) == (-32.0, 0.01)
    assert np.array_equal(frames_of(store)[:, 0], raw)


def test_numbers_that_are_no_scale_of_their_own():
    wide = np.dtype("u2")
    assert own_scale(np.dtype("u1"), 0.5, -32) is None and own_scale(np.dtype("f4"), 0.5, -32) is None
    assert own_scale(wide, -0.01, 60) is None and own_scale(wide, 1.0, 0.0) is None  # 64 codes: no gain
    assert own_scale(wide, 0.0001, 0.0).max_code == 65534


def test_rain_rates_of_knmi_are_finer(tmp_path):
    raw = np.arange(64 * 64).reshape(64, 64).astype(np.uint16)
    raw[0, :9] = 65535
    archives.write_knmi(tmp_path / "in", radar_times(3), [raw] * 3)
    store = convert("radar", tmp_path / "in", tmp_path / "s", "--crop", "none", *WIDE)
    values, seen = store.manifest.scale.to_physical(frames_of(store))[0, 0], raw != 65535
    assert np.array_equal(np.isnan(values), ~seen)
    assert np.abs(values[seen] - dbz(raw[seen] * 0.01 * 12)).max() <= FINE_DBZ.gain / 2 + 1e-5
    rain = 10 ** ((values[seen].astype(np.float64) - 10 * np.log10(200)) / 16) / 0.12
    inside = (values[seen] > 0) & (values[seen] < 63.5)
    assert np.array_equal(np.rint(rain[inside]), raw[seen][inside])  # every hundredth of a millimetre comes back


def test_grey_radar_images_of_16_bits(tmp_path, capsys):
    frames = noise(4, 16, 16)
    for time, frame in zip(radar_times(4), frames, strict=True):
        archives.save(tmp_path / f"in/radar_{time:%Y%m%d%H%M%S}.png", frame)
    command = ["convert", "radar", str(tmp_path / "in"), str(tmp_path / "no")]
    assert main(command) == SourceError.exit_code
    assert "--dtype uint16 --dbz OFFSET,GAIN" in capsys.readouterr().err
    assert main([*command, *WIDE]) == UsageError.exit_code
    assert "--dbz OFFSET,GAIN" in capsys.readouterr().err
    options = ("--dbz=-32,0.001", "--missing", "65535")
    store = convert("radar", tmp_path / "in", tmp_path / "s", *options, *WIDE)
    assert store.manifest.scale == Scale("radar reflectivity", "dBZ", -32.0, 0.001, 65534, 65535)
    assert np.array_equal(frames_of(store)[:, 0], frames)


def test_tiles_and_no_echo_of_16_bits(tmp_path):
    data = np.clip(wet(4) / 0.01 + 3200, 0, 9550).astype(np.uint16)
    data[:, :8] = 65535
    field = {"data": data, "gain": 0.01, "offset": -32.0, "nodata": 65535.0, "undetect": 0.0}
    write_odim(tmp_path / "in", radar_times(4), {"DBZH": field})
    store = convert("radar", tmp_path / "in", tmp_path / "s", "--tiles", "16", "--no-echo", "zero", *WIDE)
    first = store.read("train", 0, 0, 4)[:, 0]
    assert np.array_equal(first, np.where(data == 65535, 0, data)[:, :16, :16])


# CF


@pytest.fixture(autouse=True)
def _fresh():
    opened.cache_clear()


@pytest.mark.parametrize("name", ["t.nc", "t.zarr"])
def test_a_float_variable_in_a_range(tmp_path, name):
    pytest.importorskip("xarray")
    values = np.random.default_rng(0).uniform(180, 320, (6, 12, 10)).astype(np.float32)
    values[:, 0, 0] = np.nan
    archives.write_cf(tmp_path / name, radar_times(6), values, "K", name="tb")
    store = convert("cf", tmp_path / name, tmp_path / "s", "--range", "180,320", *WIDE)
    assert store.manifest.scale == Scale("tb", "K", 180.0, 140 / 65534, 65534, 65535)
    found = store.manifest.scale.to_physical(frames_of(store))[:, 0]
    assert np.array_equal(np.isnan(found), np.isnan(values))
    assert np.nanmax(np.abs(found - values)) <= 140 / 65534 / 2 + 2e-5


def test_a_packed_variable_keeps_its_own_codes(tmp_path, capsys):
    xarray = pytest.importorskip("xarray")
    packed = np.random.default_rng(0).integers(-32767, 32767, (6, 12, 10)).astype(np.int16)
    packed[:, 0, :3] = -32768, -32767, 32767  # missing, the least, the greatest
    times = np.array(radar_times(6), dtype="datetime64[ns]")
    array = xarray.DataArray(packed, dims=("time", "y", "x"), coords={"time": times, "y": np.arange(12.0)[::-1]})
    array.attrs = {"units": "K", "scale_factor": 0.01, "add_offset": 400.0, "_FillValue": np.int16(-32768)}
    xarray.Dataset({"tb": array}).to_netcdf(tmp_path / "t.nc", engine="h5netcdf")
    assert main(["convert", "cf", str(tmp_path / "t.nc"), str(tmp_path / "no")]) == UsageError.exit_code
    assert "with --dtype uint16" in capsys.readouterr().err
    store = convert("cf", tmp_path / "t.nc", tmp_path / "s", *WIDE)
    scale = store.manifest.scale
    assert (scale.gain, scale.max_code, scale.missing_code) == (0.01, 65534, 65535)
    found = frames_of(store)[:, 0].astype(np.int32)
    assert np.array_equal(np.where(found == 65535, -32768, found - 32767), packed)
    assert scale.offset == pytest.approx(400 - 327.67)


@pytest.mark.parametrize(("kind", "fill"), [(np.uint16, None), (np.uint16, 0), (np.int16, -32768)])
def test_counts_that_are_not_packed_keep_their_own_codes(tmp_path, capsys, kind, fill):
    xarray = pytest.importorskip("xarray")
    least, greatest = np.iinfo(kind).min, np.iinfo(kind).max
    counts = np.random.default_rng(0).integers(least + 1, greatest, (6, 12, 10)).astype(kind)
    counts[0, 0, :2] = greatest if fill is None else fill, greatest - (fill is None)
    times = np.array(radar_times(6), dtype="datetime64[ns]")
    array = xarray.DataArray(counts, dims=("time", "y", "x"), coords={"time": times, "y": np.arange(12.0)[::-1]})
    array.attrs = {"units": "count"} | ({} if fill is None else {"_FillValue": kind(fill)})
    xarray.Dataset({"channel": array}).to_netcdf(tmp_path / "t.nc", engine="h5netcdf")
    assert main(["convert", "cf", str(tmp_path / "t.nc"), str(tmp_path / "no")]) == UsageError.exit_code
    assert "with --dtype uint16" in capsys.readouterr().err
    store = convert("cf", tmp_path / "t.nc", tmp_path / "s", *WIDE)
    assert (store.manifest.scale.gain, store.manifest.scale.missing_code) == (1.0, 65535)
    found = store.manifest.scale.to_physical(frames_of(store))[:, 0]
    assert np.isnan(found[0, 0, 0]) == (fill is not None)
    assert np.array_equal(found.ravel()[1:], counts.ravel()[1:])
    assert bool(store.manifest.splits["train"].clipped) == (fill is None)  # 65535 is missing: 65534 in its place


# Sources of 8 bits


def test_sources_of_8_bits_refuse_it(tmp_path, capsys):
    assert main(["convert", "moving-mnist", str(tmp_path / "s"), *WIDE]) == UsageError.exit_code
    assert "--dtype uint16: the frames of mixed-moving-mnist are uint8" in capsys.readouterr().err
    archives.write_hko7(tmp_path / "hko", radar_times(4, 6))
    assert main(["convert", "hko7", str(tmp_path / "hko"), str(tmp_path / "s"), *WIDE]) == UsageError.exit_code
    assert not (tmp_path / "s").exists()


def test_a_source_of_ones_own_says_its_type(tmp_path):
    text = """\
import numpy as np
from shards.sources import Description, FrameSpec, PlannedEvent, Scale, SourceInfo
DESCRIPTION = Description("mine", FrameSpec(1, 4, 4, "uint16"), None, Scale("x", "K", 0.0, 0.01, 60000, 65535), (),
                          SourceInfo("", "", "", ""))
def events(archive):
    yield "train", PlannedEvent("a", 3)
def read(archive, event):
    return np.full((3, 1, 4, 4), {value}, np.{dtype})
"""
    (tmp_path / "mine.py").write_text(text.format(value=40000, dtype="uint16"))
    command = ["convert", str(tmp_path / "mine.py"), str(tmp_path), str(tmp_path / "s")]
    assert main([*command, "--dtype", "uint8"]) == UsageError.exit_code
    assert main(command) == 0 and main(["info", str(tmp_path / "s")]) == 0
    assert (open_store(tmp_path / "s").read("train", 0, 0, 3) == 40000).all()
    for name, value, dtype in (("above", 60001, "uint16"), ("narrow", 40, "uint8")):
        (tmp_path / f"{name}.py").write_text(text.format(value=value, dtype=dtype))
        assert main(["convert", str(tmp_path / f"{name}.py"), str(tmp_path), str(tmp_path / name)]) == 5


def test_a_damaged_byte_of_16_bits_is_found(tmp_path, capsys):
    for format in ("webdataset", "zarr"):
        np.save(tmp_path / "a.npy", noise(2, 5, 8, 8))
        output = tmp_path / format
        store = convert("arrays", tmp_path / "a.npy", output, "--layout", "nthw", "--format", format, *WIDE)
        file, offset = store.locate("train", 1)
        data = bytearray((output / file).read_bytes())
        data[offset + 33] ^= 1
        (output / file).write_bytes(data)
        assert main(["verify", str(output)]) == 5
        assert main(["info", str(output)]) == 0
        assert "1 x 8 x 8 uint16" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_sheet_and_rates_of_a_store_of_16_bits(tmp_path, capsys):
    np.save(tmp_path / "a.npy", noise(3, 5, 8, 8))
    convert("arrays", tmp_path / "a.npy", tmp_path / "s", "--layout", "nthw", *WIDE)
    assert main(["info", str(tmp_path / "s"), "--sheet", str(tmp_path / "s.png")]) == 0
    capsys.readouterr()
    assert main(["bench", str(tmp_path / "s"), "--seconds", "0.01"]) == 0
    assert "store" in capsys.readouterr().out

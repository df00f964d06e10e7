"""Archives and folders of somebody else's: nothing in them is run, and no other file is opened because one names it."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards import SourceError, UsageError, open_store, part
from shards.cli import main
from shards.part import WORK
from shards.plain import from_plain
from shards.recent import open_archive
from tests.support.archives import radar_times, write_gifs


class Runs:
    """Unpickled, it leaves a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.file),)


# --- what our own jobs are told


def register(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, entry: str) -> None:
    """An installed package that registers a job layer; it comes before the packages that are really installed."""
    folder = tmp_path / "site" / "layers-1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: layers\nVersion: 1\n")
    (folder / "entry_points.txt").write_text(f"[shards.clusters]\n{entry}\n")
    monkeypatch.syspath_prepend(folder.parent)


@pytest.fixture
def by_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Sequence[str]]:
    """`convert --cluster slurm` whose jobs run here, one after the other, as soon as they are submitted."""
    register(monkeypatch, tmp_path, "slurm = some.job_layer")
    commands: list[Sequence[str]] = []

    class Submitted:
        returncode = 0

        def __init__(self, command: Sequence[str], **options: Any) -> None:
            commands.append(command)
            assert options["env"]["PYTHONSAFEPATH"] == "1"  # `-m` would take modules from the working directory first
            *_, folder, sha256, module = command
            for number in range(int(command[command.index("--count") + 1])):
                part.main(Path(folder), sha256, module, number)

        def poll(self) -> int:
            return 0

        def wait(self) -> int:
            return 0

    monkeypatch.setattr("shards.cluster.subprocess.Popen", Submitted)
    return commands


def test_a_job_runs_what_its_submitter_has_left(tmp_path: Path, by_cluster: list[Sequence[str]]) -> None:
    write_gifs(tmp_path / "in", radar_times(20))
    words = ["convert", "radar", str(tmp_path / "in"), str(tmp_path / "out"), "--crop", "none", "--shard-mb", "0.01"]
    assert main([*words, "--cluster", "slurm", "--jobs", "2"]) == 0
    assert by_cluster and by_cluster[0][1:3] == ["-m", "some.job_layer"]
    assert sum(split.frames for split in open_store(tmp_path / "out").splits.values()) == 20


def test_without_a_job_layer_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.cluster.entry_points", lambda group: [])
    write_gifs(tmp_path / "in", radar_times(4))
    words = ["convert", "radar", str(tmp_path / "in"), str(tmp_path / "out"), "--crop", "none", "--cluster", "slurm"]
    assert main(words) == 2
    assert "no installed package registers a job layer" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_job_unpickles_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = pickle.dumps((None, None, [], 1))
    (tmp_path / WORK).write_bytes(pickle.dumps(Runs(tmp_path / "RAN")))
    assert part.main(tmp_path, hashlib.sha256(written).hexdigest(), "shards", 0) == 2
    assert not (tmp_path / "RAN").exists()
    assert "was replaced, and is not run" in capsys.readouterr().err
    assert json.loads((tmp_path / "0.error").read_text())["code"] == 2


@pytest.mark.parametrize(
    "data",
    [
        {"class": "os:mkdir", "fields": {}},
        {"class": "subprocess:Popen", "fields": {"args": "touch ran"}},
        {"class": "shards.sources.custom:_module", "fields": {"file": {"path": "x.py"}}},
        {"class": "shards.writer:os.mkdir", "fields": {}},
        {"class": "shards.nowhere:X", "fields": {}},
        {"class": "shards.writer:ShardJob", "fields": {"x": 1}},
        {"class": 5, "fields": []},
        {"eval": "1"},
        {},
        {"tuple": 5},
    ],
)
def test_work_names_no_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: object) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        from_plain(data, "shards")
    assert list(tmp_path.iterdir()) == []


def partial_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Path]:
    """A conversion, and the name that its unfinished store will have: anybody can find it out beforehand."""
    write_gifs(tmp_path / "in", radar_times(4))
    words = ["convert", "radar", str(tmp_path / "in"), str(tmp_path / "out"), "--crop", "none"]
    seen: list[Path] = []
    with monkeypatch.context() as patch:
        patch.setattr("shards.convert.put_in_place", lambda store, output: seen.append(store.parent) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(words)
    return words, seen[0]


def test_an_unfinished_store_is_for_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, folder = partial_of(tmp_path, monkeypatch)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)  # as an earlier version may have made it
    assert main(words) == 0
    assert (tmp_path / "out").stat().st_mode & 0o755 == 0o755


def test_an_unfinished_store_of_another_user_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, folder = partial_of(tmp_path, monkeypatch)
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a folder away")
    os.chown(folder, 12345, -1)
    assert main(words) == 2
    assert f"{folder}: belongs to user 12345" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_unfinished_store_that_is_a_link_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, folder = partial_of(tmp_path, monkeypatch)
    folder.rename(tmp_path / "theirs")
    folder.symlink_to(tmp_path / "theirs")
    assert main(words) == 2
    assert f"{folder}: is no folder" in capsys.readouterr().err and (tmp_path / "theirs").exists()


# --- archives


@pytest.mark.filterwarnings("ignore:Failed to open Zarr store with consolidated metadata")
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("axis", ["x", "name"])
def test_zarrs_codec_pickle_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axis: str, compressed: bool
) -> None:
    """An axis is read as the archive is opened; another variable only where somebody asks for it."""
    numcodecs = pytest.importorskip("numcodecs")
    pytest.importorskip("xarray")
    numcodecs.register_codec(numcodecs.Pickle)  # whatever an earlier test has left
    monkeypatch.setattr("numcodecs.pickles.ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)  # versions before 0.16.4
    folder = tmp_path / "a.zarr"
    text, pickles = {"id": "vlen-utf8"}, {"id": "pickle"}
    codecs = {"filters": [text], "compressor": pickles} if compressed else {"filters": [text, pickles]}

    def put(name: str, values: bytes, dims: dict[str, int], dtype: str, units: str = "", **more: object) -> None:
        (folder / name).mkdir(parents=True)
        shape = list(dims.values())
        tree = {"zarr_format": 2, "shape": shape, "chunks": shape, "dtype": dtype, "order": "C", "fill_value": None}
        (folder / name / ".zarray").write_text(json.dumps({"compressor": None, "filters": None, **tree, **more}))
        (folder / name / ".zattrs").write_text(json.dumps({"_ARRAY_DIMENSIONS": list(dims), "units": units}))
        (folder / name / ".".join("0" * len(dims))).write_bytes(values)

    put("time", np.arange(3).astype("<i8").tobytes(), {"time": 3}, "<i8", "minutes since 2024-01-01")
    put("rain", bytes(3 * 8 * 8 * 4), {"time": 3, "y": 8, "x": 8}, "<f4", "mm/h")
    put(axis, pickle.dumps(Runs(tmp_path / "RAN")), {"x": 8}, "|O", **codecs)
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    if axis == "x":
        with pytest.raises(SourceError, match="codec `pickle`"):
            open_archive(folder, {})
    else:
        archive = open_archive(folder, {})
        assert archive.read(archive.frames).shape == (3, 1, 8, 8)
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize("name", ["a.grib", "a.nc", "a"])
def test_a_file_that_is_no_netcdf_is_not_given_to_other_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """xarray asks every backend that is installed; that of GRIB unpickles an index which lies beside the file."""
    xarray = pytest.importorskip("xarray")
    asked: list[Path] = []

    class Grib(xarray.backends.BackendEntrypoint):
        def guess_can_open(self, filename_or_obj: Any) -> bool:
            return True

        def open_dataset(self, filename_or_obj: Any, **options: Any) -> Any:
            asked.append(filename_or_obj)
            raise ValueError("read by another")

    engines = {"cfgrib": Grib(), **xarray.backends.list_engines()}
    monkeypatch.setattr("xarray.backends.plugins.list_engines", lambda: engines)
    monkeypatch.setattr("xarray.backends.list_engines", lambda: engines)
    (tmp_path / name).write_bytes(b"GRIB\0\0\0\2")
    with pytest.raises(SourceError, match="takes it for netCDF"):
        open_archive(tmp_path / name, {}, source="cf")
    assert asked == []


def write_video(path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number in range(5):
            picture = np.full((32, 32, 3), 40 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


LISTS = {
    "concat": "ffconcat version 1.0\nfile secret.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mpg"])
def test_a_list_of_files_that_is_named_like_a_video_opens_none(tmp_path: Path, kind: str, suffix: str) -> None:
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / "secret.mp4")
    assert open_archive(tmp_path / "in", {}).frames
    (tmp_path / "in" / f"clip{suffix}").write_text(LISTS[kind])
    with pytest.raises(SourceError, match=rf"clip{suffix}: unreadable video"):
        open_archive(tmp_path / "in", {})


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mkv", ".mov", ".mpg", ".mpeg", ".m4v"])
def test_every_kind_of_video_file_is_read(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / f"clip{suffix}")
    assert len(open_archive(tmp_path / "in", {}).frames) == 5


# --- what records say of archives


@pytest.mark.filterwarnings("ignore:Failed to open Zarr store with consolidated metadata")
@pytest.mark.parametrize("group", ["../other.zarr", "/etc", "a/../../other.zarr"])
def test_a_recorded_group_does_not_lead_out_of_the_archive(tmp_path: Path, group: str) -> None:
    xarray = pytest.importorskip("xarray")
    rain = xarray.DataArray(np.zeros((3, 8, 8), np.float32), dims=("time", "y", "x"), attrs={"units": "mm/h"})
    rain = rain.assign_coords(time=np.array(radar_times(3), dtype="datetime64[ns]"))
    for name in ("a.zarr", "other.zarr"):
        xarray.Dataset({"rain": rain}).to_zarr(tmp_path / name, zarr_format=3, consolidated=False)
    with pytest.raises((SourceError, UsageError)):
        open_archive(tmp_path / "a.zarr", {"source": "cf", "group": group})

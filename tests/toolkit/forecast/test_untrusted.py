"""A model that somebody else trained: no file is run because its run directory, its store or its export names one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.predict import main
from shards import UsageError
from shards.cli import main as shards
from shards.manifest import MANIFEST_NAME, manifest_digest
from shards.recent import open_archive
from tests.support.archives import write_radar
from tests.support.forecasts import START, MakeRun
from toolkit.checkpoint.export import export_run, load
from toolkit.checkpoint.source import CONFIG
from toolkit.config import make_config
from toolkit.rundir import RunDir

pytest.importorskip("xarray")

SOURCE = """
import os
from pathlib import Path

import numpy as np
from shards.sources import Description, FrameSpec, PlannedEvent, Scale, SourceInfo

(Path(__file__).parent / "RAN").touch()
DESCRIPTION = Description(
    "mine", FrameSpec(1, 8, 8), 300.0, Scale("radar reflectivity", "dBZ", 0.0, 0.5), (), SourceInfo("n", "l", "c", "u")
)

def events(archive):
    for path in sorted(archive.glob("*.npy")):
        split, _, minute = path.stem.partition("-")
        yield split, PlannedEvent(path.stem, 1, start_time=f"2024-05-01T00:{minute}:00Z", recipe=path.name)

def read(archive, event):
    return np.load(archive / event.recipe)[None, None]
"""


def make_archive(folder: Path) -> Path:
    import numpy as np

    folder.mkdir()
    for number in range(12):
        np.save(folder / f"{('train', 'val', 'test')[number // 4]}-{5 * number:02d}.npy", np.full((8, 8), number, "u1"))
    return folder


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A run of a store that was converted by a file of somebody's own; where that ran, it leaves RAN beside it."""
    (tmp_path / "mine.py").write_text(SOURCE)
    archive = make_archive(tmp_path / "archive")
    assert shards(["convert", str(tmp_path / "mine.py"), str(archive), str(tmp_path / "store")]) == 0
    (tmp_path / "RAN").unlink()
    data = {"store": str(tmp_path / "store"), "context": 2, "horizon": 2}
    config = make_config({"name": "theirs", "model": {"name": "persistence"}, "data": data}, "test")
    from shards.sources.custom import _module

    _module.cache_clear()
    return RunDir.create(tmp_path / "run", config).path


def predict(run: Path, folder: Path, *words: str) -> int:
    return main(["--run", str(run), "--input", str(folder), "--out", str(run.parent / "f.nc"), *words])


def say_source(run: Path, named: object) -> None:
    """Let the manifest of the run's store say that its source was `named`; its digest fits."""
    file = Path(RunDir(run).config().data.store, MANIFEST_NAME)
    data = json.loads(file.read_text())
    data["conversion"]["source"] = named
    file.write_text(json.dumps({**data, "digest": manifest_digest(data)}))


def test_a_file_that_a_store_names_is_not_run(theirs: Path) -> None:
    folder = theirs.parent
    with pytest.raises(UsageError, match=r"'mine\.py'") as caught:
        predict(theirs, folder / "archive", "--lead", "1", "--", "--crop", "none")
    words = f"--run {theirs} --input {folder}/archive --out {folder}/f.nc --lead 1 --source FILE.py"
    assert str(caught.value).endswith(f": python launch/predict.py {words} -- --crop none")
    with pytest.raises(UsageError, match=r"--watch --source FILE\.py"):  # it doesn't wait for ever
        predict(theirs, folder / "archive", "--watch")
    assert not (folder / "RAN").exists() and not (folder / "f.nc").exists()


def test_the_same_file_typed_by_the_user_is_run(theirs: Path) -> None:
    folder = theirs.parent
    assert predict(theirs, folder / "archive", "--source", str(folder / "mine.py")) == 0
    assert (folder / "RAN").exists() and (folder / "f.nc").exists()


def test_a_watch_goes_on_with_the_file_that_was_typed(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = theirs.parent

    class Stop:
        name = "SIGTERM"

        def install(self) -> None: ...

        def __bool__(self) -> bool:
            return any(folder.glob("f-*.nc"))

    monkeypatch.setattr("launch.predict.StopRequest", Stop)
    assert predict(theirs, folder / "archive", "--watch", "--every", "0.1", "--source", str(folder / "mine.py")) == 0
    assert [path.name for path in folder.glob("f-*.nc")] == ["f-20240501T005500Z.nc"]


def test_its_store_needs_no_source(theirs: Path) -> None:
    assert predict(theirs, theirs.parent / "store") == 0
    assert not (theirs.parent / "RAN").exists()


@pytest.mark.parametrize("beside", ["model.py", "code/model.py"])
def test_a_file_that_an_export_names_is_not_run(theirs: Path, monkeypatch: pytest.MonkeyPatch, beside: str) -> None:
    folder = theirs.parent
    export_run(RunDir(theirs), "best", folder / "model")
    record = json.loads((folder / "model" / CONFIG).read_text())
    assert record["archive"]["source"] == "mine.py"
    planted = folder / "model" / beside
    planted.parent.mkdir(exist_ok=True)
    planted.write_text(f"import os\nos.system('touch {folder}/RAN')\n{SOURCE}")
    monkeypatch.chdir(folder / "model")
    for named in (str(planted), beside, f"./{beside}", f"../model/{beside}", f"sub/../{beside}"):
        record["archive"]["source"] = named
        Path(CONFIG).write_text(json.dumps(record))
        with pytest.raises(UsageError, match=r"--source FILE\.py"):
            predict(folder / "model", folder / "archive")
        load(folder / "model")
    assert not (folder / "RAN").exists()


NAMES: list[Callable[[Path], object]] = [
    lambda folder: str(folder / "evil.py"),
    lambda folder: "evil.py",
    lambda folder: f"{folder.name}/../evil.py",
    lambda folder: str(folder / "link"),
    lambda folder: f"file://{folder}/evil.py",
    lambda folder: "https://example.org/evil.py",
    lambda folder: f"pipe:touch {folder}/RAN",
    lambda folder: "os:system",
    lambda folder: "shards.sources.radar",
    lambda folder: "evil.pyc",
    lambda folder: "radar.py",
    lambda folder: "auto",
    lambda folder: "\x1b[2Jradar\n",
    lambda folder: "x" * 100_000,
    lambda folder: ["radar"],
    lambda folder: {"radar": 1},
    lambda folder: 5,
    lambda folder: None,
    lambda folder: True,
]


@pytest.mark.parametrize("number", range(len(NAMES)))
def test_nothing_but_a_name_of_a_source_is_taken_from_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / "evil.py").write_text(f"import os\nos.system('touch {tmp_path}/RAN')\n{SOURCE}")
    for name in ("radar.py", "evil.pyc"):
        shutil.copy(tmp_path / "evil.py", tmp_path / name)
    (tmp_path / "link").symlink_to("evil.py")
    monkeypatch.chdir(tmp_path)
    write_radar(tmp_path / "in", START, 3)
    named = NAMES[number](tmp_path)
    with pytest.raises(UsageError, match=r"--source FILE\.py") as caught:
        open_archive(tmp_path / "in", {"source": named, "crop": "none"})
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 2000
    assert not (tmp_path / "RAN").exists()
    # What the user types holds, whatever the record says; and what reads it is then no option of the record's.
    assert open_archive(tmp_path / "in", {"source": named}, ["--crop", "none"], source="radar").frames


@pytest.mark.parametrize("named", ["/evil/model.py", "a.b:c", "pipe:true", 7])
def test_a_run_whose_store_names_anything_else(make_run: MakeRun, radar: Path, tmp_path: Path, named: object) -> None:
    run = tmp_path / "run"
    shutil.copytree(make_run(), run)
    store = tmp_path / "store"
    shutil.copytree(RunDir(run).config().data.store, store)
    tree: dict[str, Any] = RunDir(run).config().model_dump(mode="json")
    tree["data"]["store"] = str(store)
    shutil.rmtree(run)
    RunDir.create(run, make_config(tree, "test"))
    assert predict(run, radar) == 0  # recorded is `radar`, by name
    os.remove(tmp_path / "f.nc")
    say_source(run, named)
    with pytest.raises(UsageError, match=r"--source FILE\.py"):
        predict(run, radar)
    assert predict(run, radar, "--source", "radar", "--", "--crop", "none") == 0

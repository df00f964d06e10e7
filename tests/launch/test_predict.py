"""launch/predict.py as it is typed: forecasts of an archive, and one for each frame that arrives."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch.predict import main
from shards.errors import UsageError
from tests.support.archives import write_gif
from tests.support.forecasts import START, MakeRun, make_run, radar  # noqa: F401  (fixtures)
from tests.support.process import PATIENCE_S
from toolkit.errors import ConfigError

ROOT = Path(__file__).parents[2]
xarray = pytest.importorskip("xarray")


def predict(run: Path, folder: Path, *words: str) -> int:
    return main(["--run", str(run), "--input", str(folder), *words])


def test_a_forecast_beside_what_came(
    make_run: MakeRun,  # noqa: F811
    radar: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--out", str(tmp_path / "f.nc"), "--picture", str(tmp_path / "f.png"), "--tile", "16", "--overlap", "4"]
    assert predict(make_run(), radar, "--at", "2016-07-11T21:30", "--lead", "2", "--verify", *words) == 0
    out = capsys.readouterr()
    written = ("f.nc", "f.png", "f.verify.json", "f.verify.png")
    assert out.out.splitlines()[-4:] == [str(tmp_path / name) for name in written]
    diagrams = json.loads((tmp_path / "f.verify.json").read_text())["diagrams"]
    assert diagrams["forecast"]["overall"] == diagrams["persistence"]["overall"] != {}  # the model is persistence
    with Image.open(tmp_path / "f.verify.png") as image:
        assert image.width > 800 and len(image.convert("RGB").getcolors(1 << 20)) > 20
    assert "RMSE dBZ" in out.out and "2016-07-11T21:15:00Z to 2016-07-11T21:30:00Z" in out.err
    with xarray.open_dataset(tmp_path / "f.nc") as data:
        assert data.time.values[0] == np.datetime64("2016-07-11T21:35") and data.time.size == 2
    with pytest.raises(ConfigError, match="exists"):
        predict(make_run(), radar, *words)
    with pytest.raises(ConfigError, match="no frame follows"):
        predict(make_run(), radar, "--verify", *words, "--overwrite")


def test_without_an_output_the_name_tells_the_time(
    make_run: MakeRun,  # noqa: F811
    radar: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert predict(make_run(), radar, "--picture", "mine.gif", "--", "--crop", "0,0,20,30") == 0
    with pytest.raises(ConfigError, match=r"mine\.gif: exists"):
        predict(make_run(), radar, "--picture", "mine.gif", "--out", "other.nc")
    with xarray.open_dataset("forecast-20160711T220000Z.nc") as data:
        assert data["radar_reflectivity"].shape == (3, 20, 30)  # the run's horizon, the crop asked for


def test_products_as_they_are_typed(make_run: MakeRun, radar: Path, tmp_path: Path) -> None:  # noqa: F811
    words = ["--probability", "20", "30", "--neighbourhood", "3", "--accumulation", "--zr", "316", "1.5"]
    assert predict(make_run(), radar, "--out", str(tmp_path / "f.nc"), *words) == 0
    with xarray.open_dataset(tmp_path / "f.nc") as data:
        assert data["exceedance_probability"].shape == (2, 3, *data["radar_reflectivity"].shape[1:])
        assert "Z = 316 R^1.5" in data["accumulation"].attrs["comment"]
        assert float(data["accumulation"].max()) > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "nowhere"], "no such run"),
        (["--watch", "--at", "2016-07-11"], "leave --at and --verify out"),
        (["--watch", "--every", "0"], "--every 0: must be above 0"),
        (["--accumulation", "--zr", "0", "1.6"], "--zr 0 1.6: must be above 0"),
        (["--every", "3"], "--every has no effect without --watch: add --watch, or omit --every"),
        (["--patience", "3"], "--patience has no effect without --watch"),
        (["--overlap", "0"], "--overlap has no effect without --tile"),
        (["--keep", "3"], "--keep has no effect without --page"),
        (["--on-forecast-limit", "3"], "--on-forecast-limit has no effect without --on-forecast"),
        (["--on-forecast", "true", "--on-forecast-limit", "0"], "--on-forecast-limit 0: must be above 0"),
        (["--on-forecast", "no-such-program"], "no program no-such-program"),
        (["--watch", "--probability", "200"], "--probability: 200 is outside of this store"),
        (["--watch", "--ensemble-size", "4"], "--ensemble-size 4: persistence is deterministic"),
        (["--page", "x", "--verify"], "leave --out and --verify out"),
        (["--thresholds", "30"], "--thresholds has no effect without --verify"),
        (["--thresholds"], "--thresholds has no effect without --verify"),
        (["--neighbourhood", "5"], "--neighbourhood has no effect without --probability"),
        (["--zr", "300", "1.4"], "--zr has no effect without --accumulation"),
        (["--seed", "1"], "--seed has no effect without --ensemble-size above 1"),
        (["--keep-inflow"], "--keep-inflow: persistence does not move the last frame"),
        (["--verify", "--at", "2016-07-11T21:30", "--thresholds", "30", "200"], "^--thresholds: 200 is outside of"),
        (["--verify", "--at", "2016-07-11T21:30", "--thresholds", "nan"], "^--thresholds: nan is outside of"),
        (["--probability", "30", "inf"], "--probability: inf is outside of this store"),
        (["--probability", "30", "30"], "--probability: 30 is given twice"),
        (["--probability", "200"], "--probability: 200 is outside of this store"),
        (["--probability", "30", "--neighbourhood", "4"], "--neighbourhood 4: .* use 5"),
        (["--which", "7"], "step-00000007|not trained"),
    ],
)
def test_mistakes_are_named(make_run: MakeRun, radar: Path, words: list[str], message: str) -> None:  # noqa: F811
    with pytest.raises(ValueError, match=message):
        predict(make_run(), radar, *words)


def test_a_gap_is_named(make_run: MakeRun, radar: Path, tmp_path: Path) -> None:  # noqa: F811
    shutil.copytree(radar, tmp_path / "in")
    for path in (tmp_path / "in").rglob("*2150F*"):
        path.unlink()
    with pytest.raises(
        UsageError, match="600 s from the frame of 2016-07-11T21:45:00Z to that of 2016-07-11T21:55:00Z"
    ):
        predict(make_run(), tmp_path / "in", "--out", str(tmp_path / "f.nc"))


class Station:
    """A radar that writes into a folder, and the watching process."""

    def __init__(self, run: Path, folder: Path) -> None:
        self.input, self.output, self.log = folder / "in", folder / "out", folder / "log"
        self.run, self.process = run, None

    def scan(self, number: int, whole: bool = True) -> Path:
        """Frame `number`; or the first half of its bytes."""
        path = write_gif(self.input, START + timedelta(minutes=5 * number), np.full((24, 32), 90 + number, np.uint8))
        if not whole:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return path

    def start(self) -> None:
        command = [sys.executable, "launch/predict.py", "--run", self.run, "--input", self.input, "--watch"]
        files = ["--out", self.output / "rain.nc", "--picture", self.output / "rain.png", "--every", "0.2"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with self.log.open("a") as log:
            words = [str(word) for word in (*command, *files, "--patience", "2")]
            self.process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def end(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=PATIENCE_S)

    def made(self) -> list[str]:
        """Times of the forecasts that stand there."""
        return sorted(re.sub(r".*T(\d{4})00Z.nc", r"\1", path.name) for path in self.output.glob("[!.]*.nc"))

    def until(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            assert time.monotonic() < deadline and self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)


@pytest.fixture
def station(make_run: MakeRun, tmp_path: Path) -> Iterator[Station]:  # noqa: F811
    made = Station(make_run(), tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()


def test_every_frame_that_arrives_gets_one_forecast(station: Station) -> None:
    """Begun on an empty folder; then half a file, a damaged one, a gap, and a second process."""
    station.input.mkdir()
    station.start()
    for number in range(5):
        station.scan(number)
        if number == 0:
            station.until(lambda: "skipped" in station.log.read_text())  # one frame is too few
    station.until(lambda: station.made() == ["2100", "2105"])

    station.scan(5, whole=False)  # 21:10 is being written
    station.until(lambda: "waiting" in station.log.read_text().splitlines()[-1])
    assert station.made() == ["2100", "2105"]
    station.scan(5)
    station.until(lambda: "2110" in station.made())

    before = (station.output / "rain-20160711T211000Z.nc").stat().st_mtime_ns
    assert station.end() == 0
    assert "SIGTERM: stopped after 3 forecasts" in station.log.read_text()
    station.start()  # what has a forecast gets no other
    station.scan(6)
    station.until(lambda: "2115" in station.made())
    assert (station.output / "rain-20160711T211000Z.nc").stat().st_mtime_ns == before

    station.scan(8)  # 21:20 never came
    station.until(lambda: "21:25:00Z: skipped" in station.log.read_text())
    damaged = station.scan(9, whole=False)  # 21:30 stays damaged
    station.until(lambda: "21:30:00Z: skipped" in station.log.read_text())
    damaged.unlink()
    assert station.end() == 0
    assert station.made() == ["2100", "2105", "2110", "2115"]
    assert len(list(station.output.glob("*.png"))) == 4 and not list(station.output.glob(".*"))
    with xarray.open_dataset(station.output / "rain-20160711T211500Z.nc") as data:
        assert data.time.values[0] == np.datetime64("2016-07-11T21:20")

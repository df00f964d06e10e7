"""A nowcast page that a watch keeps: what it shows, deletes and survives. Checks happen when the test says so."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from launch.predict import main
from shards.recent import open_archive
from tests.support.archives import write_gif
from tests.support.forecasts import START, SVG, MakeRun
from toolkit.atomic import FileWriteError
from toolkit.errors import ConfigError
from toolkit.forecast.files import write_forecast
from toolkit.forecast.make import Request, make_forecast
from toolkit.forecast.page import keeper
from toolkit.forecast.page.html import Looks
from toolkit.forecast.page.keeper import Page
from toolkit.forecast.products import Products
from toolkit.forecast.trained import Trained, load_trained
from toolkit.forecast.verify import scores
from toolkit.forecast.watch import Watch

pytest.importorskip("xarray")
STEP = timedelta(minutes=5)


class Links(HTMLParser):
    """The files that a page refers to, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.open, self.ids = list[str](), list[str](), set[str]()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if name in ("src", "href") and value]
        self.ids |= {value for name, value in attrs if name == "id" and value}
        if tag not in ("meta", "img", "br", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect",):
            assert self.open.pop() == tag


@dataclass
class Station:
    """A radar, and the page that is kept of it."""

    folder: Path
    trained: Trained
    keep: int = 4
    members: int = 1
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self.input, self.output = self.folder / "<in> & co", self.folder / "page"
        self.page: Page | None = None
        self.start()

    def start(self) -> None:
        """Start the watch, also again after it was killed."""
        if self.page is not None:
            self.page.folder.unlock()  # the kernel does, of a killed process
        self.request = Request(3, self.members)
        self.page = Page(
            self.output, self.keep, self.trained, self.request, Products(), self.thresholds, str(self.input), True
        )
        opened = lambda: open_archive(self.input, self.trained.archive)  # noqa: E731
        self.watch = Watch(
            opened, self.make, self.page.has, lambda: False, 1.0, 0.0, 4, on_check=lambda feed: self.page.update(feed)
        )

    def make(self, archive, frame) -> None:
        forecast = make_forecast(self.trained, archive, archive.up_to(frame, 4, 300.0), self.request)
        entry = self.page.prepare(forecast)
        write_forecast(forecast, self.output / "forecasts" / entry.name(".nc"))
        self.page.publish(entry)

    def scan(self, *numbers: int, whole: bool = True) -> None:
        """Frames of rain that moves and grows."""
        y, x = np.mgrid[:24, :32]
        for number in numbers:
            rain = 150 * np.exp(-((x - 8 - number) ** 2 + (y - 12) ** 2) / 40)
            path = write_gif(self.input, START + number * STEP, rain.astype(np.uint8))
            if not whole:
                path.write_bytes(path.read_bytes()[:200])

    def check(self, times: int = 2) -> None:
        for _ in range(times):
            self.watch._check()

    def names(self, suffix: str) -> list[str]:
        return sorted(item.name for item in (self.output / "forecasts").glob(f"*{suffix}"))

    @property
    def html(self) -> str:
        return (self.output / "index.html").read_text(encoding="utf-8")


@pytest.fixture
def station(tmp_path: Path, persistence: Trained) -> Station:
    return Station(tmp_path, persistence)


def stamp(number: int) -> str:
    return f"{START + number * STEP:%Y%m%dT%H%M%SZ}"


def test_the_page_shows_forecasts_observations_scores_and_the_feed(station: Station) -> None:
    station.input.mkdir()
    station.check()
    assert "No forecast yet." in station.html and "No observation has arrived yet" in station.html
    for number in range(9):
        station.scan(number)
        station.check()
    page = Links(station.html)
    assert page.open == [] and {"latest", "verification", "earlier"} <= page.ids
    for link in page.links:
        assert link.startswith(("data:", "#")) or (station.output / link).is_file(), link
        assert link[:1] != "#" or link[1:] in page.ids
    assert not re.search(r"https?://", re.sub(r"data:[^\"]*", "", station.html))
    assert "&lt;in&gt; &amp; co" in station.html and "<in>" not in station.html
    assert station.names(".nc") == [f"forecast-{stamp(number)}.nc" for number in (5, 6, 7, 8)]
    assert f"{START + 9 * STEP:%Y-%m-%d %H:%M} UTC" in station.html  # waited for
    for text in ("RMSE (dBZ)", "CSI ≥ 30 dBZ", "FSS ≥ 30 dBZ", "+5 min", "+15 min", "not yet observed"):
        assert text in station.html
    latest = station.output / "latest.nc"
    assert latest.read_bytes() == (station.output / "forecasts" / station.names(".nc")[-1]).read_bytes()
    assert (station.output / "latest.png").read_bytes()[:4] == b"\x89PNG"


def test_scores_are_those_of_predict_verify(station: Station) -> None:
    """Of the frames that all methods predict; here persistence is the model, so both are the same."""
    station.scan(*range(4))
    station.check()
    station.scan(4, 5, 6)
    station.check()
    entry = station.page.entries[stamp(3)]
    assert entry.scored() == {1, 2, 3} and not (station.output / "forecasts" / entry.name(".npz")).exists()
    left = station.output / "forecasts" / entry.name(".npz")
    left.touch()  # of a process that was killed just before it deleted the file
    station.start()
    assert not left.exists()
    curves = station.page.scorer.curves([entry], "forecast")
    assert curves == station.page.scorer.curves([entry], "persistence")
    archive = open_archive(station.input, station.trained.archive)
    frame = archive.series(f"{START + 3 * STEP:%Y-%m-%dT%H:%M}")[-1]
    forecast = make_forecast(station.trained, archive, archive.up_to(frame, 4, 300.0), station.request)
    truth = forecast.recoded(archive, archive.following(frame, 3, 300.0))
    expected, _ = scores(forecast, truth)
    excluded = station.page.scorer.excluded(station.page.entries.values())
    assert excluded > 0 and f"Not scored: {excluded:,} observed pixels" in station.html
    assert all(abs(a - b) < 0.05 for a, b in zip(curves["csi@30"], expected["csi@30"], strict=True))
    assert curves["rmse"][0] < curves["rmse"][1] < curves["rmse"][2]
    flow = station.page.scorer.curves([entry], "optical_flow")
    assert flow["rmse"][2] < curves["rmse"][2]  # the rain moves by a pixel each frame


@pytest.mark.parametrize("has_code", [True, False])
def test_missing_pixels_are_neither_zeros_nor_scored(tmp_path: Path, persistence: Trained, has_code: bool) -> None:
    """Of the observation, and of the last frame, which persistence repeats; also without a code for them."""
    code = persistence.scale.missing_code if has_code else None
    trained = dataclasses.replace(persistence, scale=dataclasses.replace(persistence.scale, missing_code=code))
    station = Station(tmp_path, trained)
    for number in range(6):
        rain = np.full((24, 32), 100, np.uint8)
        rain[2 * number : 2 * number + 2] = 255  # of frame 3: rows 6 and 7; of frame 4: 8 and 9
        write_gif(station.input, START + number * STEP, rain)
        if number in (3, 5):
            station.check()
    cells = station.page.entries[stamp(3)].scores["persistence"]
    for lead in ("1", "2"):
        assert [cells[lead][name] for name in ("mse", "missing_pixels")] == [0.0, 64]
        assert cells[lead]["inflow_pixels"] >= 64  # two rows of the last frame, and what flows in
    with Image.open(station.output / "forecasts" / f"forecast-{stamp(3)}-observation-01.png") as image:
        pixels = np.array(image.convert("RGB"))
    grey = (pixels == (0xC4, 0xC4, 0xC4)).all(-1)
    assert grey[8:10].all() and grey.sum() == 64
    assert ">no data<" in station.html


def test_gaps_and_damaged_files_are_named(station: Station) -> None:
    station.scan(*range(4))
    station.check()
    station.scan(5)
    station.check()
    station.scan(6, whole=False)
    station.check(3)
    assert "1 frame missing between 2016-07-11 21:00:00 and 2016-07-11 21:10:00 UTC" in station.html
    assert "21:10:00Z: no forecast" in station.html and "21:15:00Z" in station.html
    station.scan(4, 6)
    station.check(3)
    assert "missing between" not in station.html and "no forecast" not in station.html


def test_a_time_in_the_future_is_not_the_newest_frame(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, but no lead time before it counts as missed, and it verifies nothing."""
    monkeypatch.setattr(keeper, "_now", lambda: START + 4 * STEP)
    station.scan(*range(4))
    station.check()
    station.scan(4, 6)
    station.check()
    assert f"{START + 6 * STEP}: a time in the future" in station.html
    assert station.html.count(">no frame<") == 0 and station.html.count(">not yet observed<") == 2
    assert station.page.entries[stamp(3)].scored() == {1}
    monkeypatch.setattr(keeper, "_now", lambda: START + 6 * STEP)
    station.check()
    assert station.page.entries[stamp(3)].scored() == {1, 3} and station.html.count(">no frame<") == 2


@pytest.mark.parametrize(
    ("mean", "side", "text"),
    [
        (True, 1, "share of members at or above the threshold"),
        (True, 15, "share of members and of the 15 x 15 pixels around each pixel at or above the threshold"),
        (False, 15, "share of the 15 x 15 pixels around each pixel at or above the threshold"),
        (False, 1, "1 where the forecast is at or above the threshold, 0 elsewhere"),
    ],
)
def test_what_a_probability_is(mean: bool, side: int, text: str) -> None:
    assert Looks("rain", "mm/h", "model", 300.0, mean, side).probability == text


def test_the_heading_keeps_the_case_of_names(tmp_path: Path, persistence: Trained) -> None:
    scale = dataclasses.replace(persistence.scale, quantity="vertically integrated liquid, SEVIR level")
    station = Station(tmp_path, dataclasses.replace(persistence, scale=scale))
    station.input.mkdir()
    station.check()
    assert "<h1>Vertically integrated liquid, SEVIR level</h1>" in station.html


def test_a_killed_watch_starts_again_from_its_files(station: Station) -> None:
    station.scan(*range(4))
    station.check()
    station.scan(4)
    station.check()
    forecasts = station.output / "forecasts"
    pid = 4_000_000  # beyond the largest there is
    (forecasts / f".x.nc.{os.uname().nodename}-{pid}-0123abcd.tmp").write_bytes(b"half")
    half = stamp(5)
    record = json.loads((forecasts / f"forecast-{stamp(4)}.json").read_text())
    record |= {"stamp": half, "scores": {}, "files": [f"forecast-{half}-forecast-01.png"]}
    (forecasts / f"forecast-{half}.json").write_text(json.dumps(record))
    (forecasts / f"forecast-{half}-forecast-01.png").write_bytes(b"half")
    before = {name: (forecasts / name).stat().st_mtime_ns for name in station.names(".nc")}
    known = station.page.entries[stamp(3)].scores
    station.start()
    assert station.page.entries[stamp(3)].scores == known and len(known["forecast"]) == 1
    assert not station.names(f"{half}*") and not list(forecasts.glob(".*"))
    station.check()
    assert before == {name: (forecasts / name).stat().st_mtime_ns for name in station.names(".nc")}
    station.scan(5)
    station.check()
    assert station.page.entries[stamp(3)].scored() == {1, 2} and len(station.names(".nc")) == 3


def test_only_its_own_files_are_deleted(station: Station) -> None:
    station.scan(*range(4))
    station.check()
    mine = [station.output / "notes.txt", station.output / "forecasts" / f"forecast-{stamp(3)}-notes.png"]
    for path in mine:
        path.write_text("mine")
    record = station.output / "forecasts" / f"forecast-{stamp(3)}.json"
    tampered = json.loads(record.read_text())
    for number in range(4, 12):
        station.scan(number)
        station.check()
    assert len(station.names(".nc")) == 4 and all(path.exists() for path in mine)
    tampered |= {"stamp": stamp(20), "files": ["../notes.txt"]}
    (station.output / "forecasts" / f"forecast-{stamp(20)}.json").write_text(json.dumps(tampered))
    station.start()
    station.check()
    assert mine[0].exists() and f"forecast-{stamp(20)}.json: is not the record of a forecast" in station.html


def test_a_full_disk_is_waited_out(
    station: Station, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    station.scan(*range(4))
    station.check()
    before = station.html

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    station.scan(4)
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", full)
        station.check(3)
    assert station.html == before and "No space left on device" in caplog.text
    station.check()
    assert stamp(4) in station.page.entries and station.html != before


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda page: page.write_text(""), "is a file"),
        (lambda page: (page.mkdir(), (page / "thesis.tex").write_text("")), "holds thesis.tex and no page.json"),
        (lambda page: (page / "forecasts" / "a").mkdir(parents=True), "holds forecasts and no page.json"),
        (lambda page: (page.mkdir(), (page / "page.json").write_text("{")), "page.json: is not a JSON object"),
        (lambda page: (page.mkdir(), (page / "page.json").write_text('{"lead": 9}')), "layout is None, pages have 1"),
    ],
)
def test_a_folder_of_something_else_is_refused(
    tmp_path: Path, persistence: Trained, prepare: Callable[[Path], object], message: str
) -> None:
    prepare(tmp_path / "page")
    with pytest.raises(ConfigError, match=message):
        Station(tmp_path, persistence)


def test_settings_bind_a_folder_only_while_it_has_forecasts(station: Station) -> None:
    """A command that was refused, or had no frame yet, leaves the folder to the next one."""
    station.page.folder.unlock()
    other = Page(station.output, 4, station.trained, Request(5), Products(), (), str(station.input), True)
    assert json.loads((station.output / "page.json").read_text())["lead"] == 5
    other.folder.unlock()
    station.start()
    station.scan(*range(4))
    station.check()
    station.page.folder.unlock()
    before = (station.output / "page.json").read_text()
    with pytest.raises(ConfigError, match=r"lead is 3, this command has 5: .*or delete \S+forecasts"):
        Page(station.output, 4, station.trained, Request(5), Products(), (), str(station.input), True)
    assert (station.output / "page.json").read_text() == before
    station.start()  # the refused one holds no lock
    station.page.folder.unlock()
    record = station.output / "forecasts" / f"forecast-{stamp(3)}.json"
    record.write_text("{")  # there are its pictures
    with pytest.raises(ConfigError, match="lead is 3"):
        Page(station.output, 4, station.trained, Request(5), Products(), (), str(station.input), True)


def test_a_page_shows_only_forecasts_that_are_made_alike(
    station: Station, make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    station.scan(*range(4))
    station.check()
    station.page.folder.unlock()
    linear = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(linear.weight, 2.0)
    plain = (Request(3), Products(), (), "radar", ())
    for place, value, key in (
        (0, Request(3, seed=1), "seed is 0, this command has 1"),
        (0, Request(3, tile=16), "tile is None, this command has 16"),
        (0, Request(3, overlap=4), "overlap is 32, this command has 4"),
        (0, Request(3, keep_inflow=True), "keep_inflow is False, this command has True"),
        (0, Request(3, samples=2), "ensemble_size is 1"),
        (1, Products((30.0,)), r"probability is \[\], this command has \[30.0\]"),
        (1, Products((30.0,), neighbourhood=5), "neighbourhood is 15, this command has 5"),
        (1, Products(accumulation=True), "accumulation is False"),
        (1, Products(zr=(300.0, 1.5)), r"zr is \[200.0, 1.6\]"),
        (2, (20.0,), r"thresholds is \[30\S*\], this command has \[20.0\]"),
        (3, "own.py", "source is None, this command has 'own.py'"),
        (4, ("--crop", "none"), "source_options is"),
    ):
        request, products, thresholds, source, options = (*plain[:place], value, *plain[place + 1 :])
        given = None if source == "radar" else source
        with pytest.raises(ConfigError, match=key):
            Page(
                station.output,
                4,
                station.trained,
                request,
                products,
                thresholds,
                str(station.input),
                True,
                given,
                options,
            )
    other = dataclasses.replace(station.trained, model=linear)  # such as --which ema at the same step
    with pytest.raises(ConfigError, match="weights is "):
        Page(station.output, 4, other, Request(3), Products(), (), str(station.input), True)
    file = station.output / "page.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in settings.items() if key not in ("seed", "tile")}))
    station.start()
    assert "has no seed, tile: taken to be as in this command" in caplog.text
    assert json.loads(file.read_text()) == settings


def test_scores_of_another_form_are_left_out(station: Station, caplog: pytest.LogCaptureFixture) -> None:
    """They are computed again where the fields are there, which is said only then."""
    station.scan(*range(4))
    station.check()
    station.scan(4)
    station.check()
    station.scan(5, 6)
    station.check()
    before = dict(station.page.entries[stamp(4)].scores)
    for number in (3, 4):
        record = station.output / "forecasts" / f"forecast-{stamp(number)}.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), "scores": {"forecast": {}}}))
    caplog.clear()
    station.start()
    told = {text.partition(":")[0]: text for text in caplog.messages if "unexpected form" in text}
    assert f"forecast-{stamp(3)}.npz is deleted" in told[f"forecast-{stamp(3)}.json"]
    assert "computed again from the observations" in told[f"forecast-{stamp(4)}.json"]
    station.check()
    assert station.page.entries[stamp(4)].scores == before and station.page.entries[stamp(3)].scores == {}
    assert "20160711T210000Z: not verified" in station.html


def test_a_second_process_and_unusable_thresholds_are_refused(station: Station) -> None:
    with pytest.raises(ConfigError, match="another process writes to it"):
        Station(station.folder, station.trained)
    with pytest.raises(ConfigError, match="--thresholds: 300 is outside of this store"):
        Station(station.folder / "other", station.trained, thresholds=(300.0,))
    assert not (station.folder / "other" / "page").exists()


def test_members_and_probabilities_of_an_ensemble(tmp_path: Path, make_run: MakeRun) -> None:
    trained = load_trained(make_run("svg_lp", **SVG), "last", torch.device("cpu"))
    station = Station(tmp_path, trained, members=2, thresholds=(5.0, 20.0))
    station.input.mkdir()
    for number in range(5):
        y, x = np.mgrid[:32, :32]
        write_gif(station.input, START + number * STEP, (90 + x + y + number).astype(np.uint8))
        station.check()
    assert station.names("-member2-03.png") and station.names("-probability2-01.png")
    for text in ("ensemble mean", "member 2", "P(≥ 5 dBZ)", "share of members", "FSS ≥ 20 dBZ"):
        assert text in station.html
    assert Links(station.html).open == []


def test_one_forecast_without_a_watch(make_run: MakeRun, radar: Path, tmp_path: Path) -> None:
    words = ["--run", str(make_run()), "--input", str(radar), "--page", str(tmp_path / "page"), "--keep", "2"]
    assert main([*words, "--at", "2016-07-11T21:30"]) == 0
    text = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "Verified: 3 lead times" in text and "Forecast from 2016-07-11 21:30 UTC" in text
    (data,) = (tmp_path / "page" / "forecasts").glob("*.nc")
    made = data.stat().st_mtime_ns
    assert main([*words, "--at", "2016-07-11T21:30"]) == 0  # as a cron job without a new frame
    assert data.stat().st_mtime_ns == made
    shutil.rmtree(tmp_path / "page" / "forecasts")
    assert main([*words]) == 0
    with pytest.raises(ConfigError, match="leave --out and --verify out"):
        main([*words, "--out", "x.nc"])
    with pytest.raises(ConfigError, match="archive is"):
        main([*words[:2], "--input", str(tmp_path), *words[4:]])


def test_a_damaged_record_is_replaced(make_run: MakeRun, radar: Path, tmp_path: Path) -> None:
    """Also without a watch: the files of a page are its own, no option is needed."""
    words = ["--run", str(make_run()), "--input", str(radar), "--page", str(tmp_path / "page")]
    assert main(words) == 0
    (record,) = (tmp_path / "page" / "forecasts").glob("*.json")
    whole = json.loads(record.read_text())
    record.write_text("{")
    assert main(words) == 0
    again = json.loads(record.read_text())
    assert again["files"] == whole["files"]
    text = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "Forecast from 2016-07-11 22:00 UTC" in text and "is not a JSON object" not in text


@pytest.mark.parametrize("watch", [False, True])
def test_the_command_finds_the_page_of_its_forecast(
    make_run: MakeRun, radar: Path, tmp_path: Path, watch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, seen = tmp_path / "page", tmp_path / "seen.html"
    words = ["--run", str(make_run()), "--input", str(radar), "--page", str(page)]
    command = ["--on-forecast", f"sh -c 'cp {page}/index.html {seen}; echo \"$1\" >> {tmp_path}/files' sh"]
    if watch:
        monkeypatch.setattr(Watch, "run", lambda self: [self._check() for _ in range(3)] and 1)
        monkeypatch.setattr("toolkit.signals.StopRequest.install", lambda self: setattr(self, "name", None))
        command.append("--watch")
    if not watch:
        words += ["--at", "2016-07-11T21:30"]
    assert main([*words, *command]) == 0
    moment = "2016-07-11 22:00" if watch else "2016-07-11 21:30"
    assert f"Forecast from {moment} UTC" in seen.read_text(encoding="utf-8")
    (file,) = (tmp_path / "files").read_text().split()
    assert Path(file).is_file()


def test_an_ensemble_may_set_the_neighbourhood_of_its_probabilities(
    make_run: MakeRun, radar: Path, tmp_path: Path
) -> None:
    run = str(make_run("svg_lp", **{**SVG, "size": 32}))
    words = ["--run", run, "--which", "last", "--input", str(radar), "--page", str(tmp_path / "page"), "--lead", "2"]
    words += ["--tile", "24", "--overlap", "8", "--neighbourhood", "5"]
    with pytest.raises(ConfigError, match="--neighbourhood has no effect: --page shows probabilities of an ensemble"):
        main(words)
    assert main([*words, "--ensemble-size", "2"]) == 0
    text = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "share of members and of the 5 x 5 pixels around each pixel at or above the threshold" in text


def test_the_page_is_written_once_a_minute_without_news(station: Station) -> None:
    """The page is written again after a minute without a new frame, not at each check."""
    station.scan(*range(4))
    station.check(3)
    index = station.output / "index.html"
    before = index.stat().st_mtime_ns
    station.check()
    assert index.stat().st_mtime_ns == before
    station.page._written = station.page._written[0], station.page._written[1] - 61
    station.check(1)
    assert index.stat().st_mtime_ns > before


def test_a_page_that_cannot_be_written_names_the_file(tmp_path: Path, persistence: Trained) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "page").mkdir(mode=0o500)
    with pytest.raises(FileWriteError, match="page"):
        Station(tmp_path, persistence)

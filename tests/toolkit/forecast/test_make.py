"""A forecast is what the model says of frames encoded as in training; what it wasn't trained for is refused."""

from __future__ import annotations

import dataclasses
import json
import logging
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from launch.export import main as export
from shards import open_store
from shards.cli import main as shards
from shards.errors import ShardError
from shards.manifest import FrameSpec, Scale
from shards.recent import Archive, open_archive
from tests.support.archives import save, write_radar
from tests.support.forecasts import START, SVG, MakeRun
from tests.support.models import blobs
from toolkit import predict
from toolkit.config import make_config
from toolkit.data.windows import to_unit
from toolkit.errors import CheckpointError, ConfigError, NonFiniteError
from toolkit.forecast.make import Request, make_forecast, read_frames, recoded
from toolkit.forecast.picture import draw
from toolkit.forecast.trained import Trained, load_trained
from toolkit.forecast.verify import as_text, scores, verification
from toolkit.models.base import build_model
from toolkit.models.registry import OpticalFlowOptions
from toolkit.rundir import RunDir

CPU = torch.device("cpu")


def last(archive: Archive, count: int = 4):
    return archive.up_to(archive.series()[-1], count, 300.0)


def changed(archive: Archive, **what) -> Archive:
    return dataclasses.replace(archive, description=dataclasses.replace(archive.description, **what))


def test_the_forecast_is_the_models_in_physical_units(make_run: MakeRun, radar: Path) -> None:
    run = make_run("convlstm", layers=1, hidden=4, kernel=3, patch=2)
    trained = load_trained(run, "best", CPU)
    archive = open_archive(radar, trained.archive)
    made = make_forecast(trained, archive, last(archive), Request(lead=5))

    store = open_store(trained.config.data.store)
    split = list(store.splits)[-1]
    events = [(name, event) for name in store.splits for event in store.events(name)]
    codes = np.concatenate([store.read(name, e.index, 0, e.length) for name, e in events])[-4:]
    assert split and np.array_equal(made.context.codes, codes)  # as `convert` made them for training
    expected = trained.model.predict(to_unit(torch.from_numpy(codes), trained.scale)[None], 5)[0, 0].clamp(0, 1)
    assert made.values.shape == (1, 5, 1, 24, 32)
    np.testing.assert_allclose(made.values[0], expected.numpy() * 63.5, rtol=1e-6)
    assert made.valid() == [START + timedelta(minutes=5 * (15 + lead)) for lead in range(1, 6)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(make_run: MakeRun, radar: Path, value: float) -> None:
    trained = load_trained(make_run("convlstm", layers=1, hidden=4, kernel=3, patch=2), "best", CPU)
    archive, predict_whole = open_archive(radar, trained.archive), trained.model.predict

    def broken(*arguments):
        made = predict_whole(*arguments)
        made[..., 2:, :, 3, 4] = value
        return made

    trained.model.predict = broken
    with pytest.raises(
        NonFiniteError, match=r"2 of 3,072 values .* are NaN or infinite, the first at lead time 3; use"
    ):
        make_forecast(trained, archive, last(archive), Request(lead=4))


def test_what_was_never_observed_has_no_forecast(persistence: Trained, archive: Archive) -> None:
    made = make_forecast(persistence, archive, last(archive), Request(lead=2))
    never = (made.context.codes == 255).all(0)
    assert not never.any()  # a pixel that one frame saw counts
    alone = make_forecast(persistence, archive, last(archive, 1), Request(lead=2))
    never = (alone.context.codes == 255).all(0)
    assert never.sum() == 3 and np.array_equal(np.isnan(alone.values[0, 0]), never)
    assert np.array_equal(alone.mean_codes()[0], alone.context.codes[0])  # persistence repeats it, gaps too


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ({"step_seconds": 600.0}, ["600 s", "300 s"]),
        ({"scale": Scale("rain", "mm/h", 0.0, 0.5)}, ["rain in mm/h", "radar reflectivity in dBZ"]),
        ({"channels": 3}, ["3 channels", "on 1"]),
    ],
)
def test_what_the_model_was_not_trained_for_is_refused(
    persistence: Trained, archive: Archive, what: dict, words: list[str]
) -> None:
    if "channels" in what:
        what = {"frames": dataclasses.replace(archive.description.frames, **what)}
    with pytest.raises(ConfigError) as caught:
        make_forecast(persistence, changed(archive, **what), last(archive), Request(lead=2))
    assert all(word in str(caught.value) for word in words)


def test_the_same_unit_in_other_codes_is_coded_anew() -> None:
    dbz = Scale("radar reflectivity", "dBZ", 0.0, 0.25, max_code=254, missing_code=255)
    grey = Scale("radar reflectivity", "dBZ", 15.0, 0.5)
    codes, seen = recoded(np.array([0, 40, 255], np.uint8), grey, dbz)
    assert codes.tolist() == [60, 140, 254] and seen.all()  # 15 dBZ, 35 dBZ, 142.5 dBZ clipped to 63.5
    codes, seen = recoded(np.array([0, 60, 255], np.uint8), dbz, grey)
    assert codes.tolist() == [0, 0, 0] and seen.tolist() == [True, True, False]
    codes, seen = recoded(np.array([7, 255], np.uint8), dbz, dbz)
    assert codes.tolist() == [7, 255] and seen.tolist() == [True, False]


def test_what_other_codes_round_and_clip_is_logged(
    persistence: Trained, archive: Archive, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    make_forecast(persistence, archive, last(archive), Request(lead=1))
    assert "codes" not in caplog.text
    read, scale = read_frames(archive, last(archive)), persistence.scale
    finer = changed(archive, scale=dataclasses.replace(scale, gain=scale.gain / 2))
    make_forecast(persistence, finer, last(archive), Request(lead=1))
    assert f"{scale.gain:.3g}; 0 of {read.size:,} pixels" in caplog.text and caplog.records[-1].levelname == "INFO"
    wider = changed(archive, scale=dataclasses.replace(scale, gain=scale.gain * 2, offset=-8.0))
    make_forecast(persistence, wider, last(archive), Request(lead=1))
    outside = int(((read != scale.missing_code) & (read * scale.gain * 2 - 8 > 63.5 + scale.gain / 2)).sum())
    assert outside and f"; {outside:,} of {read.size:,} pixels" in caplog.text  # what is below 0 dBZ isn't counted
    assert caplog.records[-1].levelname == "WARNING"


def test_a_model_of_one_size_says_how_to_forecast_another(make_run: MakeRun, radar: Path) -> None:
    trained = load_trained(make_run("svg_lp", **{**SVG, "size": 32}), "best", CPU)
    archive = open_archive(radar, trained.archive, ["--size", "48x64"])
    with pytest.raises(ConfigError) as caught:
        make_forecast(trained, archive, last(archive), Request(lead=2))
    assert all(word in str(caught.value) for word in ("48x64", "24x32", "--tile 24"))
    made = make_forecast(trained, archive, last(archive), Request(lead=2, tile=24, overlap=8))
    assert made.values.shape == (1, 2, 1, 48, 64) and np.isfinite(made.units).all()


def test_an_ensemble_is_reproducible_and_needs_chance(
    make_run: MakeRun, radar: Path, persistence: Trained, archive: Archive
) -> None:
    trained = load_trained(make_run("svg_lp", **SVG), "best", CPU)
    three, again, two, other = (
        make_forecast(trained, archive, last(archive), Request(2, samples, seed)).units
        for samples, seed in ((3, 0), (3, 0), (2, 0), (3, 1))
    )
    assert np.array_equal(three, again) and np.array_equal(three[:2], two)  # members don't depend on their number
    assert not np.array_equal(three, other)
    assert np.ptp(three, axis=0).max() > 0
    with pytest.raises(ConfigError, match="--ensemble-size 3: persistence is deterministic"):
        make_forecast(persistence, archive, last(archive), Request(2, 3))


def test_scores_are_those_of_the_evaluation(persistence: Trained, archive: Archive) -> None:
    frame = archive.series("2016-07-11T21:30")[-1]
    made = make_forecast(persistence, archive, archive.up_to(frame, 4, 300.0), Request(lead=3))
    truth = made.recoded(archive, archive.following(frame, 3, 300.0))
    model, floor = scores(made, truth)
    assert model == floor  # persistence beside persistence
    seen = truth.codes[0] != 255
    before = np.where(made.context.codes[-1] == 255, 0, made.context.codes[-1]).astype(float) / 254
    square = (before - truth.codes[0] / 254.0)[seen] ** 2
    assert model["mse"][0] == pytest.approx(square.mean() * truth.codes[0].size, rel=1e-5)
    saved = json.loads(json.dumps(verification(made, truth)))
    assert saved["lead_minutes"] == [5, 10, 15] and saved["unit"] == "dBZ" and saved["thresholds"] == [30]
    assert saved["forecast"]["rmse"] == saved["persistence"]["rmse"] and len(saved["forecast"]["csi@30"]) == 3
    assert set(verification(made, truth, (10, 20))["forecast"]) == {"rmse", "csi@10", "csi@20"}  # type: ignore[arg-type]
    text = as_text(saved).splitlines()
    assert len(text) == 4 and text[0].startswith("lead min") and "RMSE dBZ" in text[0] and "csi@30" in text[0]
    assert text[3].split()[0] == "15"
    assert float(text[1].split()[1]) == pytest.approx(63.5 * square.mean() ** 0.5, abs=1e-3)


def test_missing_pixels_are_not_scored_by_a_scale_without_a_code_for_them(
    persistence: Trained, archive: Archive, tmp_path: Path
) -> None:
    """The model was trained on complete frames; its forecasts and scores are those of a scale that has such a code."""
    frame = archive.series("2016-07-11T21:30")[-1]
    without = dataclasses.replace(persistence.scale, missing_code=None)
    made = [
        make_forecast(trained, archive, archive.up_to(frame, 4, 300.0), Request(lead=3))
        for trained in (persistence, dataclasses.replace(persistence, scale=without))
    ]
    found = [each.recoded(archive, archive.following(frame, 3, 300.0)) for each in made]
    assert (~found[1].seen).sum(axis=(1, 2, 3)).tolist() == [3, 3, 3] and (found[1].codes[~found[1].seen] == 0).all()
    first, second = (verification(each, truth) for each, truth in zip(made, found, strict=True))
    assert first == second
    for suffix in ("png", "gif"):
        files = [tmp_path / f"{number}.{suffix}" for number in range(2)]
        for each, truth, file in zip(made, found, files, strict=True):
            draw(each, file, truth)
        assert files[0].read_bytes() == files[1].read_bytes()  # grey, also where the last frame has no observation


def test_the_rmse_of_values_that_fall_with_their_codes_is_not_negative(persistence: Trained, archive: Archive) -> None:
    frame = archive.series("2016-07-11T21:30")[-1]
    asked = persistence.config.eval.model_copy(update={"thresholds": ()})
    plain = dataclasses.replace(persistence, config=persistence.config.model_copy(update={"eval": asked}))
    scale = dataclasses.replace(persistence.scale, gain=-persistence.scale.gain)
    made = make_forecast(plain, archive, archive.up_to(frame, 4, 300.0), Request(lead=3))
    truth = made.recoded(archive, archive.following(frame, 3, 300.0))
    rising, falling = (
        verification(dataclasses.replace(made, scale=each), truth) for each in (persistence.scale, scale)
    )
    assert falling["forecast"] == rising["forecast"]


def test_python_closes_the_archive(make_run: MakeRun, radar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(Archive, "close", lambda self: closed.append(self))
    assert predict(make_run(), radar, lead=2).values.shape[1] == 2
    with pytest.raises(ShardError):
        predict(make_run(), radar, at="1999-01-01T00:00")
    assert len(closed) == 2


def test_an_export_forecasts_without_run_and_store(make_run: MakeRun, radar: Path, tmp_path: Path) -> None:
    run = make_run("convlstm", layers=1, hidden=4, kernel=3, patch=2)
    assert export(["--run", str(run), "--out", str(tmp_path / "model")]) == 0
    made = []
    for path, which in ((run, "last"), (tmp_path / "model", "best"), (tmp_path / "model", "5")):
        trained = load_trained(path, which, CPU)
        archive = open_archive(radar, trained.archive)
        made.append(make_forecast(trained, archive, last(archive), Request(lead=2)).values)
        assert trained.run_hash == RunDir(run).config().hash8() and trained.run_hash in trained.title
    assert np.array_equal(made[0], made[1]) and np.array_equal(made[0], made[2])
    with pytest.raises(ConfigError, match="one checkpoint, step 5, requested 7"):
        load_trained(tmp_path / "model", "7", CPU)
    record = json.loads((tmp_path / "model" / "config.json").read_text())
    for changed_record in ({"archive": None}, {"run": None}, {"run": {"step": 5}}, {"run": {"hash": "x", "step": "y"}}):
        (tmp_path / "model" / "config.json").write_text(json.dumps(record | changed_record))
        with pytest.raises(CheckpointError, match="export the run again"):
            load_trained(tmp_path / "model", "best", CPU)


def test_a_relative_store_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_radar(tmp_path / "in", START, 12)
    assert shards(["convert", "radar", str(tmp_path / "in"), "store", "--crop", "none"]) == 0
    tree = {"name": "r", "model": {"name": "persistence"}, "data": {"store": "store", "context": 3, "horizon": 2}}
    run = RunDir.create(tmp_path / "run", make_config(tree, "test"))
    monkeypatch.chdir(tmp_path / "there")
    assert load_trained(run.path, "best", torch.device("cpu")).scale.unit == "dBZ"
    (tmp_path / "here/store").rename(tmp_path / "gone")
    with pytest.raises(ConfigError) as caught:
        load_trained(run.path, "best", torch.device("cpu"))
    for folder in (run.path, tmp_path / "there/store", tmp_path / "here/store"):
        assert str(folder) in str(caught.value)


@pytest.fixture
def moving(tmp_path: Path) -> tuple[Trained, Archive]:
    """An optical flow, and spots that move by 3 pixels a frame to the right; the scale has no code for missing."""
    for number, frame in enumerate(blobs((3.0, 0.0), 10, 48)[0, :, 0]):
        save(tmp_path / "moving" / "a" / f"{number}.png", (255 * frame.clamp(0, 1)).byte().numpy())
    archive = open_archive(tmp_path / "moving", {"source": "images", "channels": "grey"})
    model = build_model(OpticalFlowOptions(), FrameSpec(1, 48, 48))
    config = make_config({"model": {"name": "optical_flow"}, "data": {"context": 4, "horizon": 4}}, "test")
    described = archive.description
    return Trained(model, config, FrameSpec(1, 48, 48), described.scale, None, {}, 0, "0" * 8), archive


def test_inflow_is_missing_unless_kept(
    moving: tuple[Trained, Archive], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained, archive = moving
    frames = archive.up_to(archive.series()[3], 4, None)
    with caplog.at_level(logging.INFO):
        made = make_forecast(trained, archive, frames, Request(lead=4))
    kept = make_forecast(trained, archive, frames, Request(lead=4, keep_inflow=True))
    assert (
        made.inflow.any() and not made.inflow[..., 14:].any() and np.array_equal(np.isnan(made.values[0]), made.inflow)
    )
    assert f"{made.inflow.sum():,} of {made.inflow.size:,} pixels" in caplog.text
    assert not kept.inflow.any() and np.isfinite(kept.values).all()
    assert np.array_equal(kept.values[0][~made.inflow], made.values[0][~made.inflow])
    as_dataset = pytest.importorskip("toolkit.forecast.files").as_dataset
    assert "outside" in as_dataset(made)["intensity"].attrs["comment"]
    for suffix in ("png", "gif"):
        draw(made, tmp_path / f"made.{suffix}")
        with Image.open(tmp_path / f"made.{suffix}") as image:
            image.seek(getattr(image, "n_frames", 1) - 1)
            grey = sum(n for n, colour in image.convert("RGB").getcolors(1 << 20) if colour == (0xC4, 0xC4, 0xC4))
        assert grey > 100


def test_both_forecasts_are_scored_without_the_inflow(moving: tuple[Trained, Archive]) -> None:
    trained, archive = moving
    last = archive.series()[3]
    frames, following = archive.up_to(last, 4, None), archive.following(last, 4, None)
    results = {}
    for keep in (False, True):
        made = make_forecast(trained, archive, frames, Request(lead=4, keep_inflow=keep))
        truth = made.recoded(archive, following)
        results[keep] = verification(made, truth, (0.5,))
        for name, units in (("forecast", made.units[0]), ("persistence", made.context.codes[-1:] / 255)):
            error = np.where(made.inflow, 0.0, 255 * units - truth.codes) ** 2
            expected = np.sqrt(error.sum((1, 2, 3)) / (~made.inflow).sum((1, 2, 3))) * made.scale.gain
            assert results[keep][name]["rmse"] == pytest.approx(expected.tolist(), rel=1e-5)
        assert results[keep]["pixels_without_forecast"] == made.inflow.sum()
    assert "Not scored: " in as_text(results[False]) and "Not scored" not in as_text(results[True])
    assert results[False]["persistence"]["rmse"][-1] != results[True]["persistence"]["rmse"][-1]


def test_tiles_fill_each_others_inflow(moving: tuple[Trained, Archive]) -> None:
    """What flows into a tile from its neighbour is taken from the neighbour, where they overlap."""
    trained, archive = moving
    frames = archive.up_to(archive.series()[3], 4, None)
    whole = make_forecast(trained, archive, frames, Request(lead=4)).inflow[-1, 0]
    tiled = make_forecast(trained, archive, frames, Request(lead=4, tile=40, overlap=20)).inflow[-1, 0]
    assert whole[:, :10].mean() > 0.9 and tiled[:, :10].mean() > 0.9
    # The tiles begin at pixel 0 and 8: 12 columns flow into the second one, of which the first knows all.
    assert not whole[:, 14:].any() and tiled[:, 14:].mean() < 0.01

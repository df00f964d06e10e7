"""A store of several channels from its conversion to forecasts: some are read, others predicted, scored and written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import toolkit
from launch.evaluate import main as evaluate
from launch.export import main as export
from launch.predict import main as predict
from launch.sweeps.resources import frames_of
from launch.train import main as train
from shards.errors import UsageError
from shards.info import describe, summary
from shards.manifest import FrameSpec, Manifest
from shards.recent import open_archive
from shards.repack import repack
from shards.store import Store
from tests.support.clips import Clips, make_store
from tests.support.graphs import SCALE
from tests.support.runs import write_run
from tests.support.training import call, compared, cut_back, logged, weights_of
from toolkit.checkpoint.weights import load_model
from toolkit.config import RunConfig, make_config
from toolkit.config.channels import choose_channels, input_frames, target_frames
from toolkit.data.windows import open_windows, to_unit
from toolkit.errors import ConfigError
from toolkit.evaluate.check import check_scoring
from toolkit.forecast.make import Request, make_forecast
from toolkit.forecast.page.fields import fields_of
from toolkit.forecast.trained import load_trained
from toolkit.forecast.verify import verification
from toolkit.models.base import count_parameters
from toolkit.plan.cost import key_of, measured
from toolkit.train.check import check_training, keys_without_effect, open_data

NAMES = ["ir", "wv", "radar"]
CHOSEN: dict[str, Any] = {"inputs": ["radar", "ir"], "targets": ["radar"]}
MODEL = {"name": "convlstm", "layers": 1, "hidden": 4, "kernel": 3}


class Weather(Clips):
    """Noise in three channels; the first doesn't change in time."""

    def frames(self, event: Any) -> np.ndarray:
        made = super().frames(event)
        made[:, 0] = np.random.default_rng(7).integers(0, 255, made.shape[2:], dtype=np.uint8)
        return made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    source = Weather({"train": (9, 9, 9), "val": (9,), "test": (9, 9)}, (3, 16, 16))
    return make_store(tmp_path_factory.mktemp("stores") / "weather", "webdataset", source, channel_names=NAMES)


def tree(store: Store, **data: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "data": {"store": str(store.path), "context": 4, "horizon": 3, **CHOSEN, **data},
        "train": {"steps": 4, "batch": 2, "checkpoint": {"every": 2}, "validate_every": 2, "log_every": 1, "images": 1},
        "eval": {"thresholds": [50], "show": 1, "batch": 2},
    }


def config(store: Store, **data: Any) -> RunConfig:
    return make_config(tree(store, **data), "test")


def test_names_are_kept_with_the_store(store: Store, tmp_path: Path) -> None:
    manifest = store.manifest
    assert manifest.frames.names == tuple(NAMES)
    assert manifest.conversion["channel_names"] == NAMES
    assert "channels ir, wv, radar" in describe(store.path)
    assert summary(store.path)["frames"]["names"] == NAMES
    repack(store.path, tmp_path / "zarr", format="zarr", report=lambda text: None)
    repack(tmp_path / "zarr", tmp_path / "back", format="webdataset", report=lambda text: None)
    assert (tmp_path / "back" / "manifest.json").read_bytes() == (Path(store.path) / "manifest.json").read_bytes()


def test_a_store_without_names_is_what_it_was(tmp_path: Path) -> None:
    made = make_store(tmp_path / "plain", "webdataset", Clips(size=(3, 6, 4)))
    text = (tmp_path / "plain" / "manifest.json").read_text()
    assert list(json.loads(text)["frames"]) == ["channels", "height", "width", "dtype"]
    assert "channel_names" not in text
    assert made.manifest.frames == FrameSpec(3, 6, 4)
    assert Manifest.from_json(text).to_json() == text


@pytest.mark.parametrize("names", [["a", "b"], ["a", "a", "b"], ["a", "1", "b"], ["a", "b c", "d"]])
def test_names_that_no_config_could_tell_apart_are_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(UsageError, match="channel name"):
        make_store(tmp_path / "bad", "webdataset", Clips(size=(3, 6, 4)), channel_names=names)
    assert not (tmp_path / "bad").exists()


def test_channels_by_name_and_by_index(store: Store) -> None:
    frames = store.manifest.frames
    by_name = choose_channels(config(store).data, frames, "it")
    by_index = choose_channels(config(store, inputs=[2, 0], targets=2).data, frames, "it")
    assert by_name == by_index
    assert by_name is not None
    assert (by_name.inputs, by_name.targets, by_name.held) == ((2, 0), (0,), (1,))
    assert by_name.target_names == ("radar",)
    assert input_frames(config(store).data, frames).names == ("radar", "ir")
    assert target_frames(config(store).data, frames).shape == (1, 16, 16)
    nothing = config(store, inputs=None, targets=None)
    assert choose_channels(nothing.data, frames, "it") is None
    static = choose_channels(config(store, targets=None, static="ir", beyond="zero").data, frames, "it")
    assert static is not None
    assert (static.targets, static.held) == ((0,), (1,))


def test_the_identity_changes_only_with_what_is_set(store: Store) -> None:
    plain = config(store, inputs=None, targets=None)
    assert not {"inputs", "targets", "static", "beyond"} & set(plain.identity()["data"])  # type: ignore[call-overload]
    hashes = {config(store, **data).hash8() for data in ({}, {"inputs": None, "targets": None}, {"beyond": "zero"})}
    assert len(hashes) == 3


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"inputs": ["radar", "rain"]}, "data.inputs: there is no channel 'rain': .*0 ir, 1 wv, 2 radar"),
    ({"inputs": ["radar", 3], "targets": ["radar"]}, "data.inputs: there is no channel '3': .*0 ir, 1 wv, 2 radar"),
    ({"inputs": ["radar", "ir", 2]}, "data.inputs: the channel radar is named twice: .*0 ir, 1 wv, 2 radar"),
    ({"targets": ["wv"]}, r"data.targets: wv is not among data.inputs \(radar, ir\)"),
    ({"static": ["wv"]}, r"data.static: wv is not among data.inputs \(radar, ir\)"),
    ({"static": ["radar"]}, "data.static: radar is a target too"),
    ({"targets": None, "static": ["radar", "ir"]}, "data.static names every input"),
]


@pytest.mark.parametrize(("data", "message"), FAULTS)
def test_channels_that_cannot_be_are_refused_with_those_that_there_are(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: dict[str, Any], message: str
) -> None:
    """By training, by its dry run, and by what a sweep checks of trained models and of baselines."""
    bad = config(store, **data)
    with pytest.raises(ConfigError, match=message):
        open_data(bad)
    with pytest.raises(ConfigError, match=message):
        check_scoring(bad, store)
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(tree(store, **data)))
    with pytest.raises(ConfigError, match=message):
        train(["--config", str(file), "--dry-run"])
    assert capsys.readouterr().out == ""


def test_a_static_channel_that_changes_is_refused(store: Store) -> None:
    fine = config(store, static=["ir"])
    check_training(fine, open_data(fine))
    changing = config(store, inputs=["radar", "wv"], static=["wv"])
    with pytest.raises(
        ConfigError, match=r"data.static: wv changes in time, in [\d,]+ pixels of window train-0000@0000"
    ):
        check_training(changing, open_data(changing))


def test_lpips_and_dry_run_count_the_targets(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tree(store)))
    assert train(["--config", str(file), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "frames      2 x 16 x 16" in out
    assert "channels    radar, ir; predicted: radar" in out


def test_a_rule_beyond_the_context_without_such_inputs_is_reported(store: Store) -> None:
    def unused(**data: Any) -> list[str]:
        chosen = config(store, beyond="zero", **data)
        return keys_without_effect(chosen, choice=open_data(chosen).train.channels)

    assert unused() == []
    nothing = ["data.beyond (every input is a target or static)"]
    assert unused(inputs=None, targets=None) == unused(static=["ir"]) == nothing


def test_a_window_has_inputs_and_observations(store: Store) -> None:
    data = open_data(config(store))
    window = data.train[0]
    whole = open_data(config(store, inputs=None, targets=None)).train[0]
    assert np.array_equal(window.frames, whole.frames[:, [2, 0]])
    assert np.array_equal(window.observations, whole.frames[:, [2]])
    assert data.train.frames.shape == (2, 16, 16)
    assert whole.observations is whole.frames


def test_the_planner_counts_the_channels_that_are_read(store: Store) -> None:
    chosen, plain = config(store), config(store, inputs=None, targets=None)
    assert frames_of(chosen, None)[0] == (2, 16, 16)
    assert frames_of(plain, None)[0] == (3, 16, 16)
    assert key_of(chosen, 2) == key_of(plain, 2)
    (cost,) = measured([chosen], 2)
    constant, *_ = cost["parameters"]  # type: ignore[misc]
    assert constant == count_parameters(chosen.model, FrameSpec(2, 16, 16))


def test_training_is_resumed_to_the_last_bit(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tree(store)))
    done = call("--config", file, "--out", tmp_path / "whole")
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    cut_back(tmp_path / "cut", 2)
    done = call("--run", tmp_path / "cut")
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = (weights_of(tmp_path / name, 4) for name in ("whole", "cut"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert logged(tmp_path / "whole") == logged(tmp_path / "cut")
    assert before["cell.cells.0.gates.weight"].shape[1] == 2 * 16 + 4


def test_scores_and_pictures_are_of_the_targets(store: Store, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tree(store), 3)
    assert evaluate(["--run", str(run.path), "--which", "last"]) == 0
    result = json.loads((run.eval / "test-last.json").read_text())
    assert result["targets"] == ["radar"]
    assert result["frames"] == [1, 16, 16]
    model = load_model(run, "last", torch.device("cpu"))[0]
    windows = open_windows(run.config(), "test")
    errors = []
    for window in (windows[index] for index in range(len(windows))):
        codes = torch.from_numpy(window.frames)[None]
        units = to_unit(codes, windows.scale)
        truth, seen = units[0, 4:, :1], codes[0, 4:, :1] != windows.scale.missing_code
        made = model.predict(units[:, :4], 3)[0, 0].clamp(0, 1)
        squares = torch.stack([(each - truth).square() * seen for each in (made, units[0, 3:4, :1])])
        errors.append(256 * (squares.sum((2, 3, 4)) / seen.sum((1, 2, 3))).mean(1))
    expected, persistence = torch.stack(errors).mean(0).tolist()
    assert result["overall"]["mse"] == pytest.approx(expected, rel=1e-4)
    assert result["persistence"]["overall"]["mse"] == pytest.approx(persistence, rel=1e-4)
    with np.load(run.eval / "test-last.samples.npz") as frames:
        assert frames["context"].shape[2] == frames["truth"].shape[2] == frames["prediction"].shape[2] == 1


@pytest.mark.parametrize("name", ["persistence", "optical_flow"])
def test_baselines_are_scored_on_the_targets(store: Store, tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run", {**tree(store), "model": {"name": name}})
    assert evaluate(["--run", str(run.path), "--exclude-inflow"]) == 0
    result = json.loads(next(run.eval.glob("*.json")).read_text())
    assert result["frames"] == [1, 16, 16]
    if name == "persistence":
        assert result["overall"] == result["persistence"]["overall"]


@pytest.mark.filterwarnings("ignore")  # of torch's tracers
@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_exports_forecast_as_the_run_does(store: Store, tmp_path: Path, kind: str) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    run = write_run(tmp_path / "run", tree(store), 3)
    model = load_model(run, "last", torch.device("cpu"))[0]
    frames = torch.rand(2, 4, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = model.predict(frames, 3)
    assert expected.shape == (1, 2, 3, 1, 16, 16)
    out = tmp_path / "export"
    assert export(["--run", str(run.path), "--which", "last", "--out", str(out), "--format", kind]) == 0
    assert torch.equal(toolkit.load(out).predict(frames, 3), expected)
    assert (out / f"model.{kind}").exists()  # compared with the model before it is kept
    card = (out / "README.md").read_text()
    assert "torch.rand(1, 4, 2, 16, 16)" in card
    assert "Channels of a frame: radar, ir; of the forecast: radar" in card
    assert json.loads((out / "config.json").read_text())["frames"]["names"] == NAMES


@pytest.mark.parametrize("source", ["run", "export"])
def test_forecasts_hold_the_targets(store: Store, tmp_path: Path, source: str) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    run = write_run(tmp_path / "run", tree(store), 3)
    path = run.path
    if source == "export":
        path = tmp_path / "export"
        assert export(["--run", str(run.path), "--which", "last", "--out", str(path)]) == 0
    out = tmp_path / "forecast.nc"
    at = "test-0001"
    arguments = [str(path), "--input", str(store.path), "--at", at, "--out", str(out), "--lead", "2"]
    assert predict([*arguments, "--picture", str(tmp_path / "forecast.png")]) == 0
    with xarray.open_dataset(out) as made:
        assert made["noise"].dims[-2:] == ("y", "x")
        assert "channel" not in made.dims
        assert made["noise"].attrs["channel"] == "radar"
        assert made["noise"].shape[0] == 2
    assert (tmp_path / "forecast.png").stat().st_size > 1000


def test_a_forecast_is_verified_with_the_targets(store: Store, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tree(store), 3)
    trained = load_trained(run.path, "last", torch.device("cpu"))
    archive = open_archive(str(store.path), trained.archive)
    frames = archive.series()[-6:]
    forecast = make_forecast(trained, archive, frames[:4], Request(lead=2))
    truth = forecast.recoded(archive, frames[4:])
    codes = archive.read(frames)
    assert np.array_equal(forecast.context.codes, codes[:4, [2]])
    assert np.array_equal(truth.codes, codes[4:, [2]])
    expected = trained.model.predict(to_unit(torch.from_numpy(codes[:4, [2, 0]]), trained.scale)[None], 2)[0, 0]
    assert torch.equal(torch.from_numpy(forecast.units[0]), expected.clamp(0, 1))
    assert verification(forecast, truth, (50,))["pixels"] == 2 * 256
    assert set(fields_of(forecast).values["optical_flow"].shape) == {2, 1, 16}


def test_an_archive_with_other_channels_is_refused(store: Store, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tree(store), 3)
    others = {"three": ["ir", "radar", "wv"], "two": ["ir", "radar"]}
    for name, names in others.items():
        source = Clips({"test": (9,)}, (len(names), 16, 16))
        other = make_store(tmp_path / name, "webdataset", source, channel_names=names)
        arguments = [str(run.path), "--input", str(other.path), "--out", str(tmp_path / "f.nc")]
        expected = "ir, radar, wv, the model was trained on ir, wv, radar" if name == "three" else "2 channels"
        with pytest.raises(ConfigError, match=expected):
            predict(arguments)


def test_another_store_is_scored_by_the_names_of_its_channels(store: Store, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tree(store), 3)
    source = Clips({"train": (9,), "test": (9,)}, (2, 16, 16))
    other = make_store(tmp_path / "other", "webdataset", source, channel_names=["ir", "radar"])
    assert evaluate(["--run", str(run.path), "--which", "last", "--store", str(other.path)]) == 0
    lacking = make_store(tmp_path / "lacking", "webdataset", source, channel_names=["ir", "wv"])
    with pytest.raises(ConfigError, match=r"no channel 'radar': .*0 ir, 1 wv"):
        evaluate(["--run", str(run.path), "--which", "last", "--store", str(lacking.path)])


def test_a_graphed_step_equals_the_eager_one(tmp_path: Path) -> None:
    data = {"inputs": [0, 1, 2], "targets": [1], "static": [2]}
    cases = [{"model": {**MODEL, "patch": 2}, "data": data, "channels": 3, "steps": 6}]
    (seen,) = compared(cases, tmp_path)
    assert seen["on"] == seen["off"]
    assert seen["norms"] and seen["state"]
    assert SCALE.missing_code is not None  # masks are chosen with the channels

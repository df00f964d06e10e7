"""Starting from another run's weights: what is taken over, left out, refused and frozen."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.manifest import FrameSpec
from tests.support.clips import Clips, make_store
from tests.support.runs import write_run
from tests.support.training import Train, call, weights_of
from toolkit.checkpoint import commit
from toolkit.checkpoint import initialise as initialisation
from toolkit.checkpoint.checkpoint import Progress, TrainState
from toolkit.checkpoint.export import export_run
from toolkit.checkpoint.initialise import freeze, initialise
from toolkit.checkpoint.weights import read_weights, untrained_model
from toolkit.config import make_config
from toolkit.config.recipe import InitialisationConfig
from toolkit.distributed.world import World
from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.base import SequenceModel
from toolkit.rundir import RunDir
from toolkit.train.build import build_engine

ALONE = World(0, 1, 0, torch.device("cpu"))
SMALL = {"name": "modernn", "layers": 2, "hidden": 4, "patch": 4}


def model_of(channels: int = 1, **options: object) -> SequenceModel:
    torch.manual_seed(99)
    return untrained_model(make_config({"model": {**SMALL, **options}}, "test"), FrameSpec(channels, 32, 32))


@pytest.fixture
def run(tiny_store: Path, tmp_path: Path) -> RunDir:
    return write_run(tmp_path / "run", {"model": SMALL, "data": {"store": str(tiny_store)}}, 3, 7, best=3)


def of(run: RunDir | Path, **options: object) -> InitialisationConfig:
    path = run.path if isinstance(run, RunDir) else run
    return InitialisationConfig.model_validate({"path": str(path), **options})


def equal(model: SequenceModel, weights: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, value in model.state_dict().items() if torch.equal(value, weights[name])]


@pytest.mark.parametrize("which", ["best", "last"])
def test_the_named_checkpoint_is_taken_over(run: RunDir, which: str) -> None:
    model = model_of()
    initialise(model, of(run, checkpoint=which), ALONE)
    weights, step = read_weights(run, which)
    assert step == {"best": 3, "last": 7}[which]
    assert equal(model, weights) == list(weights)


def test_all_ranks_take_what_rank_0_has_read(run: RunDir, tmp_path: Path) -> None:
    """Whatever `best` of the source is by the time that another rank looks, and whether it is there at all."""
    read = initialisation._read(of(run))

    class Follower(World):
        def run_on_rank_zero(self, action: Callable[[], Any]) -> Any:
            return read

    commit.point(run.checkpoints, "best", 7)
    for source in (of(run), of(tmp_path / "nowhere")):
        model = model_of()
        initialise(model, source, Follower(1, 2, 1, torch.device("cpu")))
        assert equal(model, read_weights(run, "3")[0]) == list(model.state_dict())


def test_an_export_is_taken_over(run: RunDir, tmp_path: Path) -> None:
    export_run(run, "last", tmp_path / "export")
    model = model_of()
    initialise(model, of(tmp_path / "export"), ALONE)
    assert len(equal(model, read_weights(run, "last")[0])) == len(model.state_dict())


def test_another_number_of_slots_is_refused_or_named(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    model = model_of(slots=2)
    with pytest.raises(ConfigError, match=r"parameters? of another shape: cell\.cells\.0\..*train\.init_from\.strict"):
        initialise(model, of(run), ALONE)
    with caplog.at_level(logging.INFO):
        initialise(model, of(run, strict=False), ALONE)
    assert "keep their own initialisation: cell.cells.0." in caplog.text
    shared = [
        name for name, value in model.state_dict().items() if value.shape == read_weights(run, "best")[0][name].shape
    ]
    assert equal(model, read_weights(run, "best")[0]) == shared
    assert 0 < len(shared) < len(model.state_dict())


def test_buffers_of_integers_are_the_models_own(run: RunDir) -> None:
    """A checkpoint holds them as it holds weights, in fp32."""
    model, other = model_of(), model_of()
    for made in (model, other):
        made.register_buffer("index", torch.arange(4))
    weights = {name: value.float() for name, value in other.state_dict().items()}
    commit.save(run.checkpoints, TrainState(weights, {}, 9), Progress(9, 72), run.config().hash8(execution=False))
    initialise(model, of(run, checkpoint="last"), ALONE)
    assert equal(model, weights) == list(weights)
    assert model.get_buffer("index").dtype == torch.int64


def test_parameters_left_out_keep_their_initialisation(run: RunDir) -> None:
    model, untouched = model_of(), model_of()
    initialise(model, of(run, leave_out=["cell.cells.1.*"]), ALONE)
    for name, value in model.state_dict().items():
        other = untouched.state_dict()[name] if name.startswith("cell.cells.1.") else read_weights(run, "best")[0][name]
        assert torch.equal(value, other), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"leave_out": ["nothing.*"]}, r"leave_out: 'nothing\.\*' matches no parameter"),
        ({"leave_out": ["*"]}, "everything is left out"),
        ({"checkpoint": "ema"}, "holds no moving average"),
    ],
)
def test_what_can_not_be_taken_over(run: RunDir, options: dict[str, object], message: str) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=message):
        initialise(model_of(), of(run, **options), ALONE)


def test_a_source_that_is_not_there_leaves_no_run_behind(tiny_config: Path, tmp_path: Path) -> None:
    """And a patience without a validation is refused as early."""
    out = tmp_path / "run"
    for setting, message in (
        (f"train.init_from.path={tmp_path / 'nowhere'}", "train.init_from.path: neither an export"),
        ("train.patience=2 --set data.val_split=none", "train.patience 2 counts validations"),
    ):
        done = call("--config", tiny_config, "--set", *setting.split(" "), "--out", out)
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert not out.exists()


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        initialise(model_of(), of(tmp_path / "nowhere"), ALONE)


def test_frozen_parameters() -> None:
    model = model_of()
    freeze(model, InitialisationConfig(freeze=("cell.cells.0.*",)))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("cell.cells.0.")} != set()
    with pytest.raises(ConfigError, match="none is left to train"):
        freeze(model, InitialisationConfig(freeze=("*",)))
    with pytest.raises(ConfigError, match=r"train\.zero 3"):
        make_config({"train": {"zero": 3, "init_from": {"path": "x", "freeze": ["*"]}}}, "test")


def test_parameters_that_a_model_itself_keeps_fixed_stay_so() -> None:
    model = model_of()
    own = [name for name, _ in model.named_parameters() if name.startswith("cell.cells.1.")]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in own)
    assert freeze(model, InitialisationConfig()) == []
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == own
    config = make_config({"model": SMALL, "train": {"zero": 3}}, "test")
    with pytest.raises(ConfigError, match=r"train\.zero 3 .* keeps cell\.cells\.1\."):
        build_engine(model, config, ALONE, None)
    rest = tuple(name for name, _ in model.named_parameters() if name not in own)
    with pytest.raises(ConfigError, match="none is left to train"):
        freeze(model, InitialisationConfig(freeze=rest))


@pytest.mark.parametrize("engine", [["train.graph=on"], ["train.zero=0"], ["train.zero=1", "train.precision=bf16"]])
def test_fine_tuning_leaves_frozen_parameters_and_stops_early(
    tiny_config: Path, tmp_path: Path, engine: list[str]
) -> None:
    """A second run from the first one's weights, in which the first layer is frozen and nothing improves."""
    settings = ["data.context=2", "data.horizon=2", "train.validate_every=2", "train.checkpoint.every=2", *engine]
    first, second = tmp_path / "first", tmp_path / "second"
    options = [part for setting in settings for part in ("--set", setting)]
    done = call("--config", tiny_config, *options, "--set", "train.steps=2", "--out", first)
    assert done.returncode == 0, done.stderr
    tuning = [f"train.init_from={{path: {first}, checkpoint: last, freeze: ['cell.cells.0.*']}}", "train.steps=50"]
    tuning += ["train.patience=2", "train.lr=1e-12", "train.optimizer=sgd"]
    more = [part for setting in tuning for part in ("--set", setting)]
    done = call("--config", tiny_config, *options, *more, "--out", second)
    assert done.returncode == 0, done.stderr
    assert "early stopping at step 6: no better validation mse since step 2" in done.stderr, done.stderr
    assert (second / "DONE").exists() and json.loads((second / "state.json").read_text())["step"] == 6
    before, after = weights_of(first, 2), weights_of(second, 6)
    for name, value in after.items():
        expected = before[name].bfloat16().float() if "train.precision=bf16" in engine else before[name]
        frozen = name.startswith("cell.cells.0.")
        assert torch.equal(value, expected) if frozen else torch.allclose(value, expected, rtol=0.01), name
    again = call("--run", second)
    assert again.returncode == 0 and "already trained" in again.stderr


def test_two_ranks_start_from_the_weights_that_rank_0_has_read(
    tiny_config: Path, train_on: Train, tmp_path: Path
) -> None:
    base = ["data.context=2", "data.horizon=2", "train.steps=2"]
    source = f"train.init_from={{path: {tmp_path / 'first'}, checkpoint: last, freeze: ['cell.cells.0.*']}}"
    jobs = [("first", base), ("second", [*base, source, "train.graph=on"])]
    train_on([{"config": str(tiny_config), "set": keys, "run": str(tmp_path / name)} for name, keys in jobs], 2)
    before, after = weights_of(tmp_path / "first", 2), weights_of(tmp_path / "second", 2)
    frozen = {name for name in before if name.startswith("cell.cells.0.")}
    assert frozen <= {name for name in before if torch.equal(before[name], after[name])} < set(before)
    assert frozen


@pytest.mark.parametrize("source", ["run", "export"])
def test_channels_in_another_order_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture, source: str) -> None:
    """Their weights have the same shapes, and go by position."""
    clips = Clips({"train": (9,)}, (3, 16, 16))
    store = make_store(tmp_path / "store", "webdataset", clips, channel_names=["ir", "wv", "radar"])
    trees = [{"model": SMALL, "data": {"store": str(store.path), "inputs": names}} for names in (None, [2, 0, 1])]
    path = write_run(tmp_path / "run", trees[0], 3).path
    if source == "export":
        export_run(RunDir(path), "last", tmp_path / "export")
        path = tmp_path / "export"
    for number, tree in enumerate(trees):
        model = untrained_model(make_config(tree, "test"), store.manifest.frames)
        caplog.clear()
        initialise(model, of(path), ALONE)
        told = "reads the channels ir, wv, radar and this run reads radar, ir, wv"
        assert (told in caplog.text) is bool(number)

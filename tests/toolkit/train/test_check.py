"""What a training needs of its config and store: found before it is submitted or started, by every way to start it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from launch.sweeps.plan import check_configs, collect_status
from launch.sweeps.spec import plan_sweep
from launch.train import main as train
from shards import Scale
from tests.support.refused import is_refused_everywhere
from tests.support.runs import write_run
from tests.support.training import call
from toolkit.checkpoint.source import CONFIG
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import make_config
from toolkit.distributed.world import World
from toolkit.errors import ConfigError
from toolkit.rundir import RunDir
from toolkit.train import prepare, size
from toolkit.train.build import build_engine
from toolkit.train.check import READ, keys_without_effect, open_data

SMALL = {"name": "convlstm", "layers": 1, "hidden": 4, "kernel": 3}
RAIN, DBZ = Scale("rain rate", "mm/h", 0.0, 0.25), Scale("reflectivity", "dBZ", -32.0, 0.5)
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "source": ({"train": {"init_from": {"path": "/nowhere/at-all"}}}, "init_from.path: neither an export"),
    "patience": ({"train": {"patience": 2}, "data": {"val_split": "none"}}, "train.patience 2 counts validations"),
    "training split": ({"data": {"train_split": "tarin"}}, "no split 'tarin'"),
    "lead times": ({"train": {"loss": {"lead_times": [1, 2]}}}, "has 2 weights and data.horizon is 3"),
    "best score": ({"train": {"best_by": "csi@30"}}, "train.best_by: 'csi@30' is no score .* known .*: mse, mae, rmse"),
    "context of SimVP": ({"model": {"name": "simvp"}}, r"model.frames 10 is more than the 3 frames .*model.frames=3"),
    "size of SVG": (
        {"model": {"name": "svg_lp", "size": 8}},
        r"model.size 8 is smaller than .* 16x16: set model.size=16",
    ),
    "compiled without a step": (
        {"model": {"name": "simvp", "frames": 3}, "train": {"compile": "default"}},
        "train.compile default: simvp has no step",
    ),
    "compiled under ZeRO-3": ({"train": {"compile": "default", "zero": 3}}, "use train.zero 2 or less"),
    "graphed under ZeRO": ({"train": {"graph": "on", "zero": 1}}, "train.graph on: train.zero 1"),
    "rain rates": ({"train": {"loss": {"kind": "balanced"}}}, "use a store in mm/h or dBZ"),
}


def tree_of(store: Path, values: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": values.get("model", SMALL),
        "data": {"store": str(store), "context": 3, "horizon": 3, **values.get("data", {})},
        "train": values.get("train", {}),
    }


@pytest.mark.parametrize("order", [["mse", "csi@99"], ["csi@99", "mse"]])
def test_every_value_of_a_sweep_is_checked(order: list[str], tiny_store: Path, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(json.dumps(tree_of(tiny_store, {})))
    (tmp_path / "demo.yaml").write_text(f"base: base.yaml\ngrid: {{train.best_by: {json.dumps(order)}}}\n")
    with pytest.raises(ConfigError, match=r"train\.best_by: 'csi@99' is no score"):
        check_configs(collect_status(plan_sweep(tmp_path / "demo.yaml"), tmp_path / "runs", ()))


def test_a_run_without_a_checkpoint_is_no_source(tiny_store: Path, tmp_path: Path) -> None:
    source = RunDir.create(tmp_path / "source", make_config(tree_of(tiny_store, {}), "t"))
    (tmp_path / "base.yaml").write_text(
        json.dumps(tree_of(tiny_store, {"train": {"init_from": {"path": str(source.path)}}}))
    )
    is_refused_everywhere(tmp_path / "base.yaml", "checkpoints: holds no checkpoint: train that run first")


def test_a_moving_average_that_is_not_kept_is_no_source(tiny_store: Path, tmp_path: Path) -> None:
    source = write_run(tmp_path / "source", tree_of(tiny_store, {}), 3)
    asked = {"path": str(source.path), "checkpoint": "ema"}
    (tmp_path / "base.yaml").write_text(json.dumps(tree_of(tiny_store, {"train": {"init_from": asked}})))
    is_refused_everywhere(tmp_path / "base.yaml", "source holds no moving average")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.hidden": 8}, "does not fit this model: .* of another shape"),
        ({"model.layers": 2}, "does not fit this model: .* absent from it"),
        ({"train.init_from.leave_out": ["nope.*"]}, "leave_out: 'nope.*' matches no parameter"),
        ({"train.init_from.leave_out": ["*"]}, "everything is left out"),
        ({"train.init_from.freeze": ["nope.*"]}, "freeze: 'nope.*' matches no parameter"),
        ({"train.init_from.freeze": ["*"]}, "none is left to train"),
    ],
)
def test_a_source_that_does_not_fit_leaves_no_run_behind(
    tiny_store: Path, tmp_path: Path, values: dict[str, object], message: str
) -> None:
    source = write_run(tmp_path / "source", tree_of(tiny_store, {}), 3)
    tree = tree_of(tiny_store, {"train": {"init_from": {"path": str(source.path)}}})
    (tmp_path / "base.yaml").write_text(json.dumps(tree))
    options = [part for key, value in values.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    for last in (["--dry-run"], ["--out", str(tmp_path / "run")]):
        with pytest.raises(ConfigError, match=message):
            train(["--config", str(tmp_path / "base.yaml"), *options, *last])
    assert not (tmp_path / "run").exists()


def test_a_dry_run_refuses_no_source_that_is_not_needed(tiny_store: Path, tmp_path: Path) -> None:
    tree = tree_of(tiny_store, {"train": {"init_from": {"path": "/nowhere"}}}) | {"model": {"name": "persistence"}}
    (tmp_path / "base.yaml").write_text(json.dumps(tree))
    assert train(["--config", str(tmp_path / "base.yaml"), "--dry-run"]) == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_training_that_must_fail_is_refused_before_it_starts(fault: str, tiny_store: Path, tmp_path: Path) -> None:
    values, message = FAULTS[fault]
    (tmp_path / "base.yaml").write_text(json.dumps(tree_of(tiny_store, values)))
    is_refused_everywhere(tmp_path / "base.yaml", message)


def test_a_run_that_is_trained_needs_no_source_any_more(tiny_store: Path, tmp_path: Path) -> None:
    tree = tree_of(tiny_store, {"train": {"init_from": {"path": str(tmp_path / "gone")}}})
    (tmp_path / "base.yaml").write_text(json.dumps(tree))
    (tmp_path / "demo.yaml").write_text("base: base.yaml\n")
    plan = plan_sweep(tmp_path / "demo.yaml")
    write_run(tmp_path / "runs" / plan.runs[0].folder, {**tree, "seed": plan.runs[0].config.seed}, 3).mark_done()
    (item,) = collect_status(plan, tmp_path / "runs", ())
    assert (item.what, item.submitted) == ("evaluate", True)
    check_configs([item])


def test_too_many_readers_leave_no_run_behind(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(size, "host_memory", lambda: 10**9)
    (tmp_path / "base.yaml").write_text(json.dumps(tree_of(tiny_store, {"data": {"num_workers": 16}})))
    with pytest.raises(ConfigError, match="num_workers 16"):
        train(["--config", str(tmp_path / "base.yaml"), "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_the_summary_counts_the_windows_that_are_validated(
    tiny_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(0, 1, 0, torch.device("cpu"))
    for number, expected in ((1, "1 validation window (the first of "), (None, "validation windows\n")):
        values = {"train": {"validate_samples": number, "graph": "on"}, "data": {"eval_stride": 1}}
        config = make_config(tree_of(tiny_store, values), "test")
        data = open_data(config)
        engine = build_engine(untrained_model(config, data.store.manifest.frames), config, world, None)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            prepare.log_run_summary(RunDir.create(tmp_path / str(number), config), config, data, engine, 0)
        assert expected in caplog.text, caplog.text


def test_a_run_is_checked_once_at_each_start(tiny_store: Path, tmp_path: Path) -> None:
    """A new one, and one that is there already, as those that a sweep has made."""
    tree = tree_of(tiny_store, {})
    (tmp_path / "base.yaml").write_text(json.dumps({**tree, "model": {"name": "persistence"}, "eval": {"analyse": 9}}))
    for _ in range(2):
        done = call("--config", tmp_path / "base.yaml", "--out", tmp_path / "run")
        assert done.returncode == 0 and RunDir(tmp_path / "run").done, done.stderr
        assert done.stderr.count("persistence has no recurrent state to analyse") == 1, done.stderr
        (tmp_path / "run" / "DONE").unlink()


@pytest.mark.parametrize(
    ("train", "unused"),
    [
        ({}, []),
        ({"schedule": {"kind": "cosine", "warmup": 5, "final": 0.1}, "betas": [0.8, 0.9]}, []),
        ({"schedule": {"final": 0.1}}, ["train.schedule.final (train.schedule.kind is constant)"]),
        (
            {"schedule": {"kind": "cosine", "warmup": 8}, "steps": 8},
            ["train.schedule.kind (warm-up takes 8 steps and train.steps is 8: train.lr is never reached)"],
        ),
        ({"schedule": {"kind": "cosine", "warmup": 7}, "steps": 8}, []),
        (
            {"schedule": {"kind": "step", "warmup": 2, "every": 6}, "steps": 8},
            ["train.schedule.factor (the first drop is after 8 steps and train.steps is 8)"],
        ),
        ({"schedule": {"kind": "step", "warmup": 2, "every": 5}, "steps": 8}, []),
        ({"loss": {"huber_delta": 0.2}}, ["train.loss.huber_delta (train.loss.kind is l2)"]),
        ({"sampling": {"kind": "sigmoid", "slope": 0.1}}, ["train.sampling.slope (train.sampling.kind is sigmoid)"]),
        ({"momentum": 0.5}, ["train.momentum (train.optimizer is adam)"]),
        ({"optimizer": "sgd", "betas": [0.8, 0.9]}, ["train.betas (train.optimizer is sgd)"]),
        (
            {"schedule": {"kind": "one_cycle"}, "betas": [0.8, 0.9]},
            ["train.betas[0] (train.schedule.kind is one_cycle, which varies it)"],
        ),
        ({"schedule": {"kind": "one_cycle"}, "betas": [0.9, 0.99]}, []),
        ({"schedule": {"kind": "one_cycle"}, "betas": [0, 0.999]}, []),  # without a first moment it stays so
        (
            {"schedule": {"kind": "one_cycle"}, "optimizer": "sgd", "momentum": 0.5},
            ["train.momentum (train.schedule.kind is one_cycle, which varies it)"],
        ),
        ({"schedule": {"kind": "one_cycle"}, "optimizer": "sgd", "momentum": 0}, []),
        ({"init_from": {"strict": False}}, ["train.init_from.strict (train.init_from.path is empty)"]),
        ({"init_from": {"freeze": ["a.*"]}}, []),
    ],
)
def test_keys_of_a_recipe_without_effect_are_found(train: dict[str, object], unused: list[str]) -> None:
    assert keys_without_effect(make_config({"train": train}, "test")) == unused


def test_keys_that_a_model_a_store_or_a_source_does_not_use_are_found(tmp_path: Path) -> None:
    asked = {"sampling": {"slope": 0.1}, "loss_frames": "future"}
    expected = {"modernn": [], "svg_lp": ["sampling"], "trajgru": ["sampling", "loss_frames"]}
    for name, keys in {**expected, "simvp": expected["trajgru"]}.items():
        found = keys_without_effect(make_config({"model": {"name": name}, "train": asked}, "test"))
        assert [text.partition(" ")[0] for text in found] == [f"train.{key}" for key in keys], name
    balanced = make_config({"train": {"loss": {"kind": "balanced", "zr": [58.53, 1.56]}}}, "test")
    assert keys_without_effect(balanced, DBZ) == keys_without_effect(balanced) == []
    assert keys_without_effect(balanced, RAIN) == ["train.loss.zr (the store is in mm/h)"]
    source = make_config({"train": {"init_from": {"path": str(tmp_path), "checkpoint": "last"}}}, "test")
    assert keys_without_effect(source) == []
    (tmp_path / CONFIG).write_text("{}")
    assert keys_without_effect(source) == ["train.init_from.checkpoint (train.init_from.path is an export)"]


def test_every_choice_of_a_recipe_says_what_it_reads() -> None:
    for section, read in READ.items():
        assert set(read) == set(get_args(section.model_fields["kind"].annotation)), section
        keys = {key for keys in read.values() for key in keys}
        assert keys == set(section.model_fields) - {"kind"}, section

"""The step that a GPU replays as one CUDA graph, on a CPU: all but the capture itself, against the eager step."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.graphs import small
from tests.support.process import PATIENCE_S, ROOT, one_thread
from tests.support.training import SCRIPT, Train, call, compared, cut_back, logged, weights_of
from toolkit.config import load_config
from toolkit.errors import EXIT_NONFINITE, ConfigError
from toolkit.models.base import Noise
from toolkit.train.graphed import FlatTensor, StaticNoise

TRAINED = (
    "modernn",
    "modernn_released",
    "convlstm",
    "predrnn",
    "mim",
    "conv_tt_lstm",
    "rim",
    "trajgru",
    "svg_lp",
    "simvp",
)
FAST = ("modernn", "predrnn")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in TRAINED]
)
def test_two_hundred_steps_equal_the_eager_ones_to_the_last_bit(tmp_path: Path, name: str) -> None:
    (seen,) = compared([{"model": small(name), "train": {"batch": 2}, "steps": 200, "frames": 4}], tmp_path)
    assert seen["on"] == seen["off"]
    assert seen["norms"]
    assert seen["state"]
    assert len(seen["on"]) == 200
    assert seen["on"][-1] < seen["on"][0]


SETTINGS: list[dict[str, Any]] = [
    {"clip": 0.01},
    {"clip": 0.01, "micro_batch": 2},
    {"precision": "bf16"},
    {"precision": "bf16", "micro_batch": 1},
    {"activation_checkpointing": {"policy": "step", "per_layer": True}},
    {"activation_checkpointing": {"policy": "recursive"}, "precision": "bf16"},
    {"sampling": {"start": 0.5, "slope": 0.1, "stop": 3}},
    {"loss_frames": "future"},
]


def test_every_setting_equals_the_eager_step_to_the_last_bit(tmp_path: Path) -> None:
    cases = [{"model": small("modernn"), "train": settings, "steps": 8} for settings in SETTINGS]
    cases.append({"model": {**small("modernn"), "patch": 3}, "train": {"micro_batch": 2}, "steps": 8, "size": 13})
    for case, seen in zip(cases, compared(cases, tmp_path), strict=True):
        assert seen["on"] == seen["off"], case
        assert seen["norms"] and seen["state"], case


def test_deferred_weight_gradients_are_the_same_but_for_rounding(tmp_path: Path) -> None:
    defer = {"defer_weight_gradients": "on"}
    cases = [{"model": small(name), "train": {**defer, "clip": 0.01}, "steps": 30} for name in ("modernn", "predrnn")]
    cases.append({"model": small("modernn"), "train": {**defer, "precision": "bf16"}, "steps": 30})
    for case, seen in zip(cases, compared(cases, tmp_path), strict=True):
        low = case["train"].get("precision") == "bf16"
        assert seen["on"] == pytest.approx(seen["off"], rel=5e-3 if low else 1e-5), case
        assert not seen["state"]  # it was really another order of additions


KINDS = [[], ["train.micro_batch=1"], ["train.precision=bf16", "train.clip=null"]]


@pytest.fixture(scope="module")
def two_ranks(tiny_config: Path, train_on: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of each kind on two ranks: `on0`, `off0`, `on1` ..."""
    folder = tmp_path_factory.mktemp("graphs")
    jobs = [
        {"config": str(tiny_config), "set": [*kind, f"train.graph={graph}"], "run": str(folder / f"{graph}{index}")}
        for index, kind in enumerate(KINDS)
        for graph in ("on", "off")
    ]
    train_on(jobs, 2)
    return folder


@pytest.mark.parametrize("index", range(len(KINDS)), ids=lambda index: " ".join(KINDS[index]) or "fp32")
def test_two_ranks_equal_two_eager_ranks(two_ranks: Path, index: int) -> None:
    on, off = logged(two_ranks / f"on{index}"), logged(two_ranks / f"off{index}")
    assert len(on) == 6
    # In bf16 DeepSpeed's Adam has a part of the weights on each rank, which ends elsewhere in its vector code.
    assert on == (pytest.approx(off, rel=1e-6) if "bf16" in " ".join(KINDS[index]) else off)


def test_a_resumed_run_is_the_run_that_was_not_interrupted(two_ranks: Path, train_on: Train, tiny_config: Path) -> None:
    """On two ranks; and a run may change over from one step to the other at a checkpoint."""
    whole = [weights_of(two_ranks / f"on{index}", 6) for index in range(len(KINDS))]
    runs = [two_ranks / f"on{index}" for index in range(len(KINDS))] + [two_ranks / "off0"]
    for run in runs:
        cut_back(run, 4)
    changed = (two_ranks / "off0" / "config.yaml").read_text().replace("graph: 'off'", "graph: 'on'")
    assert "graph: 'on'" in changed
    (two_ranks / "off0" / "config.yaml").write_text(changed)
    train_on([{"config": str(run / "config.yaml"), "run": str(run)} for run in runs], 2)
    for run, weights in zip(runs, [*whole, whole[0]], strict=True):
        found = weights_of(run, 6)
        assert all(torch.equal(found[name], weights[name]) for name in weights), run.name
        assert len(logged(run)) == 6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(tiny_config: Path, tmp_path: Path, precision: str) -> None:
    options = ["--set", "train.graph=on", "--set", f"train.precision={precision}"]
    options += ["--set", "train.steps=30", "--set", "train.checkpoint.every=5", "--set", "train.validate_every=30"]
    assert call("--config", tiny_config, "--out", tmp_path / "whole", *options).returncode == 0
    command = [*SCRIPT, "--config", str(tiny_config), "--out", str(tmp_path / "killed"), *options]
    process = subprocess.Popen(command, cwd=ROOT, env=one_thread(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "step 12/30" in line:
            process.kill()
            break
    process.stderr.close()
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
    again = call("--run", tmp_path / "killed")
    assert again.returncode == 0, again.stderr
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")
    a, b = (weights_of(tmp_path / name, 30) for name in ("whole", "killed"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_loss_that_is_not_finite_changes_nothing(tiny_config: Path, tmp_path: Path) -> None:
    """The update is left out on the device; a huge rate makes the next loss infinite or NaN."""
    options = ["--set", "train.graph=on", "--set", "train.clip=null", "--set", "train.lr=1e30"]
    done = call("--config", tiny_config, "--out", tmp_path / "raise", *options)
    assert done.returncode == EXIT_NONFINITE
    assert "is not finite on 1 of 1 ranks" in done.stderr
    assert "Nothing was updated" in done.stderr
    done = call("--config", tiny_config, "--out", tmp_path / "skip", *options, "--set", "train.on_nonfinite=skip")
    assert done.returncode in (0, EXIT_NONFINITE)  # after the last step it is validated
    skipped = [json.loads(line) for line in (tmp_path / "skip" / "metrics.jsonl").read_text().splitlines()]
    assert any(line["kind"] == "skipped" for line in skipped) or "left out" in done.stderr, skipped


def test_what_cannot_be_graphed_says_why(tiny_config: Path, tmp_path: Path) -> None:
    assert load_config(tiny_config).train.why_not_graphed() is None
    for settings, words in {
        ("train.zero=2",): r"train\.zero 2 reduces gradients by hooks",
        (
            "train.activation_checkpointing.policy=step",
            "train.activation_checkpointing.offload=true",
        ): r"train\.activation_checkpointing\.offload copies to the host",
        (
            "train.activation_checkpointing.policy=step",
            "train.activation_checkpointing.backend=deepspeed",
        ): r"activation_checkpointing.backend deepspeed",
        ("train.deepspeed={dump_state: true}",): r"train\.deepspeed sets dump_state",
    }.items():
        reason = load_config(tiny_config, settings).train.why_not_graphed()
        assert reason is not None
        assert re.search(words, reason), reason
    done = call("--config", tiny_config, "--out", tmp_path / "run", "--set", "train.graph=on", "--set", "train.zero=1")
    assert done.returncode == 2
    assert "train.graph on: train.zero 1" in done.stderr
    for clash in ("train.activation_checkpointing.policy=step", "train.compile=default", "train.zero=3"):
        with pytest.raises(ConfigError, match=r"train\.defer_weight_gradients on can't be used with"):
            load_config(tiny_config, ["train.defer_weight_gradients=on", clash])


def test_static_noise_asks_its_source_in_the_models_order() -> None:
    noise = StaticNoise(Noise([1, 2]))
    first = [noise.normal(3), noise.normal(2, 2)]
    kept = [part.clone() for part in first]
    noise.refill(Noise([5, 6]))
    noise.rewind()
    again = [noise.normal(3), noise.normal(2, 2)]
    other = Noise([5, 6])
    assert all(a is b for a, b in zip(first, again, strict=True))
    assert torch.equal(again[0], other.normal(3))
    assert torch.equal(again[1], other.normal(2, 2))
    assert not torch.equal(again[0], kept[0])
    noise.rewind()
    with pytest.raises(AssertionError, match="asked for noise"):
        noise.normal(4)


def test_views_of_a_flat_tensor_keep_shape_and_strides() -> None:
    last = torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    parameters = [torch.randn(5), last, torch.randn(2, 3)]
    flat = FlatTensor(parameters, torch.float32)
    for view, parameter in zip(flat.views, parameters, strict=True):
        assert view.shape == parameter.shape
        assert view.stride() == parameter.stride()
        view.copy_(parameter)
    assert float(flat.buffer.double().sum()) == pytest.approx(float(sum(p.double().sum() for p in parameters)))
    assert math.prod(flat.buffer.shape) == sum(p.numel() for p in parameters)

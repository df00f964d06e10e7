"""What only a CUDA device can prove: `make gpu`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.toolkit.models.precision import LIMITS, apart, gradients
from tests.toolkit.models.test_precision import TRAINED
from tests.toolkit.train.test_script import call
from toolkit.config import make_config
from toolkit.device import set_arithmetic
from toolkit.models.base import Noise
from toolkit.rundir import RunDir, read_lines
from toolkit.train import checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or hidden: run with -m gpu"),
]


def set_train(**train: object) -> None:
    set_arithmetic(make_config({"train": train}, "test").train)


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    set_train()
    yield
    set_train()


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_on_the_device_are_those_in_float64_up_to_rounding(name: str) -> None:
    true = gradients(name, "cpu", torch.float64)
    found = {"fp32": apart(gradients(name, "cuda", torch.float32), true)}
    set_train(tf32=True)
    found["tf32"] = apart(gradients(name, "cuda", torch.float32), true)
    set_train()
    found["bf16"] = apart(gradients(name, "cuda", torch.bfloat16), true)
    assert all(off < LIMITS[precision] for precision, off in found.items()), found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TRAINED)
def test_deterministic_gradients_are_equal_to_the_last_bit(name: str, dtype: torch.dtype) -> None:
    set_train(deterministic=True)
    once = gradients(name, "cuda", dtype)
    assert all(
        torch.equal(once[key], other)
        for _ in range(3)
        for key, other in gradients(name, "cuda", dtype).items()
    )  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        ["train.zero=0"],
        ["train.zero=2"],
        ["train.precision=bf16"],
        ["train.tf32=true"],
        ["train.compile=default"],
        ["train.checkpointing=recursive", "train.checkpoint_layers=true", "train.offload_states=true"],
    ],
)
def test_training_on_the_device(tiny_config: Path, tmp_path: Path, settings: list[str]) -> None:
    run = trained(tiny_config, tmp_path / "run", settings)
    losses = [line["loss"] for line in run.logged_steps()]
    assert losses[-1] < losses[0]
    assert run.read_env()["trained_on"]["device"] == torch.cuda.get_device_name()


def test_two_deterministic_runs_end_in_the_same_bits(tiny_config: Path, tmp_path: Path) -> None:
    runs = [trained(tiny_config, tmp_path / name, ["train.deterministic=true"]) for name in ("one", "two")]
    (one, _), (two, _) = (checkpoint.load(run.checkpoints, 6, run.config().hash8(execution=False)) for run in runs)
    assert all(torch.equal(value, two.weights[key]) for key, value in one.weights.items())
    losses = [[line["loss"] for line in read_lines(run.metrics_file) if line["kind"] == "train"] for run in runs]
    assert losses[0] == losses[1]


def test_the_cpu_is_used_where_it_is_asked_for(tiny_config: Path, tmp_path: Path) -> None:
    run = trained(tiny_config, tmp_path / "run", ["train.device=cpu", "train.zero=1"])
    assert run.read_env()["trained_on"]["device"] == "CPU"
    assert json.loads((run.path / "starts.jsonl").read_text().splitlines()[0])["gpus"] == 0


def trained(config: Path, path: Path, settings: list[str]) -> RunDir:
    """A run of the real command."""
    options = [part for setting in settings for part in ("--set", setting)]
    done = call("--config", config, "--run-dir", path, *options)
    assert done.returncode == 0, done.stderr
    return RunDir(path)


def test_noise_on_the_device_does_not_depend_on_the_split_of_the_batch() -> None:
    whole = Noise([7, 8, 9], "cuda").normal(4, 3)
    assert torch.equal(whole, torch.cat([Noise([7], "cuda").normal(4, 3), Noise([8, 9], "cuda").normal(4, 3)]))

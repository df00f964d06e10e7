"""What only a CUDA device can prove: `make gpu`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from shards.manifest import FrameSpec
from tests.toolkit.train.test_script import call
from toolkit.config import make_config
from toolkit.models.base import Noise, Sampling, build_model
from toolkit.rundir import RunDir

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("name", ["modernn", "convlstm"])
def test_gradients_on_the_device_equal_the_cpus(name: str) -> None:
    grads = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = build_model(make_config({"model": {"name": name, "hidden": 16}}, "t"), FrameSpec(1, 32, 32)).to(device)
        frames = torch.rand(2, 8, 1, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)
        model(frames, 4, Sampling()).losses["mse"].backward()
        grads.append(torch.cat([p.grad.flatten().cpu() for p in model.parameters()]))
    assert torch.allclose(*grads, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        ["train.zero=0"],
        ["train.zero=2"],
        ["train.precision=bf16"],
        ["train.compile=default"],
        ["train.compile=reduce-overhead"],
        ["train.checkpointing=recursive", "train.checkpoint_layers=true", "train.offload_states=true"],
    ],
)
def test_training_on_the_device(tiny_config: Path, tmp_path: Path, settings: list[str]) -> None:
    options = [part for setting in settings for part in ("--set", setting)]
    done = call("--config", tiny_config, "--run-dir", tmp_path / "run", *options)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in RunDir(tmp_path / "run").metrics_file.read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < losses[0]


def test_noise_on_the_device_does_not_depend_on_the_split_of_the_batch() -> None:
    whole = Noise([7, 8, 9], "cuda").normal(4, 3)
    assert torch.equal(whole, torch.cat([Noise([7], "cuda").normal(4, 3), Noise([8, 9], "cuda").normal(4, 3)]))

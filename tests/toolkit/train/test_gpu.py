"""What only a CUDA device can prove: `make gpu`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shards.manifest import FrameSpec
from tests.support.graphs import SCALE, small
from tests.support.models import TRAINED
from tests.support.precision import LIMITS, apart, gradients
from tests.support.training import compared, typed
from toolkit.checkpoint import checkpoint
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import make_config
from toolkit.data.batches import Batch
from toolkit.distributed.device import set_arithmetic
from toolkit.distributed.world import World
from toolkit.errors import ConfigError
from toolkit.models.base import Noise
from toolkit.rundir import RunDir
from toolkit.rundir.metrics import read_metrics
from toolkit.train.build import build_engine
from toolkit.train.loss import Forward, Inputs, TrainingLoss

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
        [
            "train.activation_checkpointing.policy=recursive",
            "train.activation_checkpointing.per_layer=true",
            "train.activation_checkpointing.offload=true",
        ],
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
    losses = [[line["loss"] for line in read_metrics(run.metrics_file) if line["kind"] == "train"] for run in runs]
    assert losses[0] == losses[1]


@pytest.mark.timeout(180)
def test_a_graphed_step_trains_as_deepspeeds_does(tmp_path: Path) -> None:
    """Every form of it, on a grid as large as attention's tiles; a replay is given other inputs each time."""
    settings = [
        {},
        {"micro_batch": 2, "clip": 0.01},
        {"activation_checkpointing": {"policy": "step", "per_layer": True}},
    ]
    settings += [{"defer_weight_gradients": "off"}, {"sampling": {"start": 0.5, "slope": 0.0}}]
    cases = [
        {"model": small(name), "train": {**train, "precision": precision}, "steps": 8, "size": 64}
        for precision in ("fp32", "bf16")
        for name, train in [*(("modernn", train) for train in settings), *((name, {}) for name in TRAINED[1:])]
        if precision == "fp32" or name in ("modernn", "predrnn")
    ]
    for case in cases:
        case["size"] = case["model"].get("size", 64)
    for case, seen in zip(cases, compared(cases, tmp_path), strict=True):
        tolerance = 2e-2 if case["train"]["precision"] == "bf16" else 1e-3
        assert seen["on"] == pytest.approx(seen["off"], rel=tolerance), case
        assert len(set(seen["on"])) == 8, case


class Waiting(TrainingLoss):
    """One that a graph can't hold."""

    def compute(self, forward: Forward, inputs: Inputs) -> torch.Tensor:
        loss = super().compute(forward, inputs)
        assert float(loss.detach()) > 0
        return loss


@pytest.mark.parametrize("graph", ["auto", "on"])
def test_a_pass_that_waits_for_the_device_runs_eagerly_or_is_refused(
    graph: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = {"model": small("convlstm"), "data": {"context": 3, "horizon": 3}, "train": {"batch": 2, "graph": graph}}
    config, world = make_config(tree, "test"), World(0, 1, 0, torch.device("cuda", 0))
    engine = build_engine(untrained_model(config, FrameSpec(1, 16, 16)), config, world, None)
    loss = Waiting(config, SCALE, world.device, engine.forward)
    codes = torch.randint(0, 256, (2, 6, 1, 16, 16), dtype=torch.uint8)
    batch = Batch(codes, [0, 1], ["a", "b"], [])
    if graph == "on":
        with pytest.raises(ConfigError, match=r"train\.graph on: .* can't be recorded as a CUDA graph"):
            engine.step([batch], loss, False)
        return
    losses = [engine.step([batch], loss, False).loss for _ in range(5)]
    assert losses[-1] < losses[0]
    assert capsys.readouterr().err.count("no CUDA graph, passes run eagerly: ") == 1


def test_the_cpu_is_used_where_it_is_asked_for(tiny_config: Path, tmp_path: Path) -> None:
    run = trained(tiny_config, tmp_path / "run", ["train.device=cpu", "train.zero=1"])
    assert run.read_env()["trained_on"]["device"] == "CPU"
    assert json.loads((run.path / "starts.jsonl").read_text().splitlines()[0])["gpus"] == 0


def trained(config: Path, path: Path, settings: list[str]) -> RunDir:
    """A run of the real command."""
    options = [part for setting in settings for part in ("--set", setting)]
    done = typed("--config", config, "--out", path, *options)
    assert done.returncode == 0, done.stderr
    return RunDir(path)


def test_noise_on_the_device_does_not_depend_on_the_split_of_the_batch() -> None:
    whole = Noise([7, 8, 9], "cuda").normal(4, 3)
    assert torch.equal(whole, torch.cat([Noise([7], "cuda").normal(4, 3), Noise([8, 9], "cuda").normal(4, 3)]))

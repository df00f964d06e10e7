"""Count training steps on the fake device: a list of forms on stdin, a line of JSON for each.

A form is {"config": FILE, "set": [KEY=VALUE, ...], "triton": BOOL, "what": WHAT}, for a step also {"dtype": of the
codes, one of which is the missing one}:

passes   a micro-batch forward and backward
outside  the same, but for what is in the model's time steps: what remains beside steps that are compiled
step     an optimizer step by the engine that the config gets: the third, when the optimizer has its state and timers
         have begun; `recorded` is what the engine's CUDA graph holds
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from tests.fake_cuda import ROOT, device
from tests.fake_cuda.counter import Counter, Part

device.install()

from shards.manifest import FrameSpec, Scale  # noqa: E402
from toolkit.checkpoint.weights import untrained_model  # noqa: E402
from toolkit.config import RunConfig, load_config  # noqa: E402
from toolkit.data.batches import Batch  # noqa: E402
from toolkit.distributed.world import World  # noqa: E402
from toolkit.models import fused  # noqa: E402
from toolkit.models.base import Noise, Sampling, SequenceModel, StepModel, StepSequence  # noqa: E402
from toolkit.train import graphed  # noqa: E402
from toolkit.train import loss as losses  # noqa: E402
from toolkit.train.build import build_engine  # noqa: E402
from toolkit.train.deferred import DeferredGradients  # noqa: E402
from toolkit.train.loss import TrainingLoss  # noqa: E402

CUDA = torch.device("cuda", 0)
FRAMES = FrameSpec(1, 64, 64)
SCALE = Scale("intensity", "1", 0.0, 1 / 255)


class FakeNoise(Noise):
    """As many draws as `Noise` makes, without generators, which fake devices lack."""

    def __init__(self, batch: int) -> None:
        self.batch, self.device = batch, CUDA

    def normal(self, *shape: int) -> Tensor:
        if device.capturing:  # a warm-up, which is left out here, would have drawn them
            return torch.empty(self.batch, *shape, device=CUDA)
        return torch.stack([torch.randn(shape, device=CUDA) for _ in range(self.batch)])


def passes(config: RunConfig, counter: Counter, form: dict[str, Any]) -> dict[str, Any]:
    """A micro-batch forward and backward."""
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    torch.manual_seed(0)
    with CUDA, counter:  # some initialisations look at what they drew
        model = untrained_model(config, FRAMES)
    model = model.to(dtype)
    counter.clear()
    if form["what"] == "outside":
        assert isinstance(model, StepSequence)
        hide(model.cell, counter)
    deferred = config.train.is_deferred(gpu=True) and form["what"] == "passes"
    with counter, DeferredGradients(model) if deferred else contextlib.nullcontext():
        loss = forward(config, counter, model)
        torch.autograd.backward([loss])
    without = [name for name, p in model.named_parameters() if p.grad is None]
    return {"parameters": len(list(model.parameters())), "without_gradient": without}


def forward(config: RunConfig, counter: Counter, model: Any) -> Tensor:
    """The loss of a micro-batch, as toolkit/train/loop.py computes it."""
    batch, data = config.train.micro_batch or config.train.batch, config.data
    frames = torch.empty(batch, data.context + data.horizon, *FRAMES.shape, device=CUDA)
    teacher = torch.empty(batch, data.horizon - 1, dtype=torch.bool, device=CUDA)
    with counter.during("forward"):
        rollout = model(frames, data.context, Sampling(teacher=teacher, noise=FakeNoise(batch)))
        return torch.stack(list(rollout.losses.values())).sum()


def whole_step(config: RunConfig, counter: Counter, form: dict[str, Any]) -> dict[str, Any]:
    """An optimizer step on one rank: what its graph holds, and what the third step starts."""
    with CUDA, counter:
        model: SequenceModel = untrained_model(config, FRAMES)
    engine = build_engine(model, config, World(0, 1, 0, CUDA), None)
    dtype, scale = torch.uint8, SCALE
    if "dtype" in form:
        dtype = getattr(torch, form["dtype"])
        largest = torch.iinfo(dtype).max
        scale = Scale("intensity", "1", 0.0, 1 / largest, largest - 1, largest)
    loss = TrainingLoss(config, scale, CUDA, engine.forward)
    batch, length = config.train.batch, config.data.context + config.data.horizon
    frames = torch.zeros(batch, length, *FRAMES.shape, dtype=dtype)
    samples = Batch(frames, list(range(batch)), [str(n) for n in range(batch)], [])
    with counter:
        for _ in range(3):
            counter.clear()
            result = engine.step([samples], loss, False)
            assert result.fault is None, result.fault
    return {"parameters": len(list(model.parameters())), "engine": engine.describe()}


class Hidden(torch.autograd.Function):
    """A step of which only inputs and results are seen: parameters get their gradients from each."""

    @staticmethod
    def forward(ctx: Any, run: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*inputs)
        return tuple(torch.empty_like(t) for t in run(*inputs))

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        return None, *(torch.empty_like(t) if wants else None for t, wants in wanted)


def hide(cell: StepModel, counter: Counter) -> None:
    """Count nothing of what a step of the model does."""
    step, parameters = cell.step, list(cell.parameters())

    def hidden(frame: Tensor, state: Any) -> Any:
        leaves, shape = tree_flatten(state)

        def run(frame: Tensor, *others: Tensor) -> list[Tensor]:
            nonlocal result_shape
            counter.paused = True
            prediction, after = step(frame, tree_unflatten(others[: len(leaves)], shape))
            counter.paused = False
            flat, result_shape = tree_flatten(after)
            return [prediction, *flat]

        result_shape = shape
        prediction, *flat = Hidden.apply(run, frame, *leaves, *parameters)
        return prediction, tree_unflatten(flat, result_shape)

    cell.step = hidden  # type: ignore[method-assign]


def apply_in_place(module: nn.Module, convert: Any, recurse: bool = True) -> nn.Module:
    """nn.Module._apply, which would swap fake parameters for new ones: optimizers that hold them would lose them."""
    for inner in module.modules() if recurse else (module,):
        for tensor in (*inner._parameters.values(), *inner._buffers.values()):
            if tensor is not None:
                with torch.no_grad():
                    tensor.data = convert(tensor)
    return module


@contextlib.contextmanager
def counted_calls(counter: Counter) -> Iterator[None]:
    """Calls that no operator shows: the backward pass, and tensors that become lists or new on the device."""
    backward, make, compute = torch.autograd.backward, torch.tensor, TrainingLoss.compute

    def counted_compute(*args: Any) -> Tensor:
        with counter.during("forward"):
            return compute(*args)

    def counted_backward(*args: Any, **kwargs: Any) -> None:
        with counter.during("backward"):
            backward(*args, **kwargs)

    def tensor(values: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
        made = make(values, **kwargs)
        return made if device is None else made.to(device)

    def tolist(tensor: Tensor) -> Any:
        counter.part().syncs += tensor.device.type == "cuda"  # one copy of all
        return np.zeros(tensor.shape).tolist()

    with (
        mock.patch.object(fake_tensor, "CONSTANT_NUMEL_LIMIT", -1),  # small ones would be computed with, for real
        mock.patch.object(torch.autograd, "backward", counted_backward),
        mock.patch.object(TrainingLoss, "compute", counted_compute),
        mock.patch.object(losses, "draw_noise", lambda seed, positions, device: FakeNoise(len(positions))),
        mock.patch.object(graphed, "WARM_UP", 0),
        mock.patch.object(nn.Module, "_apply", apply_in_place),
        mock.patch.object(torch, "tensor", tensor),
        mock.patch.object(FakeTensor, "tolist", tolist),
    ):
        yield


def count(form: dict[str, Any]) -> dict[str, Any]:
    """The answer to a form."""
    config = load_config(ROOT / form["config"], form["set"])
    counter = Counter()
    triton = mock.patch.object(fused, "TRITON", form["triton"])
    with FakeTensorMode(allow_non_fake_inputs=True), counted_calls(counter), triton:
        facts = (whole_step if form["what"] == "step" else passes)(config, counter, form)
    found = {"parts": counter.parts, "recorded": counter.recorded}
    counts = {key: {name: as_json(part) for name, part in parts.items()} for key, parts in found.items()}
    return {**facts, **counts, "waits": len(device.waits), "replays": len(device.replays)}


def as_json(part: Part) -> dict[str, Any]:
    return {**asdict(part), "names": dict(part.names.most_common())}


def main() -> int:
    forms = json.load(sys.stdin)
    if any(form["what"] == "step" for form in forms):
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        from torch.testing._internal.distributed.fake_pg import FakeStore

        torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    for form in forms:
        print(json.dumps(count(form)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

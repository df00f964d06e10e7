"""Which operators launch kernels, which make the host wait, and in which part of a training step."""

from __future__ import annotations

import contextlib
import math
import sys
from collections import Counter as Tally
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.fake_cuda import device
from toolkit.plan.measure import macs_of

aten = torch.ops.aten
FREE = {  # no view, no kernel either
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_", "is_same_size",
    "_fused_sdp_choice", "lift_fresh", "_unsafe_view", "split", "split_with_sizes", "unsafe_split", "chunk", "unbind",
    "_reshape_alias", "detach_",
}  # fmt: skip
ZERO = {torch.bool: False, **dict.fromkeys((torch.float64, torch.float32, torch.bfloat16), 0.0)}
HOST = {"prim", "profiler"}  # namespaces of what the device never sees
WAITS = {"nonzero", "masked_select", "_unique2"}  # their results' shapes are numbers on the device
# An H100 (SXM), as plain kernels reach it: bytes a second, seconds of the shortest kernel in a graph, FLOP a second of
# convolutions as small as these by bits (TF32 for fp32).
BANDWIDTH, SHORTEST, TENSOR_CORES = 2.6e12, 2.2e-6, {16: 250e12, 32: 120e12}
CHUNK, BLOCKS = 65_536, 320  # of torch's multi-tensor kernels: numbers a block, blocks a launch
TENSORS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}  # and tensors a launch, by lists of tensors
SITE, ROOT = Path(torch.__file__).parents[1], Path(__file__).parents[2]
FOLDERS = {  # whose work it is, by the beginning of a file's name
    f"{SITE}/deepspeed/": "deepspeed",
    f"{SITE}/torch/optim/": "optimizer",
    f"{ROOT}/toolkit/": None,
}


@dataclass
class Part:
    """What a part of a step does.

    Attributes:
        ops: operators that launch anything.
        kernels: what they launch at least.
        layouts: copies from one memory layout to another that cuDNN may add in its tensor-core kernels, at most.
        syncs: the host reads a number of the device, or waits for it.
        copies: blocking copies of tensors to the host.
        microseconds: a lower estimate for an H100 that replays a graph: for each kernel the longest of its memory
            traffic, its arithmetic and the least that any kernel takes.
    """

    ops: int = 0
    kernels: int = 0
    layouts: int = 0
    syncs: int = 0
    copies: int = 0
    microseconds: float = 0.0
    names: Tally[str] = field(default_factory=Tally)


class Counter(TorchDispatchMode):
    """Counts, by part, while it is entered inside of a FakeTensorMode.

    An operator belongs to the nearest caller: `optimizer` (torch.optim), `deepspeed` (its hooks and its step), else to
    what is at work: `forward`, `backward`, or `engine`, the toolkit's own work around them. What is recorded in a CUDA
    graph is kept apart: its replays launch it.

    Every number that the host reads is 0: losses and norms are finite then, and no fault is found.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, Part] = {}
        self.recorded: dict[str, Part] = {}
        self.now = "engine"
        self.paused = False

    def clear(self) -> None:
        self.parts.clear()
        device.waits.clear()
        device.replays.clear()

    @contextlib.contextmanager
    def during(self, part: str) -> Iterator[None]:
        before, self.now = self.now, part
        try:
            yield
        finally:
            self.now = before

    def part(self) -> Part:
        name = caller() or self.now
        return (self.recorded if device.capturing else self.parts).setdefault(name, Part())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "equal"):
            self.part().syncs += args[0].device.type == "cuda"
            return name == "equal" or ZERO.get(args[0].dtype, 0)
        out = as_cudnn_lays(func, args, func(*args, **kwargs))
        if self.paused or func.namespace in HOST:
            return out
        inputs, outputs = tensors((args, kwargs)), tensors(out)
        if name in ("_to_copy", "copy_"):
            source, target = (inputs[-1], outputs[0])
            if source.device != target.device:  # a transfer, by the copy engine
                waits = target.device.type == "cpu" and not (kwargs.get("non_blocking") or args[2:3] == (True,))
                self.part().copies += waits
                return out
        if any(t.device.type == "cuda" for t in (*inputs, *outputs)) and not is_free(func, name):
            self.add(func, args, kwargs, out, inputs, outputs)
        return out

    def add(self, func: Any, args: Any, kwargs: Any, out: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Count an operator that launches something."""
        name = func.overloadpacket.__name__
        part = self.part()
        kernels, layouts = cost(func, args, kwargs, out)
        part.ops += 1
        part.kernels += kernels
        part.layouts += layouts
        part.syncs += name in WAITS
        part.names[name if func.namespace == "aten" else f"{func.namespace}::{name}"] += 1
        traffic = sum(t.numel() * t.element_size() for t in (*inputs, *outputs)) / BANDWIDTH
        rate = TENSOR_CORES[16 if outputs and outputs[0].dtype == torch.bfloat16 else 32]
        work = 2 * macs_of(func, args, kwargs, out) / rate
        part.microseconds += 1e6 * max(traffic, work, kernels * SHORTEST)


def caller() -> str | None:
    """The library at work, by the nearest frame that is one's: None for the model and its backward pass."""
    frame = sys._getframe(2)
    while frame is not None:
        for folder, part in FOLDERS.items():
            if frame.f_code.co_filename.startswith(folder):
                return part
        frame = frame.f_back
    return None


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def is_free(func: Any, name: str) -> bool:
    """Whether an operator launches nothing: it makes room, or looks at its input in another way."""
    return func.namespace == "aten" and (name in FREE or func.is_view)


def cost(func: Any, args: Any, kwargs: Any, out: Any) -> tuple[int, int]:
    """(kernels, copies of layout at most) of an operator. An operator of the project's own is one kernel."""
    name = func.overloadpacket.__name__
    if func is aten.convolution.default:
        inputs, weight, bias = args[:3]
        depthwise = is_depthwise(inputs, weight, args[8])
        return 1 + (bias is not None and not depthwise), 0 if depthwise else transposed(inputs, weight, out)
    if func is aten.convolution_backward.default:
        gradient, inputs, weight, mask = *args[:3], args[10]
        if is_depthwise(inputs, weight, args[9]):
            return sum(mask), 0
        return sum(mask), transposed(gradient, *([weight, inputs] * mask[0]), *([inputs, weight] * mask[1]))
    if name == "_scaled_dot_product_flash_attention_backward":
        return 3, 0  # the products of output and gradient, the pass, a conversion of the sum in fp32
    if name == "_scaled_dot_product_efficient_attention_backward":
        return 2, 0
    if name.startswith(("_foreach_", "_fused_")):
        return multi_tensor(func, args, kwargs), 0
    return 1, 0


def as_cudnn_lays(func: Any, args: Any, out: Any) -> Any:
    """A convolution's results channels-last where its input or weight is, as cuDNN gives them; else as they are."""
    if func not in (aten.convolution.default, aten.convolution_backward.default):
        return out
    inputs, weight = args[:2] if func is aten.convolution.default else args[1:3]
    if torch.channels_last not in (suggest_memory_format(inputs), suggest_memory_format(weight)):
        return out
    return tree_map_only(Tensor, lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t, out)


def is_depthwise(inputs: Tensor, weight: Tensor, groups: int) -> bool:
    """PyTorch has kernels of its own for these in its own layout, which add the bias too."""
    fits = groups == inputs.shape[1] and groups > 1 and weight.shape[1] == 1
    return fits and suggest_memory_format(inputs) == suggest_memory_format(weight) == torch.contiguous_format


def transposed(*operands: Tensor) -> int:
    """Operands of a convolution that don't lie channels-last, the layout of cuDNN's tensor-core kernels."""
    return sum(not t.is_contiguous(memory_format=torch.channels_last) for t in operands if t.dim() == 4)


def multi_tensor(func: Any, args: Any, kwargs: Any) -> int:
    """Launches of an operator over lists of tensors: each takes so many tensors, in so many blocks."""
    lists = [a for a in (*args, *kwargs.values()) if isinstance(a, list | tuple) and a and isinstance(a[0], Tensor)]
    if not lists:
        return 1
    each = TENSORS[min(len(lists), 5)]
    blocks = sum(math.ceil(t.numel() / CHUNK) for t in lists[0])
    return max(math.ceil(len(lists[0]) / each), math.ceil(blocks / BLOCKS)) + ("norm" in func.overloadpacket.__name__)

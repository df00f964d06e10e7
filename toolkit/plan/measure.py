"""Measure the cost of a training step on torch's meta device: nothing is computed or allocated.

    python -m toolkit.plan.measure < REQUEST.json > COSTS.json      (see toolkit/plan/cost.py for both)

Forward and backward pass run as in training, including checkpointing, while the lifetime of every tensor's storage is
tracked. So the result follows the code: no model or policy is referred to by name. The side of the grid and the batch
size are primes, and the factors of a tensor's size show what it depends on: one run gives bytes and MACs as exact
polynomials in batch size B and grid area A.

The workspace of operators is not visible on the meta device. It is estimated by one rule for every model: a convolution
keeps a copy of its output in fp32 while it runs, and its backward pass copies of the input and the output gradient (the
blocked or channels-last copies of oneDNN and cuDNN; measured on single convolutions).
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import weakref
from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from shards.manifest import FrameSpec
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import RunConfig, make_config
from toolkit.models.base import Noise, Sampling
from toolkit.models.plugins import ModelFile, add_file
from toolkit.models.registry import SVGOptions
from toolkit.plan.cost import LARGE, Polynomial, policies_of, under

aten = torch.ops.aten
BATCH, SIDE = 10_007, 1_009  # primes that divide no channel count or length
AREA = SIDE * SIDE
TERMS = len(Polynomial._fields)
# Products of all queries with all keys; the backward pass recomputes the map.
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu.default: 2,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: 5,
}
# Where the polynomials of a peak are compared: those that are nowhere the maximum are dropped.
BATCHES, AREAS = (1, 2, 4, 8, 16, 64), (16, 64, 256, 1024, 2304, 9216, 36_864)


def split(amount: int) -> tuple[int, int]:
    """Return (index of the term of Polynomial, coefficient) of a number."""
    batch = amount % BATCH == 0 and amount > 0
    if batch:
        amount //= BATCH
    areas = 0
    while amount and amount % AREA == 0:
        amount //= AREA
        areas += 1
    if amount and amount % SIDE == 0:
        return 0, 0  # proportional to one side, like a row of coordinates: negligible
    index = {(False, 0): 0, (True, 0): 1, (False, 1): 2, (True, 1): 3, (True, 2): 4}.get((batch, areas))
    assert index is not None and amount < BATCH * AREA, f"a size of {amount} x B^{int(batch)} x A^{areas}"
    return index, amount


class TensorUse(NamedTuple):
    """A storage that is alive."""

    term: int
    amount: int
    watcher: Any  # a weak reference, with a callback at its end


class MemoryTracker(TorchDispatchMode):
    """Record the memory in use after every operator.

    Attributes:
        live: bytes in use, by term.
        grads: of these, finished gradients of parameters.
        events: live and workspace, then grads, at every operator that allocates; a flat array, because the garbage
            collector would traverse a list again and again.
        macs: multiply-accumulates, by term.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live, self.grads, self.macs = [0] * TERMS, [0] * TERMS, [0] * TERMS
        self.events = array("q")
        self.known: dict[int, TensorUse] = {}
        self.done: set[int] = set()
        self.on_host: set[int] = set()
        self.made: dict[Any, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = self._run(func, args, kwargs or {})
        before = len(self.known)
        for tensor in tensors_of(out):
            self.add(tensor)
        if len(self.known) > before:
            workspace = list(self.live)
            for number in workspace_of(func, args, out):
                term, amount = split(number)
                workspace[term] += amount
            self.events.extend(workspace + self.grads)
        return out

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator; if it ran with the same shapes before, only create tensors like its results.

        On the meta device most time is spent in shape checks. Operators that only write in place are not run.
        """
        if func is aten.empty_like.default and kwargs.get("device") == torch.device("cpu"):
            out = func(*args, **{**kwargs, "device": "meta", "pin_memory": False})
            self.on_host.add(out.untyped_storage()._cdata)  # offloaded states
            return out
        if changes_in_place(func):
            return kwargs["out"] if "out" in kwargs else args[0]
        if not makes_new(func):
            return func(*args, **kwargs)
        key = (func, signature(args), signature(tuple(kwargs.items())))
        if key not in self.made:
            out = func(*args, **kwargs)
            macs = macs_of(func, args, kwargs, out)
            self._add_macs(macs)
            if all_own(out):
                self.made[key] = macs, recipe(out)
            return out
        macs, how = self.made[key]
        self._add_macs(macs)
        return follow(how)

    def _add_macs(self, macs: int) -> None:
        if macs:
            term, amount = split(macs)
            self.macs[term] += amount

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:
            return
        term, amount = (0, 0) if key in self.on_host else split(storage.nbytes())
        self.live[term] += amount
        self.known[key] = TensorUse(term, amount, weakref.ref(storage, functools.partial(self._drop, key)))

    def _drop(self, key: int, _: Any) -> None:
        term, amount, _ = self.known.pop(key)
        self.live[term] -= amount
        self.on_host.discard(key)
        if key in self.done:
            self.done.remove(key)
            self.grads[term] -= amount

    def mark_gradient(self, parameter: Tensor) -> None:
        """Record that the gradient of a parameter is finished (a hook)."""
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        if key in self.known and key not in self.done:
            self.done.add(key)
            self.grads[self.known[key].term] += self.known[key].amount


@functools.cache
def changes_in_place(func: Any) -> bool:
    """Return whether an operator only writes an elementwise result into the tensor that it returns."""
    returns = func._schema.returns
    written = len(returns) == 1 and returns[0].alias_info is not None and returns[0].alias_info.is_write
    return written and (torch.Tag.pointwise in func.tags or func in (aten.copy_.default, aten.zero_.default))


@functools.cache
def makes_new(func: Any) -> bool:
    """Return whether an operator only creates new tensors: no views, no in-place writes."""
    schema = func._schema
    return not any(a.alias_info for a in (*schema.arguments, *schema.returns)) and bool(schema.returns)


def signature(value: Any) -> Any:
    """Return a hashable key of the arguments of an operator."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(signature(item) for item in value)
    return value


def recipe(out: Any) -> Any:
    """Return how to create tensors like the result of an operator."""
    if isinstance(out, Tensor):
        return out.shape, out.stride(), out.dtype
    if isinstance(out, list | tuple):
        return [recipe(item) for item in out]
    return out


def all_own(out: Any) -> bool:
    """Return whether every tensor has a separate storage (unsafe_split declares new tensors but returns views)."""
    return all(t.untyped_storage().nbytes() == t.nbytes for t in tensors_of(out))


def follow(how: Any) -> Any:
    if isinstance(how, tuple):
        return torch.empty_strided(how[0], how[1], dtype=how[2], device="meta")
    if isinstance(how, list):
        return [follow(item) for item in how]
    return how


def tensors_of(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, list | tuple):
        for item in out:
            yield from tensors_of(item)


def workspace_of(func: Any, args: Any, out: Any) -> list[int]:
    """Return the workspace of an operator in bytes; see the docstring of the module."""
    if func is aten.convolution.default:
        return [out.numel() * 4]
    if func is aten.convolution_backward.default:
        return [args[0].nbytes, args[1].nbytes]
    return []


def macs_of(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Count the MACs of convolutions, matrix products and attention; elementwise operators count as 0."""
    if func is aten.convolution.default:
        inputs, weight, transposed = args[0], args[1], args[6]
        return int((inputs if transposed else out).numel()) * (weight.numel() // weight.shape[0])
    if func is aten.convolution_backward.default:  # torch's own count ignores groups
        gradient, inputs, weight, transposed = args[0], args[1], args[2], args[7]
        products = sum(args[10][:2])  # for the input and for the weight, where wanted
        return products * int((inputs if transposed else gradient).numel()) * (weight.numel() // weight.shape[0])
    if func in ATTENTION:
        query, key = (
            (args[0], args[1]) if func is aten._scaled_dot_product_flash_attention_for_cpu.default else args[1:3]
        )
        return ATTENTION[func] * int(query.numel()) * int(key.shape[-2])
    if func._overloadpacket in flop_registry:
        return int(flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)) // 2
    return 0


def fused_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run attention as on a CPU and, but for details, on a GPU; on the meta device it would store the map."""
    return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, *args, **kwargs)[0]


class UninitialisedNoise(Noise):
    """Noise of the right shape, without values."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def normal(self, *shape: int) -> Tensor:
        return torch.empty(self.batch, *shape, device="meta")


@contextlib.contextmanager
def meta_attention() -> Iterator[None]:
    with mock.patch.object(F, "scaled_dot_product_attention", fused_attention):
        yield


def run_step(config: RunConfig, channels: int, tracker: MemoryTracker) -> tuple[list[int], list[int], int]:
    """Run one micro-batch forward and backward.

    Returns:
        (number of trainable parameters, MACs of the forward pass), both by term, and number of large parameters.
    """
    data, options = config.data, config.model
    side = options.tile * (1 if isinstance(options, SVGOptions) else SIDE)
    length = data.context + data.horizon
    with torch.device("meta"):
        model = untrained_model(config, FrameSpec(channels, side, side))
    numbers, large = [0] * TERMS, 0
    for parameter in (p for p in model.parameters() if p.requires_grad):
        term, amount = split(parameter.numel())
        numbers[term] += amount
        large += amount if term == 0 and amount >= LARGE else 0
        parameter.register_post_accumulate_grad_hook(tracker.mark_gradient)
    model.to(torch.bfloat16 if config.train.precision == "bf16" else torch.float32).train()
    with meta_attention(), tracker:
        codes = torch.empty(BATCH, length, channels, side, side, dtype=torch.uint8, device="meta")
        frames = codes.float() / 255
        teacher = torch.empty(BATCH, data.horizon - 1, dtype=torch.bool, device="meta")
        rollout = model(frames, data.context, Sampling(teacher=teacher, noise=UninitialisedNoise(BATCH)))
        loss = torch.stack(list(rollout.losses.values())).sum()
        forward = list(tracker.macs)
        torch.autograd.backward([loss])
    return numbers, forward, large


def upper(lines: np.ndarray) -> list[list[int]]:
    """Return those of the polynomials [n, TERMS] that are the maximum somewhere."""
    points = np.array([[1, b, a, b * a, b * a * a] for b in BATCHES for a in AREAS], dtype=float).T
    return [[int(x) for x in lines[i]] for i in sorted(set((lines @ points).argmax(0)))]


def measure(config: RunConfig, channels: int, policies: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the table entry of a config, with all policies or the given ones; see `cost.Cost`."""
    entry: dict[str, Any] = {"peaks": {}}
    for policy in policies or policies_of(config):
        tracker = MemoryTracker()
        numbers, macs, large = run_step(under(config, policy), channels, tracker)
        if "macs" not in entry:
            entry |= {"parameters": numbers, "large": large, "macs": macs}
        live, grads = np.hsplit(np.frombuffer(tracker.events, dtype=np.int64).reshape(-1, 2 * TERMS).astype(float), 2)
        entry["peaks"][policy] = {
            "with_gradients": upper(live),
            "without_gradients": upper(live - grads),
            "macs": tracker.macs,
        }
    return entry


def main() -> int:
    """Measure a request, a list of {"config", "channels", "model_file"}; print one line of JSON for each."""
    for item in json.load(sys.stdin):
        if item["model_file"] is not None:
            name, text = item["model_file"]
            add_file(ModelFile.of(name, text.encode()))
        print(json.dumps(measure(make_config(item["config"], "request"), item["channels"])), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

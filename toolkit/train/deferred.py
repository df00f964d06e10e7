"""Weight gradients of convolutions and linear layers once per micro-batch instead of once per time step.

    deferred = DeferredGradients(model)
    with deferred:                          # for each micro-batch
        loss = loss_of(batch)
        loss.backward()

A recurrent model calls each layer at every one of T time steps, and plain autograd then computes T weight gradients and
T - 1 additions of them. Inside the block a layer's parameters pass through one node of autograd, the gate, to all its
calls. Backward, a call computes the gradient of its input only, and records input and output gradient. Autograd runs
the gate after the last of them: it concatenates the records over time, and one operation gives the gradients of weight
and bias over T x B samples, which go to the parameters as usual (`.grad` accumulates in place, hooks fire, and
`torch.autograd.grad` finds them). The sums are the same but for the order of additions; in bf16 they are more exact,
since T partial sums are no longer rounded to bf16.

Deferred: `nn.Conv2d`, `nn.ConvTranspose2d` and `nn.Linear` on batches, in calls that autograd follows. Other modules,
functions that take parameters directly, and layers whose weight isn't a leaf (parametrizations), whose padding isn't
given in zeros and numbers or whose class is derived run as without the block. No value is read by the host and no shape
depends on data, so that a CUDA graph can capture the block. Second derivatives aren't defined.

Refused: a compiled step (`train.compile`), whose backward pass is the compiler's and which would be compiled again in
every block; and ZeRO-3, which takes weights away between calls. The other ZeRO stages reduce gradients in hooks, which
see deferred ones like others.

On CUDA in bf16, on maps laid out channels-last, convolutions that keep the grid and their input gradients are a Triton
kernel (toolkit/models/convolutions.py), where there is Triton. The weight gradients are cuDNN's.

Weights are read channels-last where a layer's first CUDA input is: one copy per micro-batch, else PyTorch makes it at
every call.

Memory. A layer's inputs and output gradients are kept until its last call was differentiated:

    bytes = sum over calls of (numbers in the input + numbers in the output) x bytes per number

of which the inputs are held by autograd anyway until the backward pass reaches them; the concatenated copies of one
layer's records come on top for a moment. The paper's ModeRNN (4 x 64, 64 x 64, T = 20, batch 8) records 4.6 GB in fp32
and 2.3 GB in bf16. `most_bytes` bounds this: when the records exceed it, all are turned into gradients at once, in the
middle of the backward pass: n times in all where they come to n times the bound, which costs each layer up to n + 1
weight gradients. The block adds at most `most_bytes` and one call's record, and as much again for the copies.

Activation checkpointing recomputes calls inside the backward pass, and what they give is recorded like the rest. It is
chosen to save memory, so bound the records by what there is to spare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from toolkit.config.sections import MOST_DEFERRED
from toolkit.errors import ConfigError, ToolkitError
from toolkit.models.fused import operators

aten = torch.ops.aten
# Which convolutions toolkit/models/convolutions.py computes: "all" but depthwise ones, "grouped", "none".
TRITON_CONVOLUTIONS = "all"
TRITON_DTYPES = (torch.bfloat16,)
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of input, weight, bias
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Convolution:
    """A convolution of [B, C, h, w], transposed or not."""

    least_dims: ClassVar[int] = 4
    stride: Sizes
    padding: Sizes
    dilation: Sizes
    transposed: bool
    output_padding: Sizes
    groups: int

    @classmethod
    def of(cls, layer: nn.Conv2d | nn.ConvTranspose2d) -> Convolution:
        """Return the convolution of a layer whose padding is given in numbers."""
        assert not isinstance(layer.padding, str)
        sizes = layer.padding, layer.dilation, layer.transposed, layer.output_padding
        return cls(layer.stride, *sizes, layer.groups)

    @property
    def _settings(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups

    def _triton(self, x: Tensor, weight: Tensor) -> ModuleType | None:
        """Return toolkit.models.convolutions where its kernel takes this convolution, and is wanted."""
        side, depthwise = weight.shape[2], weight.shape[1] == 1 and self.groups > 1
        same = self.stride == self.dilation == (1, 1) and self.padding == (side // 2, side // 2) and not self.transposed
        wanted = TRITON_CONVOLUTIONS == "all" or (TRITON_CONVOLUTIONS == "grouped" and self.groups > 1)
        if not same or depthwise or not wanted or x.dtype not in TRITON_DTYPES or operators(x) is None:
            return None
        from toolkit.models import convolutions

        return convolutions if convolutions.fits(x, weight, self.groups) else None

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        triton = self._triton(x, weight)
        out: Tensor
        if triton:
            out = triton.convolution(x, weight, bias, self.groups, False)
        else:
            out = aten.convolution(x, weight, bias, *self._settings)
        return out

    def backward(self, of_out: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool]) -> Gradients:
        """Return the gradients of input, weight and bias, None where not wanted."""
        if tuple(wanted) == (True, False, False):
            triton = self._triton(x, weight)
            if triton:
                return triton.convolution(of_out, weight, None, self.groups, True), None, None
        # PyTorch's reduction reads one position of channels-last maps after the other: a product with ones is faster.
        rows = of_out.permute(0, 2, 3, 1)
        by_product = wanted[2] and of_out.is_cuda and rows.is_contiguous()
        gradients: Gradients = aten.convolution_backward(
            of_out, x, weight, [of_out.shape[1]], *self._settings, [*wanted[:2], wanted[2] and not by_product]
        )
        if not by_product:
            return gradients
        rows = rows.flatten(0, 2)
        return *gradients[:2], (rows.new_ones(1, len(rows)) @ rows)[0]


@dataclass(frozen=True)
class Linear:
    """x W^T + b on [B, ..., inputs]."""

    least_dims: ClassVar[int] = 2

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def backward(self, of_out: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool]) -> Gradients:
        """As `Convolution.backward`."""
        rows = of_out.flatten(0, -2)
        return (
            of_out @ weight if wanted[0] else None,
            rows.t() @ x.flatten(0, -2) if wanted[1] else None,
            rows.sum(0) if wanted[2] else None,
        )


Operation = Convolution | Linear


def operation_of(module: nn.Module) -> Operation | None:
    """Return what a layer computes; None: its calls aren't deferred."""
    if type(module) is nn.Linear:
        return Linear()
    if type(module) is nn.Conv2d or type(module) is nn.ConvTranspose2d:
        usual = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return Convolution.of(module) if usual else None
    return None


class _Record:
    """The calls of one layer that wait for their weight gradient.

    Holds no tensor that leads to the gate in autograd's graph: the gate holds this, and neither would ever be freed.
    """

    def __init__(self, operation: Operation, weight: Tensor, bias: Tensor | None) -> None:
        self.operation, self.weight = operation, weight.detach()
        self.wanted = (False, True, bias is not None and bias.requires_grad)
        self.calls: dict[Any, list[tuple[Tensor, Tensor, int]]] = {}  # by what can be joined along the batch
        self.sums: list[Tensor | None] = [None, None]

    def add(self, x: Tensor, of_out: Tensor) -> None:
        """Record one call's input and output gradient."""
        self.calls.setdefault((x.shape[1:], x.dtype), []).append((x, of_out, of_out._version))

    def add_up(self) -> None:
        """Turn the calls into gradients.

        Raises:
            ToolkitError: an output gradient was changed in place after it was recorded.
        """
        while self.calls:
            _, calls = self.calls.popitem()
            if any(of_out._version != version for _, of_out, version in calls):
                raise ToolkitError(
                    f"DeferredGradients: the gradient of an output of the layer with weight {list(self.weight.shape)} "
                    "was changed in place after that layer's backward pass: remove the hook or function that does so, "
                    "or train without deferred weight gradients"
                )
            x = torch.cat([x for x, _, _ in calls]) if len(calls) > 1 else calls[0][0]
            of_out = torch.cat([of_out for _, of_out, _ in calls]) if len(calls) > 1 else calls[0][1]
            del calls
            _, *found = self.operation.backward(of_out, x, self.weight, self.wanted)
            self.sums = [
                a if b is None else b if a is None else a.add_(b) for a, b in zip(self.sums, found, strict=True)
            ]

    def take(self) -> list[Tensor | None]:
        """Return the gradients of weight and bias, and forget them."""
        self.add_up()
        found, self.sums = self.sums, [None, None]
        return found


class DeferredGradients:
    """The block described above, for one micro-batch's forward and backward pass; can be entered again.

    Args:
        model: its layers are deferred inside the block.
        most_bytes: the records are turned into gradients whenever they exceed this.

    Raises:
        ConfigError: the model, or a part of it, is compiled or under ZeRO-3.

    Attributes:
        peak_bytes: the most that the records have held, as the module's formula counts it.
    """

    def __init__(self, model: nn.Module, most_bytes: int = MOST_DEFERRED) -> None:
        _refuse(model)
        self.most_bytes = most_bytes
        self.peak_bytes = 0
        found = ((module, operation_of(module)) for module in model.modules())
        self._layers = [(module, operation) for module, operation in found if operation is not None]
        self._records: list[_Record] = []
        self._bytes = 0

    def __enter__(self) -> DeferredGradients:
        # Not a TorchFunctionMode: it isn't in force in the backward pass, where checkpoints call layers again.
        for module, operation in self._layers:
            module.__dict__["forward"] = self._forward_of(module, operation)
        return self

    def __exit__(self, *error: object) -> None:
        for module, _ in self._layers:
            del module.__dict__["forward"]
        self._records, self._bytes = [], 0

    def record(self, record: _Record, x: Tensor, of_out: Tensor) -> None:
        """Record a call of a layer; turn all records into gradients where they exceed `most_bytes`."""
        record.add(x, of_out)
        self._bytes += x.numel() * x.element_size() + of_out.numel() * of_out.element_size()
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        if self._bytes > self.most_bytes:
            for each in self._records:
                each.add_up()
            self._bytes = 0

    def _forward_of(self, module: Any, operation: Operation) -> Callable[..., Tensor]:
        """Return a layer's forward function for the block."""
        plain: Callable[..., Tensor] = type(module).forward
        seen: tuple[_Record, Tensor, Tensor | None] | None = None  # and the parameters behind the gate

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            nonlocal seen
            weight, bias = module.weight, module.bias
            leaves = weight.is_leaf and weight.requires_grad and (bias is None or bias.is_leaf)
            usual = not args and not kwargs and x.dim() >= operation.least_dims and torch.is_grad_enabled()
            if torch.compiler.is_compiling() or not leaves or not usual:
                return plain(module, x, *args, **kwargs)
            if seen is None:
                record = _Record(operation, weight, bias)
                seen = record, *_Gate.apply(record, _layout_for(x, weight), weight, bias)
                self._records.append(record)
            return cast(Tensor, _Call.apply(self, x, *seen))

        return forward


def _refuse(model: nn.Module) -> None:
    """Raise ConfigError where weight gradients can't be deferred."""
    if any(module._compiled_call_impl is not None for module in model.modules()):
        raise ConfigError(
            "deferred weight gradients need layers that are called one by one, and this model's step is compiled: "
            "use train.compile=none, or train without deferring"
        )
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ConfigError(
            "deferred weight gradients need weights that persist between calls, and train.zero 3 gathers them for each "
            "call only: use train.zero 2 or less, or train without deferring"
        )


def _layout_for(x: Tensor, weight: Tensor) -> torch.memory_format:
    """Return the layout in which a layer with input x reads its weight without a copy."""
    last = torch.channels_last
    turned = (
        x.is_cuda and x.dim() == weight.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=last)
    )
    return last if turned else torch.preserve_format


class _Gate(torch.autograd.Function):
    """A layer's parameters as its calls see them; its backward pass comes after all of theirs."""

    @staticmethod
    def forward(
        ctx: Any, record: _Record, layout: torch.memory_format, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        ctx.record = record
        ctx.set_materialize_grads(False)
        used = weight.to(memory_format=layout)
        record.weight = used.detach()
        return used.view_as(used), None if bias is None else bias.view_as(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: None) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.record.take()


class _Call(torch.autograd.Function):
    """An operation whose backward pass gives the gradient of its input and records the rest."""

    @staticmethod
    def forward(
        ctx: Any, deferred: DeferredGradients, x: Tensor, record: _Record, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.deferred, ctx.record = deferred, record
        return record.operation.forward(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = None
        if ctx.needs_input_grad[1]:
            of_x, _, _ = ctx.record.operation.backward(of_out, x, weight, (True, False, False))
        ctx.deferred.record(ctx.record, x, of_out)
        return None, of_x, None, None, None

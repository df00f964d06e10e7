"""Weight gradients of convolutions and linear layers once per micro-batch instead of once per time step.

    deferred = DeferredGradients(model)
    with deferred:                          # for each micro-batch
        loss = loss_of(batch)
        loss.backward()
    # here every parameter's .grad is complete

A recurrent model calls each layer at every one of T time steps, and plain autograd then computes T weight gradients and
T - 1 additions of them. Inside the block a layer records its input and, backward, its output's gradient; only the
gradient of the input is computed there. At the end of the block the records of a layer are concatenated over time and
one operation computes the gradients of weight and bias over T x B samples, which are added to the parameters' `.grad`
(in place where there is one). The sums are the same but for the order of additions; in bf16 they are more exact, since
T partial sums are no longer rounded to bf16.

Deferred: `nn.Conv2d`, `nn.ConvTranspose2d` and `nn.Linear` on batches, in calls that autograd follows. Other modules,
functions that take parameters directly, and layers whose weight isn't a leaf (parametrizations), whose padding isn't
given in zeros and numbers or whose class is derived run as without the block. So does what torch.compile traces: a
compiled cell defers nothing; choose one of the two. No value is read by the host and no shape depends on data, so that
a CUDA graph can capture the block; a replay accumulates into the `.grad` tensors that stood there at capture.

Weights are read channels-last where a CUDA input is: one copy per micro-batch, else PyTorch makes it at every call.

Hooks on a parameter or its AccumulateGrad node don't see deferred gradients: DeepSpeed's ZeRO stages, which reduce
gradients in such hooks, need the plain backward pass. `torch.autograd.grad` of a deferred parameter raises torch's
error for unused tensors. Second derivatives aren't defined.

Memory. Until the end of the block all inputs and output gradients are kept:

    bytes = sum over calls of (numbers in the input + numbers in the output) x bytes per number

of which the inputs are held by autograd anyway until the backward pass reaches them; the concatenated copies of one
layer's records come on top for a moment. The paper's ModeRNN (4 x 64, 64 x 64, T = 20, batch 8) records 4.6 GB in fp32
and 2.3 GB in bf16. `most_bytes` bounds this: when the records exceed it, all are turned into gradients at once, in the
middle of the backward pass, and the calls of a layer then cost so many operations more. The block adds at most
`most_bytes` and one call's record, and as much again for the copies.

Activation checkpointing recomputes calls inside the backward pass, and what they give is recorded like the rest. It is
chosen to save memory, so bound the records by what there is to spare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from toolkit.errors import ToolkitError

aten = torch.ops.aten
MOST_BYTES = 4 << 30
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
        """What a layer computes."""
        assert not isinstance(layer.padding, str)
        sizes = layer.padding, layer.dilation, layer.transposed, layer.output_padding
        return cls(layer.stride, *sizes, layer.groups)

    @property
    def _settings(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = aten.convolution(x, weight, bias, *self._settings)
        return out

    def backward(self, of_out: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool]) -> Gradients:
        """Gradients of input, weight and bias, None where not wanted."""
        gradients: Gradients = aten.convolution_backward(
            of_out, x, weight, [of_out.shape[1]], *self._settings, list(wanted)
        )
        return gradients


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
    """What a layer computes; None: its calls aren't deferred."""
    if type(module) is nn.Linear:
        return Linear()
    if type(module) is nn.Conv2d or type(module) is nn.ConvTranspose2d:
        usual = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return Convolution.of(module) if usual else None
    return None


@dataclass
class _Record:
    """The calls of one layer that have been differentiated by their inputs only."""

    operation: Operation
    weight: Tensor
    bias: Tensor | None
    used: Tensor
    inputs: list[Tensor] = field(default_factory=list)
    of_outputs: list[Tensor] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    def take(self) -> tuple[Tensor, Tensor]:
        """All inputs and all output gradients, each joined along the batch; the record gives them up.

        Raises:
            ToolkitError: an output gradient was changed in place after it was recorded.
        """
        if self.versions != [of_out._version for of_out in self.of_outputs]:
            raise ToolkitError(
                f"DeferredGradients: the gradient of an output of the layer with weight {list(self.weight.shape)} was "
                "changed in place after that layer's backward pass: remove the hook or function that does so, or "
                "train without deferred weight gradients"
            )
        joined = tuple(kept[0] if len(kept) == 1 else torch.cat(kept) for kept in (self.inputs, self.of_outputs))
        self.inputs, self.of_outputs = [], []
        return joined[0], joined[1]


class DeferredGradients:
    """The block described above, for one micro-batch's forward and backward pass; can be entered again.

    Args:
        model: its layers are deferred inside the block.
        most_bytes: the records are turned into gradients whenever they exceed this, and at the end.

    Attributes:
        peak_bytes: the most that the records have held, as the module's formula counts it.
    """

    def __init__(self, model: nn.Module, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.peak_bytes = 0
        found = ((module, operation_of(module)) for module in model.modules())
        self._layers = [(module, operation) for module, operation in found if operation is not None]
        self._bytes = 0
        self._records: dict[Any, _Record] = {}
        self._laid_out: dict[int, Tensor] = {}

    def __enter__(self) -> DeferredGradients:
        # Not a TorchFunctionMode: it isn't in force in the backward pass, where checkpoints call layers again.
        for module, operation in self._layers:
            module.__dict__["forward"] = self._forward_of(module, operation)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module, _ in self._layers:
            del module.__dict__["forward"]
        try:
            if kind is None:
                self._flush()
        finally:
            self._records, self._laid_out, self._bytes = {}, {}, 0

    def _forward_of(self, module: Any, operation: Operation) -> Callable[..., Tensor]:
        """A layer's forward in the block."""
        plain: Callable[..., Tensor] = type(module).forward

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            weight, bias = module.weight, module.bias
            leaves = weight.is_leaf and weight.requires_grad and (bias is None or bias.is_leaf)
            usual = not args and not kwargs and x.dim() >= operation.least_dims and torch.is_grad_enabled()
            if torch.compiler.is_compiling() or not leaves or not usual:
                return plain(module, x, *args, **kwargs)
            return cast(Tensor, _Deferred.apply(self, operation, x, weight, bias))

        return forward

    def weight_for(self, x: Tensor, weight: Tensor) -> Tensor:
        """The weight as a convolution of x reads it fastest."""
        last = torch.channels_last
        if not x.is_cuda or weight.dim() != 4 or weight.is_contiguous(memory_format=last):
            return weight
        if x.is_contiguous() or not x.is_contiguous(memory_format=last):
            return weight
        if id(weight) not in self._laid_out:
            self._laid_out[id(weight)] = weight.detach().contiguous(memory_format=last)
        return self._laid_out[id(weight)]

    def record(
        self, operation: Operation, weight: Tensor, bias: Tensor | None, used: Tensor, x: Tensor, of_out: Tensor
    ) -> None:
        """Note one call's input and output gradient."""
        key = (id(weight), id(bias), operation, x.shape[1:], x.dtype)  # what can be joined along the batch
        record = self._records.setdefault(key, _Record(operation, weight, bias, used))
        record.inputs.append(x)
        record.of_outputs.append(of_out)
        record.versions.append(of_out._version)
        self._bytes += x.numel() * x.element_size() + of_out.numel() * of_out.element_size()
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        if self._bytes > self.most_bytes:
            self._flush()

    @torch.no_grad()
    def _flush(self) -> None:
        """Turn all records into gradients."""
        while self._records:
            _, record = self._records.popitem()
            x, of_out = record.take()
            weight, bias = record.weight, record.bias
            wanted = (False, True, bias is not None and bias.requires_grad)
            _, of_weight, of_bias = record.operation.backward(of_out, x, record.used, wanted)
            _accumulate(weight, of_weight)
            if bias is not None:
                _accumulate(bias, of_bias)
        self._bytes = 0


def _accumulate(parameter: Tensor, gradient: Tensor | None) -> None:
    """Add to a parameter's `.grad`; a new one lies in memory as the parameter does, as autograd's would."""
    if gradient is None:
        return
    if parameter.grad is not None:
        parameter.grad.add_(gradient)
    elif gradient.stride() == parameter.stride():
        parameter.grad = gradient
    else:
        parameter.grad = torch.empty_like(parameter).copy_(gradient)


class _Deferred(torch.autograd.Function):
    """An operation whose backward pass gives the gradient of its input and records the rest."""

    @staticmethod
    def forward(
        ctx: Any, deferred: DeferredGradients, operation: Operation, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        used = deferred.weight_for(x, weight)
        ctx.save_for_backward(x, used)
        ctx.deferred, ctx.operation, ctx.parameters = deferred, operation, (weight, bias)
        return operation.forward(x, used, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
        x, used = ctx.saved_tensors
        ctx.deferred.record(ctx.operation, *ctx.parameters, used, x, of_out)
        of_x = None
        if ctx.needs_input_grad[2]:
            of_x, _, _ = ctx.operation.backward(of_out, x, used, (True, False, False))
        return None, None, of_x, None, None

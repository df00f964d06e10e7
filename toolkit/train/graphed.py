"""Forward and backward of a micro-batch over all time steps, on tensors that stay in place, replayed as one CUDA graph.

A step of the paper's ModeRNN is some twenty thousand small kernels. Started one by one they keep a CPU core busy for
100 to 300 ms while the GPU idles between them; recorded once and replayed they are one launch. What a graph reads and
writes must stay where it was: frames, the mask of scheduled sampling and noise are copied into static tensors before
each replay, and gradients are added to static tensors (torch.cuda.CUDAGraph; NVIDIA, "CUDA Graphs",
https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-graphs).

On a CPU nothing is recorded: the same work on the same static tensors is called each time. So everything but the
capture itself is tested there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from toolkit.data.batches import Batch
from toolkit.errors import ConfigError
from toolkit.models.base import Noise, SequenceModel
from toolkit.train.deferred import DeferredGradients
from toolkit.train.loss import Inputs, TrainingLoss
from toolkit.train.memory import is_shortage
from toolkit.wording import first_line

WARM_UP = 2  # runs before the capture: libraries choose algorithms and allocate workspaces, cells are compiled


class StaticNoise(Noise):
    """Random numbers in tensors that stay in place: which ones the model asks for is learned from its first run."""

    def __init__(self, source: Noise) -> None:
        self.device = source.device
        self.source = source
        self.drawn: list[Tensor] = []
        self.place = 0

    def rewind(self) -> None:
        """Let the model ask again."""
        self.place = 0

    def refill(self, source: Noise) -> None:
        """Draw new numbers, in the order in which the model asks for them."""
        self.source = source
        for drawn in self.drawn:
            drawn.copy_(source.normal(*drawn.shape[1:]))

    def normal(self, *shape: int) -> Tensor:
        if self.place == len(self.drawn):
            self.drawn.append(self.source.normal(*shape))
        drawn = self.drawn[self.place]
        assert drawn.shape[1:] == shape, f"the model asked for noise {drawn.shape[1:]} before and for {shape} now"
        self.place += 1
        return drawn


class StaticStep:
    """Forward and backward of one micro-batch; gradients are added to those that the parameters have.

    Args:
        gradients: of all parameters; what warming up adds to them is taken away again.
        parts: micro-batches of a step; the loss is divided by it before the backward pass.
        deferred: of the model, where weight gradients are computed once for all time steps.
        required: a pass that can't be recorded (it waits for the device, say) is an error; else it is run eagerly, and
            `fault` says why.
    """

    def __init__(
        self,
        model: SequenceModel,
        loss: TrainingLoss,
        gradients: Tensor,
        parts: int,
        deferred: DeferredGradients | None,
        required: bool,
    ) -> None:
        self.model, self.loss, self.gradients, self.parts, self.deferred = model, loss, gradients, parts, deferred
        self.required, self.fault = required, ""
        self.inputs: Inputs | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result = torch.zeros((), device=gradients.device)

    def run(self, batch: Batch) -> Tensor:
        """Return the loss of the micro-batch, in a tensor that the next call overwrites."""
        self.loss.begin()
        drawn = self.loss.inputs(batch)
        if self.inputs is None:
            self.inputs = Inputs(drawn.codes.clone(), drawn.teacher.clone(), StaticNoise(drawn.noise))
            if self.gradients.is_cuda:
                self._capture()
        else:
            self._fill(self.inputs, drawn)
        if self.graph is None:
            self._work()
        else:
            self.graph.replay()
        self.loss.end()
        return self.result

    @staticmethod
    def _fill(inputs: Inputs, drawn: Inputs) -> None:
        if inputs.codes.shape != drawn.codes.shape:
            raise ValueError(f"a graphed step of frames {list(inputs.codes.shape)} got {list(drawn.codes.shape)}")
        inputs.codes.copy_(drawn.codes)
        inputs.teacher.copy_(drawn.teacher)
        assert isinstance(inputs.noise, StaticNoise)
        inputs.noise.refill(drawn.noise)

    def _work(self) -> None:
        assert self.inputs is not None
        assert isinstance(self.inputs.noise, StaticNoise)
        self.inputs.noise.rewind()
        with self.deferred or nullcontext():
            loss = self.loss.compute(self.model, self.inputs)
            (loss / self.parts).backward()
        self.result.copy_(loss.detach())

    def _capture(self) -> None:
        """Record the work. Other threads (readers that pin memory, NCCL's watchdog) may use CUDA meanwhile.

        Raises:
            ConfigError: it can't be recorded, and is `required`.
        """
        device = self.gradients.device
        before = self.gradients.clone()
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._work()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._work()
            self.graph = graph
        except RuntimeError as error:
            if is_shortage(error):
                raise
            torch.cuda.synchronize(device)
            self.fault = first_line(error)
            if self.required:
                raise ConfigError(
                    f"train.graph on: the forward and backward pass can't be recorded as a CUDA graph: {self.fault}. "
                    "Set train.graph=off, or auto to run it eagerly where that is so"
                ) from error
        self.gradients.copy_(before)


class FlatTensor:
    """One buffer with a view for each of some parameters, in the parameter's own shape and strides.

    A reduction over ranks, a cast or a zeroing is then one kernel for all of them. On a GPU each begins at a multiple
    of 128 bytes, as cuDNN's fast kernels want their weights; the gaps hold zeros. On a CPU there are none: Adam's
    vector code then ends where it does in DeepSpeed's flat tensor, and both give the same numbers to the last bit.
    """

    def __init__(self, parameters: Sequence[Tensor], dtype: torch.dtype) -> None:
        unit = 64 if parameters[0].is_cuda else 1
        places, size = [], 0
        for parameter in parameters:
            places.append(size)
            size += -(-parameter.numel() // unit) * unit
        self.buffer = torch.zeros(size, dtype=dtype, device=parameters[0].device)
        self._shapes = [(p.shape, p.stride(), place) for p, place in zip(parameters, places, strict=True)]
        self.views = self.views_of(self.buffer)

    def views_of(self, buffer: Tensor) -> list[Tensor]:
        """Return a view for each parameter of another buffer of this size (an optimizer's moment)."""
        return [buffer.as_strided(shape, stride, place) for shape, stride, place in self._shapes]

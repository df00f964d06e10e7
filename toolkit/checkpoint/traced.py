"""A model's forecast as one graph that needs no code of the toolkit: PyTorch's `model.pt2`, or `model.onnx`.

The graph takes `frames` [B, context, C, H, W], float32 in 0..1, and returns `forecast` [B, horizon, C, H, W]: what
`model.predict(frames, horizon)[0]` returns, all time steps unrolled. Context, horizon and size are fixed, the batch is
fixed or free. A graph is compared with the model before it is kept.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shards.manifest import FrameSpec
from toolkit.checkpoint.export import frames_of, read_export
from toolkit.config.channels import input_frames, target_frames
from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.base import SequenceModel
from toolkit.wording import first_line

SAFETENSORS, PT2, ONNX = FORMATS = ("safetensors", "pt2", "onnx")
CLOSE = 1e-4  # largest difference in a pixel, of 0..1, between a graph and its model


class GraphShape(NamedTuple):
    """What is fixed in a graph; a batch of 0 is free."""

    frames: FrameSpec
    context: int
    horizon: int
    batch: int = 0
    targets: int | None = None  # channels of the forecast; None: those of the frames

    @property
    def text(self) -> str:
        """Inputs and outputs, for messages."""
        size = f"{self.frames.height}, {self.frames.width}"
        batch = self.batch or "B"
        return (
            f"frames [{batch}, {self.context}, {self.frames.channels}, {size}] -> "
            f"forecast [{batch}, {self.horizon}, {self.targets or self.frames.channels}, {size}]"
        )

    def example(self, batch: int) -> Tensor:
        """Return frames to compare with."""
        generator = torch.Generator().manual_seed(batch)
        return torch.rand(batch, self.context, *self.frames.shape, generator=generator)


class _Forecast(nn.Module):
    def __init__(self, model: SequenceModel, horizon: int) -> None:
        super().__init__()
        self.model = model
        self.horizon = horizon

    def forward(self, frames: Tensor) -> Tensor:
        forecast: Tensor = self.model.predict_targets(frames, self.horizon, 1, None)[0]
        return forecast


def add_graph(folder: Path, kind: str, horizon: int | None, batch: int, model_file: Path | None) -> str:
    """Write the model of an exported folder as one graph beside its weights; return what was done, in words.

    Args:
        folder: an export, see `toolkit.checkpoint.export`.
        kind: `pt2` or `onnx`.
        horizon: frames to predict; None: as many as in training.
        batch: sequences at once; 0: any number.
        model_file: as in `read_export`.

    Raises:
        ConfigError, CheckpointError: as `write_graph` and `read_export`, or the file exists.
    """
    check_format(kind)
    file = folder / f"model.{kind}"
    if file.exists():
        raise ConfigError(f"{file}: exists already: delete it to write it again")
    model, config, record = read_export(folder, model_file)
    stored = frames_of(record)
    read, made = input_frames(config.data, stored), target_frames(config.data, stored)
    shape = GraphShape(read, config.data.context, horizon or config.data.horizon, batch, made.channels)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        difference = write_graph(model, config.model.name, kind, temporary, shape)
        os.replace(temporary, file)
    except OSError as error:
        raise ConfigError(f"{file}: can't be written ({error.strerror}): choose another folder") from None
    finally:
        temporary.unlink(missing_ok=True)
    return f"{file}: {shape.text}; differs from the model by {difference:.2g} of 0..1 at most"


def check_format(kind: str) -> None:
    """Check that what a format needs is installed.

    Raises:
        ConfigError: a package is missing.
    """
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if kind == ONNX and missing:
        raise ConfigError(f"--format onnx needs {', '.join(missing)}: pip install '.[onnx]'")


def write_graph(model: SequenceModel, name: str, kind: str, file: Path, shape: GraphShape) -> float:
    """Write a model's forecast as one graph; return its largest difference from the model, of 0..1.

    Args:
        model: on the CPU, in evaluation mode.
        name: of the model, for messages.
        kind: `pt2` or `onnx`.
        file: to write.
        shape: what is fixed in it.

    Raises:
        ConfigError: the model can't be written as a graph; why, in torch's words.
        CheckpointError: the graph forecasts something else than the model.
    """
    check_format(kind)
    wrapped = _Forecast(model, shape.horizon).eval()
    example = shape.example(shape.batch or 2)
    free = None if shape.batch else ({0: torch.export.Dim("batch", min=1)},)
    try:
        with torch.no_grad():
            program = torch.export.export(wrapped, (example,), dynamic_shapes=free, strict=False)
        if kind == PT2:
            torch.export.save(program, file)
        else:
            made = torch.onnx.export(
                program, (example,), dynamo=True, verbose=False, input_names=["frames"], output_names=["forecast"]
            )
            assert made is not None
            made.save(file)
    except Exception as error:  # whatever torch's tracers raise
        cause: BaseException = error
        while cause.__cause__ is not None:  # torch wraps what an operator can't do in pages of advice
            cause = cause.__cause__
        reason = re.sub(r"\x1b\[\d*m", "", first_line(cause))
        advice = "" if shape.batch else "; a fixed batch may do: --batch 1"
        raise ConfigError(
            f"{name}: can't be written as {kind} ({type(cause).__name__}: {reason}){advice}; --format safetensors "
            "takes every model"
        ) from None
    return _compare(wrapped, name, kind, file, shape)


def _compare(wrapped: nn.Module, name: str, kind: str, file: Path, shape: GraphShape) -> float:
    run, largest = _runner(kind, file), 0.0
    for batch in (shape.batch,) if shape.batch else (1, 3):
        frames = shape.example(batch)
        with torch.no_grad():
            expected = wrapped(frames)
        largest = max(largest, float((run(frames) - expected).abs().max()))
    if not largest <= CLOSE:
        file.unlink()
        raise CheckpointError(f"{name}: its {kind} graph differs from the model by up to {largest:.3g}: not kept")
    return largest


def _runner(kind: str, file: Path) -> Any:
    """Return a function that runs a graph on frames."""
    if kind == PT2:
        return torch.export.load(file).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda frames: torch.from_numpy(session.run(None, {"frames": frames.numpy()})[0])

"""What a model costs: multiply-accumulates of one forward pass, counted on torch's meta device (nothing is computed).

Counted are convolutions, matrix products and attention (two products of every query with every key); elementwise work,
normalisations and interpolation are not. Papers of the field print this number as "FLOPs"; a MAC is two of those.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from shards.manifest import FrameSpec
from toolkit.models.base import Sampling, SequenceModel, StepSequence, build_model
from toolkit.models.registry import Options


def count_macs(options: Options, shape: FrameSpec, context: int, horizon: int) -> int:
    """Return the MACs of one sequence, forward: `context` + `horizon` frames, of which the last is never an input."""
    frames = context + horizon
    with torch.device("meta"), torch.no_grad():
        model = build_model(options, shape).eval().requires_grad_(False)
        if isinstance(model, StepSequence):  # every step costs the same: count one
            return (frames - 1) * _macs(model, torch.empty(1, 2, *shape.shape), 1)
        return _macs(model, torch.empty(1, frames, *shape.shape), context)


def _macs(model: SequenceModel, frames: Tensor, context: int) -> int:
    with FlopCounterMode(display=False) as counter:
        model(frames, context, Sampling())
    return int(counter.get_total_flops()) // 2

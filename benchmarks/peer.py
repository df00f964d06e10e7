"""PredRNN of github.com/thuml/predrnn-pytorch, from a clone of it, as a form for benchmarks/cell.py to time.

Its model and training step run as they are: `core.models.model_factory.Model.train`, on frames that its own
`preprocess.reshape_patch` would give, with the weights of the toolkit's model, so that both must have the same loss.
OpenSTL's PredRNN is the same code in another place (its cell and its stack differ in argument names alone).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from toolkit.config import RunConfig
from toolkit.models.base import StepSequence, to_patches
from toolkit.models.registry import PredRNNOptions


def training_step(
    folder: Path, config: RunConfig, ours: StepSequence, size: int, length: int
) -> Callable[[Tensor], float]:
    """One training step of theirs as a function of frames [B, T, 1, size, size].

    Args:
        folder: the clone.
        ours: whose weights it starts with. The order of the layers and of the gates within them is the same.
        length: T; the first half is context.
    """
    if not (folder / "core" / "models" / "model_factory.py").exists():
        raise SystemExit(f"{folder}: no clone of https://github.com/thuml/predrnn-pytorch")
    sys.path.insert(0, str(folder))
    from core.models.model_factory import Model  # type: ignore[import-not-found]

    options = config.model
    assert isinstance(options, PredRNNOptions)
    model = Model(
        argparse.Namespace(
            model_name="predrnn",
            num_hidden=",".join([str(options.hidden)] * options.layers),
            filter_size=options.kernel,
            patch_size=options.patch,
            layer_norm=int(options.layer_norm),
            stride=1,
            img_channel=1,
            img_width=size,
            input_length=length // 2,
            total_length=length,
            reverse_scheduled_sampling=0,
            lr=3e-4,
            device=str(next(ours.parameters()).device),
        )
    )
    names = model.network.state_dict().keys()
    model.network.load_state_dict(dict(zip(names, ours.state_dict().values(), strict=True)))

    def step(frames: Tensor) -> float:
        patched = to_patches(frames, options.patch).permute(0, 1, 3, 4, 2).cpu().numpy()
        never = torch.zeros(len(patched), length - length // 2 - 1, *patched.shape[2:]).numpy()  # shows no true frame
        return float(model.train(patched, never))

    return step

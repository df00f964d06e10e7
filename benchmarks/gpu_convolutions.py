"""A part of benchmarks/gpu.py: microseconds of each convolution of the paper's ModeRNN, by our kernel and by cuDNN."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.gpu_rows import Job, Row, Rows, milliseconds

LAYERS = {  # channels of the input and of the output, side, groups
    "fuse_slots": (128, 2048, 3, 4),
    "bind": (128, 128, 3, 4),
    "fuse_input": (128, 512, 3, 1),
    "gate_fused": (512, 256, 1, 4),
    "gate_input": (128, 256, 1, 1),
    "pointwise": (128, 128, 1, 1),
}
BATCH, SIDES = 8, (16, 96)  # maps of 64 x 64 and of 384 x 384 frames in patches of 4
CALLS = 20  # in a CUDA graph
TILES = ((64, 32), (64, 64), (128, 32), (128, 64), (64, 128), (128, 128))  # positions, outputs
DEPTHS = (32, 64, 128)


def cases(job: Job) -> Iterator[Row]:
    """Ours by default beside cuDNN's first; then other tiles of the small maps."""
    sides = SIDES if job.cuda else (4,)
    for side, (layer, of_input) in itertools.product(sides, itertools.product(LAYERS, (False, True))):
        yield {"layer": layer, "what": "input gradient" if of_input else "forward", "side": side, "tile": None}
    if not job.cuda:
        return
    for (layer, of_input), (rows, columns) in itertools.product(itertools.product(LAYERS, (False, True)), TILES):
        inputs, outputs, _, groups = LAYERS[layer]
        if columns <= (inputs if of_input else outputs) // groups:
            for depth in DEPTHS:
                if depth <= (outputs if of_input else inputs) // groups:
                    yield {
                        "layer": layer,
                        "what": "input gradient" if of_input else "forward",
                        "side": SIDES[0],
                        "tile": [rows, columns, depth],
                    }


def convolutions(job: Job) -> None:
    """Each alone, channels-last in bf16, captured many times in one CUDA graph."""
    import torch

    rows = Rows(job)
    for case in rows.each(cases(job), least=4 if job.cuda else 0.5):
        with rows.trying(**case) as row, torch.no_grad():
            ours, theirs = both(job, case)
            if case["tile"] is None:
                row["cudnn_us"] = microseconds(job, theirs)
                torch.backends.cudnn.benchmark = True
                row["benchmark_us"] = microseconds(job, theirs)
                torch.backends.cudnn.benchmark = False
            if not job.cuda:
                continue
            with tile_of(case) as sizes:
                row["triton_us"] = microseconds(job, ours)
            row |= sizes
            one, other = ours().double(), theirs().double()
            row["apart"] = float((one - other).norm() / other.norm())


def both(job: Job, case: Row) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The same by our kernel and by PyTorch."""
    import torch

    inputs, outputs, side, groups = LAYERS[case["layer"]]
    last = {"memory_format": torch.channels_last}
    like = {"device": job.device, "dtype": torch.bfloat16}
    grid = case["side"], case["side"]
    x = torch.randn(BATCH, inputs, *grid, **like).contiguous(**last)
    weight = torch.randn(outputs, inputs // groups, side, side, **like).contiguous(**last)
    bias, slope = torch.randn(outputs, **like), torch.randn(BATCH, outputs, *grid, **like).contiguous(**last)
    settings = [1, 1], [side // 2, side // 2], [1, 1], False, [0, 0], groups
    aten = torch.ops.aten
    if case["what"] == "forward":
        own = (x, weight, bias, groups, False)
        theirs: Callable[[], Any] = lambda: aten.convolution(x, weight, bias, *settings)  # noqa: E731
    else:
        own = (slope, weight, None, groups, True)
        theirs = lambda: aten.convolution_backward(slope, x, weight, None, *settings, [True, False, False])[0]  # noqa: E731
    return lambda: torch.ops.modernn.convolution(*own), theirs


@contextmanager
def tile_of(case: Row) -> Iterator[Row]:
    """The sizes of a tile by default, or those of the case."""
    from toolkit.models import convolutions

    default, sizes = convolutions.tile, {}

    def chosen(*shape: Any) -> dict[str, int]:
        sizes.update(default(*shape))
        if case["tile"]:
            rows, columns, depth = case["tile"]
            stages = max(3, min(6, convolutions.SHARED // ((rows + columns) * depth * 2)))
            warps = 8 if rows * columns > 64 * 128 else 4
            sizes.update(POSITIONS=rows, OUTPUTS=columns, INPUTS=depth, num_warps=warps, num_stages=stages)
        return dict(sizes)

    convolutions.tile = chosen
    try:
        yield sizes
    finally:
        convolutions.tile = default


def microseconds(job: Job, call: Callable[[], Any]) -> float:
    """Of one call."""
    import torch

    if not job.cuda:
        return 1e3 * float(milliseconds(call, False, warm=1, least=2, lasting=0.0)["ms"])
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    return 1e3 / CALLS * float(milliseconds(graph.replay, True, warm=2, least=5, lasting=0.01)["ms"])

"""torch.cuda for a process with the fake device: one card, an H100 by its properties, on which nothing takes time.

`install` goes before DeepSpeed or anything else that looks for a device is imported.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

H100 = types.SimpleNamespace(
    name="H100 (fake)",
    major=9,
    minor=0,
    multi_processor_count=132,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    regs_per_multiprocessor=65536,
    warp_size=32,
    total_memory=80 << 30,
    gcnArchName="",
    L2_cache_size=50 << 20,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
)

waits: list[str] = []  # the host waits for the device, in no operator: synchronize() of the device, a stream, an event
replays: list[FakeGraph] = []


class Stream:
    """A stream or an event: always done."""

    cuda_stream = stream_id = device_index = 0
    device_type = 1
    device = torch.device("cuda", 0)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass

    wait = wait_stream = wait_event = record

    def record_event(self, *_: Any) -> Stream:
        return self

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Any) -> float:
        return 1.0

    def synchronize(self) -> None:
        waits.append("stream or event")


class FakeGraph:
    """torch.cuda.CUDAGraph: what is captured runs, a replay is one launch."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def pool(self) -> tuple[int, int]:
        return 0, 0

    def replay(self) -> None:
        replays.append(self)

    def reset(self) -> None:
        pass


capturing = False


@contextlib.contextmanager
def capture(*_: Any, **__: Any) -> Iterator[None]:
    """torch.cuda.graph."""
    global capturing
    capturing = True
    try:
        yield
    finally:
        capturing = False


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """scaled_dot_product_attention by the kernel that an H100 takes: flash in bf16, memory-efficient in fp32."""
    assert attn_mask is None and not dropout_p
    aten = torch.ops.aten
    if query.dtype == torch.float32:
        return aten._scaled_dot_product_efficient_attention(query, key, value, None, True, 0.0, is_causal, scale=scale)[
            0
        ]
    return aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal, False, scale=scale)[0]


def install() -> None:
    """Put the fake device into torch."""
    cuda = torch.cuda
    answers = {
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": (9, 0),
        "get_device_name": H100.name,
        "get_device_properties": H100,
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "memory_reserved": 0,
        "max_memory_reserved": 0,
        "memory_stats": {},
        "mem_get_info": (H100.total_memory, H100.total_memory),
        "empty_cache": None,
        "reset_peak_memory_stats": None,
        "set_device": None,
        "_lazy_init": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
    }
    for name, answer in answers.items():
        setattr(cuda, name, _always(answer))
    cuda.synchronize = lambda *_: waits.append("device")
    cuda.is_current_stream_capturing = lambda: capturing
    cuda.Stream = cuda.Event = Stream
    cuda.current_stream = cuda.default_stream = lambda *_: Stream()
    cuda.stream = lambda stream: stream or Stream()
    cuda.CUDAGraph, cuda.graph, cuda.graph_pool_handle = FakeGraph, capture, _always((0, 0))
    cuda.nvtx.range_push = cuda.nvtx.range_pop = _always(0)
    Tensor.record_stream = _always(None)
    Tensor.pin_memory = lambda self, *_: self
    Tensor.is_pinned = _always(False)
    F.scaled_dot_product_attention = attention


def _always(answer: Any) -> Any:
    return lambda *_, **__: answer

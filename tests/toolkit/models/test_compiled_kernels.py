"""Triton's real compiler, down to an H100's machine code, without a GPU: a stand-in driver names the target."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="no Triton: it comes with PyTorch for CUDA, or by pip install triton")

LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is compiled, by the kernel's name, instead of being started."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase
    from triton.runtime import driver

    from toolkit.models import convolutions, operators

    class H100(DriverBase):  # type: ignore[misc]
        def is_active(self) -> bool:
            return True

        def map_python_to_cpp_type(self, ty: str) -> str:
            return ty

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int = 0) -> int:
            return device

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

        def get_benchmarker(self) -> None:
            return None

    made: dict[str, Any] = {}

    def warm_up(kernel: Any, programs: tuple[int, ...], *arguments: Any, **sizes: int) -> None:
        made[kernel.__name__] = kernel.warmup(*arguments, grid=programs, **sizes)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name, implementation in operators.IMPLEMENTATIONS.items():
        module = operators if hasattr(operators, name) else convolutions
        monkeypatch.setattr(module, name, lambda *a, of=implementation.func: of(warm_up, *a))
    monkeypatch.setattr(driver, "_active", H100())
    return made


def call_all(dtype: torch.dtype, layout: torch.memory_format, sizes: tuple[int, ...]) -> None:
    """Call each operator of the ends once: B, N, d and the grid."""
    from toolkit.models import operators

    batch, slots, width, *grid = sizes

    def maps(channels: int) -> Tensor:
        return torch.empty(batch, channels, *grid, dtype=dtype).contiguous(memory_format=layout)

    state, both, gates, features = maps(width), maps(2 * width), maps(8 * width), maps(8 * width * slots)
    omega = torch.empty(batch, slots, 4, 2 * width, dtype=dtype)
    operators.gated_sum(omega, both, gates, features)
    operators.gated_sum_backward(gates, omega, both, gates, features)
    operators.weighed_sum(omega[:, 0], both, maps(6 * width))
    operators.weighed_sum_backward(both, omega[:, 0], both, maps(6 * width))
    operators.lstm(state, [gates[:, : 4 * width]], gates[:, 4 * width :], 1.0)
    operators.lstm_backward(state, state, state, [both, both], 0.0)
    three = maps(3 * width)
    operators.remember(state, gates[:, : 3 * width], three, 1.0)
    operators.remember_backward(state, state, state, three, 1.0)
    operators.show(state, gates[:, 6 * width : 7 * width], state, state)
    operators.show_backward(state, state, state)
    operators.add_tiles(torch.empty(40, batch, slots, 4, 2 * width), dtype)


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_papers_sizes_load_and_store_16_bytes_at_once(
    dtype: torch.dtype, layout: torch.memory_format, compiled: dict[str, Any]
) -> None:
    call_all(dtype, layout, (8, 4, 64, 16, 16))
    from toolkit.models.operators import IMPLEMENTATIONS

    assert set(compiled) == set(IMPLEMENTATIONS) - {"convolution"}
    for name, kernel in compiled.items():
        code = kernel.asm["ptx"]
        assert kernel.asm["cubin"]
        assert not re.search(r"\b(atom|red)\.", code), f"{name}: atomics, a repeat may differ"
        loads = re.findall(r"ld\.global\.(\S+)", code)
        stores = re.findall(r"st\.global\.(\S+)", code)
        assert "v4.b32" in loads, (name, set(loads))
        if name == "add_tiles":
            continue
        assert "v4.b32" in stores, (name, set(stores))
        if layout == torch.channels_last:  # elsewhere each importance weight is one number for a row of positions
            assert set(loads) == {"v4.b32"}, (name, set(loads))


def test_odd_sizes_compile(compiled: dict[str, Any]) -> None:
    call_all(torch.bfloat16, torch.channels_last, (3, 5, 11, 7, 5))
    assert all(kernel.asm["cubin"] for kernel in compiled.values())


LAST = torch.channels_last
# Of the paper's ModeRNN: channels of the input, of the output, side, groups.
CONVOLUTIONS = [(128, 128, 3, 4), (128, 2048, 3, 4), (512, 256, 1, 4), (128, 512, 3, 1), (128, 128, 1, 1)]


@pytest.mark.parametrize("grid", [16, 96])
@pytest.mark.parametrize(("inputs", "outputs", "side", "groups"), CONVOLUTIONS)
def test_convolutions_multiply_on_tensor_cores_from_pipelined_loads(
    inputs: int, outputs: int, side: int, groups: int, grid: int, compiled: dict[str, Any]
) -> None:
    from toolkit.models import convolutions

    weight = torch.empty(outputs, inputs // groups, side, side, dtype=torch.bfloat16).to(memory_format=LAST)
    for transposed in (False, True):
        x = torch.empty(8, outputs if transposed else inputs, grid, grid, dtype=torch.bfloat16, memory_format=LAST)
        bias = None if transposed else torch.empty(outputs, dtype=torch.bfloat16)
        convolutions.convolution(x, weight, bias, groups, transposed)
        kernel = compiled["convolution"]
        code = kernel.asm["ptx"]
        assert "wgmma.mma_async" in code
        assert re.search(r"cp\.async\.cg|ld\.global\.v4\.b32", code)  # the latter where there is but one step
        assert not re.search(r"ld\.global\.b16", code)
        assert set(re.findall(r"st\.global\.(\S+)", code)) == {"v4.b32"}
        assert not re.search(r"\b(atom|red|st\.local|ld\.local)\.", code)
        assert kernel.metadata.shared <= 112 * 2**10, "two programs fit a multiprocessor of an H100"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_odd_convolutions_compile(dtype: torch.dtype, compiled: dict[str, Any]) -> None:
    from toolkit.models import convolutions

    weight = torch.empty(129, 26, 5, 5, dtype=dtype)
    x = torch.empty(2, 78, 5, 7, dtype=dtype, memory_format=LAST)
    convolutions.convolution(x, weight, None, 3, False)
    assert compiled["convolution"].asm["cubin"]

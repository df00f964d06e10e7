"""Cells against the plain references: outputs and gradients in float64."""

from __future__ import annotations

import pytest
import torch

from tests.toolkit.models.reference import plain_convlstm_cell, plain_mode_cell
from toolkit.models.convlstm import ConvLSTMCell
from toolkit.models.modernn import ModeCell


def assert_same(ours, plain, parameters) -> None:
    """Outputs and all gradients of a random projection of them agree to 1e-10."""
    for a, b in zip(ours, plain, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)
    directions = [torch.randn_like(a) for a in ours]
    of_ours = torch.autograd.grad(sum((a * d).sum() for a, d in zip(ours, directions, strict=True)), parameters)
    of_plain = torch.autograd.grad(sum((b * d).sum() for b, d in zip(plain, directions, strict=True)), parameters)
    for a, b in zip(of_ours, of_plain, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)
        assert a.abs().max() > 0


@pytest.mark.parametrize("fusion", ["adaptive", "equal"])
@pytest.mark.parametrize("slots", [1, 2, 3, 4, 5])
def test_mode_cell_equals_the_equations(slots: int, fusion: str) -> None:
    torch.manual_seed(slots)
    cell = ModeCell(width=6, slots=slots, gate_norm=False, forget_bias=1.0, fusion=fusion).double()
    x, hidden, bus = (torch.randn(2, 6, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    parameters = {name: p for name, p in cell.named_parameters() if not name.startswith("bus_")}
    assert ("weigh.weight" in parameters) == (fusion == "adaptive")
    ours = cell(x, (hidden, bus))
    plain = plain_mode_cell(x, hidden, bus, parameters, slots)
    assert_same(ours, plain, [x, hidden, bus, *parameters.values()])


@pytest.mark.parametrize("grid", [None, (6, 5)])
def test_convlstm_cell_equals_the_equations(grid: tuple[int, int] | None) -> None:
    torch.manual_seed(0)
    cell = ConvLSTMCell(3, 4, kernel=5, bias=False, forget_bias=1.0, grid=grid).double()
    if cell.peepholes is not None:
        torch.nn.init.normal_(cell.peepholes)
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    hidden, memory = (torch.randn(2, 4, 6, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    plain = plain_convlstm_cell(x, hidden, memory, dict(cell.named_parameters()), 1.0)
    assert_same(cell(x, (hidden, memory)), plain, [x, hidden, memory, *cell.parameters()])

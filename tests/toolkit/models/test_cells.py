"""Cells against the plain references: outputs and gradients in float64."""

from __future__ import annotations

import pytest
import torch

from tests.support.models import assert_same
from tests.toolkit.models.reference import plain_convlstm_cell, plain_mode_cell
from toolkit.models.convlstm import ConvLSTMCell
from toolkit.models.modernn import ModeCell


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

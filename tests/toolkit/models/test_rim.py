"""RIM: the equations, and what sleeping modules are promised."""

from __future__ import annotations

import pytest
import torch

from tests.support.models import assert_same
from tests.toolkit.models.reference_rim import plain_rim_cell
from toolkit.models.registry import RIMOptions
from toolkit.models.rim import RIMCell

OPTIONS = RIMOptions(
    hidden=9, modules=3, active=2, kernel=3, value=5, input_key=4, heads=2, message_key=3, forget_bias=1.0
)


def make(active: int = 2, batch: int = 3) -> tuple[RIMCell, list[torch.Tensor]]:
    """A cell in float64, and X, H, C that want gradients."""
    torch.manual_seed(active)
    cell = RIMCell(4, OPTIONS.model_copy(update={"active": active})).double()
    with torch.no_grad():
        for p in cell.parameters():
            p.mul_(2)
    sizes = (4, 9, 9)
    return cell, [torch.randn(batch, n, 5, 4, dtype=torch.float64, requires_grad=True) for n in sizes]


@pytest.mark.parametrize("active", [1, 2, 3])
def test_cell_equals_the_equations(active: int) -> None:
    cell, (x, hidden, memory) = make(active)
    ours = cell(x, (hidden, memory))
    *plain, chosen = plain_rim_cell(
        x, hidden, memory, dict(cell.named_parameters()), OPTIONS.model_copy(update={"active": active})
    )
    assert_same(ours, plain, [x, hidden, memory, *cell.parameters()])
    mask = cell.choose(cell.read(x, hidden)[1])
    assert [row.nonzero().flatten().tolist() for row in mask] == chosen
    if active == 2:
        assert len({tuple(modules) for modules in chosen}) > 1  # the samples differ in what is active


def test_sleeping_modules_keep_their_state_bit_for_bit() -> None:
    cell, (x, hidden, memory) = make(active=1)
    mask = cell.choose(cell.read(x, hidden)[1])
    after = cell(x, (hidden, memory))
    for new, old in zip(after, (hidden, memory), strict=True):
        new, old = new.unflatten(1, (3, 3)), old.unflatten(1, (3, 3))
        assert torch.equal(new[~mask], old[~mask])
        assert (new[mask] != old[mask]).all()


def test_sleeping_modules_get_no_gradient() -> None:
    """One sample, so that a module sleeps for the whole batch: its parameters' gradients are exactly 0."""
    cell, (x, hidden, memory) = make(active=2, batch=1)
    mask = cell.choose(cell.read(x, hidden)[1])[0]
    asleep = int((~mask).nonzero())
    after = cell(x, (hidden, memory))[0].unflatten(1, (3, 3))
    after[:, mask].square().sum().backward()  # what the active modules make of this step
    for name, p in cell.named_parameters():
        if name in ("key.weight", "value.weight"):  # shared by all modules
            continue
        own = p.grad.unflatten(0, (3, -1))
        assert torch.equal(own[asleep], torch.zeros_like(own[asleep])), name
        assert all(own[k].abs().max() > 0 for k in range(3) if k != asleep), name
    # its state was read by the others, and yet is a constant to them
    for state in (hidden, memory):
        assert torch.equal(state.grad.unflatten(1, (3, 3))[:, asleep], torch.zeros(1, 3, 5, 4, dtype=torch.float64))


def test_a_carried_state_keeps_its_gradient() -> None:
    cell, (x, hidden, memory) = make(active=2, batch=1)
    asleep = int((~cell.choose(cell.read(x, hidden)[1])[0]).nonzero())
    cell(x, (hidden, memory))[0].unflatten(1, (3, 3))[:, asleep].sum().backward()
    expected = torch.zeros(1, 3, 3, 5, 4, dtype=torch.float64)
    expected[:, asleep] = 1
    assert torch.equal(hidden.grad.unflatten(1, (3, 3)), expected)
    assert all(p.grad is None or not p.grad.any() for p in cell.parameters())


def test_active_modules_do_read_sleeping_ones() -> None:
    cell, (x, hidden, memory) = make(active=2, batch=1)
    mask = cell.choose(cell.read(x, hidden)[1])[0]
    moved = cell.move(cell.read(x, hidden)[0], hidden.unflatten(1, (3, 3)), memory.unflatten(1, (3, 3)))[0]
    awake = mask.view(1, 3, 1, 1, 1)
    changed = torch.where(awake, moved, moved + 1)
    heard, otherwise = cell.messages(moved, awake), cell.messages(changed, awake)
    assert not torch.allclose(heard[:, mask], otherwise[:, mask])


def test_ties_go_to_the_first_modules() -> None:
    cell, _ = make(active=2)
    attention = torch.full((1, 3, 4, 4), 0.5)
    assert cell.choose(attention).tolist() == [[True, True, False]]
    attention[:, 2] = 0.6
    assert cell.choose(attention).tolist() == [[True, False, True]]

"""Conv-TT-LSTM: the equations, the dense equivalents, both shapes of net."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shards.manifest import FrameSpec
from tests.support.models import assert_same
from tests.toolkit.models.reference import plain_conv, plain_convlstm_cell
from tests.toolkit.models.reference_conv_tt_lstm import dense_cell, plain_conv_tt_cell
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import make_config
from toolkit.errors import ConfigError
from toolkit.models.base import Sampling, StepSequence
from toolkit.models.conv_tt_lstm import ConvTTLSTMCell


def built(checkpointing: str = "none", **options) -> StepSequence:
    torch.manual_seed(0)
    small = {"layers": 2, "hidden": 2, "kernel": 3, "rank": 3, "patch": 2}
    tree = {
        "model": {"name": "conv_tt_lstm", **small, **options},
        "train": {"activation_checkpointing": {"policy": checkpointing}},
    }
    return untrained_model(make_config(tree, "test"), FrameSpec(1, 10, 12))


def states(count: int, channels: int, height: int, width: int) -> list[torch.Tensor]:
    return [torch.randn(2, channels, height, width, dtype=torch.float64, requires_grad=True) for _ in range(count)]


@pytest.mark.parametrize(("order", "steps"), [(1, 1), (1, 3), (2, 2), (3, 3), (3, 5)])
def test_the_cell_equals_the_equations(order: int, steps: int) -> None:
    torch.manual_seed(order)
    cell = ConvTTLSTMCell(3, 4, kernel=3, order=order, steps=steps, rank=2, forget_bias=0.5).double()
    (x,), past, (memory,) = states(1, 3, 6, 5), states(steps, 4, 6, 5), states(1, 4, 6, 5)
    (hidden, *kept), after = cell(x, (tuple(past), memory))
    assert all(a is b for a, b in zip(kept, past[:-1], strict=True))  # the ring moves on by one
    plain = plain_conv_tt_cell(x, past, memory, dict(cell.named_parameters()), order, 0.5)
    assert_same((hidden, after), plain, [x, memory, *past, *cell.parameters()])


@pytest.mark.parametrize(("order", "steps"), [(2, 3), (3, 4)])
def test_full_rank_equals_dense_kernels(order: int, steps: int) -> None:
    """Away from the border, where padding between the cores can't show; rank = lags x channels is full."""
    torch.manual_seed(0)
    lags = steps - order + 1
    cell = ConvTTLSTMCell(3, 2, kernel=3, order=order, steps=steps, rank=2 * lags, forget_bias=0.0).double()
    with torch.no_grad():
        for name, p in cell.named_parameters():
            p.zero_() if name.endswith("bias") else p.normal_(0, 0.2)
    (x,), past, (memory,) = states(1, 3, 11, 12), states(steps, 2, 11, 12), states(1, 2, 11, 12)
    (hidden, *_), after = cell(x, (tuple(past), memory))
    dense = dense_cell(x, past, memory, dict(cell.named_parameters()), order)
    edge = order + 1  # a state passes up to order + 1 kernels of radius 1
    inner = (..., slice(edge, -edge), slice(edge, -edge))
    weights = [p for name, p in cell.named_parameters() if name.endswith("weight")]
    assert_same((hidden[inner], after[inner]), [t[inner] for t in dense], [x, memory, *past, *weights])


def test_an_identity_train_is_a_convlstm() -> None:
    """Order 1, one step, full rank and the identity for K: G is then the dense kernel of a ConvLSTM, borders too."""
    torch.manual_seed(0)
    cell = ConvTTLSTMCell(3, 4, kernel=5, order=1, steps=1, rank=4, forget_bias=1.0).double()
    window = cell.windows[0]
    assert isinstance(window, nn.Conv2d) and window.bias is not None and cell.gates.bias is not None
    nn.init.dirac_(window.weight)
    nn.init.zeros_(window.bias)
    nn.init.zeros_(cell.gates.bias)
    x, (hidden, memory) = states(1, 3, 6, 5)[0], states(2, 4, 6, 5)
    weight = cell.gates.weight  # i, f, o, g here as in the ConvLSTM
    plain = plain_convlstm_cell(x, hidden, memory, {"gates.weight": weight}, 1.0)
    (after, *_), its_memory = cell(x, ((hidden,), memory))
    assert_same((after, its_memory), plain, [x, hidden, memory, weight])


@pytest.mark.parametrize("sigmoid", [False, True])
def test_blocks_and_skip_connections(sigmoid: bool) -> None:
    """The net of Su et al. with the cells written out: the third and fourth block's outputs get a second half."""
    model = built(blocks=[2, 3, 3, 2], skip=2, sigmoid=sigmoid).double()
    cell, p = model.cell, dict(model.cell.named_parameters())
    frames = torch.randn(3, 2, 4, 5, 6, dtype=torch.float64)
    state = cell.init_state(2, 5, 6, frames[0], None)
    widths = [4, 6, 6, 4]
    zero = [frames.new_zeros(2, width, 5, 6) for width in widths]
    past = [[[zero[b]] * 3 for _ in range(2)] for b in range(4)]
    memory = [[zero[b]] * 2 for b in range(4)]
    for frame in frames:
        prediction, state = cell.step(frame, state)
        x, outputs = frame, []
        for b in range(4):
            for n in range(2):
                prefix = f"blocks.{b}.{n}."
                mine = {name.removeprefix(prefix): q for name, q in p.items() if name.startswith(prefix)}
                x, memory[b][n] = plain_conv_tt_cell(x, past[b][n], memory[b][n], mine, 3, 0.0)
                past[b][n] = [x, *past[b][n][:-1]]
            outputs.append(x)
            if b == 2:
                x = torch.cat([x, outputs[0]], 1)
            if b == 3:
                x = torch.cat([x, outputs[1]], 1)
        plain = plain_conv(x, p["read_out.weight"], p["read_out.bias"])
        assert torch.allclose(prediction, torch.sigmoid(plain) if sigmoid else plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize("cell", ["tt", "lstm"])
def test_the_published_net_trains_under_checkpointing(cell: str) -> None:
    frames = torch.rand(2, 7, 1, 10, 12)
    grads = []
    for policy in ("none", "step"):
        model = built(policy, cell=cell, blocks=[2, 3, 3, 2], skip=2, layers=1)
        model(frames, 3, Sampling()).losses["data"].backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)
        assert a.abs().max() > 0


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.kernel: must be odd"):
        built(kernel=2)
    with pytest.raises(ConfigError, match=r"model\.steps: is less than order = 4, .*: raise it to 4, got 3"):
        built(order=4)
    with pytest.raises(ConfigError, match=r"model\.skip: reaches back over all 2 blocks: use less than 2.*got 2"):
        built(blocks=[1, 1], skip=2)
    with pytest.raises(ConfigError, match=r"model\.blocks\.1: .*greater than or equal to 1, got 0"):
        built(blocks=[1, 0])

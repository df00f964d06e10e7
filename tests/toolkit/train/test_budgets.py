"""Kernels, synchronisations and copies of a training step on a GPU, counted on a fake one: they must not grow.

The table is benchmarks/kernels.json; `python benchmarks/kernels.py --write` writes it anew.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import kernels
from benchmarks.kernels import EAGER, FORMS, PAPER, POINTS, Rows, differences, known, linear
from tests.fake_cuda import ask, why_not

pytestmark = [
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.timeout(600),  # the counting is done once, by the first test that asks
]
FAST = [name for name, form in FORMS.items() if not form.slow]
SLOW = [name for name, form in FORMS.items() if form.slow]
RENEW = "python benchmarks/kernels.py --write"


@pytest.fixture(scope="module")
def rows() -> Rows:
    return kernels.count(FAST)


@pytest.fixture(scope="module")
def slow_rows() -> Rows:
    return kernels.count(SLOW)


@pytest.mark.parametrize("name", FAST)
def test_a_step_costs_what_the_table_says(name: str, rows: Rows) -> None:
    found = differences(name, rows[name], known()[name])
    assert not found, f"{'; '.join(found)}; where that is meant: {RENEW}"


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_another_form_costs_what_the_table_says(name: str, slow_rows: Rows) -> None:
    found = differences(name, slow_rows[name], known()[name])
    assert not found, f"{'; '.join(found)}; where that is meant: {RENEW}"


def test_the_host_waits_once_in_a_graphed_step() -> None:
    for name, row in known().items():
        if EAGER not in FORMS[name].settings:
            assert (row["syncs"], row["copies"]) == (1, 0), name
            assert row["launches"] < 100, name


def test_goals_are_met_or_the_reason_stands_beside_them() -> None:
    table = known()
    assert list(table) == list(FORMS), RENEW
    for name, form in FORMS.items():
        if form.goal is not None:
            missed = table[name]["kernels"] > form.goal
            assert missed == bool(form.why), f"{name}: {table[name]['kernels']:,} kernels, goal {form.goal:,}"


@pytest.mark.slow
def test_twenty_frames_are_what_is_extrapolated_from_four_and_five() -> None:
    """Every kernel of the paper's step, without extrapolation."""
    form = FORMS["modernn, bf16"]
    assert form.config == PAPER
    answers = ask("tests.fake_cuda.steps", [form.at(*form.frames, "step")])
    assert kernels.row_of(form, answers, [])["parts"] == known()["modernn, bf16"]["parts"]


def test_codes_of_16_bits_cost_two_conversions_for_the_mask_and_nothing_else() -> None:
    settings = ["model.layers=1", "data.context=2", "data.horizon=2", "train.batch=2"]
    form = {"config": "configs/mixed-moving-mnist.yaml", "set": settings, "triton": False, "what": "step"}
    coarse, fine = ask("tests.fake_cuda.steps", [{**form, "dtype": dtype} for dtype in ("uint8", "uint16")])
    coarse["recorded"]["forward"]["kernels"] += 2
    for part in ("parts", "recorded"):
        for name, counts in coarse[part].items():
            for key in ("kernels", "syncs", "copies"):
                assert fine[part][name][key] == counts[key], (part, name, key)
    assert fine["replays"] == coarse["replays"] == 1


def test_what_is_not_linear_is_refused() -> None:
    def at(context: int, horizon: int, bend: int) -> dict[str, float]:
        straight = 100 + 7 * context + 9 * horizon
        return dict.fromkeys(kernels.FIELDS, straight + bend * context * horizon)

    straight = linear([at(*point, 0) for point in POINTS], (10, 10))
    assert straight == dict.fromkeys(kernels.FIELDS, 260)
    with pytest.raises(ValueError, match="not linear in frames"):
        linear([at(*point, 1) for point in POINTS], (10, 10))


def test_more_is_a_fault_and_much_less_is_a_table_to_write() -> None:
    row = {"kernels": 1000, "layouts": 0, "launches": 1000, "syncs": 1, "copies": 0}
    assert differences("x", row, row) == []
    assert differences("x", {**row, "kernels": 990}, row) == []
    assert differences("x", {**row, "syncs": 2}, row) == ["x: 2 syncs, 1 in the table: more"]
    assert differences("x", {**row, "kernels": 900}, row) == ["x: 900 kernels, 1,000 in the table: fewer"]


KNOWN_OPERATORS: list[tuple[str, dict[str, Any]]] = [
    ("torch.relu(x)", {"kernels": 1}),
    ("x.view(-1)[3:].unsqueeze(0)", {"kernels": 0}),
    ("conv(x, w, b)", {"kernels": 2, "layouts": 3}),
    ("conv(last(x), last(w), None)", {"kernels": 1, "layouts": 0}),
    ("conv(x, depthwise, b, groups=4)", {"kernels": 1, "layouts": 0}),
    ("conv(x, w.requires_grad_(), None).sum().backward()", {"kernels": 4, "layouts": 6}),  # and ones
    ("x.sum().item()", {"kernels": 1, "syncs": 1}),
    ("x.sum().tolist()", {"kernels": 1, "syncs": 1}),
    ("x.cpu()", {"kernels": 0, "copies": 1}),
    ("x.to('cpu', non_blocking=True)", {"kernels": 0, "copies": 0}),
    ("torch.ones(3).to('cuda')", {"kernels": 0, "copies": 0}),
    ("torch.ones(3) + 1", {"kernels": 0}),
    ("torch.cuda.synchronize()", {"waits": 1}),
    ("torch._foreach_add([x] * 100, [x] * 100)", {"kernels": 2}),  # 64 pairs a launch
]


def test_single_operators_are_counted_as_known() -> None:
    answers = ask("tests.fake_cuda.operators", [{"code": code} for code, _ in KNOWN_OPERATORS])
    for (code, wanted), answer in zip(KNOWN_OPERATORS, answers, strict=True):
        assert {key: answer[key] for key in wanted} == wanted, f"{code}: {answer}"


def test_the_device_is_skipped_with_a_reason_where_it_can_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert "g++" in str(why_not())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "built for CUDA" in str(why_not())

"""How many kernels a training step launches and how often the host waits, counted on a fake CUDA device. No GPU needed.

    python benchmarks/kernels.py            count all forms and compare them with the table: a few minutes
    python benchmarks/kernels.py --write    and write the table anew: benchmarks/kernels.json and kernels.md

Counts, not measurements: the project's own code runs on tensors without data (tests/fake_cuda), and what PyTorch would
launch for each operator is added up. tests/toolkit/train/test_budgets.py holds each form to its row. A step of many
frames isn't run whole: kernels are linear in the frames of context and horizon, which is checked at one point more than
two straight lines take.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import table  # noqa: E402
from tests.fake_cuda import ask, why_not  # noqa: E402

SLACK = 0.02  # so much less than the table may stand unwritten
TABLE = Path(__file__).with_suffix(".json")
PAPER = "configs/mixed-moving-mnist.yaml"
FIELDS = ("ops", "kernels", "layouts", "syncs", "copies", "microseconds")
HEAD = (
    "form", "frames", "operators", "kernels", "layout copies, at most", "started by the host", "syncs",
    "copies to host", "ms at least", "goal: kernels",
)  # fmt: skip
NOTES = """\
- A form is the step by default (one CUDA graph, weight gradients deferred, ends of cells by Triton) but for what its
  name says; `no graph` is DeepSpeed's.
- **kernels**: what the operators of one optimizer step launch, for 8 sequences on one rank; **layout copies**: what
  cuDNN may add where maps don't lie channels-last. **Started by the host**: a CUDA graph is one.
- **syncs**: times that the host waits for a number of the device; **copies to host**: blocking ones.
- **ms at least**: an estimate, not a measurement: on an H100 that never waits for the host, for each operator the
  longest of memory traffic (2.6 TB/s), arithmetic (250 TFLOP/s in bf16, 120 in TF32) and 2.2 us a kernel. Each kernel
  that the host starts takes some 5 us of the host's time besides.
- Steps of 20 frames are extrapolated from steps of 4 and 5; `python benchmarks/kernels.py` checks that it is exact."""

Counts = dict[str, dict[str, float]]  # part of a step -> FIELDS
Request = dict[str, Any]
Rows = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Form:
    """One way to take a training step.

    Attributes:
        frames: (context, horizon).
        how: `step`, or `compiled` for cells by Inductor.
        triton: whether the ends of the cells are Triton's kernels.
        goal: kernels that are aimed at; `why` says what stands between, where it isn't reached.
        slow: counted by slow tests only.
    """

    config: str
    frames: tuple[int, int]
    settings: tuple[str, ...] = ()
    how: str = "step"
    triton: bool = True
    goal: int | None = None
    why: str = ""
    slow: bool = False

    def at(self, context: int, horizon: int, what: str) -> dict[str, Any]:
        """A request to tests/fake_cuda/steps.py."""
        frames = f"data.context={context}", f"data.horizon={horizon}"
        return {"config": self.config, "set": [*frames, *self.settings], "triton": self.triton, "what": what}


def _model(name: str, frames: tuple[int, int] = (2, 2), *settings: str, **more: Any) -> Form:
    return Form(f"configs/models/{name}.yaml", frames, settings, **more)


BF16, EAGER, EACH = "train.precision=bf16", "train.graph=off", "train.defer_weight_gradients=off"
TWENTY = (10, 10)
COMPILED = "torch.compile takes weight gradients into the cell, where they can't be deferred"
FORMS = {
    "modernn, bf16": Form(PAPER, TWENTY, (BF16,), goal=12_000),
    "modernn, bf16, weight gradients at each step": Form(PAPER, TWENTY, (BF16, EACH), slow=True),
    "modernn, bf16, no Triton": Form(PAPER, TWENTY, (BF16,), triton=False, slow=True),
    "modernn, bf16, compiled": Form(
        PAPER, TWENTY, (BF16, "train.compile=default"), "compiled", goal=4_500, why=COMPILED, slow=True
    ),
    "modernn, bf16, no graph": Form(PAPER, TWENTY, (BF16, EAGER), goal=12_000, slow=True),
    "modernn, fp32": Form(PAPER, TWENTY, goal=12_000, slow=True),
    "modernn, fp32, no graph": Form(PAPER, TWENTY, (EAGER,), goal=12_000),
    "predrnn, bf16": _model("predrnn", TWENTY, BF16),
    "convlstm, bf16": _model("convlstm", TWENTY, BF16),
    "predrnn, bf16, 6 frames": _model("predrnn", (3, 3), BF16, goal=900),
    "modernn_released, fp32": _model("modernn_released"),
    "mim, fp32": _model("mim"),
    "conv_tt_lstm, fp32": _model("conv_tt_lstm"),
    "rim, fp32": _model("rim"),
    "trajgru, fp32": _model("trajgru"),
    "svg_lp, fp32": _model("svg_lp"),
    "simvp, fp32": _model("simvp", TWENTY),
}
SMALL = (2, 2)  # frames of the least step that is like all others
POINTS = (SMALL, (3, 2), (2, 3), (3, 3))  # the last one only checks
GRAPH = ", graph"
LEAST = (1, 1)  # for what doesn't depend on frames
LAYERS = (1, 2)  # of a step that is compiled; each further layer adds what the second did


def requests_of(form: Form) -> tuple[list[Request], list[Request]]:
    """What tests/fake_cuda/steps.py and compiled.py are asked for a form."""
    if form.how == "compiled":
        around = form.at(*LEAST, "step")
        layers = [{**around, "set": [*around["set"], f"model.layers={n}"]} for n in LAYERS]
        return [*(form.at(*point, "outside") for point in POINTS), around], layers
    if sum(form.frames) < sum(TWENTY) or "simvp" in form.config:
        return [form.at(*form.frames, "step")], []
    if EAGER in form.settings:
        return [*(form.at(*point, "passes") for point in POINTS), form.at(*LEAST, "step")], []
    return [form.at(*point, "step") for point in POINTS], []


def count(names: Iterable[str]) -> Rows:
    """The row of each form, counted now."""
    wanted = {name: requests_of(FORMS[name]) for name in names}
    answers: dict[str, dict[str, Any]] = {}
    for number, module in enumerate(("tests.fake_cuda.steps", "tests.fake_cuda.compiled")):
        asked = list({key_of(one): one for both in wanted.values() for one in both[number]}.values())
        if asked:
            found = ask(module, asked)
            answers |= {module + key_of(one): answer for one, answer in zip(asked, found, strict=True)}
    rows = {}
    for name, (steps, compiled) in wanted.items():
        of_steps = [answers["tests.fake_cuda.steps" + key_of(one)] for one in steps]
        of_compiled = [answers["tests.fake_cuda.compiled" + key_of(one)] for one in compiled]
        rows[name] = row_of(FORMS[name], of_steps, of_compiled)
    return rows


def key_of(request: Request) -> str:
    return json.dumps(request, sort_keys=True)


def row_of(form: Form, steps: Sequence[dict[str, Any]], compiled: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums over a step, and the kernels of each part."""
    last = steps[-1]
    counts = [counts_of(answer) for answer in steps]
    parts = counts[-1]
    if len(steps) == len(POINTS):
        parts = extrapolated(counts, form.frames)
    elif len(steps) > len(POINTS):  # the last answer is what is around the passes
        around = {name: part for name, part in parts.items() if name.partition(", ")[0] not in ("forward", "backward")}
        graph = GRAPH * any(name.endswith(GRAPH) for name in parts)
        passes = extrapolated(counts[: len(POINTS)], form.frames)
        parts = {name + graph: part for name, part in passes.items()} | around
    row = {field: sum(part[field] for part in parts.values()) for field in FIELDS}
    row["syncs"] += last["waits"]
    row["parts"] = {name: part["kernels"] for name, part in parts.items() if part["kernels"]}
    for name in ("forward", "backward") if compiled else ():
        one, two = (answer[name]["kernels"] for answer in compiled)
        kernels = (sum(form.frames) - 1) * (one + (layers_of(form) - 1) * (two - one))
        row["parts"][f"{name}, compiled{GRAPH}"] = kernels
        row["kernels"] += kernels
        row["ops"] += kernels
        row["microseconds"] = None
    eager = [kernels for name, kernels in row["parts"].items() if not name.endswith(GRAPH)]
    row["launches"] = sum(eager) + last["replays"]
    return row


def counts_of(answer: dict[str, Any]) -> Counts:
    """The parts of a step, those recorded in a CUDA graph under names of their own."""
    both = [(name, part) for name, part in answer["parts"].items()]
    both += [(name + GRAPH, part) for name, part in answer["recorded"].items()]
    return {name: {field: part[field] for field in FIELDS} for name, part in both}


def extrapolated(points: Sequence[Counts], frames: tuple[int, int]) -> Counts:
    return {name: linear([point[name] for point in points], frames) for name in points[0]}


def linear(values: Sequence[dict[str, float]], frames: tuple[int, int]) -> dict[str, float]:
    """What the counts at POINTS make at other numbers of frames.

    Raises:
        ValueError: the last point isn't where the others' straight lines lead.
    """
    found = {}
    for field in FIELDS:
        base, context, horizon, check = (value[field] for value in values)
        if field != "microseconds" and context + horizon - base != check:  # those are the longest of several times
            raise ValueError(f"{field} are not linear in frames: {base}, {context}, {horizon} and {check} at {POINTS}")
        found[field] = base + (frames[0] - SMALL[0]) * (context - base) + (frames[1] - SMALL[1]) * (horizon - base)
    return found


def layers_of(form: Form) -> int:
    from toolkit.config import load_config

    return int(load_config(ROOT / form.config, form.settings).model.layers)  # type: ignore[attr-defined]


def known() -> Rows:
    """The table."""
    return dict(json.loads(TABLE.read_text())["rows"])


def differences(name: str, row: dict[str, Any], known: dict[str, Any]) -> list[str]:
    """Where a form costs more than its row, or so much less that the row is to be written anew."""
    found = []
    for field in ("kernels", "layouts", "launches", "syncs", "copies"):
        more, less = row[field] > known[field], row[field] < known[field] * (1 - SLACK)
        if more or less:
            found.append(
                f"{name}: {row[field]:,} {field}, {known[field]:,} in the table: {'more' if more else 'fewer'}"
            )
    return found


def as_table(rows: Rows) -> str:
    """Markdown."""
    lines: list[list[str]] = []
    for name, row in rows.items():
        form = FORMS[name]
        goal = "" if form.goal is None else f"{form.goal:,}"
        missed = form.goal is not None and row["kernels"] > form.goal
        numbers = [f"{row[field]:,}" for field in ("ops", "kernels", "layouts", "launches", "syncs", "copies")]
        estimate = "" if row["microseconds"] is None else f"{row['microseconds'] / 1000:.1f}"
        frames = f"{form.frames[0]} + {form.frames[1]}"
        lines.append([name, frames, *numbers, estimate, goal + (f" missed: {form.why}" if missed else "")])
    return table(HEAD, lines)


def of_parts(rows: Rows) -> str:
    """Markdown: kernels by part of a step."""
    names = list(dict.fromkeys(part for row in rows.values() for part in row["parts"]))
    lines = [[name, *(f"{row['parts'].get(part, 0):,}" for part in names)] for name, row in rows.items()]
    return table(("kernels of", *names), lines)


def write(rows: Rows) -> None:
    """Replace the table, for programs and for people."""
    import torch

    TABLE.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")
    title = f"# Kernels of a training step, counted with torch {torch.__version__}"
    text = f"{title}\n\n`python benchmarks/kernels.py --write`\n"
    TABLE.with_suffix(".md").write_text(f"{text}\n{as_table(rows)}\n\n{NOTES}\n\n{of_parts(rows)}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table anew")
    options = parser.parse_args()
    reason = why_not()
    if reason:
        raise SystemExit(f"can't count here: {reason}")
    rows = count(FORMS)
    print(as_table(rows))
    print()
    print(of_parts(rows))
    if options.write:
        write(rows)
        return 0
    found = [line for name, row in rows.items() for line in differences(name, row, known()[name])]
    print("\n".join(found) or "as in the table")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

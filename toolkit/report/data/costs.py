"""What the models of a report cost: parameters, learning rate, batch, time and memory, a row for each group."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from toolkit.report.data.collect import Run, Sweep
from toolkit.table import Row, Table

COLUMNS = (
    "Model", "Parameters", "GMACs/sequence", "Learning rate", "Batch", "Training, s/sequence", "Peak memory (GiB)",
    "Scoring, s/sequence",
)  # fmt: skip
GIB = 2**30


def cost_table(sweep: Sweep) -> Table:
    """Return the costs by group; a value that differs between seeds is a range, one that is not known a dash."""
    rows = []
    for group in sweep.groups:
        runs = [run for run in sweep.runs if run.group == group]
        rows.append(
            Row(
                (
                    group,
                    _range((_own(run, "parameters") for run in runs), "{:,.0f}".format),
                    _range(map(_gmacs, runs), "{:,.3g}".format),
                    _range((run.lr for run in runs), "{:g}".format),
                    _range((run.batch for run in runs), "{:,.0f}".format),
                    _range((1 / run.rate if run.rate else None for run in runs), "{:.3g}".format),
                    _range((run.peak_memory / GIB if run.peak_memory else None for run in runs), "{:.2f}".format),
                    _range(map(_scoring, runs), "{:.3g}".format),
                )
            )
        )
    return Table(COLUMNS, rows)


def _own(run: Run, name: str) -> float | None:
    return next((float(result.data[name]) for result in run.results if result.data.get(name) is not None), None)


def _gmacs(run: Run) -> float | None:
    """Return the multiply-accumulates of a forecast; results from before 2026-11-26 have none."""
    macs = _own(run, "macs")
    return None if macs is None else macs / 1e9


def _scoring(run: Run) -> float | None:
    seconds, sequences = _own(run, "seconds"), _own(run, "n")
    return seconds / sequences if seconds is not None and sequences else None


def _range(values: Iterable[float | None], form: Callable[[float], str]) -> str:
    known = sorted(value for value in values if value is not None)
    return " to ".join(dict.fromkeys(form(value) for value in (known[0], known[-1]))) if known else "–"

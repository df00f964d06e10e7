"""What the models of a report cost: parameters, learning rate, batch, time and memory, a row for each group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

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
                    _range((result.data.get("parameters") for run in runs for result in run.results), "{:,.0f}".format),
                    "not counted" if _uncounted(runs) else _range(map(_gmacs, runs), "{:,.3g}".format),
                    _range((run.lr for run in runs), "{:g}".format),
                    _range((run.batch for run in runs), "{:,.0f}".format),
                    _range((1 / run.rate if run.rate else None for run in runs), "{:.3g}".format),
                    _range((run.peak_memory / GIB if run.peak_memory else None for run in runs), "{:.2f}".format),
                    _range(map(_scoring, runs), "{:.3g}".format),
                )
            )
        )
    return Table(COLUMNS, rows)


def cost_notes(sweep: Sweep) -> list[str]:
    """Return why multiply-accumulates are not counted, each once."""
    notes = {group: _uncounted([run for run in sweep.runs if run.group == group]) for group in sweep.groups}
    return [f"{group}: GMACs are not counted: {'; '.join(reasons)}" for group, reasons in notes.items() if reasons]


def _uncounted(runs: Sequence[Run]) -> list[str]:
    found = (result.data.get("macs_not_counted") for run in runs for result in run.results if result.own)
    return list(dict.fromkeys(str(reason) for reason in found if reason))


def _gmacs(run: Run) -> float | None:
    """Return 10^9 multiply-accumulates of a forecast of the run's own length; results before 2026-11-26 lack it."""
    return next((result.data["macs"] / 1e9 for result in run.results if result.own and result.data.get("macs")), None)


def _scoring(run: Run) -> float | None:
    """Return seconds a sequence of the run's own scoring; another may be of longer forecasts or larger frames."""
    own = [result.data for result in run.results if result.own and result.data.get("seconds") is not None]
    return own[0]["seconds"] / own[0]["n"] if own else None


def _range(values: Iterable[float | None], form: Callable[[float], str]) -> str:
    known = sorted(value for value in values if value is not None)
    return " to ".join(dict.fromkeys(form(value) for value in (known[0], known[-1]))) if known else "–"

"""Fill the paper's tables with the runs of a sweep.

Numbers are means and sample standard deviations over the finished seeds, at one checkpoint (`best` by validation unless
requested otherwise). numbers.py defines which run belongs to which cell.

`overall` for models trained on one mode each: every test sequence is scored by the model of its mode, per seed; the
stored scores of individual sequences are merged and averaged as usual. (The paper's overall numbers are means over
sequences too: unweighted means of the three modes of Moving MNIST, weighted 42 to 58 for its radar seasons.)

Significance is a two-sided paired t-test over the seeds that two cells share, for three or more seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from toolkit.errors import ToolkitError
from toolkit.evaluate.table import ScoreTable
from toolkit.report.data.aggregate import OVERALL, PERSISTENCE, describe_metric, mean_and_std
from toolkit.report.data.collect import Facts, Result, Run, Sweep
from toolkit.report.paper.numbers import COSTS, MODES, OURS, TABLES, Column, PaperRow, PaperTable, Variant
from toolkit.shipped import command

FEWEST_PAIRS = 3
SUB = "-only-"


@dataclass(frozen=True)
class PaperCell:
    """One number of a table.

    Attributes:
        values: by seed; mean and std (n - 1) over them, None if there are too few.
        paper: the published number.
        missing: reasons by planned seed without a value; one line per run.
        p: of the difference to ModeRNN in this column; None if it cannot be computed.
    """

    mean: float | None
    std: float | None
    values: Mapping[int, float]
    paper: float | None
    missing: Mapping[int, str]
    p: float | None = None


@dataclass(frozen=True)
class FilledTable:
    """A table of the paper with the numbers of a sweep; the last row is the baseline.

    Attributes:
        protocols: of the scores.
        ensembles: by row, how an ensemble was scored.
    """

    table: PaperTable
    cells: Mapping[tuple[PaperRow, Column, Variant], PaperCell]
    protocols: tuple[str, ...]
    ensembles: Mapping[str, str]

    @property
    def ours(self) -> list[PaperCell]:
        """The cells of models, without the baseline."""
        return [cell for (row, _, _), cell in self.cells.items() if row.model]

    @property
    def empty(self) -> bool:
        return all(cell.mean is None for cell in self.ours)

    def change(self, row: PaperRow, column: Column) -> str | None:
        """Compare training on all modes with training on one mode: `better` or `worse`, None if unknown."""
        if not column.sub:
            return None
        sub, entire = (self.cells[row, column, variant].mean for variant in ("sub", "entire"))
        if sub is None or entire is None or sub == entire:
            return None
        return "better" if (entire < sub) == (direction_of(column) == "lower") else "worse"


def direction_of(column: Column) -> str:
    """Return which direction is better, `lower` or `higher`."""
    if column.metric in COSTS:
        return "lower"
    metric = describe_metric(column.metric, {})
    assert metric is not None
    return metric.direction


def fill_tables(sweep: Sweep, which: str) -> list[FilledTable]:
    """Fill all tables, including those without any number.

    Raises:
        ToolkitError: results of one column are not comparable (different protocol, store or task).
    """
    runs = _Runs(sweep, which)
    return [_fill(table, runs) for table in TABLES]


def _fill(table: PaperTable, runs: _Runs) -> FilledTable:
    cells: dict[tuple[PaperRow, Column, Variant], PaperCell] = {}
    for row in table.rows:
        for (column, variant), paper in table.paper(row).items():
            values, missing = runs.values(row.model, column, variant)
            mean, std = mean_and_std(list(values.values()))
            cells[row, column, variant] = PaperCell(mean, std, values, paper, missing)
    ours = next((row for row in table.rows if row.model == OURS), None)
    for (row, column, variant), cell in list(cells.items()):
        if ours is not None and row is not ours and column.metric not in COSTS:
            p = paired_p(cell.values, cells[ours, column, variant].values)
            cells[row, column, variant] = replace(cell, p=p)
    baseline = PaperRow(PERSISTENCE, "", (None,) * len(table.places))
    for column, variant in table.places:
        cells[baseline, column, variant] = PaperCell(runs.baseline(column), None, {}, None, {})
    data = sorted({column.data for column in table.columns})
    protocols = tuple(sorted({name for each in data for name in runs.protocols.get(each, ())}))
    labels = {
        row.label: runs.ensembles[name]
        for row in table.rows
        for each in data
        if (name := f"{each}-{row.model}") in runs.ensembles
    }
    return FilledTable(replace(table, rows=(*table.rows, baseline)), cells, protocols, labels)


def paired_p(first: Mapping[int, float], second: Mapping[int, float]) -> float | None:
    """Return the two-sided p of a paired t-test over common seeds; None below three, or if differences are equal."""
    seeds = sorted(set(first) & set(second))
    a, b = (np.array([values[seed] for seed in seeds]) for values in (first, second))
    if len(seeds) < FEWEST_PAIRS or np.ptp(a - b) <= 1e-12 * np.abs(a - b).max():
        return None
    return float(stats.ttest_rel(a, b).pvalue)


class _Runs:
    """The finished results of a sweep, by group and seed."""

    def __init__(self, sweep: Sweep, which: str) -> None:
        self.which = which
        self.groups: dict[str, dict[int, Run]] = {}
        self.protocols: dict[str, set[str]] = {}
        for run in sweep.runs:
            self.groups.setdefault(run.group, {})[run.seed] = run
        self.ensembles: dict[str, str] = {}  # group -> how its ensemble is scored
        self._comparable: dict[str, tuple[str, str]] = {}  # data -> key of comparable results, and the run it is from
        self._baseline: dict[str, Facts] = {}

    def values(self, model: str, column: Column, variant: Variant) -> tuple[dict[int, float], dict[int, str]]:
        """Return by seed the values, and the reasons why there is none."""
        entire = f"{column.data}-{model}"
        if variant == "entire":
            return self._each([entire], column)
        modes = MODES[column.data] if column.mode == OVERALL else (column.mode,)
        return self._each([f"{entire}{SUB}{mode}" for mode in modes], column)

    def _each(self, groups: list[str], column: Column) -> tuple[dict[int, float], dict[int, str]]:
        seeds = sorted({seed for group in groups for seed in self.groups.get(group, {})})
        values: dict[int, float] = {}
        missing: dict[int, str] = {}
        for seed in seeds:
            found = [self._result(group, seed, column.data) for group in groups]
            faults = [text for text in found if isinstance(text, str)]
            results = [result for result in found if isinstance(result, Result)]
            value = None if faults else self._value(groups, seed, results, column)
            if faults or value is None:
                missing[seed] = "\n".join(faults) or f"{groups[0]} seed {seed}: no {column.metric}"
            else:
                values[seed] = value
        return values, missing

    def _result(self, group: str, seed: int, data: str) -> Result | str:
        run = self.groups.get(group, {}).get(seed)
        if run is None:
            return f"{group} seed {seed} is not in the sweep"
        if run.problem is not None:
            return f"{run.name}: {run.problem}"
        result = next((found for found in run.scored if found.which == self.which and found.own), None)
        if result is None:
            return f"{run.name}: no {self.which} score of {run.split or 'its split'}"
        known, by = self._comparable.setdefault(data, (result.comparable, run.name))
        if result.comparable != known:
            raise ToolkitError(
                f"{run.name} and {by} are not comparable: protocol, store, split or task differ. Evaluate them with "
                f"the same settings: {command('evaluate', '--run', run.folder, '--force')}"
            )
        self.protocols.setdefault(data, set()).add(str(result.data["protocol"]["name"]))
        self._baseline.setdefault(data, result.data["persistence"])
        if ensemble := result.data.get("ensemble"):
            self.ensembles[group] = str(ensemble["label"])
        return result

    def baseline(self, column: Column) -> float | None:
        """Return the score of persistence, which every result includes."""
        found = self._baseline.get(column.data)
        return None if found is None else _score(found, column)

    def _value(self, groups: list[str], seed: int, results: list[Result], column: Column) -> float | None:
        if column.metric in COSTS:
            return self._cost(self.groups[groups[0]][seed], results[0], column.metric)
        if len(results) > 1:
            return _joined(results, MODES[column.data]).get(column.metric)
        return _score(results[0].data, column)

    @staticmethod
    def _cost(run: Run, result: Result, metric: str) -> float | None:
        if metric == "parameters":
            counted = result.data.get("parameters")
            return None if counted is None else float(counted) / 1e6
        if metric == "seconds":
            return 1000.0 / run.rate if run.rate else None
        return run.peak_memory / 1e9 if run.peak_memory else None


def _score(found: Facts, column: Column) -> float | None:
    value = (found["overall"] if column.mode == OVERALL else found["modes"].get(column.mode, {})).get(column.metric)
    return None if value is None else float(value)


def _joined(results: list[Result], modes: tuple[str, ...]) -> dict[str, Any]:
    """Compute overall scores if the sequences of each mode are in a separate result (in the order of `modes`).

    A score that not all of them have, such as LPIPS that was computed later for some, is left out.
    """
    tables = [ScoreTable.load(result.table) for result in results]
    shared = set(tables[0].given).intersection(*(table.given for table in tables))
    parts = [table.only(mode, shared) for table, mode in zip(tables, modes, strict=True)]
    merged = parts[0]
    for part in parts[1:]:
        merged.merge(part)
    return dict(merged.compute().overall)

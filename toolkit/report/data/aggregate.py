"""Aggregate seeds to mean and sample standard deviation, and mark the best value of a column.

A *board* holds comparable results: one protocol, one store and split, one task. Results of different boards are never
put into one column.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from toolkit.report.data.collect import Facts, Result, Run, Sweep
from toolkit.rundir import ALWAYS, CHECKPOINTS

OVERALL = ""  # the mode that means all sequences
PERSISTENCE = "persistence (baseline)"  # a model in a sweep may have the name `persistence`
SINGLE = "one forecast"  # instead of the label of an ensemble
Direction = Literal["lower", "higher", "one", "none"]


@dataclass(frozen=True)
class Metric:
    """Name and direction of a score."""

    key: str  # as in the results: `mse`, `csi@30`
    label: str
    direction: Direction
    headline: bool = True  # shown in the first table and in curves


@dataclass(frozen=True)
class Score:
    """A score over seeds.

    Attributes:
        mean, std: over the seeds that have a value; the sample standard deviation (n - 1), None for one seed.
        values: by seed.
        undefined: seeds whose score is undefined (no event, or a prediction that is not finite).
    """

    mean: float | None
    std: float | None
    values: Mapping[int, float]
    undefined: tuple[int, ...] = ()
    best: bool = False


@dataclass(frozen=True)
class GroupScores:
    """One group of a board (or the baseline), at one checkpoint."""

    group: str
    which: str
    seeds: tuple[int, ...]  # that are included
    planned: tuple[int, ...]
    missing: Mapping[int, str]  # seed -> reason
    parameters: int | None
    cells: Mapping[tuple[str, str], Score]  # (metric key, mode)
    leads: Mapping[str, tuple[Score, ...]]  # metric key -> one cell per lead time
    ensemble: Mapping[str, object] | None = None  # how an ensemble was scored

    @property
    def baseline(self) -> bool:
        return self.group == PERSISTENCE

    @property
    def untrained(self) -> bool:
        """Whether it has nothing to train, so that its score is the same for every seed."""
        return self.parameters == 0

    @property
    def label(self) -> str:
        """The group, and how its ensemble was scored."""
        return _label(self.group, str(self.ensemble["label"]) if self.ensemble else "")

    @property
    def competes(self) -> bool:
        """Whether the row can be the best of a column: its forecasts were not selected using the observation."""
        return self.ensemble is None or self.ensemble["select"] != "best"


@dataclass(frozen=True)
class Board:
    """Comparable results, for one table."""

    facts: Facts  # the first result's data: protocol, store, split, thresholds, unit, n ...
    metrics: tuple[Metric, ...]
    modes: tuple[str, ...]
    mode_counts: Mapping[str, int]
    rows: tuple[GroupScores, ...]
    results: Mapping[tuple[str, str, int], Result]  # (label of the row, which, seed)
    best_by: tuple[str, ...] = ()  # labels of the scores that selected the best checkpoints

    @property
    def checkpoints(self) -> list[str]:
        """Return the checkpoints of its rows: best, last, and ema where some run keeps a moving average."""
        return list(dict.fromkeys(row.which for row in self.rows))

    @property
    def first_scored(self) -> str:
        """Return the first checkpoint that has a score."""
        return next((row.which for row in self.rows if row.seeds), self.checkpoints[0])

    def rows_at(self, which: str) -> list[GroupScores]:
        return [row for row in self.rows if row.which == which]


def make_boards(sweep: Sweep) -> list[Board]:
    """Group the results of finished runs into boards; the one with the most of the runs' own scorings is first."""
    members: dict[str, list[tuple[Run, Result]]] = {}
    for run in sweep.runs:
        for result in run.scored:
            members.setdefault(result.comparable, []).append((run, result))
    order = sorted(
        members.values(), key=lambda found: (sum(result.own for _, result in found), len(found)), reverse=True
    )
    return [_board(sweep, found) for found in order]


def describe_metric(key: str, facts: Facts) -> Metric | None:
    """Return the metric of a score's key, None for counts that are not scores."""
    name, _, where = key.partition("@")
    threshold, _, side = where.partition("/")
    unit = facts.get("unit", "1")
    event = f" ≥ {threshold}{'' if unit == '1' else ' ' + unit}" + (f" /{side}" if side else "")
    known: dict[str, tuple[str, Direction, bool]] = {
        "mse": ("MSE", "lower", True),
        "mae": ("MAE", "lower", True),
        "rmse": ("RMSE", "lower", False),
        "snr": ("SNR (dB)", "higher", False),
        "ssim": ("SSIM", "higher", True),
        "psnr": ("PSNR (dB)", "higher", True),
        "lpips": ("LPIPS", "lower", True),
        "csi": (f"CSI{event}", "higher", not side),
        "mean_csi": ("mean CSI", "higher", True),
        "pod": (f"POD{event}", "higher", False),
        "far": (f"FAR{event}", "lower", False),
        "bias": (f"Bias{event}", "one", False),
        "hss": (f"HSS{event}", "higher", False),
        "fss": (f"FSS{event}", "higher", False),
        "crps": ("CRPS", "lower", True),
        "crps_fair": ("fair CRPS", "lower", False),
        "spread": ("spread", "none", False),
        "rmse_of_mean": ("RMSE of the ensemble mean", "lower", False),
        "spread_skill": ("spread / skill", "one", False),
    }
    if name in ("events", "forecasts"):
        return None
    if name.startswith("mean_csi/"):
        return Metric(key, f"mean CSI /{name.partition('/')[2]}", "higher")
    label, direction, headline = known.get(name, (key, "none", True))
    return Metric(key, label, direction, headline)


def _board(sweep: Sweep, members: list[tuple[Run, Result]]) -> Board:
    facts = members[0][1].data
    # Ensembles have more scores than deterministic forecasts.
    keys = dict.fromkeys(key for _, result in members for key in result.data["overall"] if key in result.data["leads"])
    metrics = tuple(metric for key in keys if (metric := describe_metric(key, facts)) is not None)
    modes = tuple(sorted(facts["modes"]))
    rows = []
    scored, own = {result.which for _, result in members}, any(result.own for _, result in members)
    baseline = max((result.data["persistence"] for _, result in members), key=lambda found: len(found["overall"]))
    for which in CHECKPOINTS:
        expected = own and which in ALWAYS  # a scoring of another kind has what was asked for
        if which not in scored and not expected:
            continue
        for group in sweep.groups:
            here: dict[str, dict[int, Result]] = {}
            for run, result in members:
                if (run.group, which) == (group, result.which):
                    here.setdefault(result.variant, {})[run.seed] = result
            if not here and expected:
                here[""] = {}
            runs = [run for run in sweep.runs if run.group == group]
            rows += [_row(group, which, runs, here, variant, metrics, modes) for variant in here]
        rows.append(_baseline(which, {**baseline, "horizon": facts["horizon"]}, metrics, modes))
    results = {(_label(run.group, result.variant), result.which, run.seed): result for run, result in members}
    selecting = dict.fromkeys(run.best_by for run, _ in members if run.best_by)
    best_by = tuple(metric.label for key in selecting if (metric := describe_metric(key, facts)) is not None)
    marked = tuple(_with_best(rows, metrics, modes))
    return Board(facts, metrics, modes, facts["mode_counts"], marked, results, best_by)


def _row(
    group: str,
    which: str,
    runs: list[Run],
    variants: Mapping[str, Mapping[int, Result]],
    variant: str,
    metrics: tuple[Metric, ...],
    modes: tuple[str, ...],
) -> GroupScores:
    data = {seed: result.data for seed, result in sorted(variants[variant].items())}
    reasons = {seed: f"scored as {other or SINGLE}" for other, found in variants.items() for seed in found}
    elsewhere = f"no {which} score with this protocol, data and split"
    missing = {run.seed: run.problem or reasons.get(run.seed, elsewhere) for run in runs if run.seed not in data}
    return GroupScores(
        group=group,
        which=which,
        seeds=tuple(data),
        planned=tuple(sorted(run.seed for run in runs)),
        missing=dict(sorted(missing.items())),
        parameters=next((found.get("parameters") for found in data.values()), None),
        cells=_cells(data, metrics, modes),
        leads=_leads(data, metrics),
        ensemble=next((found.get("ensemble") for found in data.values()), None),
    )


def _baseline(which: str, scores: Facts, metrics: tuple[Metric, ...], modes: tuple[str, ...]) -> GroupScores:
    data = {0: scores}
    return GroupScores(PERSISTENCE, which, (), (), {}, 0, _cells(data, metrics, modes), _leads(data, metrics))


def _cells(
    data: Mapping[int, Facts], metrics: tuple[Metric, ...], modes: tuple[str, ...]
) -> dict[tuple[str, str], Score]:
    return {
        (metric.key, mode): _score(_values(data, metric.key, mode)) for metric in metrics for mode in (OVERALL, *modes)
    }


def _leads(data: Mapping[int, Facts], metrics: tuple[Metric, ...]) -> dict[str, tuple[Score, ...]]:
    horizon = next((int(found["horizon"]) for found in data.values()), 0)
    return {
        metric.key: tuple(
            _score({seed: _of_lead(found, metric.key, lead) for seed, found in data.items()}) for lead in range(horizon)
        )
        for metric in metrics
    }


def _values(data: Mapping[int, Mapping[str, object]], key: str, mode: str) -> dict[int, float | None]:
    def scores(found: Facts) -> Mapping[str, float | None]:
        return found["overall"] if mode == OVERALL else found["modes"].get(mode, {})

    known = {seed: (scores(found), _stored(found, key)) for seed, found in data.items()}
    return {seed: _as(key, name, found[name]) for seed, (found, name) in known.items() if name in found}


def _stored(found: Facts, key: str) -> str:
    """Return what a result has for a score: a deterministic forecast's CRPS is its absolute error, an RMSE may lack."""
    return {"crps": "mae", "rmse": "mse"}.get(key, key) if key not in found["overall"] else key


def _as(key: str, name: str, value: float | None) -> float | None:
    """Return a score from what is stored for it: results from before 2026-11-25 have no RMSE."""
    return math.sqrt(value) if value is not None and (key, name) == ("rmse", "mse") else value


def _of_lead(found: Facts, key: str, lead: int) -> float | None:
    name = _stored(found, key)
    values = found["leads"].get(name)
    return None if values is None else _as(key, name, values[lead])


def _label(group: str, variant: str) -> str:
    return f"{group} ({variant})" if variant else group


def _score(values: Mapping[int, float | None]) -> Score:
    known = {seed: float(value) for seed, value in values.items() if value is not None}
    undefined = tuple(seed for seed, value in values.items() if value is None)
    mean, std = mean_and_std(list(known.values()))
    return Score(mean, std, known, undefined)


def mean_and_std(values: list[float]) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation (n - 1); None if there are too few values."""
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


def _with_best(rows: list[GroupScores], metrics: tuple[Metric, ...], modes: tuple[str, ...]) -> list[GroupScores]:
    """Mark the best mean of each column among the rows of one checkpoint, the baseline included.

    Only one whose gap to the next mean exceeds the standard deviation over seeds of both is marked.
    """
    marked = [dict(row.cells) for row in rows]
    for which, metric, mode in itertools.product(CHECKPOINTS, metrics, (OVERALL, *modes)):
        key = (metric.key, mode)
        ordered = sorted(
            (_badness(mean, metric.direction), place)
            for place, row in enumerate(rows)
            if row.which == which and row.competes and (mean := row.cells[key].mean) is not None
        )
        if metric.direction != "none" and len(ordered) > 1:
            first, second = (rows[place] for _, place in ordered[:2])
            best = ordered[0][0] < ordered[1][0] and _exceeds_spread(first, second, metric, mode)
            marked[ordered[0][1]][key] = replace(first.cells[key], best=best)
    return [replace(row, cells=cells) for row, cells in zip(rows, marked, strict=True)]


def _exceeds_spread(first: GroupScores, second: GroupScores, metric: Metric, mode: str) -> bool:
    """Return whether the mean of the first is better by more than the standard deviation over seeds of both.

    Of scores whose ideal is 1, of the logarithm. False if no deviation is known, unless neither is trained.
    """
    pair = first.cells[metric.key, mode], second.cells[metric.key, mode]
    gaps = [_badness(score.mean, metric.direction) for score in pair if score.mean is not None]
    known = [spread for score in pair if (spread := _spread(score, metric.direction)) is not None]
    if not known:
        return first.untrained and second.untrained
    return gaps[1] - gaps[0] > max(known)


def _spread(score: Score, direction: Direction) -> float | None:
    if direction != "one" or score.std is None:
        return score.std
    values = list(score.values.values())
    return statistics.stdev(map(math.log, values)) if min(values) > 0 else math.inf


def _badness(mean: float, direction: Direction) -> float:
    if direction == "one":  # bias 2 is as bad as bias 1/2
        return abs(math.log(mean)) if mean > 0 else math.inf
    return mean if direction == "lower" else -mean

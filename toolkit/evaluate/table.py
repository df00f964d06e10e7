"""Contract 5: a score is an accumulator with update, merge and compute. Does not import torch.

A `ScoreTable` keeps the score of every sample at every lead time (9,000 samples x 10 leads x 8 columns are 6 MB), by
index of the sample in its split. Nothing is summed before `compute`, which processes samples in index order and sums
float64 with exact rounding (`math.fsum`): results are bitwise identical however samples are distributed over batches
and ranks.

There are two kinds of columns. *Averaged* ones (mse, ssim ...) are float64 and give the mean over frames (RMSE is the
square root of that of mse). *Counted*
ones are int64 and are summed; `hits@K`, `misses@K`, `false_alarms@K` and `correct_negatives@K` together give CSI, POD,
FAR, bias and HSS at threshold K from the pooled counts. `@K/S`: after max-pooling over blocks of S x S pixels. For
several thresholds there is also the mean CSI. The averaged `fss_error@K/W` and `fss_reference@K/W` together give FSS.

Ensembles of N members also have the averaged `crps` and `crps_fair`, `ensemble_variance` and `ensemble_error` (which
together give spread and skill, see probabilistic.py), and the histogram `ranks`, int64 of [n, T, N + 1].

Undefined values are always reported: a ratio without events is None, with the number of events; a frame without a value
(nothing observed) is excluded from the mean and counted in `frames_without_value`; a frame with a NaN or infinite
prediction makes every score of its group None and is counted in `nonfinite_frames`; if only a member is not finite, the
scores of the ensemble are None, and it is counted in `nonfinite_members`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shards.npz import load_npz
from toolkit.atomic import replacing
from toolkit.errors import CONTENT_ERRORS, ToolkitError
from toolkit.shipped import command
from toolkit.wording import count, exact_number

if TYPE_CHECKING:
    from toolkit.evaluate.diagrams import Diagrams

Values = NDArray[np.generic]
Cells = dict[str, float | int | None]  # {score: value}
Curves = dict[str, list[float | int | None]]  # {score: one value per lead time}

EXACT, NONFINITE, MISSING = "exact_frames", "nonfinite_frames", "missing_pixels"
STATUS = (EXACT, NONFINITE, MISSING)  # counted columns of every table
INFLOW = "inflow_pixels"  # counted column of tables that leave these pixels out
NONFINITE_MEMBERS, RANKS = "nonfinite_members", "ranks"
CRPS = ("crps", "crps_fair")
SPREAD = ("ensemble_variance", "ensemble_error")
EVENTS = ("hits", "misses", "false_alarms", "correct_negatives")


def at(name: str, threshold: float, side: int = 1) -> str:
    """Return the name of a column or score at a threshold: `csi@30`; `csi@30/4` for blocks of 4 x 4 pixels."""
    return f"{name}@{exact_number(threshold)}" + (f"/{side}" if side > 1 else "")


@dataclass(frozen=True)
class Scores:
    """The scores of a table as plain values; None where undefined.

    Attributes:
        n: sequences.
        horizon: lead times.
        overall, leads: over all sequences; over all lead times, or per lead time.
        modes, mode_leads, mode_counts: the same per mode label, if sequences are labelled.
        announced: counts to report: exact and non-finite frames, frames without a value, missing pixels.
        ranks: rank histograms of an ensemble, pixels of each rank 0 .. N, by the names of the fields above; None if a
            member is not finite.
    """

    n: int
    horizon: int
    overall: Cells
    leads: Curves
    modes: dict[str, Cells]
    mode_leads: dict[str, Curves]
    mode_counts: dict[str, int]
    announced: dict[str, object]
    ranks: dict[str, object] | None = None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class ScoreTable:
    """Scores of individual samples; see the docstring of the module."""

    def __init__(
        self,
        label: str,
        horizon: int,
        averaged: Sequence[str],
        thresholds: Sequence[float] = (),
        pools: Sequence[int] = (1,),
        fss_windows: Sequence[int] = (),
        members: int = 0,
        inflow: bool = False,
    ) -> None:
        """
        Args:
            label: name of the protocol; tables with different labels cannot be merged.
            horizon: T, lead times.
            averaged: names of the averaged columns.
            thresholds: event thresholds in the store's unit; each makes four counted columns for each of `pools`, and
                two averaged ones for each of `fss_windows`.
            members: ensemble size N; 0: one forecast of each sample.
            inflow: pixels that flow in from outside the observed area are excluded, and counted.
        """
        self.inflow = inflow
        self.diagrams: Diagrams | None = None  # of the same samples; not part of `save`
        self.label = label
        self.horizon = horizon
        self.members = members
        self.given = tuple(averaged)
        self.plain = (*averaged, *(CRPS if members else ()))  # whose mean over frames is a score
        self.thresholds = tuple(float(threshold) for threshold in thresholds)
        self.pools, self.fss_windows = tuple(pools), tuple(fss_windows)
        shares = [(k, window) for k in self.thresholds for window in self.fss_windows]
        self.averaged = (
            *self.plain,
            *(at(name, *share) for share in shares for name in ("fss_error", "fss_reference")),
            *(SPREAD if members else ()),
        )
        self.status = (*STATUS, *((INFLOW,) if inflow else ()), *((NONFINITE_MEMBERS,) if members else ()))
        self.counted = (
            *self.status,
            *(at(name, k, side) for k in self.thresholds for side in self.pools for name in EVENTS),
        )
        self._rows: dict[int, tuple[str, str | None, dict[str, Values]]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def _schema(self) -> tuple[Any, ...]:
        return (
            self.label, self.horizon, self.given, self.thresholds, self.pools, self.fss_windows, self.members,
            self.inflow,
        )  # fmt: skip

    @property
    def _kinds(self) -> dict[str, tuple[type, tuple[int, ...]]]:
        """Data type and shape for one sample, by column."""
        kinds: dict[str, tuple[type, tuple[int, ...]]] = {}
        kinds |= dict.fromkeys(self.averaged, (np.float64, (self.horizon,)))
        kinds |= dict.fromkeys(self.counted, (np.int64, (self.horizon,)))
        return kinds | ({RANKS: (np.int64, (self.horizon, self.members + 1))} if self.members else {})

    def update(
        self,
        indices: Sequence[int],
        keys: Sequence[str],
        modes: Sequence[str | None],
        values: Mapping[str, Values],
    ) -> None:
        """Add samples.

        Args:
            indices: of the samples in the split.
            keys: of the samples in the store.
            modes: mode labels; None without one.
            values: every column as [len(indices), horizon], `ranks` as [len(indices), horizon, members + 1].

        Raises:
            ToolkitError: a sample is already in the table, or a column is missing, unknown or has a wrong shape.
        """
        kinds = self._kinds
        if set(values) != set(kinds):
            raise ToolkitError(
                f"scores: expected the columns {', '.join(sorted(kinds))}, got {', '.join(sorted(values))}"
            )
        for name, column in values.items():
            shape = (len(indices), *kinds[name][1])
            if column.shape != shape:
                raise ToolkitError(f"scores: column {name} has shape {column.shape}, expected {shape}")
        for row, (index, key, mode) in enumerate(zip(indices, keys, modes, strict=True)):
            if index in self._rows:
                raise ToolkitError(
                    f"scores: sample {index} ({key}) is counted twice; give each rank different samples and start again"
                )
            cells: dict[str, Values] = {
                name: np.array(values[name][row], dtype=kind) for name, (kind, _) in kinds.items()
            }
            self._rows[int(index)] = (str(key), mode, cells)

    def merge(self, other: ScoreTable) -> None:
        """Add the samples of another table.

        Raises:
            ToolkitError: tables of different protocol, horizon or columns, or a sample that both hold.
        """
        if self._schema != other._schema:
            raise ToolkitError(
                f"scores: can't merge {other._schema} into {self._schema}: score both with the same settings"
            )
        twice = sorted(self._rows.keys() & other._rows.keys())
        if twice:
            raise ToolkitError(
                f"scores: {count(len(twice), 'sample')} counted twice, first {twice[0]} ({self._rows[twice[0]][0]}); "
                "give each rank different samples and start again"
            )
        self._rows.update(other._rows)
        if self.diagrams is not None and other.diagrams is not None:
            self.diagrams.merge(other.diagrams)

    def only(self, mode: str, given: Container[str]) -> ScoreTable:
        """Return the samples of one mode, with those of the averaged columns that are in `given`."""
        label, horizon, averaged, *rest = self._schema
        part = ScoreTable(label, horizon, [name for name in averaged if name in given], *rest)
        part._rows = {index: row for index, row in self._rows.items() if row[1] == mode}
        return part

    def arrays(self) -> dict[str, Values]:
        """Return all columns in index order: index, key, mode ("" for none) as [n], scores [n, T, ...]."""
        order = sorted(self._rows)
        rows = [self._rows[index] for index in order]
        found: dict[str, Values] = {
            "index": np.array(order, dtype=np.int64),
            "key": np.array([key for key, _, _ in rows], dtype=np.str_),
            "mode": np.array([mode or "" for _, mode, _ in rows], dtype=np.str_),
        }
        for name, (kind, shape) in self._kinds.items():
            found[name] = np.array([cells[name] for _, _, cells in rows], dtype=kind).reshape(len(rows), *shape)
        return found

    def first_of_modes(self, most: int) -> list[int]:
        """Return the indices of the first `most` samples of each mode, modes in alphabetical order."""
        chosen: dict[str, list[int]] = {}
        for index in sorted(self._rows):
            places = chosen.setdefault(self._rows[index][1] or "", [])
            if len(places) < most:
                places.append(index)
        return [index for mode in sorted(chosen) for index in chosen[mode]]

    def compute(self) -> Scores:
        """Compute means, and ratios of pooled counts, overall and by mode and lead time."""
        columns = self.arrays()
        modes = columns["mode"]
        labels = sorted({str(mode) for mode in modes} - {""})
        members = {label: modes == label for label in labels}
        everyone = np.ones(len(self), dtype=bool)
        announced: dict[str, object] = {name: int(columns[name].sum()) for name in self.status}
        announced["frames_without_value"] = {name: int(np.isnan(columns[name]).sum()) for name in self.plain}
        return Scores(
            n=len(self),
            horizon=self.horizon,
            overall=self._cells(columns, everyone, slice(None)),
            leads=self._curves(columns, everyone),
            modes={label: self._cells(columns, member, slice(None)) for label, member in members.items()},
            mode_leads={label: self._curves(columns, member) for label, member in members.items()},
            mode_counts={label: int(member.sum()) for label, member in members.items()},
            announced=announced,
            ranks=self._ranks(columns, everyone, members) if self.members else None,
        )

    def _ranks(self, columns: Mapping[str, Values], everyone: Values, members: Mapping[str, Values]) -> dict[str, Any]:
        """Compute the histograms of `Scores.ranks`."""

        def histogram(rows: Values, leads: slice) -> list[int] | None:
            if columns[NONFINITE_MEMBERS][rows, leads].any():
                return None
            counts: list[int] = columns[RANKS][rows, leads].sum((0, 1)).tolist()
            return counts

        def by_lead(rows: Values) -> list[list[int] | None]:
            return [histogram(rows, slice(lead, lead + 1)) for lead in range(self.horizon)]

        return {
            "overall": histogram(everyone, slice(None)),
            "leads": by_lead(everyone),
            "modes": {label: histogram(member, slice(None)) for label, member in members.items()},
            "mode_leads": {label: by_lead(member) for label, member in members.items()},
        }

    def _curves(self, columns: Mapping[str, Values], rows: Values) -> Curves:
        leads = [self._cells(columns, rows, slice(lead, lead + 1)) for lead in range(self.horizon)]
        return {name: [cells[name] for cells in leads] for name in leads[0]} if leads else {}

    def _cells(self, columns: Mapping[str, Values], rows: Values, leads: slice) -> Cells:
        broken = bool(columns[NONFINITE][rows, leads].any())
        incomplete = bool(self.members) and bool(columns[NONFINITE_MEMBERS][rows, leads].any())

        def mean(name: str) -> float | None:
            values = columns[name][rows, leads].ravel()
            values = values[~np.isnan(values)]
            undefined = incomplete if name in (*CRPS, *SPREAD) else broken
            return None if undefined or not values.size else math.fsum(values) / values.size

        cells: Cells = {name: mean(name) for name in self.plain}
        if "mse" in cells:
            cells["rmse"] = None if cells["mse"] is None else math.sqrt(cells["mse"])
        if self.members:
            cells |= spread_and_skill(mean(SPREAD[0]), mean(SPREAD[1]), self.members)
        for side in self.pools:
            for threshold in self.thresholds:
                counts = [int(columns[at(name, threshold, side)][rows, leads].sum()) for name in EVENTS]
                for name, value in event_scores(*counts).items():
                    undefined = broken and name not in ("events", "forecasts")
                    cells[at(name, threshold, side)] = None if undefined else value
            if len(self.thresholds) > 1:
                of_each = [cells[at("csi", threshold, side)] for threshold in self.thresholds]
                known = [value for value in of_each if value is not None]
                average = math.fsum(known) / len(known) if len(known) == len(of_each) else None
                cells["mean_csi" + (f"/{side}" if side > 1 else "")] = average
        for threshold in self.thresholds:
            for window in self.fss_windows:
                error, reference = (
                    math.fsum(columns[at(name, threshold, window)][rows, leads].ravel())
                    for name in ("fss_error", "fss_reference")
                )
                cells[at("fss", threshold, window)] = None if broken or not reference else 1.0 - error / reference
        return cells

    def save(self, path: Path) -> None:
        """Write an .npz without pickles, atomically."""
        schema = {
            "schema": np.array([self.label, *self.given], dtype=np.str_),
            "thresholds": np.array(self.thresholds, dtype=np.float64),
            "pools": np.array(self.pools, dtype=np.int64),
            "fss_windows": np.array(self.fss_windows, dtype=np.int64),
            "horizon": np.array(self.horizon),
            "members": np.array(self.members),
            "inflow": np.array(self.inflow),
        }
        save_npz(path, {**schema, **self.arrays()})

    @staticmethod
    def load(path: Path) -> ScoreTable:
        """Read what `save` wrote.

        Raises:
            ToolkitError: the file is not a table of scores.
        """
        try:
            columns = load_npz(path)
            label, *averaged = (str(name) for name in columns["schema"])
            thresholds, pools, windows = (columns[name].tolist() for name in ("thresholds", "pools", "fss_windows"))
            members = int(columns["members"]) if "members" in columns else 0
            inflow = "inflow" in columns and bool(columns["inflow"])
            table = ScoreTable(label, int(columns["horizon"]), averaged, thresholds, pools, windows, members, inflow)
            table.update(
                columns["index"].tolist(),
                columns["key"].tolist(),
                [mode or None for mode in columns["mode"].tolist()],
                {name: columns[name] for name in table._kinds},
            )
        except CONTENT_ERRORS as error:
            again = command("evaluate", "--run", path.parents[1], "--force")
            raise ToolkitError(f"{path}: not a table of scores ({error}); write it again: {again}") from None
        return table


def event_scores(hits: int, misses: int, false_alarms: int, correct_negatives: int) -> Cells:
    """Return the scores of a contingency table; None where the denominator is 0.

    csi = hits / (hits + misses + false alarms), pod = hits / (hits + misses), far = false alarms / (hits + false
    alarms), bias = (hits + false alarms) / (hits + misses); hss is the Heidke skill score, 1 for a perfect forecast and
    0 for a random one. `events` and `forecasts`: observed and predicted pixels.
    Source: Wilks, Statistical Methods in the Atmospheric Sciences, section 8.2.2.
    """
    events, forecasts = hits + misses, hits + false_alarms
    skill = 2 * (hits * correct_negatives - false_alarms * misses)
    at_most = events * (misses + correct_negatives) + forecasts * (false_alarms + correct_negatives)

    def ratio(part: int, total: int) -> float | None:
        return part / total if total else None

    return {
        "csi": ratio(hits, hits + misses + false_alarms),
        "pod": ratio(hits, events),
        "far": ratio(false_alarms, forecasts),
        "bias": ratio(forecasts, events),
        "hss": ratio(skill, at_most),
        "events": events,
        "forecasts": forecasts,
    }


def spread_and_skill(variance: float | None, error: float | None, members: int) -> Cells:
    """Compute the scores from the mean variance of an ensemble and the mean squared error of its mean.

    The ratio is None if the mean is exact.
    """
    if variance is None or error is None:
        return dict.fromkeys(("spread", "rmse_of_mean", "spread_skill"))
    spread, skill = math.sqrt(variance), math.sqrt(error)
    ratio = math.sqrt((members + 1) / members) * spread / skill if skill else None
    return {"spread": spread, "rmse_of_mean": skill, "spread_skill": ratio}


def save_npz(path: Path, arrays: Mapping[str, Values]) -> None:
    """Write arrays to an .npz without pickles, atomically."""
    savez: Callable[..., None] = np.savez_compressed
    with replacing(path) as file:
        savez(file, allow_pickle=False, **arrays)

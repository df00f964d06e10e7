"""Mode collapse: distances and scores of every model, t-SNE of its features, its slots' weights (the paper's Figures
3 and 5). Made of what launch/analyse.py left in the run directories.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from toolkit.errors import ToolkitError
from toolkit.report.aggregate import mean_and_std
from toolkit.report.collect import Facts, Run, Sweep
from toolkit.report.figures import COLOURS, MARKERS, STYLE, grid, legend, svg
from toolkit.report.markup import chart, score_table
from toolkit.rundir import CHECKPOINTS

HOW = (
    "A-distance: 0 where a linear classifier can't tell two sets of features apart, 2 where it never errs. Between "
    "modes: prediction-fed memory states of one mode against those of each other (more is better). Drift: truth-fed "
    "against prediction-fed states of the same sequences (less is better). Collapse score: (2 − between + drift) / 4; "
    "above ½ a mode is harder to tell from the others than its predictions are from the truth."
)
TSNE = "t-SNE: nearness means likeness, axes mean nothing."


@dataclass(frozen=True)
class Diagnosis:
    """One file of toolkit/analysis/diagnose.py."""

    run: Run
    facts: Facts
    points: Mapping[str, NDArray[np.generic]]


def read_diagnoses(sweep: Sweep) -> list[Diagnosis]:
    """Of every run the diagnosis at its best checkpoint, or else its last.

    Raises:
        ToolkitError: a file that can't be read.
    """
    found = []
    for run in sweep.runs:
        candidates = [
            path for which in CHECKPOINTS for path in sorted((run.folder / "analysis").glob(f"collapse-*-{which}.json"))
        ]
        if candidates:
            found.append(_read(run, candidates[0]))
    return found


def _read(run: Run, path: Path) -> Diagnosis:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
            return Diagnosis(run, facts, {name: stored[name] for name in stored.files})
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise ToolkitError(
            f"{path}: can't be read ({error}); make it again: python launch/analyse.py --run {run.folder}"
        ) from None


def render(sweep: Sweep) -> str:
    """The section's HTML; empty without a diagnosis."""
    stores: dict[tuple[str, str], list[Diagnosis]] = {}
    for diagnosis in read_diagnoses(sweep):
        stores.setdefault((diagnosis.facts["digest"], diagnosis.facts["split"]), []).append(diagnosis)
    parts = ['<h2 id="collapse">Mode collapse</h2>', f"<p>{escape(HOW)}</p>"] if stores else []
    for diagnoses in stores.values():
        parts += _one_store(sweep, diagnoses)
    return "\n".join(parts)


def _one_store(sweep: Sweep, diagnoses: Sequence[Diagnosis]) -> list[str]:
    facts = diagnoses[0].facts
    groups = [group for group in sweep.groups if any(found.run.group == group for found in diagnoses)]
    by_group = {group: [found for found in diagnoses if found.run.group == group] for group in groups}
    where = f"{facts['store']}, split {facts['split']}"
    counts = ", ".join(f"{mode}: {count:,}" for mode, count in facts["sequences"].items())
    left_out = "".join(
        f"; {mode or 'no mode'} ({count} sequences) left out" for mode, count in facts["left_out"].items()
    )
    parts = [f"<h3>{escape(where)}</h3><p>{escape(counts + left_out)}. Mean ± sample std over seeds.</p>"]
    parts += [_table(by_group), _bars(by_group)]
    plain = {group: found[0] for group, found in by_group.items() if "slots" not in found[0].points}
    if plain:
        parts.append(_memories(plain))
    parts += [_features(group, found[0]) for group, found in by_group.items() if group not in plain]
    return parts


def _table(by_group: Mapping[str, Sequence[Diagnosis]]) -> str:
    modes = list(next(iter(by_group.values()))[0].facts["modes"])
    columns = ("between ↑", "drift ↓", "score ↓")
    head = "".join(f"<th>{escape(mode)}<br>{what}</th>" for mode in modes for what in columns)
    rows = []
    for group, found in by_group.items():
        cells = [_cell([one.facts["score"] for one in found])]
        cells += [_cell([_values(one, mode)[what] for one in found]) for mode in modes for what in range(3)]
        rows.append(f"<tr><th>{escape(group)}</th>{''.join(cells)}</tr>")
    return score_table(f"<tr><th>Model</th><th>all<br>score ↓</th>{head}</tr>", rows)


def _values(found: Diagnosis, mode: str) -> tuple[float, float, float]:
    """(mean A-distance to the other modes, drift, score)."""
    facts = found.facts["modes"][mode]
    between = [distance["value"] for distance in facts["between"].values()]
    return math.fsum(between) / len(between), facts["drift"]["value"], facts["score"]


def _cell(values: list[float]) -> str:
    mean, std = mean_and_std(values)
    return f"<td>{mean:.2f}{'' if std is None else f'<br><span class=soft>± {std:.2f}</span>'}</td>"


def _bars(by_group: Mapping[str, Sequence[Diagnosis]]) -> str:
    """Figure 3(b): both distances of every model, means over modes and seeds."""
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(1, panel=(max(9.2, 1.1 * len(by_group) + 1.5), 2.75))
        places = np.arange(len(by_group))
        for offset, what, label, colour, hatch in (
            (-0.2, 0, "between modes ↑", COLOURS[0], ""),
            (0.2, 1, "truth-fed to prediction-fed ↓", COLOURS[1], "//"),
        ):
            values = [
                mean_and_std(
                    [float(np.mean([_values(one, mode)[what] for mode in one.facts["modes"]])) for one in found]
                )
                for found in by_group.values()
            ]
            means, errors = [mean or 0.0 for mean, _ in values], [std or 0.0 for _, std in values]
            axes[0].bar(
                places + offset, means, 0.38, yerr=errors, label=label, color=colour, hatch=hatch, edgecolor="white"
            )
        axes[0].set_xticks(
            places,
            list(by_group),
            rotation=20 if len(by_group) > 3 else 0,
            ha="right" if len(by_group) > 3 else "center",
        )
        axes[0].set_ylabel("A-distance")
        axes[0].axhline(0, color="#555555", linewidth=0.8)
        legend(figure, axes[0])
        drawn = svg(figure)
    return chart(drawn, "A-distance of every model", "A-distances, means over modes and seeds; lines: ± sample std.")


def _memories(found: Mapping[str, Diagnosis]) -> str:
    """Figure 3(a): the memories of all models without slots."""
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(len(found), row=4, panel=(2.5, 2.4))
        for axis, (group, one) in zip(axes, found.items(), strict=True):
            _scatter(axis, one.points["memory"], one.points["memory_mode"], group, legend_below=False)
            axis.title.set_fontsize(8)
        legend(figure, axes[0])
        drawn = svg(figure)
    about = "; ".join(f"{group}: seed {one.run.seed}, layer {one.facts['layer'] + 1}" for group, one in found.items())
    text = f"Memories after the last step, prediction-fed. {about}. {TSNE}"
    return chart(drawn, "Memories by mode", text)


def _features(group: str, found: Diagnosis) -> str:
    """Figures 3(a) and 5 of one model with slots."""
    points = found.points
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(2 + ("weights" in points), row=3, panel=(3.4, 3.4))
        _scatter(axes[0], points["memory"], points["memory_mode"], "Memory, by mode")
        _scatter(axes[1], points["slots"], np.array([f"slot {n + 1}" for n in points["slots_slot"]]), "Slots")
        if "weights" in points:
            _weights(axes[-1], points["weights"], points["weights_mode"])
        drawn = svg(figure)
    text = f"{group}, seed {found.run.seed}, layer {found.facts['layer'] + 1}, after the last step, prediction-fed."
    return chart(drawn, f"Features of {group}", f"{text} {TSNE} Weights: mean, lines ± std over sequences.")


def _scatter(axis: Axes, places: NDArray[Any], labels: NDArray[Any], title: str, legend_below: bool = True) -> None:
    for number, label in enumerate(sorted(set(labels.tolist()))):
        chosen = labels == label
        axis.scatter(
            places[chosen, 0], places[chosen, 1], s=9, marker=MARKERS[number % len(MARKERS)],
            color=COLOURS[number % len(COLOURS)], alpha=0.7, linewidths=0, label=label or "no mode",
        )  # fmt: skip
    axis.set_title(title)
    axis.set_xticks([])
    axis.set_yticks([])
    if legend_below:
        axis.legend(markerscale=1.6, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.02), ncols=3)


def _weights(axis: Axes, weights: NDArray[np.generic], modes: NDArray[np.generic]) -> None:
    slots = np.arange(weights.shape[1])
    labels = [label for label in sorted(set(modes.tolist())) if label]
    for number, label in enumerate(labels):
        own = weights[modes == label]
        place = slots + (number - (len(labels) - 1) / 2) * 0.6 / len(labels)
        axis.errorbar(
            place, own.mean(0), own.std(0), fmt=MARKERS[number % len(MARKERS)], color=COLOURS[number % len(COLOURS)],
            markersize=5, elinewidth=1.2, label=label,
        )  # fmt: skip
    axis.set_title("Importance weights")
    axis.set_xticks(slots, [f"slot {n + 1}" for n in slots])
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.08), ncols=3)

"""Mode collapse: distances and scores of every model, t-SNE of its features, importance weights of its slots.

Counterparts of the paper's Figures 3 and 5, from the files that `analyse` wrote into run directories.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from toolkit.report.data.aggregate import mean_and_std
from toolkit.report.data.collect import Sweep
from toolkit.report.data.diagnoses import Diagnosis, History, read_diagnoses, read_histories
from toolkit.report.html.figures import COLOURS, MARKERS, STYLE, Chart, chart, draw_curves, grid, legend, looks
from toolkit.table import Cell, Row, Table
from toolkit.wording import count

Groups = Mapping[str, Sequence[Diagnosis]]
TSNE = "t-SNE: nearby points are similar; the axes have no unit."


def collapse(sweep: Sweep) -> list[dict[str, Any]]:
    """Return the values of `collapse.html`, for each store and split; empty without a diagnosis."""
    stores: dict[tuple[str, str], list[Diagnosis]] = {}
    for diagnosis in read_diagnoses(sweep):
        stores.setdefault((diagnosis.facts["digest"], diagnosis.facts["split"]), []).append(diagnosis)
    histories = read_histories(sweep)
    return [
        _one_store(sweep, diagnoses, [one for one in histories if (one.digest, one.split) == where])
        for where, diagnoses in stores.items()
    ]


def _one_store(sweep: Sweep, diagnoses: Sequence[Diagnosis], histories: Sequence[History]) -> dict[str, Any]:
    facts = diagnoses[0].facts
    groups = [group for group in sweep.groups if any(found.run.group == group for found in diagnoses)]
    by_group = {group: [found for found in diagnoses if found.run.group == group] for group in groups}
    counts = [", ".join(f"{mode}: {number:,}" for mode, number in facts["sequences"].items())]
    counts += [
        f"{mode or 'no mode'} ({count(number, 'sequence')}) excluded" for mode, number in facts["left_out"].items()
    ]
    return {
        "where": f"{facts['store']}, split {facts['split']}",
        "counts": "; ".join(counts),
        "table": _table(by_group),
        "charts": list(_charts(by_group, histories)),
    }


def _charts(by_group: Groups, histories: Sequence[History]) -> Iterator[Chart]:
    yield _bars(by_group)
    if histories:
        yield _over_training(list(by_group), histories)
    plain = {group: found[0] for group, found in by_group.items() if "slots" not in found[0].points}
    if plain:
        yield _memories(plain)
    yield from (_features(group, found[0]) for group, found in by_group.items() if group not in plain)


def _table(by_group: Groups) -> Table:
    modes = list(next(iter(by_group.values()))[0].facts["modes"])
    titles = [f"{mode}\n{what}" for mode in modes for what in ("between ↑", "drift ↓", "score ↓")]
    rows = []
    for group, found in by_group.items():
        cells = [_cell([one.facts["score"] for one in found])]
        cells += [_cell([one.values(mode)[what] for one in found]) for mode in modes for what in range(3)]
        rows.append(Row((group, *cells)))
    return Table(("Model", "all\nscore ↓", *titles), rows, stacked=True)


def _cell(values: list[float]) -> Cell:
    mean, std = mean_and_std(values)
    return Cell(f"{mean:.2f}", "" if std is None else f"± {std:.2f}")


def _bars(by_group: Groups) -> Chart:
    """Draw Figure 3(b): both distances of every model, means over modes and seeds."""
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(1, panel=(max(9.2, 1.1 * len(by_group) + 1.5), 2.75))
        places = np.arange(len(by_group))
        for offset, what, label, colour, hatch in (
            (-0.2, 0, "between modes ↑", COLOURS[0], ""),
            (0.2, 1, "truth-fed to prediction-fed ↓", COLOURS[1], "//"),
        ):
            values = [
                mean_and_std([float(np.mean([one.values(mode)[what] for mode in one.facts["modes"]])) for one in found])
                for found in by_group.values()
            ]
            means, errors = [mean or 0.0 for mean, _ in values], [std or 0.0 for _, std in values]
            axes[0].bar(
                places + offset, means, 0.38, yerr=errors, label=label, color=colour, hatch=hatch, edgecolor="white"
            )
        rotation, place = (20, "right") if len(by_group) > 3 else (0, "center")
        axes[0].set_xticks(places, list(by_group), rotation=rotation, ha=place)
        axes[0].set_ylabel("A-distance")
        axes[0].axhline(0, color="#555555", linewidth=0.8)
        legend(figure, axes[0])
        caption = "A-distances: mean over modes and seeds; error bars: ± sample standard deviation."
        return chart(figure, "A-distance of every model", caption)


def _over_training(groups: Sequence[str], histories: Sequence[History]) -> Chart:
    style = looks(groups)
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(1, panel=(9.2, 2.75))
        for group in groups:
            draw_curves(axes[0], group, [one.scores for one in histories if one.run.group == group], style[group])
        axes[0].set_xlabel("optimizer step")
        axes[0].set_ylabel("collapse score ↓")
        legend(figure, axes[0])
        caption = (
            "Collapse score of the checkpoints that were analysed by their steps: median over seeds, min–max band."
        )
        return chart(figure, "Collapse score over training", caption)


def _memories(found: Mapping[str, Diagnosis]) -> Chart:
    """Draw Figure 3(a): the memory states of all models without slots."""
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(len(found), row=4, panel=(2.5, 2.4))
        for axis, (group, one) in zip(axes, found.items(), strict=True):
            _scatter(axis, one.points["memory"], one.points["memory_mode"], group, legend_below=False)
            axis.title.set_fontsize(8)
        legend(figure, axes[0])
        of = "; ".join(f"{group}: seed {one.run.seed}, layer {one.facts['layer'] + 1}" for group, one in found.items())
        text = f"Memory states after the last step, prediction-fed. {of}. {TSNE}"
        return chart(figure, "Memory states by mode", text)


def _features(group: str, found: Diagnosis) -> Chart:
    """Draw Figures 3(a) and 5 of one model with slots."""
    points = found.points
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(2 + ("weights" in points), row=3, panel=(3.4, 3.4))
        _scatter(axes[0], points["memory"], points["memory_mode"], "Memory state, by mode")
        _scatter(axes[1], points["slots"], np.array([f"slot {n + 1}" for n in points["slots_slot"]]), "Slots")
        if "weights" in points:
            _weights(axes[-1], points["weights"], points["weights_mode"])
        text = f"{group}, seed {found.run.seed}, layer {found.facts['layer'] + 1}, after the last step, prediction-fed."
        return chart(figure, f"Features of {group}", f"{text} {TSNE} Weights: mean; error bars ± std over sequences.")


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

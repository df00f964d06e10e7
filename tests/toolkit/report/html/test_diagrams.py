"""Verification diagrams in the report: a figure for each threshold, a line for each model that has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.scoring import Blur, Dice, ListedWindows, evaluate
from tests.support.synthetic import noise_scene
from toolkit.evaluate.ensemble import Ensemble
from toolkit.models.baselines import Persistence
from toolkit.report.build import build_report
from toolkit.report.data.aggregate import PERSISTENCE, make_boards
from toolkit.report.data.collect import collect
from toolkit.report.html.diagrams import diagrams, draw
from toolkit.report.html.figures import looks


def made(model: object, members: int = 1, thresholds: tuple[float, ...] = (0.3, 0.6)) -> dict[str, Any]:
    windows = ListedWindows(noise_scene(size=20).frames)
    options: dict[str, Any] = {"context": 3, "horizon": 3, "thresholds": thresholds, "diagrams": True}
    table = evaluate(model, windows, ensemble=Ensemble(members, "mean"), **options)
    assert table.diagrams is not None
    found = table.diagrams.compute()
    assert found is not None
    return found


def add(sweep: Path, group: str, found: dict[str, Any], seed: int = 1, which: str = "*") -> None:
    for file in (sweep / f"{group}-seed{seed}" / "eval").glob(f"test-{which}.json"):
        record = json.loads(file.read_text())
        record |= {"diagrams": found, "persistence": {**record["persistence"], "diagrams": made(Persistence())}}
        file.write_text(json.dumps(record))


def test_lines_are_those_of_the_results(sweep: Path) -> None:
    assert not any(diagrams(board, []) for board in make_boards(collect(sweep)))  # written before there were any
    add(sweep, "slots4", made(Dice(), 5))
    add(sweep, "slots1", made(Blur()))
    found = collect(sweep)
    board = make_boards(found)[0]
    charts = diagrams(board, found.groups)
    assert len(charts) == len(board.facts["thresholds"]) == 1
    assert "slots4: share of 5 members" in charts[0].caption
    assert f"slots1, {PERSISTENCE}: share of the 15 x 15 pixels" in charts[0].caption
    page = build_report(sweep, None).read_text()
    assert page.count('<h2 id="diagrams">') == 1 and 'href="#diagrams"' in page


def test_a_seed_or_checkpoint_without_diagrams_hides_no_other(sweep: Path) -> None:
    add(sweep, "slots4", made(Blur()), seed=2, which="last")
    board = make_boards(collect(sweep))[0]
    (chart,) = diagrams(board, collect(sweep).groups)
    assert chart.caption.partition(". ")[2].startswith("Last checkpoint, first seed that has them. Probability: slots4")
    assert chart.caption.endswith("evaluated before there were any: slots1.")


def test_panels_have_every_point() -> None:
    lines = {"a": made(Dice(), 5), "b": made(Persistence())}
    reliability, roc, fss, spectrum = draw(lines, looks(["a", "b"]), 1, "event ≥ 0.6").axes
    for place, label in enumerate(lines):
        curves = lines[label]["overall"]
        drawn = reliability.lines[place].get_xydata()
        points = zip(curves["reliability"][1]["forecast"], curves["reliability"][1]["observed"], strict=True)
        assert np.array_equal(drawn, [point for point in points if None not in point])
        assert roc.lines[place].get_ydata().tolist() == [1.0, *curves["roc"][1]["pod"], 0.0]
        assert fss.lines[place].get_ydata().tolist() == curves["fss"][1]
        assert spectrum.lines[place].get_ydata().tolist() == curves["spectrum"]["forecast"]
    assert f"a ({lines['a']['overall']['roc'][1]['area']:.3f})" in [text.get_text() for text in roc.get_legend().texts]
    assert spectrum.lines[2].get_ydata().tolist() == lines["a"]["overall"]["spectrum"]["observation"]
    assert fss.lines[2].get_ydata()[0] == pytest.approx(0.5 + lines["a"]["overall"]["frequency"][1] / 2)

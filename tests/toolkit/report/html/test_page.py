"""The page: one file that needs nothing else, gaps named, values escaped."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from launch.report import main
from tests.support.synthetic import DBZ, noise_scene, write_run, write_sweep
from toolkit.report.build import build_report
from toolkit.report.html.figures import grid, label_lead_times


class Links(HTMLParser):
    """All attributes that could load something, and whether tags match."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.anchors: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.sources += [
            value or "" for name, value in attrs if name in ("src", "srcset", "poster", "data", "background")
        ]
        if tag == "a":
            self.anchors.append(found["href"] or "")
        elif "href" in found:
            self.sources.append(found["href"] or "")
        if "id" in found:
            self.ids.append(found["id"] or "")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(sweep: Path) -> None:
    page = build_report(sweep, None).read_text()
    links = Links()
    links.feed(page)
    assert links.open == []
    assert links.sources
    assert all(source.startswith("data:image/") for source in links.sources)
    assert all(anchor.startswith("#") and anchor[1:] in links.ids for anchor in links.anchors)
    assert len(set(links.ids)) == len(links.ids)
    assert "<script" not in page
    assert "@import" not in page
    assert "url(http" not in page


def test_the_page_shows_protocol_frames_and_curves(sweep: Path) -> None:
    page = build_report(sweep, None).read_text()
    assert "sum over the pixels and channels of a frame" in page
    assert "MSE ↓" in page
    assert "CSI ≥ 30 ↑" in page
    assert page.count("data:image/svg+xml") == 2
    shown = len(re.findall(r"data:image/png", page))
    # 2 sequences of 2 modes: context, truth and two models, 3 frames each; of one of each mode the differences
    assert shown == 2 * 2 * (3 + 3 * 3) + 2 * 2 * 3
    assert page.count("data:image/gif") == page.count("<summary>Animation</summary>") == 2
    assert "seed 1, best · MSE" in page


def test_missing_and_failed_seeds_are_named_with_their_reason(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep)]) == 0
    printed, page = capsys.readouterr(), (sweep / "report" / "index.html").read_text()
    assert "<b>slots1-seed2</b>: failed at step 100 of 200: NonFiniteError: the loss is &lt;NaN&gt; &amp; more" in page
    assert "<b>convlstm-seed2</b>: no run directory convlstm-seed2" in page
    assert "<b>convlstm-seed1</b>: trained, not evaluated (run python launch/evaluate.py --run" in page
    assert "its scores are excluded" in printed.err
    assert printed.out.strip().splitlines()[-1] == str((sweep / "report" / "index.html").resolve())


def test_a_sweep_without_any_score_still_has_a_page(tmp_path: Path) -> None:
    write_run(tmp_path / "s" / "a-seed1", "a", 1, noise_scene(), 1.0, ending="running", scored=False)
    write_sweep(tmp_path / "s", "early", [("a-seed1", "a", 1)])
    page = build_report(tmp_path / "s", None).read_text()
    assert "No finished run has been evaluated yet" in page
    assert "running at step 100 of 200" in page
    assert "data:image/svg+xml" in page  # the losses so far


def test_tables_by_mode_are_left_out_where_one_mode_has_all_sequences(sweep: Path, tmp_path: Path) -> None:
    page = build_report(sweep, None).read_text()
    assert "Scores by mode" in page
    folded = page[page.index("<summary>Other scores by mode</summary>") :].partition("</details>")[0]
    assert "POD ≥ 30" in folded and "SSIM" not in folded
    scene = noise_scene()
    write_run(tmp_path / "one" / "a-seed1", "a", 1, replace(scene, modes=("1-digit",) * len(scene.modes)), 1.0)
    assert "Scores by mode" not in build_report(tmp_path / "one", None).read_text()


def test_radar_has_its_scale_and_its_clock(tmp_path: Path) -> None:
    scene = noise_scene(size=100, scale=DBZ, thresholds=(30.0,), step_seconds=300.0)
    write_run(tmp_path / "r" / "a-seed1", "a", 1, scene, 1.0)
    page = build_report(tmp_path / "r", None).read_text()
    assert 'aria-label="dBZ scale"' in page
    assert "no data" in page
    assert "+15 min<br>00:10" in page  # the sixth frame of 5 minutes from 23:45
    assert "starts 2015-05-15 23:45:00 UTC" in page
    assert "error (forecast − observation) dBZ" in page
    assert "CSI ≥ 30 dBZ" in page


@pytest.mark.parametrize("leads", [1, 2, 3, 10])
def test_lead_times_have_whole_ticks(leads: int) -> None:
    figure, (axis,) = grid(1)
    axis.plot(range(1, leads + 1), [1.0] * leads, marker="o")
    label_lead_times(axis, {"horizon": leads, "step_seconds": None})
    figure.draw_without_rendering()
    assert all(tick == int(tick) for tick in axis.get_xticks())
    assert axis.get_xlabel() == "lead time (frames)"


def test_runs_beside_the_plan_are_mentioned(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(sweep / "stray", "stray", 7, noise_scene(), 1.0)
    page = build_report(sweep, None).read_text()
    assert "1 run directory not part of the sweep" in page
    assert "1 run directory not part of the sweep" in capsys.readouterr().err
    assert "stray" not in (sweep / "report" / "table.csv").read_text()


def test_names_that_hold_markup_are_shown_and_not_run(tmp_path: Path) -> None:
    hostile = '"><img src=x onerror=alert(1)>&'
    scene = replace(noise_scene(step_seconds=300.0, name=hostile), modes=(hostile, "b") * 2)
    write_run(tmp_path / "a-seed1", hostile, 1, scene, 1.0, protocol={"title": hostile, "text": [hostile]})
    write_run(tmp_path / "b-seed1", "b", 1, scene, 1.0, ending=hostile)
    write_sweep(tmp_path, hostile, [("a-seed1", hostile, 1), ("b-seed1", "b", 1)])
    page = build_report(tmp_path, None).read_text()
    assert "<img src=x" not in page and "onerror" in page
    assert page.count("&#34;&gt;&lt;img src=x onerror=alert(1)&gt;&amp;") > 20
    links = Links()
    links.feed(page)
    assert links.open == []
    assert "x" not in links.sources

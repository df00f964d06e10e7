"""From features to the diagnosis, and to the report's section: healthy and collapsed memories, three seeds each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.manifest import FrameSpec
from tests.support.scoring import ListedWindows
from tests.support.synthetic import noise_scene, write_run, write_sweep
from toolkit.analysis.diagnose import TooFewModesError, diagnose
from toolkit.analysis.features import batch_features
from toolkit.config import make_config
from toolkit.errors import ToolkitError
from toolkit.evaluate.table import save_npz
from toolkit.models.base import Sampling, build_model
from toolkit.report.build import build_report
from toolkit.report.data.collect import collect
from toolkit.report.data.diagnoses import read_diagnoses, read_histories

MODES = ("1-digit", "2-digit", "3-digit")
EACH, STEPS, CHANNELS, SLOTS = 20, 5, 6, 4


def write_features(
    folder: Path, seed: int, collapsed: bool, modes: tuple[str, ...] = MODES, which: str = "best", step: int = 7
) -> Path:
    """Memories of two layers, of which the last counts: modes 6 apart; when collapsed, all predictions in one place."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(modes)), EACH)
    truth = random.normal(size=(len(labels), STEPS, CHANNELS)) + 6.0 * labels[:, None, None]
    predicted = truth + 0.01 * random.normal(size=truth.shape)
    if collapsed:
        predicted = random.normal(size=truth.shape) - 9.0
    slots = random.normal(size=(2, len(labels), STEPS, SLOTS, 3)) + 7.0 * np.arange(SLOTS)[:, None]
    weights = random.normal(size=(2, len(labels), 2, SLOTS, 4, 2 * CHANNELS))
    about = {"model": "modernn", "run": "1a2b3c4d", "step": step, "store": "stores/x", "digest": "ab", "split": "test"}
    path = folder / "analysis" / f"features-test-{which}.npz"
    arrays = {
        "index": np.arange(len(labels)),
        "mode": np.array([modes[label] for label in labels]),
        "memory_0": np.zeros((2, len(labels), STEPS, CHANNELS), np.float32),
        "memory_1": np.stack([truth, predicted]).astype(np.float32),
        "slots_1": slots.astype(np.float32),
        "weights_1": weights.astype(np.float32),
        "weights_steps": np.array([2, 4]),
        "about": np.array(json.dumps(about)),
    }
    save_npz(path, arrays)
    return path


def test_a_collapsed_model_scores_above_a_healthy_one_for_every_seed(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        scores = {}
        for collapsed in (False, True):
            path = diagnose(write_features(tmp_path / f"{seed}{collapsed}", seed, collapsed))
            scores[collapsed] = json.loads(path.read_text())
        assert scores[False]["layer"] == 1
        assert scores[False]["sequences"] == dict.fromkeys(MODES, EACH)
        assert scores[False]["score"] < 0.25 < 0.75 < scores[True]["score"]
        for mode in MODES:
            assert scores[False]["modes"][mode]["score"] < 0.3 < 0.7 < scores[True]["modes"][mode]["score"]


def still_windows(seed: int) -> ListedWindows:
    """24 sequences of each of three modes: a patch in a corner of the mode's own, and noise."""
    random = np.random.default_rng(seed)
    frames = random.integers(0, 60, (72, 8, 1, 8, 8)).astype(np.uint8)
    for mode, (y, x) in enumerate(((0, 0), (0, 4), (4, 0))):
        frames[mode::3, :, :, y : y + 4, x : x + 4] += 180
    return ListedWindows(frames, modes=MODES)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_model_that_is_made_to_collapse_scores_above_the_healthy_one(seed: int, tmp_path: Path) -> None:
    """A ConvLSTM that has learnt its three modes, and the same one with a read-out that says one frame to all."""
    torch.manual_seed(seed)
    windows, scores = still_windows(seed), {}
    tree = {"model": {"name": "convlstm", "layers": 1, "hidden": 8, "kernel": 3}}
    model = build_model(make_config(tree, "test").model, FrameSpec(1, 8, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    frames = torch.from_numpy(windows.frames).float() / 255
    for _ in range(80):
        optimizer.zero_grad()
        model(frames, 4, Sampling()).losses["data"].backward()
        optimizer.step()
    for name in ("healthy", "collapsed"):
        if name == "collapsed":
            with torch.no_grad():
                for parameter in model.cell.read_out.parameters():
                    parameter.zero_()
        arrays = batch_features(model, windows, range(72), 4, 4, torch.device("cpu"))
        path = tmp_path / name / "features-test-best.npz"
        save_npz(path, {**arrays, "weights_steps": np.array([3, 6]), "about": np.array("{}")})
        scores[name] = json.loads(diagnose(path).read_text())
    assert scores["healthy"]["score"] + 0.3 < scores["collapsed"]["score"]
    for mode in MODES:
        assert scores["healthy"]["modes"][mode]["score"] < scores["collapsed"]["modes"][mode]["score"]


def test_points_of_the_figures(tmp_path: Path) -> None:
    path = diagnose(write_features(tmp_path, 0, False))
    points = np.load(path.with_suffix(".npz"))
    assert points["memory"].shape == (60, 2) and points["slots"].shape == (240, 2)
    assert points["slots_slot"].tolist()[:5] == [0, 1, 2, 3, 0]
    stored = np.load(path.with_name("features-test-best.npz"))
    omega = stored["weights_1"][1, :, -1].astype(np.float64)
    np.testing.assert_allclose(points["weights"], (1 / (1 + np.exp(-omega))).mean((2, 3)))


def test_one_mode_cannot_collapse_and_another_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TooFewModesError, match=r"two modes with 8 sequences each, found \{'1-digit': 20\}"):
        diagnose(write_features(tmp_path, 0, False, modes=("1-digit",)))
    (tmp_path / "features-x.npz").write_bytes(b"nothing")
    with pytest.raises(ToolkitError, match=r"features-x\.npz: not a file of features"):
        diagnose(tmp_path / "features-x.npz")


def test_the_report_shows_every_model(tmp_path: Path) -> None:
    runs = []
    for group, collapsed in (("modernn", False), ("convlstm", True)):
        for seed in (1, 2):
            run = write_run(tmp_path / f"{group}-seed{seed}", group, seed, noise_scene(), 1.0)
            diagnose(write_features(run.path, seed, collapsed))
            runs.append((run.path.name, group, seed))
    write_sweep(tmp_path, "demo", runs)
    sweep = collect(tmp_path)
    assert len(read_diagnoses(sweep)) == 4
    page = build_report(tmp_path, None).read_text()
    text = page[page.index('<h2 id="collapse">') : page.index('<h2 id="losses">')]
    assert text.count("<figure") == 3  # the bars, and each model's features
    assert "1-digit: 20, 2-digit: 20, 3-digit: 20" in text
    (tmp_path / "modernn-seed1" / "analysis" / "collapse-test-best.npz").write_bytes(b"")
    with pytest.raises(ToolkitError, match=r"regenerate it: python launch/analyse\.py --run"):
        build_report(tmp_path, None)


def test_the_report_shows_the_score_over_training(tmp_path: Path) -> None:
    """Steps in the order of numbers; a run of which one step was analysed has no curve, and is in the table."""
    runs = [(f"modernn-seed{seed}", "modernn", seed) for seed in (1, 2)]
    for name, group, seed in runs:
        run = write_run(tmp_path / name, group, seed, noise_scene(), 1.0)
        for step in (1000, 900) if seed == 1 else (900,):
            diagnose(write_features(run.path, seed, step == 1000, which=str(step), step=step))
    write_sweep(tmp_path, "demo", runs)
    sweep = collect(tmp_path)
    (history,) = read_histories(sweep)
    assert (history.run.seed, history.digest, history.split) == (1, "ab", "test")
    assert [step for step, _ in history.scores] == [900, 1000]
    assert history.scores[0][1] < 0.25 < 0.75 < history.scores[1][1]
    assert [one.facts["step"] for one in read_diagnoses(sweep)] == [1000, 900]
    page = build_report(tmp_path, None).read_text()
    text = page[page.index('<h2 id="collapse">') : page.index('<h2 id="losses">')]
    assert text.count("<figure") == 3 and "Collapse score over training" in text

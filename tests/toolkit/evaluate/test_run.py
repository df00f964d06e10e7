"""The evaluation run: batches dealt to ranks, thresholds in units, missing pixels, faults that all ranks hear of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.manifest import Scale
from tests.support.models import blobs
from tests.support.process import PATIENCE_S
from tests.support.scoring import DBZ, PAPER, Blur, Dice, ListedWindows, evaluate, noise_windows
from toolkit.errors import ConfigError
from toolkit.evaluate.ensemble import Ensemble
from toolkit.evaluate.protocols import known_protocols, load_protocol
from toolkit.evaluate.run import inflow_of, sample_frames
from toolkit.evaluate.scoring import score_batch, threshold_codes, threshold_level
from toolkit.evaluate.table import ScoreTable, at
from toolkit.models.baselines import Persistence


def test_scores_of_the_paper_protocol_by_hand() -> None:
    windows = noise_windows(5)
    table = evaluate(Persistence(), windows)
    frames = windows.frames.astype(np.float64) / 255
    errors = ((frames[:, 1:2] - frames[:, 2:]) ** 2).sum((2, 3, 4))  # sums over the pixels of a frame
    np.testing.assert_allclose(table.arrays()["mse"], errors, rtol=1e-6)
    assert table.arrays()["key"].tolist() == [f"w{i:03d}" for i in range(5)]
    assert table.compute().mode_counts == {"a": 3, "b": 2}


def test_predictions_are_clamped_and_levels_floored() -> None:
    codes = torch.full((1, 1, 1, 8, 8), 100, dtype=torch.uint8)
    prediction = torch.full((1, 1, 1, 8, 8), 100.9 / 255)  # floor gives level 100: an exact frame for PSNR
    prediction[..., 0, 0] = -3.0
    scores = score_batch(prediction, codes, Scale("x", "1", 0.0, 1.0), PAPER, ())
    expected = 63 * (0.9 / 255) ** 2 + (100 / 255) ** 2
    assert scores["mse"].item() == pytest.approx(expected, rel=1e-4)
    assert scores["psnr"].item() == pytest.approx(10 * np.log10(255**2 / (100**2 / 64)), rel=1e-9)


@pytest.mark.parametrize("max_code", [1, 41, 194, 254, 255])
def test_repeating_a_frame_is_exact_at_every_code(max_code: int) -> None:
    codes = torch.arange(256, dtype=torch.uint8).clamp(max=max_code).reshape(1, 1, 1, 16, 16)
    scale = Scale("x", "1", 0.0, 1.0, max_code=max_code)
    scores = score_batch(codes.float() / max_code, codes, scale, PAPER, tuple(range(1, max_code + 1)))
    assert scores["exact_frames"].item() == 1
    assert scores["mse"].item() == 0
    assert all(scores[f"misses@{k}"].item() == scores[f"false_alarms@{k}"].item() == 0 for k in range(1, max_code + 1))
    assert all(scores[f"hits@{k}"].item() == int((codes >= k).sum()) for k in range(1, max_code + 1))


def test_thresholds_are_in_the_stores_unit() -> None:
    assert threshold_codes((30,), DBZ) == [120]
    assert threshold_codes((30.1,), DBZ) == [121]
    assert threshold_codes((0.3,), Scale("rain", "mm/h", 0.0, 0.1, max_code=254)) == [3]
    assert threshold_codes((-10, 30), Scale("r", "dBZ", -32.0, 0.5)) == [44, 124]
    with pytest.raises(ConfigError, match=r"70 .* 0 to 63.5 dBZ"):
        threshold_codes((70,), DBZ)
    with pytest.raises(ConfigError, match="gain -1"):
        threshold_codes((3,), Scale("x", "1", 0.0, -1.0))


@pytest.mark.parametrize("scale", [Scale("intensity", "1", 0.0, 1 / 255), Scale("r", "dBZ", -32.0, 0.5)])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7001])
def test_events_of_a_forecast_are_compared_in_the_stores_unit(scale: Scale, share: float) -> None:
    """By the rule of pysteps' det_cat_fct, value >= threshold on both sides, whatever lies between two codes."""
    threshold = scale.offset + share * scale.gain * scale.max_code
    draw = np.random.default_rng(0)
    codes = draw.integers(0, 256, (2, 3, 1, 16, 16), dtype=np.uint8)
    unit = np.clip(codes / 255 + draw.normal(0, 0.02, codes.shape), 0, 1).astype(np.float32)
    unit[0, 0, 0, 0, :4] = np.float32(share + np.array([-2e-3, -1e-5, 1e-5, 1e-3]))
    forecast = unit.astype(np.float64) * scale.max_code * scale.gain + scale.offset >= threshold
    happened = codes * scale.gain + scale.offset >= threshold - 1e-9
    columns = score_batch(torch.from_numpy(unit), torch.from_numpy(codes), scale, PAPER, [threshold])
    for name, events in {
        "hits": forecast & happened,
        "misses": ~forecast & happened,
        "false_alarms": forecast & ~happened,
    }.items():
        assert (columns[at(name, threshold)] == events.sum((2, 3, 4))).all(), name


EDGES = {
    "bytes": Scale("intensity", "1", 0.0, 1 / 255),
    "dBZ": Scale("r", "dBZ", -32.0, 0.5, 254, 255),
    "16 bits": Scale("t", "K", 180.0, 0.002, 65534, 65535),
    "a large offset": Scale("p", "Pa", 100_000.0, 0.001, 65535),
    "a gain of float32": Scale("rain", "mm/h", 0.0, float(np.float32(0.01)), 65534, 65535),
}


@pytest.mark.parametrize("scale", EDGES.values(), ids=EDGES)
@pytest.mark.parametrize("away", [0.0, 1e-10, 1e-8, 1e-6, 1e-4, 2e-3, 0.5, -1e-8, -1e-4, -0.5])
def test_a_perfect_forecast_has_the_events_of_the_observation(scale: Scale, away: float) -> None:
    """At, just above and just below the value of a code, whether units are divided or multiplied by 1 / max_code."""
    codes = torch.arange(scale.max_code + 1)
    divided = codes.float() / scale.max_code
    multiplied = codes.float() * (torch.ones(()) / scale.max_code)  # what torch does on a GPU
    for code in np.linspace(2, scale.max_code - 1, 50).astype(int):
        value = scale.offset + scale.gain * (code + away)
        for threshold in (value, float(f"{value:.9g}")):
            (least,) = threshold_codes([threshold], scale)
            level = threshold_level(threshold, least, scale)
            for units in (divided, multiplied):
                assert torch.equal(units >= level, codes >= least), (threshold, least)
        assert threshold_codes([value], scale)[0] - code in ([0] if away <= 0 else [1] if away == 0.5 else [0, 1])


def test_what_is_written_as_the_value_of_a_code_is_that_code() -> None:
    scale = EDGES["a gain of float32"]
    assert threshold_codes([0.01, 5.0, 600.0], scale) == [1, 500, 60000]
    assert threshold_codes([100_000.123, 100_012.345], EDGES["a large offset"]) == [123, 12345]


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ([float("nan")], "nan is outside of this store"),
        ([float("inf")], "inf is outside of this store"),
        ([1e300], r"1e\+300 is outside of this store"),
        ([63.50001], "63.50001 is outside of this store, whose values are 0 to 63.5 dBZ: choose eval"),
        ([30, 35, 30.0], "30 is given twice"),
    ],
)
def test_thresholds_that_can_not_be_scored_are_named(thresholds: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        threshold_codes(thresholds, DBZ)


def test_thresholds_that_are_close_have_scores_of_their_own() -> None:
    thresholds = (0.5, 0.5000001, 0.123456, 0.12345601)
    overall = evaluate(Persistence(), noise_windows(2), thresholds=thresholds).compute().overall
    assert [name for name in overall if name.startswith("csi@")] == [f"csi@{threshold}" for threshold in thresholds]


def test_missing_pixels_count_in_no_metric() -> None:
    windows = noise_windows(2, scale=DBZ)
    windows.frames[:, 2:, :, :3] = DBZ.missing_code  # truth
    other = ListedWindows(windows.frames.copy(), DBZ)
    table = evaluate(Persistence(), windows, thresholds=(30,))
    spoilt = score_batch(
        torch.full((2, 2, 1, 12, 12), 0.5).index_fill(3, torch.arange(3), 0.9),
        torch.from_numpy(other.frames[:, 2:]),
        DBZ,
        PAPER,
        (30,),
    )
    clean = score_batch(torch.full((2, 2, 1, 12, 12), 0.5), torch.from_numpy(other.frames[:, 2:]), DBZ, PAPER, (30,))
    for name in clean:
        np.testing.assert_array_equal(clean[name], spoilt[name])
    assert table.compute().announced["missing_pixels"] == 2 * 2 * 3 * 12
    context_missing = noise_windows(1, scale=DBZ)
    context_missing.frames[:, 1] = DBZ.missing_code
    repeated = evaluate(Persistence(), context_missing)  # shown as 0, and predicted as such
    values = context_missing.frames[:, 2:] / 254.0
    np.testing.assert_allclose(repeated.arrays()["mse"], (values**2).sum((2, 3, 4)), rtol=1e-6)


def test_a_prediction_that_is_not_finite_is_announced() -> None:
    codes = torch.full((1, 2, 1, 8, 8), 100, dtype=torch.uint8)
    prediction = torch.full((1, 2, 1, 8, 8), 0.5)
    prediction[0, 1, 0, 3, 3] = torch.inf  # clamping would have hidden it
    scores = score_batch(prediction, codes, Scale("x", "1", 0.0, 1.0), PAPER, (50,))
    assert scores["nonfinite_frames"].tolist() == [[0, 1]]
    assert np.isnan(scores["ssim"]).tolist() == [[False, True]]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_samples(world: int) -> None:
    windows = noise_windows(11)
    whole = evaluate(Blur(), windows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolkit.evaluate.run._gather", lambda table, *_: table)
        parts = [evaluate(Blur(), windows, rank=rank, world=world) for rank in range(world)]
    for part in parts[1:]:
        parts[0].merge(part)
    assert parts[0].compute() == whole.compute()


RANK_PROGRAM = """
import json, sys, torch
from torch import distributed
from tests.support.models import blobs
from tests.support.scoring import Blur, Dice, noise_windows
from tests.support.models import blobs
from tests.support.scoring import evaluate
from toolkit.evaluate.ensemble import Ensemble
distributed.init_process_group("gloo")
torch.set_num_threads(1)
rank, world = distributed.get_rank(), distributed.get_world_size()
scores = evaluate(Blur(), noise_windows(7), rank=rank, world=world, batch=2, thresholds=(0.5,)).compute()
open(f"{sys.argv[1]}/rank{rank}.json", "w").write(json.dumps(scores.as_dict()))
for select in ("mean", "best"):
    table = evaluate(Dice(), noise_windows(7), rank=rank, world=world, batch=2, ensemble=Ensemble(3, select))
    open(f"{sys.argv[1]}/{select}{rank}.json", "w").write(json.dumps(table.compute().as_dict()))
class Broken(Blur):
    def predict(self, context, *args, **kwargs):
        if rank == 1:
            raise RuntimeError("out of memory")
        return super().predict(context, *args, **kwargs)
try:
    evaluate(Broken(), noise_windows(7), rank=rank, world=world)
except Exception as error:
    open(f"{sys.argv[1]}/fault{rank}.txt", "w").write(f"{type(error).__name__}: {error}")
distributed.destroy_process_group()
"""


@pytest.mark.parametrize("world", [2, 3])
def test_real_ranks_and_an_odd_count_equal_one_process(world: int, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": os.getcwd()}
    (tmp_path / "rank.py").write_text(RANK_PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)]
    finished = subprocess.run(
        [*command, str(tmp_path / "rank.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert finished.returncode == 0, finished.stderr
    torch.set_num_threads(1)
    alone = evaluate(Blur(), noise_windows(7), batch=2, thresholds=(0.5,)).compute().as_dict()
    for rank in range(world):
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) == json.loads(json.dumps(alone))
        for select in ("mean", "best"):
            ensemble = evaluate(Dice(), noise_windows(7), batch=2, ensemble=Ensemble(3, select)).compute().as_dict()
            assert json.loads((tmp_path / f"{select}{rank}.json").read_text()) == json.loads(json.dumps(ensemble))
    assert (tmp_path / "fault1.txt").read_text() == "RuntimeError: out of memory"
    assert "failed on rank 1: RuntimeError: out of memory" in (tmp_path / "fault0.txt").read_text()


def test_limit_progress_and_the_models_mode() -> None:
    model, seen = Blur().train(), []
    table = evaluate(model, noise_windows(10), limit=7, progress=lambda done, total: seen.append((done, total)))
    assert len(table) == 7
    assert seen == [(3, 7), (6, 7), (7, 7)]
    assert model.training


def test_faults_of_use_are_named() -> None:
    with pytest.raises(ConfigError, match="0 windows"):
        evaluate(Blur(), noise_windows(0))
    with pytest.raises(ConfigError, match="has 4 frames, context \\+ horizon need 5"):
        evaluate(Blur(), noise_windows(1), horizon=3)
    with pytest.raises(ConfigError, match="unknown protocol 'papr'; did you mean paper\\? known: openstl, paper"):
        load_protocol("papr")


def test_every_protocol_names_all_its_choices() -> None:
    for name in known_protocols():
        choices = load_protocol(name).choices()
        assert choices["name"] == name
        assert json.loads(json.dumps(choices)) == choices
        assert len(choices["text"]) >= 5


def test_sample_frames_are_the_first_of_each_mode() -> None:
    windows = noise_windows(6, scale=DBZ)
    table = evaluate(Persistence(), windows)
    found = sample_frames(
        Persistence(), windows, table, context=2, horizon=2, protocol=PAPER, batch=3, show=2, device="cpu"
    )
    assert found["key"].tolist() == ["w000", "w002", "w001", "w003"]
    assert found["mode"].tolist() == ["a", "a", "b", "b"]
    np.testing.assert_array_equal(found["prediction"][:, 0], found["context"][:, -1])
    np.testing.assert_array_equal(found["truth"], windows.frames[[0, 2, 1, 3], 2:])
    assert found["mse"][1] == table.arrays()["mse"][2].mean()
    assert json.loads(str(found["scale"]))["unit"] == "dBZ"


def moving(missing: bool = False) -> ListedWindows:
    """Three sequences of spots that move to the right; in the last column nothing is observed, if asked for."""
    frames = np.concatenate(
        [(250 * blobs((speed, 0.0), 6, 48).clamp(0, 1)).byte().numpy() for speed in (2.0, 3.0, 0.0)]
    )
    if missing:
        frames[..., -1] = 255
    return ListedWindows(frames, DBZ)


@pytest.mark.parametrize("missing", [False, True])
def test_inflow_is_left_out_for_every_model_alike(missing: bool, tmp_path: Path) -> None:
    windows = moving(missing)
    options = {"context": 3, "horizon": 3, "thresholds": (30.0,), "exclude_inflow": True}
    frames = torch.from_numpy(windows.frames)
    inflow = inflow_of(frames[:, :3], 3, DBZ)
    seen = frames[:, 3:] != 255
    assert not (inflow & seen)[2].any() and inflow[1, -1].sum() > inflow[0, -1].sum() > 48 * 3
    for model in (Persistence(), Blur(), Dice()):
        ensemble = Ensemble(4, "mean") if isinstance(model, Dice) else Ensemble()
        table = evaluate(model, windows, ensemble=ensemble, **options)
        columns = table.arrays()
        assert np.array_equal(columns["inflow_pixels"], (inflow & seen).flatten(2).sum(2).numpy())
        assert (columns["missing_pixels"] == 48 * missing).all()
        counted = sum(columns[at(name, 30.0)] for name in ("hits", "misses", "false_alarms", "correct_negatives"))
        assert np.array_equal(counted, (seen & ~inflow).flatten(2).sum(2).numpy())
        if ensemble.samples > 1:
            assert np.array_equal(columns["ranks"].sum(2), counted)
        announced = table.compute().announced
        assert announced["inflow_pixels"] == int((inflow & seen).sum())
        table.save(tmp_path / "table.npz")
        assert ScoreTable.load(tmp_path / "table.npz").compute() == table.compute()
    last = frames[:, 2:3].double().where(frames[:, 2:3] != 255, 0.0)
    error = ((last - frames[:, 3:].double()) / 254).square() * (seen & ~inflow)
    mean = error.flatten(2).sum(2) / (seen & ~inflow).flatten(2).sum(2) * 48 * 48
    found = evaluate(Persistence(), windows, **options).arrays()["mse"]
    np.testing.assert_allclose(found, mean.numpy(), rtol=1e-5)

"""Models see a store of uint16 as one of uint8: codes of the same values give the same training, scores, forecasts."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from launch.evaluate import main as evaluate_run
from launch.predict import main as predict_command
from shards import FrameSpec, Scale, open_store
from shards.cli import main as shards
from shards.manifest import Codes
from shards.recent import open_archive
from shards.sources.radar_readers import DBZ, FINE_DBZ
from tests.support.archives import write_fmi
from tests.support.forecasts import START
from tests.support.graphs import small
from tests.support.runs import write_run
from tests.support.scoring import Blur, Dice, ListedWindows, evaluate, noise_windows
from tests.support.training import call, logged, weights_of
from toolkit.config import load_config
from toolkit.config.recipe import LossConfig
from toolkit.data.augment import augment
from toolkit.data.batches import Share, read_batches
from toolkit.data.windows import WindowSet, numbers, observed, to_unit
from toolkit.evaluate.check import threshold_codes
from toolkit.evaluate.ensemble import Ensemble
from toolkit.evaluate.protocols import load_protocol
from toolkit.evaluate.run import sample_frames
from toolkit.evaluate.scoring import score_batch, threshold_level
from toolkit.forecast.make import recoded
from toolkit.forecast.trained import load_trained
from toolkit.report.html.pictures import coloured, difference_uri, png_uri
from toolkit.trackers.picture import draw_forecast
from toolkit.train.check import rain_levels
from toolkit.train.size import check_readers

GREY, FINE_GREY = Scale("intensity", "1", 0.0, 1 / 255), Scale("intensity", "1", 0.0, 1 / 65535, 65535)
KELVIN = Scale("temperature", "K", 180.0, 0.002, 65534, 65535)


def finer(codes: Codes) -> Codes:
    """Codes of FINE_DBZ with the values that `codes` have in DBZ."""
    return np.where(codes == 255, 65535, codes.astype(np.uint16) * 258).astype(np.uint16)


def test_models_are_fed_the_same_to_the_last_bit() -> None:
    codes = np.arange(256, dtype=np.uint8)
    fine = torch.from_numpy(codes.astype(np.uint16) * 257)
    assert torch.equal(to_unit(fine, FINE_GREY), to_unit(torch.from_numpy(codes), GREY))
    assert observed(fine, FINE_GREY) is None
    fine = torch.from_numpy(finer(codes))
    assert torch.equal(to_unit(fine, FINE_DBZ), to_unit(torch.from_numpy(codes), DBZ))
    assert np.array_equal(to_unit(fine, FINE_DBZ).numpy(), FINE_DBZ.normalise(finer(codes)))
    seen = observed(fine, FINE_DBZ)
    assert seen is not None
    assert seen.tolist() == [True] * 255 + [False]


def test_every_code_is_another_number() -> None:
    codes = torch.from_numpy(np.arange(65536, dtype=np.uint16))
    values = to_unit(codes, FINE_GREY)
    assert values[0] == 0 and values[-1] == 1 and bool((values.diff() > 0).all())
    assert torch.equal((values * 65535).round().int(), numbers(codes))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A store of uint8, and of uint16 with the same values: from bytes, and from a radar archive with missing data."""
    folder = tmp_path_factory.mktemp("stores")
    y, x = np.mgrid[:16, :16]
    clips = [
        [(255 * np.exp(-((y - 3 - t) ** 2 + (x - 2 - (n + 1) * t / 2) ** 2) / 8)).astype(np.uint8) for t in range(8)]
        for n in range(16)
    ]
    np.save(folder / "clips.npy", np.array(clips))
    times = [START + timedelta(minutes=5 * i) for i in range(40)]
    y, x = np.mgrid[:24, :32]
    echoes = [np.clip(190 - 4 * np.hypot(y - 12 - i % 9, x - 4 - i % 23), 60, 255).astype(np.uint8) for i in range(40)]
    for i, echo in enumerate(echoes):
        echo[: 1 + i % 2, :4] = 255  # outside the radars' reach
    write_fmi(folder / "radar", times, echoes)  # half steps of dBZ, which are codes of both
    splits = ["--val-fraction", "0.2", "--test-fraction", "0.2"]
    found = {}
    for dtype in ("uint8", "uint16"):
        for source, path, options in (
            ("arrays", "clips.npy", ["--layout", "nthw"]),
            ("radar", "radar", ["--crop", "none", "--event-frames", "20"]),
        ):
            found[f"{source}-{dtype}"] = out = folder / f"{source}-{dtype}"
            command = ["convert", source, folder / path, out, "--dtype", dtype, *options, *splits]
            assert shards([str(word) for word in command]) == 0
            assert open_store(out).manifest.frames.dtype == dtype
    return found


def config_of(folder: Path, store: Path, **train: Any) -> Path:
    tree = {
        "name": "two",
        "model": {"name": "modernn", "layers": 2, "hidden": 8, "slots": 2, "patch": 4},
        "data": {"store": str(store), "context": 4, "horizon": 4, "augment": ["flip", "rotate", "reverse"]},
        "train": {"steps": 4, "batch": 4, "lr": 3e-3, "validate_every": 2, "log_every": 1, "images": 1, **train},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder / "config.yaml"


def losses(run: Path) -> list[tuple[Any, ...]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["kind"], line.get("loss"), line.get("mse"), line.get("ssim")) for line in lines]


@pytest.mark.parametrize(
    ("source", "train", "more"),
    [
        ("arrays", {"graph": "off"}, ()),
        ("radar", {"graph": "on", "loss": {"kind": "balanced"}}, ("--set", "eval.thresholds=[20,30]")),
    ],
)
def test_a_training_on_uint16_is_that_on_uint8(
    tmp_path: Path, stores: dict[str, Path], source: str, train: dict[str, Any], more: tuple[str, ...]
) -> None:
    runs = {}
    for dtype in ("uint8", "uint16"):
        config = config_of(tmp_path / dtype, stores[f"{source}-{dtype}"], **train)
        runs[dtype] = tmp_path / dtype / "run"
        workers = f"data.num_workers={int(dtype == 'uint16')}"  # frames through shared memory
        done = call("--config", config, "--out", runs[dtype], "--set", workers, *more)
        assert done.returncode == 0, done.stderr[-3000:]
    assert len(logged(runs["uint8"])) == 4
    assert losses(runs["uint16"]) == losses(runs["uint8"])
    for name, weight in weights_of(runs["uint8"], 4).items():
        assert torch.equal(weights_of(runs["uint16"], 4)[name], weight), name
    scores = []
    for run, store in (("uint8", "uint8"), ("uint16", "uint16"), ("uint8", "uint16"), ("uint16", "uint8")):
        command = ["--run", str(runs[run]), "--store", str(stores[f"{source}-{store}"]), "--which", "last"]
        assert evaluate_run(command) == 0
        (file,) = (
            path for path in (runs[run] / "eval").glob("*-last.json") if ("+store" in path.name) == (run != store)
        )
        scores.append(json.loads(file.read_text())["overall"])
    assert scores == [scores[0]] * 4  # also of a run on the one, scored on the other


def test_batches_and_augmentation_of_uint16(stores: dict[str, Path]) -> None:
    both = []
    for dtype in ("uint8", "uint16"):
        windows = WindowSet(open_store(stores[f"arrays-{dtype}"]), "train", 8)
        batches = read_batches(windows, 3, Share(4, 4, 0, 1), 0, kinds=("flip", "rotate", "reverse"))
        both.append([batch.frames for batch in islice(batches, 3)])
    for coarse, fine in zip(*both, strict=True):
        assert fine.dtype == torch.uint16
        assert torch.equal(fine.int(), coarse.int() * 257)
    codes = np.arange(2 * 5 * 5, dtype=np.uint16).reshape(2, 1, 5, 5) * 1000
    turned = augment(codes, ("flip", "rotate"), 0, 3)
    assert turned.dtype == np.uint16 and sorted(turned.ravel()) == sorted(codes.ravel())


def test_the_memory_of_readers_counts_two_bytes(stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert FrameSpec(3, 10, 7, "uint16").bytes == 2 * FrameSpec(3, 10, 7).bytes == 420
    config = load_config(config_of(stores["arrays-uint8"].parent, stores["arrays-uint8"]), ["data.num_workers=1"])
    spec = FrameSpec(1, 4096, 4096)
    monkeypatch.setattr("toolkit.train.size.host_memory", lambda: int(240e6 + 1.5 * 2 * 4 * 8 * spec.bytes))
    check_readers(config, spec, 1)
    with pytest.raises(ValueError, match="reader processes"):
        check_readers(config, replace(spec, dtype="uint16"), 1)


# Scores


def dbz_windows() -> tuple[ListedWindows, ListedWindows]:
    coarse = noise_windows(7, size=24, scale=DBZ, modes=("a",))
    coarse.frames[:, :, :, :2, :3] = 255
    return coarse, ListedWindows(finer(coarse.frames), FINE_DBZ, ("a",))


@pytest.mark.parametrize("protocol", ["paper", "openstl"])
def test_scores_are_those_of_uint8(protocol: str) -> None:
    chosen = {"protocol": replace(load_protocol(protocol), fss_windows=(5,)), "thresholds": (10.0, 30.1, 45.0)}
    one, two = (evaluate(Blur(), windows, diagrams=True, **chosen) for windows in dbz_windows())
    assert two.compute() == one.compute()
    assert one.diagrams is not None and two.diagrams is not None
    assert two.diagrams.compute() == one.diagrams.compute()
    for columns in (one.arrays(), two.arrays()):
        assert columns["missing_pixels"].sum() == 7 * 2 * 6


def test_scores_of_an_ensemble_are_those_of_uint8() -> None:
    options = {"ensemble": Ensemble(4, "best"), "thresholds": (30.0,)}
    one, two = (evaluate(Dice(), windows, **options).compute() for windows in dbz_windows())
    assert two.overall["crps"] == one.overall["crps"]
    assert two.overall["psnr"] == one.overall["psnr"]


def test_thresholds_at_every_code() -> None:
    scale = Scale("temperature", "K", 180.0, 0.01, 65534, 65535)
    codes = torch.from_numpy(np.arange(65535, dtype=np.uint16)).view(1, 1, 1, 257, 255)
    chosen = (1, 2, 777, 40000, 65534)
    thresholds = tuple(round(180 + 0.01 * code, 2) for code in chosen)
    assert threshold_codes(thresholds, scale) == list(chosen)
    scores = score_batch(to_unit(codes, scale), codes, scale, load_protocol("paper"), thresholds)
    for threshold, code in zip(thresholds, chosen, strict=True):  # a repeated observation has its events
        assert scores[f"hits@{threshold:g}"].item() == 65535 - code
        assert scores[f"misses@{threshold:g}"].item() == scores[f"false_alarms@{threshold:g}"].item() == 0
    below = threshold_level(thresholds[2] - 1e-4, 777, scale)
    assert 776 / 65534 < below < threshold_level(thresholds[2], 777, scale)


def test_a_step_of_one_code_is_an_error_of_1_65534th() -> None:
    codes = torch.from_numpy(np.full((1, 1, 1, 8, 8), 30000, dtype=np.uint16))
    scores = score_batch(to_unit(codes, KELVIN) + 1 / 65534, codes, KELVIN, load_protocol("openstl"), ())
    assert scores["exact_frames"].item() == 0
    assert scores["mae"].item() == pytest.approx(64 / 65534, rel=1e-2)


def test_kept_frames_are_uint16() -> None:
    _, fine = dbz_windows()
    chosen = {"context": 2, "horizon": 2, "protocol": load_protocol("paper"), "batch": 3, "device": "cpu"}
    kept = sample_frames(Blur(), fine, evaluate(Blur(), fine), show=1, **chosen)
    assert kept["truth"].dtype == kept["prediction"].dtype == np.uint16
    assert kept["prediction"].max() > 255


def test_weights_of_a_balanced_loss_change_at_the_same_rates() -> None:
    loss = LossConfig(kind="balanced")
    coarse, fine = rain_levels(loss, DBZ), rain_levels(loss, FINE_DBZ)
    assert np.allclose(coarse, fine, atol=0.5 / 254)
    values = np.arange(0, 63.5, 0.25)
    for one, two in zip(coarse, fine, strict=True):  # the same quarters are above
        assert np.array_equal(values / 63.5 >= one, values / 63.5 >= two)


# Forecasts


def test_a_forecast_from_uint16(tmp_path: Path, stores: dict[str, Path]) -> None:
    xarray = pytest.importorskip("xarray")
    archive, made, verified = stores["radar-uint8"].parent / "radar", {}, {}
    for dtype in ("uint8", "uint16"):
        data = {"store": str(stores[f"radar-{dtype}"]), "context": 4, "horizon": 3}
        tree = {"name": "two", "model": small("convlstm"), "data": data, "eval": {"thresholds": [30]}}
        run = write_run(tmp_path / f"run-{dtype}", tree, 5).path
        for name, given in (("archive", archive), ("store", stores[f"radar-{dtype}"])):
            out = tmp_path / f"{dtype}-{name}.nc"
            command = ["--run", str(run), "--input", str(given), "--out", str(out), "--probability", "20"]
            command += ["--at", "2016-07-11T23:30", "--verify", "--picture", str(out.with_suffix(".png"))]
            assert predict_command(command) == 0
            verified[dtype, name] = json.loads(out.with_suffix(".verify.json").read_text())
            with xarray.open_dataset(out) as data:
                made[dtype, name] = data.load()
    for name in ("archive", "store"):
        xarray.testing.assert_equal(made["uint16", name], made["uint8", name])
        assert verified["uint16", name] == verified["uint8", name]
    one = load_trained(tmp_path / "run-uint16", "best", torch.device("cpu"))
    assert one.scale == FINE_DBZ and one.frames.dtype == "uint16" and one.archive["dtype"] == "uint16"
    # Its context is coded as in training; an archive or store of uint8 is recoded.
    assert open_archive(archive, one.archive).description.frames.dtype == "uint16"
    out = tmp_path / "mixed.nc"
    command = ["--run", str(tmp_path / "run-uint16"), "--input", str(stores["radar-uint8"]), "--out", str(out)]
    assert predict_command([*command, "--probability", "20", "--at", "2016-07-11T23:30"]) == 0
    with xarray.open_dataset(out) as data:
        xarray.testing.assert_equal(data.load(), made["uint8", "store"])


def test_codes_of_another_type_are_recoded() -> None:
    codes = np.arange(256, dtype=np.uint8)
    fine, seen = recoded(codes, DBZ, FINE_DBZ)
    assert fine.dtype == np.uint16 and np.array_equal(fine, finer(codes)) and seen.sum() == 255
    back, seen = recoded(fine, FINE_DBZ, DBZ)
    assert back.dtype == np.uint8 and np.array_equal(back, codes) and seen.sum() == 255
    all_codes = np.arange(65536, dtype=np.uint16)
    narrow, _ = recoded(all_codes[:65533], FINE_DBZ, DBZ)
    assert np.abs(narrow - all_codes[:65533] / 258).max() <= 0.5


# Pictures


def test_pictures_are_those_of_uint8() -> None:
    codes = np.random.default_rng(0).integers(0, 256, (6, 1, 24, 20), dtype=np.uint8)
    for scale, fine, of in ((DBZ, FINE_DBZ, finer), (GREY, FINE_GREY, lambda c: c.astype(np.uint16) * 257)):
        wide = of(codes)
        for one, two in zip(codes, wide, strict=True):
            assert np.array_equal(coloured(two, fine).convert("RGB"), coloured(one, scale).convert("RGB"))
        assert png_uri(wide[0], fine).startswith("data:image/png")
        assert difference_uri(wide[0], wide[1], fine) == difference_uri(codes[0], codes[1], scale)
        one, two = (draw_forecast(c, c[3:], s, 300.0) for c, s in ((codes, scale), (wide, fine)))
        key = 48  # rows at the bottom, in which codes are spread over the same pixels
        assert np.array_equal(one[:-key], two[:-key])
    colours = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    assert np.array_equal(coloured(colours.astype(np.uint16) * 257, FINE_GREY), coloured(colours, GREY))

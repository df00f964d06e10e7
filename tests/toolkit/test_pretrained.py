"""The weights of configs/pretrained, which `make demo` fine-tunes: they load, and forecast digits they never saw."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import toolkit
from launch.sweeps.spec import plan_sweep
from shards.cli import main as shards_main
from tests.support.process import ROOT
from toolkit.checkpoint.source import check_source

PRETRAINED = sorted((ROOT / "configs" / "pretrained").iterdir())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of 16 test sequences like the demo's, of another seed."""
    store = tmp_path_factory.mktemp("stores") / "digits"
    sizes = "--modes 1 --size 24 --digit-size 15 --length 15 --train 1 --val 0 --test 16 --seed 3"
    assert shards_main(["convert", "moving-mnist", str(store), *sizes.split()]) == 0
    return store


@pytest.fixture(scope="module")
def frames(store: Path) -> torch.Tensor:
    """Return its frames, [16, 15, 1, 24, 24]."""
    opened = toolkit.open_store(store)
    scale = opened.manifest.scale
    return torch.stack([torch.from_numpy(scale.normalise(opened.read("test", index, 0, 15))) for index in range(16)])


@pytest.mark.parametrize("folder", PRETRAINED, ids=lambda folder: folder.name)
def test_forecasts_have_a_third_of_the_error_of_persistence(folder: Path, frames: torch.Tensor) -> None:
    model = toolkit.load(folder)
    observed = frames[:, 5:]
    with torch.no_grad():
        forecast = model.predict(frames[:, :5], horizon=10)[0]
    error, persistence = ((made - observed).square().mean() for made in (forecast, frames[:, 4:5]))
    assert error < persistence / 3


def test_the_demo_starts_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sources = [planned.config.train.init_from for planned in plan_sweep("configs/sweeps/pretrained.yaml").runs]
    assert sorted(Path(source.path or "").name for source in sources) == [folder.name for folder in PRETRAINED]
    for source in sources:
        check_source(source)


def test_a_picture_beside_the_observation(store: Path, tmp_path: Path) -> None:
    script, out = ROOT / "docs" / "examples" / "compare.py", tmp_path / "digits.png"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), str(store), *map(str, PRETRAINED), "--out", str(out)])
        runpy.run_path(str(script), run_name="__main__")
    with Image.open(out) as picture:
        assert picture.width > 400
        assert picture.height > 400

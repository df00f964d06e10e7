"""The weights of configs/pretrained, which `make demo` fine-tunes: they load, and forecast digits they never saw."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import toolkit
from launch.sweeps.spec import plan_sweep
from shards.cli import main as shards_main
from tests.support.process import ROOT
from toolkit.checkpoint.source import check_source

PRETRAINED = sorted((ROOT / "configs" / "pretrained").iterdir())


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """Return test sequences like the demo's, of another seed: [16, 15, 1, 24, 24]."""
    store = tmp_path_factory.mktemp("stores") / "digits"
    sizes = "--modes 1 --size 24 --digit-size 15 --length 15 --train 1 --val 0 --test 16 --seed 3"
    assert shards_main(["convert", "moving-mnist", str(store), *sizes.split()]) == 0
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

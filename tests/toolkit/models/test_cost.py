"""MACs against published numbers, and the list of models."""

from __future__ import annotations

import pytest

from launch import train
from shards.manifest import FrameSpec
from toolkit.config import RunConfig, make_config
from toolkit.models.cost import count_macs
from toolkit.models.registry import MODELS


def macs(config: RunConfig, shape: FrameSpec) -> int:
    return count_macs(config.model, shape, config.data.context, config.data.horizon)


@pytest.mark.parametrize(
    ("options", "giga"),
    [
        ({"name": "predrnn", "hidden": 128, "kernel": 5}, 115.95),
        ({"name": "convlstm", "hidden": 128, "kernel": 5}, 56.79),  # live parts of OpenSTL's
        ({"name": "modernn_released"}, 13.6),  # 12.3 of convolutions, 1.3 of attention
    ],
)
def test_macs_equal_published_numbers(options: dict, giga: float) -> None:
    config = make_config({"model": options}, "test")  # 10 + 10 frames: 19 steps
    assert macs(config, FrameSpec(1, 64, 64)) == pytest.approx(giga * 1e9, rel=0.01)


def test_attention_grows_with_the_square_of_the_area() -> None:
    config = make_config({"model": {"name": "modernn_released"}}, "test")
    assert macs(config, FrameSpec(1, 128, 128)) == pytest.approx(69.7e9, rel=0.01)
    longer = make_config({"model": {"name": "modernn_released"}, "data": {"horizon": 20}}, "test")
    assert macs(longer, FrameSpec(1, 128, 128)) == pytest.approx(106.4e9, rel=0.01)


def test_list_models(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--list-models"])
    assert train.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "parameters", "GMACs/sequence", "paper"]
    rows = {line.split()[0]: line for line in lines[1:] if line}
    assert set(MODELS) <= set(rows)
    assert "18,448,384" in rows["mim"] and "13.63" in rows["modernn_released"] and "CVPR 2019" in rows["mim"]

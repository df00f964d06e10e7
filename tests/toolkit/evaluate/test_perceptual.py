"""LPIPS against the lpips package, the published example pairs, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.scoring import random_trunk
from toolkit.errors import ConfigError
from toolkit.evaluate.perceptual import CONVOLUTIONS, LPIPS, VARIABLE, _heads, load_lpips

DATA = Path(__file__).parents[4] / "shared" / "data" / "lpips"


@pytest.fixture(scope="module")
def package():
    """lpips.LPIPS. Torchvision's operators may be missing in a build of torch without CUDA: nothing here calls them."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import lpips

    yield lpips
    del library


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained'", "ignore:Arguments other than a weight enum")
def test_values_are_the_packages(package) -> None:
    trunk = random_trunk()
    theirs = package.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    names = {f"{index}.{part}" for index, *_ in CONVOLUTIONS for part in ("weight", "bias")}
    slices = {key.partition(".")[2]: key for key in theirs.net.state_dict() if key.partition(".")[2] in names}
    theirs.net.load_state_dict({key: trunk[f"features.{name}"] for name, key in slices.items()}, strict=False)
    assert len(slices) == 10
    ours = LPIPS(trunk, _heads())
    for size in ((64, 64), (40, 57), (128, 128)):
        first, second = torch.rand(2, 3, 3, *size) * 2 - 1
        expected = theirs(first, second).flatten()
        assert torch.allclose(ours(first, second), expected, rtol=1e-6, atol=0)
        grey = ours(first[:, :1], second[:, :1])
        assert torch.allclose(
            grey, theirs(first[:, :1].expand(-1, 3, -1, -1), second[:, :1].expand(-1, 3, -1, -1)).flatten(), rtol=1e-6
        )
    assert torch.equal(ours(first, first), torch.zeros(3))
    black, dot = torch.full((1, 3, 64, 64), -1.0), torch.full((1, 3, 64, 64), -1.0)
    dot[..., 20, 30] = 1.0
    for pair in ((black, -black), (black, 0.3 * black), (black, dot), (dot, -black)):
        assert torch.allclose(ours(*pair), theirs(*pair).flatten(), rtol=1e-5, atol=0)
        assert ours(*pair).isfinite().all()
    assert ours(black, black).item() == theirs(black, black).item() == 0.0


@pytest.mark.skipif(not DATA.exists(), reason="the example pairs and trunk weights are not here")
def test_the_published_example_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(DATA / "alexnet_features_torchvision.npz"))
    expected = json.loads((DATA / "expected.json").read_text())
    frames = {
        name: torch.from_numpy(np.asarray(Image.open(DATA / f"ex_{name}.png")).copy()).permute(2, 0, 1)[None] / 127.5
        - 1
        for name in ("ref", "p0", "p1")
    }
    model = load_lpips()
    for name in ("p0", "p1"):
        assert float(model(frames["ref"], frames[name])) == pytest.approx(expected[f"ex_ref_vs_ex_{name}"], abs=1e-6)


def test_missing_weights_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere.pth"))
    with pytest.raises(ConfigError, match=r"MODERNN_ALEXNET=.*nowhere\.pth: no such file"):
        load_lpips()
    (tmp_path / "other.pth").write_bytes(b"no weights")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "other.pth"))
    with pytest.raises(ConfigError, match=r"no ImageNet weights of AlexNet: .*other\.pth(.|\n)*name the file"):
        load_lpips()
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", None)  # nothing is fetched unasked
    with pytest.raises(
        ConfigError, match=rf"curl --create-dirs -o {tmp_path}/hub/checkpoints/alexnet\S+\.pth https://"
    ):
        load_lpips()
    torch.save({"classifier.1.weight": torch.zeros(1)}, tmp_path / "half.pth")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "half.pth"))
    with pytest.raises(ConfigError, match=r"features\.0\.weight is missing"):
        load_lpips()


def test_frames_that_alexnet_cannot_take() -> None:
    model = LPIPS(random_trunk(), _heads())
    assert model(torch.rand(1, 1, 31, 31), torch.rand(1, 1, 31, 31)).isfinite().all()
    with pytest.raises(ConfigError, match=r"at least 31x31 pixels, these have 1 and 16x40"):
        model(torch.rand(1, 1, 16, 40), torch.rand(1, 1, 16, 40))
    with pytest.raises(ConfigError, match="these have 2 and 64x64"):
        model(torch.rand(1, 2, 64, 64), torch.rand(1, 2, 64, 64))

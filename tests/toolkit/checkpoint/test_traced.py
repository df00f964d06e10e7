"""Exports as one graph: equal to the model in PyTorch and in onnxruntime, refused by name, served over HTTP."""

from __future__ import annotations

import importlib.util
import io
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import toolkit
from launch.export import main
from shards.manifest import FrameSpec
from tests.support.models import NEEDING_PYSTEPS, config_of
from tests.support.process import ROOT
from tests.support.runs import write_run
from toolkit.checkpoint.traced import CLOSE, GraphShape, write_graph
from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.base import StepSequence, build_model
from toolkit.models.registry import MODELS

SHAPE = GraphShape(FrameSpec(1, 16, 16), 3, 2)
NO_ONNX = {"rim", "svg_lp"}  # docs/export.md
FIXED = {"optical_flow"}
ORDINARY = [name for name in MODELS if name not in (*NO_ONNX, *FIXED, *NEEDING_PYSTEPS)]
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's tracers, in plenty


def write(name: str, kind: str, folder: Path, shape: GraphShape = SHAPE) -> float:
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = build_model(config_of(name).model, shape.frames).eval()
    return write_graph(model, name, kind, folder / f"model.{kind}", shape)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ORDINARY)
def test_every_model_with_a_graph_in_onnx_at_any_batch(name: str, tmp_path: Path) -> None:
    assert write(name, "onnx", tmp_path) <= CLOSE  # compared at batches of 1 and 3


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(NO_ONNX))
def test_models_that_onnx_lacks_an_operator_for(name: str, tmp_path: Path) -> None:
    assert write(name, "pt2", tmp_path) <= CLOSE
    with pytest.raises(
        ConfigError, match=rf"{name}: can't be written as onnx .*--format safetensors takes every model"
    ):
        write(name, "onnx", tmp_path)
    assert not (tmp_path / "model.onnx").exists()


def test_a_model_with_a_fixed_batch_alone_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optical_flow: can't be written as pt2 \(.*a fixed batch may do: --batch 1"):
        write("optical_flow", "pt2", tmp_path)


def test_a_graph_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.checkpoint.traced.CLOSE", -1.0)
    with pytest.raises(CheckpointError, match=r"persistence: its pt2 graph differs from the model by up to 0:"):
        write("persistence", "pt2", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run(tiny_store: Path, tmp_path: Path) -> Path:
    tree = {
        "model": {"name": "convlstm", "layers": 1, "hidden": 4, "kernel": 3},
        "data": {"store": str(tiny_store), "context": 3, "horizon": 2},
    }
    return write_run(tmp_path / "run", tree, 3).path


@pytest.mark.timeout(600)
def test_export_adds_a_graph_that_onnxruntime_runs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = tmp_path / "model"
    words = [str(run), "--out", str(folder), "--format", "onnx", "--horizon", "3"]
    assert main(words) == 0
    assert "frames [B, 3, 1, 16, 16] -> forecast [B, 3, 1, 16, 16]; differs" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ("README.md", "config.json", "model.onnx", "model.safetensors")
    )
    frames = torch.rand(5, 3, 1, 16, 16)
    (made,) = onnxruntime.InferenceSession(folder / "model.onnx").run(None, {"frames": frames.numpy()})
    assert np.abs(made - toolkit.load(folder).predict(frames, 3)[0].numpy()).max() < CLOSE
    with pytest.raises(ConfigError, match=r"model.onnx: exists already: delete it"):
        main(words)
    with pytest.raises(ConfigError, match="--horizon is fixed in a graph"):
        main([str(run), "--out", str(folder), "--horizon", "3"])


@pytest.fixture
def served(run: Path, tmp_path: Path) -> Iterator[tuple[str, StepSequence]]:
    """The example server on a free port, and the model that it serves."""
    assert main([str(run), "--out", str(tmp_path / "model")]) == 0
    spec = importlib.util.spec_from_file_location("serve", ROOT / "docs" / "examples" / "serve.py")
    assert spec is not None and spec.loader is not None
    serve = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serve)
    server = serve.make_server(serve.Forecaster(tmp_path / "model"), 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    assert server.server_address[0] == "127.0.0.1"
    yield f"http://127.0.0.1:{server.server_address[1]}", toolkit.load(tmp_path / "model")  # type: ignore[misc]
    server.shutdown()
    thread.join()
    server.server_close()


def post(address: str, frames: np.ndarray, query: str = "") -> np.ndarray:
    body = io.BytesIO()
    np.save(body, frames)
    request = urllib.request.Request(f"{address}/forecast{query}", body.getvalue())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return np.load(io.BytesIO(answer.read()))


def test_the_example_serves_forecasts(served: tuple[str, StepSequence]) -> None:
    address, model = served
    with urllib.request.urlopen(address, timeout=60) as answer:
        facts = json.loads(answer.read())
    assert (facts["model"], facts["context"], facts["horizon"]) == ("convlstm", 3, 2)
    codes = np.random.default_rng(0).integers(0, 256, (3, 1, 16, 16), np.uint8)
    fractions = (codes / np.float32(facts["scale"]["max_code"])).astype(np.float32)
    expected: Tensor = model.predict(torch.from_numpy(fractions)[None], 4)[0, 0]
    assert np.array_equal(post(address, codes, "?horizon=4"), expected.numpy())
    assert np.array_equal(post(address, fractions), expected[:2].numpy())
    wrong = (codes[:, 0], codes.repeat(3, 1), codes[:0], codes[..., :0], np.array([{}]), np.array(["a"]))
    cases = [(frames, "") for frames in wrong] + [(codes, "?horizon=0"), (codes, "?horizon=x")]
    for frames, query in cases:
        with pytest.raises(urllib.error.HTTPError) as raised:
            post(address, frames, query)
        assert raised.value.code == 400 and raised.value.read()
    archive = io.BytesIO()
    np.savez(archive, codes)
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(urllib.request.Request(f"{address}/forecast", archive.getvalue()), timeout=60)
    assert raised.value.code == 400 and b"send one array as .npy" in raised.value.read()

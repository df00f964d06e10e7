"""launch/analyse.py on a real run directory: what the file says is what the model did."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from launch import evaluate
from launch.analyse import main
from shards import open_store
from tests.support.runs import write_run
from toolkit.analysis.job import checkpoints_of
from toolkit.checkpoint.weights import load_model
from toolkit.data.windows import WindowSet, to_unit
from toolkit.errors import ConfigError
from toolkit.models.capture import capture
from toolkit.rundir import RunDir

ROOT = Path(__file__).parents[3]


@pytest.fixture
def make_run(tiny_store: Path, tmp_path: Path) -> Callable[..., RunDir]:
    """A run with one checkpoint, of step 7."""

    def make(**model: object) -> RunDir:
        data = {"store": str(tiny_store), "context": 3, "horizon": 2}
        return write_run(tmp_path / "run", {"model": model, "data": data, "eval": {"batch": 2}}, 7)

    return make


def test_features_are_what_the_model_remembers(
    make_run: Callable[..., RunDir], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    run = make_run(name="modernn", layers=2, hidden=4, slots=2)
    assert main(["--run", str(run.path), "--which", "last"]) == 0
    path = run.analysis / "features-test-last.npz"
    assert capsys.readouterr().out.split() == [str(path)]
    with np.load(path) as file:
        found = dict(file)
    windows = WindowSet(open_store(run.config().data.store), "test", 5)
    assert found["memory_1"].shape == (2, len(windows), 4, 4)
    assert found["slots_1"].shape == (2, len(windows), 4, 2, 4)
    assert found["weights_1"].shape == (2, len(windows), 2, 2, 4, 8)
    assert found["weights_steps"].tolist() == [2, 3]
    assert found["own_input"].tolist() == [[False] * 4, [False, False, False, True]]
    assert found["key"].tolist() == [windows[i].key for i in range(len(windows))]
    assert set(found["mode"].tolist()) == {windows[i].mode for i in range(len(windows))}
    about = json.loads(str(found["about"]))
    assert (about["step"], about["model"], about["split"]) == (7, "modernn", "test")
    truth, prediction = found["memory_0"]
    assert np.array_equal(truth[:, :3], prediction[:, :3])
    assert not np.array_equal(truth[:, 3], prediction[:, 3])
    model, _ = load_model(run, "last", torch.device("cpu"))
    frames = to_unit(torch.from_numpy(windows[1].frames[None, :3]), windows.scale)
    with capture(model.eval()) as seen:
        model.predict(frames, 2)
    for step in range(4):
        assert np.allclose(prediction[1, step], seen.memory[0][step].mean((2, 3))[0], atol=1e-6)
    assert np.allclose(found["weights_1"][1, 1, 1], seen.weights[1][3][0], atol=1e-6)


def test_a_limit_is_spread_over_the_split(make_run: Callable[..., RunDir]) -> None:
    run = make_run(name="predrnn", layers=2, hidden=4, kernel=3)
    main(["--run", str(run.path), "--which", "last", "--limit", "3"])
    with np.load(run.analysis / "features-test-last.npz") as file:
        assert file["index"].tolist() == [0, 2, 4]
        assert file["memory_1"].shape == (2, 3, 4, 4)
        assert not [name for name in file if name.startswith(("slots", "weights_0"))]


def test_checkpoints_by_step(make_run: Callable[..., RunDir], tiny_store: Path, tmp_path: Path) -> None:
    """`all` is every step on disk, oldest first, each with its own weights; a step without a checkpoint is refused."""
    data = {"store": str(tiny_store), "context": 3, "horizon": 2}
    run = write_run(
        tmp_path / "three", {"model": {"name": "convlstm", "layers": 1, "hidden": 4}, "data": data}, 9, 10, 80
    )
    assert checkpoints_of(run, ["best", "10", "all", "best"]) == ("best", "10", "9", "80")
    assert main(["--run", str(run.path), "--which", "all"]) == 0
    found = {step: np.load(run.analysis / f"features-test-{step}.npz") for step in (9, 10, 80)}
    assert [json.loads(str(file["about"]))["step"] for file in found.values()] == [9, 10, 80]
    assert not np.array_equal(found[9]["memory_0"], found[80]["memory_0"])
    with pytest.raises(ConfigError, match=r"--which 9,11: choose of best, last, all and the steps of .* \(9, 10, 80\)"):
        main(["--run", str(run.path), "--which", "9,11"])
    untrained = make_run(name="convlstm", layers=1, hidden=4)
    shutil.rmtree(untrained.checkpoints)
    with pytest.raises(ConfigError, match="none yet"):
        checkpoints_of(untrained, ["all"])


def test_a_model_without_steps_is_refused(make_run: Callable[..., RunDir]) -> None:
    run = make_run(name="simvp", frames=2, spatial_hidden=4, hidden=8, layers=2)
    with pytest.raises(ConfigError, match="SimVP has no memory from step to step"):
        main(["--run", str(run.path), "--which", "last"])


def test_an_evaluation_analyses_when_the_config_says_so(
    make_run: Callable[..., RunDir], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(name="convlstm", layers=1, hidden=4, kernel=3)
    run.config_file.write_text(run.config_file.read_text().replace("analyse: 0", "analyse: 5"))
    assert evaluate.main(["--run", str(run.path)]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == str(run.analysis / "features-test-best.npz")
    assert "WARNING no diagnosis of mode collapse" in told.err and "{'1-digit': 3, '2-digit': 2}" in told.err


def test_models_without_a_memory_are_only_mentioned(
    make_run: Callable[..., RunDir], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(name="simvp", frames=3, spatial_hidden=4, hidden=8, layers=2, mlp_ratio=2)
    run.config_file.write_text(run.config_file.read_text().replace("analyse: 0", "analyse: 5"))
    assert evaluate.main(["--run", str(run.path)]) == 0
    assert "simvp has no recurrent state" in capsys.readouterr().err
    assert not run.analysis.exists()

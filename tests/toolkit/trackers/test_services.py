"""Weights & Biases and MLflow themselves, without a network: offline files and a local store, read back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.process import ROOT, one_thread
from tests.support.results import BARE
from tests.support.training import SCRIPT
from tests.support.wandb_files import read_runs
from toolkit.rundir import RunDir
from toolkit.trackers import background, log_scores

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own use of SQLAlchemy
STEPS = 40
SECRETS = {"WANDB_API_KEY": "5ec4e7" * 7, "MLFLOW_TRACKING_TOKEN": "t0p5ec4e7", "MLFLOW_TRACKING_PASSWORD": "hun7er22"}
Steps = Callable[[Path, str], list[int]]


def wandb_steps(run: Path, name: str) -> list[int]:
    return [row["step"] for row in read_runs(run)["rows"] if name in row]


def mlflow_steps(run: Path, name: str) -> list[int]:
    client, record = mlflow_client(run)
    return [metric.step for metric in client.get_metric_history(record["id"], name)]


def mlflow_client(run: Path) -> tuple[Any, dict[str, Any]]:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{run.parent}/mlflow.db"), json.loads((run / "mlflow.json").read_text())


SERVICES: dict[str, Steps] = {"wandb": wandb_steps, "mlflow": mlflow_steps}


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left unsent on a busy machine, and wandb reads its environment again."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()
    monkeypatch.setitem(background.CLOSE_S, "finished", 200.0)


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    needed = [request.param, *(["sqlalchemy", "alembic"] if request.param == "mlflow" else [])]
    for package in needed:
        pytest.importorskip(
            package, reason=f"the extra {request.param} is not installed: pip install '.[{request.param}]'"
        )
    for name in ("WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return str(request.param)


def start(tiny_config: Path, run: Path, service: str) -> subprocess.Popen[str]:
    settings = [
        f"train.trackers=[{service}]",
        f"train.steps={STEPS}",
        "train.validate_every=20",
        "train.checkpoint.every=10",
    ]
    options = [part for setting in settings for part in ("--set", setting)]
    command = [*SCRIPT, "--config", str(tiny_config), *options, "--out", str(run)]
    return subprocess.Popen(command, cwd=ROOT, env=one_thread(), stderr=subprocess.PIPE, text=True)


@pytest.mark.timeout(600)
def test_a_killed_training_continues_its_run_and_logs_no_step_twice(
    service: str, tiny_config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "sweep" / "run"
    process = start(tiny_config, run, service)
    assert process.stderr is not None
    for line in process.stderr:
        if f" 27/{STEPS} " in line:
            process.send_signal(signal.SIGKILL)
            break
    process.stderr.close()
    assert process.wait(60) == -signal.SIGKILL
    first = json.loads((run / f"{service}.json").read_text()) if (run / f"{service}.json").exists() else {}
    process = start(tiny_config, run, service)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert "resuming from step 20" in errors
    log_scores(RunDir(run))  # what a busy machine didn't send within 20 s
    record = json.loads((run / f"{service}.json").read_text())
    assert first.get("id", record["id"]) == record["id"]
    assert SERVICES[service](run, "train/loss") == list(range(1, STEPS + 1))
    assert SERVICES[service](run, "val/mse") == [20, 40]
    for path in run.parent.rglob("*"):
        if path.is_file():
            found = [name for name, value in SECRETS.items() if value.encode() in path.read_bytes()]
            assert not found, path


def scored_run(tiny_config: Path, tmp_path: Path, service: str) -> RunDir:
    """A run that trained, and its scores."""
    from toolkit.config import load_config
    from toolkit.train.record import Recorder

    run = RunDir.create(tmp_path / "sweep" / "run", load_config(tiny_config, [f"train.trackers=[{service}]"]))
    recorder = Recorder(run, 0, 6, 4)
    for step in range(1, 7):
        recorder.train(step, {"loss": 1.0 / step, "grad_norm": float("nan")}, "0f")
        if step == 3:
            recorder.validation(3, {"mse": 0.25}, is_best=True)
    recorder.trained(6, {"step": 3, "score": 0.25})
    recorder.close()
    run.mark_done()
    run.eval.mkdir()
    found = {**BARE, "overall": {"mse": 2.0, "csi@30/4": 0.5}}
    leads = {"mse": [1.0, 3.0], "csi@30/4": [0.5, None]}
    (run.eval / "test+limit=5-best.json").write_text(json.dumps({**found, "leads": leads}))
    log_scores(run)
    log_scores(run)  # once is enough
    return run


def test_wandb_without_a_key_asks_nobody_and_is_left_out(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed: pip install '.[wandb]'")
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    scored_run(tiny_config, tmp_path, "wandb")
    assert "wandb: ConfigError: no API key: run `wandb login`" in caplog.text
    assert "7 records of metrics.jsonl not sent" in caplog.text


def test_wandb_has_config_summary_and_curves_over_lead_time(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed: pip install '.[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = scored_run(tiny_config, tmp_path, "wandb")
    found = read_runs(run.path)
    assert len(set(found["ids"])) == 1
    assert found["config"]["model"]["hidden"] == 8
    assert found["summary"]["final/best_mse"] == 0.25
    name = "test+limit=5-best"
    assert found["summary"][f"{name}/score/csi@30/4"] == 0.5
    leads = [row for row in found["rows"] if f"{name}/lead_minutes" in row]
    assert [(row[f"{name}/lead_minutes"], row[f"{name}/mse"]) for row in leads] == [(5, 1.0), (10, 3.0)]
    assert [row["_step"] for row in found["rows"]] == list(range(9)), "W&B's own count only grows"
    assert found["metrics"][f"{name}/*"] == f"{name}/lead_minutes"


def test_wandb_loses_no_record_of_a_training_that_could_send_none(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation sends the records, then the scores: W&B drops a row whose number is lower than the last one's."""
    pytest.importorskip("wandb", reason="the extra wandb is not installed: pip install '.[wandb]'")
    from toolkit.config import load_config

    monkeypatch.setenv("WANDB_MODE", "offline")
    run = RunDir.create(tmp_path / "sweep" / "run", load_config(tiny_config, ["train.trackers=[wandb]"]))
    lines = [json.dumps({"step": step, "kind": "train", "loss": 1.0 / step}) + "\n" for step in range(1, 7)]
    run.metrics_file.write_text("".join(lines))
    run.mark_done()
    run.eval.mkdir()
    for number, name in enumerate(("test-best", "test-last")):
        (run.eval / f"{name}.json").write_text(json.dumps(BARE))
        log_scores(run)  # the second evaluation sends its own scores alone
        rows = read_runs(run.path)["rows"]
        assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
        assert [row[f"{name}/mse"] for row in rows if f"{name}/mse" in row] == [1.0, 3.0]
        assert [row["_step"] for row in rows] == list(range(8 + 2 * number))


def test_mlflow_has_params_final_metrics_and_curves_over_lead_time(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(package, reason="the extra mlflow is not installed: pip install '.[mlflow]'")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    run = scored_run(tiny_config, tmp_path, "mlflow")
    client, record = mlflow_client(run.path)
    found = client.get_run(record["id"])
    assert found.info.status == "FINISHED"
    assert found.data.params["model.hidden"] == "8"
    assert found.data.metrics["final/best_mse"] == 0.25
    assert client.get_experiment(found.info.experiment_id).name == "sweep"
    history = client.get_metric_history(record["id"], "test_limit_5-best/lead_minutes/mse")
    assert [(metric.step, metric.value) for metric in history] == [(5, 1.0), (10, 3.0)]
    assert len(client.get_metric_history(record["id"], "test_limit_5-best/score/csi:30/4")) == 1
    assert [metric.step for metric in client.get_metric_history(record["id"], "train/grad_norm")] == [1, 2, 3, 4, 5, 6]

"""What is refused before the first step, and where: a tracker whose package is missing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from launch import sweep, train
from tests.support.process import ROOT
from toolkit.config import make_config
from toolkit.errors import ConfigError
from toolkit.rundir import RunDir
from toolkit.trackers import check_trackers, open_trackers
from toolkit.trackers.base import _is_installed, without_secrets

find_spec = importlib.util.find_spec


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The packages that are there, of those that trackers need."""
    there: set[str] = set()
    needed = ("wandb", "mlflow", "sqlalchemy", "alembic")

    def found(name: str) -> object:
        if name in needed:
            return SimpleNamespace(origin="somewhere") if name in there else None
        return find_spec(name)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return there


def test_a_missing_package_is_named_with_the_command(installed: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    check_trackers(make_config({}, "t"))
    both = make_config({"train": {"trackers": ["wandb", "mlflow"]}}, "t")
    with pytest.raises(ConfigError, match=r"train\.trackers: wandb .*pip install wandb, or leave wandb out"):
        check_trackers(both)
    installed |= {"wandb", "mlflow"}
    with pytest.raises(ConfigError, match=r"mlflow needs sqlalchemy, alembic, .*pip install sqlalchemy alembic"):
        check_trackers(both)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://server")
    check_trackers(both)


def test_the_dry_runs_of_training_and_sweep_refuse_it(installed: set[str], tiny_config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pip install wandb"):
        train.main(["--config", str(tiny_config), "--set", "train.trackers=wandb", "--dry-run"])
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"name": "s", "base": str(tiny_config), "seeds": [0]}))
    options = ["--runs", str(tmp_path / "runs"), "--cluster", "local", "--set", "train.trackers=[mlflow]"]
    for more in (["--dry-run"], []):
        with pytest.raises(ConfigError, match="pip install mlflow"):
            sweep.main([str(file), *options, *more])
    assert not list(tmp_path.rglob("config.yaml"))


def test_a_folder_of_runs_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B and MLflow leave folders of their own name, which Python takes for packages."""
    (tmp_path / "tracker_of_mine").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert find_spec("tracker_of_mine") is not None
    assert not _is_installed("tracker_of_mine")
    assert _is_installed("yaml")


def test_a_run_that_is_resumed_where_a_package_is_missing_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("wandb", "toolkit.trackers.weights_and_biases"):
        monkeypatch.setitem(sys.modules, name, None)
    run = RunDir.create(tmp_path / "run", make_config({"train": {"trackers": ["wandb"]}}, "t"))
    assert open_trackers(run, 0) == []
    assert "wandb is left out: ModuleNotFoundError" in caplog.text


def test_checking_needs_no_torch() -> None:
    code = "import sys; from toolkit.trackers import check_trackers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_messages_hold_no_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123abcd")
    monkeypatch.setenv("WANDB_MODE", "online")
    text = without_secrets("postgresql://me:pass@host/db refused 0123abcd; the mode is online; me@host")
    assert text == "postgresql://***@host/db refused $WANDB_API_KEY; the mode is online; me@host"

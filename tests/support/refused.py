"""What must be refused before a run directory is made, by each command that would make one."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.sweeps.plan import check_configs, collect_status
from launch.sweeps.spec import plan_sweep
from launch.train import main as train
from toolkit.errors import ConfigError


def is_refused_everywhere(config: Path, message: str) -> None:
    """Check that sweep.py, and train.py with and without --dry-run, refuse a config with a message, a pattern."""
    folder = config.parent
    (folder / "demo.yaml").write_text(f"base: {config.name}\n")
    items = collect_status(plan_sweep(folder / "demo.yaml"), folder / "runs", ())
    with pytest.raises(ConfigError, match=message):
        check_configs(items)
    with pytest.raises(ConfigError, match=message):
        train(["--config", str(config), "--dry-run"])
    with pytest.raises(ConfigError, match=message):
        train(["--config", str(config), "--out", str(folder / "run")])
    assert not (folder / "run").exists()

"""A sweep for tests of the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.report import FAILURE
from tests.support.synthetic import noise_scene, write_run, write_sweep


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three groups: `slots4` whole; `slots1` with a failed seed; `convlstm` with a missing and an unevaluated one."""
    root, scene = tmp_path / "demo", noise_scene(thresholds=(30.0,))
    other = {"name": "convlstm"}
    for seed in (1, 2):
        write_run(root / f"slots4-seed{seed}", "slots4", seed, scene, 1.5)
    write_run(root / "slots1-seed1", "slots1", 1, scene, 1.0, model={"name": "modernn", "slots": 1})
    write_run(root / "slots1-seed2", "slots1", 2, scene, 1.0, ending=FAILURE, model={"name": "modernn", "slots": 1})
    write_run(root / "convlstm-seed1", "convlstm", 1, scene, 0.8, scored=False, model=other)
    plan = [(f"{group}-seed{seed}", group, seed) for group in ("slots4", "slots1", "convlstm") for seed in (1, 2)]
    write_sweep(root, "demo", plan)
    return root

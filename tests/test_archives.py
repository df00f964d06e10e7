"""Every real archive beside the project, from raw files through convert and verify to a few optimizer steps."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.process import ROOT, one_thread

MODEL = ["model.name=convlstm", "model.layers=1", "model.hidden=4", "model.kernel=3"]
SHORT = ["train.steps=3", "train.batch=2", "train.lr=1e-2", "train.log_every=1", "train.images=0"]
ARCHIVES = {
    "mnist": (["moving-mnist", "--digits", "{data}/mnist", "--train", "4", "--val", "1", "--test", "1"], 4),
    "kth": (["auto", "{data}/kth"], 8),
    "meteoswiss": (["auto", "{data}/radar/mch", "--split", "train=.."], 16),
    "bom": (["auto", "{data}/radar/bom", "--split", "train=.."], 16),
    "knmi": (["auto", "{data}/radar/knmi", "--split", "train=.."], 16),
    "sevir": (["auto", "{data}/sevir/sevir_like", "--max-missing", "1", "--split", "train=.."], 16),
}


def shards(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shards", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=one_thread(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.timeout(400)
def test_real_archives_convert_verify_and_train(real_data: Path, tmp_path: Path) -> None:
    jobs = []
    for name, (source, patch) in ARCHIVES.items():
        store = tmp_path / "stores" / name
        shards("convert", *[part.format(data=real_data) for part in source], str(store))
        shards("verify", str(store))
        config = tmp_path / f"{name}.yaml"
        config.write_text("{}")
        settings = [f"data.store={store}", "data.context=5", "data.horizon=5", *MODEL, f"model.patch={patch}", *SHORT]
        splits = json.loads((store / "manifest.json").read_text())["splits"]
        settings.append("data.val_split=" + ("val" if "val" in splits else "none"))
        settings.append("eval.split=" + ("test" if "test" in splits else "train"))  # else refused before training
        jobs.append({"config": str(config), "set": settings, "run": str(tmp_path / "runs" / name)})
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps(jobs))
    command = [sys.executable, str(ROOT / "tests" / "toolkit" / "train" / "ranks.py"), str(file)]
    done = subprocess.run(command, cwd=ROOT, env=one_thread(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    for job in jobs:
        lines = [json.loads(line) for line in (Path(str(job["run"])) / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if line["kind"] == "train"]
        assert len(losses) == 3
        assert all(math.isfinite(loss) for loss in losses)

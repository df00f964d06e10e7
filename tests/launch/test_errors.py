"""Mistakes that everybody makes once: each ends with its code and a message that says what to do, without training."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

from launch.cli.parser import run_script
from tests.support.process import ROOT
from toolkit.config import make_config
from toolkit.rundir import RunDir

DEMO = str(ROOT / "configs" / "demo.yaml")
SWEEP = str(ROOT / "configs" / "sweeps" / "demo.yaml")
# The mistake: what is typed, the exit code, what is said.
MISTAKES = {
    "wrong path": ("train --config confg/demo.yaml", 2, "There is no folder", "did you mean configs/demo.yaml"),
    "wrong name": ("train --config configs/demo.yml", 2, "did you mean configs/demo.yaml"),
    "wrong sweep": ("sweep configs/sweeps/dema.yaml", 2, "did you mean configs/sweeps/demo.yaml"),
    "config as sweep": (f"sweep {DEMO}", 2, "is the config of one run: python launch/train.py --config"),
    "sweep as config": (f"train --config {SWEEP} --dry-run", 2, "This is a sweep file: python launch/sweep.py"),
    "neither": ("train", 2, "give either --config FILE or a run"),
    "unknown model": (f"train --config {DEMO} --set model.name=convltsm", 2, "did you mean convlstm?"),
    "wrong key": (f"train --config {DEMO} --set train.stepz=3", 2, "train.stepz: unknown key; did you mean steps?"),
    "wrong value": (f"train --config {DEMO} --set train.steps=many", 2, "train.steps: ", "got 'many'"),
    "no value": (f"train --config {DEMO} --set train.steps", 2, "write it as section.key=value"),
    "no store of a sweep": (f"sweep {SWEEP}", 2, "needed by 4 runs", "--set data.store=FOLDER"),
    "no run": ("evaluate --run nowhere", 2, "no such run or folder; python launch/status.py FOLDER"),
    "sweep as run": ("evaluate --run runs/demo", 2, "runs in there: one-12345678"),
    "sweep in a run": (
        f"sweep {SWEEP} --runs runs/by-hand",
        2,
        "by-hand/demo: is the directory of a run",
        "--runs DIR",
    ),
    "run in a sweep": (f"train --config {DEMO} --out runs/old", 2, "is the directory of a sweep: choose another --out"),
    "no runs": ("status nowhere", 2, "no such run or folder"),
    "no sweep": ("report nowhere", 2, "no such run or folder"),
    "no run to export": ("export nowhere --out there", 2, "no such run or folder"),
    "no run at all": ("evaluate", 2, "no run is given: name one, as status shows it"),
    "two runs": ("export a --run b --out there", 2, "a run is given twice, as a and as --run b"),
    "unknown size": (f"plan --config {DEMO}", 2, "pass --frames 1x384x384"),
    "wrong size": (f"plan --config {DEMO} --frames 384", 2, "channels x height x width, for example 1x384x384"),
    "uneven ranks": (f"plan --config {DEMO} --frames 1x32x32 --nodes 3", 2, "use 1, 2, 4, 8 ranks"),
    "no Slurm": (f"sweep {SWEEP} --cluster slurm --set data.store=store", 2, "sbatch", "submit from its login node"),
    "no profile": (f"sweep {SWEEP} --cluster slurm --profile gpux", 2, "profiles there:", "Copy one and edit it"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to make mistakes in, with what looks like a store, and a sweep of one run."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "store").mkdir()
    (folder / "store" / "manifest.json").write_text("{}")
    RunDir.create(folder / "runs" / "demo" / "one-12345678", make_config({}, "test"))
    RunDir.create(folder / "runs" / "by-hand" / "demo", make_config({}, "test"))
    (folder / "runs" / "old").mkdir()
    (folder / "runs" / "old" / "sweep.yaml").write_text("name: old\nruns: []\n")
    return folder


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_says_what_to_do(
    mistake: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed, code, *said = MISTAKES[mistake]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", "/nowhere" if mistake == "no Slurm" else os.environ["PATH"])
    command, *words = typed.split()
    module = importlib.import_module(f"launch.{command}")
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: module.main(words))
    error = capsys.readouterr().err
    assert ended.value.code == code, error
    for text in said:
        assert text in error
    assert "Traceback" not in error


def test_a_missing_package_is_named_with_the_python_that_lacks_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wanted", None)
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: importlib.import_module("wanted.part") and 0)
    assert ended.value.code == 2
    assert f"the package wanted is missing in {sys.executable}" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):  # a fault of ours is shown whole
        run_script(lambda: importlib.import_module("launch.nothing") and 0)

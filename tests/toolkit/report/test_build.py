"""The report as a whole: when it is written, what it refuses, what it imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.process import PATIENCE_S, ROOT
from tests.support.synthetic import noise_scene, write_run
from toolkit.errors import ConfigError, ToolkitError
from toolkit.report.build import SOURCES, build_report
from toolkit.report.data.collect import collect
from toolkit.rundir import RunDir


def test_nothing_changed_nothing_done(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = build_report(sweep, None)
    written = page.stat().st_mtime_ns
    build_report(sweep, None)
    assert "up to date" in capsys.readouterr().err.splitlines()[-1]
    assert page.stat().st_mtime_ns == written
    scene = noise_scene(thresholds=(30.0,))
    write_run(sweep / "convlstm-seed2", "convlstm", 2, scene, 0.8, model={"name": "convlstm"})
    build_report(sweep, None)
    assert page.stat().st_mtime_ns > written
    (sweep / "report" / "table.csv").unlink()
    build_report(sweep, None)
    assert (sweep / "report" / "table.csv").exists()


def test_every_file_that_makes_the_page_counts_as_a_change() -> None:
    files = {path.suffix for path in (ROOT / "toolkit" / "report").rglob("*") if path.is_file()}
    assert files - {".pyc"} == set(SOURCES)


def test_a_single_run_and_a_folder_without_a_record(sweep: Path) -> None:
    page = build_report(sweep / "slots4-seed1", None).read_text()
    assert "1 model, 1 seed: 1 of 1 run finished and evaluated" in page
    (sweep / "sweep.yaml").unlink()
    found = collect(sweep)
    assert found.groups == ["convlstm-seed1", "slots1", "slots4"]
    assert [run.seed for run in found.runs] == [1, 1, 2, 1, 2]
    assert [dict(run.settings) for run in found.runs][::2] == [
        {"model.name": "convlstm"},
        {"model.name": "modernn", "model.slots": 1},
        {"model.name": "modernn", "model.slots": "default"},
    ]


def test_runs_made_by_hand_are_named_as_their_directories(tmp_path: Path) -> None:
    scene, other = noise_scene(), {"name": "modernn", "slots": 1}
    for name, seed, model in (
        ("a/try", 1, None),  # one seed, twice: not a second seed of the first
        ("b/try", 1, None),
        ("high-seed1", 1, other),
        ("high-seed2", 2, other),
        ("final", 3, {"name": "convlstm"}),
        ("classes1", 1, {"name": "rim"}),
        ("classes2", 2, {"name": "rim"}),
        ("deep_s1", 1, {"name": "mim"}),
        ("deep_s02", 2, {"name": "mim"}),
    ):
        write_run(tmp_path / name, "x", seed, scene, 1.0, model=model)
    made = RunDir(tmp_path / "final").config()
    (tmp_path / "final").rename(tmp_path / f"final-{made.hash8()}")
    found = collect(tmp_path)
    assert found.groups == ["a/try", "b/try", "classes1, classes2", "deep", "final", "high"]
    assert [run.seed for run in found.runs if run.group == "high"] == [1, 2]


def test_faults_of_use_are_named(tmp_path: Path, sweep: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        build_report(tmp_path / "nowhere", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no sweep\.yaml and no run directory"):
        build_report(tmp_path / "empty", None)
    file = sweep / "slots4-seed1" / "eval" / "test-best.json"
    whole = file.read_text()
    file.write_text(whole[:100])
    with pytest.raises(ToolkitError, match=r"test-best\.json: can't be read"):
        build_report(sweep, None)
    file.write_text(json.dumps({**json.loads(whole), "version": 99}))
    with pytest.raises(ToolkitError, match="version 99"):
        build_report(sweep, None)
    file.write_text(whole)
    (sweep / "slots4-seed1" / "eval" / "test-best.samples.npz").write_bytes(b"PK")
    with pytest.raises(ToolkitError, match="not a file of sample frames"):
        build_report(sweep, None)
    (sweep / "sweep.yaml").write_text("runs: 7")
    with pytest.raises(ConfigError, match="not a sweep's record"):
        build_report(sweep, None)


def test_the_report_runs_without_torch(sweep: Path) -> None:
    program = (
        "import sys\n"
        "from launch.report import main\n"
        f"code = main([{str(sweep)!r}])\n"
        "heavy = {'torch', 'deepspeed'} & set(sys.modules)\n"
        "sys.exit(code or (f'imported {heavy}' if heavy else 0))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=PATIENCE_S)

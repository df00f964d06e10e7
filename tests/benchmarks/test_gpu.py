"""benchmarks/gpu.py keeps what it has found; `make gpu` needs no network; wheels are what is needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.gpu_rates import cases, predicted, settings_of
from benchmarks.gpu_rows import Job, Rows, read_rows
from benchmarks.gpu_training import compared, setting
from benchmarks.wheels import FETCHED, PRESENT, SOURCES, pinned
from tests.support.process import ROOT
from toolkit.config import make_config
from toolkit.config.tree import with_overrides

SCRIPT = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
FIRST, SECOND, THIRD = ({"model": name} for name in ("a", "b", "c"))


def job_in(folder: Path, seconds: float = 60.0, cuda: bool = False) -> Job:
    return Job("rates", cuda, folder / "rates.jsonl", folder, folder, time.time() + seconds)


def start(out: Path, *options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [*SCRIPT, "--device", "cpu", "--out", str(out), *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "gpu-results.json").read_text())


def test_a_failure_is_a_row_and_the_next_case_goes_on(tmp_path: Path) -> None:
    rows = Rows(job_in(tmp_path))
    for case in rows.each([FIRST, SECOND]):
        with rows.trying(**case) as row:
            row["before"] = 1
            if case == FIRST:
                raise ValueError("no such thing\nand more")
    first, second = read_rows(rows.job.file)
    assert first["error"] == "ValueError: no such thing"
    assert first["before"] == 1
    assert "in test_a_failure_is_a_row" in first["trace"]
    assert second["model"] == "b"
    assert "error" not in second


def test_a_part_that_died_leaves_out_what_has_begun(tmp_path: Path) -> None:
    rows = Rows(job_in(tmp_path))
    walk = rows.each([FIRST, SECOND, THIRD])
    with rows.trying(**next(walk)) as row:
        row["ms"] = 1.0
    next(walk)  # and the process ends here
    with open(rows.job.file, "a") as file:
        file.write('{"half a li')
    assert [row.get("error") for row in read_rows(rows.job.file)] == [None, "not ended"]
    with open(rows.job.file, "a") as file:
        file.write("\n")
    again = Rows(job_in(tmp_path))
    left = list(again.each([FIRST, SECOND, THIRD]))
    assert left == [THIRD]
    assert again.found == [{"model": "a", "ms": 1.0, "seconds": again.found[0]["seconds"], "case": FIRST}]
    assert "died" in read_rows(rows.job.file)[1]["error"]


def test_what_there_is_no_time_for_is_said_in_one_row(tmp_path: Path) -> None:
    rows = Rows(job_in(tmp_path, seconds=1.0))
    assert list(rows.each([FIRST, SECOND])) == []
    (row,) = read_rows(rows.job.file)
    assert row["skipped"] == "2 cases: 1 s left"


def test_cases_are_there_once_and_their_settings_are_the_toolkits(tmp_path: Path) -> None:
    found = list(cases(job_in(tmp_path, cuda=True)))
    texts = [json.dumps(case) for case in found]
    assert len(texts) == len(set(texts)) > 50
    for form, precision in {(case["form"], case["precision"]) for case in found if case["form"] != "plain"}:
        for key, value in settings_of(form, precision).items():
            (read,) = with_overrides({}, [setting(key, value)])["train"].values()
            assert read == value, key  # `on` and `off` too, which YAML takes for booleans


def test_losses_are_compared() -> None:
    assert compared([1.0, 2.0], [1.0, 2.0]) == {"compared": 2, "equal": True, "first_difference": None, "greatest": 0.0}
    found = compared([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
    assert (found["equal"], found["first_difference"], found["greatest"]) == (False, 2, 0.25)
    assert not compared([1.0], [])["equal"]


def test_the_planner_knows_what_is_measured() -> None:
    config = make_config({"model": {"name": "modernn"}, "train": {"precision": "bf16"}}, "t")
    small, large = (predicted(config, "step+layers", size) for size in (64, 384))
    assert 2**27 < small < large < 80 * 2**30


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--parts", "rates,speed"], "no part 'speed'; there are environment"),
        (["--limit", "rates=long"], "write PART=SECONDS"),
        (["--limit", "speed=3"], "no part 'speed'"),
    ],
)
def test_what_is_refused(options: list[str], said: str, tmp_path: Path) -> None:
    process = start(tmp_path, *options)
    assert said in process.communicate(timeout=280)[0]
    assert process.returncode == 2


@pytest.mark.timeout(900)
def test_the_first_parts_on_a_cpu(tmp_path: Path) -> None:
    """Each part may take 400 s by the clock, of which an idle machine needs ten."""
    limits = [word for part in ("tests", "environment") for word in ("--limit", f"{part}=400")]
    process = start(tmp_path, "--seconds", "850", *limits, "--parts", "tests,environment")
    printed = process.communicate(timeout=880)[0]
    assert process.returncode == 0, printed + (tmp_path / "gpu.log").read_text()
    found = results(tmp_path)
    assert {name: facts["code"] for name, facts in found["parts"].items()} == {"environment": 0, "tests": 0}
    rows = {row.get("what"): row for row in found["rows"]}
    assert rows["versions"]["torch"] == torch.__version__
    assert rows["copy"]["tb_per_s"] > 0
    assert rows["first collective"]["sum"] == 1.0
    assert rows["pytest -m gpu"]["failed"] == 0
    assert rows["pytest -m gpu"]["skipped"] > 3
    assert printed.rstrip().splitlines()[-1].split()[:3] == ["pytest_-m_gpu", "0", "0"]
    page = (tmp_path / "gpu-results.md").read_text()
    assert "## environment" in page and "| what | tb_per_s |" in page


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_parts_on_a_cpu(tmp_path: Path) -> None:
    process = start(tmp_path, "--seconds", "400", "--limit", "run=60")
    printed = process.communicate(timeout=450)[0]
    found = results(tmp_path)
    assert process.returncode == 0, printed + (tmp_path / "gpu.log").read_text()
    of = {name: [row for row in found["rows"] if row["part"] == name] for name in found["parts"]}
    assert {row["form"] for row in of["rates"] if "ms" in row} >= {"plain", "eager"}
    assert all(row["gradient_off"] < 0.1 for row in of["numbers"] if "gradient_off" in row)
    resumed, twice = of["resume"]
    assert resumed["equal"] and twice["equal"]
    assert of["training"][0]["ms"] > 0
    assert len([row for row in of["memory"] if "ms" in row]) == 5
    curve = [row["mse"] for row in of["run"] if row.get("what") == "validation"]
    assert curve[-1] < curve[0]
    (ran,) = (row for row in of["run"] if row.get("what") == "the paper's run")
    assert ran["hours_of_80000"] > 0
    assert (tmp_path / "gpu-modernn-fp16.safetensors").stat().st_size > 10_000
    assert (tmp_path / "gpu-run.jsonl").read_text().count('"kind": "val"') == len(curve)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_part_that_is_killed_goes_on_with_its_next_case(tmp_path: Path) -> None:
    process = start(tmp_path, "--seconds", "200", "--parts", "rates", "--limit", "rates=190")
    assert process.stdout is not None
    while "form plain  precision bf16" not in process.stdout.readline():
        assert process.poll() is None
    (child,) = children(process.pid)
    os.kill(child, 9)
    printed = process.communicate(timeout=250)[0]
    found = results(tmp_path)
    assert found["parts"]["rates"]["starts"] == 2, printed
    died = [row for row in found["rows"] if "died" in str(row.get("error"))]
    after = found["rows"][found["rows"].index(died[0]) + 1 :]
    assert len(died) == 1
    assert any("ms" in row for row in after)
    assert process.returncode == 1


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def dry(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-n", "--no-print-directory", *arguments]  # these tests may run under make themselves
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_make_gpu_offline_installs_nothing_but_the_folders_wheels(tmp_path: Path) -> None:
    (tmp_path / "one-1.0-py3-none-any.whl").touch()
    done = dry(
        "gpu", f"OFFLINE={tmp_path}", "PYTHON=python3.12", "OUT=there", "GPU_SECONDS=90", "GPU_OPTIONS=--parts rates"
    )
    assert done.returncode == 0, done.stderr
    assert "venv" not in done.stdout
    (installs,) = re.findall(r"-m pip install .*?\.whl", done.stdout, flags=re.DOTALL)
    assert {"--no-index", "--no-deps", "--target", f"{tmp_path}/one-1.0-py3-none-any.whl"} <= set(installs.split())
    run = f"PYTHONPATH={ROOT}:{ROOT}/.offline python3.12 benchmarks/gpu.py --seconds 90 --out there --parts rates"
    assert done.stdout.splitlines()[-1] == run
    assert "make wheels" in dry("gpu", f"OFFLINE={tmp_path / 'none'}").stderr


def test_make_gpu_with_a_network_and_make_wheels() -> None:
    assert "\n.venv/bin/python benchmarks/gpu.py --seconds 480 --out runs/gpu" in "\n" + dry("gpu").stdout
    assert ".venv/bin/python benchmarks/wheels.py wheels --python 3.12\n" in dry("wheels").stdout


def test_wheels_are_all_that_the_toolkit_needs_and_the_machine_lacks() -> None:
    """Each requirement, and what those that are fetched require, is fetched or said to be there."""
    known = {canonicalize_name(name) for name in (*FETCHED, *SOURCES, *PRESENT)}
    fetched = {canonicalize_name(name) for name in (*FETCHED, *SOURCES)}
    seen: set[str] = set()
    waiting = ["modernn-toolkit", "pytest", "pytest-timeout", "h5netcdf"]
    while waiting:
        name = waiting.pop()
        for text in metadata.requires(name) or ():
            needed = Requirement(text)
            if needed.marker and not needed.marker.evaluate({"extra": "", "python_version": "3.12"}):
                continue
            own = canonicalize_name(needed.name)
            assert own in known, f"{name} needs {needed}"
            if own in fetched and own not in seen:
                seen.add(own)
                waiting.append(own)
    assert fetched <= seen | {"pytest", "pytest-timeout", "h5netcdf"}


def test_versions_are_those_of_this_environment() -> None:
    assert pinned("pytest") == f"pytest=={pytest.__version__}"
    with pytest.raises(SystemExit, match="not-a-package is not installed here"):
        pinned("not-a-package")

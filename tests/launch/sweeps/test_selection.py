"""A part of a sweep: by name, by setting, by number; and what the command line adds to it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from launch import sweep
from launch.jobs import snapshot
from launch.sweeps.options import as_axis, parse
from launch.sweeps.selection import selected
from launch.sweeps.spec import plan_sweep
from tests.support.fakes import Fakes
from toolkit.errors import ConfigError

FILE = """\
base: base.yaml
seeds: [1, 2]
list:
  - {model.name: modernn, model.slots: 2}
  - {model.name: modernn, model.slots: 4}
  - {model.name: convlstm}
"""
PATTERNS = [
    (["model=convlstm"], [], ["convlstm-seed1", "convlstm-seed2"]),
    (["seed=1"], ["slots=4"], ["modernn-slots2-seed1", "convlstm-seed1"]),
    (["model.slots=2,4"], ["seed=2"], ["modernn-slots2-seed1", "modernn-slots4-seed1"]),
    (["convlstm*", "modernn-slots2-seed2"], [], ["modernn-slots2-seed2", "convlstm-seed1", "convlstm-seed2"]),
]


@pytest.mark.parametrize(("only", "without", "names"), PATTERNS)
def test_runs_by_name_and_by_setting(fakes: Fakes, only: list[str], without: list[str], names: list[str]) -> None:
    plan = plan_sweep(fakes.sweep_file(FILE))
    chosen = selected(plan, only, without)
    assert [run.name for run in plan.runs if run.hash8 in chosen] == names


@pytest.mark.parametrize(
    ("only", "said"),
    [
        ("model=convlsmt", "its values here: convlstm, modernn"),
        ("slot=2", "did you mean"),
        ("modernn-slots2-seed3", "did you mean modernn-slots2-seed"),
    ],
)
def test_a_pattern_that_fits_nothing_is_refused(fakes: Fakes, only: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        selected(plan_sweep(fakes.sweep_file(FILE)), [only], [])
    with pytest.raises(ConfigError, match="no run is left"):
        selected(plan_sweep(fakes.sweep_file(FILE)), ["seed=1"], ["seed=1"])


def test_parts_are_submitted_one_after_the_other(fakes: Fakes) -> None:
    fakes.sweep_file(FILE)
    output = fakes.sweep("demo.yaml", "--only", "seed=1", "--limit", "2")[1]
    assert output.count("not chosen") == 3 and output.count("later: --limit") == 1
    done = [run.name for run in fakes.runs() if (run / "DONE").exists()]
    assert len(done) == 2 and all("seed1" in name for name in done)
    assert len(fakes.runs()) == 6
    output = fakes.sweep("demo.yaml", "--only", done[0].rpartition("-")[0], "--replace")[1]
    assert "delete, train again" in output
    assert [(run / "starts").read_text().count("\n") for run in fakes.runs() if run.name in done] == [1, 1]


def test_axes_from_the_command_line(fakes: Fakes) -> None:
    file = fakes.sweep_file(FILE)
    plan = plan_sweep(file, (), dict(map(as_axis, ["seeds=5", "train.lr=1e-3,2e-3"])))
    assert len(plan.runs) == 6
    assert {run.seed for run in plan.runs} == {5}
    assert {run.config.train.lr for run in plan.runs} == {1e-3, 2e-3}
    for text in ("seeds", "seeds=a", "=1", "train.lr=1,"):
        with pytest.raises(ConfigError, match="for example seeds=1,2,3"):
            as_axis(text)
    options = parse(["demo.yaml", "--dry-run", "seeds=1,2"])
    assert (options.sweep, options.axes) == (Path("demo.yaml"), ["seeds=1,2"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mem", "4G"], "--mem goes with --cluster slurm"),
        (["--cluster", "slurm", "--show"], "--show goes with --dry-run"),
        (["--cancel", "--only", "a"], "--cancel ends all jobs of a sweep; leave --only out"),
        (["--cancel", "--retry", "oom", "--jobs", "2"], "leave --jobs, --retry out"),
        (["--cancel", "--cluster", "slurm", "--no-report", "--wait"], "leave --no-report, --wait out"),
        (["--no-report"], "--no-report goes with --cluster slurm"),
        (["--evaluate-apart"], "--evaluate-apart goes with --cluster slurm"),
        (["--cluster", "debug", "--no-report"], "--no-report goes with --cluster slurm"),
        (["--tflops", "3"], "--tflops goes with --dry-run"),
        (["--jobs", "2", "--pack", "auto"], "--jobs 2 and --pack auto are both the number of runs at a time"),
        (["--jobs", "2", "--pack", "3"], "--jobs 2 and --pack 3 are both the number of runs at a time"),
        (["--cluster", "debug", "--pack", "3"], "leave --jobs and --pack out"),
        (["--pack", "0"], "write a number of runs, or auto"),
        (["--replace", "--retry", "failed"], "leave --retry out"),
    ],
)
def test_options_that_contradict_each_other(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert said in capsys.readouterr().err


def test_a_disk_that_is_full_or_forbidden_is_a_message(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.sweep_file("base: base.yaml\n")
    monkeypatch.chdir(fakes.folder)
    for number, said in ((errno.ENOSPC, "the disk is full: free some space"), (errno.EACCES, "belongs to .*, group ")):
        error = OSError(number, os.strerror(number), str(fakes.folder / "runs" / "demo"))

        def refuse(*given: object, error: OSError = error) -> None:
            raise error

        monkeypatch.setattr(sweep, "write_record", refuse)
        with pytest.raises(ConfigError.__mro__[1], match=said):
            sweep.main(["demo.yaml"])


def test_a_script_of_another_checkout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "toolkit" / "rundir").mkdir(parents=True)
    with pytest.raises(
        ConfigError, match=f"is of the checkout {tmp_path}, but this Python takes .* from {snapshot.ROOT}"
    ):
        snapshot.check_origin(tmp_path / "launch" / "sweep.py")
    snapshot.check_origin(snapshot.ROOT / "launch" / "sweep.py")
    snapshot.check_origin(Path("/usr/bin/toolkit"))

"""Which run directory is meant by what somebody types, in every command that takes a run; old names of options."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from launch.cli.parser import add_renamed, make_parser
from launch.cli.runs import find_folder, find_run
from toolkit.config import make_config
from toolkit.errors import ConfigError
from toolkit.rundir import RunDir
from toolkit.rundir.sweep import RecordedRun, write_record


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sweeps and a run by hand, in the working directory's runs/."""
    monkeypatch.chdir(tmp_path)
    for sweep, names in {"demo": ("slots1-seed1", "slots1-seed10", "slots4-seed1"), "other": ("slots1-seed1",)}.items():
        for name in names:
            RunDir.create(Path("runs", sweep, f"{name}-{len(name):08x}"), make_config({"name": name}, "t"))
    RunDir.create(Path("runs/single/alone-00000001"), make_config({}, "t"))
    runs = [RunDir(path) for path in sorted(Path("runs/demo").iterdir())]
    write_record(Path("runs/demo"), "demo", Path("s.yaml"), [RecordedRun(run, run.path.name[:-9]) for run in runs])
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("runs/demo/slots4-seed1-0000000c", "runs/demo/slots4-seed1-0000000c"),
        ("runs/demo/slots4-seed1", "runs/demo/slots4-seed1-0000000c"),
        ("runs/demo/slots4", "runs/demo/slots4-seed1-0000000c"),
        ("demo/slots4", "runs/demo/slots4-seed1-0000000c"),
        ("slots4", "runs/demo/slots4-seed1-0000000c"),
        ("demo/slots1-seed1", "runs/demo/slots1-seed1-0000000c"),  # whole, though another begins so
        ("demo/slots1-seed10", "runs/demo/slots1-seed10-0000000d"),
        ("other/slots1", "runs/other/slots1-seed1-0000000c"),
        ("alone", "runs/single/alone-00000001"),
        ("runs/single/alone-00000001/", "runs/single/alone-00000001"),
    ],
)
def test_a_run_by_its_name(folder: Path, typed: str, meant: str) -> None:
    assert find_run(typed).path.resolve() == (folder / meant).resolve()
    assert find_run(str(folder / meant)).path == folder / meant


@pytest.mark.parametrize("typed", ["slots1-seed1", "demo/slots1", "runs/demo/slots"])
def test_several_are_listed(folder: Path, typed: str) -> None:
    with pytest.raises(ConfigError, match=r"\d runs have names that begin so: .*slots1-seed1-0000000c.*write more"):
        find_run(typed)


@pytest.mark.parametrize("typed", ["", "nothing", "demo/nothing", "runs/nothing/x", "*", "[a", "~", "a" * 5000, "a\0b"])
def test_no_run_is_an_error(folder: Path, typed: str) -> None:
    with pytest.raises(ConfigError):
        find_run(typed)


def test_sweeps_by_their_name(folder: Path) -> None:
    assert find_folder("runs/demo") == find_folder("demo") == Path("runs/demo")
    assert find_folder("slots4").name == "slots4-seed1-0000000c"


# The rest of a command line, and what it then says: that it came to the run.
COMMANDS: dict[str, tuple[list[str], str]] = {
    "evaluate": (["--which", "none"], "--which"),
    "analyse": (["--which", "none"], "--which"),
    "export": (["--out", "there"], "no checkpoint"),
    "predict": (["--input", "nowhere"], "no manifest.json"),
    "logs": ([], "no logs yet"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("form", [["slots4"], ["--run", "slots4"], ["--run=demo/slots4"], ["runs/demo/slots4-seed1"]])
def test_every_command_takes_a_shortened_name(folder: Path, command: str, form: list[str]) -> None:
    rest, said = COMMANDS[command]
    module: Any = importlib.import_module(f"launch.{command}")
    with pytest.raises(ValueError, match=said):
        module.main([*form, *rest])


@pytest.mark.parametrize("form", [["demo"], ["--run", "demo"], ["slots4", "alone"]])
def test_status_takes_names(folder: Path, form: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from launch import status

    assert status.main([*form, "--no-queue"]) == 0
    assert "slots4-seed1" in capsys.readouterr().out


def test_old_options_are_taken_with_a_warning(capsys: pytest.CaptureFixture[str], caplog: Any) -> None:
    parser = make_parser("train.py", "x", "y")
    parser.add_argument("--out", type=Path)
    add_renamed(parser, "--run-dir", "--out", "out", type=Path)
    assert parser.parse_args([]).out is None
    assert parser.parse_args(["--out", "a"]).out == Path("a")
    assert not caplog.records
    assert parser.parse_args(["--run-dir", "a"]).out == Path("a")
    assert "--run-dir is now --out" in caplog.text
    assert "--run-dir" not in parser.format_help()

"""The command `toolkit`, and that its commands speak one language."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from launch.cli.console import main
from launch.cli.parser import COMMANDS
from tests.support.process import PATIENCE_S, ROOT
from toolkit.config import RunConfig
from toolkit.rundir import RunDir

SCRIPTS = sorted(set(COMMANDS) - {"shards"})
# One checkpoint or several, and which there can be, is each command's own; what there is to watch too.
VARIES = {"--which", "--watch"}


class _Found(BaseException):
    """Carries the parser of a command out of it."""


def parser_of(name: str) -> argparse.ArgumentParser:
    def found(self: argparse.ArgumentParser, *_: object) -> None:
        raise _Found(self)

    both = mock.patch.multiple(argparse.ArgumentParser, parse_args=found, parse_intermixed_args=found)
    with both, pytest.raises(_Found) as caught:
        importlib.import_module(f"launch.{name}").main([])
    parser = caught.value.args[0]
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


def test_a_flag_means_the_same_in_every_command() -> None:
    seen: dict[str, tuple[str, tuple[object, ...]]] = {}
    for name in SCRIPTS:
        for action in parser_of(name)._actions:
            assert action.help, f"{name}: {action.dest} says nothing of itself"
            for flag in set(action.option_strings) - VARIES:
                shape: tuple[object, ...] = (action.metavar, action.nargs)
                if flag != "--run":  # status takes several
                    shape += (type(action), action.dest)
                first, expected = seen.setdefault(flag, (name, shape))
                assert shape == expected, f"{flag}: {name} {shape}, {first} {expected}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_command_has_a_version_and_no_abbreviations(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = parser_of(name)
    assert not parser.allow_abbrev
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("modernn-toolkit ")


def test_the_command_hands_on_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(ROOT / "configs" / "sweeps" / "demo.yaml"), "--dry-run"]) == 0
    assert "demo: 4 runs" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["train", "--steps", "3"])
    assert ended.value.code == 2
    assert "error: unrecognized arguments: --steps" in capsys.readouterr().err


def test_an_unknown_command_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["trian"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert all(name in error for name in COMMANDS)


def test_a_login_node_needs_no_torch() -> None:
    code = (
        "import sys; from launch.cli.console import main; main(['sweep', 'configs/sweeps/demo.yaml', '--dry-run']); "
        "assert not {'torch', 'deepspeed'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr


REFUSED = [
    ("report", ["--which", "last"], "--which goes with --paper"),
    ("report", ["--paper", "--force"], "--paper always writes its tables: leave --force out"),
    ("status", ["--json", "--efficiency"], "--json prints the state of runs, which --efficiency does not"),
]


@pytest.mark.parametrize(("command", "options", "message"), REFUSED)
def test_an_option_without_effect_is_refused(
    command: str, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunDir.create(tmp_path / "run", RunConfig())
    with pytest.raises(SystemExit) as ended:
        main([command, str(tmp_path / "run"), *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err

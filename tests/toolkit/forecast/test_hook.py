"""`--on-forecast`: a command that works, fails, hangs, or does not exist."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from toolkit.errors import ConfigError
from toolkit.forecast.hook import Command


def test_the_file_is_an_argument_and_a_variable(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "rain; touch harm.nc"
    out = tmp_path / "out"
    Command.parse(f'sh -c \'printf "%s|%s" "$1" "$FORECAST" > {out}\' sh', 60.0).run(file)
    assert out.read_text() == f"{file}|{file}" and not caplog.records
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out"]


def test_a_failure_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Command.parse("false", 60.0).run(tmp_path / "a.nc")
    program = tmp_path / "program"
    program.write_text("no program")
    program.chmod(0o700)
    command = Command.parse(str(program), 60.0)
    program.unlink()
    command.run(tmp_path / "a.nc")
    assert "exit code 1" in caplog.messages[0] and "not started" in caplog.messages[1]


def test_what_hangs_is_killed_with_its_children(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begun = time.monotonic()
    Command.parse(f"sh -c '(sleep 8; touch {tmp_path}/late) & sleep 600' sh", 1.0).run(tmp_path / "a.nc")
    assert time.monotonic() - begun < 100 and "killed after 1 s" in caplog.text
    time.sleep(9)
    assert not (tmp_path / "late").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), ("mail 'x", "No closing quotation"), ("no-such-program -x", "no program no-such-program")],
)
def test_what_can_not_run_is_refused_at_once(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Command.parse(text, 60.0)

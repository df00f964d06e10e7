"""`--on-forecast`: a command that works, fails, hangs, or does not exist."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.process import ROOT, one_thread
from toolkit.errors import ConfigError
from toolkit.forecast.hook import Command
from toolkit.signals import CAUGHT, StopRequest


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("traps", [False, True])
def test_the_command_does_not_survive_a_signal(tmp_path: Path, number: signal.Signals, traps: bool) -> None:
    """Neither it nor its child, also where it ignores the signal; then the signal ends this process as usual."""
    script = f"trap '' INT TERM HUP; (sleep 300) & echo $$ $! > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pids; wait"
    command = ["sh", "-c", script if traps else script.partition(";")[2], "sh"]
    program = (
        "import logging; from pathlib import Path; from toolkit.forecast import hook; hook.GRACE_S = 1.0\n"
        f"logging.basicConfig(); hook.Command({command!r}, 200.0).run(Path('a.nc')); print('continued')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=one_thread(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 100
    while not (tmp_path / "pids").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    out, errors = process.communicate(timeout=100)
    assert process.returncode == -number and "continued" not in out
    assert f"ended by {number.name}" in errors
    for pid in (tmp_path / "pids").read_text().split():
        while is_running(int(pid)):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Return whether a process is there that is no zombie; whoever adopts it may take its time."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_watch_is_asked_to_stop_while_the_command_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = {number: signal.getsignal(number) for number in CAUGHT}
    stop = StopRequest()
    stop.install()
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    try:
        timer.start()
        Command.parse("sh -c 'sleep 300' sh", 200.0).run(tmp_path / "a.nc")
        assert stop.name == "SIGTERM" and "ended by SIGTERM" in caplog.text
    finally:
        timer.join()
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), ("mail 'x", "No closing quotation"), ("no-such-program -x", "no program no-such-program")],
)
def test_what_can_not_run_is_refused_at_once(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Command.parse(text, 60.0)

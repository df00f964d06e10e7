"""Ranks as real processes: their codes, their variables, the signals they get, and that none is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from launch.jobs import ranks
from launch.jobs.ranks import SignalRelay, run_ranks
from tests.support.process import PATIENCE_S, wait_for

PATIENT = """
import os, signal, sys, time
stop = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
    signal.signal(number, lambda n, _: stop.append(n))
with open(f"ready{os.environ.get('RANK', 0)}", "w") as file:
    file.write(str(os.getpid()))
while not stop:
    time.sleep(0.01)
time.sleep(0.2)
print("signals", *stop, flush=True)
sys.exit(3)
"""


def python(folder: Path, text: str) -> list[str]:
    script = folder / "rank.py"
    script.write_text(textwrap.dedent(text))
    return [sys.executable, str(script)]


def alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def run(command: list[str], count: int, logs: list[Path] | None = None) -> int:
    with SignalRelay() as relay:
        return run_ranks(command, count, relay, logs or [])


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5])
def test_one_rank_returns_its_code(tmp_path: Path, code: int) -> None:
    assert run(python(tmp_path, f"raise SystemExit({code})"), 1) == code


def test_death_by_a_signal_is_128_and_its_number(tmp_path: Path) -> None:
    assert run(python(tmp_path, "import os; os.kill(os.getpid(), 9)"), 1) == 137


def test_ranks_get_what_torchrun_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "5")  # the caller may itself be a rank of something
    show = python(tmp_path, f"import os; print(*[os.environ.get(k) for k in {ranks.RANK_VARIABLES}])")
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    assert run(show, 2, logs) == 0
    first, second = (log.read_text().split() for log in logs)
    assert first[:5] == ["0", "2", "0", "2", "127.0.0.1"]
    assert second[:5] == ["1", "2", "1", "2", "127.0.0.1"]
    assert first[5] == second[5]
    assert run(show, 1, logs) == 0
    assert logs[0].read_text().splitlines()[1] == "None None None None None None"


def test_the_first_failure_counts_and_ends_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ranks, "PEER_GRACE_S", 0.2)
    text = """
    import os, sys, time
    if os.environ["RANK"] == "1":
        sys.exit(4)
    time.sleep(60)
    """
    start = time.monotonic()
    assert run(python(tmp_path, text), 3) == 4
    assert time.monotonic() - start < 50  # the others sleep for 60 s
    assert (
        "rank 1 ended: exit code 4 (the loss or gradient is not finite); stopping the others" in capfd.readouterr().err
    )


def test_a_rank_deaf_to_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "PEER_GRACE_S", 0.3)
    text = """
    import os, signal, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open("pid" + os.environ["RANK"], "w").write(str(os.getpid()))
    while not os.path.exists("pid0"): time.sleep(0.01)
    if os.environ["RANK"] == "1":
        sys.exit(1)
    time.sleep(60)
    """
    monkeypatch.chdir(tmp_path)
    assert run(python(tmp_path, text), 2) == 1
    assert not alive(int((tmp_path / "pid0").read_text()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_reach_every_rank_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    monkeypatch.chdir(tmp_path)

    def send() -> None:
        wait_for(tmp_path / "ready0", tmp_path / "ready1")
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    assert run(python(tmp_path, PATIENT), 2, logs) == 3
    sender.join()
    assert [log.read_text() for log in logs] == [f"signals {int(number)}\n"] * 2


def test_a_killed_parent_takes_its_ranks_along(tmp_path: Path) -> None:
    command = python(tmp_path, PATIENT)
    parent = tmp_path / "parent.py"
    parent.write_text(f"from launch.jobs.ranks import *\nwith SignalRelay() as relay: run_ranks({command!r}, 2, relay)")
    with subprocess.Popen([sys.executable, str(parent)], cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        wait_for(tmp_path / "ready0", tmp_path / "ready1")
        process.kill()
    pids = [int((tmp_path / name).read_text()) for name in ("ready0", "ready1")]
    deadline = time.monotonic() + PATIENCE_S
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_a_rank_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = """
    import subprocess
    child = subprocess.Popen(["sleep", "60"])
    open("grandchild", "w").write(str(child.pid))
    """
    assert run(python(tmp_path, text), 1) == 0
    time.sleep(0.1)
    assert not alive(int((tmp_path / "grandchild").read_text()))


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with SignalRelay():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before

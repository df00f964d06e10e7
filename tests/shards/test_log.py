"""The log: its format, who writes what, and a process without stderr."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from shards import log

RECORD = "import logging; from shards import log; log.configure(); logging.getLogger('toolkit.x').%s('step %%d', 3)"


@pytest.mark.parametrize(
    ("rank", "ranks", "level", "shown"),
    [(0, 1, "info", "INFO step 3"), (0, 2, "info", "INFO rank 0: step 3"), (1, 2, "warning", "WARNING rank 1: step 3")],
)
def test_a_record_has_time_level_and_rank(rank: int, ranks: int, level: str, shown: str) -> None:
    environment = {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
    done = subprocess.run([sys.executable, "-c", RECORD % level], env=environment, capture_output=True, text=True)
    time, text = done.stderr.strip().split(" ", 1)
    assert text == shown
    assert len(time) == len("2026-11-26T18:05:12Z") and time.endswith("Z")
    assert not done.stdout


def test_the_script_that_runs_is_shown_too() -> None:
    code = RECORD.replace("'toolkit.x'", "__name__") % "info"
    done = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True)
    assert done.stderr.endswith(" INFO step 3\n")


def test_other_ranks_log_only_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        log.configure(rank=1, ranks=2)
        logging.getLogger("toolkit.train.loop").info("a step")
        logging.getLogger("toolkit.train.loop").warning("a damaged sample")
        assert capsys.readouterr().err.splitlines()[0].endswith("rank 1: a damaged sample")
    finally:
        log.configure()


def test_a_process_without_stderr_goes_on() -> None:
    done = subprocess.run(
        f"{sys.executable} -c \"{RECORD % 'info'}; print('on')\" 2>&-",
        shell=True,
        capture_output=True,
        text=True,
        env={},
    )
    assert (done.returncode, done.stdout) == (0, "on\n")

"""Another user's runs folder, which may be read only, or is shared with a group: a command works or is refused."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fakes import Fakes
from tests.support.process import PATIENCE_S, ROOT, one_thread

NOBODY, GROUP = 65534, 4242
# The right to read everything stands for a Python that everybody can read, which root's own need not be.
AS_NOBODY = [
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", f"--groups={GROUP}"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
    *("bash", "-c", 'umask 002; exec "$@"', "-"),
]

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root can run commands as another user (setpriv)"
)


def call(fakes: Fakes, script: str | Path, *words: object) -> tuple[int, str]:
    """Run a script as another user: (exit code, output)."""
    command = [*AS_NOBODY, sys.executable, str(ROOT / "launch" / script), *map(str, words)]
    environment = {**one_thread(), "PYTHONPATH": str(ROOT), "HOME": "/nonexistent"}
    done = subprocess.run(
        command, cwd=fakes.folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )
    output = done.stdout + done.stderr
    assert "Traceback" not in output, output
    return done.returncode, output


@pytest.fixture
def theirs(fakes: Fakes) -> Path:
    """A sweep of root with two runs, one of them done."""
    fakes.sweep_file("base: base.yaml\nseeds: 2\n")
    code, output = fakes.sweep("demo.yaml", "--limit", "1")
    assert code == 3, output
    return fakes.folder / "runs" / "demo"


def test_a_folder_that_can_be_read_only(fakes: Fakes, theirs: Path) -> None:
    run = fakes.runs()[1]
    before = sorted(theirs.rglob("*"))
    assert call(fakes, "status.py", theirs)[0] == 0
    assert call(fakes, "logs.py", fakes.runs()[0])[0] == 0
    code, output = call(fakes, "sweep.py", "demo.yaml", "--dry-run")
    assert code == 0 and "1 run to do" in output
    for words in (["sweep.py", "demo.yaml"], ["sweep.py", "demo.yaml", "--cancel"], ["jobs/job.py", run]):
        code, output = call(fakes, *words)
        assert code == 1, output
        assert "/demo/" in output and "Permission denied" in output
        assert "belongs to root, group root" in output
    assert sorted(theirs.rglob("*")) == before


def test_that_a_folder_takes_no_files_is_known_before_they_are_computed(tmp_path: Path) -> None:
    code = (
        f"from toolkit.atomic import check_writable; from pathlib import Path; check_writable(Path({str(tmp_path)!r}))"
    )
    done = subprocess.run(
        [*AS_NOBODY, sys.executable, "-c", code],
        env={**one_thread(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert f"{tmp_path}: not written: Permission denied; {tmp_path} belongs to root, group root" in done.stderr


def test_a_folder_that_a_group_shares(fakes: Fakes, theirs: Path) -> None:
    for path in (theirs.parent, *theirs.parent.rglob("*")):
        if not path.is_symlink():
            os.chown(path, -1, GROUP)
            path.chmod(0o2775 if path.is_dir() else 0o664 | (path.stat().st_mode & 0o111))
    code, output = call(fakes, fakes.scripts / "fake_sweep.py", "demo.yaml")
    assert code == 0 and "2 of 2 done" in output, output
    assert "no live job" in call(fakes, "sweep.py", "demo.yaml", "--cancel")[1]
    made = [path for path in theirs.rglob("*") if path.lstat().st_uid == NOBODY and not path.is_symlink()]
    assert {path.name for path in made} >= {"DONE", "eval"}
    code_copies = theirs / "code"
    for path in made:
        assert path.stat().st_gid == GROUP, path
        if code_copies not in path.parents:
            assert path.stat().st_mode & stat.S_IWGRP, path


def test_a_full_disk_is_a_message_and_the_next_call_goes_on(fakes: Fakes) -> None:
    fakes.sweep_file("base: base.yaml\nseeds: 2\n")
    full = fakes.folder / "full"
    full.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(full)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a tmpfs")
    try:
        with open(full / "rest", "wb") as file:
            file.write(b"0" * (56 << 10))
        code, output = fakes.sweep("demo.yaml", "--runs", str(full))
        assert code == 1 and "No space left on device" in output and "Traceback" not in output, output
        assert "free some space" in output or "free space" in output
        (full / "rest").unlink()
        subprocess.run(["mount", "-o", "remount,size=16m", str(full)], check=True)
        code, output = fakes.sweep("demo.yaml", "--runs", str(full))
        assert code == 0 and "2 of 2 done" in output, output
    finally:
        subprocess.run(["umount", "-l", str(full)], check=True)

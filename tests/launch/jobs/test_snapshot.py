"""The copy of the code that jobs run."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.jobs.snapshot import DIFF, MARK, point, take
from toolkit.errors import ConfigError
from toolkit.rundir import git_state


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for name in ("launch/jobs/job.py", "toolkit/a.py", "shards/b.py", "docs/c.md", "configs/d.yaml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / ".gitignore").write_text("__pycache__/\n/runs/\n")
    (root / "launch" / "jobs" / "job.py").chmod(0o755)
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return root


def names(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_equal_code_is_kept_once_and_marked(checkout: Path, tmp_path: Path) -> None:
    first = take(tmp_path / "sweep", checkout)
    assert names(first.path) == {*names(checkout) - {n for n in names(checkout) if n.startswith(".git/")}, MARK}
    assert os.access(first.path / "launch" / "jobs" / "job.py", os.X_OK)
    record = json.loads((first.path / MARK).read_text())
    assert (record["files"], record["untracked"], len(record["commit"])) == (6, [], 40)
    assert take(tmp_path / "sweep", checkout) == first
    assert [path.name for path in (tmp_path / "sweep" / "code").iterdir()] == [first.path.name]


def test_what_is_not_committed_is_copied_and_told(checkout: Path, tmp_path: Path) -> None:
    before = take(tmp_path / "sweep", checkout)
    (checkout / "toolkit" / "a.py").write_text("changed")
    (checkout / "toolkit" / "new.py").write_text("new")
    (checkout / "notes.txt").write_text("not part of the code")
    (checkout / "docs" / "c.md").unlink()
    after = take(tmp_path / "sweep", checkout)
    assert after.path != before.path
    assert after.untracked == ("toolkit/new.py",)
    assert "+changed" in (after.path / DIFF).read_text()
    assert (before.path / "toolkit" / "a.py").read_text() == "toolkit/a.py"
    assert names(after.path) == {*names(before.path) - {"docs/c.md"}, "toolkit/new.py", DIFF}


def test_outside_git_the_package_folders_are_copied(checkout: Path, tmp_path: Path) -> None:
    (checkout / ".git").rename(tmp_path / "away")
    (checkout / "toolkit" / "__pycache__").mkdir()
    (checkout / "toolkit" / "__pycache__" / "a.pyc").write_text("")
    copy = take(tmp_path / "sweep", checkout)
    assert names(copy.path) == {"launch/jobs/job.py", "toolkit/a.py", "shards/b.py", "configs/d.yaml", MARK}


def test_the_checkout_of_another_user_is_copied_without_its_commit_and_that_is_logged(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git then refuses it as it does another user's
    copy = take(tmp_path / "sweep", checkout)
    assert json.loads((copy.path / MARK).read_text())["commit"] is None
    assert "(dubious ownership): the code is copied without its commit; to record it: git config --global --add " in (
        caplog.text
    )
    assert f"safe.directory {checkout}" in caplog.text
    assert {"launch/jobs/job.py", "toolkit/a.py", "shards/b.py"} <= names(copy.path)


def test_installed_below_a_checkout_of_other_things(checkout: Path, tmp_path: Path) -> None:
    """As `.venv/lib/python3.12/site-packages` below a project under git, which ignores it."""
    (checkout / ".gitignore").write_text("/.venv/\n")
    site = checkout / ".venv" / "site-packages"
    (site / "other").mkdir(parents=True)
    for name in ("launch", "toolkit", "shards"):
        (checkout / name).rename(site / name)
    copy = take(tmp_path / "sweep", site)
    assert copy.commit is None
    assert names(copy.path) == {"launch/jobs/job.py", "toolkit/a.py", "shards/b.py", MARK}
    assert git_state(site / "toolkit") == {}


def test_a_copy_without_its_mark_is_not_used(checkout: Path, tmp_path: Path) -> None:
    copy = take(tmp_path / "sweep", checkout)
    (copy.path / MARK).unlink()
    stale = copy.path.parent / ".1.tmp"  # of a sweep.py that was killed
    stale.mkdir()
    with pytest.raises(ConfigError, match=f"{copy.path}: a copy of the code without its mark COMPLETE: delete it"):
        take(tmp_path / "sweep", checkout)
    assert not stale.exists()


EVIL = "import os; os.system('touch /tmp/never')\n"


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (
            lambda copy: (copy / "toolkit" / "a.py").write_text(EVIL),
            r"the files have the hash [0-9a-f]{12}, the folder's",
        ),
        (lambda copy: (copy / "launch" / "jobs" / "job.py").chmod(0o444), "the files have the hash"),
        (lambda copy: (copy / "torch.py").write_text(EVIL), r"torch\.py: is no part of the copy of the code"),
        (lambda copy: (copy / ".git" / "config").write_text("[core]\n"), r"\.git/config: is no part of"),
        (lambda copy: (copy / "shards" / "b.py").unlink(), r"shards/b\.py: is missing from"),
        (lambda copy: (copy / "torch").symlink_to("/tmp"), r"/torch: is no part of"),
        (lambda copy: os.mkfifo(copy / "pipe.py"), r"pipe\.py: is no part of"),
    ],
)
def test_a_copy_that_is_not_what_its_name_says_is_not_run(
    checkout: Path, tmp_path: Path, plant: Callable[[Path], object], message: str
) -> None:
    """The name is known to anybody who has the same code, and a sweep's folder is passed on."""
    copy = take(tmp_path / "sweep", checkout).path
    (copy / "toolkit" / "a.py").chmod(0o644)
    (copy / ".git").mkdir()
    plant(copy)
    with pytest.raises(ConfigError, match=message) as caught:
        take(tmp_path / "sweep", checkout)
    assert "delete it, then submit again" in str(caught.value)


def test_a_file_of_a_copy_that_is_a_link_is_not_run(checkout: Path, tmp_path: Path) -> None:
    copy = take(tmp_path / "sweep", checkout).path
    (tmp_path / "same.py").write_bytes((copy / "toolkit" / "a.py").read_bytes())
    (copy / "toolkit" / "a.py").unlink()
    (copy / "toolkit" / "a.py").symlink_to(tmp_path / "same.py")  # and later another text
    with pytest.raises(ConfigError, match=r"toolkit/a\.py: is no part of"):
        take(tmp_path / "sweep", checkout)
    copy.rename(tmp_path / "elsewhere")
    copy.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is a link and not a copy"):
        take(tmp_path / "sweep", checkout)


def test_caches_of_a_copy_are_not_trusted(checkout: Path, tmp_path: Path) -> None:
    copy = take(tmp_path / "sweep", checkout)
    for folder in ("toolkit", "."):
        (copy.path / folder / "__pycache__").mkdir()
        (copy.path / folder / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"whatever")
    assert take(tmp_path / "sweep", checkout) == copy
    assert not list(copy.path.rglob("__pycache__")) and os.listdir(copy.path.parent) == [copy.path.name]


def test_a_run_points_to_its_code_and_a_change_is_told(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    run = sweep / "run"
    run.mkdir(parents=True)
    assert point(run, sweep / "code" / "aaa") is None
    assert os.readlink(run / "code") == "../code/aaa"
    assert point(run, sweep / "code" / "aaa") is None
    assert point(run, sweep / "code" / "bbb") == "aaa"
    assert os.readlink(run / "code") == "../code/bbb"

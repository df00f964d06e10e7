"""The copy of the code that jobs run."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from launch.snapshot import DIFF, MARK, point, take
from toolkit.errors import ConfigError
from toolkit.rundir import git_state


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for name in ("launch/job.py", "toolkit/a.py", "shards/b.py", "docs/c.md", "configs/d.yaml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / ".gitignore").write_text("__pycache__/\n/runs/\n")
    (root / "launch" / "job.py").chmod(0o755)
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return root


def names(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_equal_code_is_kept_once_and_marked(checkout: Path, tmp_path: Path) -> None:
    first = take(tmp_path / "sweep", checkout)
    assert names(first.path) == {*names(checkout) - {n for n in names(checkout) if n.startswith(".git/")}, MARK}
    assert os.access(first.path / "launch" / "job.py", os.X_OK)
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
    assert names(copy.path) == {"launch/job.py", "toolkit/a.py", "shards/b.py", "configs/d.yaml", MARK}


def test_installed_below_a_checkout_of_other_things(checkout: Path, tmp_path: Path) -> None:
    """As `.venv/lib/python3.12/site-packages` below a project under git, which ignores it."""
    (checkout / ".gitignore").write_text("/.venv/\n")
    site = checkout / ".venv" / "site-packages"
    (site / "other").mkdir(parents=True)
    for name in ("launch", "toolkit", "shards"):
        (checkout / name).rename(site / name)
    copy = take(tmp_path / "sweep", site)
    assert copy.commit is None
    assert names(copy.path) == {"launch/job.py", "toolkit/a.py", "shards/b.py", MARK}
    assert git_state(site / "toolkit") == {}


def test_a_copy_without_its_mark_is_not_used(checkout: Path, tmp_path: Path) -> None:
    copy = take(tmp_path / "sweep", checkout)
    (copy.path / MARK).unlink()
    stale = copy.path.parent / ".1.tmp"  # of a sweep.py that was killed
    stale.mkdir()
    with pytest.raises(ConfigError, match=f"{copy.path}: a copy of the code without its mark COMPLETE: delete it"):
        take(tmp_path / "sweep", checkout)
    assert not stale.exists()


def test_a_run_points_to_its_code_and_a_change_is_told(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    run = sweep / "run"
    run.mkdir(parents=True)
    assert point(run, sweep / "code" / "aaa") is None
    assert os.readlink(run / "code") == "../code/aaa"
    assert point(run, sweep / "code" / "aaa") is None
    assert point(run, sweep / "code" / "bbb") == "aaa"
    assert os.readlink(run / "code") == "../code/bbb"

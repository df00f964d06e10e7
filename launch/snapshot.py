"""The code that jobs run: a copy made when they are submitted, so that editing goes on while they wait.

runs/<sweep>/code/<hash>/        the files, by the hash of their names and contents: equal code is kept once
  uncommitted.diff               what differed from the commit
  COMPLETE                       written last: commit, number of files, what was not under version control
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ConfigError
from toolkit.rundir import write_atomic

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("launch", "toolkit", "shards", "configs")  # what a job runs; outside git, and installed, all that is copied
MARK = "COMPLETE"
DIFF = "uncommitted.diff"


@dataclass(frozen=True)
class Snapshot:
    """A complete copy of the code."""

    path: Path
    untracked: tuple[str, ...]  # files that were copied though git doesn't know them
    commit: str | None  # None: the code is not under version control (installed, or no git)


def take(sweep: Path, root: Path = ROOT) -> Snapshot:
    """Copy the code of the checkout `root` into `<sweep>/code/<hash>`, unless it is there already.

    The caller keeps others from doing the same at the same time (`record.preparing`).

    Raises:
        ConfigError: when a copy by that hash is there but incomplete.
    """
    names, untracked, commit = _listing(root)
    base = (sweep / "code").resolve()
    temporary = base / f".{os.getpid()}.tmp"
    for stale in base.glob(".*.tmp"):  # of a sweep.py that was killed
        shutil.rmtree(stale)
    digest = hashlib.sha256()
    for name in names:
        # The hash is of the bytes that were copied: the file may be saved in an editor at this moment.
        data = (root / name).read_bytes()
        mode = (root / name).stat().st_mode & 0o111
        target = temporary / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(0o444 | mode)
        digest.update(f"{name}\0{bool(mode)}\0{hashlib.sha256(data).hexdigest()}\n".encode())
    final = base / digest.hexdigest()[:12]
    if final.exists():
        shutil.rmtree(temporary)
        if not (final / MARK).exists():
            raise ConfigError(f"{final}: a copy of the code without its mark {MARK}: delete it, then submit again")
        return Snapshot(final, untracked, commit)
    if commit is not None and (diff := _git(root, "diff", "--binary", "HEAD")):
        (temporary / DIFF).write_bytes(diff)
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record = {"made": made, "from": str(root), "commit": commit, "files": len(names), "untracked": untracked}
    write_atomic(temporary / MARK, json.dumps(record, indent=1) + "\n")
    temporary.rename(final)
    return Snapshot(final, untracked, commit)


def point(run: Path, code: Path) -> str | None:
    """Let `<run>/code` lead to a snapshot; returns the hash of the one it led to before, if that was another."""
    link = run / "code"
    before = os.readlink(link) if link.is_symlink() else None
    target = os.path.relpath(code, run.resolve())
    if before == target:
        return None
    temporary = run / f".code.{os.getpid()}.tmp"
    temporary.symlink_to(target)
    temporary.replace(link)
    return before and Path(before).name


def _listing(root: Path) -> tuple[list[str], tuple[str, ...], str | None]:
    """(files to copy, those among them that git doesn't know, commit); outside git: the package folders."""
    try:
        commit = _git(root, "rev-parse", "HEAD").decode().strip()
        tracked = _names(_git(root, "ls-files", "-z", "--cached"))
        others = _names(_git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *FOLDERS))
    except (OSError, subprocess.SubprocessError):
        return sorted(_walk(root)), (), None
    if not any(name.startswith("toolkit/") for name in tracked):  # installed below somebody's checkout of other things
        return sorted(_walk(root)), (), None
    # A file that was deleted but not committed is still listed; a submodule is listed as a folder.
    names = [name for name in sorted({*tracked, *others}) if (root / name).is_file()]
    return names, tuple(sorted(others)), commit


def _walk(root: Path) -> Iterator[str]:
    for folder in FOLDERS:
        for path in (root / folder).rglob("*"):
            parts = path.relative_to(root).parts
            if path.is_file() and "__pycache__" not in parts and not any(part.startswith(".") for part in parts):
                yield str(path.relative_to(root))


def _git(root: Path, *arguments: str) -> bytes:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout


def _names(listing: bytes) -> list[str]:
    return [os.fsdecode(name) for name in listing.split(b"\0") if name]

"""The code that jobs run: a copy made when they are submitted, so that files can be edited while they wait.

runs/<sweep>/code/<hash>/        the files, by the hash of their names and contents: equal code is kept once
  uncommitted.diff               what differed from the commit
  COMPLETE                       written last: commit, number of files, what was not under version control
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.atomic import write_atomic
from toolkit.errors import ConfigError

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("launch", "toolkit", "shards", "configs")  # what a job runs; outside git, and installed, all that is copied
MARK = "COMPLETE"
DIFF = "uncommitted.diff"


@dataclass(frozen=True)
class Snapshot:
    """A complete copy of the code."""

    path: Path
    untracked: tuple[str, ...]  # files that were copied though git doesn't know them
    commit: str | None  # None: the code is not under version control (installed, or no git)


def check_origin(script: Path) -> None:
    """Refuse to run a checkout's script with the packages of another one, whose code the jobs would run.

    Raises:
        ConfigError: naming both.
    """
    checkout = script.resolve().parents[1] if len(script.resolve().parents) > 1 else ROOT
    if script.parent.name == "launch" and checkout != ROOT and (checkout / "toolkit" / "rundir").is_dir():
        raise ConfigError(
            f"{script} is of the checkout {checkout}, but this Python takes launch and toolkit from {ROOT}, whose code "
            f"the jobs would run: set PYTHONPATH={checkout}, or install it: pip install -e {checkout}"
        )


def take(sweep: Path, root: Path = ROOT) -> Snapshot:
    """Copy the code of the checkout `root` into `<sweep>/code/<hash>`, unless it is there already.

    The caller keeps others from doing the same at the same time (`toolkit.rundir.sweep.preparing`).

    Raises:
        ConfigError: when a copy by that hash is there but incomplete, or isn't the code of that hash.
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
        digest.update(_entry(name, data, mode))
    final = base / digest.hexdigest()[:12]
    if final.exists():
        shutil.rmtree(temporary)
        if not (final / MARK).exists():
            raise ConfigError(f"{final}: a copy of the code without its mark {MARK}: delete it, then submit again")
        _check_copy(final, names)
        return Snapshot(final, untracked, commit)
    if commit is not None and (diff := _git(root, "diff", "--binary", "HEAD")):
        (temporary / DIFF).write_bytes(diff)
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record = {"made": made, "from": str(root), "commit": commit, "files": len(names), "untracked": untracked}
    write_atomic(temporary / MARK, json.dumps(record, indent=1) + "\n")
    temporary.rename(final)
    return Snapshot(final, untracked, commit)


def _entry(name: str, data: bytes, mode: int) -> bytes:
    """Return what the hash of a copy covers, by file."""
    return f"{name}\0{bool(mode & 0o111)}\0{hashlib.sha256(data).hexdigest()}\n".encode()


def _check_copy(copy: Path, names: Sequence[str]) -> None:
    """Compare a copy that was there with its name: jobs run it, and a sweep's folder may come from somebody else.

    Python's caches are removed, as nothing says what they were compiled from.

    Raises:
        ConfigError: it has other files, more or fewer of them, or links.
    """
    again = "delete it, then submit again"
    if copy.is_symlink():
        raise ConfigError(f"{copy}: is a link and not a copy of the code, which jobs would run: {again}")
    found: set[str] = set()
    for parent, folders, files in os.walk(copy):
        for name in folders + files:
            path = Path(parent, name)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise ConfigError(
                    f"{path}: is no part of the copy of the code in {copy}, which jobs would run: {again}"
                )
        if "__pycache__" in folders:
            folders.remove("__pycache__")
            aside = tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=copy.parent)  # a job may be writing into it
            shutil.rmtree(Path(parent, "__pycache__").rename(aside), ignore_errors=True)
        found |= {str(Path(parent, name).relative_to(copy)) for name in files}
    strays = sorted(found - {*names, MARK, DIFF}) or sorted({*names} - found)
    if strays:
        word = "is missing from" if strays[0] in names else "is no part of"
        raise ConfigError(f"{copy / strays[0]}: {word} the copy of the code, which jobs would run: {again}")
    digest = hashlib.sha256()
    for name in names:
        digest.update(_entry(name, (copy / name).read_bytes(), (copy / name).stat().st_mode))
    if (found_hash := digest.hexdigest()[:12]) != copy.name:
        raise ConfigError(
            f"{copy}: the files have the hash {found_hash}, the folder's name is {copy.name}: the code that "
            f"jobs would run was changed: {again}"
        )


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
    except subprocess.CalledProcessError as error:
        if b"dubious ownership" in error.stderr:
            logger.warning(
                "git does not read %s, which is another user's (dubious ownership): the code is copied without its "
                "commit; to record it: git config --global --add safe.directory %s", root, root
            )  # fmt: skip
        return sorted(_walk(root)), (), None
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

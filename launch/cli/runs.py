"""From what somebody types to run directories: a path, a run's name, or the beginning of one. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from toolkit.errors import ConfigError
from toolkit.rundir import RunDir
from toolkit.rundir.sweep import RECORD_NAME, find_runs, read_runs
from toolkit.shipped import command
from toolkit.wording import some

RUNS = Path("runs")  # where `train` and `sweep` make run directories, in the working directory


def find_run(given: str | Path | None) -> RunDir:
    """Return the run directory that is meant: by its path, by its name as `status` shows it, or by a name's beginning.

    A name is looked for in the folder that it is written with (`runs/demo/modernn`), which may leave `runs/` out;
    without one in the working directory, in `runs/`, and in every sweep's folder below `runs/`.

    Raises:
        ConfigError: no run is meant, or several, which are listed.
    """
    if given is None:
        raise ConfigError("no run is given: name one, as status shows it (see --help)")
    path = Path(given)
    try:
        if RunDir(path).config_file.exists():
            return RunDir(path)
        if path.is_dir():
            RunDir(path).config()  # raises, and names the runs in it
        found = _named(path.name, _folders(path))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    if len(found) == 1:
        return found[0]
    if found:
        names = some([str(run.path) for run in found])
        raise ConfigError(f"{path}: {len(found)} runs have names that begin so: {names}; write more of the name")
    raise ConfigError(f"{path}: no such run or folder; {command('status', 'FOLDER')} shows the runs of a sweep")


def find_folder(given: str | Path | None) -> Path:
    """Return the folder of a sweep or of a run that is meant; a sweep's name stands for its folder in `runs/`.

    Raises:
        ConfigError: as `find_run` does, where it is no folder of a sweep.
    """
    path = Path(given or "")
    if given and path.is_dir():
        return path
    if given and not path.is_absolute() and (RUNS / path).is_dir():
        return RUNS / path
    return find_run(given).path


def _folders(path: Path) -> list[Path]:
    """Return where a run of that path's name may lie."""
    if len(path.parts) > 1:
        inside = [] if path.is_absolute() else [RUNS / path.parent]
        return [folder for folder in (path.parent, *inside) if folder.is_dir()]
    sweeps = sorted(folder for folder in RUNS.glob("*") if folder.is_dir()) if RUNS.is_dir() else []
    return [Path(), RUNS, *sweeps]


def _named(name: str, folders: Iterable[Path]) -> list[RunDir]:
    """Return the runs of that name; else those whose name begins so, if any."""
    exact: dict[Path, RunDir] = {}
    begun: dict[Path, RunDir] = {}
    for folder in folders:
        for run, names in _names_in(folder):
            if name in names:
                exact[run.path.resolve()] = run
            if name and any(own.startswith(name) for own in names):
                begun[run.path.resolve()] = run
    return list((exact or begun).values())


def _names_in(folder: Path) -> list[tuple[RunDir, Sequence[str]]]:
    """Return the runs right below a folder with their names: the folder's, that without the hash, and the sweep's."""
    if (folder / RECORD_NAME).exists():
        return [(item.run, (item.run.path.name, item.name)) for item in read_runs(folder)]
    return [(run, (run.path.name, run.path.name[:-9])) for run in find_runs(folder)]

"""`predict --watch` in forked children, each of which meets a full disk or is killed at another of its writes.

    python -m tests.support.watch_points FOLDER RUN LAYOUT FAULT MOST

RUN is a run that forecasts from 4 frames; LAYOUT is what it writes: "files" (netCDF and a picture, in two folders),
"zarr" or "page"; FAULT and MOST are those of write_points.py. A first watch has forecast frame 3. The one under test
finds that forecast, and gets frames 4 and 5 one after the other; it ends some checks later. Then the same command is
given again, without a fault. Printed is a JSON list: {"at": n, "call": the n-th call, "code": exit code, "said": what
was printed to stderr}, each with what was found then and, under "again", after the second command.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import xarray

import toolkit.forecast.watch
from launch import predict
from launch.cli.parser import run_script
from shards.log import configure  # noqa: F401  imported once, not by each child
from tests.support.archives import write_gif
from tests.support.forecasts import START
from tests.support.write_points import Faults, in_child, spaced

for name in ("matplotlib.figure", "h5netcdf", "toolkit.forecast.page.keeper", "toolkit.forecast.files"):
    importlib.import_module(name)

FIRST, LAST = 3, 5  # frames with a forecast
QUIET = 3  # checks between two frames
SIZES = (1, 2000, 6000)  # bytes beyond which no file grows
PLACED = {"files": " -> pictures/", "zarr": " -> out/", "page": " -> page/latest.nc"}  # a rename that is always tried
OUTPUTS = {
    "files": ["--out", "{}/out/rain.nc", "--picture", "{}/pictures/rain.png"],
    "zarr": ["--out", "{}/out/rain.zarr"],
    "page": ["--page", "{}/page", "--keep", "2", "--lead", "1"],
}


@dataclass
class Place:
    """A folder of frames, what is written beside it, and the commands that were run after forecasts."""

    folder: Path
    run: Path
    layout: str

    def __post_init__(self) -> None:
        self.input, self.below, self.ran = self.folder / "in", self.folder / "place", self.folder / "ran"
        hook = f"sh -c 'basename \"$0\" >> {self.ran}'"
        self.words = ["--run", str(self.run), "--input", str(self.input), "--watch", "--every", "0.001"]
        self.words += [word.format(self.below) for word in OUTPUTS[self.layout]]
        self.words += ["--on-forecast", hook]

    def scan(self, number: int) -> None:
        y, x = np.mgrid[:24, :32]
        rain = 150 * np.exp(-((x - 8 - number) ** 2 + (y - 12) ** 2) / 40)
        write_gif(self.input, START + timedelta(minutes=5 * number), rain.astype(np.uint8))

    def watch(self, last: int = LAST, fault: str = "", at: int | None = None) -> tuple[int, str]:
        """Watch in a child until the frames up to `last` have arrived, and some checks more."""
        return in_child(lambda: self._watch(last, fault, at))

    def _watch(self, last: int, fault: str, at: int | None) -> int:
        arrived, quiet = len([*self.input.rglob("*.gif")]), 0
        check = toolkit.forecast.watch.Watch._check

        def checked(watch: toolkit.forecast.watch.Watch) -> None:
            nonlocal arrived, quiet
            check(watch)
            quiet += 1
            if quiet == QUIET and arrived <= last:
                self.scan(arrived)
                arrived, quiet = arrived + 1, 0
            elif quiet == QUIET:
                os.kill(os.getpid(), signal.SIGTERM)

        toolkit.forecast.watch.Watch._check = checked  # type: ignore[method-assign]
        sys.argv = ["launch/predict.py", *self.words]
        faults = Faults(self.below, fault, at or 0)
        if at is not None:
            faults.arm()
        try:
            run_script(predict.main)
        except SystemExit as end:
            if at == 0:
                (self.folder / "calls").write_text(json.dumps(faults.calls))
            return int(end.code or 0)

    def files(self) -> dict[str, Path]:
        """What was written, by its path; a forecast in zarr is one."""
        found = [path for path in sorted(self.below.rglob("*")) if path.suffix == ".zarr" or path.is_file()]
        return {
            str(path.relative_to(self.below)): path
            for path in found
            if not any(parent.suffix in (".zarr", ".tmp", ".old") for parent in path.relative_to(self.below).parents)
        }

    def results(self) -> dict[str, Any]:
        """What can be compared of each file; None: it can't be read."""
        return {name: _read(path) for name, path in self.files().items()}

    def stats(self) -> dict[str, tuple[int, int]]:
        """Which bytes the forecasts are."""
        files = {name: path for name, path in self.files().items() if _is_forecast(name)}
        return {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in files.items()}


def _is_forecast(name: str) -> bool:
    return Path(name).suffix in (".nc", ".zarr") and not name.endswith("latest.nc")


def _read(path: Path) -> Any:
    try:
        if path.suffix in (".nc", ".zarr"):
            data = xarray.load_dataset(path, **({"chunks": None} if path.suffix == ".zarr" else {}))
            return {**data.to_dict(), "attrs": {name: v for name, v in data.attrs.items() if name != "history"}}
        if path.suffix == ".json":
            record = json.loads(path.read_text())
            return {**record, "made": ""}
        if path.suffix == ".html":
            return path.read_text().rstrip().endswith("</html>") or None
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return {name: arrays[name].tolist() for name in arrays}
        return path.read_bytes()
    except Exception:  # what half a file gives depends on its library
        return None


def same(found: Any, wanted: Any) -> bool:
    """Whether two results are equal; NaN equals NaN."""
    return found is not None and repr(found) == repr(wanted)


def report() -> list[dict[str, Any]]:
    folder, run, layout, fault, most = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
    place = Place(folder, run.absolute(), layout)
    start = folder / "start"
    place.below.mkdir()
    for number in range(FIRST + 1):
        place.scan(number)
    code, said = place.watch(FIRST)
    assert code == 0 and len(place.stats()) == 1, said
    (folder / "in").rename(start)  # the frames
    shutil.copytree(place.below, folder / "before", copy_function=shutil.copy2)
    before = place.results()

    def begin() -> None:
        for path in (place.input, place.below):
            shutil.rmtree(path, ignore_errors=True)
        place.ran.unlink(missing_ok=True)
        shutil.copytree(start, place.input)
        shutil.copytree(folder / "before", place.below)

    begin()
    code, said = place.watch(LAST, fault, 0 if fault != "large" else None)
    assert code == 0, said
    whole = place.results()
    assert None not in whole.values() and len(place.stats()) == (2 if layout == "page" else LAST - FIRST + 1)
    calls = json.loads((folder / "calls").read_text()) if fault != "large" else []
    done = []
    placed = [at for at, call in enumerate(calls, 1) if PLACED[layout] in call]
    for at in spaced([*range(1, len(calls) + 1)] if calls else [*SIZES], most, placed[-1:]):
        begin()
        first = place.stats()
        code, said = place.watch(LAST, fault, at)
        case = {"at": at, "call": calls[at - 1] if calls else "", "code": code, "said": said}
        case |= found(place, whole, before, first)
        stats = place.stats()
        code, said = place.watch()
        done.append({**case, "again": {"code": code, "said": said, **found(place, whole, before, stats)}})
    return done


def found(
    place: Place, whole: dict[str, Any], before: dict[str, Any], stats: dict[str, tuple[int, int]]
) -> dict[str, Any]:
    """Names of forecasts, of those that were made again, of files that are temporary, damaged, or missing."""
    results, now = place.results(), place.stats()
    forecasts = sorted(now)
    return {
        "forecasts": [Path(name).name for name in forecasts],
        "made_again": sorted(name for name in now.keys() & stats.keys() if now[name] != stats[name]),
        "temporary": sorted(name for name in results if Path(name).name.startswith(".")),
        "unread": sorted(name for name, data in results.items() if data is None),
        "other": sorted(
            name
            for name, data in results.items()
            if _is_forecast(name) and not same(data, whole.get(name, before.get(name)))
        ),
        "same": sorted(results) == sorted(whole) and all(same(results[name], data) for name, data in whole.items()),
        "ran": place.ran.read_text().split() if place.ran.exists() else [],
    }


if __name__ == "__main__":
    print(json.dumps(report()))

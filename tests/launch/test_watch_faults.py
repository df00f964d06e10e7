"""`predict --watch`, killed at a write or on a disk that is full from a write on: what was there stays, and every
forecast that is due is made once, whole, by the same process or the next one. Every write: tests/support/watch_points.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.forecasts import MakeRun, make_run, radar  # noqa: F401  (fixtures)

pytest.importorskip("xarray")
MOST = 3  # points of a layout and fault
ROOT = Path(__file__).parents[2]
STAMPS = ("20160711T210000Z", "20160711T210500Z", "20160711T211000Z")


def faults(folder: Path, run: Path, layout: str, fault: str, most: int) -> list[dict[str, Any]]:
    words = [str(folder), str(run), layout, fault, str(most)]
    command = [sys.executable, "-m", "tests.support.watch_points", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(case: dict[str, Any], layout: str, fault: str) -> None:
    where, again = f"{layout}, {fault} at {case['at']} ({case['call']})", case["again"]
    told = case["said"] + again["said"]
    due = [stamp for stamp in STAMPS if stamp != STAMPS[0] or layout != "page"]  # it keeps two
    for found in (case, again):
        assert not found["unread"] and not found["other"] and not found["made_again"], (where, found)
        assert "Traceback" not in found["said"], (where, found["said"])
    assert again["code"] == 0 and not again["temporary"], (where, again)
    made = [_stamp(name) for name in again["forecasts"]]
    ran = [_stamp(name) for name in again["ran"]]
    assert len(ran) == len(set(ran)) and set(ran) <= set(STAMPS[1:]), (where, ran)
    if fault == "kill":
        assert case["code"] == -9 and again["same"] and made == due, (where, told)
        return
    assert not case["temporary"] and case["code"] in (0, 1), (where, case)
    assert set(ran) == set(made) - {STAMPS[0]} or layout == "page", (where, ran, made)
    why = "File too large|errno = 27|can't" if fault == "large" else "No space left on device"
    message = rf"(waiting|error): \S+/place/\S*: not written: .*({why}).* bytes are free in "
    named = re.search(message, case["said"])
    assert named or (case["same"] and ("os.mkdir" in case["call"] or fault == "large")), (where, case["said"])
    if fault == "once" and case["code"] == 0:
        assert case["same"], (where, case)  # tried again by the same process
    if case["code"] == 1:
        assert case["ran"] == [] and layout == "page", (where, case)  # before the watch began
    assert made[-1] == STAMPS[-1] and set(made) <= set(STAMPS), (where, told)  # at its start it makes the newest
    assert again["same"] == (made == due), (where, made)


def _stamp(name: str) -> str:
    found = re.search(r"\d{8}T\d{6}Z", name)
    assert found is not None, name
    return found.group()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("layout", "fault"), [("files", "full"), ("files", "kill"), ("zarr", "kill"), ("page", "once")]
)
def test_at_some_writes(make_run: MakeRun, tmp_path: Path, layout: str, fault: str) -> None:  # noqa: F811
    if layout == "zarr":
        pytest.importorskip("zarr", minversion="3.1")
    found = faults(tmp_path, make_run(), layout, fault, MOST)
    assert len(found) == MOST
    for case in found:
        check(case, layout, fault)

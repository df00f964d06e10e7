"""A disk that is full, or a kill, at any write of a conversion that replaces a store: what was there stays, the message
names the file and the bytes, and the same command, given again, ends with the same bytes and leaves nothing else.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.archives import image_sequence

ROOT = Path(__file__).resolve().parents[2]
MOST = 6  # points of a format and fault, evenly spaced
PARTIAL = r"\.s\.partial-[0-9a-f]{{12}}"
NAMED = (
    rf"error: {{folder}}/?({PARTIAL}(/(store|done)\S*|/lock|/work)?|s)?: not written: {{why}}.* bytes are free in "
    r"\S+\. {kept}: .*run the same command again"
)
KEPT = {
    "before": "What was there before is untouched",
    "whole": "The new store is in place and complete, but a power cut may undo that",
    "aside": rf"The store that was there is in {{folder}}/{PARTIAL}/replaced, and {{folder}}/s does not exist",
}


def faults(tmp_path: Path, format: str, fault: str, most: int) -> list[dict]:
    image_sequence(tmp_path / "in/a", 9)
    image_sequence(tmp_path / "in/b", 9, first=20)
    command = [sys.executable, "-m", "tests.support.write_points", str(tmp_path), format, fault, str(most)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 3 < len(found) <= most
    return found


def check(found: list[dict], fault: str, folder: Path) -> None:
    why = "File too large" if fault == "large" else "No space left on device"
    assert any(case["call"].endswith("/store -> s") for case in found) == (fault != "large")
    for case in found:
        where = f"{fault} at {case['at']} ({case['call']}): {case['said']}"
        assert case["again"] == 0 and case["same"] and case["left_again"] == ["s"], (where, case["said_again"])
        assert case["there"], where
        if fault == "kill":
            assert case["code"] == -9, where
            continue
        assert "Traceback" not in case["said"], where
        assert not [name for name in case["left"] if name.startswith("work/")], where
        if case["code"] == 0:  # only removals were left
            assert case["there"] == ["whole"], where
            continue
        assert case["code"] == 1, where
        last = case["said"].strip().splitlines()[-1]
        kept = KEPT[case["there"][0]].format(folder=folder)
        assert re.fullmatch(NAMED.format(folder=folder, why=why, kept=kept), last), where
        if case["there"] == ["aside"]:  # the rename that would put it back is refused too
            assert fault == "full", where
        kept = "finished shards are kept in" in case["said"]
        assert kept == any(name.startswith(".s.partial-") for name in case["left"]), where


@pytest.mark.parametrize("fault", ["full", "once", "large", "kill"])
def test_at_some_writes(tmp_path, format, fault):
    check(faults(tmp_path, format, fault, MOST), fault, tmp_path / "stores")

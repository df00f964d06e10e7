"""Results that somebody else wrote, or edited: every value that is shown later is checked when a file is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.results import BARE
from toolkit.errors import ToolkitError
from toolkit.rundir import read_result

CELLS = {"mse": 1.0, "csi@30": None}
SCORES: dict[str, Any] = {
    "overall": CELLS,
    "leads": {"mse": [1.0, 2.0], "csi@30": [None, 0.5]},
    "modes": {"rain": CELLS},
}
LINES = {
    "reliability": [{"forecast": [0.1, None], "observed": [0.2, None]}],
    "roc": [{"area": None, "pofd": [0.1], "pod": [0.5]}],
    "fss": [[0.1, 0.2]],
    "frequency": [0.5],
    "spectrum": {"forecast": [1.0], "observation": [2.0]},
}
SOUND: dict[str, Any] = {
    **BARE,
    **SCORES,
    "mode_counts": {"rain": 5},
    "ensemble": {"samples": 2, "label": "mean of 2", "text": "b", "select": "mean", "by": None},
    "ranks": {"overall": [1, 2, 3], "leads": [[1, 2, 3], [0, 0, 0]], "modes": {}, "mode_leads": {}},
    "diagrams": {"probability": "c", "thresholds": [30.0], "scales": [1, 3], "wavelengths": [2.0], "overall": LINES},
    "persistence": SCORES,
    "mine": {"more": "keys"},
}
SCRIPT = "<img src=x onerror=alert(1)>"


def write(folder: Path, text: str) -> Path:
    file = folder / "run" / "eval" / "test-best.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_a_sound_result_is_read_as_it_is(tmp_path: Path) -> None:
    assert read_result(write(tmp_path, json.dumps(SOUND))) == SOUND


@pytest.mark.parametrize(
    "value",
    [SCRIPT, [], {}, True, "1", -(10**400), float("nan"), float("inf"), "\ud800"],
    ids=lambda value: str(value)[:9].encode("unicode_escape").decode(),
)
@pytest.mark.parametrize(
    "key",
    [
        *("context", "n", "step", "frames", "thresholds", "overall", "overall.mse", "leads.mse", "modes.rain.mse"),
        *("protocol", "protocol.name", "protocol.text", "store", "store.digest", "mode_counts.rain", "persistence"),
        *("announced.exact_frames", "announced.frames_without_value", "ranks.overall", "ensemble.samples"),
        *(
            "diagrams.overall.fss",
            "diagrams.scales",
            "persistence.leads.mse",
            "parameters",
            "seconds",
            "step_seconds",
            "limit",
        ),
    ],
)
def test_values_of_a_wrong_type_are_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    record = json.loads(json.dumps(SOUND))
    *path, last = key.split(".")
    holder = record
    for part in path:
        holder = holder[part]
    if value in (SCRIPT, "1") and isinstance(holder.get(last), str):  # any text: it is escaped where it is shown
        return
    if value in ([], {}) and type(value) is type(holder.get(last)) and key != "frames":
        return
    holder[last] = value
    with pytest.raises(ToolkitError, match=rf"test-best.json: ({key.partition('.')[0]}.*: |can't be read).*evaluate"):
        read_result(write(tmp_path, json.dumps(record)))


@pytest.mark.parametrize("key", ["context", "protocol", "persistence", "overall", "announced"])
def test_what_is_missing_is_named(tmp_path: Path, key: str) -> None:
    record = {name: value for name, value in SOUND.items() if name != key}
    with pytest.raises(ToolkitError, match=f"test-best.json: {key}: field required; delete it"):
        read_result(write(tmp_path, json.dumps(record)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"leads": {"mse": [1.0]}}, "leads.mse: not one value for each of 2 lead times"),
        ({"n": 0}, "n: '0': input should be greater than or equal to 1"),
        ({"overall": {"mse": -1.0}}, "a mean squared error below 0"),
        ({"diagrams": {**SOUND["diagrams"], "scales": [1]}}, "a line has 2 values, not 1"),
    ],
)
def test_values_that_do_not_fit_each_other(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ToolkitError, match=says):
        read_result(write(tmp_path, json.dumps({**SOUND, **change})))


@pytest.mark.parametrize("text", ["", "5", "[1]", "[" * 100_000, "{", "\xff"])
def test_scores_that_are_no_object_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ToolkitError, match=r"test-best.json: can't be read"):
        read_result(write(tmp_path, text))

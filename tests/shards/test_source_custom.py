"""A source in a file of the user's own: docs/new-dataset.md does what it says, and mistakes are told."""

import os
import py_compile
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards import open_store
from shards.cli import main
from shards.sources import SOURCES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "new-dataset.md"


def test_the_page_can_be_followed_to_the_letter(tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    files = dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", text, re.DOTALL))
    assert list(files) == ["make_archive.py", "cameras.py"] and len(files["cameras.py"].splitlines()) < 40
    for name, code in files.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    (commands,) = re.findall(r"<!-- commands -->\n```\n(.*?)```", text, re.DOTALL)
    said = ""
    for line in commands.strip().splitlines():
        command = [sys.executable, *shlex.split(line)[1:]]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        said += done.stdout
    assert "stores/cameras: OK" in said and "above 2, below 2" in said
    store = open_store(tmp_path / "stores" / "cameras")
    assert {name: split.events for name, split in store.splits.items()} == {"train": 4, "val": 2, "test": 2}
    celsius = np.load(tmp_path / "cameras" / "hall" / "2024-05-02.npy")
    values = store.manifest.scale.to_physical(store.read("val", 1, 0, 30))[:, 0]
    assert np.array_equal(np.isnan(values), np.isnan(celsius)) and np.nanmax(np.abs(values - celsius)) <= 0.125 + 1e-5


def test_the_page_names_every_source():
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in SOURCES)


SOURCE = """
import numpy as np
from shards.sources import Description, FrameSpec, PlannedEvent, Scale, SourceInfo

DESCRIPTION = Description(
    "mine", FrameSpec(1, 4, 4), None, Scale("q", "1", 0.0, 1.0), (), SourceInfo("n", "l", "c", "u")
)

def events(archive):
    yield "train", PlannedEvent("b", 2)
    yield "train", PlannedEvent("a", 2)

def read(archive, event):
    return np.zeros((2, 1, 4, 4), np.uint8)
"""


def convert(tmp_path, code: str, *options: str) -> int:
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "in").mkdir(exist_ok=True)
    return main(["convert", str(tmp_path / "mine.py"), str(tmp_path / "in"), str(tmp_path / "out"), *options])


def test_events_may_come_in_any_order(tmp_path):
    assert convert(tmp_path, SOURCE) == 0
    assert [event.key for event in open_store(tmp_path / "out").events("train")] == ["a", "b"]


def test_another_version_of_the_file_is_another_store(tmp_path, capsys):
    from shards.sources.custom import _module

    assert convert(tmp_path, SOURCE) == 0
    assert convert(tmp_path, SOURCE) == 0
    assert "already complete" in capsys.readouterr().out
    _module.cache_clear()
    assert convert(tmp_path, SOURCE + "\n# corrected\n") == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def events", "def evenst", "has no events; see docs/new-dataset.md"),
        ("import numpy as np", "import nonsense_package", "can't be loaded (No module named 'nonsense_package')"),
        ("def read(", "def read(:", "can't be loaded (invalid syntax"),
        ('yield "train", PlannedEvent("b", 2)', 'yield PlannedEvent("b", 2)', "should yield pairs such as"),
        ("DESCRIPTION = Description(", "DESCRIPTION = dict(x=", "can't be loaded"),
        ("(2, 1, 4, 4)", "(2, 4, 4)", "the source gave uint8 [2, 4, 4], planned were uint8 [2, 1, 4, 4]"),
    ],
)
def test_mistakes_in_the_file(tmp_path, capsys, old, new, message):
    from shards.sources.custom import _module

    _module.cache_clear()
    assert convert(tmp_path, SOURCE.replace(old, new)) != 0
    assert message in capsys.readouterr().err


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert main(["convert", str(tmp_path / "absent.py"), "in", "out"]) == 2
    assert "absent.py: no such file" in capsys.readouterr().err
    assert convert(tmp_path, SOURCE) == 0
    (tmp_path / "in").rmdir()
    assert main(["convert", str(tmp_path / "mine.py"), str(tmp_path / "in"), str(tmp_path / "other")]) == 2
    assert "in does not exist" in capsys.readouterr().err


def test_what_runs_is_the_text_of_the_file_and_not_a_pyc_beside_it(tmp_path):
    """Python takes a .pyc for the file's own where time and size in it fit, and these anybody can write."""
    from shards.sources.custom import _module

    file = tmp_path / "mine.py"
    file.write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')\n{SOURCE}")
    hidden = file.stat()
    py_compile.compile(str(file))
    file.write_text("#" * (hidden.st_size - len(SOURCE) - 1) + f"\n{SOURCE}")
    os.utime(file, ns=(hidden.st_atime_ns, hidden.st_mtime_ns))
    assert file.stat().st_size == hidden.st_size and list(tmp_path.glob("__pycache__/*.pyc"))
    _module.cache_clear()
    (tmp_path / "in").mkdir()
    assert main(["convert", str(file), str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert not (tmp_path / "RAN").exists()

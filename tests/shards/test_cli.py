"""What a person at the terminal meets: help, tables, exit codes, errors without tracebacks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import shards
from shards.cli import main
from tests.support.clips import make_store

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shards", *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_convert_verify_info_by_hand(tmp_path, idx_folder):
    out = tmp_path / "stores" / "mm"
    counts = ["--train", 2, "--val", 1, "--test", 1]
    done = run("convert", "moving-mnist", out, "--digits", idx_folder, *counts)
    assert done.returncode == 0, done.stderr
    assert (
        "train           6       120         20" in done.stdout
        and f"next: python -m shards verify {out}" in done.stdout
    )
    assert "12/12 events" in done.stderr and "\r" not in done.stderr
    again = run("convert", "moving-mnist", out, "--digits", idx_folder, *counts)
    assert (again.returncode, again.stdout) == (0, f"{out}: already complete, nothing to do\n")
    other = run("convert", "moving-mnist", out, "--digits", idx_folder, *counts, "--seed", 3)
    assert other.returncode == 2 and "--overwrite" in other.stderr and "Traceback" not in other.stderr


def test_verify_tells_by_its_exit_code(tmp_path, capsys):
    make_store(tmp_path / "s", "webdataset")
    assert main(["verify", str(tmp_path / "s")]) == 0
    assert main(["verify", str(tmp_path / "s"), "--quick"]) == 0
    assert "without --quick: checksums of all frames too" in capsys.readouterr().out
    (tmp_path / "s/test/000000.idx").unlink()
    assert main(["verify", str(tmp_path / "s"), "--quick"]) == 5
    assert f"{tmp_path}/s/test/000000.idx: " in capsys.readouterr().err
    assert main(["verify", str(tmp_path)]) == 2  # the wrong folder isn't damage
    assert "is not a store: it has no manifest.json" in capsys.readouterr().err


def test_a_package_that_is_absent_is_usage(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "eccodes", None)
    (tmp_path / "in").mkdir()
    for minute in (0, 2):
        (tmp_path / f"in/PrecipRate_00.00_20190610-00{minute:02d}00.grib2").write_bytes(b"GRIB")
    assert main(["convert", "radar", str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    assert "needs the package eccodes" in capsys.readouterr().err


def test_help_names_no_python(capsys):
    with pytest.raises(SystemExit):
        main(["convert", "images", "--help"])
    assert "None" not in capsys.readouterr().out


def test_info_for_people_and_programs(tmp_path, capsys, format):
    make_store(tmp_path / "s", format)
    assert main(["info", str(tmp_path / "s")]) == 0
    table = capsys.readouterr().out
    for part in (
        "2 x 6 x 4 uint8, every 60 s",
        "codes 0..254 are -3..124 K, code 255 is missing",
        "CC0",
        "even 2, odd 1",
    ):
        assert part in table
    assert main(["info", str(tmp_path / "s"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["splits"]["train"]["events"] == 3 and data["splits"]["train"]["event_frames"] == [5, 7]
    assert data["splits"]["train"]["first_event"] == "2020-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["verify", "/nowhere"], 2, "/nowhere is not a store"),
        (["info", "/nowhere"], 2, "python -m shards convert --help"),
        (["convert", "radar", "/nowhere", "/tmp/never"], 2, "/nowhere is not a folder"),
        (["convert", "moving-mnist", "/tmp/never", "--digits", "/nowhere"], 2, "/nowhere is not a folder"),
        (["convert", "moving-mnist", "/tmp/never", "--digit-size", "64"], 2, "has no room to move"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(capsys, arguments, code, message):
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_what_the_disk_refuses_is_told_with_exit_code_1(tmp_path, idx_folder, capsys):
    (tmp_path / "file").touch()
    arguments = ["convert", "moving-mnist", str(tmp_path / "file" / "s"), "--digits", str(idx_folder)]
    assert main([*arguments, "--train", "1", "--val", "0", "--test", "0"]) == 1
    assert "file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["convert"],
        ["convert", "cinema", "x"],
        ["convert", "moving-mnist"],
        ["convert", "radar", "in", "out", "--seed", "1"],
    ],
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "usage:" in capsys.readouterr().err


def test_version_is_the_distributions():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"modernn-toolkit {shards.__version__}\n")


def test_help_has_examples(capsys):
    for arguments in (["convert", "--help"], ["convert", "radar", "--help"], ["verify", "--help"], ["info", "--help"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "python -m shards" in capsys.readouterr().out.split("example")[-1]


def test_the_package_imports_no_torch():
    code = "import sys, shards.cli, shards.zarr_store, shards.zarr_writer as w; "
    code += "print({'torch', 'toolkit', 'launch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "set()\n"

"""`pip install .` of a source distribution and of a wheel: the console script, and configs and profiles inside."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import shards
import toolkit
from launch.cli import console
from launch.cli.parser import COMMANDS, make_parser
from tests.support.process import ROOT

BUILD = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"
NOT_CODE = shutil.ignore_patterns(".*", "runs", "stores", "build", "dist", "*.egg-info", "__pycache__")


def call(*command: str | Path, cwd: Path) -> str:
    """What a command prints; without PYTHONPATH, which would show it the checkout."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, made from a copy of the checkout."""
    source = tmp_path_factory.mktemp("source") / "modernn"
    shutil.copytree(ROOT, source, ignore=NOT_CODE)
    call(sys.executable, "-c", BUILD, cwd=source)
    return source / "dist"


@pytest.fixture(scope="module")
def home(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment in which pip has installed the source distribution."""
    home = tmp_path_factory.mktemp("installed") / "env"
    call(sys.executable, "-m", "venv", "--without-pip", home, cwd=distributions)
    # It sees the packages of this one, but not its .pth files: the checkout stays out of sight.
    (site_of(home) / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", home / "bin" / "python"]
    (file,) = distributions.glob("*.tar.gz")
    call(*pip, "install", "-q", "--no-index", "--no-build-isolation", "--no-deps", "-I", file, cwd=distributions)
    return home


def site_of(home: Path) -> Path:
    (site,) = home.glob("lib/python*/site-packages")
    return site


def test_an_installed_toolkit_works_in_any_folder(home: Path, tmp_path: Path) -> None:
    command = home / "bin" / "toolkit"
    assert call(command, "--version", cwd=tmp_path) == f"modernn-toolkit {toolkit.__version__}\n"
    assert "usage: toolkit status" in call(command, "status", "--help", cwd=tmp_path)
    plan = call(command, "sweep", "configs/sweeps/demo.yaml", "--dry-run", cwd=tmp_path)
    assert "demo: 4 runs" in plan and "203,904" in plan  # the planner's table is inside too
    assert "modernn_released" in call(command, "train", "--list-models", cwd=tmp_path)
    (tmp_path / "mine.yaml").write_text("base: configs/demo.yaml\ntrain: {steps: 7}\n")
    assert "steps: 7" in call(command, "train", "--config", "mine.yaml", "--print-config", cwd=tmp_path)
    profile = "from launch.slurm.profile import read_profile as r; print(r('gpu').gpus_per_node, r(None).gpus_per_node)"
    assert call(home / "bin" / "python", "-c", profile, cwd=tmp_path) == "4 1\n"
    layer = "from shards.cluster import job_layer; print(job_layer('slurm'))"
    assert call(home / "bin" / "python", "-c", layer, cwd=tmp_path) == "launch.slurm.array\n"
    assert "usage: python -m launch.jobs.job " in call(
        command.with_name("python"), "-m", "launch.jobs.job", "--help", cwd=tmp_path
    )
    # What jobs do on a node, in a snapshot, which outside git holds the packages' own files.
    copy = "import sys; from pathlib import Path; from launch.jobs.snapshot import take; print(take(Path()).path)"
    code = Path(call(home / "bin" / "python", "-c", copy, cwd=tmp_path).strip())
    assert (code / "launch" / "slurm" / "job.sh").exists()
    causes = [home / "bin" / "python", "-ESB", "-m", "launch.slurm.causes", "restart", tmp_path, "7", "1"]
    assert call(*causes, "--max-restarts", "1", cwd=code) == "no node: it could not begin\n"
    pages = "from toolkit.report.html.page import environment as e; print(len(e().get_template('base.html').render()))"
    assert int(call(home / "bin" / "python", "-c", pages, cwd=tmp_path)) > 5000  # the style sheet is in it
    configs = site_of(home) / "toolkit" / "configs"
    inside = {path.relative_to(configs) for path in configs.rglob("*.yaml")}
    assert inside == {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}


def test_the_wheel_holds_the_same_files_and_the_sdist_all_that_is_versioned(distributions: Path, home: Path) -> None:
    (sdist,), (wheel,) = distributions.glob("*.tar.gz"), distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert {name.split("/")[0] for name in files} == {"launch", "shards", "toolkit"}
        templates = (ROOT / "toolkit/report/html/templates").iterdir()
        assert {file.relative_to(ROOT).as_posix() for file in templates} <= set(files)
        for name in files:
            assert archive.read(name) == (site_of(home) / name).read_bytes(), name
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode == 0:  # else this is no checkout but a source distribution
        assert not {name for name in tracked.stdout.split() if not name.startswith(".")} - names


def printed_commands() -> set[tuple[str, ...]]:
    """Return every command that a message, a page or a model card prints: its words, values in them by a stand-in."""
    found = set()
    for file in (ROOT / "toolkit").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "command":
                words = [
                    arg.value if isinstance(arg, ast.Constant) else STAND_INS.get(ast.unparse(arg), "RUN")
                    for arg in node.args
                ]
                found.add(tuple(map(str, words)))
    for page in (ROOT / "toolkit").rglob("*.html"):
        for call in re.findall(r"\bcommand\(([^)]*)\)", page.read_text()):
            found.add(tuple(ast.literal_eval(f"({call},)")))
    return found


STAND_INS = {"split": "test", "origin": "FILE"}  # what other expressions stand for is a run


@pytest.mark.timeout(1800)
def test_every_command_that_is_printed_works_where_it_is_read(home: Path, tmp_path: Path) -> None:
    """In an environment that has the wheel's files and no checkout, as printed there, on a run of two steps."""
    (tmp_path / "sweep.yaml").write_text(
        "base: [configs/demo.yaml, configs/models/persistence.yaml]\nset: {data.store: s}\n"
    )
    (tmp_path / "config.yaml").write_text(
        "base: configs/demo.yaml\ndata: {store: s}\neval: {analyse: 4}\n"
        "train: {steps: 2, batch: 2, validate_every: 2, validate_samples: 2, checkpoint: {every: 2}}\n"
        "model: {hidden: 8, layers: 1}\n"
    )

    def typed(line: str) -> None:
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"

    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PATH": f"{home / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    typed("python -m shards convert moving-mnist s --size 32 --train 4 --val 2 --test 8")
    typed("toolkit train --config config.yaml --out run")
    order = ["train", "evaluate", "analyse", "export", "sweep"]
    commands = sorted(printed_commands(), key=lambda words: ([*order, words[0]].index(words[0]), words))
    assert {words[0] for words in commands} >= {"train", "evaluate", "analyse", "export", "sweep", "status", "plan"}
    code = "import sys; from toolkit.shipped import command; print(command(*sys.argv[1:]))"
    for number, words in enumerate(commands):
        values = {"RUN": "run", "N": "4", "FOLDER": "runs/sweep" if words[0] == "status" else f"export{number}"}
        values["FILE"] = "sweep.yaml" if words[0] == "sweep" else "config.yaml"
        line = call(home / "bin" / "python", "-c", code, *(values.get(word, word) for word in words), cwd=tmp_path)
        assert line.startswith("toolkit "), line
        typed(line.strip())


def test_one_version() -> None:
    assert toolkit.__version__ == shards.__version__
    for file in ("setup.py", "CITATION.cff"):
        assert re.search(rf"version(=\"|: ){re.escape(toolkit.__version__)}", (ROOT / file).read_text()), file


def test_every_script_is_a_command() -> None:
    scripts = {file.stem for file in (ROOT / "launch").glob("*.py") if "run_script(main)" in file.read_text()}
    assert scripts == set(COMMANDS) - {"shards"}


def test_commands_are_named_as_they_were_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(text: str) -> str:
        return make_parser("train.py", "launch/sweeps/spec.py too", text).format_help()

    text = "launch/evaluate.py --force; python launch/train.py --run R; torchrun -n 2 -- launch/train.py --run R"
    assert text in shown(text) and "usage: python launch/train.py " in shown(text)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/toolkit", "status"])
    typed = "toolkit evaluate --force; toolkit train --run R; torchrun -n 2 -m -- launch.train --run R"
    assert (
        typed in shown(text) and "usage: toolkit train " in shown(text) and "launch/sweeps/spec.py too" in shown(text)
    )


def test_commands_of_shards_are_named_as_they_were_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*words: str) -> str:
        with contextlib.suppress(SystemExit):  # of --help
            console.main(["shards", *words])
        output = capsys.readouterr()
        return output.out + output.err

    store = str(tmp_path / "s")
    for argv, program in (
        (["/x/bin/toolkit", "shards"], "toolkit shards"),
        (["/x/shards/__main__.py"], "python -m shards"),
    ):
        monkeypatch.setattr(sys, "argv", argv)
        words = ("--size", "32", "--train", "1", "--val", "0", "--test", "0", "--overwrite")
        assert f"next: {program} verify {store}\n" in shown("convert", "moving-mnist", store, *words)
        assert f"usage: {program} verify " in (text := shown("verify", "--help"))
        assert f"example: {program} verify " in text
        assert f"  {program} convert kth " in shown("convert", "--help")
        assert f"make one with: {program} convert --help" in shown("info", str(tmp_path))

"""What stands around the code: workflows, templates, hooks, container recipes, changelog, Python interface."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import toolkit
from launch import completion, config
from launch.cli.parser import COMMANDS
from tests.support.process import ROOT
from toolkit.config.reference import as_markdown, as_text
from toolkit.errors import ConfigError


def test_the_config_reference_is_that_of_the_types(capsys: pytest.CaptureFixture[str]) -> None:
    assert (ROOT / "docs" / "config-keys.md").read_text() == as_markdown(), (
        "python launch/config.py --keys --markdown > docs/config-keys.md"
    )
    assert config.main(["--keys", "train.checkpoint.every"]) == 0
    assert re.search(r"train\.checkpoint\.every +whole number >= 1.* +2000 +optimizer steps", capsys.readouterr().out)
    assert "model.slots" in as_text() and "eval.lpips" in as_text("eval.")
    with pytest.raises(ConfigError, match="no key begins so"):
        config.main(["--keys", "nothing"])


def test_importing_the_toolkit_is_light_and_its_functions_are_there() -> None:
    code = (
        "import sys, toolkit; print(sorted(toolkit.__all__));"
        "print(sorted({'torch', 'numpy', 'pydantic', 'yaml', 'deepspeed'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.stdout.splitlines() == [str(sorted(toolkit.__all__)), "[]"], done.stderr
    assert all(getattr(toolkit, name).__doc__ for name in toolkit.__all__ if name != "__version__")
    assert all((ROOT / package / "py.typed").exists() for package in ("shards", "toolkit", "launch"))


def test_a_store_is_opened(tiny_store: Path) -> None:
    frames = toolkit.open_store(tiny_store).read("train", 0, 0, 2)
    assert frames.dtype == np.uint8 and frames.shape[0] == 2


def test_completion_completes_commands_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert completion.main([]) == 0
    script = tmp_path / "toolkit.bash"
    script.write_text(capsys.readouterr().out)
    subprocess.run(["bash", "-n", script], check=True)

    def complete(*words: str) -> list[str]:
        typed = f"COMP_WORDS=(toolkit {shlex.join(words)}); COMP_CWORD={len(words)}; _toolkit; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", f"source {script}; {typed}"], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert complete("pre") == ["predict"]
    assert {*complete("")} == {*COMMANDS, "--help", "--version"}
    assert complete("train", "--profile-s") == ["--profile-steps"]
    assert "--model-file" in complete("evaluate", "--")
    assert complete("evaluate", "--no-l") == ["--no-lpips"]  # the second name of an option
    assert complete("logs", "--fo") == ["--follow"]
    assert complete("train", "x") == []  # bash completes files


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / ".github").rglob("*.yml")))
def test_files_of_github_are_sound(file: str) -> None:
    (path,) = (ROOT / ".github").rglob(file)
    tree = yaml.safe_load(path.read_text())
    if path.parent.name != "workflows":
        assert file == "config.yml" or {"name", "description", "body"} <= set(tree)
        return
    made = (ROOT / "Makefile").read_text()
    for job in tree["jobs"].values():
        assert job["timeout-minutes"] and job["runs-on"]
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            for target in re.findall(r"^make ([\w-]+)$", step.get("run", ""), re.MULTILINE):
                assert f"\n{target}: " in made
    assert "make test" in path.read_text() and "make check" in path.read_text()


def test_hooks_run_what_make_check_runs() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    checks = re.search(r"^check: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert checks is not None
    makes = {line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in checks[1].splitlines()}
    assert {hook["entry"] for hook in repo["hooks"]} == makes


def test_container_recipes_install_what_setup_offers(tmp_path: Path) -> None:
    docker, apptainer = (ROOT / "Dockerfile").read_text(), (ROOT / "apptainer.def").read_text()
    (image,) = re.findall(r"^ARG BASE=(\S+)$", docker, re.MULTILINE)
    assert f"From: {image}\n" in apptainer
    sections = dict(re.findall(r"^%(\w+)\n((?:(?!%).*\n?)*)", apptainer, re.MULTILINE))
    assert {"files", "environment", "post", "runscript"} == set(sections)
    run = re.findall(r"^RUN ((?:.*\\\n)*.*)$", docker, re.MULTILINE)
    for number, text in enumerate([*run, sections["environment"], sections["post"], sections["runscript"]]):
        (tmp_path / str(number)).write_text(text)
        subprocess.run(["bash", "-n", tmp_path / str(number)], check=True)
    installs = re.findall(r'pip install "/opt/modernn\[([\w,]+)\]"', docker + apptainer)
    assert len(installs) == 2 and installs[0] == installs[1]
    known = re.findall(r'^    "(\w+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert {*installs[0].split(",")} <= {*known}


def test_the_apptainer_image_gets_what_setup_installs_and_nothing_else_of_a_checkout() -> None:
    (section,) = re.findall(r"^%files\n((?: +.*\n)+)", (ROOT / "apptainer.def").read_text(), re.MULTILINE)
    copied = dict(line.split() for line in section.splitlines())
    assert all(copied[name] == f"/opt/modernn/{name}" for name in copied)
    packaged = {"shards", "toolkit", "launch", "configs", "slurm/profiles"}
    assert {*copied} == {*packaged, "setup.py", "pyproject.toml", "README.md", "LICENSE"}
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".venv", "runs", "stores"} <= {*ignored}


PYTHONS = ("3.10", "3.11", "3.12", "3.13")


@pytest.mark.skipif(os.getuid() != 0, reason="as root only; others are shown the command")
def test_packages_of_slurm_that_can_not_be_installed_are_an_error(tmp_path: Path) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text(
        "#!/bin/sh\n[ $1 = update ] || { echo 'E: Could not get lock /var/lib/dpkg/lock-frontend' >&2; exit 100; }\n"
    )
    apt.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "DEVCLUSTER": str(tmp_path / "cluster")}
    command = [ROOT / "slurm" / "devcluster" / "cluster", "install"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Could not get lock" in done.stderr
    assert "not installed (see above); when that is repaired: " in done.stdout + done.stderr
    assert "not up" not in done.stdout + done.stderr


def test_every_python_that_setup_allows_has_one_version_of_each_pin() -> None:
    """As far as the installed packages say which Pythons they need: `pip install -c` refuses a pin that isn't there."""
    assert f'python_requires=">={PYTHONS[0]}"' in (ROOT / "setup.py").read_text()
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints-cpu.txt").read_text().splitlines()]
    pins = [Requirement(line) for line in lines if line]
    for name in {pin.name for pin in pins}:
        for python in PYTHONS:
            own = [
                pin
                for pin in pins
                if pin.name == name and (not pin.marker or pin.marker.evaluate({"python_version": python}))
            ]
            assert len(own) == 1, (name, python)
            with contextlib.suppress(metadata.PackageNotFoundError):
                if own[0].specifier.contains(metadata.version(name)):
                    needs = metadata.metadata(name)["Requires-Python"]
                    assert SpecifierSet(needs).contains(f"{python}.9"), f"{own[0]} needs Python {needs}"


def test_the_changelog_has_unreleased_above_dated_versions() -> None:
    heads = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", head) for head in heads[1:])
    assert heads[1].startswith(f"[{toolkit.__version__}]")
    kinds = re.findall(r"^### (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert {*kinds} <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}

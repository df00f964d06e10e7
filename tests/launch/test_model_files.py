"""A model's file that a run directory or an export names: no command runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from launch import plan, sweep, train
from tests.support.process import ROOT
from toolkit.config.tree import RUN_FILES
from toolkit.errors import ConfigError
from toolkit.models import plugins
from toolkit.models.plugins import ModelFile

SOURCE = ROOT / "tests" / "support" / "my_model.py"
FRAMES = ("--frames", "1x16x16")


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory of somebody else's: its config names e.py, which leaves a file RAN where it is run."""
    monkeypatch.setattr(plugins, "_FILES", {})
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "theirs"
    run.mkdir()
    (run / "env.json").write_text("{}")
    mark = f"SMALLEST = __import__('pathlib').Path({str(tmp_path / 'RAN')!r}).write_text('x')"
    (run / "e.py").write_text(SOURCE.read_text().replace("SMALLEST = 1", mark))
    write(run / "config.yaml")
    return run


def write(path: Path, **values: object) -> Path:
    path.write_text(yaml.safe_dump({"model": {"name": "e.py:Recurrent"}, **values}))
    return path


def plan_based(run: Path) -> None:
    (run.parent / "mine.yaml").write_text("base: theirs/config.yaml\nmodel: {layers: 1}\n")
    plan.main(["--config", "mine.yaml", *FRAMES])


def plan_it(run: Path) -> None:
    plan.main(["--config", str(run / "config.yaml"), *FRAMES])


def train_it(run: Path) -> None:
    train.main(["--config", str(run / "config.yaml"), "--dry-run"])


def sweep_based(run: Path) -> None:
    (run.parent / "mine.yaml").write_text("base: theirs/config.yaml\nseeds: 2\n")
    sweep.main(["mine.yaml", "--dry-run"])


def sweep_entry(run: Path) -> None:
    (run.parent / "mine.yaml").write_text("list: [{base: theirs/config.yaml}]\n")
    sweep.main(["mine.yaml", "--dry-run"])


@pytest.mark.parametrize("command", [plan_based, plan_it, train_it, sweep_based, sweep_entry])
def test_no_route_runs_it(theirs: Path, command: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"config.yaml: model.name e.py:Recurrent names a file .* --model-file e.py"):
        command(theirs)  # type: ignore[operator]
    assert not (theirs.parent / "RAN").exists()


def test_nor_from_another_file_of_that_folder(theirs: Path) -> None:
    (theirs / "config.yaml").rename(theirs / "other.yaml")
    (theirs / "config.yaml").write_text("base: other.yaml\n")
    with pytest.raises(ConfigError, match=r"other.yaml: model.name e.py:Recurrent names a file"):
        plan_it(theirs)
    (theirs / "config.yaml").unlink()
    (theirs / "sub").mkdir()
    (theirs / "e.py").rename(theirs / "sub" / "e.py")
    (theirs / "other.yaml").rename(theirs / "sub" / "other.yaml")
    (theirs / "config.yaml").symlink_to(theirs / "sub" / "other.yaml")
    with pytest.raises(ConfigError, match="names a file"):
        plan_it(theirs)
    assert not (theirs.parent / "RAN").exists()


def test_nor_through_a_chain_of_links(theirs: Path) -> None:
    (theirs / "config.yaml").rename(theirs.parent / "other.yaml")
    (theirs / "e.py").rename(theirs.parent / "e.py")
    (theirs / "config.yaml").symlink_to("../other.yaml")
    (theirs.parent / "mine.yaml").symlink_to("theirs/config.yaml")
    with pytest.raises(ConfigError, match="names a file"):
        plan.main(["--config", str(theirs.parent / "mine.yaml"), *FRAMES])
    assert not (theirs.parent / "RAN").exists()


@pytest.mark.parametrize("beside", RUN_FILES[1:])
def test_a_run_directory_is_known_without_env_json(theirs: Path, beside: str) -> None:
    (theirs / "env.json").rename(theirs / beside)
    with pytest.raises(ConfigError, match="names a file"):
        plan_it(theirs)
    assert not (theirs.parent / "RAN").exists()


def test_nor_one_that_an_export_names(theirs: Path) -> None:
    (theirs / "env.json").unlink()
    (theirs / "config.yaml").rename(theirs / "config.json")
    (theirs / "model.safetensors").touch()
    with pytest.raises(ConfigError, match=r"config.json: model.name e.py:Recurrent names a file"):
        plan.main(["--config", str(theirs / "config.json"), *FRAMES])
    assert not (theirs.parent / "RAN").exists()


def test_a_runs_config_is_no_sweep_file(theirs: Path) -> None:
    (theirs / "config.yaml").write_text("list: [{model.name: 'e.py:Recurrent'}]\n")
    with pytest.raises(ConfigError, match=r"config.yaml: is the config of a run, not a sweep file"):
        sweep.main([str(theirs / "config.yaml"), "--dry-run"])
    assert not (theirs.parent / "RAN").exists()


def test_a_config_of_the_users_own_still_runs_it(theirs: Path) -> None:
    (theirs / "config.yaml").rename(theirs.parent / "mine.yaml")
    (theirs / "e.py").rename(theirs.parent / "e.py")
    train.main(["--config", str(theirs.parent / "mine.yaml"), "--print-config"])
    assert (theirs.parent / "RAN").exists()


def test_the_option_that_the_message_names_runs_it(theirs: Path) -> None:
    file = theirs / "e.py"
    digest = ModelFile.of("e.py", file.read_bytes()).sha256
    (theirs / "config.yaml").write_text(yaml.safe_dump({"model": {"name": "e.py:Recurrent", "sha256": digest}}))
    assert plan.main(["--config", str(theirs / "config.yaml"), "--model-file", str(file), *FRAMES, "--json"]) == 0
    assert (theirs.parent / "RAN").exists()
    with pytest.raises(ConfigError, match="convlstm is not a model from a file: leave --model-file out"):
        plan.main(["--config", str(ROOT / "configs/models/convlstm.yaml"), "--model-file", str(file), *FRAMES])

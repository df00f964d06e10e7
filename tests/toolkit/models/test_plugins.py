"""Models of one's own: options from a file, what runs a file and what does not, installed packages, check_model."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
import yaml

import toolkit
from launch.export import main as export
from launch.sweeps.spec import plan_sweep
from shards.manifest import FrameSpec
from tests.support.process import ROOT
from tests.support.runs import write_run
from toolkit.checkpoint.weights import load_model
from toolkit.config import load_config, make_config
from toolkit.errors import ConfigError
from toolkit.models import plugins
from toolkit.models.base import build_model, count_parameters
from toolkit.models.plugins import FileModel, ModelFile, UnloadedModel, add_file, entry_of, model_names
from toolkit.models.registry import ModelEntry, StepOptions
from toolkit.plan import cost
from toolkit.rundir import RunDir
from toolkit.testing import check_model

SOURCE = ROOT / "tests" / "support" / "my_model.py"
MARKER = "from pathlib import Path\nPath({!r}).touch()\n"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model's file and a config, in a process that was given no file yet."""
    monkeypatch.setattr(plugins, "_FILES", {})
    shutil.copy(SOURCE, tmp_path / "my_model.py")
    write(tmp_path / "mine.yaml", layers=2, hidden=8)
    return tmp_path


def write(path: Path, name: str = "my_model.py:Recurrent", **options: object) -> Path:
    path.write_text(yaml.safe_dump({"model": {"name": name, **options}}))
    return path


def test_options_are_those_of_the_file(mine: Path) -> None:
    config = load_config(mine / "mine.yaml", typed=True)
    assert isinstance(config.model, StepOptions) and isinstance(config.model, FileModel)
    assert (config.model.name, config.model.layers, config.model.kernel) == ("my_model.py:Recurrent", 2, 3)  # type: ignore[attr-defined]
    assert config.model.tile == config.model.patch
    assert count_parameters(config.model, FrameSpec(1, 16, 16)) > 0
    assert entry_of(config.model).trained


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layrs": 2}, "model.layrs: unknown key; did you mean layers?"),
        ({"kernel": 4}, "model.kernel: must be odd"),
        ({"name": "my_model.py:Absent"}, "my_model.py: has no class Absent; there are Widths, Recurrent"),
        ({"name": "my_model.py:Untyped"}, "Untyped must say which class its options are"),
        ({"name": "my_model.py:WrongOptions"}, "FrameSpec must derive from"),
        ({"name": "other.py:Recurrent"}, "other.py: the file of a model can't be read: No such file"),
        ({"name": "my_model:Recurrent"}, "for one of your own write FILE.py:CLASS"),
    ],
)
def test_a_fault_is_named(mine: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(write(mine / "mine.yaml", **options), typed=True)  # type: ignore[arg-type]
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"), [(b"def (", "is no Python"), (b"\xff\xfe", "must be Python in UTF-8"), (b"", "has no class")]
)
def test_a_file_that_is_no_model_is_refused(mine: Path, text: bytes, message: str) -> None:
    (mine / "my_model.py").write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        load_config(mine / "mine.yaml", typed=True)


def test_options_are_read_without_torch_and_a_sweep_is_planned(mine: Path) -> None:
    (mine / "sweep.yaml").write_text("base: mine.yaml\ngrid: {model.hidden: [8, 16]}\nseeds: 2\n")
    code = (
        "import sys; from launch.sweeps.spec import plan_sweep; p = plan_sweep('sweep.yaml');"
        "print([r.folder.rpartition('-')[0] for r in p.runs], 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=mine, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout == "['hidden8-seed1', 'hidden8-seed2', 'hidden16-seed1', 'hidden16-seed2'] False\n", done.stderr
    (mine / "sweep.yaml").write_text(
        "base: mine.yaml\nlist: [{model.name: 'my_model.py:Recurrent', model.hidden: 4}]\n"
    )
    (run,) = plan_sweep(mine / "sweep.yaml").runs
    assert run.name == "my_model.py_Recurrent" and run.config.model.sha256  # type: ignore[attr-defined]


def test_no_file_runs_that_a_run_directory_names(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = mine / "ran"
    text = MARKER.format(str(marker)) + SOURCE.read_text().replace(
        "SMALLEST = 1", MARKER.format(str(marker)) + "SMALLEST = 1"
    )
    text = text.replace("from __future__ import annotations\n", "", 1)
    run = RunDir(mine / "run")
    run.path.mkdir()
    for name in ("model.py", "my_model.py"):
        (run.path / name).write_text(text)
    digest = ModelFile.of("", text.encode()).sha256
    for model in (
        {"name": "my_model.py:Recurrent"},
        {"name": str(run.path / "model.py") + ":Recurrent"},
        {"name": "my_model.py:Recurrent", "sha256": digest},
        {"name": str(run.path / "model.py") + ":Recurrent", "sha256": digest},
    ):
        run.config_file.write_text(yaml.safe_dump({"model": model}))
        with pytest.raises(ConfigError):
            build_model(run.config().model, FrameSpec(1, 8, 8))
        with pytest.raises(ConfigError):  # by the path of a run's resolved config nothing runs either
            build_model(load_config(run.config_file).model, FrameSpec(1, 8, 8))
        assert not marker.exists()
    run.config_file.write_text(yaml.safe_dump({"model": {"name": "my_model.py:Recurrent", "sha256": digest}}))
    assert isinstance(load_config(run.config_file, typed=True).model, UnloadedModel) and not marker.exists()
    run.load_model_file(run.path / "model.py")  # the user names it
    build_model(run.config().model, FrameSpec(1, 8, 8))
    assert marker.exists()


def test_a_run_keeps_the_file_and_takes_no_other(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(mine / "mine.yaml", typed=True)
    run = RunDir.create(mine / "run", config)
    assert run.model_file.read_bytes() == SOURCE.read_bytes()
    monkeypatch.setattr(plugins, "_FILES", {})
    found = run.config()
    assert isinstance(found.model, UnloadedModel)
    assert found.hash8() == config.hash8() and found.hash8(False) == config.hash8(False)
    with pytest.raises(ConfigError, match=r"was not given: .* --model-file my_model.py"):
        build_model(found.model, FrameSpec(1, 8, 8))
    with pytest.raises(ConfigError, match="--model-file"):
        cost.get(found, 1)
    changed = mine / "changed.py"
    changed.write_text(SOURCE.read_text() + "\n# edited\n")
    with pytest.raises(
        ConfigError, match=r"changed.py: has SHA-256 \w{12}..., the model of .* is from a file my_model.py"
    ):
        run.load_model_file(changed)
    assert isinstance(run.config().model, UnloadedModel)
    run.load_model_file(run.model_file)
    assert run.config() == config
    (mine / "my_model.py").write_text(changed.read_text())
    assert load_config(mine / "mine.yaml", typed=True).hash8() != config.hash8()  # another text, another run
    own = RunDir.create(mine / "convlstm", make_config({"model": {"name": "convlstm"}}, "test"))
    with pytest.raises(ConfigError, match="convlstm is not a model from a file: leave --model-file out"):
        own.load_model_file(mine / "my_model.py")


def test_an_export_has_the_file_and_runs_it_only_where_named(
    mine: Path, tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"store": str(tiny_store), "context": 3, "horizon": 2}
    tree = {"model": {"name": f"{mine / 'my_model.py'}:Recurrent", "layers": 1, "hidden": 4}, "data": data}
    run = write_run(mine / "run", tree, 3)
    expected = load_model(run, "last", torch.device("cpu"))[0].state_dict()
    monkeypatch.setattr(plugins, "_FILES", {})
    with pytest.raises(ConfigError, match="--model-file"):
        export([str(run.path), "--out", str(mine / "out")])
    assert not (mine / "out").exists()
    assert export([str(run.path), "--out", str(mine / "out"), "--model-file", str(mine / "my_model.py")]) == 0
    monkeypatch.setattr(plugins, "_FILES", {})
    with pytest.raises(ConfigError, match=r"model_file='my_model\.py'"):
        toolkit.load(mine / "out")
    loaded = toolkit.load(mine / "out", mine / "out" / "model.py").state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[key], expected[key]) for key in expected)
    for path in (mine / "out", run.path):
        with pytest.raises(ConfigError, match="has SHA-256"):
            toolkit.load(path, mine / "mine.yaml")


def test_check_model_passes_and_fails(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine)
    check_model("my_model.py:Recurrent", (2, 9, 6), learn=False, layers=1, hidden=4)
    with pytest.raises(AssertionError, match="gives another forecast when it is called again"):
        check_model("my_model.py:Forgetful", (1, 8, 8), layers=1, hidden=4)


@pytest.mark.parametrize("name", ["Noisy", "SaysNoisy"])
def test_a_model_is_stochastic_by_its_options_too(mine: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(write(mine / "mine.yaml", f"my_model.py:{name}", layers=1, hidden=4), typed=True)
    model, options = (True, False) if name == "Noisy" else (False, True)
    with pytest.raises(ConfigError, match=f"`stochastic` is {model} in the model and {options} in its options"):
        build_model(config.model, FrameSpec(1, 8, 8))


def test_check_model_compares_the_members(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine)
    check_model("my_model.py:Drawn", (1, 8, 8), learn=False, layers=1, hidden=4)
    with pytest.raises(AssertionError, match="members of an ensemble differ, and `stochastic` is False"):
        check_model("my_model.py:SecretlyDrawn", (1, 8, 8), layers=1, hidden=4)


class PackagedOptions(StepOptions):
    name: Literal["packaged"] = "packaged"
    kernel: int = 3


ENTRY = ModelEntry("tests.support.my_model:Recurrent", PackagedOptions, "Packaged", "nowhere")


def install(monkeypatch: pytest.MonkeyPatch, name: str, entry: object) -> None:
    point = SimpleNamespace(name=name, value="x:Y", dist=SimpleNamespace(name="their-package"), load=lambda: entry)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if group == plugins.GROUP else [])
    plugins.entry_points.cache_clear()
    monkeypatch.setattr(plugins, "_FILES", {})


def test_a_model_of_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "packaged", ENTRY)
    config = make_config({"model": {"name": "packaged", "layers": 1, "hidden": 4}}, "test")
    assert config == make_config(yaml.safe_load(config.to_yaml()), "test")
    assert entry_of(config.model) is ENTRY and "packaged" in model_names()
    assert count_parameters(config.model, FrameSpec(1, 8, 8)) > 0
    assert len(cost.code_digest(config.model)) == 16
    with pytest.raises(ConfigError, match=r"model.layrs: unknown key; did you mean layers\?"):
        make_config({"model": {"name": "packaged", "layrs": 1}}, "test")
    plugins.entry_points.cache_clear()


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [("packaged", 5, "is a int, should be a ModelEntry"), ("convlstm", ENTRY, "of that name")],
)
def test_an_entry_point_that_can_not_be_used_is_named(
    name: str, entry: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, name, entry)
    with pytest.raises(ConfigError, match=f"their-package: .*{message}"):
        make_config({"model": {"name": "unknown"}}, "test")
    plugins.entry_points.cache_clear()


def test_the_file_goes_to_the_planners_process_as_text(mine: Path) -> None:
    config = load_config(mine / "mine.yaml", typed=True)
    (mine / "my_model.py").unlink()
    assert cost._model_file(config) == ("my_model.py", SOURCE.read_text())
    add_file(ModelFile.of("my_model.py", SOURCE.read_bytes()))
    assert make_config(config.model_dump(mode="json"), "request") == config

"""Config: inheritance, overrides, identity, and errors that list every fault with the nearest known key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.config import RunConfig, load_config, make_config
from toolkit.config.tree import merge, with_overrides
from toolkit.errors import ConfigError

ROOT = Path(__file__).parents[2]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_bases_merge_left_to_right_and_the_file_wins(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "train: {lr: 0.1, steps: 5}\nseed: 1\n")
    write(tmp_path, "b.yaml", "train: {lr: 0.2}\n")
    path = write(tmp_path, "run.yaml", "base: [a.yaml, b.yaml]\nseed: 2\n")
    config = load_config(path, ["train.batch=16", "model.name=convlstm"])
    assert (config.train.lr, config.train.steps, config.seed, config.train.batch) == (0.2, 5, 2, 16)
    assert config.model.name == "convlstm"


def test_another_model_starts_its_section_anew() -> None:
    merged = merge({"model": {"name": "modernn", "slots": 2}}, {"model": {"name": "convlstm", "kernel": 3}})
    assert merged == {"model": {"name": "convlstm", "kernel": 3}}
    assert merge({"model": {"name": "modernn", "slots": 2}}, {"model": {"hidden": 8}})["model"]["slots"] == 2


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"train": {"stepz": 3}}, ["train.stepz: unknown key; did you mean steps?"]),
        ({"trian": {}}, ["trian: unknown key; did you mean train?"]),
        ({"model": {"name": "modernn", "slot": 3}}, ["model.slot: unknown key; did you mean slots?"]),
        ({"model": {"name": "modrnn"}}, ["unknown model 'modrnn'; did you mean modernn?"]),
        ({"model": {"slots": 3}}, ["model.name: missing; known: modernn"]),
        ({"train": {"lr": -1e-3}}, ["train.lr: input should be greater than 0, got -0.001"]),
        ({"train": {"batch": 8, "micro_batch": 3}}, ["micro_batch 3 doesn't divide train.batch 8"]),
        ({"train": {"compile": "reduce-overhead"}}, ["train.compile: reduce-overhead is gone", "train.graph=auto"]),
        ({"train": {"tf32": True, "precision": "bf16"}}, ["train.tf32 rounds", "train.precision=fp32"]),
        (
            {"train": {"lr": -1, "zero": 7}, "data": {"contxt": 1}},
            ["3 faults", "train.lr", "train.zero", "data.contxt: unknown key; did you mean context?"],
        ),
    ],
)
def test_faults_are_listed_all_at_once(tree: dict, expected: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        make_config(tree, "some.yaml")
    for text in ["some.yaml", *expected, "Every key: python launch/config.py --keys"]:
        assert text in str(error.value)


def test_file_faults_name_the_file(tmp_path: Path) -> None:
    write(tmp_path, "here.yaml", "{}")
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file.*here\.yaml"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"bad\.yaml: not YAML"):
        load_config(write(tmp_path, "bad.yaml", "a: [1"))
    with pytest.raises(ConfigError, match="must hold a mapping"):
        load_config(write(tmp_path, "list.yaml", "- 1"))
    write(tmp_path, "y.yaml", "base: x.yaml")
    write(tmp_path, "x.yaml", "base: y.yaml")
    with pytest.raises(ConfigError, match=r"leads back to itself: x\.yaml -> y\.yaml"):
        load_config(tmp_path / "x.yaml")


@pytest.mark.parametrize("text", ["train.lr", "=3", "train.lr=[1"])
def test_bad_overrides_say_how_to_write_them(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        with_overrides({}, [text])


def test_saved_config_reads_back_equal(tmp_path: Path) -> None:
    config = make_config(
        {"model": {"name": "convlstm"}, "eval": {"thresholds": [20, 30]}, "train": {"lr": "1e-4"}}, "t"
    )
    again = load_config(write(tmp_path, "config.yaml", config.to_yaml()))
    assert again == config
    assert again.hash8() == config.hash8()


def test_identity_ignores_what_cannot_change_a_result() -> None:
    base = RunConfig().hash8()
    cosmetic = {
        "name": "x",
        "train": {"log_every": 1, "checkpoint": {"keep_last": 9}, "device": "cpu"},
        "data": {"num_workers": 3},
        "eval": {"show": 1},
    }
    assert make_config(cosmetic, "t").hash8() == base
    for tree in (
        {"seed": 1},
        {"train": {"lr": 1e-3}},
        {"train": {"tf32": True}},
        {"model": {"name": "modernn", "slots": 2}},
        {"data": {"store": "s"}},
    ):
        assert make_config(tree, "t").hash8() != base


def test_a_checkpoint_belongs_to_a_run_however_it_is_computed() -> None:
    for tree in (
        {"train": {"zero": 2}},
        {"train": {"activation_checkpointing": {"policy": "step"}}},
        {"train": {"deterministic": True}},
    ):
        assert make_config(tree, "t").hash8() != RunConfig().hash8()
        assert make_config(tree, "t").hash8(execution=False) == RunConfig().hash8(execution=False)
    assert make_config({"seed": 1}, "t").hash8(execution=False) != RunConfig().hash8(execution=False)


def test_identity_is_stable_over_versions() -> None:
    """Users' run directories are named by it. Change these only together with CONFIG_VERSION."""
    assert RunConfig().hash8() == "1ea52808"
    assert make_config({"model": {"name": "convlstm"}, "seed": 3}, "t").hash8() == "803e97c8"


@given(st.permutations(["train.lr=0.01", "seed=4", "model.slots=2", "data.context=5"]))
def test_identity_does_not_depend_on_the_order_of_keys(overrides: list[str]) -> None:
    tree = with_overrides({"model": {"name": "modernn"}}, overrides)
    assert make_config(tree, "t").hash8() == "1fe1fb3c"


def test_config_and_run_directories_need_no_torch() -> None:
    code = "import sys, toolkit.config, toolkit.rundir; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    "name", ["../..", "..", ".", "", "/etc", "a/b", "a\0b", "a\nb", "\x1b[2J", "x" * 201, "\u00e9" * 101, "\ud800"]
)
def test_a_name_that_leaves_the_runs_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^t: 1 fault\n  name: "):
        make_config({"name": name}, "t")


@pytest.mark.parametrize("name", ["run", "modernn, 4 slots", "ModeRNN-\u00e9t\u00e9", "...a", "a..b", "x" * 200])
def test_other_names_are_taken(name: str) -> None:
    assert make_config({"name": name}, "t").name == name


@pytest.mark.parametrize("key", ["data.train_split", "data.val_split", "eval.split"])
@pytest.mark.parametrize("split", ["../../x", "/x", "test\n", "..", "", "a/b", "a.b", "Test"])
def test_a_split_whose_files_would_lie_elsewhere_is_refused(key: str, split: str) -> None:
    section, name = key.split(".")
    with pytest.raises(ConfigError, match=f"^t: 1 fault\n  {key}: string should match pattern"):
        make_config({section: {name: split}}, "t")

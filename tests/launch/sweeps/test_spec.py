"""What a sweep file means, what it may not hold, and what its runs are called."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.sweeps.spec import PlannedRun, plan_sweep
from tests.support.process import ROOT
from toolkit.config import tree
from toolkit.errors import ConfigError


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text("model: {name: modernn}\ndata: {store: store}\ntrain: {steps: 100}\n")
    (tmp_path / "modernn.yaml").write_text("model: {name: modernn}\n")
    (tmp_path / "convlstm.yaml").write_text("model: {name: convlstm, kernel: 3}\n")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    file = folder / "demo.yaml"
    file.write_text(text)
    return file


def runs(folder: Path, text: str, *overrides: str) -> tuple[PlannedRun, ...]:
    return plan_sweep(write(folder, text), overrides).runs


def names(folder: Path, text: str, *overrides: str) -> list[str]:
    return [run.name for run in runs(folder, text, *overrides)]


def test_list_times_seeds_in_order(configs: Path) -> None:
    text = """
    base: base.yaml
    seeds: [1, 2]
    set: {train.steps: 300}
    list:
      - {base: modernn.yaml, model.slots: 1}
      - {base: modernn.yaml, model.slots: 4}
      - {base: convlstm.yaml}
    """
    planned = runs(configs, text)
    assert [run.name for run in planned] == [
        "modernn-slots1-seed1",
        "modernn-slots1-seed2",
        "modernn-slots4-seed1",
        "modernn-slots4-seed2",
        "convlstm-seed1",
        "convlstm-seed2",
    ]
    assert {run.config.train.steps for run in planned} == {300}
    assert planned[0].group == planned[1].group == "modernn-slots1"
    assert planned[2].settings == {"model.name": "modernn", "model.slots": 4}
    assert planned[4].settings == {"model.name": "convlstm"}
    assert planned[4].config.model.kernel == 3
    assert planned[0].config.name == planned[0].name
    assert planned[0].folder == f"modernn-slots1-seed1-{planned[0].config.hash8()}"


def test_grid_is_a_product_and_zip_goes_in_step(configs: Path) -> None:
    text = """
    base: base.yaml
    grid: {train.lr: [1e-3, 3e-4], train.batch: [8, 16]}
    zip: {data.context: [10, 5], data.horizon: [10, 15]}
    """
    planned = runs(configs, text)
    assert len(planned) == 8
    windows = {(run.config.data.context, run.config.data.horizon) for run in planned}
    assert windows == {(10, 10), (5, 15)}
    assert planned[0].name == "context10-horizon10-batch8-lr0.001"


@pytest.mark.parametrize(("seeds", "expected"), [("3", [1, 2, 3]), ("[7]", [7]), ("[0, 5]", [0, 5])])
def test_seeds(configs: Path, seeds: str, expected: list[int]) -> None:
    assert [run.seed for run in runs(configs, f"base: base.yaml\nseeds: {seeds}")] == expected


def test_without_seeds_the_config_decides(configs: Path) -> None:
    (run,) = runs(configs, "base: base.yaml\nset: {seed: 9}")
    assert run.seed == 9
    assert run.name == run.group == "modernn"


def test_same_config_twice_is_one_run(configs: Path) -> None:
    text = "base: base.yaml\nlist: [{model.slots: 4}, {model.slots: 1}, {model.name: modernn}]"  # 4 is the default
    plan = plan_sweep(write(configs, text))
    assert [run.config.model.slots for run in plan.runs] == [4, 1]
    assert plan.duplicates == 1


def test_exclude_compares_resolved_values(configs: Path) -> None:
    text = """
    base: base.yaml
    list: [{base: modernn.yaml}, {base: convlstm.yaml}]
    grid: {train.lr: [1e-3, 3e-4]}
    exclude:
      - {model.name: convlstm, train.lr: 0.0003}
      - {model.slots: 4, train.lr: 0.001}
    """
    plan = plan_sweep(write(configs, text))
    assert [run.name for run in plan.runs] == ["modernn-lr0.0003", "convlstm-lr0.001"]
    assert plan.excluded == 2


def test_exclude_that_fits_nothing_valid_is_a_fault(configs: Path) -> None:
    with pytest.raises(ConfigError, match=r"exclude, entry 1 fits no run(.|\n)*did you mean slots"):
        runs(configs, "base: base.yaml\nexclude: [{model.slotz: 4}]")


def test_excluding_everything_is_an_error(configs: Path) -> None:
    with pytest.raises(ConfigError, match="plans no run: all 2 are excluded"):
        runs(configs, "base: base.yaml\nseeds: 2\nexclude: [{data.store: store}]")


def test_command_line_is_laid_last(configs: Path) -> None:
    text = "base: base.yaml\nset: {train.steps: 300}\nlist: [{train.steps: 400}]\nseeds: 2"
    assert [run.config.train.steps for run in runs(configs, text, "train.steps=5")] == [5, 5]
    assert names(configs, text, "seed=3") == ["modernn"]  # both are the same run now


def test_common_settings_survive_the_choice_of_a_model(configs: Path) -> None:
    text = "base: base.yaml\nset: {model.layers: 2}\ngrid: {model.name: [modernn, convlstm]}"
    assert [run.config.model.layers for run in runs(configs, text)] == [2, 2]


def test_nested_settings_are_the_same_as_dotted(configs: Path) -> None:
    dotted = runs(configs, "base: base.yaml\nset: {train.lr: 1e-3, model.slots: 2}")
    nested = runs(configs, "base: base.yaml\nset: {train: {lr: 1e-3}, model: {slots: 2}}")
    assert dotted == nested


def test_names_say_only_what_differs(configs: Path) -> None:
    assert names(configs, "base: base.yaml\nset: {model.slots: 2, train.lr: 1e-3}") == ["modernn"]
    assert names(configs, "base: base.yaml\nseeds: 2") == ["modernn-seed1", "modernn-seed2"]
    assert names(configs, "base: base.yaml\ngrid: {model.slots: [1, 4]}") == ["slots1", "slots4"]
    cosmetic = "base: base.yaml\ngrid: {model.slots: [1, 4]}\nset: {train.log_every: 7}"
    assert names(configs, cosmetic) == ["slots1", "slots4"]


def test_names_of_other_values(configs: Path) -> None:
    assert names(configs, "base: base.yaml\ngrid: {model.gate_norm: [true, false]}") == [
        "gate_norm_on",
        "gate_norm_off",
    ]
    modes = "base: base.yaml\ngrid: {data.modes: [null, ['1', '2']]}"
    assert names(configs, modes) == ["modes_none", "modes_1+2"]
    paths = "base: base.yaml\ngrid: {data.store: [../a/b, s3://x y]}"
    assert names(configs, paths) == ["store_a_b", "store_s3_x_y"]
    policies = "train.activation_checkpointing.policy: [none, step]"
    shared = f"base: base.yaml\nzip: {{data.store: [a, b], {policies}, eval.split: [test, val]}}"
    assert names(configs, shared) == ["store_a-checkpointing_none-split_test", "store_b-checkpointing_step-split_val"]


def test_two_keys_with_one_last_part_are_written_whole(configs: Path) -> None:
    key = "train.deepspeed"
    text = (
        f"base: base.yaml\nzip: {{{key}.comms_logger.enabled: [true, false], {key}.timers.throughput.enabled: [1, 0]}}"
    )
    text = text.replace("[1, 0]", "[true, false]")
    assert names(configs, text)[0] == f"{key}.comms_logger.enabled_on-{key}.timers.throughput.enabled_on"


def test_a_named_entry_bears_its_name(configs: Path) -> None:
    text = """
    base: base.yaml
    seeds: 2
    list: [{name: small, model.slots: 1, model.hidden: 8}, {model.slots: 4}, {model.slots: 2}]
    """
    assert names(configs, text)[::2] == ["small-seed1", "slots4-seed1", "slots2-seed1"]


MANY = list(range(1, 400))


def test_names_fit_into_a_folders(configs: Path, tmp_path: Path) -> None:
    """Fourteen keys in step: what differs fills more than the 255 bytes that a folder's name may have."""
    keys = [
        "steps",
        "batch",
        "lr",
        "clip",
        "validate_every",
        "validate_samples",
        "sampling.start",
        "sampling.slope",
        "sampling.stop",
    ]
    keys = [f"train.{key}" for key in keys] + ["data.context", "data.horizon", "data.train_stride", "model.slots"]
    values = {key: [0.5, 0.25] if key.endswith(("lr", "clip", "start", "slope")) else [8, 4] for key in keys}
    values["data.store"] = [
        "some/rather/long/path/of/a/store/number-one",
        "some/rather/long/path/of/a/store/number-two",
    ]
    planned = runs(configs, yaml.safe_dump({"base": "base.yaml", "seeds": 2, "zip": values}))
    assert len(planned) == 4 and len({run.name for run in planned}) == 4 and len({run.group for run in planned}) == 2
    for run in planned:
        assert len(run.folder.encode()) <= 200
        (tmp_path / f".{run.folder}.tmp").mkdir()
        assert run.name.startswith("slots"), run.name


@pytest.mark.parametrize("text", ["seeds: 1000000000", f"grid: {{train.lr: {MANY}, seed: {MANY}}}"])
def test_more_runs_than_anybody_starts_are_refused(configs: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="at most 100,000"):
        runs(configs, f"base: base.yaml\n{text}")


def test_one_name_for_two_runs_is_an_error(configs: Path) -> None:
    text = "base: base.yaml\nlist: [{name: slots4, model.slots: 1}, {model.slots: 4}, {model.slots: 2}]"
    with pytest.raises(ConfigError, match="both be called slots4"):
        runs(configs, text)


def test_all_faults_of_the_file_at_once(configs: Path) -> None:
    text = """
    nmae: x
    seeds: [one]
    grid: {train.lr: 3, train.batch: []}
    zip: {data.context: [1, 2], data.horizon: [1]}
    list: [4]
    exclude: {a: 1}
    """
    with pytest.raises(ConfigError) as caught:
        runs(configs, text)
    message = str(caught.value)
    assert "demo.yaml: 7 faults" in message
    assert "nmae: unknown key; did you mean name?" in message
    assert "seeds: must be a list of whole numbers" in message
    assert "grid, train.lr: must be a list" in message
    assert "grid, train.batch: must be a list of at least one item, got []" in message
    assert "data.context has 2, data.horizon has 1" in message
    assert "list, entry 1: must be a mapping" in message
    assert "exclude: must be a list" in message


def test_config_faults_name_file_and_entry(configs: Path) -> None:
    text = "base: base.yaml\nseeds: 50\nlist: [{model.slotz: 4}, {train.lr: -1, train.batch: 0}, {model.slots: 1}]"
    with pytest.raises(ConfigError) as caught:
        runs(configs, text)
    message = str(caught.value)
    assert message.count("did you mean slots") == 1  # once, not for every seed
    assert "demo.yaml: list, entry 1: 1 fault" in message
    assert "demo.yaml: list, entry 2: 2 faults" in message


def test_many_faults_are_cut_short(configs: Path) -> None:
    text = f"base: base.yaml\ngrid: {{train.lr: {[-n for n in range(1, 21)]}}}"
    with pytest.raises(ConfigError, match="and 10 more such messages"):
        runs(configs, text)


SOME = "base: base.yaml\nseeds: 2\nlist: [{}, {base: convlstm.yaml, model.hidden: 8}, {model.name: persistence}]"


def test_an_axis_applies_to_the_models_that_have_its_key(configs: Path) -> None:
    plan = plan_sweep(write(configs, SOME), axes={"model.slots": [1, 2], "model.hidden": [16, 32]})
    found = [(run.config.model.name, getattr(run.config.model, "hidden", None)) for run in plan.runs]
    assert found == [("modernn", 16), ("modernn", 16), ("modernn", 32), ("modernn", 32)] * 2 + [
        ("convlstm", 16), ("convlstm", 16), ("convlstm", 32), ("convlstm", 32), ("persistence", None)
    ]  # fmt: skip
    assert plan.notes == (
        "note: model.slots does not apply to 5 runs of models without that key (convlstm, persistence)",
        "note: model.hidden does not apply to 1 run of models without that key (persistence)",
    )
    in_file = plan_sweep(write(configs, SOME + "\ngrid: {model.slots: [1, 2], model.hidden: [16, 32]}"))
    assert in_file.runs == plan.runs
    demo = plan_sweep(ROOT / "configs/sweeps/demo.yaml", axes={"seeds": [1, 2, 3], "model.slots": [1, 4]})
    assert len(demo.runs) == 9  # an example of sweep.py --help
    several = plan_sweep(
        write(configs, "base: base.yaml\ngrid: {model.name: [modernn, convlstm], model.slots: [1, 2]}")
    )
    assert [run.name for run in several.runs] == ["modernn-slots1", "modernn-slots2", "convlstm"]


@pytest.mark.parametrize(
    ("text", "axes", "message"),
    [
        (SOME, {"model.slotz": [1, 2]}, "model.slotz: no model of this sweep has this key; did you mean model.slots?"),
        (SOME + "\nset: {model.kernel: 3}", {"model.kernel": [3, 5]}, "entry 1: 1 fault\n  model.kernel: unknown key"),
        (SOME + "\nzip: {model.slots: [1, 2]}", {}, "entry 2: 1 fault\n  model.slots: unknown key"),
        (SOME, {"data.contxt": [1, 2]}, "entry 3: 1 fault\n  data.contxt: unknown key; did you mean context?"),
    ],
)
def test_keys_that_a_model_lacks_are_faults_elsewhere(
    configs: Path, text: str, axes: dict[str, list[object]], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan_sweep(write(configs, text), axes=axes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "must hold a mapping"),
        ("a: [", "not YAML"),
        ("base: nowhere.yaml", "base nowhere.yaml(.|\n)*no such file"),
        ("base: 4", "base: must be a file name"),
        ("name: a/b", "can't be a folder name"),
        ("list: [{name: a/b}]", "list, entry 1, name"),
        ("set: [1]", "set: must be a mapping"),
        ("grid: []", "grid: must be a mapping"),
    ],
)
def test_unusable_files(configs: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        runs(configs, text)


def test_missing_file_lists_what_is_there(configs: Path) -> None:
    with pytest.raises(ConfigError, match=r"That folder holds: base.yaml, convlstm.yaml, modernn.yaml"):
        plan_sweep(configs / "paper.yaml")


AXIS = st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True)


@settings(max_examples=40)
@given(slots=AXIS, batch=AXIS, context=AXIS, seeds=AXIS, entries=st.integers(1, 3), dropped=st.integers(1, 9))
def test_counts(
    tmp_path_factory: pytest.TempPathFactory,
    slots: list[int],
    batch: list[int],
    context: list[int],
    seeds: list[int],
    entries: int,
    dropped: int,
) -> None:
    tree = {
        "set": {"model.name": "modernn"},
        "seeds": seeds,
        "list": [{"model.layers": number + 1} for number in range(entries)],
        "grid": {"model.slots": slots, "train.batch": batch},
        "zip": {"data.context": context, "data.horizon": context},
        "exclude": [{"model.slots": dropped, "seed": seeds[0]}],
    }
    file = tmp_path_factory.mktemp("sweep") / "s.yaml"
    file.write_text(yaml.safe_dump(tree))
    total = entries * len(slots) * len(batch) * len(context) * len(seeds)
    gone = total // len(slots) // len(seeds) if dropped in slots else 0
    if total == gone:
        with pytest.raises(ConfigError, match="plans no run"):
            plan_sweep(file)
        return
    plan = plan_sweep(file)
    assert len(plan.runs) == total - gone
    assert plan.excluded == gone
    assert plan.duplicates == 0
    assert len({run.folder for run in plan.runs}) == len({run.name for run in plan.runs}) == len(plan.runs)
    assert all(re.fullmatch(r"[A-Za-z0-9._+-]+", run.folder) for run in plan.runs)


def test_hundreds_of_runs_read_each_file_once_for_a_choice(configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
    base: base.yaml
    seeds: 3
    list: [{base: modernn.yaml}, {base: convlstm.yaml}, {base: modernn.yaml, model.gate_norm: true}]
    grid: {train.batch: [8, 16], train.lr: [1e-3, 3e-4, 1e-4], data.context: [5, 10, 15]}
    """
    file = write(configs, text)
    reads: list[Path] = []
    read = tree.read_mapping

    def noted(path: Path, *rest: str, **more: str) -> dict[str, object]:
        reads.append(path)
        return read(path, *rest, **more)

    monkeypatch.setattr(tree, "read_mapping", noted)
    assert len(plan_sweep(file).runs) == 162
    assert len(reads) <= 10, reads


def test_include_joins_sweep_files_and_keeps_each_run_once(configs: Path) -> None:
    (configs / "a.yaml").write_text("base: base.yaml\nseeds: 2\nlist: [{model.slots: 2}, {model.slots: 3}]\n")
    (configs / "b.yaml").write_text("base: base.yaml\nseeds: 2\nlist: [{model.slots: 3}, {base: convlstm.yaml}]\n")
    plan = plan_sweep(write(configs, "name: both\ninclude: [a.yaml, b.yaml]\n"), ["train.steps=7"])
    assert [run.group for run in plan.runs[::2]] == ["modernn-slots2", "modernn-slots3", "convlstm"]
    assert (len(plan.runs), plan.duplicates, plan.name) == (6, 2, "both")
    assert {run.config.train.steps for run in plan.runs} == {7}
    alone = plan_sweep(configs / "a.yaml", ["train.steps=7"])
    assert [run.hash8 for run in alone.runs] == [run.hash8 for run in plan.runs[:4]]


def test_include_stands_alone_and_is_one_level_deep(configs: Path) -> None:
    (configs / "a.yaml").write_text("base: base.yaml\n")
    with pytest.raises(ConfigError, match="include: goes with `name` only; put seeds, set into a sweep file"):
        runs(configs, "include: [a.yaml]\nseeds: 2\nset: {train.steps: 3}\n")
    (configs / "b.yaml").write_text("include: [a.yaml]\n")
    with pytest.raises(ConfigError, match=r"include .*b\.yaml: it includes others itself"):
        runs(configs, "include: [b.yaml]\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: no such sweep file"):
        runs(configs, "include: [c.yaml]\n")


PAPER = Path(__file__).parents[3] / "configs" / "sweeps" / "paper.yaml"
TABLES = {"1": 12, "2": 6, "3": 5, "4": 3, "5-kth": 6, "5-radar": 5, "6": 15, "7": 15}  # science of the paper: 51


def test_the_papers_sweep_is_its_tables_each_run_once() -> None:
    plan = plan_sweep(PAPER)
    assert len(plan.runs) == 153
    assert plan.duplicates == 3 * (sum(TABLES.values()) - 51)
    by_data = {
        name: len({run.group for run in plan.runs if run.name.startswith(name)}) for name in ("mmnist", "kth", "radar")
    }
    assert by_data == {"mmnist": 20, "kth": 16, "radar": 15}
    assert all(run.name == f"{run.group}-seed{run.seed}" for run in plan.runs)
    hashes = {run.hash8 for run in plan.runs}
    for table, size in TABLES.items():
        part = plan_sweep(PAPER.parent / "paper" / f"table{table}.yaml")
        assert part.name == "paper" and len(part.runs) == 3 * size, table
        assert {run.hash8 for run in part.runs} <= hashes
    run = next(run for run in plan.runs if run.name == "kth-convlstm-only-hands-seed2")
    assert (run.config.data.modes, run.config.data.horizon, run.config.train.steps) == (("hands",), 20, 80_000)


def test_names_beside_models_without_training(configs: Path) -> None:
    text = """
    base: base.yaml
    list:
      - {base: modernn.yaml}
      - {base: modernn.yaml, train.steps: 50}
      - {model: {name: persistence}}
      - {base: convlstm.yaml, model.hidden: 8}
    """
    assert names(configs, text) == ["modernn-steps100", "modernn-steps50", "persistence", "convlstm-steps100"]
    same = text.replace(", train.steps: 50", ", model.slots: 2")
    assert names(configs, same) == ["modernn-slots4", "modernn-slots2", "persistence", "convlstm"]

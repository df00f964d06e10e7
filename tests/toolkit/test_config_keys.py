"""Keys of the config: descriptions, bounds, renamed ones, and identities as the last release wrote them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from launch.sweeps.spec import plan_sweep
from tests.support.process import ROOT
from toolkit.config import RunConfig, load_config, make_config
from toolkit.config import renamed as config_renamed
from toolkit.config.deepspeed_keys import ALLOWED, REFUSED, ZERO
from toolkit.config.renamed import RENAMED
from toolkit.config.sections import TrainConfig
from toolkit.config.tree import flatten, nested, with_overrides
from toolkit.errors import ConfigError
from toolkit.models.registry import MODELS, Options

# Written by the last release over the names that its keys had: {file: "identity identity-without-execution"}.
IDENTITIES = json.loads((Path(__file__).parent / "identities.json").read_text())


@pytest.fixture(autouse=True)
def not_warned_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_renamed, "_warned", set())


def keys_of(options: type[Options], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in options.model_fields.items():
        yield f"{prefix}{name}", field
        if isinstance(field.annotation, type) and issubclass(field.annotation, Options):
            yield from keys_of(field.annotation, f"{prefix}{name}.")


ALL_KEYS = dict(keys_of(RunConfig))
for _name, _entry in MODELS.items():
    ALL_KEYS |= {k: f for k, f in keys_of(_entry.options, f"model({_name}).") if not k.endswith(").name")}


@pytest.mark.parametrize("key", ALL_KEYS)
def test_every_key_is_described(key: str) -> None:
    assert len(ALL_KEYS[key].description or "") > 10


def limits(field: FieldInfo) -> set[str]:
    """Of a number: the sides on which it is bounded, also of each item of a tuple or of a number that may be absent."""
    text = repr(field)
    return {
        side for side, names in (("below", ("Ge(", "Gt(")), ("above", ("Le(", "Lt("))) if any(n in text for n in names)
    }


@pytest.mark.parametrize("key", ALL_KEYS)
def test_every_number_is_bounded_on_both_sides(key: str) -> None:
    field = ALL_KEYS[key]
    if key == "train.betas" or not re.search(r"\b(int|float)\b", str(field.annotation)):
        return
    assert limits(field) == {"below", "above"}, field


def test_identities_are_those_of_the_last_release() -> None:
    for name, identity in IDENTITIES["configs"].items():
        config = load_config(ROOT / "configs" / name)
        assert f"{config.hash8()} {config.hash8(execution=False)}" == identity, name


def test_runs_of_shipped_sweeps_are_those_of_the_last_release() -> None:
    for name, hashes in IDENTITIES["sweeps"].items():
        assert [run.hash8 for run in plan_sweep(ROOT / "configs" / name).runs] == hashes.split(), name


@pytest.mark.parametrize("text", IDENTITIES["settings"])
@pytest.mark.parametrize("renamed", [False, True])
def test_a_renamed_key_changes_no_identity(text: str, renamed: bool) -> None:
    settings = re.split(r",(?=\w+\.)", text)
    if renamed:
        settings = [RENAMED.get(key, key) + f"={value}" for key, value in (s.split("=", 1) for s in settings)]
    config = make_config(with_overrides({"model": {"name": "modernn"}}, settings), "t")
    assert f"{config.hash8()} {config.hash8(execution=False)}" == IDENTITIES["settings"][text]


OTHER: dict[str, Any] = {
    "data.workers": 2,
    "train.checkpointing": "step",
    "train.checkpoint_every": 7,
    "train.async_checkpoint": False,
    "train.on_save_error": "continue",
    "train.keep_last": 5,
    "train.keep_every": 9,
    "eval.samples": 4,
}
LATER = {"train.checkpoint_layers": True, "train.offload_states": True, "train.checkpointing_backend": "torch"}


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_key_is_taken_everywhere(
    old: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {**OTHER, **LATER}[old]
    step = {} if old in OTHER else {"train": {"activation_checkpointing": {"policy": "step"}}}
    new = RENAMED[old]

    def as_yaml(tree: object) -> str:
        return json.dumps(tree)

    def value_of(config: RunConfig) -> object:
        return flatten(config.model_dump(mode="json"))[new]

    (tmp_path / "base.yaml").write_text(as_yaml(nested(old, value)))
    (tmp_path / "own.yaml").write_text(as_yaml({"base": "base.yaml", **step}))
    assert value_of(load_config(tmp_path / "own.yaml")) == value  # in a base
    (tmp_path / "plain.yaml").write_text(as_yaml(step))
    assert value_of(load_config(tmp_path / "plain.yaml", [f"{old}={json.dumps(value)}"])) == value  # by --set
    for part in ({"set": {old: value}}, {"list": [{old: value}]}, {"grid": {old: [value]}}, {"zip": {old: [value]}}):
        (tmp_path / "sweep.yaml").write_text(as_yaml({"base": "plain.yaml", **part}))
        (run,) = plan_sweep(tmp_path / "sweep.yaml").runs
        assert value_of(run.config) == value, part
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1  # once per key, however often it is read
    assert f"{old} is now {new}" in warnings[0]


@pytest.mark.parametrize("old", RENAMED)
def test_both_names_of_a_key_are_an_error(old: str, tmp_path: Path) -> None:
    value = {**OTHER, **LATER}[old]
    text = rf"{re.escape(old)} is the old name of {re.escape(RENAMED[old])}, and both are given"
    with pytest.raises(ConfigError, match=text):
        with_overrides({}, [f"{old}={json.dumps(value)}", f"{RENAMED[old]}={json.dumps(value)}"])
    (tmp_path / "s.yaml").write_text(json.dumps({"set": {old: value, RENAMED[old]: value}}))
    with pytest.raises(ConfigError, match=text):
        plan_sweep(tmp_path / "s.yaml")


def test_a_config_of_an_old_run_directory_is_read(tmp_path: Path) -> None:
    """All keys of the last release at once, as it wrote them."""
    tree = RunConfig().model_dump(mode="json")
    old = config_renamed.original_names(tree)
    assert set(RENAMED) <= set(flatten(old)) and "train.activation_checkpointing.policy" not in flatten(old)
    (tmp_path / "config.yaml").write_text(json.dumps(old))
    assert load_config(tmp_path / "config.yaml") == RunConfig()


def test_a_key_that_stands_twice_is_named_with_both_lines(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("train:\n  lr: 1.0e-3\n  steps: 3\n  lr: 1.0e-4\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: key `lr` is given twice, in lines 2 and 4"):
        load_config(file)
    file.write_text("seeds: 2\nset: {train.lr: 1, train.lr: 2}\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: key `train\.lr` is given twice, in lines 2 and 2"):
        plan_sweep(file)
    file.write_text("x: &x {lr: 1.0e-3, steps: 5}\ny: &y {<<: *x, lr: 1.0e-2}\ntrain: {<<: *y, lr: 0.5}\n")
    with pytest.raises(ConfigError, match="2 faults"):  # merged mappings are no such thing; x and y are no keys
        load_config(file)


@pytest.mark.parametrize("text", ["[" * 100_000, "a: &a [*a]", "a: &a {b: *a}", "a: 2020-13-45", "? [a, b]\n: 1"])
def test_yaml_that_leads_nowhere(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_config(tmp_path / "c.yaml")


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="aliases counted each time"):
        load_config(tmp_path / "c.yaml")


def test_lone_values_and_numbers_are_taken() -> None:
    config = make_config(with_overrides({}, ["data.modes=[1, 2]", "eval.thresholds=0.5", "data.augment=flip"]), "t")
    assert (config.data.modes, config.eval.thresholds, config.data.augment) == (("1", "2"), (0.5,), ("flip",))
    assert make_config({"data": {"modes": 3}}, "t").data.modes == ("3",)
    assert make_config({"data": {"modes": None}}, "t").data.modes is None


def test_paths_of_stores_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")

    def store(text: str) -> str:
        return make_config({"data": {"store": text}}, "t").data.store

    assert store("~/x") == "/home/me/x"
    assert store("$SCRATCH/x") == store("${SCRATCH}/x") == "/scratch/x"
    assert store("s3://bucket/~$x") == "s3://bucket/~$x"
    assert store("a~b") == "a~b"
    source = make_config({"train": {"init_from": {"path": "~/x"}}}, "t")
    assert source.train.init_from.path == "~/x"  # as written: a run's identity doesn't depend on $HOME
    with pytest.raises(ConfigError, match=r"train\.init_from\.path: \$NOWHERE_SET is not set"):
        make_config({"train": {"init_from": {"path": "$NOWHERE_SET/x"}}}, "t")
    with pytest.raises(ConfigError, match=r"data\.store: \$NOWHERE_SET is not set"):
        store("$NOWHERE_SET/x")
    with pytest.raises(ConfigError, match=r"data\.store: ~nobody-here has no home"):
        store("~nobody-here/x")


@pytest.mark.parametrize(
    "setting",
    [
        "train.watchdog.step=.inf",
        "train.watchdog.first_step=1e300",
        "eval.thresholds=[.nan]",
        "seed=18446744073709551616",
        "train.clip=.nan",
        "train.clip=.inf",
        "model.hidden=1000000",
        "train.batch=1000000000",
        "train.betas=[1.0, 2.0]",
        "train.betas=[.nan, 0.9]",
        "train.lr=.inf",
        "data.context=1000000000",
        "data.num_workers=100000",
        "train.sampling.slope=.inf",
        "model.forget_bias=.nan",
        "train.deepspeed={gradient_predivide_factor: .nan}",
        "train.deepspeed={zero_optimization: {reduce_bucket_size: 1e300}}",
    ],
)
def test_numbers_out_of_bounds_are_refused(setting: str) -> None:
    key = setting.partition("=")[0]
    with pytest.raises(ConfigError, match=re.escape(key)):
        make_config(with_overrides({"model": {"name": "modernn"}}, [setting]), "t")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{gradient_cliping: 1}", "gradient_cliping: unknown key of DeepSpeed; did you mean gradient_clipping?"),
        ("{gradient_clipping: 1}", "gradient_clipping can't be set here: the toolkit sets it from train.clip"),
        ("{zero_optimization: {overlap_com: true}}", "zero_optimization.overlap_com: unknown key .* overlap_comm"),
        ("{zero_optimization: {stage: 1}}", "zero_optimization.stage can't be set here: .* train.zero"),
        ("{zero_optimization: 3}", "zero_optimization: must be a mapping"),
        ("{zero_optimization: {overlap_comm: 3}}", "overlap_comm: must be true or false, got 3"),
        ("{zero_optimization: {offload_param: {device: nvme, nvme_path: /x}}}", "must be none or cpu.*nvme_path can't"),
        ("{tensorboard: {enabled: true, output_path: /x}}", "tensorboard can't be set here: it writes files"),
        ("{csv_monitor: {enabled: true}}", "csv_monitor can't be set here: it writes files"),
        ("{wandb: {enabled: true}}", "wandb can't be set here: it sends data"),
        ("{comet: {enabled: true}}", "comet can't be set here: it sends data"),
        ("{nebula: {enabled: true}}", "nebula can't be set here: it sends data"),
        ("{flops_profiler: {enabled: true, output_file: /etc/x}}", "flops_profiler.output_file can't be set here"),
        ("{torch_autocast: {lower_precision_safe_modules: [os.system]}}", "torch_autocast can't be set here"),
    ],
)
def test_deepspeed_keys_are_checked_with_the_config(text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"train.deepspeed: .*{expected}"):
        make_config(with_overrides({}, [f"train.deepspeed={text}"]), "t")


def test_deepspeed_keys_are_deepspeeds() -> None:
    """Every name in the tables is one that DeepSpeed's own config reads."""
    from deepspeed.runtime import config as source
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields
    assert set(ZERO) <= set(fields) | {str(field.alias) for field in fields.values()}
    for name in ("offload_param", "offload_optimizer"):
        inner = next(item for item in fields[name].annotation.__args__ if hasattr(item, "model_fields"))  # type: ignore[union-attr]
        assert set(ZERO[name]) <= set(inner.model_fields)
    text = Path(source.__file__).read_text() + "".join(
        file.read_text()
        for file in Path(source.__file__).parents[1].rglob("*.py")
        if file.name in ("constants.py", "config.py")
    )
    for name in [*ALLOWED, *(name for name in REFUSED if "." not in name)]:
        assert re.search(rf"[\"']{name}[\"']", text) or name == "nebula", name


def test_refused_deepspeed_keys_name_keys_that_exist() -> None:
    for key, reason in REFUSED.items():
        named = [name.strip(",") for name in reason.split(" from ")[-1].split() if "the toolkit sets it from" in reason]
        for name in (name for name in named if name != "and"):
            assert name.removeprefix("train.").partition(".")[0] in TrainConfig.model_fields, (key, name)
    for name in ("optimizer", "weight_decay"):
        assert name in REFUSED["optimizer"]
    assert REFUSED["scheduler"].endswith("train.schedule")


def test_the_config_imports_neither_torch_nor_deepspeed() -> None:
    import subprocess
    import sys

    code = "import sys, toolkit.config; sys.exit('torch' in sys.modules or 'deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_model_named_as_a_key_is_does_not_hide_the_key() -> None:
    """`steps` is a model too; pydantic names models in the path of a fault."""
    assert "steps" in MODELS
    with pytest.raises(ConfigError, match=r"\n  train\.steps: input should be a valid integer"):
        make_config({"train": {"steps": "many"}}, "test")
    with pytest.raises(ConfigError, match=r"\n  model\.slots: input should be a valid integer"):
        make_config({"model": {"name": "modernn", "slots": "many"}}, "test")
    with pytest.raises(ConfigError, match=r"\n  model\.name: "):
        make_config({"model": {"name": "modern"}}, "test")


@pytest.mark.parametrize(
    "text", ["!!timestamp x", "!!int ''", "!!float ''", "!!float x", "!!binary é", "0b_", "2020-13-45", "!!bool maybe"]
)
def test_values_that_are_not_what_their_tag_or_form_says(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(f"seed: {text}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"c\.yaml: not YAML: "):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="is not a YAML value"):
        with_overrides({}, [f"seed={text}"])


@pytest.mark.parametrize("base", ["a\\0b", "9" * 300, "configs/" + "9" * 300])
def test_a_base_that_is_no_name_of_a_file(tmp_path: Path, base: str) -> None:
    (tmp_path / "c.yaml").write_text(f'base: "{base}"\n')
    with pytest.raises(ConfigError, match=r"no name of a file|can't be read|no such file"):
        load_config(tmp_path / "c.yaml")

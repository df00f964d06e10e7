"""`resources` of a sweep file and its entries: what they may hold, and which run they are of."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.slurm.profile import PER_RUN, Profile, overridden, read_profile
from launch.sweeps.spec import PlannedRun, plan_sweep
from toolkit.errors import ConfigError


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text("model: {name: modernn}\ndata: {store: store}\ntrain: {steps: 100}\n")
    (tmp_path / "modernn.yaml").write_text("model: {name: modernn}\n")
    (tmp_path / "convlstm.yaml").write_text("model: {name: convlstm, kernel: 3}\n")
    return tmp_path


def runs(folder: Path, text: str) -> tuple[PlannedRun, ...]:
    file = folder / "demo.yaml"
    file.write_text(text)
    return plan_sweep(file).runs


def test_resources_of_a_sweep_file_and_of_its_entries(configs: Path) -> None:
    text = """
    base: base.yaml
    resources: {time: 12:30:00, mem: 64G, pack: auto}
    list:
      - {base: modernn.yaml}
      - {base: convlstm.yaml, resources: {time: 1-00:00:00, nodes: 2, pack: null}}
    """
    one, other = runs(configs, text)
    assert one.resources == {"time": "12:30:00", "mem": "64G", "pack": "auto"}
    assert other.resources == {"time": "1-00:00:00", "mem": "64G", "pack": None, "nodes": 2}
    plain = runs(configs, "base: base.yaml\nlist: [{base: modernn.yaml}, {base: convlstm.yaml}]")
    assert [run.folder for run in plain] == [one.folder, other.folder]
    assert plain[0].resources == {}
    merged = runs(configs, "base: base.yaml\nlist: [&a {resources: &b {time: 1:00:00}}, {<<: *a, seed: 7}]\n")
    assert [run.resources for run in merged] == [{"time": "1:00:00"}] * 2
    inner = runs(
        configs, "base: base.yaml\nlist: [{resources: &b {time: 1:00:00}}, {seed: 7, resources: {<<: *b, mem: 0}}]"
    )
    assert inner[1].resources == {"time": "1:00:00", "mem": "0"}


@pytest.mark.parametrize("null", ["null", "~", ""])
def test_null_is_the_default_whatever_the_profile_has(configs: Path, null: str) -> None:
    (planned,) = runs(configs, "base: base.yaml\nresources: {" + ", ".join(f"{key}: {null}" for key in PER_RUN) + "}\n")
    assert {*planned.resources} == {*PER_RUN}
    file = configs / "other.yaml"
    file.write_text(
        "{partition: a, account: b, qos: c, constraint: d, exclude: e, time: 5, mem: 1G, nodes: 2, gpus_per_node: 3,"
        " gpu_type: f, cpus_per_task: 7, pack: 2, signal_s: 33, max_restarts: 4, interface: ib0}"
    )
    profile = read_profile(str(file))
    assert all(getattr(profile, key) != getattr(Profile(), key) for key in PER_RUN)
    assert overridden(profile, planned.resources, nulls=True) == Profile(interface="ib0")
    file.write_text("".join(f"{key}: {null}\n" for key in PER_RUN) + f"light: {{cpus_per_task: {null}}}\n")
    assert read_profile(str(file)) == Profile()
    with pytest.raises(
        ConfigError, match=r"env: a profile's alone; known here: .*; nods: unknown key; did you mean nodes\?"
    ):
        runs(configs, f"base: base.yaml\nresources: {{env: {null}, nods: {null}}}\n")


def test_resources_of_included_files_are_their_own(configs: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        (configs / f"{name}.yaml").write_text(f"base: base.yaml\nseeds: [{seed}]\nresources: {{time: {seed}}}\n")
    assert [run.resources for run in runs(configs, "include: [a.yaml, b.yaml]\n")] == [{"time": "1"}, {"time": "2"}]
    with pytest.raises(ConfigError, match="include: goes with `name` only; put resources into a sweep file"):
        runs(configs, "include: [a.yaml, b.yaml]\nresources: {time: 5}\n")


def test_all_faults_of_resources_are_named_at_once(configs: Path) -> None:
    text = """
    base: base.yaml
    resources: {tmie: 60, nodes: two, setup: module load x, time: noon}
    list: [{resources: 5}, {seed: 2, resources: {gpus_per_node: -1, cpus_per_task: 0, mem: [1]}}]
    """
    with pytest.raises(ConfigError) as caught:
        runs(configs, text)
    lines = {line.split(":")[0].strip(): line for line in str(caught.value).splitlines()[1:-1]}
    whole = lines["resources"]
    assert "tmie: unknown key; did you mean time?" in whole
    assert "nodes: " in whole and "got 'two'" in whole and "time: write minutes" in whole
    assert "setup: a profile's alone" in whole
    assert "got '5'" in lines["list, entry 1, resources"]
    second = lines["list, entry 2, resources"]
    assert all(f"{key}: " in second for key in ("gpus_per_node", "cpus_per_task", "mem")), second


def test_one_run_with_two_requests_is_refused(configs: Path) -> None:
    text = "base: base.yaml\nlist: [{resources: {time: 60}}, {resources: {time: 90}, eval.split: test}]\n"
    with pytest.raises(ConfigError, match=r"list, entry 2: one run with other resources in .*list, entry 1"):
        runs(configs, text)

"""`resources` of a sweep file and its entries: what they may hold, and which run they are of."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    list: [{resources: 5}, {seed: 2, resources: {gpus_per_node: null, cpus_per_task: 0, mem: [1]}}]
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

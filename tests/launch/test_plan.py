"""launch/plan.py as a person on a login node runs it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch import plan, sweep
from tests.support.process import ROOT
from toolkit.errors import ConfigError
from toolkit.plan import cost as costs

DEMO = ("--config", str(ROOT / "configs" / "demo.yaml"), "--frames", "1x32x32")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def as_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table taken for one of the code as it is, so that nothing is measured."""
    monkeypatch.setattr(costs, "is_outdated", lambda *_: False)


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert plan.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("as_measured")
def test_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main([*DEMO, "--gpus-per-node", "2", "--nodes", "2", "--gpu-memory", "1", "--tflops", "1"]) == 0
    text = capsys.readouterr().out
    assert "modernn, 203,904 parameters, fp32, a CUDA graph" in text
    assert "4, 2 sequences per rank and step" in text
    assert "recommended --set train.activation_checkpointing.policy=none --set train.micro_batch=2" in text
    assert "ms at 25 GB/s" in text and "rank-hours" in text
    totals = {(c["policy"], c["micro_batch"]): c["total"] for c in planned(capsys, *DEMO)["choices"]}
    assert totals["none", 8] > totals["none", 1] > totals["step", 1]
    tight = str((totals["none", 1] - 1) / 0.9 / 2**30)
    assert planned(capsys, *DEMO, "--gpu-memory", tight)["recommended"]["policy"].startswith("step")
    assert plan.main([*DEMO, "--gpu-memory", "0.001"]) == 0
    assert "out of memory: the smallest is" in capsys.readouterr().out


@pytest.mark.usefixtures("as_measured")
def test_costs_grow_with_the_frames(capsys: pytest.CaptureFixture[str]) -> None:
    def macs(side: int) -> int:
        return planned(capsys, *DEMO[:2], "--frames", f"1x{side}x{side}")["macs_per_sequence"]

    one, two, four = macs(32), macs(64), macs(128)
    assert two > 4 * one and four - two > 4 * (two - one)  # convolutions by the area, attention by its square
    assert macs(33) == macs(36) > one  # padded


@pytest.mark.usefixtures("as_measured")
def test_the_rate_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"kind": "train", "step": n, "seq_per_s": rate} for n, rate in enumerate((0.1, 4.0, 2.0, 3.0))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + '\n{"half')
    found = planned(capsys, *DEMO, "--run", str(tmp_path))
    assert found["sequences_per_s"] == 3.0
    assert found["hours"] == pytest.approx(400 * 8 / 3.0 / 3600)


def test_without_frames_or_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no manifest.json .* --frames 1x384x384"):
        plan.main([*DEMO[:2], "--set", "data.store=nowhere"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(costs.CostError, match=r"is not in costs\.json, and torch, needed to measure it, is not"):
        plan.main([*DEMO, "--set", "model.hidden=17"])


def test_what_is_not_in_the_table_is_measured_once(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    small = ("--set", "model={name: convlstm, layers: 1, hidden: 3}", "--set", "data.horizon=2")
    first = planned(capsys, *DEMO, *small)
    monkeypatch.setattr(costs, "measured", lambda *_: pytest.fail("measured again"))
    assert planned(capsys, *DEMO, *small) == first
    monkeypatch.setattr(costs, "code_digest", lambda _: "other code")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert planned(capsys, *DEMO, *small) == {**first, "outdated": True}


def test_models_without_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main([*DEMO, "--set", "model={name: persistence}"]) == 0
    assert "nothing to plan" in capsys.readouterr().out


def test_a_sweep_shows_what_its_runs_need(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"frames": {"channels": 1, "height": 64, "width": 64}}))
    file = ROOT / "configs" / "sweeps" / "demo.yaml"
    assert sweep.main([str(file), "--dry-run", "--runs", str(tmp_path), "--set", f"data.store={tmp_path}"]) == 0
    header, first, *_ = capsys.readouterr().out.splitlines()[1:]
    assert header.split()[3:7] == ["parameters", "GMACs/seq", "peak", "GiB"]
    parameters, macs, memory = first.split()[3:6]
    assert int(parameters.replace(",", "")) > 100_000 and float(macs) > 0.1 and float(memory) > 0.01


def test_a_sweep_foresees_its_hours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ROOT / "configs" / "sweeps" / "demo.yaml"
    asked = [str(file), "--dry-run", "--runs", str(tmp_path)]
    assert sweep.main([*asked, "--set", f"data.store={tmp_path / 'none'}"]) == 0
    assert "4 runs to do: 0 rank-hours of training on 1 rank each, and 4 runs unknown" in capsys.readouterr().out
    (tmp_path / "manifest.json").write_text(json.dumps({"frames": {"channels": 1, "height": 64, "width": 64}}))
    # 400 steps of 8 sequences, three forward passes of two operations a MAC at 1 GFLOP/s on each of two ranks.
    assert sweep.main([*asked, "--set", f"data.store={tmp_path}", "--tflops", "0.001", "--ranks", "2"]) == 0
    *rows, effort, _ = capsys.readouterr().out.splitlines()[2:]
    expected = [400 * 8 * 6 * float(row.split()[4]) / 2 / 3600 for row in rows]
    assert [float(row.split()[6].replace(",", "")) for row in rows] == pytest.approx(expected, rel=0.15)
    told = re.fullmatch(r"4 runs to do: ([\d,]+) rank-hours of training on 2 ranks each", effort)
    assert told and float(told[1].replace(",", "")) == pytest.approx(2 * sum(expected), rel=0.15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rate", "3", "--tflops", "1"], "--rate and --tflops are both the speed of a run: give one"),
        (["--measure", "--json"], "--measure regenerates the whole table: leave the other options out"),
    ],
)
def test_options_that_have_no_effect_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        plan.main(options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("frames", ["0x0x0", "1x0x64", "64x64", "1x64x64x1", "1x-1x2"])
def test_frames_have_a_size(frames: str) -> None:
    with pytest.raises(
        ConfigError, match=f"--frames {frames}: write it as channels x height x width, .* each at least 1"
    ):
        plan.main([*DEMO, "--frames", frames])


def test_neither_torch_nor_numpy_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[0] = 'launch'; from launch import plan; from toolkit.plan import cost; "
        "cost.is_outdated = lambda *_: False; "
        f"assert plan.main({[*DEMO]!r}) == 0; "
        "heavy = {'torch', 'deepspeed', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "203,904 parameters" in done.stdout

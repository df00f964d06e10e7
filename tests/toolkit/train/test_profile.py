"""--profile-steps: it changes no number, writes what it says, and its shares add up."""

from __future__ import annotations

import gzip
import json
import socket
from pathlib import Path

import pytest
import torch

from tests.support.process_pool import ProcessPool
from toolkit.train.profile import communication, format_summary, matmul_flops, merged


def losses(run: Path) -> list[float]:
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_two_ranks_profiled(tiny_config: Path, tmp_path: Path) -> None:
    plain, profiled, short = (tmp_path / name for name in ("plain", "profiled", "short"))
    with ProcessPool() as pool:
        started = []
        for run, flags in ((plain, []), (profiled, ["--profile-steps", "2"])):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            arguments = ["--config", tiny_config, "--out", run, *flags]
            started += pool.ranks(2, port, arguments, tmp_path / f"{run.name}.log")
        started.append(
            pool.start(["--config", tiny_config, "--out", short, "--profile-steps", "20"], tmp_path / "short.log")
        )
        assert [pool.wait(pid) for pid in started] == [0] * 5
    assert losses(profiled) == losses(plain)
    weights = [torch.load(run / "checkpoints/step-00000006/weights.pt") for run in (plain, profiled)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    # 3 steps to warm up and 2 to profile
    summary = json.loads((profiled / "profile/summary-00000005.json").read_text())
    phases = summary["phases_ms"]
    assert list(phases) == ["data wait", "forward", "backward", "optimizer", "communication", "other"]
    assert sum(phases.values()) == pytest.approx(summary["step_ms"])
    assert all(value > 0 for value in phases.values())
    assert 0 < summary["achieved_over_peak"] < 1
    printed = (tmp_path / "profiled.log.0").read_text()
    assert format_summary(summary)[0] in printed and "profile of" not in (tmp_path / "profiled.log.1").read_text()
    with gzip.open(profiled / "profile/trace-00000005.json.gz", "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"phase: forward", "phase: backward", "aten::convolution"} <= names
    assert not (plain / "profile").exists()
    assert "training ended after 6 steps, 3 to warm up and 20 to profile" in (tmp_path / "short.log").read_text()


def test_communication_is_counted_once_and_in_its_phase(tmp_path: Path) -> None:
    def event(name: str, begin: float, length: float) -> dict[str, object]:
        return {"ph": "X", "name": name, "ts": begin, "dur": length}

    events = [
        event("phase: backward", 0, 100e3),
        event("phase: optimizer", 100e3, 50e3),
        event("nccl:all_reduce", 80e3, 10e3),
        event("ncclDevKernel_AllReduce", 85e3, 10e3),  # overlaps the one before by half
        event("gloo:all_gather", 140e3, 20e3),  # half of it is in no phase
        event("aten::mm", 0, 50e3),
        {"ph": "i", "name": "nccl:mark", "ts": 0},
    ]
    with gzip.open(tmp_path / "trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    assert communication(tmp_path / "trace.json.gz") == pytest.approx({"backward": 0.015, "optimizer": 0.01})
    assert merged([(3, 4), (0, 2), (1, 2.5)]) == [(0, 2.5), (3, 4)]


def test_the_peak_is_measured() -> None:
    assert matmul_flops(torch.device("cpu"), torch.float32) > 1e8

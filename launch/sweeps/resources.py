"""Resource estimate of a run: memory by policy and micro-batch, communication, hours. Does not import torch."""

from __future__ import annotations

import argparse
import functools
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.cli.table import render
from toolkit.config import RunConfig
from toolkit.errors import ConfigError
from toolkit.models.plugins import entry_of
from toolkit.plan import cost as costs
from toolkit.plan import predict
from toolkit.plan.predict import GIB, Choice, Machine
from toolkit.rundir import RunDir
from toolkit.wording import count, duration, speed

Plan = dict[str, Any]  # what --json prints
SUMMARY = ("parameters", "GMACs/seq", "peak GiB", "hours")  # header of `summary`


def make_plan(
    config: RunConfig, cost: costs.Cost, shape: tuple[int, int, int], machine: Machine, options: argparse.Namespace
) -> Plan:
    """Return the estimate as plain values, as printed by --json."""
    area = costs.area_of(config, *shape[1:])
    numbers, forward = cost.parameters.at(1, area), cost.macs.at(1, area)
    found = predict.choices(config, cost, area, machine)
    best = predict.recommend(found)
    share = config.train.share(machine.ranks)
    used = best or found[0]
    sent = predict.traffic(config, cost, area, machine.ranks, used)
    stage = predict.stage_of(config, machine.gpu)
    exchange = sent[stage].total / (options.bandwidth * 1e9)
    rate = options.rate or (RunDir(Path(options.run)).rate() if options.run else None)
    if options.tflops:
        rate = predict.rate_at(options.tflops, used.macs, machine.ranks, exchange, config.train.batch)
    return {
        "model": config.model.name,
        "frames": {"channels": shape[0], "height": shape[1], "width": shape[2]},
        "parameters": numbers,
        "macs_per_sequence": forward,
        "macs_per_step": forward * config.train.batch,
        "macs_per_step_with_backward": used.macs * config.train.batch,
        "ranks": machine.ranks,
        "share": share,
        "memory_per_rank": machine.memory,
        "reserve": predict.RESERVE,
        "choices": [_plain(choice) for choice in found],
        "recommended": _plain(best) if best else None,
        "zero": stage,
        "graphed": config.train.is_graphed(machine.gpu),
        "sent_per_rank": {str(stage): asdict(traffic) for stage, traffic in sent.items()},
        "bandwidth_gb_s": options.bandwidth,
        "exchange_s": exchange,
        "sequences_per_s": rate,
        "hours": predict.hours(config, rate) if rate else None,
        "gpu_hours": predict.hours(config, rate) * machine.ranks if rate else None,
        "outdated": cost.outdated,
    }


def _plain(choice: Choice) -> dict[str, Any]:
    return {**asdict(choice), "total": choice.memory.total}


def format_resources(config: RunConfig, plan: Plan, where: str, cost: costs.Cost) -> list[str]:
    """Format the estimate as text."""
    train, shape, data = config.train, plan["frames"], config.data
    lines = [
        f"model       {plan['model']}, {plan['parameters']:,} parameters, {train.precision}, "
        + ("a CUDA graph" if plan["graphed"] else f"ZeRO {plan['zero']}"),
        f"frames      {data.context} + {data.horizon} of {shape['channels']} x {shape['height']} x {shape['width']} "
        f"({where})",
        f"compute     {plan['macs_per_sequence'] / 1e9:,.2f} GMACs per sequence (forward), "
        f"{plan['macs_per_step'] / 1e9:,.1f} per step of {count(train.batch, 'sequence')}",
        f"ranks       {plan['ranks']}, {count(plan['share'], 'sequence')} per rank and step, "
        f"{plan['memory_per_rank'] / GIB:,.1f} GiB per rank, of which {plan['reserve']:.0%} are reserved",
        "",
        *_grid(plan),
        "",
    ]
    best = plan["recommended"]
    if best is None:
        least = min(plan["choices"], key=lambda choice: choice["total"])
        lines += [
            f"out of memory: the smallest is {least['policy']} with a micro-batch of {least['micro_batch']}, "
            f"{least['total'] / GIB:.2f} GiB. Try a larger model.patch, train.precision=bf16, or more memory"
        ]
    else:
        parts = ", ".join(f"{key} {value / GIB:.2f}" for key, value in best["memory"].items() if value)
        now = train.activation_checkpointing
        policy = {key: value for key, value in costs.settings_of(best["policy"]).items() if value or getattr(now, key)}
        chosen = {f"activation_checkpointing.{key}": value for key, value in policy.items()}
        chosen["micro_batch"] = best["micro_batch"]
        lines += [
            "recommended " + " ".join(f"--set train.{key}={_yaml(value)}" for key, value in chosen.items()),
            f"            {best['total'] / GIB:.2f} GiB: {parts}",
        ]
        together = int(plan["memory_per_rank"] * (1 - plan["reserve"]) // best["total"])
        if together > 1 and plan["ranks"] == 1:
            lines.append(f"packing     {together} such runs fit the memory of one GPU: sweep.py --pack {together}")
    lines += [*_exchange(plan), *_time(plan, train.steps)]
    if cost.outdated:
        lines.append(
            "note: measured with another version of the code; with torch installed, this command measures again"
        )
    return lines


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _grid(plan: Plan) -> list[str]:
    """Format peak memory, a row for each policy, a column for each micro-batch."""
    sizes = sorted({choice["micro_batch"] for choice in plan["choices"]})
    rows = []
    for policy in dict.fromkeys(choice["policy"] for choice in plan["choices"]):
        own = {c["micro_batch"]: c for c in plan["choices"] if c["policy"] == policy}
        cells = [f"{own[size]['total'] / GIB:.2f}" + ("" if own[size]["fits"] else " too large") for size in sizes]
        macs = own[sizes[0]]["macs"] / plan["macs_per_sequence"]
        rows.append([policy, f"{macs:.2f}", *cells])
    head = [f"micro {size}" for size in sizes]
    lines = render(("policy", "x forward", *head), rows)
    return ["peak GiB per rank, and compute of a step relative to a forward pass", *lines]


def _exchange(plan: Plan) -> list[str]:
    if plan["ranks"] == 1:
        return ["traffic     none: 1 rank"]
    stages = ", ".join(
        f"ZeRO {stage}: {(sent['reduced'] + sent['gathered']) / 2**20:,.1f} MiB"
        for stage, sent in plan["sent_per_rank"].items()
    )
    return [
        f"traffic     sent per rank and step: {stages}",
        f"            {plan['exchange_s'] * 1e3:.2f} ms at {plan['bandwidth_gb_s']:g} GB/s",
    ]


def _time(plan: Plan, steps: int) -> list[str]:
    if not plan["hours"]:
        return ["time        unknown: pass --rate SEQ/S, --run DIR of a comparable run, or --tflops per rank"]
    return [
        f"time        {steps:,} steps at {speed(plan['sequences_per_s'])} sequences/s: "
        f"{duration(plan['hours'] * 3600)}, "
        f"{plan['gpu_hours']:,.1f} rank-hours (without validation and checkpoints)"
    ]


def frames_of(config: RunConfig, given: str | None) -> tuple[tuple[int, int, int], str]:
    """Return (channels, height, width) and their source: `given` as CxHxW, or the manifest of the run's store.

    Raises:
        ConfigError: neither is given.
    """
    if given:
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", given)
        shape = (int(match[1]), int(match[2]), int(match[3])) if match else (0, 0, 0)
        if 0 in shape:
            raise ConfigError(
                f"--frames {given}: write it as channels x height x width, for example 1x384x384, each at least 1"
            )
        return shape, "--frames"
    stored = _shape_read(config)
    if stored is None:
        raise ConfigError(
            f"data.store {config.data.store or '(not set)'}: no manifest.json with the frame size: "
            "create the store, or pass --frames 1x384x384"
        )
    return stored, config.data.store


def stored_shape(store: str) -> tuple[int, int, int] | None:
    """Return the frames of a store in a folder, read without numpy; None if there is no such store."""
    return _shape_of(Path(store, "manifest.json").absolute())


def _shape_read(config: RunConfig) -> tuple[int, int, int] | None:
    """Return the frames that a run reads: those of its store, with the channels of `data.inputs`."""
    shape = stored_shape(config.data.store)
    return shape if shape is None or config.data.inputs is None else (len(config.data.inputs), *shape[1:])


@functools.cache  # by absolute path: relative paths depend on the working directory
def _shape_of(manifest: Path) -> tuple[int, int, int] | None:
    try:
        frames = json.loads(manifest.read_text(encoding="utf-8"))["frames"]
        return int(frames["channels"]), int(frames["height"]), int(frames["width"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def hours_of(config: RunConfig, rate: float | None, tflops: float | None, ranks: int) -> float | None:
    """Return the hours of a run from a rate in sequences per second, or from TFLOP/s per rank; None if unknown."""
    if not entry_of(config.model).trained:
        return 0.0
    shape = _shape_read(config)
    cost = costs.find(config, shape[0]) if shape and tflops and not rate else None
    if shape and tflops and cost:
        macs = cost.peaks[costs.policy_of(config)].macs.at(1, costs.area_of(config, *shape[1:]))
        rate = predict.rate_at(tflops, macs, ranks, 0.0, config.train.batch)
    return predict.hours(config, rate) if rate else None


def summary(config: RunConfig, hours: float | None) -> list[str]:
    """Return the summary of a run, columns as in SUMMARY; empty if unknown. Nothing is measured.

    Memory is that of a run on one rank, with its policy.
    """
    shown_hours = f"{hours:,.1f}" if hours else ""
    shape = _shape_read(config)
    cost = costs.find(config, shape[0] if shape else 1) if entry_of(config.model).trained else None
    if cost is None:
        return ["", "", "", shown_hours]
    if shape is None:  # most models have the same parameters at every size
        return ["" if cost.parameters.area else f"{cost.parameters.constant:,}", "", "", shown_hours]
    area = costs.area_of(config, *shape[1:])
    micro = config.train.micro_batch or config.train.batch
    peak = predict.memory_of(config, cost, costs.policy_of(config), micro, area, Machine(1, 0))
    parameters, forward = cost.parameters.at(1, area), cost.macs.at(1, area)
    return [f"{parameters:,}", f"{forward / 1e9:,.1f}", f"{peak.total / GIB:.2f}", shown_hours]

"""What a run will need, before it is started: memory by policy and micro-batch, communication, hours. Without torch."""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.cli import make_parser, positive, run_script
from launch.spec import plan_sweep
from launch.table import render
from toolkit.config import RunConfig, load_config
from toolkit.errors import EXIT_OK, ConfigError
from toolkit.models.registry import MODELS
from toolkit.plan import cost as costs
from toolkit.plan import predict
from toolkit.plan.predict import GIB, Choice, Machine
from toolkit.rundir import RunDir
from toolkit.shipped import CONFIGS
from toolkit.wording import duration, speed

Plan = dict[str, Any]  # what --json prints
SLOTS = (1, 2, 3, 4, 5)  # the paper's Table 3
SUMMARY = ("parameters", "GMACs/seq", "peak GiB", "hours")  # header of `summary`
EXAMPLES = """\
  python launch/plan.py --config configs/mixed-moving-mnist.yaml --frames 1x64x64 --gpu-memory 80
  python launch/plan.py --config configs/radar.yaml --frames 1x384x384 --nodes 2 --gpus-per-node 4 --gpu-memory 80
  python launch/plan.py --config configs/radar.yaml --set model.patch=4 --frames 1x384x384 --tflops 40
  python launch/plan.py --run runs/demo/NAME              # with the rate that the run has had
  python launch/plan.py --config configs/demo.yaml --frames 1x32x32 --json
  python launch/plan.py --measure                         # the table of shipped configs anew (needs torch; minutes)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    options = _parse(argv)
    if options.measure:
        return _measure()
    config = _config(options)
    shape, where = frames_of(config, options.frames)
    if not MODELS[config.model.name].trained:
        print(f"{config.model.name} has no parameters: it is evaluated, not trained; there is nothing to plan")
        return EXIT_OK
    machine = Machine(options.nodes * options.gpus_per_node, round(options.gpu_memory * GIB), not options.cpu)
    config.train.share(machine.ranks)  # refused before anything is measured
    cost = costs.get(config, shape[0])
    plan = make_plan(config, cost, shape, machine, options)
    print(json.dumps(plan, indent=1) if options.json else "\n".join(describe(config, plan, where, cost)))
    return EXIT_OK


def make_plan(
    config: RunConfig, cost: costs.Cost, shape: tuple[int, int, int], machine: Machine, options: argparse.Namespace
) -> Plan:
    """The plan as plain values: what --json prints."""
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
        rate = predict.rate_at(options.tflops, used.work, machine.ranks, exchange, config.train.batch)
    return {
        "model": config.model.name,
        "frames": {"channels": shape[0], "height": shape[1], "width": shape[2]},
        "parameters": numbers,
        "macs_per_sequence": forward,
        "macs_per_step": forward * config.train.batch,
        "work_per_step": used.work * config.train.batch,
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
        "old": cost.old,
    }


def _plain(choice: Choice) -> dict[str, Any]:
    return {**asdict(choice), "total": choice.memory.total}


def describe(config: RunConfig, plan: Plan, where: str, cost: costs.Cost) -> list[str]:
    """The plan as lines for people."""
    train, shape, data = config.train, plan["frames"], config.data
    lines = [
        f"model       {plan['model']}, {plan['parameters']:,} parameters, {train.precision}, "
        + ("a CUDA graph" if plan["graphed"] else f"ZeRO {plan['zero']}"),
        f"frames      {data.context} + {data.horizon} of {shape['channels']} x {shape['height']} x {shape['width']} "
        f"({where})",
        f"compute     {plan['macs_per_sequence'] / 1e9:,.2f} GMACs a sequence forward, "
        f"{plan['macs_per_step'] / 1e9:,.1f} a step of {train.batch}",
        f"ranks       {plan['ranks']}, {plan['share']} sequences each a step, "
        f"{plan['memory_per_rank'] / GIB:,.1f} GiB each, of which {plan['reserve']:.0%} stay free",
        "",
        *_grid(plan),
        "",
    ]
    best = plan["recommended"]
    if best is None:
        least = min(plan["choices"], key=lambda choice: choice["total"])
        lines += [
            f"nothing fits: the least is {least['policy']} with a micro-batch of {least['micro_batch']}, "
            f"{least['total'] / GIB:.2f} GiB. Try a larger model.patch, train.precision=bf16, or more memory"
        ]
    else:
        parts = ", ".join(f"{key} {value / GIB:.2f}" for key, value in best["memory"].items() if value)
        keys = {**costs.settings_of(best["policy"]), "micro_batch": best["micro_batch"]}
        chosen = {key: value for key, value in keys.items() if value or getattr(train, key)}
        lines += [
            "recommended " + " ".join(f"--set train.{key}={_yaml(value)}" for key, value in chosen.items()),
            f"            {best['total'] / GIB:.2f} GiB: {parts}",
        ]
    lines += [*_exchange(plan), *_time(plan, train.steps)]
    if cost.old:
        lines.append("note: measured with another state of the code; where torch is, the same command measures anew")
    return lines


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _grid(plan: Plan) -> list[str]:
    """Peak memory, a row for each policy, a column for each micro-batch."""
    sizes = sorted({choice["micro_batch"] for choice in plan["choices"]})
    rows = []
    for policy in dict.fromkeys(choice["policy"] for choice in plan["choices"]):
        own = {c["micro_batch"]: c for c in plan["choices"] if c["policy"] == policy}
        cells = [f"{own[size]['total'] / GIB:.2f}" + ("" if own[size]["fits"] else " no") for size in sizes]
        work = own[sizes[0]]["work"] / plan["macs_per_sequence"]
        rows.append([policy, f"{work:.2f}", *cells])
    head = [f"micro {size}" for size in sizes]
    lines = render(("policy", "x forward", *head), rows)
    return ["peak GiB of a rank (`no`: does not fit), and the work of a step in forward passes", *lines]


def _exchange(plan: Plan) -> list[str]:
    if plan["ranks"] == 1:
        return ["exchange    none: one rank"]
    stages = ", ".join(
        f"ZeRO {stage}: {(sent['reduced'] + sent['gathered']) / 2**20:,.1f} MiB"
        for stage, sent in plan["sent_per_rank"].items()
    )
    return [
        f"exchange    each rank sends a step: {stages}",
        f"            {plan['exchange_s'] * 1e3:.2f} ms at {plan['bandwidth_gb_s']:g} GB/s",
    ]


def _time(plan: Plan, steps: int) -> list[str]:
    if not plan["hours"]:
        return ["time        unknown: give --rate SEQ/S, --run DIR of a run like it, or --tflops that a rank reaches"]
    return [
        f"time        {steps:,} steps at {speed(plan['sequences_per_s'])} sequences/s: "
        f"{duration(plan['hours'] * 3600)}, "
        f"{plan['gpu_hours']:,.1f} rank-hours (validation and checkpoints not counted)"
    ]


def frames_of(config: RunConfig, given: str | None) -> tuple[tuple[int, int, int], str]:
    """(channels, height, width) and where they come from: `given` as CxHxW, or the manifest of the run's store.

    Raises:
        ConfigError: neither is there.
    """
    if given:
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", given)
        if not match:
            raise ConfigError(f"--frames {given}: write it as channels x height x width, for example 1x384x384")
        return (int(match[1]), int(match[2]), int(match[3])), "--frames"
    shape = stored_shape(config.data.store)
    if shape is None:
        raise ConfigError(
            f"data.store {config.data.store or '(not set)'}: no manifest.json there that says how large frames are: "
            "make the store, or say it with --frames 1x384x384"
        )
    return shape, config.data.store


@functools.cache
def stored_shape(store: str) -> tuple[int, int, int] | None:
    """The frames of a store in a folder, read without numpy; None where there is no such store."""
    try:
        frames = json.loads(Path(store, "manifest.json").read_text(encoding="utf-8"))["frames"]
        return int(frames["channels"]), int(frames["height"]), int(frames["width"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def hours_of(config: RunConfig, rate: float | None, tflops: float | None, ranks: int) -> float | None:
    """A run's hours: at a rate in sequences per second, else at what each rank computes; None: not known."""
    if not MODELS[config.model.name].trained:
        return 0.0
    shape = stored_shape(config.data.store)
    cost = costs.find(config, shape[0]) if shape and tflops and not rate else None
    if shape and tflops and cost:
        work = cost.peaks[costs.policy_of(config)].work.at(1, costs.area_of(config, *shape[1:]))
        rate = predict.rate_at(tflops, work, ranks, 0.0, config.train.batch)
    return predict.hours(config, rate) if rate else None


def summary(config: RunConfig, hours: float | None) -> list[str]:
    """A run of a sweep in short, under SUMMARY; empty where it isn't known. Nothing is measured for it.

    Memory is that of one rank of one, with the run's own policy.
    """
    told = f"{hours:,.1f}" if hours else ""
    shape = stored_shape(config.data.store)
    cost = costs.find(config, shape[0] if shape else 1) if MODELS[config.model.name].trained else None
    if cost is None:
        return ["", "", "", told]
    if shape is None:  # most models have the same parameters at every size
        return ["" if cost.parameters.area else f"{cost.parameters.one:,}", "", "", told]
    area = costs.area_of(config, *shape[1:])
    micro = config.train.micro_batch or config.train.batch
    peak = predict.memory_of(config, cost, costs.policy_of(config), micro, area, Machine(1, 0))
    parameters, forward = cost.parameters.at(1, area), cost.macs.at(1, area)
    return [f"{parameters:,}", f"{forward / 1e9:,.1f}", f"{peak.total / GIB:.2f}", told]


def shipped() -> list[RunConfig]:
    """What the table holds: configs, models, ModeRNN with 1 to 5 slots and in bf16, the runs of every sweep."""
    found: dict[str, RunConfig] = {}

    def add(config: RunConfig) -> None:
        if MODELS[config.model.name].trained:
            found.setdefault(costs.key_of(config, 1), config)

    for file in sorted(CONFIGS.glob("*.yaml")):
        add(load_config(file))
    for slots in SLOTS:
        add(load_config(CONFIGS / "models" / "modernn.yaml", [f"model.slots={slots}"]))
    for file in sorted((CONFIGS / "models").glob("*.yaml")):
        add(load_config(file))
    for file in sorted((CONFIGS / "sweeps").rglob("*.yaml")):
        for run in plan_sweep(file).runs:
            add(run.config)
    for name in ("mixed-moving-mnist.yaml", "radar.yaml"):
        add(load_config(CONFIGS / name, ["train.precision=bf16"]))
    return list(found.values())


def _measure() -> int:
    """Make the table anew, but for what it holds of the code as it is; written as it grows, so it can be cut short."""
    wanted = {costs.key_of(config, 1): config for config in shipped()}
    kept = ((key, costs.table().get(key)) for key in wanted)
    entries = {key: entry for key, entry in kept if entry and not costs.is_old(wanted[key], entry)}
    missing = [key for key in wanted if key not in entries]
    costs.write_table(entries)
    for key, entry in zip(missing, costs.measured([wanted[key] for key in missing], 1), strict=True):
        config = wanted[key]
        what = f"{config.model.name} {config.data.context}+{config.data.horizon} {config.train.precision}"
        entries[key] = {"what": what, **entry}
        costs.write_table(entries)
        print(f"{len(entries)}/{len(wanted)}  {what}", file=sys.stderr, flush=True)
    print(f"{costs.TABLE}: {len(entries)} costs, {len(missing)} of them measured now")
    return EXIT_OK


def _config(options: argparse.Namespace) -> RunConfig:
    if not options.config and not options.run:
        raise ConfigError("give --config FILE, or --run DIR for the config and the rate of a run (see --help)")
    if options.config:
        return load_config(options.config, options.set)
    if options.set:
        raise ConfigError("--set goes with --config; together with --run that gives the rate only")
    return RunDir(Path(options.run)).config()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("plan.py", "Say what a run will need: memory, communication, time.", EXAMPLES)
    parser.add_argument("--config", metavar="FILE", help="a config file")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a config value")
    parser.add_argument(
        "--run", metavar="DIR", help="a run directory: its rate, and its config unless --config is given"
    )
    parser.add_argument("--frames", metavar="CxHxW", help="size of frames (default: that of the store)")
    parser.add_argument("--nodes", type=positive, default=1, metavar="N", help="(default: 1)")
    parser.add_argument(
        "--gpus-per-node", type=positive, default=1, metavar="G", help="ranks on each node (default: 1)"
    )
    parser.add_argument("--gpu-memory", type=float, default=80.0, metavar="GIB", help="of one rank (default: 80)")
    parser.add_argument("--cpu", action="store_true", help="ranks are processes on CPUs: no buffers on a GPU")
    parser.add_argument("--bandwidth", type=float, default=25.0, metavar="GB/S", help="of one rank (default: 25)")
    parser.add_argument("--rate", type=float, metavar="SEQ/S", help="measured sequences per second of all ranks")
    parser.add_argument(
        "--tflops", type=float, metavar="N", help="TFLOP/s that one rank reaches (--profile-steps tells)"
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument("--measure", action="store_true", help="make the table of shipped configs anew (needs torch)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_script(main)

"""Resource estimate of a run: memory by policy and micro-batch, communication, hours. Does not import torch."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from launch.cli.parser import add_model_file, add_run, make_parser, positive, run_given, run_script
from launch.cli.runs import find_folder
from launch.sweeps.resources import format_resources, frames_of, make_plan
from launch.sweeps.spec import plan_sweep
from toolkit.config import RunConfig, load_config
from toolkit.errors import EXIT_OK, ConfigError
from toolkit.models.plugins import entry_of
from toolkit.plan import cost as costs
from toolkit.plan.predict import GIB, Machine
from toolkit.rundir import RunDir
from toolkit.rundir.layout import check_model_file
from toolkit.shipped import CONFIGS

logger = logging.getLogger(__name__)

SLOTS = (1, 2, 3, 4, 5)  # the paper's Table 3
EXAMPLES = """\
  python launch/plan.py --config configs/mixed-moving-mnist.yaml --frames 1x64x64 --gpu-memory 80
  python launch/plan.py --config configs/radar.yaml --frames 1x384x384 --nodes 2 --gpus-per-node 4 --gpu-memory 80
  python launch/plan.py --config configs/radar.yaml --set model.patch=4 --frames 1x384x384 --tflops 40
  python launch/plan.py runs/demo/NAME                    # with the rate that the run has had
  python launch/plan.py --config configs/demo.yaml --frames 1x32x32 --json
  python launch/plan.py --measure                         # regenerate the table (needs torch; minutes)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    options = _parse(argv)
    if options.measure:
        return _measure()
    config = _config(options)
    shape, where = frames_of(config, options.frames)
    if not entry_of(config.model).trained:
        print(f"{config.model.name} has no parameters: it is evaluated, not trained; there is nothing to plan")
        return EXIT_OK
    machine = Machine(options.nodes * options.gpus_per_node, round(options.gpu_memory * GIB), not options.cpu)
    config.train.share(machine.ranks)  # refused before anything is measured
    cost = costs.get(config, shape[0])
    plan = make_plan(config, cost, shape, machine, options)
    print(json.dumps(plan, indent=1) if options.json else "\n".join(format_resources(config, plan, where, cost)))
    return EXIT_OK


def shipped() -> list[RunConfig]:
    """Return the configs of the table: configs, models, ModeRNN with 1 to 5 slots and in bf16, runs of all sweeps."""
    found: dict[str, RunConfig] = {}

    def add(config: RunConfig) -> None:
        if entry_of(config.model).trained:
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
    """Regenerate missing and outdated entries of the table; it is written after each, so this can be stopped."""
    wanted = {costs.key_of(config, 1): config for config in shipped()}
    kept = ((key, costs.table().get(key)) for key in wanted)
    entries = {key: entry for key, entry in kept if entry and not costs.is_outdated(wanted[key], entry)}
    missing = [key for key in wanted if key not in entries]
    costs.write_table(entries)
    for key, entry in zip(missing, costs.measured([wanted[key] for key in missing], 1), strict=True):
        config = wanted[key]
        what = f"{config.model.name} {config.data.context}+{config.data.horizon} {config.train.precision}"
        entries[key] = {"what": what, **entry}
        costs.write_table(entries)
        logger.info("%d of %d: %s", len(entries), len(wanted), what)
    print(f"{costs.TABLE}: {len(entries)} costs, {len(missing)} of them measured in this run")
    return EXIT_OK


def _config(options: argparse.Namespace) -> RunConfig:
    if not options.config and not options.run:
        raise ConfigError("give --config FILE, or a run for its config and rate (see --help)")
    if options.config:
        config = load_config(options.config, options.set, typed=True)
        if options.model_file is None:
            return config
        check_model_file(config, options.model_file, options.config)
        return load_config(options.config, options.set)
    if options.set:
        raise ConfigError("--set goes with --config; a run beside it gives the rate only")
    run = RunDir(Path(options.run))
    run.load_model_file(options.model_file)
    return run.config()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("plan.py", "Estimate the resources of a run: memory, communication, time.", EXAMPLES)
    parser.add_argument("--config", metavar="FILE", help="a config file")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a config value")
    add_run(parser, "a run: take its measured rate, and its config unless --config is given")
    parser.add_argument(
        "--frames", metavar="CxHxW", help="channels, height and width of frames (default: those of the store)"
    )
    parser.add_argument("--nodes", type=positive, default=1, metavar="N", help="number of nodes (default: 1)")
    parser.add_argument(
        "--gpus-per-node", type=positive, default=1, metavar="G", help="ranks on each node (default: 1)"
    )
    parser.add_argument(
        "--gpu-memory", type=float, default=80.0, metavar="GIB", help="GPU memory of one rank in GiB (default: 80)"
    )
    parser.add_argument("--cpu", action="store_true", help="ranks are processes on CPUs: no buffers on a GPU")
    parser.add_argument(
        "--bandwidth",
        type=float,
        default=25.0,
        metavar="GB/S",
        help="network bandwidth of one rank in GB/s (default: 25)",
    )
    parser.add_argument("--rate", type=float, metavar="SEQ/S", help="measured sequences per second of all ranks")
    parser.add_argument(
        "--tflops", type=float, metavar="N", help="TFLOP/s that one rank reaches (train --profile-steps measures it)"
    )
    add_model_file(parser)
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument("--measure", action="store_true", help="regenerate the table of shipped configs (needs torch)")
    options = parser.parse_args(arguments)
    if options.rate and options.tflops:
        parser.error("--rate and --tflops are both the speed of a run: give one")
    if options.measure and any(
        value != parser.get_default(key) for key, value in vars(options).items() if key != "measure"
    ):
        parser.error("--measure regenerates the whole table: leave the other options out")
    given = run_given(options)
    options.run = None if given is None else find_folder(given)
    return options


if __name__ == "__main__":
    run_script(main)

"""Train one run, by hand or as a job. Exit codes are in toolkit/errors.py."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launch.cli import make_parser, run_script
from toolkit.config import RunConfig, load_config
from toolkit.errors import EXIT_OK, ConfigError
from toolkit.models.registry import MODELS
from toolkit.rundir import RunDir
from toolkit.train.signals import StopRequest

EXAMPLES = """\
  python launch/train.py --config configs/demo.yaml                       one process
  torchrun --nproc_per_node 2 launch/train.py --config configs/demo.yaml  two ranks, the same global batch
  python launch/train.py --run runs/demo/modernn-slots4-seed1-1a2b3c4d    go on with a run directory
  torchrun --nproc_per_node 2 -- launch/train.py --run RUN                (the -- keeps --run from torchrun)
  python launch/train.py --config configs/demo.yaml --set train.lr=1e-4 --dry-run
  python launch/train.py --list-models                                    what can stand under model.name

exit codes: 0 done, 1 failed, 2 usage or config, 3 stopped with a checkpoint (run the same command again),
            4 the loss is not finite, 5 damaged data"""


def _arguments() -> argparse.Namespace:
    parser = make_parser("train.py", "Train one run, by hand or as a job.", EXAMPLES)
    parser.add_argument("--config", metavar="FILE", help="a config file; the run directory is made from it")
    parser.add_argument("--run", metavar="DIR", help="an existing run directory, instead of --config")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a config value")
    parser.add_argument("--run-dir", metavar="DIR", help="where to keep the run (default: runs/single/NAME-HASH)")
    parser.add_argument("--resume", metavar="auto|none|STEP", default="auto", help="what to start from (default: auto)")
    parser.add_argument("--dry-run", action="store_true", help="check the config, print the size of the model, stop")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config, stop")
    parser.add_argument("--list-models", action="store_true", help="print every model, its size and its cost, stop")
    return parser.parse_args()


def _list_models() -> int:
    from launch.table import render
    from shards.manifest import FrameSpec
    from toolkit.config import make_config
    from toolkit.models.base import count_parameters
    from toolkit.models.cost import count_macs

    shape, rows = FrameSpec(1, 64, 64), []
    for name, entry in MODELS.items():
        config = make_config({"model": {"name": name}}, name)
        parameters = count_parameters(config, shape)
        macs = f"{count_macs(config, shape) / 1e9:.2f}" if parameters else "-"  # what isn't trained has no such pass
        rows.append([name, f"{parameters:,}", macs, f"{entry.title}: {entry.paper}"])
    print("\n".join(render(("name", "parameters", "GMACs/sequence", "paper"), rows)))
    print("\nat each model's default options; one forward pass in training over 10 + 10 frames of 64 x 64, one channel")
    return EXIT_OK


def _config(arguments: argparse.Namespace) -> RunConfig:
    if bool(arguments.config) == bool(arguments.run):
        raise ConfigError("give one of --config FILE and --run DIR (see --help)")
    if arguments.run:
        if arguments.set:
            raise ConfigError("--set changes what a run is; it goes with --config, not with --run")
        return RunDir(Path(arguments.run)).config()
    return load_config(arguments.config, arguments.set)


def _dry_run(config: RunConfig) -> int:
    from shards import open_store
    from shards.manifest import FrameSpec
    from toolkit.models.base import count_parameters

    if "://" in config.data.store or (config.data.store and Path(config.data.store).exists()):
        shape, where = open_store(config.data.store).manifest.frames, config.data.store
    else:
        shape, where = FrameSpec(1, 64, 64), "no store yet: 64x64 frames of one channel assumed"
    print(f"model       {config.model.name} ({', '.join(f'{k} {v}' for k, v in config.model if k != 'name')})")
    print(f"frames      {shape.channels} x {shape.height} x {shape.width} ({where})")
    print(f"parameters  {count_parameters(config, shape):,}")
    training = f"{config.train.steps:,} of {config.train.batch} sequences, Adam {config.train.lr:g}"
    print(f"steps       {training if MODELS[config.model.name].trained else 'none: no training, only evaluation'}")
    print(f"identity    {config.hash8()}")
    return EXIT_OK


def main() -> int:
    """Run the script; returns the exit code."""
    arguments = _arguments()
    if arguments.list_models:
        return _list_models()
    if arguments.resume not in ("auto", "none") and not arguments.resume.isdigit():
        raise ConfigError(f"--resume {arguments.resume}: use auto, none or the number of a step")
    config = _config(arguments)
    if arguments.print_config:
        print(config.to_yaml(), end="")
        return EXIT_OK
    if arguments.dry_run:
        return _dry_run(config)
    stop = StopRequest()
    stop.install()
    return _train(arguments, config, stop)


def _train(arguments: argparse.Namespace, config: RunConfig, stop: StopRequest) -> int:
    from toolkit import distributed
    from toolkit.train.loop import train

    world = distributed.init(group=True)
    path = Path(arguments.run or arguments.run_dir or Path("runs/single") / f"{config.name}-{config.hash8()}")
    try:
        if world.is_main:
            run = RunDir.create(path, config)
            run.clear_failed()
        world.barrier()
        run = RunDir(path)
        if run.done:
            if world.is_main:
                print(f"{path}: already trained; nothing to do", file=sys.stderr)
            return EXIT_OK
        code = train(run, world, arguments.resume, stop)
        if world.is_main:
            print(path)
        return code
    except Exception as error:
        if RunDir(path).config_file.exists():
            RunDir(path).mark_failed(f"rank {world.rank}: {type(error).__name__}: {error}")
        raise
    finally:
        world.close()


if __name__ == "__main__":
    run_script(main)

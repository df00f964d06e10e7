"""Train one run. Exit codes are in toolkit/errors.py."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from launch.cli.parser import add_model_file, add_renamed, add_run, make_parser, positive, run_given, run_script
from launch.cli.runs import find_run
from toolkit.config import RunConfig, load_config
from toolkit.errors import EXIT_OK, EXIT_REQUEUE, ConfigError, PeerError, exit_code_of
from toolkit.models.plugins import FileModel, entry_of, entry_points
from toolkit.models.registry import MODELS
from toolkit.rundir import RunDir
from toolkit.rundir.heartbeat import clear_beats
from toolkit.rundir.layout import check_model_file
from toolkit.rundir.lock import claim
from toolkit.rundir.mend import mend
from toolkit.rundir.sweep import RECORD_NAME, in_sweep
from toolkit.shipped import command
from toolkit.signals import StopRequest
from toolkit.wording import count

if TYPE_CHECKING:
    from toolkit.distributed.world import World

EXAMPLES = """\
  python launch/train.py --config configs/demo.yaml                       one process
  torchrun --nproc_per_node 2 launch/train.py --config configs/demo.yaml  two ranks, the same global batch
  python launch/train.py runs/demo/modernn-seed1-1a2b3c4d                 start or resume a run directory
  torchrun --nproc_per_node 2 launch/train.py RUN
  python launch/train.py --config configs/demo.yaml --set train.lr=1e-4 --dry-run
  python launch/train.py --list-models                                    list the models

exit codes: 0 done, 1 failed, 2 usage or config, 3 stopped with a checkpoint (run the same command again),
            4 the loss or gradient is not finite, 5 damaged data, 6 hung (a rank made no progress),
            7 busy (another job or training has this run directory)
signals:    SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C stop it with a checkpoint and exit code 3; a second Ctrl-C ends it at
            once; SIGQUIT prints the stack of every thread, and ends it"""


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("train.py", "Train one run: a new one from a config, or an existing run directory.", EXAMPLES)
    add_run(
        parser,
        "an existing run to start or resume, instead of --config: its directory, or its name, which may be shortened",
    )
    parser.add_argument("--config", metavar="FILE", help="config file of a new run")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override a config value, for example train.lr=1e-4; repeatable, with --config",
    )
    parser.add_argument(
        "--out", metavar="PATH", help="run directory to create, with --config (default: runs/single/NAME-HASH)"
    )
    add_renamed(parser, "--run-dir", "--out", "out", metavar="DIR")
    parser.add_argument(
        "--resume",
        metavar="auto|none|STEP",
        default="auto",
        help="checkpoint to resume from: auto is the newest complete one, none starts at step 0 (default: auto)",
    )
    parser.add_argument(
        "--profile-steps", type=positive, default=0, metavar="N", help="profile N optimizer steps, then continue"
    )
    add_model_file(parser)
    parser.add_argument("--dry-run", action="store_true", help="check the config, print the model's size, and exit")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and exit")
    parser.add_argument("--list-models", action="store_true", help="print every model with its size and cost, and exit")
    arguments = parser.parse_args(argv)
    arguments.run = run_given(arguments)
    return arguments


def _list_models() -> int:
    from launch.cli.table import render
    from shards.manifest import FrameSpec
    from toolkit.config import make_config
    from toolkit.models.base import count_parameters
    from toolkit.models.cost import count_macs

    shape, rows = FrameSpec(1, 64, 64), []
    for name, entry in {**MODELS, **entry_points()}.items():
        config = make_config({"model": {"name": name}}, name)
        times = config.data.context, config.data.horizon
        parameters = count_parameters(config.model, shape)
        macs = (
            f"{count_macs(config.model, shape, *times) / 1e9:.2f}" if parameters else "-"
        )  # what isn't trained has no such pass
        rows.append([name, f"{parameters:,}", macs, f"{entry.title}: {entry.paper}"])
    print("\n".join(render(("name", "parameters", "GMACs/sequence", "paper"), rows)))
    print("\nat each model's default options; one forward pass in training over 10 + 10 frames of 64 x 64, one channel")
    return EXIT_OK


def _config(arguments: argparse.Namespace) -> RunConfig:
    if bool(arguments.config) == bool(arguments.run):
        raise ConfigError("give either --config FILE or a run (see --help)")
    if arguments.run:
        given = [f"--{key}" for key in ("set", "out") if getattr(arguments, key)]
        if given:
            raise ConfigError(f"{given[0]} goes with --config: a run that exists has its config and its directory")
        arguments.run = find_run(arguments.run).path
        run = RunDir(arguments.run)
        run.load_model_file(arguments.model_file)
        return run.config()
    config = load_config(arguments.config, arguments.set, typed=True)
    if arguments.model_file is not None:  # of a config that a run directory has: it names its file by a SHA-256
        check_model_file(config, arguments.model_file, arguments.config)
        config = load_config(arguments.config, arguments.set)
    return config


def _dry_run(config: RunConfig, new: bool) -> int:
    from shards.manifest import FrameSpec
    from toolkit.checkpoint.source import check_source
    from toolkit.evaluate.check import check_scoring
    from toolkit.models.base import count_parameters
    from toolkit.trackers import check_trackers
    from toolkit.train.check import open_data
    from toolkit.train.prepare import check_config

    if new and entry_of(config.model).trained:
        check_source(config.train.init_from)
    if "://" in config.data.store or (config.data.store and Path(config.data.store).exists()):
        data = open_data(config)
        check_config(config, data)
        shape, where, assumed = data.train.frames, config.data.store, False
        choice = data.train.channels
    else:
        check_trackers(config)
        check_scoring(config)
        shape = FrameSpec(len(config.data.inputs or "1"), 64, 64)
        where, assumed = f"no store yet: 64x64 frames of {count(shape.channels, 'channel')} assumed", True
        choice = None
    print(f"model       {config.model.name} ({', '.join(f'{k} {v}' for k, v in config.model if k != 'name')})")
    print(f"frames      {shape.channels} x {shape.height} x {shape.width} ({where})")
    if choice is not None:
        print(f"channels    {', '.join(choice.names)}; predicted: {', '.join(choice.target_names)}")
    print(f"parameters  {count_parameters(config.model, shape):,}")
    training = f"{config.train.steps:,} of {config.train.batch} sequences, rate {config.train.lr:g}"
    print(f"steps       {training if entry_of(config.model).trained else 'none: no training, only evaluation'}")
    schedule = "" if config.train.schedule.kind == "constant" else f", {config.train.schedule.kind}"
    print(
        f"recipe      {config.train.optimizer}{schedule}, loss {config.train.loss.kind}, "
        f"ema {config.train.ema or 'none'}"
    )
    print(f"scoring     {config.eval.protocol}, split {config.eval.split}: checked" + " (without a store)" * assumed)
    print(f"identity    {config.hash8()}")
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    arguments = _arguments(argv)
    if arguments.list_models:
        return _list_models()
    if arguments.resume not in ("auto", "none") and not arguments.resume.isdigit():
        raise ConfigError(f"--resume {arguments.resume}: use auto, none or the number of a step")
    config = _config(arguments)
    if arguments.print_config:
        print(config.to_yaml(), end="")
        return EXIT_OK
    if arguments.dry_run:
        return _dry_run(config, new=arguments.run is None)
    first = os.environ.get("RANK", "0") == "0"
    stop = StopRequest(
        "stopping at the end of this step, with a checkpoint; Ctrl-C again ends it at once" if first else ""
    )
    stop.install()
    try:
        return _train(arguments, config, stop)
    finally:
        stop.restore()


def _train(arguments: argparse.Namespace, config: RunConfig, stop: StopRequest) -> int:
    from toolkit.distributed.world import init_world
    from toolkit.train.loop import train

    # The watchdog is to speak before a collective gives up.
    allowed = config.train.watchdog
    patience = timedelta(seconds=60 + max(allowed.first_step, allowed.step))
    # torch would abort a rank whose collective failed, and a GPU's collectives fail in a thread of torch's: the
    # watchdog ends it instead, with the exit code of the rank whose fault it is.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    world = init_world(config.train, group=True, stop=lambda: bool(stop), timeout=patience)
    path = Path(arguments.run or arguments.out or Path("runs/single") / f"{config.name}-{config.hash8()}")
    with contextlib.ExitStack() as stack:
        if world.world_size == 1 or world.device.type == "cpu":
            stack.callback(world.close)  # whatever happens: gloo waits for nobody
        checked = world.run_on_rank_zero(lambda: _take(path, config, world, stack))
        run = RunDir(path)
        if run.done:
            if world.is_main:
                print(f"{path}: already trained; nothing to do", file=sys.stderr)
            world.close()
            return EXIT_OK
        try:
            code = train(run, world, arguments.resume, stop, arguments.profile_steps, checked)
        except Exception as error:
            _note_failure(run, world.rank, error)
            raise
        if world.is_main:
            print(path)
            if code == EXIT_OK and not in_sweep(path):
                own: list[str | Path] = ["--model-file", run.model_file] if isinstance(config.model, FileModel) else []
                print(f"next: {command('evaluate', path, *own)}", file=sys.stderr)
        world.close()  # not after an error: NCCL may wait for ranks that are gone
    return code


def _take(path: Path, config: RunConfig, world: World, stack: contextlib.ExitStack) -> bool:
    """Rank 0: make or open the run directory, and hold it until the end of `stack`; return whether it is a new one.

    The config of a new one is checked first, so that one that can't be trained leaves no run behind.
    """
    new = not RunDir(path).config_file.exists()
    if new:
        if (path / RECORD_NAME).exists():
            raise ConfigError(f"{path}: is the directory of a sweep: choose another --out")
        _check(config, world)
    run = RunDir.create(path, config)
    if run.done:
        return new
    held = claim(path, job=f"by hand ({count(world.world_size, 'rank')})", ranks=world.world_size, phase="train")
    if held is not None:
        stack.callback(held.release)
        stack.callback(lambda: held.note(ended=time.time()))
    mend(run)
    run.clear_failed()
    clear_beats(path)
    return new


def _check(config: RunConfig, world: World) -> None:
    """Check what a training will want of its config, store and machine."""
    from toolkit.checkpoint.source import check_source
    from toolkit.train.check import open_data
    from toolkit.train.prepare import check_config
    from toolkit.train.size import check_readers, check_size

    data = open_data(config)
    check_config(config, data)
    if entry_of(config.model).trained:
        check_source(config.train.init_from)
        check_readers(config, data.train.frames, world.local_size)
        check_size(config, data.train.frames, world.world_size, world.device)


def _note_failure(run: RunDir, rank: int, error: Exception) -> None:
    code = exit_code_of(error)
    if code == EXIT_REQUEUE:  # this rank was stopped before it had anything to save, or another one that it waited for
        return
    # The failure of the rank that caused it is kept; a rank that ends because of another writes one only if none did.
    if not isinstance(error, PeerError) or run.failure() is None:
        run.mark_failed(f"rank {rank}: {type(error).__name__}: {error}", code)


if __name__ == "__main__":
    run_script(main)

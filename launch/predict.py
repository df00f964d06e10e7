"""Forecast the frames that follow the latest ones of an archive. See --help."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launch.cli.parser import (
    add_device,
    add_model_file,
    add_renamed,
    add_run,
    make_parser,
    positive,
    run_given,
    run_script,
)
from launch.cli.runs import find_run
from launch.export import checkpoint_name
from toolkit.errors import EXIT_OK, ConfigError
from toolkit.rundir import RunDir
from toolkit.shipped import command
from toolkit.signals import StopRequest
from toolkit.wording import count

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from shards.recent import Archive, Frame
    from toolkit.forecast.make import Request
    from toolkit.forecast.products import Products
    from toolkit.forecast.trained import Trained

EXAMPLES = """\
  python launch/predict.py RUN --input ~/mch --lead 10                           forecast-TIME.nc
  python launch/predict.py models/modernn --input ~/mch --out f.zarr --picture f.png --picture f.gif
  python launch/predict.py RUN --input ~/mch --at 2016-07-11T22:00 --verify      with the observation that followed
  python launch/predict.py RUN --input ~/mch --tile 128 -- --crop none           a whole composite, in tiles
  python launch/predict.py RUN --input stores/radar --ensemble-size 20           an ensemble (SVG, steps)
  python launch/predict.py RUN --input ~/mch --probability 20 30 --accumulation  and products in the same file
  python launch/predict.py RUN --input /data/incoming --out out/rain.nc --watch

after a lone --: options of the archive's source, as of `python -m shards convert SOURCE --help`; what the run's own
archive was converted with (crop, size, ...) holds without them

exit codes: 0 done (--watch: asked to end by SIGTERM or Ctrl-C), 1 failed, 2 usage, a frame that is missing or frames
            that the model wasn't trained for, 5 damaged data"""


@dataclass(frozen=True)
class Task:
    """What one forecast needs beside the archive: the model, what is asked, and the files to write."""

    trained: Trained
    request: Request
    outputs: tuple[Path, ...]  # the data first, then pictures
    stamped: tuple[bool, ...]  # whose names get the time of the last observation
    overwrite: bool
    products: Products
    verify: bool
    thresholds: tuple[float, ...]  # of events in the verification; none: those of the run's config

    def paths(self, frame: Frame) -> tuple[Path, ...]:
        """Return the files of the forecast for a frame."""
        stamp = re.sub("[@/.]", "-", str(frame)) if frame.time is None else f"{frame.time:%Y%m%dT%H%M%SZ}"
        return tuple(
            path.with_name(f"{path.stem}-{stamp}{path.suffix}") if stamped else path
            for path, stamped in zip(self.outputs, self.stamped, strict=True)
        )


def _split(argv: Sequence[str] | None) -> tuple[list[str], int]:
    """Return the arguments of the command line, and the index of a separate `--`, where options of the source begin."""
    words = list(sys.argv[1:] if argv is None else argv)
    return words, words.index("--") if "--" in words else len(words)


def _arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    words, cut = _split(argv)
    parser = make_parser("predict.py", "Forecast the frames that follow the latest ones of an archive.", EXAMPLES)
    add_run(parser, "a run, whose name may be shortened, or the folder of an exported model")
    add_renamed(parser, "--checkpoint", "--run", "run_option", metavar="RUN")
    for add in (_add_input, _add_output, _add_verification, _add_products, _add_ensemble, _add_tiles, _add_watch):
        add(parser)
    add_device(parser, "auto: a GPU where there is one")
    add_model_file(parser)
    arguments = parser.parse_args(words[:cut])
    _check_together(arguments)
    arguments.model = _model_of(run_given(arguments))
    return arguments, words[cut + 1 :]


def _add_input(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--which",
        type=checkpoint_name,
        default="best",
        metavar="best|last|ema|STEP",
        help="checkpoint of a run (default: best)",
    )
    parser.add_argument(
        "--input",
        metavar="PATH",
        required=True,
        help="folder or file of an archive, as its instrument writes it; or a store",
    )
    parser.add_argument(
        "--source",
        metavar="NAME|FILE.py",
        help="what reads the archive (default: by the names of its files); your own file runs only if named here",
    )
    parser.add_argument(
        "--at",
        metavar="TIME",
        help="last observation: UTC; without a clock an event's key or a frame's FOLDER/FILE (default: the newest)",
    )
    parser.add_argument("--lead", type=positive, metavar="N", help="frames to predict (default: the run's horizon)")
    parser.add_argument(
        "--keep-inflow",
        action="store_true",
        help="optical flow: keep values that flow in from outside the observed area (default: missing)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="file to write, .nc (CF netCDF) or .zarr (default: forecast-TIME.nc in the working directory)",
    )
    add_renamed(parser, "--output", "--out", "out", type=Path)
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        action="append",
        default=[],
        help="also write a picture, .png or .gif; repeatable",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def _add_verification(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare with the observation after --at: scores by lead time, also in FILE.verify.json, diagrams in "
        "FILE.verify.png; the observation in pictures",
    )
    parser.add_argument(
        "--thresholds",
        type=float,
        nargs="*",
        metavar="K",
        help="with --verify: event thresholds, in the store's unit (default: those of the run's config)",
    )


def _add_products(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--probability",
        type=float,
        nargs="+",
        metavar="K",
        help="also write the probability of reaching K, in the store's unit",
    )
    parser.add_argument(
        "--neighbourhood",
        type=positive,
        metavar="PIXELS",
        help="with --probability: side of the square of pixels that count (default: 15; 1 for an ensemble)",
    )
    parser.add_argument("--accumulation", action="store_true", help="also write the accumulated precipitation in mm")
    parser.add_argument(
        "--zr",
        type=float,
        nargs=2,
        metavar=("A", "B"),
        help="with --accumulation of reflectivity: Z = A R^B (default: 200 1.6)",
    )


def _add_ensemble(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ensemble-size",
        type=positive,
        default=1,
        metavar="N",
        help="number of members; deterministic models make one (default: 1)",
    )
    add_renamed(parser, "--samples", "--ensemble-size", "ensemble_size", type=positive)
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the members' noise (default: 0)")


def _add_tiles(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tile", type=positive, metavar="SIDE", help="forecast in overlapping tiles of SIDE x SIDE pixels"
    )
    parser.add_argument(
        "--overlap",
        type=int,
        metavar="PIXELS",
        help="with --tile: overlap of neighbouring tiles in pixels (default: 32)",
    )


def _add_watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--watch", action="store_true", help="watch the folder: one forecast per new frame, until SIGTERM or Ctrl-C"
    )
    parser.add_argument(
        "--every", type=float, metavar="S", help="with --watch: polling interval in seconds (default: 5)"
    )
    parser.add_argument(
        "--patience",
        type=float,
        metavar="S",
        help="with --watch: seconds to wait until a new file can be read (default: 60)",
    )


# An option has no effect without the one it belongs to.
NEEDED = {
    "thresholds": "verify",
    "neighbourhood": "probability",
    "zr": "accumulation",
    "overlap": "tile",
    "every": "watch",
    "patience": "watch",
}
DEFAULTS = {"thresholds": (), "probability": (), "zr": (200, 1.6), "seed": 0, "overlap": 32, "every": 5, "patience": 60}


def _check_together(arguments: argparse.Namespace) -> None:
    """Refuse options that have no effect, or contradict each other; then fill in defaults.

    Raises:
        ConfigError: names both options.
    """
    for option, needed in NEEDED.items():
        if getattr(arguments, option) is not None and not getattr(arguments, needed):
            raise ConfigError(f"--{option} has no effect without --{needed}: add --{needed}, or omit --{option}")
    if arguments.seed is not None and arguments.ensemble_size == 1:
        raise ConfigError("--seed has no effect without --ensemble-size above 1: add it, or omit --seed")
    if arguments.watch and (arguments.at or arguments.verify):
        raise ConfigError("--watch forecasts the newest frames: leave --at and --verify out")
    for option, value in DEFAULTS.items():
        if getattr(arguments, option) is None:
            setattr(arguments, option, value)
    for option, numbers in {"every": [arguments.every], "patience": [arguments.patience], "zr": arguments.zr}.items():
        if not min(numbers) > 0:
            raise ConfigError(f"--{option} {' '.join(f'{number:g}' for number in numbers)}: must be above 0")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    arguments, options = _arguments(argv)
    stop = StopRequest()
    if arguments.watch:
        stop.install()

    # torch is imported late: --help and a mistyped path answer at once.
    from shards.recent import open_archive
    from toolkit.forecast.files import check_output
    from toolkit.forecast.picture import check_picture

    output = arguments.out or Path("forecast.nc")
    stamped = (arguments.watch or arguments.out is None, *[arguments.watch] * len(arguments.picture))
    arguments.overwrite |= arguments.watch  # pictures that a killed watch left without their data
    check_output(output, arguments.overwrite or stamped[0])
    for picture in arguments.picture:
        check_picture(picture, arguments.overwrite)
    task = _task(arguments, (output, *arguments.picture), stamped)
    trained = task.trained
    logger.info("%s: %s", arguments.model, trained.title)
    _check_source(arguments, trained, argv)
    open_now = partial(open_archive, arguments.input, trained.archive, options, arguments.source)
    if arguments.watch:
        return _watch(task, open_now, stop, arguments)
    archive = open_now()
    _make(task, archive, archive.series(arguments.at)[-1])
    return EXIT_OK


def _model_of(given: str | None) -> Path:
    """Return the run directory that is meant, or the folder of an exported model."""
    if given is not None and (Path(given) / "config.json").exists() and not RunDir(Path(given)).config_file.exists():
        return Path(given)
    run = find_run(given)
    run.config()
    return run.path


def _check_source(arguments: argparse.Namespace, trained: Trained, argv: Sequence[str] | None) -> None:
    """Refuse now what every look at the archive would refuse, and give the command that is taken."""
    from shards.errors import UnnamedSourceError
    from shards.recent import check_source

    try:
        check_source(arguments.input, trained.archive, arguments.source)
    except UnnamedSourceError as error:
        words, cut = _split(argv)
        words[cut:cut] = ["--source", "FILE.py"]
        raise UnnamedSourceError(f"{error}: {command('predict', *words)}") from None


def _task(arguments: argparse.Namespace, outputs: tuple[Path, ...], stamped: tuple[bool, ...]) -> Task:
    from toolkit.distributed.device import choose, set_arithmetic
    from toolkit.forecast.make import Request
    from toolkit.forecast.products import Products
    from toolkit.forecast.trained import load_trained

    device = choose(arguments.device or "auto", 0)
    trained = load_trained(arguments.model, arguments.which, device, arguments.model_file)
    set_arithmetic(trained.config.train)
    lead = arguments.lead or trained.config.data.horizon
    request = Request(
        lead, arguments.ensemble_size, arguments.seed, arguments.tile, arguments.overlap, arguments.keep_inflow
    )
    probability, zr = tuple(arguments.probability), tuple(arguments.zr)
    products = Products(probability, arguments.neighbourhood, arguments.accumulation, zr)
    verified = arguments.verify, tuple(arguments.thresholds)
    return Task(trained, request, outputs, stamped, arguments.overwrite, products, *verified)


def _make(task: Task, archive: Archive, frame: Frame) -> None:
    """Make the forecast that begins with a frame, and write it; the data last, so that where they are all is."""
    from shards.sources.inputs import by
    from toolkit.forecast.files import check_output, write_forecast
    from toolkit.forecast.make import check_fits, make_forecast
    from toolkit.forecast.picture import draw
    from toolkit.forecast.verify import as_text, save_verification, verification

    data, *pictures = task.paths(frame)
    check_output(data, task.overwrite)
    trained, request = task.trained, task.request
    check_fits(trained, archive, request)
    task.products.check(trained.scale, trained.step_seconds or archive.description.step_seconds)
    step = (trained.step_seconds or archive.description.step_seconds) if frame.time is not None else None
    frames = archive.up_to(frame, trained.config.data.context, step)
    size = by((archive.description.frames.height, archive.description.frames.width))
    logger.info("%s: %s of %s, %s to %s", archive.where, count(len(frames), "frame"), size, frames[0], frames[-1])
    forecast = make_forecast(trained, archive, frames, request)
    truth, written = None, list[Path]()
    if task.verify:
        following = archive.following(frame, request.lead, step)
        if not following:
            raise ConfigError(f"--verify: no frame follows {frame} in {archive.where}: pass an earlier time with --at")
        truth = forecast.recoded(archive, following)
        made = verification(forecast, truth, task.thresholds)
        print(as_text(made))
        written += save_verification(made, data)
    for picture in pictures:
        draw(forecast, picture, truth)
    write_forecast(forecast, data, task.products)
    print("\n".join(str(path) for path in (data, *pictures, *written)), flush=True)


def _watch(task: Task, open_now: partial[Archive], stop: StopRequest, arguments: argparse.Namespace) -> int:
    from toolkit.forecast.watch import Watch

    watch = Watch(
        open_archive=open_now,
        make=lambda archive, frame: _make(task, archive, frame),
        is_written=lambda frame: task.paths(frame)[0].exists(),
        should_stop=lambda: bool(stop),
        every=arguments.every,
        patience=arguments.patience,
        context=task.trained.config.data.context,
    )
    made = watch.run()
    logger.info("%s: stopped after %s", stop.name, count(made, "forecast"))
    return EXIT_OK


if __name__ == "__main__":
    run_script(main)

"""Forecast the frames that follow the latest ones of an archive. See --help."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launch.cli.forecasts import add_watch, check_together
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
    from toolkit.forecast.hook import Command
    from toolkit.forecast.make import Request
    from toolkit.forecast.page.keeper import Page
    from toolkit.forecast.products import Products
    from toolkit.forecast.trained import Trained
    from toolkit.forecast.watch import Feed

EXAMPLES = """\
  python launch/predict.py RUN --input ~/mch --lead 10                           forecast-TIME.nc
  python launch/predict.py models/modernn --input ~/mch --out f.zarr --picture f.png --picture f.gif
  python launch/predict.py RUN --input ~/mch --at 2016-07-11T22:00 --verify      with the observation that followed
  python launch/predict.py RUN --input ~/mch --tile 128 -- --crop none           a whole composite, in tiles
  python launch/predict.py RUN --input stores/radar --ensemble-size 20           an ensemble (SVG, steps)
  python launch/predict.py RUN --input ~/mch --probability 20 30 --accumulation  and products in the same file
  python launch/predict.py RUN --input /data/incoming --out out/rain.nc --watch
  python launch/predict.py RUN --input /data/incoming --watch --page /var/www/nowcast --keep 24

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
    page: Page | None
    command: Command | None
    new: list[Path] = field(default_factory=list)  # files that the command did not get yet

    def paths(self, frame: Frame) -> tuple[Path, ...]:
        """Return the files of the forecast for a frame."""
        stamp = re.sub("[@/.]", "-", str(frame)) if frame.time is None else f"{frame.time:%Y%m%dT%H%M%SZ}"
        return tuple(
            path.with_name(f"{path.stem}-{stamp}{path.suffix}") if stamped else path
            for path, stamped in zip(self.outputs, self.stamped, strict=True)
        )

    def has(self, frame: Frame) -> bool:
        """Return whether a frame has a forecast; a page has none of frames before those that it keeps."""
        return self.paths(frame)[0].exists() if self.page is None else self.page.has(frame)

    def update(self, feed: Feed) -> None:
        """Update the page, then run the command for the new forecasts: it may copy the page."""
        if self.page is not None:
            self.page.update(feed)
        self.run_command()

    def run_command(self) -> None:
        """Run the command for each new forecast; one that the page no longer keeps is logged."""
        while self.new:
            path = self.new.pop(0)
            if self.command is None:
                continue
            if path.exists():
                self.command.run(path)
            else:
                logger.warning("--on-forecast: %s: not run, --keep has deleted the forecast", path)


def _split(argv: Sequence[str] | None) -> tuple[list[str], int]:
    """Return the arguments of the command line, and the index of a separate `--`, where options of the source begin."""
    words = list(sys.argv[1:] if argv is None else argv)
    return words, words.index("--") if "--" in words else len(words)


def _arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    words, cut = _split(argv)
    parser = make_parser("predict.py", "Forecast the frames that follow the latest ones of an archive.", EXAMPLES)
    add_run(parser, "a run, whose name may be shortened, or the folder of an exported model")
    add_renamed(parser, "--checkpoint", "--run", "run_option", metavar="RUN")
    for add in (_add_input, _add_output, _add_verification, _add_products, _add_ensemble, _add_tiles, add_watch):
        add(parser)
    add_device(parser, "auto: a GPU where there is one")
    add_model_file(parser)
    arguments = parser.parse_args(words[:cut])
    check_together(arguments)
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
        help="with --probability, or --page of an ensemble: side of the square of pixels that count (default: 15; "
        "1 for an ensemble)",
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
    from toolkit.forecast.watch import Feed

    output = arguments.out or Path("forecast.nc")
    stamped = (arguments.watch or arguments.out is None, *[arguments.watch] * len(arguments.picture))
    arguments.overwrite |= arguments.watch  # pictures that a killed watch left without their data
    check_output(output, arguments.overwrite or stamped[0])
    for picture in arguments.picture:
        check_picture(picture, arguments.overwrite)
    task = _task(arguments, options, (output, *arguments.picture), stamped)
    trained = task.trained
    logger.info("%s: %s", arguments.model, trained.title)
    _check_source(arguments, trained, argv)
    open_now = partial(open_archive, arguments.input, trained.archive, options, arguments.source)
    if arguments.watch:
        return _watch(task, open_now, stop, arguments)
    archive = open_now()
    frame = archive.series(arguments.at)[-1]
    if task.page is not None and task.has(frame):
        logger.info("%s: has a forecast, or is older than those that are kept", frame)
    else:
        _make(task, archive, frame)
    if task.page is not None:
        task.update(Feed(archive, archive.series()))
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


def _task(
    arguments: argparse.Namespace, options: Sequence[str], outputs: tuple[Path, ...], stamped: tuple[bool, ...]
) -> Task:
    from toolkit.distributed.device import choose, set_arithmetic
    from toolkit.evaluate.check import threshold_codes
    from toolkit.forecast.hook import Command
    from toolkit.forecast.make import Request, check_request
    from toolkit.forecast.page.keeper import Page
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
    check_request(trained, request)
    threshold_codes(verified[1], trained.scale, "--thresholds")
    products.check(trained.scale, trained.step_seconds or 1.0)  # the archive's, where the model has none
    given, page = arguments.on_forecast, None
    hook = None if given is None else Command.parse(given, arguments.on_forecast_limit)
    if arguments.page is not None:
        archive = (arguments.input, arguments.watch, arguments.source, options)
        page = Page(arguments.page, arguments.keep, trained, request, products, verified[1], *archive)
        outputs = (page.data, *outputs[1:])
    return Task(trained, request, outputs, stamped, arguments.overwrite, products, *verified, page, hook)


def _make(task: Task, archive: Archive, frame: Frame) -> None:
    """Make the forecast that begins with a frame, and write it; the data last, so that where they are all is."""
    from shards.sources.inputs import by
    from toolkit.forecast.files import check_output, write_forecast
    from toolkit.forecast.make import check_fits, make_forecast
    from toolkit.forecast.picture import draw
    from toolkit.forecast.verify import as_text, save_verification, verification

    data, *pictures = task.paths(frame)
    check_output(data, task.overwrite or task.page is not None)  # of a page: its record is damaged
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
    entry = None if task.page is None else task.page.prepare(forecast)
    try:
        write_forecast(forecast, data, task.products)
    finally:  # one that is in place in spite of an error is not made again
        if data.exists() and data not in task.new:
            task.new.append(data)
    if task.page is not None and entry is not None:
        task.page.publish(entry)
    print("\n".join(str(path) for path in (data, *pictures, *written)), flush=True)
    if task.page is None:  # else after the page is updated
        task.run_command()


def _watch(task: Task, open_now: partial[Archive], stop: StopRequest, arguments: argparse.Namespace) -> int:
    from toolkit.forecast.watch import Watch

    watch = Watch(
        open_archive=open_now,
        make=lambda archive, frame: _make(task, archive, frame),
        is_written=task.has,
        should_stop=lambda: bool(stop),
        every=arguments.every,
        patience=arguments.patience,
        context=task.trained.config.data.context,
        on_check=task.update,
    )
    made = watch.run()
    task.run_command()  # of forecasts whose page could not be written
    logger.info("%s: stopped after %s", stop.name, count(made, "forecast"))
    return EXIT_OK


if __name__ == "__main__":
    run_script(main)

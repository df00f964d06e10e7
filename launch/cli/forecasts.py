"""Options of `predict` for real-time forecasts, and which of its options go together."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch.cli.parser import positive
from toolkit.errors import ConfigError


def add_watch(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
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
    parser.add_argument(
        "--page",
        type=Path,
        metavar="DIR",
        help="instead of --out: keep latest.nc, latest.png and index.html in DIR, the last forecasts beside the "
        "observations that have arrived since, and their scores",
    )
    parser.add_argument(
        "--keep", type=positive, metavar="N", help="with --page: number of forecasts to keep (default: 24)"
    )
    parser.add_argument(
        "--on-forecast",
        metavar="CMD",
        help="run a command after each forecast; the file is its last argument, and in the variable FORECAST",
    )
    parser.add_argument(
        "--on-forecast-limit",
        type=float,
        metavar="S",
        help="with --on-forecast: seconds after which the command is killed (default: 60)",
    )


# An option has no effect without one of those it belongs to.
NEEDED = {
    "thresholds": ("verify", "page"),
    "neighbourhood": ("probability", "page"),
    "zr": ("accumulation",),
    "overlap": ("tile",),
    "every": ("watch",),
    "patience": ("watch",),
    "keep": ("page",),
    "on_forecast_limit": ("on_forecast",),
}
DEFAULTS = {
    "thresholds": (),
    "probability": (),
    "zr": (200, 1.6),
    "seed": 0,
    "overlap": 32,
    "every": 5,
    "patience": 60,
    "keep": 24,
    "on_forecast_limit": 60,
}


def check_together(arguments: argparse.Namespace) -> None:
    """Refuse options that have no effect, or contradict each other; then fill in defaults.

    Raises:
        ConfigError: names both options.
    """
    for option, needed in NEEDED.items():
        if getattr(arguments, option) is not None and not any(getattr(arguments, name) for name in needed):
            name, first = option.replace("_", "-"), needed[0].replace("_", "-")
            others = "".join(f" or --{other}" for other in needed[1:])
            raise ConfigError(f"--{name} has no effect without --{first}{others}: add --{first}, or omit --{name}")
    if arguments.neighbourhood is not None and not arguments.probability and arguments.ensemble_size == 1:
        raise ConfigError(
            "--neighbourhood has no effect: --page shows probabilities of an ensemble, or those of --probability: add "
            "--ensemble-size or --probability, or omit --neighbourhood"
        )
    if arguments.seed is not None and arguments.ensemble_size == 1:
        raise ConfigError("--seed has no effect without --ensemble-size above 1: add it, or omit --seed")
    if arguments.watch and (arguments.at or arguments.verify):
        raise ConfigError("--watch forecasts the newest frames: leave --at and --verify out")
    if arguments.page and (arguments.out or arguments.verify):
        raise ConfigError("--page has its own files and verification: leave --out and --verify out")
    for option, value in DEFAULTS.items():
        if getattr(arguments, option) is None:
            setattr(arguments, option, value)
    single = {option: [getattr(arguments, option)] for option in ("every", "patience", "on_forecast_limit")}
    for option, numbers in {**single, "zr": arguments.zr}.items():
        if not min(numbers) > 0:
            raise ConfigError(
                f"--{option.replace('_', '-')} {' '.join(f'{number:g}' for number in numbers)}: must be above 0"
            )

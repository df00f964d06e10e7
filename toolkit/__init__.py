"""Training, evaluation and reporting of recurrent spatiotemporal predictors.

The functions here are the Python interface; docs/python.md shows them at work:

    load          a trained model, of a run directory or an export
    predict       a forecast from the latest frames of an archive or a store
    evaluate_run  the scores of a run's checkpoints
    open_store    a sequence store

Importing this package imports nothing heavy: each function imports what it needs when it is called. Config, run
directories and the model registry work on a login node without torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.store import Store
    from toolkit.config.sections import Device
    from toolkit.forecast.make import Forecast
    from toolkit.models.base import SequenceModel

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate_run", "load", "open_store", "predict"]


def load(path: str | Path, model_file: str | Path | None = None) -> SequenceModel:
    """Return the model of an exported folder, or of the best checkpoint of a run directory.

    Args:
        path: of the folder.
        model_file: the file that its model is from, which is then run; None: the model is one of the toolkit's.

    Returns:
        On the CPU, in fp32 and evaluation mode. `model.predict(frames [B, T, C, H, W] in 0..1, horizon)` gives
        [samples, B, horizon, C, H, W].

    Raises:
        CheckpointError, ConfigError: it is neither, or can't be used.
    """
    from toolkit.checkpoint import export

    return export.load(path, model_file)


def predict(
    path: str | Path,
    archive: str | Path,
    *,
    at: str | None = None,
    lead: int | None = None,
    ensemble_size: int = 1,
    seed: int = 0,
    which: str = "best",
    device: Device = "auto",
    source: str | None = None,
    model_file: str | Path | None = None,
) -> Forecast:
    """Return the forecast of the frames that follow the latest ones of an archive, in its physical unit.

    Args:
        path: a run directory or an exported folder.
        archive: folder or file, as its instrument writes it; or a store.
        at: last observation, UTC; without a clock an event's key; None: the newest.
        lead: frames to predict; None: the run's horizon.
        ensemble_size: members; deterministic models make one.
        seed: of the members' noise.
        which: checkpoint of a run: `best`, `last`, `ema` or a step.
        device: `auto`, `cpu` or `cuda`.
        source: what reads the archive, by name or as a Python file, which is then run; None: by the names of its files.
        model_file: as in `load`.

    Raises:
        ToolkitError, ShardError: as `toolkit predict` reports them.
    """
    from shards.recent import open_archive
    from toolkit.distributed.device import choose, set_arithmetic
    from toolkit.forecast.make import Request, check_fits, make_forecast
    from toolkit.forecast.trained import load_trained

    trained = load_trained(path, which, choose(device, 0), None if model_file is None else Path(model_file))
    set_arithmetic(trained.config.train)
    request = Request(lead or trained.config.data.horizon, ensemble_size, seed)
    with contextlib.closing(open_archive(str(archive), trained.archive, [], source)) as opened:
        check_fits(trained, opened, request)
        last = opened.series(at)[-1]
        step = (trained.step_seconds or opened.description.step_seconds) if last.time is not None else None
        return make_forecast(trained, opened, opened.up_to(last, trained.config.data.context, step), request)


def evaluate_run(
    path: str | Path,
    *,
    which: Sequence[str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    ensemble_size: int | None = None,
    force: bool = False,
    device: Device | None = None,
    model_file: str | Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Score checkpoints of a run as `toolkit evaluate` does, and return the results by name, `test-best` and so on.

    Args:
        path: a run directory, in whose `eval/` the results are written; a result that is there is returned.
        which: checkpoints, `best`, `last` or `ema`; None: all that are scored of the run.
        split: of the store; None: `eval.split` of the run's config. The same holds for `ensemble_size`.
        limit: only the first sequences of the split; None: all.
        force: score again what is scored.
        device: `auto`, `cpu` or `cuda`; None: `train.device` of the run's config.
        model_file: as in `load`.

    Raises:
        ToolkitError, ShardError: as `toolkit evaluate` reports them.
    """
    from toolkit.distributed.world import init_world
    from toolkit.evaluate.job import evaluate_run as evaluate
    from toolkit.evaluate.request import Request
    from toolkit.rundir import RunDir, read_result

    run = RunDir(Path(path))
    run.load_model_file(None if model_file is None else Path(model_file))
    train = run.config().train
    asked = {"split": split, "ensemble_size": ensemble_size}
    values = {key: value for key, value in asked.items() if value is not None}
    request = Request(None if which is None else tuple(which), {"eval": values} if values else {}, limit, force)
    world = init_world(train.model_copy(update={"device": device or train.device}))
    try:
        files = evaluate(run, request, world)
    finally:
        world.close()
    return {file.stem: read_result(file) for file in files}


def open_store(path: str | Path) -> Store:
    """Return the sequence store in a folder or at a URL.

    Raises:
        ShardError: there is none, or it can't be used.
    """
    from shards import open_store

    return open_store(str(path))

"""Evaluate the checkpoints of a run directory on a split, and write the results into it.

    eval/<split>-<best|last>.json           scores, and everything needed to compare them with others
    eval/<split>-<best|last>.table.npz      the same per sequence and lead time (`ScoreTable.load`)
    eval/<split>-<best|last>.samples.npz    frames for the report

The JSON is written last: if it exists, the others do.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.atomic import clear_leftovers, replacing, write_atomic
from toolkit.checkpoint.weights import load_model
from toolkit.config import RunConfig
from toolkit.data.windows import open_windows
from toolkit.distributed.world import World
from toolkit.errors import ConfigError
from toolkit.evaluate.ensemble import Ensemble
from toolkit.evaluate.perceptual import load_lpips
from toolkit.evaluate.protocols import load_protocol
from toolkit.evaluate.run import SINGLE, evaluate_model, sample_frames
from toolkit.evaluate.table import ScoreTable, save_npz
from toolkit.models.base import SequenceModel
from toolkit.models.baselines import Persistence
from toolkit.rundir import CHECKPOINTS, RESULT_VERSION, RunDir
from toolkit.wording import count, duration, speed

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 5.0


@dataclass(frozen=True)
class Request:
    """What to evaluate; None uses the value of the run's config."""

    which: tuple[str, ...] = CHECKPOINTS
    split: str | None = None
    batch: int | None = None
    limit: int | None = None
    ensemble_size: int | None = None
    select: Literal["mean", "best"] | None = None
    force: bool = False


class Evaluation:
    """The evaluation of one run on one split. Every rank creates one; rank 0 writes the results."""

    def __init__(self, run: RunDir, request: Request, world: World) -> None:
        """Open the data of the evaluation.

        Raises:
            ConfigError: no store, an unknown split, or windows longer than any event.
        """
        self.run, self.request, self.world = run, request, world
        self.config: RunConfig = run.config()
        self.split = request.split or self.config.eval.split
        self.windows = open_windows(self.config, self.split)
        self.store = self.windows.store
        self.protocol = load_protocol(self.config.eval.protocol)
        self.batch = request.batch or self.config.eval.batch
        asked = self.config.eval
        self.lpips = load_lpips(world.device) if asked.lpips else None
        self.ensemble = Ensemble(
            request.ensemble_size or asked.ensemble_size, request.select or asked.select, self.protocol.best_by
        )

    def file(self, which: str, suffix: str) -> Path:
        return self.run.eval / f"{self.split}-{which}{suffix}"

    def _ensemble(self, model: SequenceModel) -> Ensemble:
        """Return the ensemble of a model; a deterministic model makes one forecast."""
        return self.ensemble if model.stochastic else SINGLE

    def perform(self) -> list[Path]:
        """Evaluate the checkpoints that have no result yet; return all JSON files, old and new."""
        loaded = {which: load_model(self.run, which, self.world.device) for which in self.request.which}
        missing = {which: step for which, (model, step) in loaded.items() if not self._is_there(which, model, step)}
        wanted: dict[str, int] = self.world.broadcast(missing)  # ranks may see different states of a shared file system
        for which in self.request.which:
            if which not in wanted:
                logger.info("%s: already evaluated at step %s", self.file(which, ".json"), f"{loaded[which][1]:,}")
        if wanted:
            if self.world.is_main:
                self.run.write_state(phase="evaluating")
            persistence = self._score(Persistence(), "persistence").compute().as_dict()
            done: dict[int, str] = {}
            for which, step in wanted.items():
                if step in done:
                    self._copy(done[step], which)
                else:
                    self._evaluate(which, loaded[which][0], step, persistence)
                done[step] = which
            if self.world.is_main:
                self.run.write_state(phase="done")
        self.world.barrier()
        return [self.file(which, ".json") for which in self.request.which]

    def _identity(self, model: SequenceModel, step: int) -> dict[str, object]:
        """Return what a result depends on: a result with equal values is not computed again."""
        return {
            "version": RESULT_VERSION,
            "protocol": self.protocol.choices(),
            "store": {
                "path": str(self.config.data.store),
                "name": self.store.manifest.name,
                "digest": self.store.manifest.digest,
            },
            "split": self.split,
            "step": step,
            "thresholds": list(self.protocol.thresholds_for(self.config.eval.thresholds)),
            "lpips": self.config.eval.lpips,
            "context": self.config.data.context,
            "stride": self.config.data.eval_stride,
            "batch": self.batch,
            "limit": self.request.limit,
            "ensemble": self._ensemble(model).described(),
            "show": self.config.eval.show,
        }

    def _is_there(self, which: str, model: SequenceModel, step: int) -> bool:
        if self.request.force:
            return False
        try:
            found = json.loads(self.file(which, ".json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return False
        wanted = json.loads(json.dumps(self._identity(model, step)))
        return all(_without_text(found.get(key)) == _without_text(value) for key, value in wanted.items())

    def _evaluate(self, which: str, model: SequenceModel, step: int, persistence: dict[str, object]) -> None:
        began = time.perf_counter()
        table = self._score(model, f"{which}, step {step:,}")
        seconds = time.perf_counter() - began
        if not self.world.is_main:
            return
        manifest = self.store.manifest
        scores = table.compute()
        record = {
            **self._identity(model, step),
            "which": which,
            "unit": manifest.scale.unit,
            "quantity": manifest.scale.quantity,
            "step_seconds": manifest.step_seconds,
            "frames": list(manifest.frames.shape),
            "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "seconds": round(seconds, 3),
            "world_size": self.world.world_size,
            **scores.as_dict(),
            "persistence": persistence,
        }
        table.save(self.file(which, ".table.npz"))
        if self.config.eval.show:
            self._keep_frames(which, model, table)
        write_atomic(self.file(which, ".json"), json.dumps(record, indent=1, allow_nan=False) + "\n")
        self._announce(which, scores.overall, scores.announced)

    def _keep_frames(self, which: str, model: SequenceModel, table: ScoreTable) -> None:
        data = self.config.data
        frames = sample_frames(
            model,
            self.windows,
            table,
            context=data.context,
            horizon=data.horizon,
            protocol=self.protocol,
            batch=self.batch,
            show=self.config.eval.show,
            device=self.world.device,
            ensemble=self._ensemble(model),
        )
        save_npz(self.file(which, ".samples.npz"), frames)

    def _announce(self, which: str, overall: dict[str, Any], announced: dict[str, Any]) -> None:
        shown = "  ".join(
            f"{name} {'undefined' if value is None else format(value, '.5g')}" for name, value in overall.items()
        )
        logger.info("%s-%s: %s", self.split, which, shown)
        flat = {**announced, **{f"frames without {k}": n for k, n in announced["frames_without_value"].items()}}
        del flat["frames_without_value"]
        for name, number in flat.items():
            if number:
                logger.info("%s-%s: note: %s %s", self.split, which, f"{number:,}", name.replace("_", " "))

    def _score(self, model: SequenceModel, name: str) -> ScoreTable:
        data, ensemble = self.config.data, self._ensemble(model)
        if ensemble.samples > 1:
            name += f", ensemble size {ensemble.samples}"
        return evaluate_model(
            model,
            self.windows,
            context=data.context,
            horizon=data.horizon,
            protocol=self.protocol,
            thresholds=self.config.eval.thresholds,
            batch=self.batch,
            device=self.world.device,
            rank=self.world.rank,
            world=self.world.world_size,
            limit=self.request.limit,
            ensemble=ensemble,
            lpips=self.lpips,
            progress=self._progress(name),
        )

    def _progress(self, name: str) -> Callable[[int, int], None]:
        began = last = time.perf_counter()
        shared = f" on rank 0 of {self.world.world_size}" if self.world.world_size > 1 else ""

        def show(done: int, total: int) -> None:
            nonlocal last
            now = time.perf_counter()
            if now - last < PROGRESS_EVERY_S and done < total:
                return
            last = now
            rate = done / max(now - began, 1e-9)
            progress = f"{done:,} of {count(total, 'sequence')}{shared}, {speed(rate)} sequences/s"
            logger.info("%s (%s): %s, ETA %s", self.split, name, progress, duration((total - done) / rate))

        return show

    def _copy(self, source: str, which: str) -> None:
        """Copy a result, because `best` and `last` are the same step."""
        if not self.world.is_main:
            return
        for suffix in (".table.npz", ".samples.npz") if self.config.eval.show else (".table.npz",):
            with replacing(self.file(which, suffix)) as file, open(self.file(source, suffix), "rb") as original:
                shutil.copyfileobj(original, file)
        record = {**json.loads(self.file(source, ".json").read_text(encoding="utf-8")), "which": which}
        write_atomic(self.file(which, ".json"), json.dumps(record, indent=1, allow_nan=False) + "\n")
        logger.info("%s-%s: the same step as %s; copied", self.split, which, source)


def _without_text(value: object) -> object:
    """Leave out the description for reports, which may change between versions."""
    return {key: item for key, item in value.items() if key != "text"} if isinstance(value, dict) else value


def evaluate_run(run: RunDir, request: Request, world: World) -> list[Path]:
    """Evaluate a run's checkpoints; return the result files, `eval/<split>-<which>.json`.

    Raises:
        ConfigError: a checkpoint name other than `best` and `last`, or a config that does not fit the store.
        CheckpointError: there is no such checkpoint.
    """
    check_which(request.which)
    world.run_on_rank_zero(lambda: _clear(run))
    return Evaluation(run, request, world).perform()


def _clear(run: RunDir) -> None:
    """Remove what an evaluation that was killed has left in the run's folders."""
    for folder in (run.path, run.eval, run.analysis):
        for leftover in clear_leftovers(folder):
            logger.info("removed %s: its writer was killed", leftover)


def check_which(which: Sequence[str]) -> None:
    """Raise ConfigError unless every name is `best` or `last` and there is at least one."""
    strange = [name for name in which if name not in CHECKPOINTS]
    if strange or not which:
        raise ConfigError(f"--which {','.join(which)}: choose best, last or best,last")

"""Evaluating a run directory: its checkpoints on a split, the results written beside them.

    eval/<split>-<best|last>.json           scores, and everything needed to compare them with others
    eval/<split>-<best|last>.table.npz      the same per sequence and lead time (`ScoreTable.load`)
    eval/<split>-<best|last>.samples.npz    frames for the report

The JSON is written last: where it stands, the others stand too.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.atomic import replacing, write_atomic
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
from toolkit.wording import speed

PROGRESS_EVERY_S = 5.0


@dataclass(frozen=True)
class Request:
    """What to evaluate; None takes the run's own config."""

    which: tuple[str, ...] = CHECKPOINTS
    split: str | None = None
    batch: int | None = None
    limit: int | None = None
    ensemble_size: int | None = None
    select: Literal["mean", "best"] | None = None
    force: bool = False


class Evaluation:
    """One run, one split. Every rank makes one; rank 0 writes and speaks."""

    def __init__(self, run: RunDir, request: Request, world: World, say: Callable[[str], None]) -> None:
        """
        Raises:
            ConfigError: no store, an unknown split, or windows longer than any event.
        """
        self.run, self.request, self.world = run, request, world
        self.say: Callable[[str], None] = say if world.is_main else (lambda _: None)
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
        """A model without chance is scored on its one forecast."""
        return self.ensemble if model.stochastic else SINGLE

    def perform(self) -> list[Path]:
        """Evaluate what isn't there yet; returns the JSON files, old and new."""
        loaded = {which: load_model(self.run, which, self.world.device) for which in self.request.which}
        missing = {which: step for which, (model, step) in loaded.items() if not self._is_there(which, model, step)}
        wanted: dict[str, int] = self.world.broadcast(missing)  # shared disks may show ranks different things
        for which in self.request.which:
            if which not in wanted:
                self.say(f"{self.file(which, '.json')}: already evaluated at step {loaded[which][1]:,}; nothing to do")
        if wanted:
            if self.world.is_main:
                self.run.write_state(phase="evaluating")
            persistence = self._score(Persistence(), "repeat the last frame").compute().as_dict()
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
        """What a result depends on: where these agree, it needn't be made again."""
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
        return all(found.get(key) == value for key, value in wanted.items())

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
        self.say(f"{self.split}-{which}: {shown}")
        flat = {**announced, **{f"frames without {k}": n for k, n in announced["frames_without_value"].items()}}
        del flat["frames_without_value"]
        for name, count in flat.items():
            if count:
                self.say(f"{self.split}-{which}: note: {count:,} {name.replace('_', ' ')}")

    def _score(self, model: SequenceModel, name: str) -> ScoreTable:
        data, ensemble = self.config.data, self._ensemble(model)
        if ensemble.samples > 1:
            name += f", {ensemble.samples} forecasts each"
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
        shared = f" (of rank 0 of {self.world.world_size})" if self.world.world_size > 1 else ""

        def show(done: int, total: int) -> None:
            nonlocal last
            now = time.perf_counter()
            if now - last < PROGRESS_EVERY_S and done < total:
                return
            last = now
            rate = done / max(now - began, 1e-9)
            left = (total - done) / rate
            self.say(f"{self.split} ({name}): {done}/{total} sequences{shared}, {speed(rate)} per s, {left:.0f} s left")

        return show

    def _copy(self, source: str, which: str) -> None:
        """`best` and `last` are one step: one result under both names."""
        if not self.world.is_main:
            return
        for suffix in (".table.npz", ".samples.npz") if self.config.eval.show else (".table.npz",):
            with replacing(self.file(which, suffix)) as file, open(self.file(source, suffix), "rb") as original:
                shutil.copyfileobj(original, file)
        record = {**json.loads(self.file(source, ".json").read_text(encoding="utf-8")), "which": which}
        write_atomic(self.file(which, ".json"), json.dumps(record, indent=1, allow_nan=False) + "\n")
        self.say(f"{self.split}-{which}: the same step as {source}; copied")


def evaluate_run(run: RunDir, request: Request, world: World, say: Callable[[str], None]) -> list[Path]:
    """Evaluate a run's checkpoints; returns the result files, `eval/<split>-<which>.json`.

    Raises:
        ConfigError: a checkpoint name other than `best` and `last`, or a config that doesn't fit the store.
        CheckpointError: there is no such checkpoint.
    """
    check_which(request.which)
    return Evaluation(run, request, world, say).perform()


def check_which(which: Sequence[str]) -> None:
    """Raise ConfigError unless every name is `best` or `last`, and there is one."""
    strange = [name for name in which if name not in CHECKPOINTS]
    if strange or not which:
        raise ConfigError(f"--which {','.join(which)}: take best, last or best,last")

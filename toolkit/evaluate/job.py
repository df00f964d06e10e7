"""Evaluate the checkpoints of a run directory on a split, and write the results into it.

    eval/<name>-<best|last|ema>.json           scores, and everything needed to compare them with others
    eval/<name>-<best|last|ema>.table.npz      the same per sequence and lead time (`ScoreTable.load`)
    eval/<name>-<best|last|ema>.samples.npz    frames for the report

The name is the split for what the run's config.yaml asks, and tells what differs for any other scoring (request.py).
The JSON is written last: if it exists, the others do. Best stays the checkpoint that validation chose during training.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shards import open_store
from shards.manifest import Scale
from toolkit.atomic import check_writable, clear_leftovers, replacing, write_atomic
from toolkit.checkpoint.weights import load_model, store_of_run
from toolkit.config import RunConfig
from toolkit.config.channels import check_names, input_frames, target_frames
from toolkit.data.windows import open_windows
from toolkit.distributed.world import World
from toolkit.errors import ConfigError
from toolkit.evaluate.check import check_scoring
from toolkit.evaluate.ensemble import Ensemble
from toolkit.evaluate.perceptual import load_lpips
from toolkit.evaluate.protocols import load_protocol
from toolkit.evaluate.request import Request, result_name, stored_requests, with_store
from toolkit.evaluate.run import SINGLE, evaluate_model, sample_frames
from toolkit.evaluate.scoring import EVENT_RULE
from toolkit.evaluate.table import ScoreTable, save_npz
from toolkit.models.base import SequenceModel
from toolkit.models.baselines import Persistence
from toolkit.models.cost import count_macs
from toolkit.models.plugins import entry_of
from toolkit.rundir import RESULT_VERSION, RunDir
from toolkit.wording import count, duration, first_line, speed

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 5.0


class Evaluation:
    """One scoring of a run on one split. Every rank creates one; rank 0 writes the results."""

    def __init__(self, run: RunDir, request: Request, world: World) -> None:
        """Open the data of the evaluation.

        Raises:
            ConfigError: no store, an unknown split, windows longer than any event, or what `check_scoring` names.
        """
        self.run, self.request, self.world = run, request, world
        own = run.config()
        self.own: RunConfig = with_store(own, store_of_run(run, own))
        self.config = request.config(self.own)
        self.name = result_name(self.own, self.config, request.limit)
        self.which = run.scored_checkpoints if request.which is None else request.which
        self.split = self.config.eval.split
        self.windows = open_windows(self.config, self.split)
        self.store = self.windows.store
        check_scoring(self.config, self.store)
        if self.config.data.store != self.own.data.store:
            self._compare_stores()
        self.protocol = load_protocol(self.config.eval.protocol)
        asked = self.config.eval
        self.batch = asked.batch
        self.lpips = load_lpips(world.device) if asked.lpips else None
        self.ensemble = Ensemble(asked.ensemble_size, asked.select, self.protocol.best_by)

    def _compare_stores(self) -> None:
        """Check that the model can read another store's frames; what its numbers mean may differ, which is logged."""
        trained, here = open_store(self.own.data.store).manifest, self.store.manifest
        known = input_frames(self.own.data, trained.frames)
        if known.channels != self.windows.frames.channels:
            raise ConfigError(
                f"{self.config.data.store}: frames have {count(self.windows.frames.channels, 'channel')}, those that "
                f"{self.run.path} was trained on {known.channels}: use a store with as many"
            )
        check_names(known, self.windows.frames, self.config.data.store)
        fed = [(_described(store.scale), store.scale.mapping) for store in (trained, here)]  # whatever the codes are
        if fed[0] != fed[1] and self.world.is_main:
            logger.warning(
                "%s: values are %s, the model was trained on %s: its forecasts are taken as the former",
                self.config.data.store, _described(here.scale), _described(trained.scale),
            )  # fmt: skip

    def file(self, which: str, suffix: str) -> Path:
        return self.run.eval / f"{self.name}-{which}{suffix}"

    def _ensemble(self, model: SequenceModel) -> Ensemble:
        """Return the ensemble of a model; a deterministic model makes one forecast."""
        return self.ensemble if model.stochastic else SINGLE

    def perform(self) -> list[Path]:
        """Evaluate the checkpoints that have no result yet; return all JSON files, old and new."""
        other = self.config.data.store != self.own.data.store  # named by the request, so it may be another one
        loaded = {
            which: load_model(self.run, which, self.world.device, store="any" if other else "same")
            for which in self.which
        }
        missing = {which: step for which, (model, step) in loaded.items() if not self._is_there(which, model, step)}
        wanted: dict[str, int] = self.world.broadcast(missing)  # ranks may see different states of a shared file system
        for which in self.which:
            if which not in wanted:
                logger.info("%s: already evaluated at step %s", self.file(which, ".json"), f"{loaded[which][1]:,}")
        if wanted:
            self.world.run_on_rank_zero(lambda: check_writable(self.run.eval))  # before minutes of work
            if self.world.is_main:
                self.run.write_state(phase="evaluating")
            baseline = Persistence()
            baseline.set_channels(self.windows.channels)
            persistence = _as_record(self._score(baseline, "persistence"))
            done: dict[tuple[int, bool], str] = {}
            for which, step in wanted.items():
                weights = step, which == "ema"  # the moving average is of the last step, and has other weights
                if weights in done:
                    self._copy(done[weights], which)
                else:
                    self._evaluate(which, loaded[which][0], step, persistence)
                done[weights] = which
            if self.world.is_main:
                self.run.write_state(phase="done")
        self.world.barrier()
        return [self.file(which, ".json") for which in self.which]

    def _identity(self, model: SequenceModel, step: int) -> dict[str, object]:
        """Return what a result depends on: a result with equal values is not computed again."""
        thresholds = list(self.protocol.thresholds_for(self.config.eval.thresholds))
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
            "thresholds": thresholds,
            "event_rule": EVENT_RULE if thresholds else None,
            "lpips": self.config.eval.lpips,
            "context": self.config.data.context,
            "stride": self.config.data.eval_stride,
            "batch": self.batch,
            "limit": self.request.limit,
            "ensemble": self._ensemble(model).described(),
            "show": self.config.eval.show,
            # left out where they are not set, so that results from before it stay valid
            **({"exclude_inflow": True} if self.config.eval.exclude_inflow else {}),
            **({"targets": list(self.windows.channels.target_names)} if self.windows.channels is not None else {}),
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
            "frames": list(target_frames(self.config.data, manifest.frames).shape),
            "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            **self._macs(),
            "seconds": round(seconds, 3),
            "world_size": self.world.world_size,
            **_as_record(table),
            "persistence": persistence,
        }
        table.save(self.file(which, ".table.npz"))
        if self.config.eval.show:
            self._keep_frames(which, model, table)
        write_atomic(self.file(which, ".json"), json.dumps(record, indent=1, allow_nan=False) + "\n")
        self._announce(which, scores.overall, scores.announced)

    def _macs(self) -> dict[str, object]:
        """Return the multiply-accumulates of a forecast as `macs`; None, with the reason, if they can't be counted."""
        model, data = self.own.model, self.config.data
        if not entry_of(model).trained:
            return {"macs": None}
        try:
            return {"macs": count_macs(model, self.windows.frames, data.context, data.horizon)}
        except Exception as error:  # a user's model may fail in any way where no tensor has values: its scores stay
            reason = f"{type(error).__name__}: {first_line(str(error))}"
            logger.warning("%s: its multiply-accumulates are not counted: %s", model.name, reason)
            return {"macs": None, "macs_not_counted": reason}

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
            exclude_inflow=self.config.eval.exclude_inflow,
        )
        save_npz(self.file(which, ".samples.npz"), frames)

    def _announce(self, which: str, overall: dict[str, Any], announced: dict[str, Any]) -> None:
        shown = "  ".join(
            f"{name} {'undefined' if value is None else format(value, '.5g')}" for name, value in overall.items()
        )
        logger.info("%s-%s: %s", self.name, which, shown)
        flat = {**announced, **{f"frames without {k}": n for k, n in announced["frames_without_value"].items()}}
        del flat["frames_without_value"]
        for name, number in flat.items():
            if number:
                logger.info("%s-%s: note: %s %s", self.name, which, f"{number:,}", name.replace("_", " "))

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
            exclude_inflow=self.config.eval.exclude_inflow,
            diagrams=True,
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
            logger.info("%s (%s): %s, ETA %s", self.name, name, progress, duration((total - done) / rate))

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
        logger.info("%s-%s: the same step as %s; copied", self.name, which, source)


def _as_record(table: ScoreTable) -> dict[str, object]:
    diagrams = None if table.diagrams is None else table.diagrams.compute()
    return {**table.compute().as_dict(), "diagrams": diagrams}


def _without_text(value: object) -> object:
    """Leave out the description for reports, which may change between versions, and a store's path: it has a digest."""
    return (
        {key: item for key, item in value.items() if key not in ("text", "path")} if isinstance(value, dict) else value
    )


def _described(scale: Scale) -> str:
    return f"{scale.quantity}, {scale.offset:g} to {scale.offset + scale.gain * scale.max_code:g} {scale.unit}"


def evaluate_run(run: RunDir, request: Request, world: World) -> list[Path]:
    """Evaluate a run's checkpoints; return the result files, `eval/<name>-<which>.json`.

    A request without values of its own is the run's own scoring, and those that a sweep asked for (`stored_requests`).

    Raises:
        ConfigError: a checkpoint that is not scored, or a config that does not fit the store.
        CheckpointError: there is no such checkpoint.
        FileWriteError: results can't be written into the run directory; raised before anything is scored.
    """
    check_which(run, request.which)
    world.run_on_rank_zero(lambda: _clear(run))
    requests = [request]
    if not request.values and request.limit is None:
        requests += [replace(request, values=stored.values) for stored in stored_requests(run).values()]
    return [path for one in requests for path in Evaluation(run, one, world).perform()]


def _clear(run: RunDir) -> None:
    """Remove what an evaluation that was killed has left in the run's folders."""
    for folder in (run.path, run.eval, run.analysis):
        for leftover in clear_leftovers(folder):
            logger.info("removed %s: its writer was killed", leftover)


def check_which(run: RunDir, which: Sequence[str] | None) -> None:
    """Raise ConfigError unless every name is a scored checkpoint of the run and there is at least one; None: all."""
    if which is None:
        return
    known = run.scored_checkpoints
    if not which or set(which) - set(known):
        hint = "" if "ema" in known else " (ema: for runs with train.ema)"
        raise ConfigError(f"--which {','.join(which)}: choose of {', '.join(known)}, joined by commas{hint}")

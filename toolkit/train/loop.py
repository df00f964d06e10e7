"""The training loop: `Training.to_the_end` reads from top to bottom, and what it calls follows in that order."""

from __future__ import annotations

import secrets
import sys
import time

import torch

from toolkit.checkpoint import checkpoint
from toolkit.checkpoint.saver import Saver
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import RunConfig
from toolkit.data.batches import Batch, read_batches
from toolkit.distributed.world import World
from toolkit.errors import EXIT_OK, EXIT_REQUEUE, NonFiniteError
from toolkit.models.registry import MODELS
from toolkit.rundir import RunDir
from toolkit.rundir.events import note_start
from toolkit.rundir.metrics import has_validation
from toolkit.signals import StopRequest
from toolkit.train import validation
from toolkit.train.build import build_engine
from toolkit.train.engine import Engine, StepResult
from toolkit.train.loss import TrainingLoss
from toolkit.train.prepare import Data, check_scoring, introduce, open_data, restore
from toolkit.train.profile import Profiler
from toolkit.train.record import OwnTime, Recorder
from toolkit.train.sampling import teacher_rate
from toolkit.train.watchdog import Watchdog
from toolkit.unroll import give_memory_back


def train(run: RunDir, world: World, resume: str, stop: StopRequest, profile: int = 0) -> int:
    """Train a run to its last step, under a watchdog.

    Args:
        resume: `auto` (the newest whole checkpoint, or from scratch), `none` (from scratch; refused when there are
            checkpoints) or a step number.
        profile: so many steps, after a warm-up, are timed and traced (toolkit/train/profile.py).

    Returns:
        EXIT_OK when the run is complete, EXIT_REQUEUE when it was asked to stop and can go on.

    Raises:
        NonFiniteError, ConfigError, ...: what went wrong here or on all ranks.
        PeerError: another rank failed or died.
    """
    config = run.config()
    name = world.broadcast(secrets.token_hex(4))  # tells this training's heartbeats from those of one that was given up
    with Watchdog(run, world.rank, world.world_size, config.train.watchdog, name) as watchdog:
        try:
            data = open_data(config)
            if not MODELS[config.model.name].trained:
                return _without_training(run, world)
            world.together(lambda: check_scoring(config))
            with Training(run, config, data, world, resume, stop, watchdog, profile) as training:
                return training.to_the_end()
        except NonFiniteError as error:
            last = checkpoint.steps_in(run.checkpoints)
            kept = f"The last checkpoint is of step {last[-1]}" if last else "There is no checkpoint yet"
            raise NonFiniteError(f"{error}. {kept}") from None
        except RuntimeError as error:
            peer = watchdog.peer_error(error)
            if peer is None:
                raise
            raise peer from error


def _without_training(run: RunDir, world: World) -> int:
    """A model without parameters is trained as it is made: no step, no checkpoint."""
    if world.is_main:
        print(f"{run.config().model.name} has no parameters: nothing to train, evaluate it", file=sys.stderr)
        run.write_state(phase="trained", step=0, steps=0)
        run.mark_done()
    return EXIT_OK


class Training:
    """A run on this rank: the engine, its batches, and how far it is."""

    def __init__(
        self,
        run: RunDir,
        config: RunConfig,
        data: Data,
        world: World,
        resume: str,
        stop: StopRequest,
        watchdog: Watchdog,
        profile: int,
    ) -> None:
        self.run, self.config, self.data, self.world = run, config, data, world
        self.stop, self.watchdog = stop, watchdog
        cfg = config.train
        self.engine, progress = self._start(resume)
        self.step = progress.step
        self.best = progress.best
        watchdog.begin(self.step)
        self.own = OwnTime(world.device)
        self.loss = TrainingLoss(
            config, data.train.scale, world.device, self.engine.forward, self._before_forward, self._after_forward
        )
        if world.is_main:
            note_start(run, self.step, cfg.batch, world.world_size, world.world_size * (world.device.type == "cuda"))
        self.recorder = Recorder(run, self.step, cfg.steps, cfg.batch) if world.is_main else None
        self.saver = None
        if self.recorder:
            self.saver = Saver(run.checkpoints, cfg, config.hash8(execution=False), self.recorder.say)
            introduce(self.recorder, config, data, self.engine, self.step)
        self.batches = read_batches(
            data.train,
            config.seed,
            self.engine.share,
            self.step,
            workers=config.data.num_workers,
            pin=world.device.type == "cuda",
            kinds=config.data.augment,
            on_error=config.data.on_error,
        )
        self.profiler = None
        if profile:
            self.profiler = Profiler(run, config, data.store.manifest.frames, self.engine, world, profile)
            self.batches = self.profiler.watch(self.batches)

    def _start(self, resume: str) -> tuple[Engine, checkpoint.Progress]:
        """The engine at the first step, or where a checkpoint stands; that one's copy in memory is gone afterwards."""
        if self.config.train.activation_checkpointing.per_layer and self.world.device.type == "cpu":
            give_memory_back()
        torch.manual_seed(self.config.seed)
        model = untrained_model(self.config, self.data.store.manifest.frames)
        state, progress = restore(self.run, resume, self.world)
        return build_engine(model, self.config, self.world, state), progress

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *error: object) -> None:
        # Readers end when nothing refers to their batches: at once, for this object is part of a cycle (`loss`), and at
        # the interpreter's end they would be waited for without having been told.
        del self.batches
        if self.profiler:
            self.profiler.close()
        if self.recorder and self.saver:
            self.saver.close()
            self.recorder.close()

    def to_the_end(self) -> int:
        """Train until the last step, or until any rank is asked to stop; returns the exit code."""
        cfg = self.config.train
        # Asked to stop while starting: what there is to save is saved, and a first step may take long.
        if self.world.any(bool(self.stop)):
            return self._leave()
        # A stop cut a validation short after its step's checkpoint was due: it is made up for first.
        if self._is_validated() and not self.world.together(lambda: has_validation(self.run.metrics_file, self.step)):
            improved = self._validate()
            if improved:
                self._save(last=self.step == cfg.steps)
            if improved is None:
                return self._leave()
        while self.step < cfg.steps:
            result = self._step()
            # A validation may take longer than the time that is left after a signal: the next start makes up for it.
            improved = (None if result.stop else self._validate()) if self._is_validated() else False
            stopping = result.stop or improved is None
            if improved or stopping or self.step % cfg.checkpoint.every == 0 or self.step == cfg.steps:
                self._save(last=stopping or self.step == cfg.steps)
            if stopping and (self.step < cfg.steps or improved is None):
                return self._leave()
        if self.recorder:
            self.recorder.put_state("trained", self.step)
            self.run.mark_done()
        return EXIT_OK

    def _step(self) -> StepResult:
        """One optimizer step and its record."""
        self.watchdog.at(self.step, "waiting for data")
        began = time.perf_counter()
        self.own.reset()
        mine = [next(self.batches) for _ in range(self.engine.share.accumulation)]
        waited = time.perf_counter() - began
        for text in (text for batch in mine for text in batch.skipped):
            where = f"rank {self.world.rank}, step {self.step}"
            print(f"{where}: skipped a damaged sample: {text}", file=sys.stderr, flush=True)
        failed = self.saver is not None and self.saver.failed
        self.loss.step = self.step
        result = self.engine.step(mine, self.loss, bool(self.stop) or failed)
        self.step += 1
        if self.profiler:
            self.profiler.step(self.step)
        self.watchdog.at(self.step, "between steps")
        self.watchdog.own(waited + self.own.seconds())
        self._record(result, mine, time.perf_counter() - began, waited)
        return result

    def _before_forward(self) -> None:
        self.watchdog.at(self.step, "forward")
        self.own.begin()

    def _after_forward(self) -> None:
        self.own.end()
        self.watchdog.at(self.step, "backward and update")

    def _record(self, result: StepResult, mine: list[Batch], seconds: float, waited: float) -> None:
        """What a step leaves in the log, metrics.jsonl and state.json (collective)."""
        cfg, step = self.config.train, self.step
        log = step % cfg.log_every == 0 or step in (1, cfg.steps)
        samples = _fingerprint(mine, self.world) if log else None
        if self.recorder is None:
            return
        self.recorder.meter.add(seconds, waited)
        self.recorder.state["slow"] = self.watchdog.slow
        if result.fault:
            self.recorder.skipped(step, result.fault, self.engine.skipped)
            return
        rate = teacher_rate(step - 1, cfg.sampling)
        values = {"loss": result.loss, "grad_norm": result.grad_norm, "lr": cfg.lr, "teacher_rate": rate}
        self.recorder.train(step, values, samples)

    def _is_validated(self) -> bool:
        """Whether this step is one whose model is validated."""
        cfg = self.config.train
        due = self.step % cfg.validate_every == 0 or self.step == cfg.steps
        return self.data.val is not None and self.step > 0 and due

    def _validate(self) -> bool | None:
        """Whether the model is better than ever before; None: cut short, because a rank was asked to stop."""
        assert self.data.val is not None
        if self.recorder:
            self.recorder.put_state("validating", self.step)
        self.watchdog.at(self.step, "validation")
        with self.engine.whole() as model:
            windows, config, world = self.data.val, self.config, self.world
            scores = validation.score(model, windows, config, world, self.step, self.stop, self.watchdog)
            if scores is None:
                return None
            improved = self.best is None or scores["mse"] < self.best["score"]
            if self.recorder:
                self.recorder.validation(self.step, scores, is_best=improved)
                for index, (truth, prediction) in enumerate(validation.examples(config, windows, model, world)):
                    self.recorder.images(self.step, f"val/{index}", truth, prediction)
        if improved:
            self.best = {"step": self.step, "score": scores["mse"]}
        return improved

    def _save(self, last: bool) -> None:
        """A checkpoint of this step; `last`: none follows in this process."""
        self.watchdog.at(self.step, "checkpoint")
        if self.saver:
            self.saver.wait()  # before another snapshot is made
        full = self.engine.gather()
        cfg = self.config.train
        by = {"world_size": self.world.world_size, "zero": cfg.zero, "precision": cfg.precision}
        progress = checkpoint.Progress(self.step, self.step * cfg.batch, self.best, by)

        def write() -> None:
            assert self.recorder and self.saver and full
            self.recorder.sync()
            try:
                self.saver.save(full, progress, last)
            finally:
                self.recorder.state["save_errors"] = self.saver.errors or None

        self.world.together(write)

    def _leave(self) -> int:
        """Asked to stop: say where the run stands."""
        if self.recorder:
            self.recorder.put_state("stopped", self.step)
            saved = f"at step {self.step} with a checkpoint" if self.step else "before the first step"
            self.recorder.say(f"stopped {saved}; the same command goes on from there")
        return EXIT_REQUEUE


def _fingerprint(own: list[Batch], world: World) -> str:
    """Names the samples of a global batch, whatever the number of ranks (collective)."""
    total = world.sum(torch.tensor([sum(batch.fingerprint for batch in own)], device=world.device))
    return f"{int(total) % 2**48:012x}"

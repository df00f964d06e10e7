"""The training loop: `Training.fit` reads from top to bottom, and what it calls follows in that order."""

from __future__ import annotations

import logging
import secrets
import time

import torch

from shards import ShardError
from toolkit.checkpoint import checkpoint
from toolkit.checkpoint.initialise import freeze, initialise
from toolkit.checkpoint.saver import Saver
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import RunConfig
from toolkit.data.batches import Batch
from toolkit.data.stalls import Reads
from toolkit.distributed.world import World
from toolkit.errors import (
    EXIT_OK,
    EXIT_REQUEUE,
    NonFiniteError,
    PeerError,
    PeerFaultError,
    StoppedError,
    ToolkitError,
    exit_code_of,
)
from toolkit.evaluate.selection import is_better
from toolkit.models.base import SequenceModel
from toolkit.models.plugins import entry_of
from toolkit.rundir import RunDir
from toolkit.rundir.events import note_start
from toolkit.rundir.metrics import validation_of
from toolkit.rundir.records import keep_typed
from toolkit.signals import StopRequest
from toolkit.train import validation
from toolkit.train.build import build_engine
from toolkit.train.check import Data, open_data
from toolkit.train.engine import Engine, StepResult
from toolkit.train.feed import Feed
from toolkit.train.loss import TrainingLoss
from toolkit.train.prepare import check_config, log_run_summary, restore
from toolkit.train.profile import Profiler
from toolkit.train.record import ForwardTimer, Recorder
from toolkit.train.sampling import teacher_rate
from toolkit.train.schedule import learning_rate
from toolkit.train.size import check_readers
from toolkit.train.watchdog import Watchdog
from toolkit.unroll import give_memory_back
from toolkit.wording import count, first_line, some

logger = logging.getLogger(__name__)


def train(run: RunDir, world: World, resume: str, stop: StopRequest, profile: int = 0, checked: bool = False) -> int:
    """Train a run to its last step, under a watchdog.

    Args:
        resume: `auto` (the newest whole checkpoint, or from scratch), `none` (from scratch; refused when there are
            checkpoints) or a step number.
        profile: number of steps to time and trace after a warm-up (toolkit/train/profile.py).
        checked: `check_config` was called just now, when the run directory was made.

    Returns:
        EXIT_OK when the run is complete, EXIT_REQUEUE when it was asked to stop and can be resumed.

    Raises:
        NonFiniteError, ConfigError, ...: what went wrong here or on all ranks.
        PeerError: another rank failed or died.
    """
    config = run.config()
    name = world.broadcast(secrets.token_hex(4))  # sets its heartbeats apart from those of an abandoned training
    with Watchdog(run, world.rank, world.world_size, config.train.watchdog, name) as watchdog:
        try:
            with Reads(lambda: bool(stop), world.device) as reads:
                data = reads.call(lambda: open_data(config))
            if not checked:
                world.run_on_rank_zero(lambda: check_config(config, data))
            if not entry_of(config.model).trained:
                return _without_training(run, world)
            check_readers(config, data.train.frames, world.local_size)
            with Training(run, config, data, world, resume, stop, watchdog, profile) as training:
                return training.fit()
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
    """Finish the run of a model without parameters: no training step, no checkpoint."""
    if world.is_main:
        logger.info("%s has no parameters: nothing to train, evaluate it", run.config().model.name)
        run.write_state(phase="trained", step=0, steps=0)
        run.mark_done()
    return EXIT_OK


class Training:
    """A run on this rank: the engine, its batches, and the step it is at."""

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
        self.step = self.first_step = progress.step
        self.best, self.improved = progress.best, progress.improved
        watchdog.begin(self.step)
        self.forward_timer = ForwardTimer(world.device)
        self.loss = TrainingLoss(
            config, data.train.scale, world.device, self.engine.forward, self._before_forward, self._after_forward,
            None if data.train.channels is None else data.train.channels.targets,
        )  # fmt: skip
        if world.is_main:
            note_start(
                run.path, self.step, cfg.batch, world.world_size, world.world_size * (world.device.type == "cuda")
            )
        self.recorder = Recorder(run, self.step, cfg.steps, cfg.batch, cfg.best_by) if world.is_main else None
        self.saver = None
        if self.recorder:
            self.saver = Saver(run.checkpoints, cfg, config.hash8(execution=False))
            log_run_summary(run, config, data, self.engine, self.step)
        self.feed = Feed(config, data, self.engine.share, self.step, world, self._is_asked_to_stop, watchdog.begin_read)
        self.profiler = None
        if profile:
            self.profiler = Profiler(run, config, data.train.frames, self.engine, world, profile)
            self.feed.batches = self.profiler.watch(self.feed.batches)

    def _start(self, resume: str) -> tuple[Engine, checkpoint.Progress]:
        """Return the engine at the first step or at a checkpoint, whose copy in memory is freed."""
        if self.config.train.activation_checkpointing.per_layer and self.world.device.type == "cpu":
            give_memory_back()
        torch.manual_seed(self.config.seed)
        model = untrained_model(self.config, self.data.store.manifest.frames)
        state, progress = restore(self.run, resume, self.world, self.data.store)
        if state is None and self.config.train.init_from.path:
            initialise(model, self.config.train.init_from, self.world)
        if frozen := freeze(model, self.config.train.init_from):
            logger.info("%s frozen: %s", count(len(frozen), "parameter"), some(frozen))
        return build_engine(model, self.config, self.world, state), progress

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *error: object) -> None:
        self.feed.close()
        if self.profiler:
            self.profiler.close()
        if self.recorder and self.saver:
            self.saver.close()
            self.recorder.close()

    def fit(self) -> int:
        """Train until the last step, or until any rank is asked to stop; return the exit code."""
        cfg = self.config.train
        # Asked to stop while starting: what there is to save is saved, and a first step may take long.
        if self.world.any(bool(self.stop)):
            return self._leave()
        # A stop cut a validation short after its step's checkpoint was due: it is made up for first.
        if self._is_validated():
            improved = self._make_up_validation()
            if improved:
                self._save(last=self._is_complete())
            if improved is None:
                return self._leave()
        while not self._is_complete():
            result = self._train_step()
            if result.lost:
                return self._end_without_data()
            # A validation may take longer than the time that is left after a signal: the next start makes up for it.
            improved = (None if result.stop else self._validate()) if self._is_validated() else False
            stopping = result.stop or improved is None
            complete = self._is_complete()
            if improved or stopping or self.step % cfg.checkpoint.every == 0 or complete:
                self._save(last=stopping or complete)
            if stopping and (not complete or improved is None):
                return self._leave()
        if self.recorder:
            if self.step < cfg.steps:
                facts = self.step, cfg.best_by, self.improved
                logger.info("early stopping at step %d: no better validation %s since step %d", *facts)
            if self.best is None and self.data.val is not None:
                text = (
                    "no validation had train.best_by %s: there is no best checkpoint, and the last one is taken for it"
                )
                logger.warning(text, cfg.best_by)
            self.recorder.trained(self.step, self.best)
            self.run.mark_done()
        return EXIT_OK

    def _train_step(self) -> StepResult:
        """Fetch, then forward and backward, reduction, check and update (`Engine.step`), then record."""
        began = time.perf_counter()
        self.forward_timer.reset()
        self.watchdog.at(self.step, "waiting for data")
        batches = self.feed.fetch(self.step)
        waited = time.perf_counter() - began
        self.loss.step = self.step
        lacking = self.feed.fault is not None
        result = self.engine.step(batches, self.loss, self._is_asked_to_stop(), lacking)
        if result.lost:
            return result
        self.step += 1
        if self.profiler:
            self.profiler.step(self.step)
        self.watchdog.at(self.step, "between steps")
        self.watchdog.own(waited + self.forward_timer.seconds())
        self._record(result, batches, time.perf_counter() - began, waited)
        return result

    def _end_without_data(self) -> int:
        """Save the last whole step, when a rank has no data for the next one; return the exit code of a stop.

        Raises:
            ShardError, ToolkitError: the data's fault, where no stop was asked for.
        """
        fault = self.feed.agree()
        self._save_before(fault)
        if fault is not None:
            raise fault
        return self._leave()

    def _save_before(self, fault: ValueError | None) -> None:
        """Save the steps that this training has made, before it ends with `fault`. Collective."""
        if self.step == self.first_step:
            return
        if fault is not None and self.world.is_main:
            logger.error("saving step %d before this training ends: %s", self.step, first_line(fault))
        self._save(last=True)

    def _is_asked_to_stop(self) -> bool:
        """Whether this rank got a signal, or a save failed that must not."""
        return bool(self.stop) or (self.saver is not None and self.saver.failed)

    def _before_forward(self) -> None:
        self.watchdog.at(self.step, "forward")
        self.forward_timer.begin()

    def _after_forward(self) -> None:
        self.forward_timer.end()
        self.watchdog.at(self.step, "backward and update")

    def _record(self, result: StepResult, batches: list[Batch], seconds: float, waited: float) -> None:
        """Write the step to the log, metrics.jsonl and state.json. Collective."""
        cfg, step = self.config.train, self.step
        log = step % cfg.log_every == 0 or step in (1, cfg.steps)
        samples = _fingerprint(batches, self.world) if log else None
        if self.recorder is None:
            return
        self.recorder.meter.add(seconds, waited)
        self.recorder.state["slow"] = self.watchdog.slow
        if result.fault:
            self.recorder.skipped(step, result.fault, self.engine.skipped)
            return
        rate = teacher_rate(step - 1, cfg.sampling)
        values = {
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "lr": learning_rate(step - 1, cfg),
            "teacher_rate": rate,
        }
        self.recorder.train(step, values, samples)

    def _is_complete(self) -> bool:
        """Whether this was the last step, or `train.patience` is exhausted."""
        cfg = self.config.train
        if cfg.patience is None:
            return self.step == cfg.steps
        return self.step == cfg.steps or self.step - self.improved >= cfg.patience * cfg.validate_every

    def _is_validated(self) -> bool:
        """Whether this step is one whose model is validated."""
        cfg = self.config.train
        due = self.step % cfg.validate_every == 0 or self.step == cfg.steps
        return self.data.val is not None and self.step > 0 and due

    def _make_up_validation(self) -> bool | None:
        """As `_validate`, of the step that training resumes from; a kill in the save after it left its record alone."""
        by = self.config.train.best_by
        found = self.world.run_on_rank_zero(lambda: validation_of(self.run.metrics_file, self.step))
        if found is None:
            return self._validate()
        score = keep_typed(found, {by: float}).get(by) if found.get("best") else None
        if score is None or (self.best and self.best["step"] == self.step):
            return False
        self._note_best(score)
        return True

    def _note_best(self, score: float) -> None:
        self.best, self.improved = {"step": self.step, "score": score}, self.step

    def _validate(self) -> bool | None:
        """Whether the model is better than ever before; None: cut short, because a rank was asked to stop.

        Data that can't be read end the training, after a checkpoint of this step.
        """
        try:
            return self._score()
        except (ShardError, ToolkitError) as error:
            if not isinstance(error, (NonFiniteError, PeerError)) or isinstance(error, PeerFaultError):
                self._save_before(error)
            raise

    def _score(self) -> bool | None:
        """As `_validate`. Collective; what a user can repair is raised on every rank."""
        assert self.feed.val is not None
        if self.recorder:
            self.recorder.put_state("validating", self.step)
        self.watchdog.at(self.step, "validation")
        with self.engine.gathered_parameters() as model:
            windows, config, world = self.feed.val, self.config, self.world
            scores = validation.score(model, windows, config, world, self.step, self.stop, self.watchdog)
            if scores is None:
                return None
            by = config.train.best_by
            improved = by in scores and (self.best is None or is_better(by, scores[by], self.best["score"]))
            if improved:  # before what can fail: a checkpoint that is then saved holds it
                self._note_best(scores[by])
            if self.recorder:
                self.recorder.validation(self.step, scores, is_best=improved)
            self._draw(model)
        return improved

    def _draw(self, model: SequenceModel) -> None:
        """Write forecasts of the first validation windows as pictures, on rank 0. Collective.

        Raises:
            ShardError, ToolkitError: on every rank; the windows can't be read. A stop only leaves out pictures.
        """
        fault: Exception | None = None
        if self.recorder:
            assert self.feed.val is not None
            seconds = self.data.store.manifest.step_seconds
            drawn = validation.pictures(self.config, self.feed.val, model, self.world, seconds)
            try:
                for index, picture in enumerate(drawn):
                    self.recorder.image(self.step, f"val/{index}", picture)
            except StoppedError:
                logger.info("step %d: asked to stop, pictures of the validation are left out", self.step)
            except (ShardError, ToolkitError) as error:
                fault = error
        told = self.world.broadcast(None if fault is None else (str(fault), exit_code_of(fault)))
        if fault is not None:
            raise fault
        if told is not None:
            text = f"rank {self.world.rank} ends because rank 0 can't draw the validation: {told[0]}"
            raise PeerFaultError(text, told[1])

    def _save(self, last: bool) -> None:
        """Save a checkpoint of this step; `last`: it is the last one of this process."""
        self.watchdog.at(self.step, "checkpoint")
        if self.saver:
            self.saver.wait()  # before another snapshot is made
        full = self.engine.gather()
        cfg = self.config.train
        by = {"world_size": self.world.world_size, "zero": cfg.zero, "precision": cfg.precision}
        digest = self.data.store.manifest.digest
        progress = checkpoint.Progress(self.step, self.step * cfg.batch, self.best, self.improved, by, digest)

        def write() -> None:
            assert self.recorder and self.saver and full
            self.recorder.sync()
            try:
                self.saver.save(full, progress, last)
            finally:
                self.recorder.state["save_errors"] = self.saver.errors or None

        self.world.run_on_rank_zero(write)

    def _leave(self) -> int:
        """Log where the run stopped; return the exit code."""
        if self.recorder:
            self.recorder.stopped(self.step)
            saved = f"at step {self.step} with a checkpoint" if self.step else "before the first step"
            logger.info("stopped %s; the same command resumes it", saved)
        return EXIT_REQUEUE


def _fingerprint(own: list[Batch], world: World) -> str:
    """Return what names the samples of a global batch, whatever the number of ranks. Collective."""
    total = world.sum(torch.tensor([sum(batch.fingerprint for batch in own)], device=world.device))
    return f"{int(total) % 2**48:012x}"

"""The training loop: one function to read from top to bottom, and the few things around it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from shards import Store, open_store
from toolkit.config import RunConfig
from toolkit.data.batches import Batch, read_batches
from toolkit.data.windows import WindowSet, observed, to_unit
from toolkit.distributed import World
from toolkit.errors import (
    EXIT_OK,
    EXIT_REQUEUE,
    CheckpointError,
    ConfigError,
    NonFiniteError,
    StoppedError,
    ToolkitError,
)
from toolkit.evaluate.protocols import load_protocol
from toolkit.evaluate.run import evaluate_model
from toolkit.models.base import SequenceModel, build_model
from toolkit.models.registry import MODELS
from toolkit.rundir import RunDir
from toolkit.train import checkpoint, commit
from toolkit.train.engine import Engine, TrainState
from toolkit.train.profile import Profiler
from toolkit.train.record import OwnTime, Recorder, has_validation
from toolkit.train.sampling import draw, teacher_rate
from toolkit.train.saver import Saver
from toolkit.train.signals import StopRequest
from toolkit.train.watchdog import Watchdog
from toolkit.unroll import give_memory_back


@dataclass(frozen=True)
class Data:
    """The windows that a run trains and validates on; without a validation split `val` is None."""

    store: Store
    train: WindowSet
    val: WindowSet | None


def open_data(config: RunConfig) -> Data:
    """Open the store of a config and cut its windows."""
    data = config.data
    if not data.store:
        raise ConfigError("data.store is not set: name a folder made by `python -m shards convert`")
    # Under `skip` a shard that is cut or absent costs its own samples, not the whole split.
    store = open_store(data.store, faults="reading" if data.on_error == "skip" else "opening")
    length = data.context + data.horizon
    train = WindowSet(store, data.train_split, length, data.train_stride, data.modes)
    val = None
    if data.val_split in store.splits:
        val = WindowSet(store, data.val_split, length, data.eval_stride, data.modes)
    return Data(store, train, val)


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
    with Watchdog(run, world.rank, world.world_size, config.train.watchdog) as watchdog:
        try:
            return _train(run, config, world, resume, stop, watchdog, profile)
        except NonFiniteError as error:
            last = checkpoint.steps_in(run.checkpoints)
            kept = f"The last checkpoint is of step {last[-1]}" if last else "There is no checkpoint yet"
            raise NonFiniteError(f"{error}. {kept}") from None
        except RuntimeError as error:
            peer = watchdog.peer_error(error)
            if peer is None:
                raise
            raise peer from error


def _train(
    run: RunDir, config: RunConfig, world: World, resume: str, stop: StopRequest, watchdog: Watchdog, profile: int
) -> int:
    cfg = config.train
    data = open_data(config)
    if not MODELS[config.model.name].trained:
        return _without_training(run, world)
    if cfg.checkpoint_layers and world.device.type == "cpu":
        give_memory_back()
    torch.manual_seed(config.seed)
    model = build_model(config, data.store.manifest.frames)
    state, progress = _resume(run, resume, world)
    engine = Engine.build(model, config, world, state)
    del state
    step = progress.step
    best = progress.best
    watchdog.begin(step)
    recorder = Recorder(run, step, cfg.steps, cfg.batch) if world.is_main else None
    saver = Saver(run.checkpoints, cfg, config.hash8(execution=False), recorder.say) if recorder else None
    if recorder:
        _introduce(recorder, config, data, engine, step)
    batches = read_batches(
        data.train,
        config.seed,
        engine.share,
        step,
        workers=config.data.workers,
        pin=world.device.type == "cuda",
        kinds=config.data.augment,
        on_error=config.data.on_error,
    )
    profiler = None
    if profile:
        profiler = Profiler(run, config, data.store.manifest.frames, engine.engine, world, profile)
        batches = profiler.watch(batches)

    own = OwnTime(world.device)

    def loss_of(batch: Batch) -> torch.Tensor:
        watchdog.at(step, "forward")
        own.begin()
        codes = batch.frames.to(world.device, non_blocking=True)
        sampling = draw(config.seed, batch.positions, step, config.data.horizon, cfg.sampling, world.device)
        sampling = replace(sampling, observed=observed(codes, data.train.scale))
        rollout = engine.engine(to_unit(codes, data.train.scale), config.data.context, sampling)
        loss = torch.stack(list(rollout.losses.values())).sum()
        own.end()
        watchdog.at(step, "backward and update")
        return loss

    def save(last: bool) -> None:
        watchdog.at(step, "checkpoint")
        if saver:
            saver.wait()  # before another snapshot is made
        full = engine.gather()

        def write() -> None:
            assert recorder and saver
            recorder.sync()
            by = {"world_size": world.world_size, "zero": cfg.zero, "precision": cfg.precision}
            try:
                saver.save(full, checkpoint.Progress(step, step * cfg.batch, best, by), last)
            finally:
                recorder.state["save_errors"] = saver.errors or None

        world.together(write)

    def validate() -> bool | None:
        """Whether the model is better than ever before; None: cut short, because a rank was asked to stop."""
        nonlocal best
        score = _validate(config, data.val, engine, world, recorder, step, best, stop, watchdog)
        if score is None:
            return None
        improved = best is None or score < best["score"]
        best = {"step": step, "score": score} if improved else best
        return improved

    def leave() -> int:
        if recorder:
            recorder.put_state("stopped", step)
            saved = f"at step {step} with a checkpoint" if step else "before the first step"
            recorder.say(f"stopped {saved}; the same command goes on from there")
        return EXIT_REQUEUE

    def is_due() -> bool:
        return data.val is not None and step > 0 and (step % cfg.validate_every == 0 or step == cfg.steps)

    try:
        # Asked to stop while starting: what there is to save is saved, and a first step may take long.
        if world.any(bool(stop)):
            return leave()
        # A stop cut a validation short after its step's checkpoint was due: it is made up for first.
        if is_due() and not world.together(lambda: has_validation(run.metrics_file, step)):
            improved = validate()
            if improved:
                save(last=step == cfg.steps)
            if improved is None:
                return leave()
        while step < cfg.steps:
            watchdog.at(step, "waiting for data")
            began = time.perf_counter()
            own.reset()
            mine = [next(batches) for _ in range(engine.share.accumulation)]
            waited = time.perf_counter() - began
            for text in (text for batch in mine for text in batch.skipped):
                print(f"rank {world.rank}, step {step}: skipped a damaged sample: {text}", file=sys.stderr, flush=True)
            result = engine.step(mine, loss_of, bool(stop) or (saver is not None and saver.failed))
            step += 1
            if profiler:
                profiler.step(step)
            watchdog.at(step, "between steps")
            watchdog.own(waited + own.seconds())
            log = step % cfg.log_every == 0 or step in (1, cfg.steps)
            samples = _fingerprint(mine, world) if log else None
            if recorder:
                recorder.meter.add(time.perf_counter() - began, waited)
                recorder.state["slow"] = watchdog.slow
                rate = teacher_rate(step - 1, cfg.sampling)
                values = {"loss": result.loss, "grad_norm": result.grad_norm, "lr": cfg.lr, "teacher_rate": rate}
                if result.fault:
                    recorder.skipped(step, result.fault, engine.skipped)
                else:
                    recorder.train(step, values, samples)
            # A validation may take longer than the time that is left after a signal: the next start makes up for it.
            improved = (None if result.stop else validate()) if is_due() else False
            stopping = result.stop or improved is None
            if improved or stopping or step % cfg.checkpoint_every == 0 or step == cfg.steps:
                save(last=stopping or step == cfg.steps)
            if stopping and (step < cfg.steps or improved is None):
                return leave()
        if recorder:
            recorder.put_state("trained", step)
            run.mark_done()
        return EXIT_OK
    finally:
        if profiler:
            profiler.close()
        if recorder and saver:
            saver.close()
            recorder.close()


def _without_training(run: RunDir, world: World) -> int:
    """A model without parameters is trained as it is made: no step, no checkpoint."""
    if world.is_main:
        print(f"{run.config().model.name} has no parameters: nothing to train, evaluate it", file=sys.stderr)
        run.write_state(phase="trained", step=0, steps=0)
        run.mark_done()
    return EXIT_OK


def _fingerprint(own: list[Batch], world: World) -> str:
    """Names the samples of a global batch, whatever the number of ranks (collective)."""
    total = world.sum(torch.tensor([sum(batch.fingerprint for batch in own)], device=world.device))
    return f"{int(total) % 2**48:012x}"


def _resume(run: RunDir, resume: str, world: World) -> tuple[TrainState | None, checkpoint.Progress]:
    """The state to start from; rank 0 chooses the checkpoint, so that all ranks take the same one."""
    folder = run.checkpoints
    step = world.together(lambda: _choose(folder, resume))
    if step is None:
        return None, checkpoint.Progress(0, 0)
    state, progress = checkpoint.load(folder, step, run.config().hash8(execution=False))
    return state, world.together(lambda: commit.repair(folder, progress, _say))


def _choose(folder: Path, resume: str) -> int | None:
    """The step to go on from; None: from scratch."""
    there = checkpoint.steps_in(folder)
    if resume == "none" and there:
        raise ConfigError(f"{folder}: holds checkpoints: use --resume auto, or delete them to start over")
    commit.tidy(folder, _say)
    if resume not in ("auto", "none"):
        return int(resume)
    found = checkpoint.newest(folder, _say)
    if found is None and there:
        raise CheckpointError(
            f"{folder}: none of the checkpoints of steps {there} is whole (see above). Restore one, or delete them to "
            "start over"
        )
    return found


def _say(text: str) -> None:
    print(text, flush=True)


def _introduce(recorder: Recorder, config: RunConfig, data: Data, engine: Engine, step: int) -> None:
    share, cfg = engine.share, config.train
    recorder.say(
        f"{config.model.name}: {engine.parameter_count:,} parameters, {len(data.train):,} training windows, "
        f"{len(data.val) if data.val else 0:,} validation windows"
    )
    recorder.say(
        f"batch {share.batch} = {share.world_size} ranks x {share.accumulation} x {share.micro_batch}, "
        f"{cfg.precision}, ZeRO {cfg.zero}, checkpointing {engine.model.checkpointing}, {engine.world.device}"
        + (f"; going on from step {step}" if step else "")
    )
    if data.val is None:
        recorder.say(f"no split {config.data.val_split!r} in {config.data.store}: `best` will be the last checkpoint")


def _validate(
    config: RunConfig,
    windows: WindowSet | None,
    engine: Engine,
    world: World,
    recorder: Recorder | None,
    step: int,
    best: dict[str, float] | None,
    stop: StopRequest,
    watchdog: Watchdog,
) -> float | None:
    """Score the model on validation windows; the protocol's MSE decides what is best.

    Returns None on every rank when any was asked to stop before all windows were scored: that is looked at after each
    batch, because a whole validation may take longer than a scheduler waits.
    """
    assert windows is not None
    if recorder:
        recorder.put_state("validating", step)
    watchdog.at(step, "validation")
    word = f"stop at {step}"

    def progress(done: int, share: int) -> None:
        watchdog.pulse()
        if stop:
            world.call_out(word)
        if stop or world.heard(word):
            raise StoppedError("validation was cut short")
        if done == share:
            watchdog.at(step, "end of validation")

    with engine.whole() as model:
        try:
            table = evaluate_model(
                model,
                windows,
                context=config.data.context,
                horizon=config.data.horizon,
                protocol=load_protocol(config.eval.protocol),
                thresholds=config.eval.thresholds,
                batch=config.eval.batch,
                device=world.device,
                rank=world.rank,
                world=world.world_size,
                limit=config.train.validate_samples,
                progress=progress,
            )
        except ToolkitError as error:
            # Either ours, or what `evaluate_model` tells the ranks that were through when another one left.
            if isinstance(error, StoppedError) or world.heard(word):
                return None
            raise
        scores = {name: value for name, value in table.compute().overall.items() if value is not None}
        if "mse" not in scores:
            raise NonFiniteError(f"step {step}: predictions of validation windows are not finite. Lower train.lr")
        score = scores["mse"]
        if recorder:
            recorder.validation(step, scores, is_best=best is None or score < best["score"])
            for index, (truth, prediction) in enumerate(_examples(config, windows, model, world)):
                recorder.images(step, f"val/{index}", truth, prediction)
    return score


def _examples(
    config: RunConfig, windows: WindowSet, model: SequenceModel, world: World
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(truth, prediction) of the first validation windows, [T, C, H, W] in 0..1, context first in both."""
    context, horizon = config.data.context, config.data.horizon
    for index in range(min(config.train.images, len(windows))):
        frames = to_unit(torch.from_numpy(windows[index].frames).to(world.device), windows.scale)
        future = model.predict(frames[None, :context], horizon)[0, 0]
        yield frames, torch.cat([frames[:context], future.float()])

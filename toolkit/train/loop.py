"""The training loop: one function to read from top to bottom, and the few things around it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from shards import Store, open_store
from toolkit.config import RunConfig
from toolkit.data.batches import Batch, read_batches
from toolkit.data.windows import WindowSet, observed, to_unit
from toolkit.distributed import World
from toolkit.errors import EXIT_OK, EXIT_REQUEUE, ConfigError, NonFiniteError
from toolkit.evaluate.protocols import load_protocol
from toolkit.evaluate.run import evaluate_model
from toolkit.models.base import build_model
from toolkit.models.registry import MODELS
from toolkit.rundir import RunDir
from toolkit.train import checkpoint
from toolkit.train.engine import Engine, TrainState
from toolkit.train.record import Recorder
from toolkit.train.sampling import draw, teacher_rate
from toolkit.train.signals import StopRequest


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


def train(run: RunDir, world: World, resume: str, stop: StopRequest) -> int:
    """Train a run to its last step.

    Args:
        resume: `auto` (the newest whole checkpoint, or from scratch), `none` (from scratch; refused when there are
            checkpoints) or a step number.

    Returns:
        EXIT_OK when the run is complete, EXIT_REQUEUE when it was asked to stop and can go on.
    """
    config = run.config()
    cfg = config.train
    data = open_data(config)
    if not MODELS[config.model.name].trained:
        return _without_training(run, world)
    torch.manual_seed(config.seed)
    model = build_model(config, data.store.manifest.frames)
    state, progress = _resume(run, resume, world)
    engine = Engine.build(model, config, world, state)
    del state
    step = progress.step
    best = progress.best
    recorder = Recorder(run, step, cfg.steps, cfg.batch) if world.is_main else None
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

    def loss_of(batch: Batch) -> torch.Tensor:
        codes = batch.frames.to(world.device, non_blocking=True)
        sampling = draw(config.seed, batch.positions, step, config.data.horizon, cfg.sampling, world.device)
        sampling = replace(sampling, observed=observed(codes, data.train.scale))
        rollout = engine.engine(to_unit(codes, data.train.scale), config.data.context, sampling)
        return torch.stack(list(rollout.losses.values())).sum()

    def save() -> None:
        full = engine.gather()
        if world.is_main:
            by = {"world_size": world.world_size, "zero": cfg.zero, "precision": cfg.precision}
            record = checkpoint.Progress(step, step * cfg.batch, best, by)
            checkpoint.save(run.checkpoints, full, record, config.hash8(execution=False))
            if best and best["step"] == step:
                checkpoint.mark_best(run.checkpoints, step)
            checkpoint.prune(run.checkpoints, cfg.keep_last)

    try:
        while step < cfg.steps:
            began = time.perf_counter()
            own = [next(batches) for _ in range(engine.share.accumulation)]
            waited = time.perf_counter() - began
            for text in (text for batch in own for text in batch.skipped):
                print(f"rank {world.rank}, step {step}: skipped a damaged sample: {text}", file=sys.stderr, flush=True)
            result = engine.step(own, loss_of, bool(stop))
            step += 1
            if recorder:
                recorder.meter.add(time.perf_counter() - began, waited)
                rate = teacher_rate(step - 1, cfg.sampling)
                values = {"loss": result.loss, "grad_norm": result.grad_norm, "lr": cfg.lr, "teacher_rate": rate}
                recorder.train(step, values, log=step % cfg.log_every == 0 or step in (1, cfg.steps))
            improved = False
            if data.val and (step % cfg.validate_every == 0 or step == cfg.steps):
                score = _validate(config, data.val, engine, world, recorder, step, best)
                improved = best is None or score < best["score"]
                best = {"step": step, "score": score} if improved else best
            if improved or result.stop or step % cfg.checkpoint_every == 0 or step == cfg.steps:
                save()
            if result.stop and step < cfg.steps:
                if recorder:
                    recorder.put_state("stopped", step)
                    recorder.say(f"stopped at step {step} with a checkpoint; the same command goes on from there")
                return EXIT_REQUEUE
        if recorder:
            recorder.put_state("trained", step)
            run.mark_done()
        return EXIT_OK
    finally:
        if recorder:
            recorder.close()


def _without_training(run: RunDir, world: World) -> int:
    """A model without parameters is trained as it is made: no step, no checkpoint."""
    if world.is_main:
        print(f"{run.config().model.name} has no parameters: nothing to train, evaluate it", file=sys.stderr)
        run.write_state(phase="trained", step=0, steps=0)
        run.mark_done()
    return EXIT_OK


def _resume(run: RunDir, resume: str, world: World) -> tuple[TrainState | None, checkpoint.Progress]:
    """The state to start from; rank 0 chooses the checkpoint, so that all ranks take the same one."""
    path = None
    if resume == "auto":
        found = checkpoint.newest(run.checkpoints, lambda text: print(text, flush=True)) if world.is_main else None
        path = world.broadcast(found)
    elif resume == "none":
        if checkpoint.steps_in(run.checkpoints):
            raise ConfigError(f"{run.checkpoints}: holds checkpoints: use --resume auto, or delete them to start over")
    else:
        path = checkpoint.exactly(run.checkpoints, int(resume))
    if path is None:
        return None, checkpoint.Progress(0, 0)
    return checkpoint.load(path, run.config().hash8(execution=False))


def _introduce(recorder: Recorder, config: RunConfig, data: Data, engine: Engine, step: int) -> None:
    share, cfg = engine.share, config.train
    count = sum(p.numel() for p in engine.model.parameters())
    recorder.say(
        f"{config.model.name}: {count:,} parameters, {len(data.train):,} training windows, "
        f"{len(data.val) if data.val else 0:,} validation windows"
    )
    recorder.say(
        f"batch {share.batch} = {share.world_size} ranks x {share.accumulation} x {share.micro_batch}, "
        f"{cfg.precision}, ZeRO {cfg.zero}, checkpointing {cfg.checkpointing}, {engine.world.device}"
        + (f"; going on from step {step}" if step else "")
    )
    if data.val is None:
        recorder.say(f"no split {config.data.val_split!r} in {config.data.store}: `best` will be the last checkpoint")


def _validate(
    config: RunConfig,
    windows: WindowSet,
    engine: Engine,
    world: World,
    recorder: Recorder | None,
    step: int,
    best: dict[str, float] | None,
) -> float:
    """Score the model on validation windows; the protocol's MSE decides what is best."""
    if recorder:
        recorder.put_state("validating", step)
    engine.model.eval()
    table = evaluate_model(
        engine.model,
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
    )
    scores = {name: value for name, value in table.compute().overall.items() if value is not None}
    if "mse" not in scores:
        raise NonFiniteError(f"step {step}: predictions of validation windows are not finite. Lower train.lr")
    score = scores["mse"]
    if recorder:
        recorder.validation(step, scores, is_best=best is None or score < best["score"])
        for index, (truth, prediction) in enumerate(_examples(config, windows, engine, world)):
            recorder.images(step, f"val/{index}", truth, prediction)
    engine.model.train()
    return score


def _examples(
    config: RunConfig, windows: WindowSet, engine: Engine, world: World
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(truth, prediction) of the first validation windows, [T, C, H, W] in 0..1, context first in both."""
    context, horizon = config.data.context, config.data.horizon
    for index in range(min(config.train.images, len(windows))):
        frames = to_unit(torch.from_numpy(windows[index].frames).to(world.device), windows.scale)
        future = engine.model.predict(frames[None, :context], horizon)[0, 0]
        yield frames, torch.cat([frames[:context], future.float()])

"""Tiny trainings: their start, what they wrote, and the same in plain PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from shards import open_store
from tests.support.process import PATIENCE_S, ROOT, one_thread
from tests.support.process_pool import forked
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import RunConfig
from toolkit.config.sections import TrainConfig
from toolkit.data.batches import Share, read_batches
from toolkit.data.windows import WindowSet, to_unit
from toolkit.models.base import Sampling
from toolkit.train.criterion import make_criterion
from toolkit.train.optimizer import set_rates
from toolkit.train.sampling import draw_noise, draw_teacher


@dataclass
class PlainRun:
    """What a training in plain PyTorch gave."""

    losses: list[float]
    weights: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]


def plain_optimizer(model: torch.nn.Module, cfg: TrainConfig) -> torch.optim.Optimizer:
    """torch's optimizer; biases and norms without weight decay."""
    free = [p for name, p in model.named_parameters() if p.dim() < 2 or name.endswith("bias")]
    decayed = [p for p in model.parameters() if all(p is not other for other in free)]
    groups = [{"params": decayed, "weight_decay": cfg.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if cfg.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=cfg.lr, momentum=cfg.momentum)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[cfg.optimizer]
    return kind(groups, lr=cfg.lr, betas=cfg.betas)


def plain_training(config: RunConfig, bf16: bool = False, late: bool = False, leave_out: int | None = None) -> PlainRun:
    """The same run in two dozen lines of plain PyTorch: one process, torch's optimizer, clip_grad_norm_.

    bf16: the forward and backward in bf16, the weights and the optimizer in fp32.
    leave_out: the number of a step without an update.
    late: Adam takes an empty step first, the fault of DeepSpeed's unpartitioned bf16 optimizer.
    """
    cfg, data = config.train, config.data
    store = open_store(data.store)
    windows = WindowSet(store, "train", data.context + data.horizon, 1)
    torch.manual_seed(config.seed)
    model = untrained_model(config, store.manifest.frames)
    work = untrained_model(config, store.manifest.frames).bfloat16() if bf16 else model
    optimizer = plain_optimizer(model, cfg)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(cfg.ema or 0.5))
    average.update_parameters(model)  # its first update copies the weights
    if late:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    losses = []
    batches = read_batches(windows, config.seed, Share(cfg.batch, cfg.batch, 0, 1), 0)
    for step, batch in enumerate(islice(batches, cfg.steps)):
        work.load_state_dict(model.state_dict())
        teacher = draw_teacher(config.seed, batch.positions, step, data.context, data.horizon, cfg.sampling)
        noise = draw_noise(config.seed, batch.positions, torch.device("cpu"))
        sampling = Sampling(teacher, noise, criterion=make_criterion(cfg, windows.scale, data.horizon))
        loss = work(to_unit(batch.frames, windows.scale), data.context, sampling).losses["data"]
        for parameter, grad in zip(model.parameters(), torch.autograd.grad(loss, list(work.parameters())), strict=True):
            parameter.grad = grad.float()
        assert cfg.clip is not None
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        assert norm > cfg.clip
        set_rates(optimizer, cfg, step)
        if step != leave_out:
            optimizer.step()
            average.update_parameters(model)
        losses.append(float(loss.detach()))
    return PlainRun(losses, model.state_dict(), average.module.state_dict())


def plain_losses(
    config: RunConfig, bf16: bool = False, late: bool = False, leave_out: int | None = None
) -> list[float]:
    """The losses of `plain_training`."""
    return plain_training(config, bf16, late, leave_out).losses


def logged(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def weights_of(run: Path, step: int, file: str = "weights.pt") -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / f"step-{step:08d}" / file, weights_only=True)


def cut_back(run: Path, step: int) -> None:
    """Make a finished run look as if it had been killed right after its checkpoint of `step`."""
    (run / "DONE").unlink()
    for path in (run / "checkpoints").glob("step-*"):
        if path.name > f"step-{step:08d}":
            for file in path.iterdir():
                file.unlink()
            path.rmdir()


SCRIPT = [sys.executable, str(ROOT / "launch" / "train.py")]


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run launch/train.py on a CPU, in a process that has done the imports."""
    return forked(arguments)


def typed(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run launch/train.py as people do, in an interpreter of its own."""
    command = [*SCRIPT, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=one_thread(), capture_output=True, text=True, timeout=PATIENCE_S)


Train = Callable[[Sequence[dict[str, object]], int], "subprocess.CompletedProcess[str]"]


def compared(cases: list[dict[str, Any]], folder: Path, timeout: float = PATIENCE_S) -> list[dict[str, Any]]:
    """What tests/support/graphs.py saw of each case."""
    (folder / "cases.json").write_text(json.dumps(cases))
    files = [str(folder / "cases.json"), str(folder / "out.json")]
    if torch.cuda.is_available():  # the pool's processes compute on a CPU
        command = [sys.executable, "-m", "tests.support.graphs", *files]
        done = subprocess.run(command, cwd=ROOT, env=one_thread(), capture_output=True, text=True, timeout=timeout)
    else:
        done = forked(files, "tests.support.graphs", timeout)
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[dict[str, Any]] = json.loads((folder / "out.json").read_text())
    return found

"""From our config to DeepSpeed's: how the batch is divided, what its JSON says, and what is refused with the reason."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import torch

from toolkit.config.sections import TrainConfig
from toolkit.data.batches import Share
from toolkit.distributed.world import World
from toolkit.errors import ConfigError


def share_of(config: TrainConfig, world: World) -> Share:
    """How the global batch is divided.

    Raises:
        ConfigError: the world size doesn't divide the batch, or the micro-batch doesn't divide a rank's share.
    """
    share = config.share(world.world_size)
    micro = config.micro_batch or share
    if share % micro:
        raise ConfigError(
            f"train.micro_batch {micro} doesn't divide a rank's share of {share} sequences "
            f"(train.batch {config.batch} over {world.world_size} ranks): choose a divisor of {share}"
        )
    return Share(config.batch, micro, world.rank, world.world_size)


def check_precision(config: TrainConfig, device: torch.device) -> None:
    """Can the device compute in `train.precision`, and with `train.tf32`?

    Raises:
        ConfigError: bf16 on a card without it, where torch would emulate it, slower than fp32; TF32 on a device without
            it, where the run would be another than it says.
    """
    if config.precision == "bf16" and device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return
        raise ConfigError(
            f"train.precision bf16: {_card(device)} has no bf16, which came with 8.0 (A100, RTX 30): set "
            "train.precision=fp32, or use another card"
        )
    if config.tf32 and device.type == "cpu":
        raise ConfigError("train.tf32: TF32 is a format of GPUs, and this run computes on the CPU: leave it out")
    if config.tf32 and (torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0)):
        raise ConfigError(
            f"train.tf32: {_card(device)} has no TF32, which came with 8.0 (A100, RTX 30): leave it out, or use "
            "another card"
        )


def _card(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor})"


def deepspeed_config(config: TrainConfig, share: Share, parameters: int) -> dict[str, Any]:
    """Return DeepSpeed's JSON for a number of parameters, merged with `train.deepspeed`.

    Under ZeRO-3 DeepSpeed keeps parameters of less than 100,000 numbers whole on every rank, and in these models most
    are smaller: `train.deepspeed: {zero_optimization: {stage3_param_persistence_threshold: 0}}` divides all of them,
    for a little less memory and many more messages.
    """
    offload = {"offload_optimizer": {"device": "cpu"}} if config.offload_optimizer else {}
    owned: dict[str, Any] = {
        "train_batch_size": share.batch,
        "train_micro_batch_size_per_gpu": share.micro_batch,
        "gradient_accumulation_steps": share.accumulation,
        "gradient_clipping": config.clip or 0.0,
        "zero_optimization": {"stage": config.stage, "reduce_bucket_size": config.bucket(parameters), **offload},
        "bf16": {"enabled": config.precision == "bf16"},
        "zero_allow_untested_optimizer": True,  # torch's Adam under ZeRO; proven equal to plain PyTorch in tests
        "zero_force_ds_cpu_optimizer": False,  # torch's fused Adam offloaded too: as fast, and nothing to compile
        "steps_per_print": 10**9,
    }
    if config.activation_checkpointing.backend == "deepspeed" and share.accumulation > 1:
        raise ConfigError(
            f"train.activation_checkpointing.backend deepspeed adds up gradients step by step in time, so that with "
            f"{share.accumulation} micro-batches of {share.micro_batch} they are not the same bit for bit: set "
            f"train.micro_batch to {share.micro_batch * share.accumulation}, or leave the backend at torch"
        )
    extra = dict(config.deepspeed)
    owned["zero_optimization"].update(extra.pop("zero_optimization", {}))
    # Its meter of throughput waits for the device twice a step; ours doesn't (toolkit/train/record.py).
    return {"timers": {"throughput": {"enabled": False}}, **owned, **extra}


def import_deepspeed(world: World) -> Any:
    """Return the package, made ready for this rank's device before anything of it runs.

    DeepSpeed takes LOCAL_RANK for the ordinal of the GPU, and asks for it even of a lone process. A task that sees only
    its own GPU has number 0 whatever its rank, so from here on LOCAL_RANK is the number of the device; `World` keeps
    the rank.

    Raises:
        ConfigError: DeepSpeed was imported before, for a device of another kind.
    """
    os.environ["LOCAL_RANK"] = str(world.device.index or 0)
    os.environ["DS_ACCELERATOR"] = world.device.type
    # DeepSpeed calls collectives by names that torch 2.13 has begun to rename: nothing that a user could fix.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    import deepspeed
    from deepspeed import ops
    from deepspeed.accelerator import get_accelerator
    from deepspeed.utils import logger

    if (kind := get_accelerator().device_name()) != world.device.type:
        raise ConfigError(
            f"this process computes on {world.device}, but imported DeepSpeed before, which then chose {kind}: import "
            f"it later, or set DS_ACCELERATOR={world.device.type}"
        )
    # An inference helper that DeepSpeed would compile for half a minute at the first start on a CPU.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logger.setLevel(logging.ERROR)
    return deepspeed

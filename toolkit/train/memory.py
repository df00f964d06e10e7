"""Out-of-memory errors that list which settings to change."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from toolkit.config.sections import TrainConfig
from toolkit.data.batches import Share
from toolkit.distributed.world import World
from toolkit.errors import MemoryShortageError
from toolkit.shipped import command
from toolkit.wording import first_line


def is_shortage(error: BaseException) -> bool:
    """Return whether the device or the host ran out of memory; torch's CPU allocator raises a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextmanager
def explain_shortage(config: TrainConfig, share: Share, step: int, world: World) -> Iterator[None]:
    """Turn what torch raises for want of memory in training step `step` into one error that says what to change.

    Raises:
        MemoryShortageError: instead of torch's.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        changes = "\n".join(f"  {number}. {text}" for number, text in enumerate(remedies(config, share), 1))
        raise MemoryShortageError(
            f"rank {world.rank}, step {step}: out of memory on {world.device} with a micro-batch of "
            f"{share.micro_batch}, train.activation_checkpointing.policy={config.activation_checkpointing.policy}, "
            f"train.precision={config.precision}; "
            f"{held(world.device)}.\n{first_line(error)}\n"
            f"Change, in this order, until it fits:\n{changes}\n"
            f"What fits, without trying: {command('plan', '--config', 'FILE')}"
        ) from error


def remedies(config: TrainConfig, share: Share) -> list[str]:
    """Return the settings to change, cheapest first, without those in use already."""
    found = []
    now, key = config.activation_checkpointing, "train.activation_checkpointing"
    if now.policy == "none":
        found.append(f"{key}.policy=step: the same numbers; activations of one time step, a third more time")
    if not now.per_layer and now.backend == "torch":
        found.append(f"{key}.per_layer=true: of one layer instead of one step, in the same time")
    if share.micro_batch > 1:
        smaller = max(n for n in range(1, share.micro_batch) if share.micro_batch % n == 0)
        found.append(f"train.micro_batch={smaller}: the same batch of {share.batch} in more, smaller parts")
    if now.policy != "recursive":
        found.append(f"{key}.policy=recursive: for long sequences; steps are run several times over")
    if not now.offload and now.backend == "torch":
        found.append(f"{key}.offload=true: the states that checkpointing keeps move to the CPU (on a GPU)")
    if not config.offload_optimizer:
        stage = "" if config.zero else " train.zero=1"
        found.append(f"train.offload_optimizer=true{stage}: 8 to 12 bytes a parameter move to the CPU (on a GPU)")
    if config.precision == "fp32":
        found.append("train.precision=bf16: about half the activations, other numbers")
    found.append("a larger model.patch: four times fewer positions for each doubling; another model")
    return found


def held(device: torch.device) -> str:
    """How much memory this process holds."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        own = torch.cuda.memory_allocated(device)
        return f"{own / 2**30:.2f} GiB held here, {free / 2**30:.2f} of {total / 2**30:.2f} GiB free"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"at most {peak / 2**30:.2f} GiB were held"

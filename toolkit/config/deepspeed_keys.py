"""The keys of DeepSpeed's configuration that `train.deepspeed` may set. Imports neither torch nor DeepSpeed.

A test compares these names with DeepSpeed's own. What names modules to import, writes files, or sends data elsewhere
is refused, as are the keys that belong to `train`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from toolkit.wording import nearest

_OFFLOAD = {"device": str, "pin_memory": bool, "buffer_count": int}
ZERO: dict[str, Any] = {
    **dict.fromkeys(
        (
            "contiguous_gradients",
            "reduce_scatter",
            "use_multi_rank_bucket_allreduce",
            "allgather_partitions",
            "overlap_comm",
            "ignore_unused_parameters",
            "round_robin_gradients",
            "memory_efficient_linear",
            "enable_sanity_checks",
            "stage3_use_all_reduce_for_fetch_params",
            "stage3_allgather_sequential",
            "zero_quantized_weights",
            "zero_quantized_gradients",
            "log_trace_cache_warnings",
        ),
        bool,
    ),
    **dict.fromkeys(
        (
            "reduce_bucket_size",
            "allgather_bucket_size",
            "sub_group_size",
            "zero_hpz_partition_size",
            "stage3_prefetch_bucket_size",
            "stage3_param_persistence_threshold",
            "stage3_model_persistence_threshold",
            "stage3_max_live_parameters",
            "stage3_max_reuse_distance",
            "stage3_module_granularity_threshold",
        ),
        int,
    ),
    "offload_param": {**_OFFLOAD, "buffer_size": int, "max_in_cpu": int},
    "offload_optimizer": {**_OFFLOAD, "ratio": float, "fast_init": bool},
}
ALLOWED: dict[str, Any] = {
    "zero_optimization": ZERO,
    "communication_data_type": str,
    "prescale_gradients": bool,
    "gradient_predivide_factor": float,
    "disable_allgather": bool,
    "disable_python_gc": bool,
    "dump_state": bool,
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "comms_logger": {"enabled": bool, "prof_all": bool, "prof_ops": list, "verbose": bool, "debug": bool},
    "timers": {"throughput": {"enabled": bool, "synchronized": bool}},
    "flops_profiler": {
        "enabled": bool,
        "recompute_fwd_factor": float,
        "profile_step": int,
        "module_depth": int,
        "top_modules": int,
        "detailed": bool,
    },
}
_OWN = "the toolkit sets it from {}"
_FILES = "it writes files outside of the run directory"
_REMOTE = "it sends data of the run to another service; the run directory has metrics.jsonl and TensorBoard's files"
_IMPORTS = "it names modules to import"
REFUSED = {
    "train_batch_size": _OWN.format("train.batch"),
    "train_micro_batch_size_per_gpu": _OWN.format("train.micro_batch"),
    "gradient_accumulation_steps": _OWN.format("train.batch and train.micro_batch"),
    "gradient_clipping": _OWN.format("train.clip"),
    "bf16": _OWN.format("train.precision"),
    "fp16": "fp16 is not offered: use train.precision=bf16, which needs no loss scale",
    "amp": "fp16 is not offered: use train.precision=bf16, which needs no loss scale",
    "torch_autocast": _IMPORTS,
    "optimizer": _OWN.format("train.optimizer, lr, betas, momentum and weight_decay"),
    "scheduler": _OWN.format("train.schedule"),
    "activation_checkpointing": _OWN.format("train.activation_checkpointing"),
    "zero_allow_untested_optimizer": "the toolkit sets it",
    "zero_force_ds_cpu_optimizer": "the toolkit sets it",
    "steps_per_print": _OWN.format("train.log_every"),
    "compile": _OWN.format("train.compile"),
    "checkpoint": _OWN.format("train.checkpoint"),
    "tensorboard": _FILES,
    "csv_monitor": _FILES,
    "wandb": _REMOTE,
    "comet": _REMOTE,
    "nebula": _REMOTE,
    "aio": _FILES,
    "autotuning": _FILES,
    "data_efficiency": _FILES,
    "datastates_ckpt": _FILES,
    "flops_profiler.output_file": _FILES,
    "zero_optimization.stage": _OWN.format("train.zero"),
    "zero_optimization.leaf_module": _IMPORTS,
    "zero_optimization.zenflow": "the toolkit does not support it",
    "zero_optimization.offload_param.nvme_path": _FILES,
    "zero_optimization.offload_optimizer.nvme_path": _FILES,
}
LARGEST = 1e15


def check_deepspeed(values: dict[str, Any]) -> dict[str, Any]:
    """Return `train.deepspeed` as it is, where every key may be set and every value has the right type.

    Raises:
        ValueError: naming every key that may not be set with the reason, or the most similar one that may.
    """
    faults = list(_faults(values, ALLOWED, ""))
    if faults:
        raise ValueError("; ".join(faults))
    return values


def _faults(values: Mapping[Any, Any], known: Mapping[str, Any], prefix: str) -> list[str]:
    found = []
    for name, value in values.items():
        key = f"{prefix}{name}"
        expected = known.get(name)
        if expected is None:
            found.append(_not_allowed(key, prefix, known))
        elif isinstance(expected, Mapping):
            if not isinstance(value, Mapping):
                found.append(f"{key}: must be a mapping, got {value!r}")
            else:
                found += _faults(value, expected, f"{key}.")
        elif not _fits(value, expected):
            found.append(f"{key}: must be {_WORDS[expected]}, got {value!r}")
        elif name == "device" and value not in ("none", "cpu"):
            found.append(f"{key}: must be none or cpu, got {value!r}")
    return found


_WORDS = {
    bool: "true or false",
    int: f"a whole number from 0 to {LARGEST:.0e}",
    float: f"a finite number from 0 to {LARGEST:.0e}",
    str: "a text",
    list: "a list of texts",
}


def _fits(value: object, expected: type) -> bool:
    if expected is list:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if expected in (bool, str):
        return isinstance(value, expected)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return 0 <= value <= LARGEST and (expected is float or value == int(value))


def _not_allowed(key: str, prefix: str, known: Mapping[str, Any]) -> str:
    if key in REFUSED:
        return f"{key} can't be set here: {REFUSED[key]}"
    refused = [name.removeprefix(prefix) for name in REFUSED if name.startswith(prefix)]
    near = nearest(key.removeprefix(prefix), [*known, *(name for name in refused if "." not in name)])
    return f"{key}: unknown key of DeepSpeed; {near or 'known here: ' + ', '.join(known)}"

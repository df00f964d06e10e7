"""Names in a profile's `env`: a misspelled one would silently do nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable

from launch.jobs.ranks import RANK_VARIABLES

OWN = ("MODERNN_ALEXNET", "MODERNN_RENDEZVOUS_S", "MODERNN_TRITON")
KNOWN = (  # variables that change how a training on a cluster runs, and that people set
    *OWN,
    *("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("KMP_AFFINITY", "KMP_BLOCKTIME", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "PATH", "HOME", "TMPDIR"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_HOME"),
    *("CUDA_MODULE_LOADING", "CUDA_CACHE_PATH", "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY", "CUDA_PATH"),
    *("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "NVIDIA_VISIBLE_DEVICES"),
    *("NCCL_DEBUG", "NCCL_DEBUG_FILE", "NCCL_DEBUG_SUBSYS", "NCCL_SOCKET_IFNAME", "NCCL_SOCKET_FAMILY", "NCCL_ALGO"),
    *("NCCL_SOCKET_NTHREADS", "NCCL_NSOCKS_PERTHREAD", "NCCL_IB_DISABLE", "NCCL_IB_HCA", "NCCL_IB_TIMEOUT"),
    *("NCCL_IB_RETRY_CNT", "NCCL_IB_GID_INDEX", "NCCL_IB_SL", "NCCL_IB_TC", "NCCL_IB_CUDA_SUPPORT", "NCCL_PROTO"),
    *("NCCL_NET", "NCCL_NET_GDR_LEVEL", "NCCL_NET_GDR_READ", "NCCL_NET_PLUGIN", "NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL"),
    *("NCCL_SHM_DISABLE", "NCCL_BUFFSIZE", "NCCL_CROSS_NIC", "NCCL_TOPO_FILE", "NCCL_MIN_NCHANNELS"),
    *("NCCL_MAX_NCHANNELS", "NCCL_NVLS_ENABLE", "NCCL_COLLNET_ENABLE", "NCCL_CUMEM_ENABLE", "NCCL_LAUNCH_MODE"),
    *("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "UCX_TLS", "UCX_NET_DEVICES", "FI_PROVIDER", "FI_EFA_USE_DEVICE_RDMA"),
    *("TORCH_DISTRIBUTED_DEBUG", "TORCH_CPP_LOG_LEVEL", "TORCH_HOME", "TORCH_LOGS", "TORCH_SHOW_CPP_STACKTRACES"),
    *("TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_BLOCKING_WAIT", "TORCH_NCCL_TRACE_BUFFER_SIZE"),
    *("TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_NCCL_ENABLE_MONITORING", "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"),
    *("TORCH_NCCL_AVOID_RECORD_STREAMS", "TORCH_EXTENSIONS_DIR", "TORCH_CUDA_ARCH_LIST", "TORCHINDUCTOR_CACHE_DIR"),
    *("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_NVML_BASED_CUDA_CHECK", "TRITON_CACHE_DIR"),
    *("DS_ACCELERATOR", "DS_SKIP_CUDA_CHECK", "XDG_CACHE_HOME", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *("AWS_ENDPOINT_URL", "WANDB_PROJECT", "WANDB_MODE", "WANDB_DIR", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI"),
)
SHORTEST = 8  # letters: of shorter names many others are one letter away (PATH, HOME)


def faults_of(names: Iterable[str]) -> list[str]:
    """Return a line for each name that can't be a variable, or that would have no effect."""
    faults = []
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            faults.append(f"{name!r} is no name of a variable (letters, digits and _, no digit first)")
        elif name in RANK_VARIABLES:
            faults.append(f"{name} is set by the launcher for each rank")
    return faults


def misspelled(names: Iterable[str]) -> list[str]:
    """Return a line for each name that differs from a known one by a letter, or in case, and for others of MODERNN_.

    Two letters are too many: NCCL_PXN_DISABLE is so far from NCCL_P2P_DISABLE, and WANDB_NAME from WANDB_MODE.
    """
    notes = []
    for name in names:
        if name in KNOWN or name in (known.lower() for known in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")):
            continue
        known = [one for one in KNOWN if len(one) >= SHORTEST and _is_near(name.upper(), one)]
        if known:
            notes.append(f"{name}: did you mean {known[0]}?")
        elif name.upper().startswith("MODERNN_"):
            notes.append(f"{name}: the toolkit reads {', '.join(OWN)}")
    return notes


def _is_near(name: str, other: str) -> bool:
    """Return whether two names are equal but for one letter (wrong, missing or too many) or two that are swapped."""
    first = next((at for at, (one, two) in enumerate(zip(name, other, strict=False)) if one != two), None)
    if first is None:  # one begins the other
        return abs(len(name) - len(other)) <= 1
    rest, wanted = name[first:], other[first:]
    swapped = rest[:2] == wanted[:2][::-1] and rest[2:] == wanted[2:]
    return swapped or rest[1:] in (wanted, wanted[1:]) or rest == wanted[1:]

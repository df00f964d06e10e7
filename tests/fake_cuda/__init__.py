"""A CUDA device that computes nothing, to count what a training step would launch on a real one.

A child process runs the project's own code on fake tensors (shapes, types, devices and autograd, no data) of device
cuda:0, and every operator that PyTorch would dispatch there is counted. What it proves: no tensor of another device is
mixed in, how many kernels a step has, where the host waits for the device. What it can't: numbers, and time.

stub.cpp    what a CPU-only PyTorch lacks for that; compiled once with g++ into .pytest_cache
device.py   torch.cuda as the child sees it
counter.py  which operators are kernels, which are synchronisations, in which part of a step
steps.py    the child that counts steps:           python -m tests.fake_cuda.steps < FORMS.json
compiled.py the child that counts in Inductor's output: python -m tests.fake_cuda.compiled < FORMS.json
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("stub.cpp")
TORCH = Path(torch.__file__).parent


def why_not() -> str | None:
    """Why this machine can't have the fake device, or None."""
    if torch.version.cuda is not None:
        return f"torch {torch.__version__} is built for CUDA: the fake device stands in for it in CPU-only builds"
    if shutil.which("g++") is None:
        return "no g++, which compiles the fake CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "no triton, whose kernels are counted: pip install triton"
    return None


def library() -> Path:
    """The compiled stub, compiled now unless it was before for this source and torch."""
    digest = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:12]
    path = ROOT / ".pytest_cache" / f"fake_cuda-{digest}.so"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        include = [TORCH / "include", TORCH / "include/torch/csrc/api/include"]
        command = ["g++", "-O1", "-std=c++20", "-shared", "-fPIC", *(f"-I{folder}" for folder in include), str(SOURCE)]
        subprocess.run([*command, f"-L{TORCH / 'lib'}", "-lc10", "-ltorch_cpu", "-o", str(part)], check=True)
        part.replace(path)
    return path


def ask(module: str, request: Sequence[dict[str, Any]], timeout: float = 600) -> list[dict[str, Any]]:
    """What `python -m MODULE`, on the fake device, answers to each item of a request, in its order.

    Raises:
        RuntimeError: the child failed; with the end of what it printed.
    """
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library()),
        "LD_LIBRARY_PATH": f"{TORCH / 'lib'}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("DS_ACCELERATOR", None)
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(request),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        said = "\n".join(line for line in done.stderr.splitlines() if " registered at " not in line)
        raise RuntimeError(f"{module} ended with {done.returncode}\n{said[-8000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

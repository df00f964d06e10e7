"""Count the kernels of a compiled time step in the code that Inductor writes for CUDA; none of it is compiled or run.

A form is {"config": FILE, "set": [KEY=VALUE, ...]} on stdin, in a list; the answer, a line of JSON, has the kernels of
a forward and of a backward pass of one time step of the model, Triton's and the libraries'.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import sys
import types
from collections import Counter as Tally
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.fake_cuda import ROOT, device

device.install()

import torch._dynamo.device_interface as interface  # noqa: E402
import torch._inductor.config as settings  # noqa: E402
from torch._inductor.fx_passes import fuse_attention, joint_graph, post_grad  # noqa: E402
from torch._inductor.graph import GraphLowering  # noqa: E402

from tests.fake_cuda.steps import CUDA, FRAMES, FakeNoise, apply_in_place  # noqa: E402
from toolkit.config import RunConfig, load_config  # noqa: E402
from toolkit.models.base import StepSequence, build_model, laid_out, memory_layout  # noqa: E402


class Written(Exception):
    """The code is written: there is no device to run it on."""


def prepare() -> list[str]:
    """Let Inductor believe in the device; returns the list to which it adds the code of each graph."""
    of_device = functools.partial(lambda *_, **__: device.H100)
    answers = {
        "is_available": lambda *_: True,
        "device_count": lambda *_: 1,
        "current_device": lambda *_: 0,
        "get_device_properties": of_device,
        "get_compute_capability": lambda *_: 90,
    }
    for name, answer in answers.items():
        setattr(interface.CudaInterface, name, staticmethod(answer))
    interface.CudaInterface.Worker.get_device_properties = staticmethod(of_device)
    interface.CudaInterface.Worker.current_device = staticmethod(lambda: 0)
    holders = [
        m for name, m in list(sys.modules.items()) if name.startswith(("torch._inductor", "torch.utils._triton"))
    ]
    for module in holders:
        for name, answer in {"has_triton": True, "triton_hash_with_backend": ""}.items():
            if hasattr(module, name):
                setattr(module, name, functools.partial(lambda value, *_, **__: value, answer))
    # What they look for they would find by running small examples on the device.
    settings.pattern_matcher = settings.joint_graph_constant_folding = settings.fx_graph_cache = False
    settings.compile_threads = 1
    torch._functorch.config.enable_autograd_cache = False
    torch._functorch.config.force_non_lazy_backward_lowering = True
    joint_graph.lazy_init = post_grad.lazy_init = fuse_attention._sfdp_init = lambda *_, **__: None
    found: list[str] = []

    def keep(graph: GraphLowering) -> Any:
        code = graph.codegen()[0]
        found.append(getattr(code, "value", code))
        return types.SimpleNamespace(call=_stop, __file__="", __path__="", key="", partitions=None, runner=None)

    GraphLowering.compile_to_module = keep
    return found


def _stop(*_: Any) -> None:
    raise Written


def count(config: RunConfig, found: list[str]) -> dict[str, Any]:
    """Kernels of a step, by pass."""
    torch._dynamo.reset()
    found.clear()
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    with FakeTensorMode(allow_non_fake_inputs=True):
        with CUDA:
            model = build_model(config.model, FRAMES)
        assert isinstance(model, StepSequence)
        cell = apply_in_place(model.cell, lambda tensor: tensor.to(dtype))
        patch = config.model.tile
        side = FRAMES.height // patch
        frame = torch.empty(config.train.batch, FRAMES.channels * patch**2, side, side, device=CUDA, dtype=dtype)
        state = cell.init_state(config.train.batch, side, side, frame, FakeNoise(config.train.batch))
        frame, state = laid_out((frame, state), memory_layout(cell, frame))
        wanting = torch.utils._pytree.tree_map(lambda t: t.detach().requires_grad_(), (frame, state))
        with contextlib.suppress(Written):
            torch.compile(cell)(*wanting)
    assert len(found) == 2, f"{len(found)} graphs where one forward and one backward were expected"
    return {"forward": kernels_in(found[0]), "backward": kernels_in(found[1])}


def kernels_in(code: str) -> dict[str, Any]:
    """What a graph's `call` launches."""
    body = code.rpartition("def call(")[2]
    assert "cpp_fused" not in body
    names = Tally({"triton": len(re.findall(r"\btriton_\w+\.run\(", body))})
    for line in body.splitlines():
        match = re.search(r"\b(?:extern_kernels|torch\.ops\.\w+|aten)\.(\w+)[\w.]*\(", line)
        if not match:
            continue
        name = match[1]
        wanted = re.search(r"\[((?:True|False), (?:True|False), (?:True|False))\]\)", line)
        if name == "convolution_backward":
            assert wanted, line
            names[name] += wanted[1].count("True")
        else:
            names[name] += 3 if name == "_scaled_dot_product_flash_attention_backward" else 1
    return {"kernels": names.total(), "names": dict(names)}


def main() -> int:
    found = prepare()
    for form in json.load(sys.stdin):
        print(json.dumps(count(load_config(ROOT / form["config"], form["set"]), found)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

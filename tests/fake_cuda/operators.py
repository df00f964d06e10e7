"""Count single expressions on the fake device: a list of {"code": EXPRESSION} on stdin, a line of JSON for each.

An expression has x [2, 4, 8, 8], weights w [4, 4, 3, 3] and depthwise [4, 1, 3, 3], a bias b, all on the device, and
conv, last (channels-last), torch.
"""

from __future__ import annotations

import functools
import json
import sys
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from tests.fake_cuda import device
from tests.fake_cuda.counter import Counter

device.install()

from tests.fake_cuda.steps import CUDA, counted_calls  # noqa: E402


def count(code: str) -> dict[str, Any]:
    counter = Counter()
    with FakeTensorMode(allow_non_fake_inputs=True), counted_calls(counter):
        with CUDA:
            x, w = torch.empty(2, 4, 8, 8), torch.empty(4, 4, 3, 3)
            last = {t: t.contiguous(memory_format=torch.channels_last) for t in (x, w)}
            names = {"x": x, "w": w, "depthwise": w[:, :1].clone(), "b": torch.empty(4)}
        with counter:
            eval(code, {**names, "torch": torch, "conv": functools.partial(F.conv2d, padding=1), "last": last.get})
    parts = counter.parts.values()
    totals = {field: sum(getattr(part, field) for part in parts) for field in ("kernels", "layouts", "syncs", "copies")}
    return {**totals, "waits": len(device.waits)}


def main() -> int:
    for item in json.load(sys.stdin):
        device.waits.clear()
        print(json.dumps(count(item["code"])), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

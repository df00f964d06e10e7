"""Counts starts and steps, stops on a signal with a checkpoint; `fake: ...` in train.deepspeed says how it misbehaves.

The standard library alone (toolkit takes a quarter of a second to import, and the tests start dozens of these).
"""

import json
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

run = Path(sys.argv[sys.argv.index("--run") + 1])
stop = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda *_: stop.append(1))
config = (run / "config.yaml").read_text()
steps = int(re.search(r"^  steps: (\d+)$", config, re.M)[1])
fake = (re.search(r"fake: ([a-z-]+)", config) or ["", ""])[1]
with open(run / "starts", "a") as file:
    file.write(f"{os.getpid()} {os.environ.get('RANK', 'alone')}\n")
(run / "gpus").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
checkpoint = run / "checkpoint"
step = int(checkpoint.read_text()) if checkpoint.exists() else 0
state = {"phase": "training", "steps": steps, "host": socket.gethostname(), "pid": os.getpid(), "seq_per_s": 9.0}
while step < steps:
    if fake == "slow-start":  # a first step that takes for ever
        time.sleep(0.02)
        if stop:
            sys.exit(3)
        continue
    step += 1
    temporary = run / f"state.{os.getpid()}"
    temporary.write_text(json.dumps({**state, "step": step, "loss": 1 / step, "updated": time.time()}))
    temporary.rename(run / "state.json")
    print("step", step, flush=True)
    if fake == "fail":
        (run / "FAILED").write_text("the loss is NaN at step 1")
        sys.exit(4)
    if fake == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.02)
    if stop:
        checkpoint.write_text(str(step))
        (run / "checkpoints").mkdir(exist_ok=True)
        (run / "checkpoints" / "latest").write_text(f"step-{step:08}")
        sys.exit(3)
if os.environ.get("RANK", "0") == "0":  # as in real training: a rank that ended later would make scores look old
    (run / "DONE").write_text("")

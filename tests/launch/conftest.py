"""Stand-ins for train.py and evaluate.py that keep the contract of a run directory and take milliseconds a step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

TRAIN = '''\
"""Counts its starts, counts steps, stops on a signal with a checkpoint.

How it misbehaves is in `train.deepspeed.communication_data_type`, a key whose value is any text.

The standard library alone (toolkit takes a quarter of a second to import, and the tests start dozens of these).
"""
import json, os, re, signal, socket, sys, time
from pathlib import Path

run = Path(sys.argv[sys.argv.index("--run") + 1])
stop = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda *_: stop.append(1))
config = (run / "config.yaml").read_text()
steps = int(re.search(r"^  steps: (\\d+)$", config, re.M)[1])
fake = (re.search(r"communication_data_type: (\\S+)", config) or ["", ""])[1]
with open(run / "starts", "a") as file:
    file.write(f"{os.getpid()} {os.environ.get('RANK', 'alone')}\\n")
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
'''
EVALUATE = """\
import sys
from pathlib import Path

run = Path(sys.argv[sys.argv.index("--run") + 1])
if "communication_data_type: no-score" in (run / "config.yaml").read_text():
    sys.exit(5)
(run / "eval").mkdir(exist_ok=True)
for which in ("best", "last"):
    (run / "eval" / f"test-{which}.json").write_text("{}")
"""
JOB = """\
import sys
from pathlib import Path
from launch.jobs import job
from launch.cli.parser import run_script
run_script(lambda: job.main(sys.argv[1:], scripts=Path(__file__).parent))
"""
SWEEP = """\
import sys
from pathlib import Path
from launch import sweep
from launch.cli.parser import run_script

def command(run, ranks, log_files):
    flags = ["--log-files"] if log_files else []
    return [sys.executable, str(Path(__file__).parent / "fake_job.py"), str(run), "--ranks", str(ranks), *flags]

run_script(lambda: sweep.main(sys.argv[1:], command=command))
"""


def as_from_a_terminal() -> None:
    """Tests run under nohup or in a shell's background inherit ignored signals, and would hand them on."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@dataclass(frozen=True)
class Fakes:
    """The scripts, and a folder to run them in."""

    folder: Path

    @property
    def scripts(self) -> Path:
        return self.folder / "scripts"

    def sweep_file(self, text: str, name: str = "demo") -> Path:
        """A sweep file over a base whose store exists."""
        file = self.folder / f"{name}.yaml"
        file.write_text(text)
        return file

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """launch/sweep.py with the stand-ins, in a session of its own as a terminal would give it."""
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        return subprocess.Popen(
            [sys.executable, str(self.scripts / "fake_sweep.py"), *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=as_from_a_terminal,
        )

    def sweep(self, *arguments: str) -> tuple[int, str]:
        """The same, waited for: (exit code, output)."""
        with self.start(*arguments) as process:
            output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def runs(self, sweep: str = "demo") -> list[Path]:
        return sorted(path.parent for path in (self.folder / "runs" / sweep).glob("*/config.yaml"))


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    made = Fakes(tmp_path)
    made.scripts.mkdir()
    for name, text in (
        ("train.py", TRAIN),
        ("evaluate.py", EVALUATE),
        ("fake_job.py", JOB),
        ("fake_sweep.py", SWEEP),
    ):
        (made.scripts / name).write_text(text)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.json").write_text("{}")
    (tmp_path / "base.yaml").write_text("model: {name: modernn}\ndata: {store: store}\ntrain: {steps: 3}\n")
    return made

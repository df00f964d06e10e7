"""The real training on a real Slurm: a sweep to its report, several nodes, a requeue."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.support.devcluster import DevCluster
from tests.support.process import ROOT, eventually
from tests.support.training_faults import difference
from toolkit.rundir import RunDir
from toolkit.rundir.events import read_starts

MODERNN = "  - {model: {name: modernn, layers: 2, hidden: 8, slots: 2, patch: 4}}\n"
SWEEP = f"""\
base: base.yaml
seeds: 2
list:
{MODERNN}  - {{model: {{name: convlstm, layers: 2, hidden: 8, patch: 4}}}}
"""
SLURM = ("slurm", "--profile", "devcluster")
BASE = """\
data: {store: store, context: 4, horizon: 4}
train:
  {steps: 60, batch: 4, lr: 3.0e-3, validate_every: 30, checkpoint: {every: 60}, log_every: 1, images: 1, device: cpu}
"""


@dataclass(frozen=True)
class Trained:
    """A folder with a store and a sweep that was run, and the copy of the checkout that submitted it."""

    cluster: DevCluster
    folder: Path

    def sweep(self, file: str, *options: object, cluster: tuple[str, ...] = SLURM) -> str:
        """Submit and return what it says."""
        script = [sys.executable, self.folder / "checkout" / "launch" / "sweep.py", self.folder / file]
        report = [] if file == "demo.yaml" or cluster != SLURM else ["--no-report"]
        path = f"PYTHONPATH={self.folder / 'checkout'}"
        return self.cluster.run("env", "-C", self.folder, path, *script, "--cluster", *cluster, *report, *options)

    def runs(self, sweep: str) -> list[RunDir]:
        return [RunDir(file.parent) for file in sorted(self.folder.glob(f"runs/{sweep}/*/config.yaml"))]

    def wait(self) -> None:
        eventually(lambda: not self.cluster.queue(), 240)


@pytest.fixture(scope="module")
def trained(cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """Two models x two seeds. While they wait in the queue, the code that they were submitted with breaks."""
    folder = tmp_path_factory.mktemp("trained")
    convert = [sys.executable, "-m", "shards", "convert", "moving-mnist", str(folder / "store")]
    digits = Path(os.environ.get("MODERNN_TEST_DATA", ROOT.parent / "shared" / "data")) / "mnist"
    convert += ["--digits", str(digits)] if digits.is_dir() else []  # else scikit-learn's, real ones too
    options = ["--train", "7", "--val", "2", "--test", "3", "--modes", "1,2", "--size", "16", "--length", "8"]
    subprocess.run([*convert, *options], check=True, cwd=ROOT, capture_output=True)
    (folder / "base.yaml").write_text(BASE)
    (folder / "demo.yaml").write_text(SWEEP)
    (folder / "held.yaml").write_text("cpus_per_task: 1\nenv: {OMP_NUM_THREADS: 1}\nsbatch: {hold: true}\n")
    for name in ("launch", "toolkit", "shards", "configs", "slurm"):
        shutil.copytree(ROOT / name, folder / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.py", folder / "checkout")  # by this it is a checkout: profiles are looked for in slurm/
    made = Trained(cluster, folder)
    made.sweep("demo.yaml", "--profile", folder / "held.yaml", "--jobs", 2)
    edited = folder / "checkout" / "toolkit" / "unroll.py"
    original = edited.read_text()
    edited.write_text("raise RuntimeError('this edit came after the submission')\n" + original)
    cluster.run("scontrol", "release", *{name.partition("_")[0] for name in cluster.queue()})
    made.wait()
    edited.write_text(original)
    yield made
    cluster.run("scancel", "--state=PENDING", f"--user={os.getuid()}")


def losses(run: RunDir) -> list[float]:
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_a_sweep_ends_done_with_the_code_it_was_submitted_with(trained: Trained) -> None:
    runs = trained.runs("demo")
    assert [run.failure() for run in runs] == [None] * 4
    assert all(run.done for run in runs)
    assert all(len(run.scores()) == 2 for run in runs)
    # Nobody asked for it: a job that waited for the others made it.
    assert (trained.folder / "runs" / "demo" / "report" / "index.html").stat().st_size > 10_000
    assert "4 of 4 done, nothing to do" in trained.sweep("demo.yaml")


def test_two_nodes_of_two_ranks_train_as_four_ranks_of_one_machine_and_as_one_process(trained: Trained) -> None:
    (trained.folder / "wide.yaml").write_text(f"base: base.yaml\nseeds: [1]\nlist:\n{MODERNN}")
    trained.sweep("wide.yaml", "--nodes", 2, "--gpus-per-node", 2)
    trained.wait()
    (run,) = trained.runs("wide")
    assert run.done, run.failure()
    trained.sweep("wide.yaml", "--ranks", 4, "--runs", "here", cluster=("local",))
    (here,) = (RunDir(file.parent) for file in trained.folder.glob("here/wide/*/config.yaml"))
    assert difference(here.path, run.path, 60) is None  # to the last bit
    (alone,) = [other for other in trained.runs("demo") if other.config().hash8() == run.config().hash8()]
    assert losses(run)[:6] == pytest.approx(losses(alone)[:6], rel=1e-5)
    assert losses(run) == pytest.approx(losses(alone), rel=1e-2)  # sums in another order drift apart with time
    log = next(run.logs.glob("*_0_0.log")).read_text()
    assert "batch 4 = 4 ranks x 1 micro-batch x 1 sequence" in log
    assert {path.name.split("_")[-1] for path in run.logs.glob("*_0_[0-3].log")} == {"0.log", "1.log", "2.log", "3.log"}


def test_a_requeued_run_is_the_undisturbed_one_bit_for_bit(trained: Trained) -> None:
    (trained.folder / "twice.yaml").write_text(f"base: base.yaml\nseeds: [2]\nlist:\n{MODERNN}")
    trained.sweep("twice.yaml")
    (run,) = trained.runs("twice")
    eventually(lambda: run.metrics_file.exists() and losses(run), 120)
    (job,) = trained.cluster.queue()
    trained.cluster.run("scancel", "--signal=USR2", job)
    trained.wait()
    assert run.done, run.failure()
    assert run.read_state()["restarts"] == 1
    one, two = read_starts(run.path)
    assert (one.job, two.job, two.step) == (f"{job}_0", f"{job}_1", two.last_step)
    assert one.submitted is not None
    assert one.submitted <= one.began <= one.ready <= two.began
    assert len(list(run.logs.glob(f"{job}_[01]_batch.log"))) == 2
    (whole,) = [other for other in trained.runs("demo") if other.config().hash8() == run.config().hash8()]
    assert losses(run) == losses(whole)
    a, b = (torch.load(r.checkpoints / "step-00000060/weights.pt", weights_only=True) for r in (run, whole))
    assert all(torch.equal(a[name], b[name]) for name in a)

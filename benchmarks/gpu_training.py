"""Parts of benchmarks/gpu.py that train by the toolkit's own command, on a store of moving digits."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.gpu_rates import FORMS, settings_of
from benchmarks.gpu_rows import Job, Row, Rows, read_rows
from benchmarks.report import ROOT

CONFIG = "configs/mixed-moving-mnist.yaml"
STEPS = 80_000  # of the paper
TINY = ("model.layers=1", "model.hidden=8", "data.context=4", "data.horizon=4")
STOPPED = 3  # the exit code of a training that can go on
TO_BEGIN_S = 40.0  # what the last part needs at least to get anywhere on a GPU
TO_END_S = 25.0  # what a stop with a checkpoint, and the checkpoint's export, may take
FAILED = "convert.failed"  # is there when the conversion has failed
CHECKPOINT = "gpu-modernn-fp16.safetensors"


def convert(work: Path, cuda: bool) -> subprocess.Popen[bytes]:
    """Begin to make the store, on the CPU."""
    counts = (
        {"size": 64, "train": 3000, "val": 64, "test": 8} if cuda else {"size": 32, "train": 24, "val": 8, "test": 4}
    )
    options = [word for name, value in counts.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "shards", "convert", "moving-mnist", str(store(work)), *options, "--workers", "8"]
    with open(work / "convert.log", "wb") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def store(work: Path) -> Path:
    return work / "digits"


def wait_for_store(job: Job) -> None:
    """Wait until the store is there; it appears whole.

    Raises:
        RuntimeError: its conversion failed, or takes too long.
    """
    while not (store(job.work) / "manifest.json").exists():
        if job.left < 5 or (job.work / FAILED).exists():
            said = (job.work / "convert.log").read_text(errors="replace")[-1500:]
            raise RuntimeError(f"the store of moving digits isn't there; its conversion said: {said}")
        time.sleep(0.2)


class Training:
    """One run directory, trained by launch/train.py in a process of its own."""

    def __init__(self, job: Job, name: str, settings: Iterable[str]) -> None:
        self.job, self.folder = job, job.work / "runs" / name
        self.folder.parent.mkdir(exist_ok=True)
        self.log = self.folder.with_suffix(".log")
        given = [f"data.store={store(job.work)}", *settings, *(() if job.cuda else TINY)]
        self.settings = [word for setting in given for word in ("--set", setting)]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """From the first step, or from where it was stopped."""
        fresh = ["--config", CONFIG, "--out", str(self.folder), *self.settings]
        options = ["--run", str(self.folder)] if (self.folder / "config.yaml").exists() else fresh
        with open(self.log, "ab") as log:
            command = [sys.executable, str(ROOT / "launch" / "train.py"), *options]
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def wait(self, seconds: float, lines: int | None = None) -> int:
        """The exit code; asked to stop after so many seconds, or when it has logged so many steps."""
        assert self.process is not None
        ends = time.time() + seconds
        while self.process.poll() is None and time.time() < ends:
            if lines is not None and len(self.logged()) >= lines:
                break
            time.sleep(0.1)
        return self.stop(min(20, max(3, self.job.left - 3)))

    def stop(self, patience: float) -> int:
        """Ask it to stop, if it runs; kill it if it doesn't."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
            self.process.kill()
        return self.process.wait()

    def logged(self, kind: str = "train") -> list[Row]:
        """Its lines of metrics."""
        rows = []
        with suppress(OSError):
            for line in (self.folder / "metrics.jsonl").read_text().splitlines():
                with suppress(ValueError):
                    rows.append(json.loads(line))
        return [row for row in rows if row["kind"] == kind]

    def said(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-2500:]

    def check(self, code: int, expected: int = 0) -> None:
        """
        Raises:
            RuntimeError: it ended otherwise.
        """
        if code != expected:
            raise RuntimeError(f"launch/train.py ended with {code} instead of {expected}: {self.said()}")


def short(job: Job, steps: int, every: int) -> list[str]:
    """Settings of a run that only trains."""
    base = [f"train.steps={steps}", f"train.log_every={every}", "train.validate_every=1000000", "train.images=0"]
    return [*base, f"train.checkpoint.every={steps // 2}", "train.validate_samples=8"]


def compared(losses: Sequence[float], others: Sequence[float]) -> Row:
    """How two sequences of losses differ."""
    pairs = list(zip(losses, others, strict=False))
    differing = [place for place, (a, b) in enumerate(pairs) if a != b]
    return {
        "compared": len(pairs),
        "equal": list(losses) == list(others),
        "first_difference": differing[0] if differing else None,
        "greatest": max((abs(a / b - 1) for a, b in pairs), default=None),
    }


def resume(job: Job) -> None:
    """Is a run that was stopped and resumed the uninterrupted one, and a second one the first?

    Three at a time, beside other parts: of a quarter of the memory of the paper's.
    """
    rows = Rows(job)
    wait_for_store(job)
    steps = 24 if job.cuda else 6
    exact = ["train.deterministic=true"]
    settings = [*short(job, steps, 1), "model.hidden=32", "train.batch=4", *exact]
    whole, again, halved = (Training(job, name, settings) for name in ("whole", "again", "halved"))
    for training in (whole, again, halved):
        training.start()
    with rows.trying(what="stopped and resumed", settings=" ".join(exact)) as row:
        first = halved.wait(job.left - 5, lines=steps // 2)
        row["first_code"] = first
        if first == STOPPED:
            row["stopped_at"] = len(halved.logged())
            halved.start()
            halved.check(halved.wait(job.left - 5))
        whole.check(whole.wait(job.left - 5))
        row |= compared(*([line["loss"] for line in one.logged()] for one in (halved, whole)))
    with rows.trying(what="trained twice", settings=" ".join(exact)) as row:
        again.check(again.wait(job.left - 5))
        row |= compared(*([line["loss"] for line in one.logged()] for one in (again, whole)))


def training(job: Job) -> None:
    """So many steps in bf16 and fp32, with and without a graph: milliseconds, waiting, losses beside the graph's."""
    rows = Rows(job)
    wait_for_store(job)
    steps, every = (40, 2) if job.cuda else (6, 1)
    precisions = ("bf16", "fp32") if job.cuda else ("fp32",)
    losses: dict[tuple[str, str], list[float]] = {}
    for case in rows.each({"precision": p, "graph": g} for p in precisions for g in ("on", "off")):
        settings = [
            *short(job, steps, every),
            f"train.precision={case['precision']}",
            f"data.num_workers={2 * job.cuda}",
        ]
        settings.append(setting("graph", case["graph"]))
        with rows.trying(**case) as row:
            one = Training(job, f"{case['precision']}-{case['graph']}", settings)
            one.start()
            row["code"] = one.wait(job.left - 12)
            if row["code"] != STOPPED:  # out of time: what there is counts
                one.check(row["code"])
            found = one.logged()
            row |= pace(found[len(found) // 2 :]) | {"first": found[0]["loss"], "last": found[-1]["loss"]}
            losses[case["precision"], case["graph"]] = [line["loss"] for line in found]
            row |= compared(losses[case["precision"], case["graph"]], losses.get((case["precision"], "on"), []))


def pace(lines: Sequence[Row]) -> Row:
    """Milliseconds of a step between the first and the last of a run's lines, and the share of waiting for data."""
    if len(lines) < 2:
        raise RuntimeError(f"{len(lines)} lines of metrics: too few for a rate")
    steps = lines[-1]["step"] - lines[0]["step"]
    seconds = (lines[-1]["time"] - lines[0]["time"]) / steps
    return {"ms": 1e3 * seconds, "hours_of_80000": seconds * STEPS / 3600, "data_wait": lines[-1]["data_wait"]}


def fastest(job: Job) -> tuple[str, list[str]]:
    """The form of our ModeRNN that the part `rates` found the fastest at the paper's batch, and its settings."""
    rows = [row for row in read_rows(job.file.with_name("rates.jsonl")) if "ms" in row]
    rows = [row for row in rows if row["model"] == "modernn" and row["form"] in FORMS[1:] and row["batch"] in (8, 2)]
    if not rows:
        return "as the config says", []
    best = min(rows, key=lambda row: row["ms"])
    chosen = settings_of(best["form"], best["precision"])
    return f"{best['form']}, {best['precision']}", [setting(k, v) for k, v in chosen.items()]


def setting(key: str, value: object) -> str:
    """What `--set` takes; on and off are in quotes, for they are booleans in YAML."""
    return f"train.{key}={json.dumps(value)}"


def run(job: Job) -> None:
    """The paper's own run with the time that is left: its curve, its checkpoint in fp16."""
    from toolkit.checkpoint import checkpoint  # noqa: F401  imported while there is time

    rows = Rows(job)
    wait_for_store(job)
    if job.left < (TO_BEGIN_S if job.cuda else 0) + TO_END_S:
        rows.add(skipped=f"{job.left:.0f} s left: too few to begin and to end")
        return
    form, settings = fastest(job)
    every = 100 if job.cuda else 2
    base = [f"train.log_every={every // 2}", f"train.validate_every={every * 5 // 2}", "train.checkpoint.every=1000000"]
    one = Training(job, "paper", [*base, "train.validate_samples=96", f"data.num_workers={4 * job.cuda}", *settings])
    one.start()
    kept = job.out / "gpu-run.jsonl"
    told, began = 0, time.time()
    with rows.trying(what="the paper's run", form=form) as row:
        assert one.process is not None
        while one.process.poll() is None and job.left > TO_END_S:
            time.sleep(0.5)
            told = _tell(one, rows, told, began, kept)
        code = one.stop(job.left - 8)
        _tell(one, rows, told, began, kept)
        found = one.logged()
        if len(found) > 2:  # however it has ended
            row |= pace(found[len(found) // 4 :]) | {"steps": found[-1]["step"], "loss": found[-1]["loss"]}
        one.check(code, STOPPED)
    with rows.trying(what="its checkpoint, fp16") as row:
        row |= halve(one.folder, job.out / CHECKPOINT)


def _tell(one: Training, rows: Rows, told: int, began: float, kept: Path) -> int:
    """A row for each validation that is new, and a copy of the metrics; returns how many validations there are."""
    with suppress(OSError):
        shutil.copyfile(one.folder / "metrics.jsonl", kept)
    found = one.logged("val")
    for line in found[told:]:
        rows.add(what="validation", step=line["step"], after_s=line["time"] - began, mse=line["mse"])
    return len(found)


def halve(folder: Path, file: Path) -> Row:
    """Write the weights of a run's last checkpoint in fp16, with the step and the config beside them."""
    import torch
    from safetensors.torch import save_file

    from toolkit.checkpoint.weights import load_model
    from toolkit.rundir import RunDir

    run_dir = RunDir(folder)
    model, step = load_model(run_dir, "last", torch.device("cpu"))
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, file, metadata={"step": str(step), "config": run_dir.config().to_yaml()})
    return {"step": step, "file": file.name, "mb": file.stat().st_size / 1e6}

"""Everything that only a GPU can tell, in a time that is given: `make gpu`.

    python benchmarks/gpu.py --seconds 480 --out FOLDER       all parts, what matters most first
    python benchmarks/gpu.py --parts environment,rates --limit rates=300
    python benchmarks/gpu.py --device cpu --seconds 120       tiny sizes, to see that it works
    python benchmarks/gpu.py --predrnn-pytorch CLONE          its PredRNN beside ours on the same card

Each part is a process of its own with a limit of its own, and none runs past the end. Every row is on the disk before
the next case begins; a failure is a row with its traceback, and the next case goes on, in a new process if need be.
Parts that measure no time run side by side. Without --limit a part may take a share of --seconds, and the last one
what is left.

In FOLDER: gpu-results.json (all rows), gpu-results.md (the same as tables), gpu.log (what the parts printed),
gpu-run.jsonl and gpu-modernn-fp16.safetensors (the last part's metrics and weights). The end of what is printed is a
summary. Exit code 1: a part, a case or a test failed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # not this folder, whose shards.py is not the package

from benchmarks import gpu_checks, gpu_convolutions, gpu_rates, gpu_training  # noqa: E402
from benchmarks.gpu_rows import LOST, Job, Row, Rows, read_rows  # noqa: E402
from benchmarks.report import asked, device, table  # noqa: E402

STARTS = 4  # of a part
HIDDEN = ("part", "trace", "case", "top")  # in tables


@dataclass(frozen=True)
class Part:
    """What is found out in one process.

    Attributes:
        share: of --seconds, at most.
        beside: measures no time, and may run beside the part before it.
        case_s: seconds after which a case counts as hanging and is ended; the part goes on with the next one.
    """

    work: Callable[[Job], None]
    share: float
    beside: bool = False
    case_s: float = math.inf


PARTS = {
    "environment": Part(gpu_checks.environment, 0.12),
    "tests": Part(gpu_checks.tests, 0.25),
    "numbers": Part(gpu_checks.numbers, 0.25, beside=True, case_s=60),
    "resume": Part(gpu_training.resume, 0.25, beside=True),
    "compilation": Part(gpu_rates.compilation, 0.25, beside=True),
    "training": Part(gpu_training.training, 0.25),
    "rates": Part(gpu_rates.rates, 0.4, case_s=120),
    "convolutions": Part(gpu_convolutions.convolutions, 0.1, case_s=30),
    "memory": Part(gpu_rates.memory, 0.1, case_s=60),
    "run": Part(gpu_training.run, 1.0),
}


class Child:
    """A part in its process, started again while cases are left."""

    def __init__(self, job: Job, limit: float, log: Any) -> None:
        self.job, self.log = replace(job, ends=min(job.ends, time.time() + limit)), log
        self.began, self.starts, self.code = time.time(), 0, None
        self._case: tuple[Any, float] = (None, self.began)
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        told = json.dumps(
            {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self.job).items()}
        )
        here = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
        environment = {**os.environ, "PYTHONPATH": here, "PYTHONUNBUFFERED": "1"}
        if not self.job.cuda:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        command = [sys.executable, __file__, "--child", told]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=self.log, stderr=self.log, start_new_session=True
        )

    def running(self) -> bool:
        """Look after it: False once it has ended for good."""
        if self.code is not None:
            return False
        code = self.process.poll()
        late = self.job.left < 0
        if code is None and (late or self._hangs()):
            self.kill()
            code = self.process.wait()
        if code is None:
            return True
        within = any(row.get("error") == "not ended" for row in read_rows(self.job.file))
        if late or not (within or code == LOST) or self.starts == STARTS or self.job.left < 10:
            self.code = code
            return False
        self.process = self._start()
        return True

    def _hangs(self) -> bool:
        """Whether its case takes too long."""
        rows = read_rows(self.job.file)
        case = (len(rows), rows[-1].get("case") if rows else None)
        if case != self._case[0] or not rows or rows[-1].get("error") != "not ended":
            self._case = (case, time.time())
        return time.time() - self._case[1] > PARTS[self.job.part].case_s

    def kill(self) -> None:
        """End it and all that it has started: asked first, so that a training can leave."""
        for number, patience in ((signal.SIGTERM, 4), (signal.SIGKILL, 4)):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)


class Kit:
    """The parts one after the other, and what they found."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.began = options, time.time()
        self.ends = self.began + options.seconds - 3  # the results are written at the end
        self.out, self.work = Path(options.out).resolve(), work
        self.out.mkdir(parents=True, exist_ok=True)
        self.cuda = options.device == "cuda"
        self.name = device(accelerator=self.cuda)
        self.told: dict[str, int] = {}
        self.facts: dict[str, Row] = {}
        self.children: list[Child] = []
        self.store: subprocess.Popen[bytes] | None = None
        self.log = open(self.out / "gpu.log", "wb")  # noqa: SIM115  closed with the process

    def all(self) -> None:
        """Run every part that was asked for."""
        if any(PARTS[name].work.__module__ == gpu_training.__name__ for name in self.options.parts):
            self.store = gpu_training.convert(self.work, self.cuda)
        try:
            for group in groups(self.options.parts):
                self.together(group)
        finally:
            for child in self.children:
                child.kill()
                self.facts[child.job.part] = {"error": "ended before its time"}
            if self.store is not None and self.store.poll() is None:
                self.store.terminate()
            self.tell()

    def together(self, group: Sequence[str]) -> None:
        """Some parts side by side, until the last has ended."""
        self.children = []
        for name in group:
            limit = self.options.limits.get(name, PARTS[name].share * self.options.seconds)
            if self.ends - time.time() < 5:
                self.facts[name] = {"error": "no time left"}
                continue
            rows, options = self.work / f"{name}.jsonl", self.options
            job = Job(name, self.cuda, rows, self.work, self.out, self.ends, options.peer, options.tests)
            self.children.append(Child(job, limit, self.log))
        while self.children:
            time.sleep(0.25)
            if self.store is not None and self.store.poll():
                (self.work / gpu_training.FAILED).touch()
            for child in list(self.children):
                if not child.running():
                    took = round(time.time() - child.began, 1)
                    self.facts[child.job.part] = {"code": child.code, "seconds": took, "starts": child.starts}
                    print(f"== {child.job.part}: {took:.0f} s, code {child.code}; {self.ends - time.time():.0f} s left")
                    self.children.remove(child)
            self.tell()

    def rows(self) -> list[Row]:
        """All rows so far, in order of the parts."""
        found = {name: read_rows(self.work / f"{name}.jsonl") for name in PARTS}
        found["rates"] = gpu_rates.with_ratios(found["rates"])
        return [{"part": name, **row} for name in PARTS for row in found[name]]

    def tell(self) -> None:
        """Print what is new, and write it."""
        new = False
        for name in PARTS:
            rows = [row for row in read_rows(self.work / f"{name}.jsonl") if row.get("error") != "not ended"]
            for row in rows[self.told.get(name, 0) :]:
                print(f"{name}: " + "  ".join(f"{k} {shown(v)}" for k, v in row.items() if k not in HIDDEN), flush=True)
                new = True
            self.told[name] = len(rows)
        if new:
            self.write()

    def write(self) -> None:
        """gpu-results.json, whole at every moment."""
        seconds = round(time.time() - self.began, 1)
        facts = {"device": self.name, "command": asked(), "seconds": seconds, "parts": self.facts, "rows": self.rows()}
        part = self.out / "gpu-results.part"
        part.write_text(json.dumps(facts, indent=1) + "\n")
        part.replace(self.out / "gpu-results.json")

    def end(self) -> int:
        """The page and the summary; the exit code."""
        self.write()
        rows = self.rows()
        head = f"# GPU: {time.strftime('%Y-%m-%d', time.gmtime())}, {self.name}\n\n`{asked()}`\n"
        sections = [f"## {name}\n\n{section(rows, name)}" for name in PARTS if any(r["part"] == name for r in rows)]
        (self.out / "gpu-results.md").write_text("\n\n".join([head, *sections]) + "\n")
        print(summary(rows, self.facts))
        return int(any("error" in row for row in rows) or any(fact.get("code") for fact in self.facts.values()))


def groups(names: Sequence[str]) -> list[list[str]]:
    """The parts in their order, those that measure no time with the one before."""
    found: list[list[str]] = []
    for name in (name for name in PARTS if name in names):
        if PARTS[name].beside and found and found[-1][0] == "tests":
            found[-1].append(name)
        else:
            found.append([name])
    return found


def shown(value: Any) -> str:
    """A value in a table."""
    if isinstance(value, bool) or not isinstance(value, float):
        return "-" if value is None else str(value).replace("|", "/").replace("\n", " ")
    return f"{value:.4g}"


def alike(rows: Sequence[Row], part: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """The rows of a part by the columns that they have: heads and cells, one table for each."""
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for row in rows:
        if row["part"] == part:
            keys = tuple(key for key in row if key not in HIDDEN)
            tables.setdefault(keys, []).append([shown(row[key])[:160] for key in keys])
    for keys, cells in tables.items():
        yield list(keys), cells


def section(rows: Sequence[Row], part: str) -> str:
    """A part's tables in Markdown."""
    return "\n\n".join(table(head, cells) for head, cells in alike(rows, part))


def summary(rows: Sequence[Row], facts: dict[str, Row]) -> str:
    """All that matters, in text: what passed isn't told one by one."""
    brief = ("seconds", "warm_s", "calls", "spread", "sequences_per_s", "trace", "compared", "file")
    lines = ["", "=" * 30 + " summary"]
    for part in PARTS:
        own = [{k: v for k, v in row.items() if k not in brief} for row in rows if row["part"] == part]
        own = [row for row in own if row.get("outcome") not in ("passed", "skipped")]
        lines += [f"-- {part} {facts[part]}"] if part in facts else []
        for head, cells in alike(own, part):
            lines += [" ".join(head), *("  " + " ".join(c.replace(" ", "_") for c in line) for line in cells)]
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """The command line; checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=480, help="for all of it (default 480)")
    parser.add_argument("--out", default="runs/gpu", metavar="FOLDER", help="(default runs/gpu)")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}; they keep this order")
    parser.add_argument(
        "--limit", action="append", default=[], metavar="PART=SECONDS", help="of one part; may be given several times"
    )
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument(
        "--predrnn-pytorch", dest="peer", metavar="CLONE", help="a clone of github.com/thuml/predrnn-pytorch"
    )
    parser.add_argument("--tests", default="", metavar="WORDS", help="only these tests, as pytest's -k takes them")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    limits = [limit.partition("=") for limit in options.limit]
    for name in [*options.parts, *(limit[0] for limit in limits)]:
        if name not in PARTS:
            parser.error(f"no part {name!r}; there are {', '.join(PARTS)}")
    try:
        options.limits = {name: float(seconds) for name, _, seconds in limits}
    except ValueError:
        parser.error(f"--limit {' '.join(options.limit)}: write PART=SECONDS")
    options.peer = str(Path(options.peer).resolve()) if options.peer else None
    return options


def run_child(text: str) -> None:
    """A part, in this process."""
    told = json.loads(text)
    job = Job(**{**told, **{key: Path(told[key]) for key in ("file", "work", "out")}})
    try:
        PARTS[job.part].work(job)
    except Exception as error:
        Rows(job).add(error=f"{type(error).__name__}: {error}"[:600], trace=traceback.format_exc()[-3000:])
        raise
    from toolkit.distributed.world import leave_group  # imports torch

    leave_group()


def stop(number: int, frame: object) -> NoReturn:
    """Asked to stop: the results so far are written all the same."""
    raise SystemExit(128 + number)


def main() -> int:
    options = arguments()
    if options.child:
        run_child(options.child)
        return 0
    if options.device == "auto":
        import torch

        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    signal.signal(signal.SIGTERM, stop)
    with tempfile.TemporaryDirectory(prefix="gpu-", ignore_cleanup_errors=True) as work:
        kit = Kit(options, Path(work))
        print(f"{kit.name}: {', '.join(options.parts)}; {options.seconds:.0f} s", flush=True)
        try:
            kit.all()
        finally:
            code = kit.end()
    return code


if __name__ == "__main__":
    raise SystemExit(main())

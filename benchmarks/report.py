"""What the benchmarks share: which machine this is, work in a process of its own, and a report as Markdown and JSON
beside the benchmark.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def device(accelerator: bool = False) -> str:
    """The processor's name and the number of cores that may be used; or the name of the CUDA device."""
    if accelerator:
        import torch

        return torch.cuda.get_device_name()
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) or [platform.machine()]
    return f"{names[0].strip()}, {len(os.sched_getaffinity(0))} cores"


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_child(arguments: Sequence[str], what: str, environment: Mapping[str, str] | None = None) -> Any:
    """The JSON of the last line that Python prints in a process of its own, as a peak of memory is of a process.

    Args:
        arguments: of Python.
        what: is said with the error if the process fails, which ends the benchmark.
        environment: laid over this process's.
    """
    whole = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    done = subprocess.run([sys.executable, *arguments], env=whole, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what}: ended with {done.returncode}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def asked() -> str:
    """The command as it was called, without `--out` and without the names of folders outside of the project."""
    words, given = [], iter(sys.argv[1:])
    for word in given:
        if word == "--out":
            next(given)
        elif not word.startswith("--out="):
            words.append("FOLDER" if word.startswith("/") else word)
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def write_report(
    name: str,
    title: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    facts: Mapping[str, Any],
    out: Path | None = None,
    where: str | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write NAME-DATE-DEVICE.md with one table, and .json with `facts`.

    Args:
        out: the folder; None: this one.
        where: the device's name; None: the processor's.
        notes: lines under the table.

    Returns:
        The Markdown file.
    """
    where = where or device()
    today = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    slug = re.sub(r"[^a-z0-9]+", "-", where.lower()).strip("-")
    path = (out or Path(__file__).parent) / f"{name}-{today}-{slug}.md"
    record = {"date": today, "device": where, "python": platform.python_version(), "command": asked(), **facts}
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    text = f"# {title}: {today}, {where}\n\n`{asked()}`, Python {platform.python_version()}.\n\n{table(head, rows)}\n"
    path.write_text(text + ("\n" + "\n".join(notes) + "\n" if notes else ""))
    return path

"""Damage files in every format that is read, at random, and look for anything but an error of ours.

    python benchmarks/fuzz.py --minutes 60             every target in turn, in child processes
    python benchmarks/fuzz.py --minutes 1 --only npy   one target

Targets are archives and stores (fuzz_shards.py), and configs, records, weights and results (fuzz_toolkit.py). Writes
benchmarks/fuzz-DATE.log: for every target the number of inputs, how many were taken and how many refused, the longest
time, by how much the process's memory grew, and each input that ended in another exception, took too long, asked for
too much memory or killed the process. Its bytes are in benchmarks/fuzz-DATE/, and --seed repeats it. The exit code is
1 if there is one.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import fuzz_shards, fuzz_toolkit  # noqa: E402
from benchmarks.fuzz_shards import Target  # noqa: E402
from shards import ShardError  # noqa: E402
from shards.errors import printable  # noqa: E402
from toolkit.errors import ToolkitError  # noqa: E402

TARGETS: dict[str, Target] = {**fuzz_shards.TARGETS, **fuzz_toolkit.TARGETS}
SECONDS = 20  # of the processor, for one input; ten times as long by the clock
MAKING_S = 600  # for imports and the sound files
MEMORY = 1 << 30  # bytes beyond what the process has at the start; the largest sound file has 2 MiB
ODD = (
    0,
    -1,
    1,
    255,
    256,
    1 << 31,
    1 << 40,
    1 << 62,
    10**400,
    0.5,
    -0.0,
    1e300,
    None,
    True,
    "",
    "\0",
    "\n\x1b[2J",
    "../x",
)
ODD_YAML = (
    *(
        "!!python/object/apply:os.system [ls]",
        "!!binary x",
        "2020-13-45",
        "2020-01-01",
        "&a [*a]",
        "*missing",
        "!!set {a}",
    ),
    *(
        "[" * 300,
        "{<<: 1}",
        "!!float x",
        "!!int ''",
        "0b_",
        "1_000",
        "12:30:45",
        "!!timestamp x",
        "|2",
        "!!omap [a]",
        "? a",
    ),
)
ODD_JSON: tuple[object, ...] = (*ODD, [], {}, [[]], {"a": 1}, float("nan"), float("inf"), "\ud800", "9" * 300)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return damaged bytes: flipped, overwritten with great and small numbers, cut, doubled, or random."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 12))):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(7)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice((0, 1, (1 << 8 * width) - 1, 1 << (8 * width - 1), rng.randrange(1 << 8 * width)))
            out[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + rng.randrange(1, 40)]
        elif kind == 4:
            begin = rng.randrange(len(out) + 1)
            out[at:at] = out[begin : begin + rng.randrange(1, 200)]
        elif kind == 5:
            out[at : at + 1] = rng.choice((b"9" * 30, b"-", b"(" * 200, b"[", b"{", b'"', b"\0" * 16, b"\xff" * 8))
        else:
            out[at : at + 4] = rng.randbytes(4)
    return bytes(out)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Return JSON in which some values are others, or bytes as `mutate` damages them."""
    if rng.random() < 0.2:
        return mutate(data, rng)
    lines = data.split(b"\n") if data.count(b"\n{") + data.count(b"\n[") else [data]
    place = rng.randrange(len(lines)) if len(lines) > 1 else 0
    try:
        tree = json.loads(lines[place])
    except ValueError:
        return mutate(data, rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        holder, key = _anywhere(tree, rng)
        if holder is None:
            break
        if rng.random() < 0.15 and isinstance(holder, dict):
            del holder[key]
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD_JSON))  # or later changes would change what is shared
    lines[place] = json.dumps(tree).encode()
    return b"\n".join(lines)


def mutate_yaml(data: bytes, rng: random.Random) -> bytes:
    """Return YAML in which some values are others or have tags, or bytes as `mutate` damages them."""
    if rng.random() < 0.4:
        return mutate(data, rng)
    tree = yaml.safe_load(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        holder, key = _anywhere(tree, rng)
        if holder is None:
            break
        holder[key] = copy.deepcopy(rng.choice(ODD_JSON))
    text = yaml.safe_dump(tree, sort_keys=False)
    if rng.random() < 0.3:
        lines = text.splitlines()
        place = rng.randrange(len(lines))
        lines[place] = lines[place].partition(":")[0] + ": " + rng.choice(ODD_YAML)
        text = "\n".join(lines)
    return text.encode(errors="surrogateescape") if "\ud800" not in text else mutate(data, rng)


def _anywhere(tree: Any, rng: random.Random) -> tuple[Any, Any]:
    holder, key = None, None
    while isinstance(tree, (dict, list)) and tree:
        if holder is not None and rng.random() < 0.1:
            break
        holder, key = tree, rng.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
        tree = tree[key]
    return holder, key


@dataclass
class Case:
    """A target that stands below a folder, ready to be damaged again and again."""

    target: Target
    folder: Path
    file: Path
    sound: bytes
    manifest: bytes

    @staticmethod
    def of(name: str, folder: Path) -> Case:
        """Write the target's sound files."""
        target = TARGETS[name]
        file = target.make(folder)
        manifest = folder / "s/manifest.json"
        return Case(target, folder, file, file.read_bytes(), manifest.read_bytes() if target.reseal else b"")

    def damaged(self, rng: random.Random) -> bytes:
        """Return other contents of the file."""
        return {"json": mutate_json, "yaml": mutate_yaml, "": mutate}[self.target.text](self.sound, rng)

    def read(self, data: bytes) -> bool:
        """Read the file with these contents; returns False where that is refused. Any other exception is a finding."""
        if self.target.reseal:
            (self.folder / "s/manifest.json").write_bytes(self.manifest)
        self.file.unlink(missing_ok=True)  # not over a file that is mapped
        self.file.write_bytes(data)
        if self.target.reseal:
            fuzz_shards.reseal(self.folder / "s")
        for cached in fuzz_shards.CACHES:
            cached.cache_clear()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow warns of metadata that we don't use
                self.target.read(self.folder, self.file)
        except (ShardError, ToolkitError) as error:
            if isinstance(error, ShardError) and printable(str(error)) != str(error):
                raise AssertionError(f"control characters in {str(error)!r}") from None
            return False
        return True


def _out_of_time(signum: int, frame: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s of the processor")


def _run(name: str, seed: int, seconds: float, pipe: Any) -> None:
    """Damage and read until the time is over; what goes wrong is sent through the pipe before each input is tried."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    signal.signal(signal.SIGPROF, _out_of_time)
    taken = refused = 0
    longest = 0.0
    sys.stderr = io.StringIO()
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        try:
            case = Case.of(name, Path(folder))
        except ImportError as error:
            pipe.send(("skipped", str(error)))
            return
        assert case.read(case.sound), f"{name}: the sound file is refused"
        end = time.monotonic() + seconds
        number, before = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        while time.monotonic() < end:
            data = case.damaged(random.Random(f"{seed}:{name}:{number}"))  # noqa: S311 - no secret
            pipe.send(("input", number, data))
            begin = time.monotonic()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                if case.read(data):
                    taken += 1
                else:
                    refused += 1
            except BaseException:
                signal.setitimer(signal.ITIMER_PROF, 0)
                pipe.send(("finding", number, data, traceback.format_exc()))
            signal.setitimer(signal.ITIMER_PROF, 0)
            longest = max(longest, time.monotonic() - begin)
            number += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    pipe.send(("done", taken, refused, longest, grown))


def fuzz(name: str, seed: int, seconds: float) -> tuple[str, list[tuple[str, bytes, str]]]:
    """Fuzz one target in a process of its own; return a line for the log and findings: case, bytes, what happened."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(name, seed, seconds, theirs), daemon=True)
    process.start()
    theirs.close()
    last: tuple[int, bytes] = (0, b"")
    findings: list[tuple[str, bytes, str]] = []
    line = ""
    while True:
        try:
            message = ours.recv() if ours.poll(10 * SECONDS if last[1] else MAKING_S) else None
        except EOFError:
            break
        if message is None:
            findings.append((f"{name}-{seed}-{last[0]}", last[1], "hangs beyond signals"))
            process.kill()
            break
        if message[0] == "input":
            last = message[1:]
        elif message[0] == "skipped":
            line = f"{name:<20} skipped: {message[1]}"
        elif message[0] == "finding":
            findings.append((f"{name}-{seed}-{message[1]}", *message[2:]))
        else:
            line = f"{name:<20}{message[1] + message[2]:>9} inputs{message[1]:>9} taken{message[2]:>9} refused"
            line += f"{message[3]:>8.2f} s longest{message[4]:>6} MiB more"
    process.join()
    if not line and process.exitcode:
        findings.append((f"{name}-{seed}-{last[0]}", last[1], f"the process ended with {process.exitcode}"))
    return line or f"{name:<20} ended early", findings


def main() -> int:
    """Fuzz the targets and write the log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="in all (default: %(default)s)")
    parser.add_argument("--only", choices=sorted(TARGETS), action="append", help="a target; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks", help="for the log (default: benchmarks)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    names = args.only or list(TARGETS)
    stem = f"fuzz-{datetime.now(timezone.utc):%Y-%m-%d}"
    lines, bad = [], 0
    for name in names:
        line, findings = fuzz(name, args.seed, args.minutes * 60 / len(names))
        lines.append(f"{line}{len(findings):>5} findings")
        print(lines[-1], flush=True)
        for label, data, what in findings:
            bad += 1
            folder = args.folder / stem
            folder.mkdir(exist_ok=True)
            (folder / label).write_bytes(data)
            lines.append(f"  {label}: {what.strip().splitlines()[-1]}")
            print(what, file=sys.stderr)
    header = f"python benchmarks/fuzz.py --minutes {args.minutes:g} --seed {args.seed}, {os.cpu_count()} cores"
    (args.folder / f"{stem}.log").write_text("\n".join([header, "", *lines, "", f"{bad} findings in all"]) + "\n")
    if not bad:
        shutil.rmtree(args.folder / stem, ignore_errors=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""Every kind of damage that a small file of a run directory can have, and the files that can have it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

FILES = (
    "state.json",
    "metrics.jsonl",
    "events.jsonl",
    "starts.jsonl",
    "restarts.tsv",
    "job.lock",
    "env.json",
    "heartbeat/rank-0.json",
    "checkpoints/latest",
    "checkpoints/best",
    "DONE",
    "FAILED",
)
RECORDS = tuple(name for name in FILES if name not in ("DONE", "FAILED"))  # whose being there says nothing


def _clear(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _text(data: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        _clear(path)
        path.write_bytes(data)

    return damage


def _half(path: Path) -> None:
    data = path.read_bytes() if path.is_file() else b'{"time": "2026-11-26T18:05:12Z", "event": "start"}'
    _text(data[: len(data) // 2])(path)


def _folder(path: Path) -> None:
    _clear(path)
    path.mkdir()
    (path / "something").write_text("of somebody")


def _pipe(path: Path) -> None:
    _clear(path)
    os.mkfifo(path)


WRONG = b'{"step": "x", "steps": [], "updated": {}, "pid": "y", "val": 7, "host": 1, "seq_per_s": 1e999, "job": 2.5}'
DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": _text(b""),
    "half": _half,
    "garbage": _text(bytes(range(256)) * 4 + b"\n\xff\n{\n"),
    "5": _text(b"5"),
    "null": _text(b"null\n"),
    "a list": _text(b'[{"step": 1}]\n'),
    "deep": _text(b"[" * 100_000),
    "wrong types": _text(WRONG + b"\n"),
    "a folder": _folder,
    "a pipe": _pipe,
    "a link to nothing": lambda path: (_clear(path), path.symlink_to("nowhere"))[0],
    "absent": _clear,
}

"""A conversion in a process of its own that ends at a chosen point as if the machine had failed.

    python -m tests.support.kill_points OUTPUT FORMAT WORKERS POINT COUNT

POINT is one of POINTS; at its COUNT-th time the process kills itself with SIGKILL. With POINT "never" it finishes,
after COUNT x 20 ms for each event.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import shards.convert
import shards.partial
import shards.writer
from tests.support.clips import Clips

POINTS = {
    "a shard is written": (shards.writer.HashedFile, "__exit__"),
    "a shard is in its place": (shards.writer, "record"),
    "all shards are written": (shards.convert, "_split_info"),
    "the store is put in place": (shards.convert, "put_in_place"),
    "files are flushed": (shards.partial, "flush"),
    "the store is renamed": (shards.partial, "_flush_parent"),
}
SHARD_MB = 0.0015  # a handful of events


@dataclass(frozen=True)
class SlowClips(Clips):
    pause: float = 0.0

    def read(self, event):
        time.sleep(self.pause)
        return super().read(event)


def source(pause: float = 0.0) -> SlowClips:
    return SlowClips(lengths={"train": (5, 7, 5, 4) * 6, "test": (3, 5)}, pause=pause)


def run(output: Path, format: str, workers: int, pause: float = 0.0) -> None:
    shards.convert.convert(
        source(pause), output, format=format, arguments={"source": "clips"}, shard_mb=SHARD_MB, workers=workers
    )


def main() -> None:
    output, format, workers, point, count = sys.argv[1:]
    if point == "never":
        run(Path(output), format, int(workers), pause=0.02 * int(count))
        return
    owner, name = POINTS[point]
    original, calls = getattr(owner, name), 0

    def deadly(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, deadly)
    run(Path(output), format, int(workers))


if __name__ == "__main__":
    main()

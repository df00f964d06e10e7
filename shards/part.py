"""One job's share of a store's shards: `python -m shards.part JOBS SHA256 N`, which the jobs of a cluster run.

JOBS is the folder that shards/cluster.py left in the partial folder, with a pickle of the work; SHA256 is that of the
pickle, and nothing else is unpickled, for a pickle is a program; N is the job's number. What went wrong is written to
`JOBS/N.error`: exit code and message.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shards.errors import ShardError, UsageError
from shards.progress import Progress
from shards.workers import run_jobs

if TYPE_CHECKING:
    from shards.sources.base import Source
    from shards.writer import ShardJob, StoreWriter

WORK = "work.pkl"


def main(folder: Path, sha256: str, number: int) -> int:
    """Write the shards of part `number`; returns the exit code."""
    errors = folder / f"{number}.error"
    errors.unlink(missing_ok=True)
    try:
        writer, source, parts, workers = _work(folder / WORK, sha256)
        part = parts[number]
        run_jobs(writer, source, part, workers, Progress(sum(job.last - job.first for job in part)))
    except (ShardError, OSError) as error:
        code = error.exit_code if isinstance(error, ShardError) else 1
        temporary = errors.with_suffix(".tmp")
        temporary.write_text(json.dumps({"code": code, "message": str(error)}), encoding="utf-8")
        temporary.replace(errors)
        print(f"error: {error}", file=sys.stderr)
        return code
    return 0


def _work(file: Path, sha256: str) -> tuple[StoreWriter, Source, Sequence[Sequence[ShardJob]], int]:
    """What the call that submitted this job has left. Raises UsageError, and unpickles nothing, for another's."""
    data = file.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise UsageError(
            f"{file}: has the SHA-256 {found[:12]}..., the call that submitted this job wrote {sha256[:12]}...: it was "
            "replaced, and is not run; run the same conversion again, where nobody else may write"
        )
    work: tuple[StoreWriter, Source, Sequence[Sequence[ShardJob]], int] = pickle.loads(data)  # noqa: S301
    return work


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))

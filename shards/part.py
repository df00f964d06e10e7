"""One job's share of a store's shards: `python -m shards.part JOBS SHA256 MODULE N`, which the jobs of a cluster run.

JOBS is the folder that shards/cluster.py left in the partial folder, with the work as JSON (plain.py); SHA256 is that
of the file, and no other is read; MODULE is where the source is from; N is the job's number. What went wrong is written
to `JOBS/N.error`: exit code and message.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from shards import log
from shards.errors import ShardError, UsageError
from shards.plain import from_plain
from shards.progress import Progress
from shards.workers import run_jobs

WORK = "work.json"


def main(folder: Path, sha256: str, module: str, number: int) -> int:
    """Write the shards of part `number` and return the exit code."""
    errors = folder / f"{number}.error"
    errors.unlink(missing_ok=True)
    try:
        work = _work(folder / WORK, sha256)
        part = from_plain(work["parts"][number], module)
        writer, source = from_plain(work["writer"], module), from_plain(work["source"], module)
        run_jobs(writer, source, part, work["workers"], Progress(sum(job.last - job.first for job in part)))
    except (ShardError, OSError) as error:
        code = error.exit_code if isinstance(error, ShardError) else 1
        temporary = errors.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        with temporary.open("x", encoding="utf-8") as file:
            json.dump({"code": code, "kind": type(error).__name__, "message": str(error)}, file)
        temporary.replace(errors)
        print(f"error: {error}", file=sys.stderr)
        return code
    return 0


def _work(file: Path, sha256: str) -> dict[str, Any]:
    """Read what the call that submitted this job has left. Raises UsageError for another's."""
    data = file.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise UsageError(
            f"{file}: has the SHA-256 {found[:12]}..., the call that submitted this job wrote {sha256[:12]}...: it was "
            "replaced, and is not run; run the same conversion again, where nobody else may write"
        )
    work: dict[str, Any] = json.loads(data)
    return work


if __name__ == "__main__":
    log.configure()
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))

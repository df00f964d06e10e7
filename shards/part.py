"""One job's share of a store's shards: `python -m shards.part JOBS N`, which the jobs of a cluster run.

JOBS is the folder that shards/cluster.py left in the partial folder; N is the job's number. What went wrong is written
to `JOBS/N.error`: exit code and message.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

from shards.errors import ShardError
from shards.progress import Progress
from shards.workers import run_jobs

WORK = "work.pkl"


def main(folder: Path, number: int) -> int:
    """Write the shards of part `number`; returns the exit code."""
    errors = folder / f"{number}.error"
    errors.unlink(missing_ok=True)
    # Not an archive's pickle: it was written by the call that submitted this job, for this job.
    writer, source, parts, workers = pickle.loads((folder / WORK).read_bytes())  # noqa: S301
    part = parts[number]
    try:
        run_jobs(writer, source, part, workers, Progress(sum(job.last - job.first for job in part)))
    except (ShardError, OSError) as error:
        code = error.exit_code if isinstance(error, ShardError) else 1
        temporary = errors.with_suffix(".tmp")
        temporary.write_text(json.dumps({"code": code, "message": str(error)}), encoding="utf-8")
        temporary.replace(errors)
        print(f"error: {error}", file=sys.stderr)
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))

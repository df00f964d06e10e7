"""Run by the tests on several ranks: trains several configs, one after the other.

    torchrun --nproc_per_node 2 -m tests.toolkit.train.ranks JOBS.json

JOBS.json: [{"config": path, "run": path}, ...]. Exits with the first code that isn't 0.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from toolkit.config import load_config
from toolkit.distributed.world import init_world
from toolkit.rundir import RunDir
from toolkit.rundir.heartbeat import clear_beats
from toolkit.signals import StopRequest
from toolkit.train.loop import train


def main() -> int:
    world = init_world(group=True)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        if world.is_main:
            RunDir.create(Path(job["run"]), load_config(job["config"], job.get("set", [])))
            clear_beats(Path(job["run"]))
        world.barrier()
        code = train(RunDir(Path(job["run"])), world, "auto", StopRequest())
        if code:
            return code
    world.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

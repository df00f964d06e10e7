"""A packed job without a scheduler: places, what each run is given, signals, locks, failures; stand-ins train."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from launch.jobs.pack import PACK_SCRIPT, Pack, PackedJob, is_unfinished, read_pack
from tests.support.fakes import Fakes
from tests.support.process import PATIENCE_S
from toolkit.atomic import alive
from toolkit.config import make_config
from toolkit.errors import ConfigError
from toolkit.rundir import RunDir, lock
from toolkit.rundir.events import read_restarts
from toolkit.rundir.status import read_status

MPS = """\
#!/bin/bash
echo "$* $(cat) $CUDA_MPS_PIPE_DIRECTORY" >>{folder}/mps
"""


@dataclass
class Packed:
    """A packed submission, and what becomes of its jobs."""

    fakes: Fakes
    folder: Path
    runs: list[RunDir] = field(default_factory=list)

    def submit(self, places: int, *steps: int, gpus: int = 0, ranks: int = 1, fake: str | None = None) -> None:
        """Make a run for each number of steps; the last one misbehaves as `fake` says."""
        self.folder.mkdir(parents=True)
        Pack(places, ranks, gpus).write(self.folder)
        for seed, number in enumerate(steps, 1):
            settings = {"comms_logger": {"prof_ops": [f"fake: {fake}"]}} if fake and seed == len(steps) else {}
            train = {"steps": number, "deepspeed": settings}
            tree = {"seed": seed, "data": {"store": "store"}, "train": train}
            run = self.folder.parent.parent / f"run-seed{seed}"
            self.runs.append(RunDir.create(run, make_config(tree, "test")))
        (self.folder / "runs.txt").write_text("".join(f"{run.path}\n" for run in self.runs))

    def start(self, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(PACK_SCRIPT), str(self.folder), "--job", str(self.fakes.scripts / "fake_job.py")]
        variables = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "CUDA_"))}
        return subprocess.Popen(
            command, env={**variables, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def go(self, **environment: str) -> tuple[int, str]:
        with self.start(**environment) as process:
            output, _ = process.communicate(timeout=PATIENCE_S)
        return process.returncode, output

    def starts(self) -> list[int]:
        files = [run.path / "starts" for run in self.runs]
        return [len(file.read_text().splitlines()) if file.exists() else 0 for file in files]

    def live(self) -> list[RunDir]:
        return [run for run in self.runs if lock.holder(run.path) and (run.path / "state.json").exists()]


@pytest.fixture
def packed(fakes: Fakes) -> Packed:
    return Packed(fakes, fakes.folder / "demo" / "slurm" / "1a2b3c4d")


def until(condition: Callable[[], object], seconds: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_each_run_has_a_gpu_a_log_a_lock_and_a_code(packed: Packed) -> None:
    packed.submit(2, 3, 3, 3, gpus=2)
    code, output = packed.go(CUDA_VISIBLE_DEVICES="4,7", SLURM_JOB_ID="12")
    assert code == 0, output
    assert [run.done for run in packed.runs] == [True] * 3
    assert packed.starts() == [1, 1, 1]
    gpus = [(run.path / "gpus").read_text() for run in packed.runs]
    assert gpus[:2] == ["4", "7"] and gpus[2] in ("4", "7")
    for run in packed.runs:
        record = lock.read_lock(run.path)
        assert (record["job"], record["exit"]) == ("12_0", 0)
        assert (run.logs / "12_0_0.log").read_text().endswith("step 3\n")
    assert packed.go(CUDA_VISIBLE_DEVICES="4,7")[0] == 0
    assert packed.starts() == [1, 1, 1]


def test_a_run_of_two_ranks_has_two_gpus(packed: Packed) -> None:
    packed.submit(2, 2, 2, gpus=4, ranks=2)
    assert packed.go(CUDA_VISIBLE_DEVICES="0,1,2,3")[0] == 0
    assert [(run.path / "gpus").read_text() for run in packed.runs] == ["0,1", "2,3"]
    assert packed.starts() == [2, 2]


def test_a_failure_is_counted_and_the_others_end_well(packed: Packed) -> None:
    packed.submit(2, 3, 3, 3, fake="fail")
    code, output = packed.go()
    assert code == 1, output
    assert [read_status(run).state for run in packed.runs] == ["done", "done", "failed"]
    since = (packed.folder / "runs.txt").stat().st_mtime
    assert [is_unfinished(run, since) for run in packed.runs] == [False] * 3
    assert packed.go()[0] == 0  # a failure of this submission isn't run again
    os.utime(packed.folder / "runs.txt")  # but of one submitted later it is
    assert packed.go()[0] == 1
    assert packed.starts() == [1, 1, 2]


def test_a_signal_stops_all_with_a_checkpoint_and_the_next_start_goes_on(packed: Packed) -> None:
    packed.submit(2, 3, 600, 600, 600)
    with packed.start(SLURM_JOB_ID="12") as process:
        until(lambda: packed.live() == packed.runs[1:3])
        process.send_signal(signal.SIGUSR2)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3
    assert packed.starts() == [1, 1, 1, 0]  # what waited was not begun any more
    assert [(run.path / "checkpoint").exists() for run in packed.runs] == [False, True, True, False]
    (packed.folder / "restarts.tsv").write_text("1.0\t12\t2\tnode1\t\ttime limit\n")
    for run in packed.runs[1:]:
        (run.path / "config.yaml").write_text((run.path / "config.yaml").read_text().replace("steps: 600", "steps: 30"))
    code, output = packed.go(SLURM_JOB_ID="12", SLURM_RESTART_COUNT="1")
    assert code == 0, output
    assert packed.starts() == [1, 2, 2, 1]
    assert [[restart.cause for restart in read_restarts(run.path)] for run in packed.runs] == [
        [],
        ["time limit"],
        ["time limit"],
        [],
    ]


def test_two_jobs_share_the_list_and_never_a_run(packed: Packed) -> None:
    packed.submit(2, *[12] * 9)
    variables = [
        {"SLURM_JOB_ID": str(task), "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": str(task)} for task in (0, 2)
    ]
    with packed.start(**variables[0]) as one, packed.start(**variables[1]) as two:
        outputs = [process.communicate(timeout=PATIENCE_S)[0] for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0], outputs
    assert packed.starts() == [1] * 9
    jobs = [lock.read_lock(run.path)["job"] for run in packed.runs]
    assert jobs[:2] == ["9_0_0"] * 2 and jobs[4:6] == ["9_2_0"] * 2  # those meant for it come first


def test_a_killed_supervisor_takes_its_runs_along_and_they_are_free(packed: Packed) -> None:
    packed.submit(2, 900, 900)
    with packed.start(SLURM_JOB_ID="12", SLURM_STEP_ID="0") as process:
        until(lambda: len(packed.live()) == 2)
        pids = [lock.read_lock(run.path)["pid"] for run in packed.runs]
        process.kill()
        process.communicate()
    until(lambda: all(alive(socket.gethostname(), pid) is False for pid in pids))
    until(lambda: not any(lock.holder(run.path) for run in packed.runs))
    assert [run.failure() for run in packed.runs] == [None, None]


def test_runs_that_an_earlier_start_still_has_are_waited_for(packed: Packed) -> None:
    """Slurm may begin the job again while the start before is alive, on a node that it has given up."""
    packed.submit(1, 200)
    with packed.start(SLURM_JOB_ID="12") as before:
        until(lambda: len(packed.live()) == 1)
        with packed.start(SLURM_JOB_ID="12", SLURM_RESTART_COUNT="1") as process:
            time.sleep(1.5)
            before.kill()
            os.kill(int(lock.read_lock(packed.runs[0].path)["pid"]), signal.SIGTERM)
            output, _ = process.communicate(timeout=PATIENCE_S)
        before.communicate()
    assert process.returncode == 0, output
    assert packed.runs[0].done
    assert packed.starts() == [2]


def test_more_runs_than_gpus_share_them_by_mps_or_in_turns(packed: Packed) -> None:
    packed.submit(4, 2, 2, 2, 2, gpus=2)
    code, output = packed.go(CUDA_VISIBLE_DEVICES="2,3", PATH="/usr/bin:/bin")
    assert code == 0
    assert "4 processes on 2 GPUs: they take turns (time slicing): this node has no nvidia-cuda-mps-control" in output
    assert sorted((run.path / "gpus").read_text() for run in packed.runs) == ["2", "2", "3", "3"]
    for run in packed.runs:
        (run.path / "DONE").unlink()
    tools = packed.fakes.folder / "bin"
    tools.mkdir()
    (tools / "nvidia-cuda-mps-control").write_text(MPS.format(folder=packed.fakes.folder))
    (tools / "nvidia-cuda-mps-control").chmod(0o755)
    code, output = packed.go(CUDA_VISIBLE_DEVICES="2,3", PATH=f"{tools}:/usr/bin:/bin")
    assert code == 0
    assert "4 processes on 2 GPUs: MPS runs their kernels side by side" in output
    assert sorted((run.path / "gpus").read_text() for run in packed.runs) == ["0", "0", "1", "1"]
    began, ended = (packed.fakes.folder / "mps").read_text().splitlines()
    assert began.split()[0] == "-d" and ended.split()[0] == "quit"
    assert began.split()[-1] == ended.split()[-1] and not Path(ended.split()[-1]).exists()


SERVICE = """\
#!/bin/bash
if [ "$1" = -d ]; then
  sleep 60 </dev/null &>/dev/null &
  echo $! >{folder}/service
else
  kill -9 $(cat {folder}/service)
fi
"""


def test_signals_of_the_step_do_not_end_mps(packed: Packed) -> None:
    """Slurm sends them to all processes of a step; runs that write a checkpoint then need the service."""
    packed.submit(2, 600, 600, gpus=1)
    tools = packed.fakes.folder / "bin"
    tools.mkdir()
    (tools / "nvidia-cuda-mps-control").write_text(SERVICE.format(folder=packed.fakes.folder))
    (tools / "nvidia-cuda-mps-control").chmod(0o755)
    with packed.start(CUDA_VISIBLE_DEVICES="0", PATH=f"{tools}:/usr/bin:/bin") as process:
        until(lambda: len(packed.live()) == 2)
        service = int((packed.fakes.folder / "service").read_text())
        assert os.getsid(service) not in (os.getsid(process.pid), os.getsid(0))
        for number in (signal.SIGUSR2, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            os.kill(service, number)
        time.sleep(0.2)
        assert alive(socket.gethostname(), service)
        process.send_signal(signal.SIGUSR2)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3
    until(lambda: alive(socket.gethostname(), service) is False)


def test_gpus_that_were_promised_and_are_not_there(packed: Packed) -> None:
    packed.submit(4, 2, gpus=4)
    code, output = packed.go(CUDA_VISIBLE_DEVICES="0,1")
    assert code == 2
    assert "submitted for 4 GPUs, and CUDA_VISIBLE_DEVICES=0,1 names 2" in output
    assert packed.starts() == [0]


def test_a_folder_that_is_no_packed_submission(tmp_path: Path) -> None:
    assert read_pack(tmp_path) is None
    with pytest.raises(ConfigError, match=r"no pack.json there"):
        PackedJob(tmp_path)
    for text in ("", "[]", json.dumps({"places": "many"})):
        (tmp_path / "pack.json").write_text(text)
        with pytest.raises(ConfigError, match="cancel the sweep and submit it again"):
            read_pack(tmp_path)


def damage_config(run: RunDir) -> None:
    run.config_file.write_text("seed: [")


def damage_scores(run: RunDir) -> None:
    run.mark_done()
    run.eval.write_text("a file")
    run.config_file.write_text("model: {name: no-such}")


def damage_logs(run: RunDir) -> None:
    run.logs.write_text("a file")


def damage_lock(run: RunDir) -> None:
    (run.path / "job.lock").symlink_to("/nowhere/job.lock")


@pytest.mark.parametrize("damage", [damage_config, damage_scores, damage_logs, damage_lock])
def test_a_damaged_run_directory_ends_no_other_run(packed: Packed, damage: Callable[[RunDir], None]) -> None:
    packed.submit(1, 2, 2, 2)
    damage(packed.runs[0])
    code, output = packed.go(SLURM_JOB_ID="12")
    assert [run.done for run in packed.runs[1:]] == [True, True], output
    if damage is damage_lock:  # repaired
        assert (code, packed.runs[0].done) == (0, True)
    else:
        assert code == 1
        assert f"{packed.runs[0].path}: can't be run: " in output
        assert "can't be run: " in str(packed.runs[0].failure())


@pytest.mark.parametrize("reason", ["can't be run: ", "the job of this run in place 0: "])
def test_a_new_reason_takes_the_place_of_one_from_before_the_submission(packed: Packed, reason: str) -> None:
    packed.submit(1, 2, 2)
    run = packed.runs[0]
    run.mark_failed("of an earlier submission: out of memory")
    os.utime(run.path / "FAILED", (1, 1))
    if reason == "can't be run: ":
        damage_config(run)
    else:  # its job ends before it could remove the old reason
        script = packed.fakes.scripts / "fake_job.py"
        script.write_text(f"import sys\nif {run.path.name!r} in sys.argv[1]: sys.exit(9)\n" + script.read_text())
    code, output = packed.go(SLURM_JOB_ID="12")
    assert (code, packed.runs[1].done) == (1, True), output
    assert str(run.failure()).startswith(reason), run.failure()
    assert read_status(run).state == "failed"
    assert packed.go(SLURM_JOB_ID="13")[0] == 0  # failed in this submission


def test_a_sweep_that_has_stopped_begins_no_runs_and_resumes_those_with_a_checkpoint(packed: Packed) -> None:
    packed.submit(2, 3, 3, 3)
    (packed.folder.parents[1] / "STOPPED").write_text("the first 3 runs failed")
    packed.runs[1].checkpoints.mkdir()
    (packed.runs[1].checkpoints / "latest").write_text("step-00000001")
    code, output = packed.go()
    assert code == 1
    assert [run.done for run in packed.runs] == [False, True, False]
    assert output.count("is not begun: the first 3 runs failed") == 2


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        ({"ended": 2.0}, "job 9_0 did not finish it"),
        ({}, "lost with job 9_0, which exited without a final status"),
    ],
)
def test_why_a_run_begins_again_in_another_job(packed: Packed, end: dict[str, float], cause: str) -> None:
    packed.submit(1, 2)
    record = {"job": "9_0_0", "host": "node1", "started": 1.0, **end}
    (packed.runs[0].path / "job.lock").write_text(json.dumps(record))
    code, output = packed.go(SLURM_JOB_ID="14", SLURM_ARRAY_JOB_ID="9", SLURM_ARRAY_TASK_ID="1")
    assert code == 0, output
    (restart,) = read_restarts(packed.runs[0].path)
    assert (restart.job, restart.start, restart.nodes, restart.cause) == ("9_1", 2, "node1", cause)

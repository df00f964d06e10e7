"""What Slurm adds to a table of runs, by stand-ins for squeue and sacct: right, slow, failing, rate-limited, absent."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch import status
from launch.slurm.client import tasks_of
from launch.slurm.queue import Scheduler, read_ends
from toolkit.config import RunConfig
from toolkit.rundir import RunDir, lock
from toolkit.rundir.status import RunView

NO_PROCESS = 2**22 + 1


@dataclass
class Site:
    """A sweep of four runs that was submitted as array 4711, and what its Slurm answers."""

    root: Path
    tools: Path

    def tool(self, name: str, text: str) -> None:
        """A stand-in that prints a text, or is a line of bash that begins with !."""
        (self.tools / f"{name}.answer").write_text(text)
        body = text[1:] if text.startswith("!") else f"cat {self.tools}/{name}.answer"
        file = self.tools / name
        file.write_text(f'#!/bin/bash\necho "$@" >>{self.tools}/{name}.calls\n{body}\n')
        file.chmod(0o755)

    def queue(self, *lines: str) -> None:
        """squeue's lines without their end, which is the job's name and comment."""
        self.tool("squeue", "".join(f"{line}|demo-0a1b2c3d|{self.root}\n" for line in lines))

    def calls(self, name: str) -> int:
        file = self.tools / f"{name}.calls"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def run(self, index: int) -> RunDir:
        return RunDir(self.root / f"run{index}")

    def began(self, index: int, ago: float = 1.0, host: str = "node3", **values: object) -> None:
        """A job of Slurm wrote a state so many seconds ago."""
        run = self.run(index)
        run.write_state(phase="training", step=5, steps=9, seq_per_s=2.0, restarts=1, **values)
        state = {**run.read_state(), "host": host, "pid": NO_PROCESS, "updated": time.time() - ago}
        (run.path / "state.json").write_text(json.dumps(state))
        record = {"job": f"4711_{index}_1", "host": host, "pid": NO_PROCESS, "started": time.time() - ago - 60}
        (run.path / lock.LOCK_NAME).write_text(json.dumps(record))

    def look(self, patience_s: float = 5.0) -> tuple[list[RunView], str | None]:
        scheduler = Scheduler(patience_s)
        return scheduler.merge(status.views_of([self.root]), status.again), scheduler.note


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    root, tools = tmp_path / "demo", tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    made = Site(root, tools)
    for index in range(4):
        RunDir.create(made.run(index).path, RunConfig(seed=index))
    folder = root / "slurm" / "0a1b2c3d"
    folder.mkdir(parents=True)
    (folder / "runs.txt").write_text("".join(f"{made.run(index).path}\n" for index in range(4)))
    (folder / "job").write_text("4711\n")
    made.tool("sacct", "")
    made.queue()
    return made


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("4711", ["4711"]),
        ("4711_3", ["4711_3"]),
        ("12_[2,4-6%3]", ["12_2", "12_4", "12_5", "12_6"]),
        ("12_[0-6:3]", ["12_0", "12_3", "12_6"]),
    ],
)
def test_names_of_array_tasks(name: str, tasks: list[str]) -> None:
    assert tasks_of(name) == tasks


def test_who_waits_and_why(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.queue("4711_[0,2%1]|PENDING|Resources|", "4711_1|PENDING|BeginTime|", "4711_3|CONFIGURING|None|node1")
    site.began(1, ago=1)  # requeued: what it wrote is fresh all the same
    views, note = site.look()
    assert [view.state for view in views] == ["queued"] * 4
    assert views[0].reason == "job 4711_0: Resources (waits for free nodes)"
    assert views[1].reason is not None and views[1].reason.startswith("job 4711_1: BeginTime (requeued")
    assert (views[1].step, views[1].rate, views[1].restarts) == (5, None, 1)
    assert note is None
    assert status.main([str(site.root)]) == 0
    assert "4 runs: 4 queued" in capsys.readouterr().out
    assert (site.calls("squeue"), site.calls("sacct")) == (2, 0)  # one for each table


def test_what_runs(site: Site) -> None:
    site.queue(*(f"4711_{index}|RUNNING|None|node{index}" for index in range(3)), "4711_3|SUSPENDED|None|node3")
    site.began(1)
    site.began(2, ago=300)
    site.began(3, ago=300)
    views, _ = site.look()
    assert [view.label for view in views] == ["starting", "running", "silent", "suspended"]
    assert views[0].host == "node0"
    assert views[2].reason == "job 4711_2 runs on node2, but has written nothing for 5:00"


def test_neither_in_the_queue_nor_heard_of(site: Site) -> None:
    site.tool(
        "sacct",
        "4711_0|OUT_OF_MEMORY|0:125|node1\n4711_1|TIMEOUT|0:0|node[1-2]\n4711_2|CANCELLED by 1000|0:15|node2\n"
        "4711_[3]|CANCELLED by 0|0:0|None assigned\n",
    )
    site.began(0, ago=600)
    site.began(1, ago=1)  # silence is not needed: squeue answered and doesn't know it
    site.began(2, ago=600)
    views, note = site.look()
    assert [view.state for view in views] == ["interrupted", "interrupted", "interrupted", "new"]
    assert [view.label for view in views] == ["out of memory", "timeout", "cancelled", "cancelled"]
    assert views[1].reason == "job 4711_1 ended: TIMEOUT, exit code 0:0, on node[1-2]; run the sweep again to resume"
    assert views[1].rate is None
    assert note is None
    assert (site.tools / "sacct.calls").read_text().endswith("--jobs=4711\n")


def test_a_run_that_ends_while_one_looks(site: Site) -> None:
    site.began(0)
    views = status.views_of([site.root])
    site.run(0).mark_done()
    (done, *_) = Scheduler().merge(views, status.again)
    assert done.state == "trained"


def test_what_works_here_or_by_hand_is_left_alone(site: Site) -> None:
    site.queue("4711_1|PENDING|Priority|")
    site.tool("squeue", f"99|RUNNING|None|node1|run2|{site.root}\n" + (site.tools / "squeue.answer").read_text())
    with lock.hold(site.run(0).path, job="local-7"), lock.hold(site.run(1).path, job="by hand (1 ranks)"):
        views, _ = site.look()
    assert [view.label for view in views] == ["starting", "starting", "starting", "new"]
    assert views[2].reason == "job 99"


def test_no_accounting(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.tool("sacct", "!echo 'Slurm accounting storage is disabled' >&2; exit 1")
    site.began(0, ago=600)
    assert status.main([str(site.root)]) == 0
    shown = capsys.readouterr().out
    assert "1 interrupted" in shown
    assert "no accounting on this cluster" in shown.splitlines()[-1]


@pytest.mark.parametrize(
    ("squeue", "word"),
    [
        ("!echo 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2; exit 1", "Socket timed out"),
        ("!echo 'slurm_load_jobs error: RPC rate limit exceeded' >&2; exit 1", "RPC rate limit exceeded"),
        ("!exec sleep 5", "no answer within 0.3 s"),
    ],
)
def test_a_scheduler_that_does_not_answer_is_said_in_a_line(site: Site, squeue: str, word: str) -> None:
    site.tool("squeue", squeue)
    site.began(0)
    began = time.monotonic()
    views, note = site.look(patience_s=0.3)
    assert time.monotonic() - began < 3
    assert [view.state for view in views] == ["running", "new", "new", "new"]
    assert note is not None
    assert note.startswith("queue unknown, from the run directories alone: ")
    assert word in note
    assert "\n" not in note


def test_sacct_that_fails_leaves_the_rest(site: Site) -> None:
    site.tool("sacct", "!echo 'sacct: error: slurm_persist_conn_open: failed to send' >&2; exit 1")
    site.queue("4711_1|PENDING|Priority|")
    site.began(0, ago=600)
    views, note = site.look()
    assert [view.state for view in views] == ["interrupted", "queued", "new", "new"]
    assert note is not None
    assert "failed to send" in note


def test_warnings_and_other_peoples_names_do_no_harm(site: Site) -> None:
    noise = "squeue: warning: something\n7|RUNNING|None|n1|a|b|c\n8|PENDING|None||demo-ffffffff|/elsewhere\n9|PENDING\n"
    site.tool("squeue", noise)
    assert [view.state for view in site.look()[0]] == ["new"] * 4


def test_nobody_is_asked_without_need(site: Site, tmp_path: Path) -> None:
    assert status.main([str(site.root), "--no-queue"]) == 0
    RunDir.create(tmp_path / "local" / "run", RunConfig())
    assert status.main([str(tmp_path / "local")]) == 0
    assert site.calls("squeue") == 0


def test_watching_asks_more_seldom_where_it_fails(site: Site) -> None:
    now = [0.0]
    scheduler = Scheduler(patience_s=5.0, clock=lambda: now[0])
    site.tool("squeue", "!exit 1")
    asked = []
    for now[0] in range(0, 200, 5):
        scheduler.merge(status.views_of([site.root]), status.again)
        asked.append(site.calls("squeue"))
    assert asked[-1] == 6  # after 0, 5, 15, 35, 75, 155 s
    assert scheduler.note is not None
    site.queue()
    now[0] = 1000.0
    scheduler.merge(status.views_of([site.root]), status.again)
    assert scheduler.note is None


def test_the_last_line_of_a_requeued_job_holds() -> None:
    ends = read_ends("7_0|PREEMPTED|0:15|n1\n7_0|RUNNING|0:0|n2\n7_1|NODE_FAIL|1:0|n1\n7_1|COMPLETED|0:0|n2\n\n8|X\n")
    assert {name: end.state for name, end in ends.items()} == {"7_1": "COMPLETED"}


def test_a_damaged_run_or_pack_leaves_the_others(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    folder = site.root / "slurm" / "0a1b2c3d"
    (folder / "pack.json").write_text('{"places": 2, "ranks": 1, "gpus": 0}')
    site.queue("4711_0|RUNNING|None|node0", "4711_1|PENDING|Priority|")
    site.run(0).mark_done()
    site.run(0).eval.mkdir()
    for which in ("best", "last"):
        (site.run(0).eval / f"test-{which}.json").write_text("{}")
    site.run(0).config_file.write_text("seed: [")
    views, _ = site.look()
    assert [view.state for view in views][1:] == ["queued"] * 3
    assert [view.reason for view in views[2:]] == ["job 4711_1: Priority (jobs of higher priority come first)"] * 2
    (folder / "pack.json").write_text("")
    views, _ = site.look()
    assert [view.state for view in views][1:] == ["queued"] * 3
    assert f"{folder / 'pack.json'}: can't be used" in caplog.text
    assert status.main([str(site.root), "--efficiency"]) == 0


def test_why_a_packed_job_failed_before_its_runs_began(site: Site) -> None:
    folder = site.root / "slurm" / "0a1b2c3d"
    (folder / "pack.json").write_text('{"places": 2, "ranks": 1, "gpus": 0}')
    (folder / "logs").mkdir()
    (folder / "logs" / "4711_0.failed").write_text("job 4711_0: setup: 'false' returned 1 on node n1\nmore\n")
    site.tool("sacct", "4711_0|FAILED|2:0|n1\n4711_1|CANCELLED by 0|0:0|None assigned\n")
    views, _ = site.look()
    why = "job 4711_0: setup: 'false' returned 1 on node n1; run the sweep again to resume"
    assert [view.reason for view in views[:2]] == [why] * 2
    assert [view.label for view in views] == ["new", "new", "cancelled", "cancelled"]


def test_how_a_job_that_evaluates_apart_ended(site: Site) -> None:
    folder = site.root / "slurm" / "evaluation0a1b2c3d"
    folder.mkdir()
    (folder / "runs.txt").write_text((site.root / "slurm" / "0a1b2c3d" / "runs.txt").read_text())
    (folder / "job").write_text("4712\n")
    trainings = "".join(f"4711_{index}|{'TIMEOUT' if index == 3 else 'COMPLETED'}|0:0|n1\n" for index in range(4))
    evaluations = "4712_0|OUT_OF_MEMORY|0:125|n2\n4712_1|CANCELLED by 0|0:0|None assigned\n4712_2|COMPLETED|0:0|n2\n"
    site.tool("sacct", trainings + evaluations + "4712_3|CANCELLED|0:0|None assigned\n")
    for index in range(4):
        site.began(index)
        if index < 3:
            site.run(index).mark_done()
    (site.run(0).path / lock.LOCK_NAME).write_text('{"job": "4712_0_0"}')  # of 1 the training's, as it never began
    views, _ = site.look()
    assert [view.label for view in views] == ["trained", "trained", "trained", "timeout"]
    assert [str(view.reason).partition(";")[0] for view in views] == [
        "job 4712_0 ended: OUT_OF_MEMORY, exit code 0:125, on n2",
        "job 4712_1 ended: CANCELLED by 0, exit code 0:0",
        "not evaluated yet",
        "job 4711_3 ended: TIMEOUT, exit code 0:0, on n1",
    ]
    assert site.calls("sacct") == 1
    (site.root / "slurm" / "0a1b2c3d" / "job").write_text("4720\n")  # submitted again, and never begun
    site.tool("sacct", trainings + evaluations + "4720_3|CANCELLED by 0|0:0|None assigned\n")
    views, _ = site.look()
    assert str(views[3].reason).startswith("job 4720_3 ended: CANCELLED by 0")
    assert str(views[0].reason).startswith("job 4712_0 ended: OUT_OF_MEMORY")

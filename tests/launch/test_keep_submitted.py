"""`sweep.py --keep-submitted`, by stand-ins for Slurm: what each look at the queue submits, and commands shown."""

from __future__ import annotations

import logging
import shutil
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from launch import sweep
from launch.jobs.attempts import STOPPED
from launch.jobs.snapshot import Snapshot
from launch.slurm import submitter as slurm_submitter
from tests.support.fakes import Fakes
from tests.support.process import SLURM_TOOLS
from toolkit.errors import ConfigError
from toolkit.rundir import RunDir

BUSY = "echo 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2; exit 1"


@dataclass
class Feed:
    """A sweep of `seeds` runs; `acts` are what happens on the cluster between two looks at its queue."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    acts: list[Callable[[], None]] = field(default_factory=list)
    submitted: list[list[str]] = field(default_factory=list)  # runs of each call of sbatch

    @property
    def root(self) -> Path:
        return self.folder / "runs" / "demo"

    def set(self, tool: str, text: str) -> None:
        (self.folder / f"{tool}.sh").write_text(text + "\n")

    def sleep(self, seconds: float) -> None:
        assert self.acts, "a look at the queue too many"
        self.acts.pop(0)()

    def free(self) -> None:
        """All jobs have left the queue."""
        (self.folder / "queue").write_text("")

    def go(self, *arguments: str) -> int:
        def noted(submitter: object, runs: list[Path], *rest: object) -> object:
            self.submitted.append([run.name for run in runs])
            return original(submitter, runs, *rest)  # type: ignore[arg-type]

        original = slurm_submitter.SlurmSubmitter._submit_part
        with self.monkeypatch.context() as patch:
            patch.setattr(slurm_submitter.SlurmSubmitter, "_submit_part", noted)
            patch.setattr(sweep, "time", types.SimpleNamespace(sleep=self.sleep))
            code = sweep.main(["demo.yaml", "--cluster", "slurm", "--no-report", *arguments])
        assert not self.acts
        return code

    def runs(self) -> list[RunDir]:
        return [RunDir(file.parent) for file in sorted(self.root.glob("*/config.yaml"))]

    def seeds(self) -> list[list[int]]:
        """Return the seeds of the runs of each call of sbatch."""
        return [[RunDir(self.root / name).config().seed for name in part] for part in self.submitted]


@pytest.fixture
def feed(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> Feed:
    shutil.copytree(SLURM_TOOLS, fakes.folder / "bin", ignore=shutil.ignore_patterns("sinfo", "srun"))
    monkeypatch.setenv("PATH", f"{fakes.folder}/bin:/usr/bin:/bin")
    monkeypatch.chdir(fakes.folder)
    monkeypatch.setattr(slurm_submitter.snapshot, "take", lambda sweep: Snapshot(fakes.folder / "code", (), None))
    fakes.sweep_file("base: base.yaml\nseeds: 4\n")
    made = Feed(fakes.folder, monkeypatch)
    made.set("sbatch", "id=$((4711 + $(ls -d runs/demo/slurm/*/ | wc -l))); accept $id; echo Submitted batch job $id")
    made.set("squeue", "")
    return made


def fail_all(feed: Feed) -> None:
    for run in feed.runs():
        run.mark_failed("train: killed by SIGKILL (out of memory?)")


def test_all_are_submitted_as_the_queue_empties(feed: Feed, capsys: pytest.CaptureFixture[str]) -> None:
    feed.acts = [lambda: None, lambda: (done(feed), feed.free())[1]]
    assert feed.go("--keep-submitted", "2") == 0
    assert feed.seeds() == [[1, 2], [3, 4]]
    output = capsys.readouterr().out
    assert output.count("demo: 4 runs") == 1  # the plan
    assert output.count("later: --keep-submitted") == 2
    assert "wait: python launch/sweep.py demo.yaml --cluster slurm --no-report --keep-submitted 2 --wait" in output


def done(feed: Feed) -> None:
    """What was submitted so far is trained and scored."""
    for name in feed.submitted[-1]:
        run = RunDir(feed.root / name)
        run.mark_done()
        run.eval.mkdir()
        for which in run.scored_checkpoints:
            (run.eval / f"{run.config().eval.split}-{which}.json").write_text("{}")


@pytest.mark.parametrize("option", [["--retry", "oom"], ["--replace"]])
def test_retry_and_replace_hold_for_every_run_once(
    feed: Feed, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert feed.go() == 0
    feed.free()
    fail_all(feed)
    feed.submitted.clear()
    old = [run.path for run in feed.runs()]
    for path in old:
        (path / "checkpoints").mkdir()
    feed.acts = [lambda: (done(feed), feed.free())[1]]
    feed.go("--keep-submitted", "2", *option)
    assert feed.seeds() == [[1, 2], [3, 4]]
    assert [(path / "checkpoints").exists() for path in old] == [option != ["--replace"]] * 4
    output = capsys.readouterr().out
    assert "--replace" not in output.partition("Watch:")[2]


def test_a_limit_holds_for_the_whole_command(feed: Feed) -> None:
    feed.acts = [lambda: (done(feed), feed.free())[1]]
    feed.go("--keep-submitted", "2", "--limit", "3")
    assert feed.seeds() == [[1, 2], [3]]


def test_a_sweep_that_has_stopped_itself_is_submitted_no_further(
    feed: Feed, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        feed.free()
        (feed.root / STOPPED).write_text("the first 3 runs failed\n")

    feed.root.mkdir(parents=True)
    (feed.root / STOPPED).write_text("of an earlier call\n")
    feed.acts = [stop]
    feed.go("--keep-submitted", "2")
    assert feed.seeds() == [[1, 2]]
    assert (feed.root / STOPPED).read_text() == "the first 3 runs failed\n"


def test_a_cluster_that_does_not_answer_once_is_asked_again(feed: Feed, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        feed.set("squeue", BUSY)

    def recover() -> None:
        done(feed)
        feed.free()
        feed.set("squeue", "")

    feed.acts = [fail, lambda: None, recover]
    with caplog.at_level(logging.WARNING, "launch"):
        assert feed.go("--keep-submitted", "2") == 0
    assert feed.seeds() == [[1, 2], [3, 4]]
    assert sum("Socket timed out" in record.getMessage() for record in caplog.records) == 2


def test_the_limit_of_runs_at_a_time_is_set_once(feed: Feed, capsys: pytest.CaptureFixture[str]) -> None:
    feed.go("--limit", "2")
    feed.acts = [lambda: None, lambda: (done(feed), feed.free())[1]]
    feed.go("--keep-submitted", "2", "--jobs", "2")
    assert capsys.readouterr().out.count("array 4712 in the queue: 2 runs at a time from now on (--jobs)") == 1
    assert (feed.folder / "calls").read_text().count("arraytaskthrottle=2") == 1


def test_packed_jobs_are_submitted_full(feed: Feed, fakes: Fakes) -> None:
    fakes.sweep_file("base: base.yaml\nseeds: 7\n")

    def one_ends() -> None:
        feed.submitted.append(feed.submitted[-1][:1])
        done(feed)
        feed.submitted.pop()

    def all_end() -> None:
        for run in feed.runs()[:4]:
            if not run.done:
                feed.submitted.append([run.path.name])
                done(feed)
                feed.submitted.pop()
        feed.free()

    feed.acts = [one_ends, all_end]
    feed.go("--keep-submitted", "5", "--gpus-per-node", "4", "--pack", "4")
    assert feed.seeds() == [[1, 2, 3, 4], [5, 6, 7]]
    with pytest.raises(ConfigError, match="--keep-submitted 3 is fewer runs than one job of --pack 4 has"):
        feed.go("--keep-submitted", "3", "--gpus-per-node", "4", "--pack", "4")


def test_what_later_looks_will_submit_is_checked_first(feed: Feed, fakes: Fakes) -> None:
    fakes.sweep_file("base: base.yaml\nlist: [{seed: 1}, {seed: 2, data.store: nowhere}]\n")
    with pytest.raises(ConfigError, match="nowhere: needed by 1 run"):
        feed.go("--keep-submitted", "1")
    assert feed.submitted == []


def test_all_looks_submit_the_same_code(feed: Feed, capsys: pytest.CaptureFixture[str]) -> None:
    taken: list[Path] = []

    def take(sweep: Path) -> Snapshot:
        taken.append(feed.folder / f"code{len(taken)}")
        return Snapshot(taken[-1], (), None)

    feed.monkeypatch.setattr(slurm_submitter.snapshot, "take", take)
    feed.acts = [lambda: None, lambda: (done(feed), feed.free())[1]]
    feed.go("--keep-submitted", "2")
    assert feed.seeds() == [[1, 2], [3, 4]]
    assert taken == [feed.folder / "code0"]
    assert {(run.path / "code").readlink().name for run in feed.runs()} == {"code0"}
    assert capsys.readouterr().out.count("is not under version control") == 1

"""`--evaluate-apart` on a real Slurm, with stand-ins: a run is evaluated once, by a job that waits for its training."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.support.devcluster import Site, live
from tests.support.process import ROOT, eventually
from toolkit.rundir import RunDir
from toolkit.rundir.lock import read_lock
from toolkit.rundir.status import read_status

LAUNCH = ROOT / "launch"


@pytest.fixture
def apart(site: Site) -> Site:
    """The evaluation writes a line each time it begins, and waits while `hold` is there."""
    script = site.fakes.scripts / "evaluate.py"
    script.write_text(
        "import sys, time\nfrom pathlib import Path\n"
        "run = Path(sys.argv[sys.argv.index('--run') + 1])\n"
        "with open(run / 'evaluations', 'a') as file: file.write('begun\\n')\n"
        "while (run.parents[2] / 'hold').exists(): time.sleep(0.05)\n" + script.read_text()
    )
    return site


def evaluations(run: Path) -> int:
    file = run / "evaluations"
    return len(file.read_text().splitlines()) if file.exists() else 0


def states(site: Site) -> list[str]:
    return [read_status(RunDir(run)).state for run in site.runs()]


def test_training_and_evaluation_are_jobs_of_their_own(apart: Site) -> None:
    apart.sweep_of(3)
    (apart.folder / "hold").touch()
    output = apart.submit("--evaluate-apart")
    training, evaluation = re.findall(r"array (\d+)", output)
    runs = apart.runs()
    eventually(lambda: all(evaluations(run) for run in runs))
    assert {job.partition("_")[0] for job in apart.cluster.queue()} == {evaluation}
    assert apart.status().count("evaluating") == 3 + 1
    assert len(re.findall(r"evaluating +wait: ", apart.submit("--evaluate-apart"))) == 3
    (apart.folder / "hold").unlink()
    apart.wait()
    assert states(apart) == ["done"] * 3
    assert [evaluations(run) for run in runs] == [1, 1, 1]
    assert [str(read_lock(run)["job"]).partition("_")[0] for run in runs] == [evaluation] * 3
    assert list(runs[0].glob(f"logs/{training}_0_0_0.log")) and list(
        runs[0].glob(f"logs/{evaluation}_0_0_evaluate.log")
    )
    shown = apart.cluster.run(sys.executable, LAUNCH / "logs.py", runs[0], "--list")
    assert f"{training}_0" in shown and f"{evaluation}_0" in shown
    assert "3 of 3 done, nothing to do" in apart.submit("--evaluate-apart")


def test_a_failed_training_is_not_evaluated_and_its_retry_is(apart: Site) -> None:
    script = apart.fakes.scripts / "train.py"
    broken = (
        "if 'seed: 2' in config and not (run / 'repaired').exists(): os.kill(os.getpid(), signal.SIGKILL)\nwhile step"
    )
    script.write_text(script.read_text().replace("while step", broken, 1))
    apart.sweep_of(3)
    code, output = apart.sweep("--evaluate-apart", "--wait")
    assert code == 1 and "2 of 3 done" in output, output
    apart.wait()  # the evaluation of the failed run has been dropped
    runs = apart.runs()
    assert [evaluations(run) for run in runs] == [1, 0, 1]
    assert states(apart) == ["done", "failed", "done"]
    (runs[1] / "repaired").touch()
    code, output = apart.sweep("--evaluate-apart", "--retry", "failed", "--wait")
    assert code == 0 and "3 of 3 done" in output, output
    assert [evaluations(run) for run in runs] == [1, 1, 1]


@pytest.mark.parametrize("how", ["signal", "requeue"])
def test_a_requeue_of_the_training_keeps_its_evaluation(apart: Site, how: str) -> None:
    apart.sweep_of(2, steps=150)
    apart.submit("--evaluate-apart")
    runs = apart.runs()
    eventually(lambda: all(live(run) for run in runs))
    job = str(read_lock(runs[0])["job"]).rpartition("_")[0]
    if how == "signal":
        apart.cluster.run("scancel", "--signal=USR2", "--batch", job)
    else:
        apart.cluster.run("scontrol", "requeue", job)
    eventually(lambda: states(apart) == ["done", "done"], 90)
    apart.wait()
    assert apart.starts() == [2, 1]
    assert [evaluations(run) for run in runs] == [1, 1]


def test_a_requeue_of_the_evaluation_runs_it_again(apart: Site) -> None:
    apart.sweep_of(1)
    (apart.folder / "hold").touch()
    apart.submit("--evaluate-apart")
    (run,) = apart.runs()
    eventually(lambda: evaluations(run) == 1)
    (job,) = apart.cluster.queue()
    apart.cluster.run("scontrol", "requeue", job)
    eventually(lambda: evaluations(run) == 2, 60)
    (apart.folder / "hold").unlink()
    apart.wait()
    assert states(apart) == ["done"]
    assert apart.starts() == [1] and apart.cluster.queue() == []


def test_cancel_ends_both_and_what_is_trained_is_only_evaluated(apart: Site) -> None:
    apart.sweep_of(2, steps=4)
    (apart.folder / "hold").touch()
    apart.submit("--evaluate-apart")
    runs = apart.runs()
    eventually(lambda: all(evaluations(run) for run in runs))
    assert re.fullmatch(r"cancelled job \d+ \(evaluation\): 2 runs ran\n.*\n", apart.submit("--cancel"))
    apart.wait()
    (apart.folder / "hold").unlink()
    output = apart.submit("--evaluate-apart")
    assert output.count(" trained ") == 2 and output.count("as array") == 1, output
    apart.wait()
    assert states(apart) == ["done", "done"] and apart.starts() == [1, 1]
    apart.sweep_of(4, steps=4)
    held = apart.folder / "held.yaml"
    held.write_text("gpus_per_node: 0\ncpus_per_task: 1\nsbatch: {hold: true}\n")
    apart.submit("--evaluate-apart", "--profile", held)
    assert len(apart.cluster.queue()) == 4
    cancelled = apart.submit("--cancel")
    assert cancelled.count("2 runs waited") == 2 and cancelled.count("(evaluation)") == 1, cancelled
    eventually(lambda: apart.cluster.queue() == [])


def test_the_report_waits_for_the_evaluation(apart: Site) -> None:
    there = Site(apart.cluster, apart.fakes, report=True)
    there.sweep_of(2)
    (there.folder / "hold").touch()
    output = there.submit("--evaluate-apart")
    _, evaluation = re.findall(r"array (\d+)", output)
    eventually(lambda: all(evaluations(run) for run in there.runs()))
    waiting = there.cluster.run("squeue", "--noheader", "--name=demo-report", "--format=%E")
    assert f"afterany:{evaluation}" in waiting
    there.cluster.run("scancel", "--name=demo-report")
    (there.folder / "hold").unlink()
    there.wait()

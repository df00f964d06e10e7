"""Runs of one sweep that ask a cluster for different resources, by stand-ins for Slurm; options on queued jobs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from launch import sweep
from launch.jobs.pack import read_pack
from launch.jobs.snapshot import Snapshot
from launch.slurm import submitter as slurm_submitter
from launch.slurm.profile import Profile
from launch.slurm.queue import runs_of
from launch.slurm.queued import read_record
from tests.support.fakes import Fakes
from tests.support.process import SLURM_TOOLS
from toolkit.errors import ConfigError, ToolkitError
from toolkit.rundir import RunDir

MIXED = """
base: base.yaml
seeds: 2
resources: {time: 6:00:00, mem: 8G}
list:
  - {name: digits}
  - {name: radar, train.steps: 4, resources: {time: 2-00:00:00, gpus_per_node: 2, partition: big}}
  - {name: digits2, train.steps: 5, resources: {mem: 8G}}
"""


def options_of(text: str) -> dict[str, str]:
    """Return the options of sbatch that a text holds."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE))


class Cluster:
    """A folder with a sweep file and stand-ins for Slurm's commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "runs" / "demo"

    def go(self, *arguments: str) -> int:
        report = () if {"--dry-run", "--cancel"} & {*arguments} else ("--no-report",)
        return sweep.main(["demo.yaml", "--cluster", "slurm", *report, *arguments])

    def calls(self) -> str:
        file = self.folder / "calls"
        return file.read_text() if file.exists() else ""

    def submissions(self) -> dict[str, tuple[list[str], dict[str, str]]]:
        """Return job -> (names of its runs, its options of sbatch)."""
        found = {}
        for file in self.root.glob("slurm/*/job"):
            runs = [Path(line).name.rpartition("-")[0] for line in (file.parent / "runs.txt").read_text().splitlines()]
            found[file.read_text().strip()] = (runs, options_of((file.parent / "submit.sbatch").read_text()))
        return dict(sorted(found.items()))

    def records(self) -> dict[str, Mapping[str, object]]:
        """Return job -> what it asks for."""
        return {file.read_text().strip(): read_record(file.parent) for file in self.root.glob("slurm/*/job")}

    def change(self, job: str, state: str) -> None:
        """Set the state of jobs in the queue whose line begins with `job`."""
        file = self.folder / "queue"
        lines = file.read_text().splitlines()
        changed = [line.replace(" PENDING ", f" {state} ") if line.startswith(job) else line for line in lines]
        file.write_text("\n".join(changed) + "\n")


@pytest.fixture
def site(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    shutil.copytree(SLURM_TOOLS, fakes.folder / "bin", ignore=shutil.ignore_patterns("sinfo", "srun"))
    monkeypatch.setenv("PATH", f"{fakes.folder}/bin:/usr/bin:/bin")
    monkeypatch.chdir(fakes.folder)
    monkeypatch.setattr(slurm_submitter.snapshot, "take", lambda sweep: Snapshot(fakes.folder / "code", (), None))
    fakes.sweep_file(MIXED)
    made = Cluster(fakes.folder)
    answer = "id=$((4711 + $(ls -d runs/demo/slurm/*/ | wc -l))); accept $id; echo Submitted batch job $id"
    (fakes.folder / "sbatch.sh").write_text(answer + "\n")
    (fakes.folder / "squeue.sh").write_text("")
    return made


def test_each_request_is_an_array_of_its_own(site: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert site.go("--account", "weather") == 0
    (_, (digits, one)), (_, (radar, other)) = site.submissions().items()
    assert digits == ["digits-seed1", "digits-seed2", "digits2-seed1", "digits2-seed2"]
    assert radar == ["radar-seed1", "radar-seed2"]
    assert (one["time"], one["mem"], one["gpus-per-node"], one["array"]) == ("6:00:00", "8G", "1", "0-3")
    assert "partition" not in one
    assert (other["time"], other["mem"], other["gpus-per-node"]) == ("2-00:00:00", "8G", "2")
    assert (other["partition"], other["account"], other["ntasks-per-node"]) == ("big", "weather", "2")
    output = capsys.readouterr().out
    assert "submitted 4 runs as array 4712; resources: mem: 8G, time: 6:00:00\n" in output
    assert "submitted 2 runs as array 4713; resources: gpus_per_node: 2, mem: 8G, partition: big" in output
    for folder in site.root.glob("*/submit.sbatch"):  # what a requeue runs again, or a person by hand
        text = options_of(folder.read_text())
        assert text["time"] == ("2-00:00:00" if "radar" in folder.parent.name else "6:00:00")
    assert site.go("--account", "weather") == 0
    output = capsys.readouterr().out
    assert output.count("is in the queue (PENDING)") == 6 and "note: no effect" not in output


def test_the_command_line_is_over_the_sweep_file(site: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert site.go("--dry-run", "--show", "--time", "30", "--gpus-per-node", "1", "--partition", "main") == 0
    output = capsys.readouterr().out
    assert output.count("#SBATCH --time=30\n") == output.count("#SBATCH --array=0-5\n") == 1  # all ask for the same
    assert re.search(r"6 runs in 1 array .* with 1 GPU; resources: mem: 8G\n", output)
    assert site.go("--dry-run", "--show") == 0
    output = capsys.readouterr().out
    assert "submission-1/submit.sbatch: 4 runs; resources: mem: 8G, time: 6:00:00" in output
    assert "submission-2/submit.sbatch: 2 runs; resources: gpus_per_node: 2" in output
    assert "of training on 1 to 2 ranks each" in output
    assert not site.root.exists()


def test_texts_are_shown_where_no_slurm_answers(
    site: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for path in (f"{site.folder}/bin:/usr/bin:/bin", str(site.folder / "nothing")):
        monkeypatch.setenv("PATH", path)
        assert site.go("--dry-run", "--no-queue", "--show") == 0
        output = capsys.readouterr().out
        texts.append(re.split(r"^# .*/submit.sbatch: ", output, flags=re.MULTILINE)[1:])
        assert ("note: no Slurm answers here, so each request is one array: " in output) == (len(texts) == 2)
    assert len(texts[0]) == 2 and texts[0] == texts[1]
    for missing in (("--test",), ("--show", "--test")):
        with pytest.raises(ToolkitError, match="sbatch, squeue, scontrol not found here"):
            site.go("--dry-run", "--no-queue", *missing)


def test_a_run_that_is_submitted_again_keeps_its_request(site: Cluster) -> None:
    site.go()
    (site.folder / "queue").write_text("")
    for run in site.root.glob("radar-seed2*"):
        RunDir(run).mark_failed("killed")
    site.go("--retry", "failed", "--only", "radar-seed2")
    runs, options = site.submissions()["4714"]
    assert (runs, options["time"], options["partition"]) == (["radar-seed2"], "2-00:00:00", "big")


def test_arrays_of_all_requests_share_the_limit_of_jobs(site: Cluster) -> None:
    site.go("--jobs", "2")
    (_, one), (_, other) = site.submissions().values()
    assert (one["array"], other["array"]) == ("0-3%2", "0-1%2")
    assert other["dependency"] == "afterany:4712"


def test_packed_jobs_hold_runs_of_one_request(site: Cluster, fakes: Fakes) -> None:
    fakes.sweep_file(
        MIXED.replace("mem: 8G}\nlist", "mem: 8G, gpus_per_node: 4, pack: 4}\nlist").replace("s: 2", "s: 3")
    )
    site.go()
    (digits, one), (radar, _) = site.submissions().values()
    assert (len(digits), one["array"]) == (6, "0-1")
    packs = {folder: read_pack(folder.parent) for folder in site.root.glob("slurm/*/pack.json")}
    assert sorted((pack.places, pack.ranks, pack.gpus) for pack in packs.values() if pack) == [(4, 1, 2), (4, 1, 4)]
    queue = slurm_submitter.client.queue()
    names = {run.name.rpartition("-")[0]: job.name for run, job in runs_of(site.root, queue).items()}
    assert {names[run] for run in radar} == {"4713"}
    assert {names[run] for run in digits} == {"4712_0", "4712_1"}


def test_full_jobs_of_every_request_are_kept_submitted(
    site: Cluster, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.sweep_file(
        "base: base.yaml\nseeds: 3\nlist:\n  - {resources: {gpus_per_node: 2, pack: 2}}\n"
        "  - {train.steps: 4, resources: {gpus_per_node: 3, pack: 3}}\n"
    )
    taken: list[int] = []

    def look(seconds: float) -> None:
        taken.extend(len(runs) for runs, _ in list(site.submissions().values())[len(taken) :])
        (site.folder / "queue").write_text("")
        for folder in site.root.glob("*/config.yaml"):
            run = RunDir(folder.parent)
            run.mark_done()
            run.eval.mkdir(exist_ok=True)
            for which in run.scored_checkpoints:
                (run.eval / f"{run.config().eval.split}-{which}.json").write_text("{}")

    monkeypatch.setattr(sweep.time, "sleep", look)
    with pytest.raises(ConfigError, match="--keep-submitted 2 is fewer runs than one job of --pack 3 has"):
        site.go("--keep-submitted", "2")
    site.go("--keep-submitted", "4")
    assert taken == [3]  # 2 + 1 fill two jobs; three more don't fit


def test_requests_that_cannot_be_met_are_refused_before_anything_is_made(site: Cluster, fakes: Fakes) -> None:
    fakes.sweep_file(
        "base: base.yaml\nlist:\n  - {resources: {pack: 3, gpus_per_node: 4}}\n"
        "  - {train.steps: 4, resources: {pack: 2, nodes: 2}}\n"
    )
    with pytest.raises(ConfigError) as caught:
        site.go()
    first, second = str(caught.value).splitlines()
    assert first.startswith("resources (gpus_per_node: 4, pack: 3) of steps3-") and "1 would stay idle" in first
    assert second.startswith("resources (nodes: 2, pack: 2) of steps4-") and "--nodes is 2" in second
    fakes.sweep_file("base: base.yaml\nlist: [{seed: 1}, {seed: 2, resources: {time: 1}}]\n")
    with pytest.raises(ToolkitError, match=r"is 1 \(60 s\), and `signal_s` is 120"):
        site.go()
    fakes.sweep_file("base: base.yaml\nlist: [{seed: 1}, {seed: 2, resources: {nodes: 3}}]\n")
    with pytest.raises(ConfigError, match=r"3 ranks.*\(1 run\)|batch.*3"):
        site.go()
    assert not site.root.exists()


def test_resources_have_no_meaning_on_this_machine_which_is_noted_once(site: Cluster, fakes: Fakes) -> None:
    fakes.sweep_file("base: base.yaml\nlist: [{seed: 1, resources: {time: 5, mem: 1G}}]\n")
    code, output = fakes.sweep("demo.yaml")
    assert code == 0, output
    note = "note: resources of 1 run (mem, time) hold on a cluster only: ignored here\n"
    assert output.count("note: resources") == output.count(note) == 1


def test_options_are_applied_to_jobs_that_wait(site: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    site.go()
    site.change("4712_0", "RUNNING")
    site.go("--time", "90", "--qos", "low")
    calls = [line for line in site.calls().splitlines() if line.startswith("update")]
    assert calls == [
        "update jobid=4712_[1,2,3] timelimit=90",
        "update jobid=4712_[1,2,3] qos=low",
        "update jobid=4713 timelimit=90",
        "update jobid=4713 qos=low",
    ]
    output = capsys.readouterr().out
    assert "job 4712 in the queue: time 90 from now on (3 waiting; 1 that run keep theirs)\n" in output
    assert "job 4713 in the queue: qos low from now on (2 waiting)\n" in output
    assert "note: no effect" not in output
    assert {record["time"] for record in site.records().values()} == {"90"}
    site.go("--time", "90", "--qos", "low")  # as they are now
    assert len([line for line in site.calls().splitlines() if line.startswith("update")]) == 4


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (("--nodes", "2"), "nodes 1 (now: 2)"),
        (("--mem", "9G"), "mem 8G (now: 9G)"),
        (("--gpus-per-node", "4", "--pack", "4"), "pack none (now: 4)"),
    ],
)
def test_what_slurm_cannot_change_is_reported_with_the_command(
    site: Cluster, options: tuple[str, ...], kept: str, capsys: pytest.CaptureFixture[str]
) -> None:
    site.go()
    site.change("4713", "RUNNING")
    capsys.readouterr()
    site.go(*options)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: no effect")]
    assert len(lines) == 2
    assert lines[0].startswith("note: no effect on job 4712 in the queue, which keeps ") and kept in lines[0]
    assert lines[0].endswith("to apply it: scancel --state=PENDING 4712, then give this command again")
    assert lines[1].startswith("note: no effect on job 4713 that runs, which keeps ")
    assert lines[1].endswith("to apply it: scancel 4713, then give this command again")
    assert "update" not in site.calls()


def test_another_profile_is_reported(site: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    site.go()
    profile = site.folder / "other.yaml"
    profile.write_text("constraint: h100\ncpus_per_task: 2\n")
    site.go("--profile", str(profile))
    output = capsys.readouterr().out
    assert output.count("constraint none (now: h100)") == output.count("cpus_per_task 4 (now: 2)") == 2


def test_a_refused_change_is_reported(site: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    site.go()
    tool = site.folder / "bin" / "scontrol"
    text = tool.read_text()
    tool.write_text(text.replace("case $* in", "case $* in\n  *qos=*) echo no >&2; exit 1 ;;"))
    site.go("--qos", "high")
    output = capsys.readouterr().out
    assert "note: --qos has no effect on job 4712 in the queue: scontrol: no; to apply it: scancel --state" in output
    assert "high" not in {record["qos"] for record in site.records().values()}
    assert "note: no effect" not in output


APART = """
base: base.yaml
list:
  - {name: a}
  - {name: b, train.steps: 4}
  - {name: c, model.name: persistence}
"""


def parts(output: str) -> list[tuple[str, str, str]]:
    """Return the submissions that --show printed: number of runs, the text of their runs, the condition."""
    texts = re.split(r"^# .*/submit.sbatch: ", output, flags=re.MULTILINE)[1:]
    names = [re.search(r"\$run/(\w+)\.sbatch", text) for text in texts]
    return [
        (text.split("\n")[0].split(";")[0], name[1] if name else "", options_of(text).get("dependency", ""))
        for text, name in zip(texts, names, strict=True)
    ]


def test_a_preview_of_evaluations_apart_is_what_is_submitted(
    site: Cluster, fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes.sweep_file(APART)
    arguments = ("--gpus-per-node", "0", "--evaluate-apart")
    for queue in ((), ("--no-queue",)):
        assert site.go("--dry-run", "--show", "--test", *queue, *arguments) == 0
        output = capsys.readouterr().out
        assert parts(output) == [
            ("2 runs", "submit", ""),
            ("2 runs", "evaluate", "aftercorr:TRAINING"),
            ("1 run", "evaluate", ""),
        ]
        lines = [line for line in output.splitlines() if "in 1 array" in line]
        assert [line.split(" in ")[0] for line in lines] == ["2 runs", "2 runs", "1 run"]
        assert ["; evaluation" in line for line in lines] == [False, True, True]
    assert not site.root.exists()
    site.go(*arguments)
    assert [runs for runs, _ in site.submissions().values()] == [["a", "b"], ["a", "b"], ["c"]]
    (site.folder / "queue").write_text("")
    for file in site.root.glob("*/config.yaml"):
        RunDir(file.parent).mark_done()
    site.go("--dry-run", "--show", *arguments)
    assert parts(capsys.readouterr().out) == [("3 runs", "evaluate", "")]
    site.go("--dry-run", "--show", "--replace", *arguments)  # the runs are done, and will not be any more
    assert [part[:2] for part in parts(capsys.readouterr().out)] == [
        ("2 runs", "submit"),
        ("2 runs", "evaluate"),
        ("1 run", "evaluate"),
    ]


def profile_of(site: Cluster, text: str) -> tuple[str, str]:
    """Write a profile; return the options that name it."""
    file = site.folder / "own.yaml"
    file.write_text(text)
    return "--profile", str(file)


def notes(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what was reported of jobs."""
    return [line for line in capsys.readouterr().out.splitlines() if re.match(r"note: .*\bjob \d", line)]


def test_evaluations_stay_in_the_partition_of_small_jobs(
    site: Cluster, fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes.sweep_file(APART)
    profile = profile_of(site, "gpus_per_node: 0\nlight: {partition: cpu, qos: small, account: shared}\n")
    options = ("--evaluate-apart", "--partition", "gpu", "--qos", "big", "--account", "mine")
    site.go(*profile, *options)
    where = [(one["partition"], one["qos"], one["account"]) for _, one in site.submissions().values()]
    assert where == [("gpu", "big", "mine"), ("cpu", "small", "shared"), ("cpu", "small", "shared")]
    site.go(*profile, *options, "--time", "50")
    updates = [line for line in site.calls().splitlines() if line.startswith("update")]
    assert updates == [f"update jobid={job} timelimit=50" for job in (4712, 4713, 4714)]
    assert notes(capsys) == []
    profile_of(site, "gpus_per_node: 0\nlight: {partition: small, qos: small, account: shared}\n")
    site.go(*profile, *options, "--time", "50")  # `light` is no part of what a training asks for
    assert [line for line in site.calls().splitlines() if " partition=" in line] == [
        f"update jobid={job} partition=small" for job in (4713, 4714)
    ]
    assert notes(capsys) == []
    site.go("--partition", "gpu", "--evaluate-apart")  # on GPUs: the trainings' partition
    assert site.calls().splitlines()[-2:] == [f"update jobid={job} partition=gpu" for job in (4713, 4714)]


def test_each_run_in_the_queue_is_compared_with_its_own_request(
    site: Cluster, fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "base: base.yaml\nlist:\n  - {name: a}\n  - {name: b, train.steps: 4%s}\n  - {name: c, train.steps: 5%s}\n"
    fakes.sweep_file(text % ("", ""))
    site.go("--evaluate-apart")
    fakes.sweep_file(text % (", resources: {mem: 64G, time: 5:00:00}", ", resources: {constraint: h100}"))
    capsys.readouterr()
    site.go("--evaluate-apart")
    found = notes(capsys)
    assert len(found) == 4
    for job, lines in ((4712, found[:2]), (4713, found[2:])):
        assert [line.partition(" for ")[2][:2] for line in lines] == ["b-", "c-"]
        assert lines[0].startswith(f"note: no effect on job {job} in the queue for b-")
        assert "which keeps time none (now: 5:00:00), mem none (now: 64G); to apply it: " in lines[0]
        assert lines[0].endswith(f"scancel --state=PENDING {job}_1, then give this command again")
        assert "keeps constraint none (now: h100); " in lines[1] and f"{job}_2, then" in lines[1]
    site.go("--evaluate-apart", "--time", "5:00:00", "--only", "a")
    assert all("time" not in line for line in notes(capsys))
    fakes.sweep_file("base: base.yaml\nlist:\n  - {name: a, resources: {mem: 1G}}\n")  # b and c: not planned any more
    site.go("--evaluate-apart", "--time", "5:00:00")
    (run,) = site.root.glob("a-*")
    assert [line.partition(", which")[0] for line in notes(capsys)] == [
        f"note: no effect on job {job} in the queue for {run.name}" for job in (4712, 4713)
    ]


CHANGES = {
    "constraint: h100": "constraint none (now: h100)",
    "exclude: n1": "exclude none (now: n1)",
    "gpu_type: h100": "gpu_type none (now: h100)",
    "modules: [cuda, gcc]": "modules none (now: cuda; gcc)",
    "setup: [module purge]": "setup none (now: module purge)",
    "teardown: rm x": "teardown none (now: rm x)",
    "env: {NCCL_DEBUG: INFO}": "another env.NCCL_DEBUG",
    "interface: ib0": "interface none (now: ib0)",
    "container: apptainer exec X.sif": "container none (now: apptainer exec X.sif)",
    "python: /x/python": "python none (now: /x/python)",
    "srun: [--mpi=none]": "srun none (now: --mpi=none)",
    "sbatch: {reservation: spring}": "sbatch.reservation none (now: spring)",
    "signal_s: 60": "signal_s 120 (now: 60)",
    "max_restarts: 3": "max_restarts 100 (now: 3)",
    "time: 5:00:00": "time none (now: 5:00:00)",
    "light: {time: 5}": "",
}


@pytest.mark.parametrize("packed", [False, True])
def test_every_key_of_a_profile_is_compared(
    site: Cluster, fakes: Fakes, packed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    compared = {change.partition(":")[0] for change in CHANGES}
    others = {"partition", "account", "qos", "mem", "nodes", "gpus_per_node", "cpus_per_task", "pack"}  # tested above
    assert compared | others == {*Profile.model_fields}
    fakes.sweep_file("base: base.yaml\nseeds: 2\n")
    plain = "gpus_per_node: 2\n" + "pack: 2\n" * packed
    site.go(*profile_of(site, plain))
    capsys.readouterr()
    for change, kept in CHANGES.items():
        site.go(*profile_of(site, f"{plain}{change}\n"))
        assert [line.partition("which keeps ")[2].partition("; to apply it")[0] for line in notes(capsys)] == (
            [kept] if kept else []
        )
    site.go(*profile_of(site, plain))
    assert notes(capsys) == []


def test_evaluations_that_are_not_in_the_queue_are_reported(
    site: Cluster, fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes.sweep_file("base: base.yaml\nseeds: 2\n")
    site.go()
    site.go("--evaluate-apart")
    (line,) = notes(capsys)
    assert "job 4712 in the queue, which keeps evaluation in the same job (now: apart); to apply it: scancel" in line
    (site.folder / "queue").write_text("")
    site.go("--evaluate-apart")
    assert notes(capsys) == []
    site.go()
    (line,) = notes(capsys)
    assert "job 4713 in the queue, which keeps evaluation apart (now: in the same job); " in line
    queue = site.folder / "queue"
    queue.write_text("".join(line for line in queue.read_text().splitlines(True) if not line.startswith("4714_1")))
    site.go("--evaluate-apart")
    (line,) = notes(capsys)
    assert re.fullmatch(
        r"note: job 4713 only trains modernn-seed2-\w+, and no job evaluates: give this command again .*", line
    )


def test_jobs_without_a_record_are_reported(site: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    site.go()
    for file in site.root.glob("slurm/*/request.json"):
        file.unlink()
    capsys.readouterr()
    site.go("--mem", "1G")
    assert [line.partition(",")[0] for line in notes(capsys)] == [
        f"note: job {job} is of an earlier version" for job in (4712, 4713)
    ]


def test_trainings_and_evaluations_have_a_limit_each(site: Cluster, fakes: Fakes) -> None:
    fakes.sweep_file(
        "base: base.yaml\nseeds: 3\nlist: [{name: a}, {train.steps: 4, resources: {time: 5}},"
        " {name: c, model.name: persistence}]\n"
    )
    site.go("--jobs", "2", "--gpus-per-node", "0", "--evaluate-apart")
    arrays = [(one.get("array"), one.get("dependency")) for _, one in site.submissions().values()]
    assert arrays == [
        ("0-2%2", None),
        ("0-2%2", "aftercorr:4712"),
        (None, "afterany:4712"),  # a model without training is one run of three seeds
        ("0-2%2", "afterany:4712:4714"),
        ("0-2%2", "aftercorr:4715,afterany:4713"),
    ]


def test_the_report_asks_for_what_most_runs_do(site: Cluster, fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = site.folder / "bin" / "sbatch"
    tool.write_text(tool.read_text().replace("accept()", 'echo "$SBATCH_PARTITION" >>partitions\naccept()', 1))
    text = "base: base.yaml\n%slist: [{seed: 1, resources: {account: other}}, {seed: 2}, {seed: 3}]\n"
    arguments = ["demo.yaml", "--cluster", "slurm", "--profile", profile_of(site, "account: none\n")[1]]
    monkeypatch.setenv("SBATCH_PARTITION", "elsewhere")  # takes precedence over the batch script

    def report(*more: str) -> tuple[str | None, ...]:
        shutil.rmtree(site.root, ignore_errors=True)
        (site.folder / "queue").write_text("")
        sweep.main([*arguments, *more])
        options = options_of((site.root / "slurm" / "report" / "submit.sbatch").read_text())
        variable = (site.folder / "partitions").read_text().splitlines()[-1]
        keys = ("account", "partition", "qos", "time", "mem", "gpus-per-node")
        return (variable, *(options.get(key) for key in keys))

    fakes.sweep_file(text % "resources: {account: proj, partition: big, qos: long, time: 2-0, mem: 0}\n")
    assert report() == ("", "proj", "big", "long", "60", None, None)
    assert report("--account", "mine") == ("", "mine", "big", "long", "60", None, None)
    fakes.sweep_file(text % "")
    assert report() == ("elsewhere", "none", None, None, "60", None, None)
    profile_of(site, "light: {partition: cpu}\n")
    assert report() == ("", None, "cpu", None, "60", None, None)

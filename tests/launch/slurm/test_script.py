"""The sbatch texts, whole, as tests/launch/slurm/golden holds them; and profiles.

A change of a text that is meant: delete the files, run this twice, and read the difference.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from launch.slurm.client import submission_environment
from launch.slurm.profile import Profile, read_profile
from launch.slurm.refusals import explain
from launch.slurm.script import Shape, array_text, command_text, run_text
from toolkit.errors import ConfigError
from toolkit.shipped import PROFILES

GOLDEN = Path(__file__).parent / "golden"
SWEEP = Path("/scratch/me/runs/demo")
RUN = SWEEP / "modernn-seed1-1a2b3c4d"
CODE = SWEEP / "code" / "0123456789ab"
HOME = Path("/home/me/modernn")
COMMAND = ["/venv/bin/python", f"{CODE}/launch/jobs/job.py", str(RUN), "--ranks", "1", "--log-files"]


def text_of(profile: Profile, ranks: int | None = None) -> str:
    return run_text(profile, Shape.of(profile, ranks), SWEEP, RUN, CODE, COMMAND, HOME)


def texts() -> dict[str, str]:
    plain = Profile()
    folder = SWEEP / "slurm" / "8c9d0e1f"
    array = array_text(plain, Shape.of(plain), SWEEP, folder, "demo-8c9d0e1f", "0-99%10", ["4711"], HOME, CODE)
    command = ["/venv/bin/python", "-m", "shards.part", "/data/.x.partial-1/jobs"]
    tasks = command_text(
        Profile(partition="cpu", container="apptainer exec /images/x.sif"),
        4,
        Path("/data/.x.partial-1/jobs"),
        "shards-x-1",
        command,
        Path("/home/me/modernn"),
        HOME,
        "/data/.x.partial-1/jobs",
        array="0-7",
        after=["4711", "4712"],
        numbered=True,
    )
    node = Profile(gpus_per_node=4, partition="gpu", time="12:00:00", pack="auto")
    packed = array_text(
        node,
        Shape.of(node),
        SWEEP,
        folder,
        "demo-8c9d0e1f",
        "0-38%10",
        ["4711", "4712_3"],
        HOME,
        CODE,
        ["/venv/bin/python", f"{CODE}/launch/jobs/pack.py", str(folder)],
    )
    return {
        "tasks": tasks,
        "packed": packed,
        "one-gpu": text_of(plain),
        "two-nodes": text_of(Profile(nodes=2, gpus_per_node=4)),
        "array": array,
        "modules": text_of(read_profile("gpu")),
        "container": text_of(read_profile("container")),
    }


@pytest.mark.parametrize("name", sorted(texts()))
def test_the_text_is_the_one_that_was_reviewed(name: str) -> None:
    file, text = GOLDEN / f"{name}.sbatch", texts()[name]
    if not file.exists():
        file.write_text(text)
        pytest.fail(f"{file} was missing: written anew. Read it, then run this again")
    assert text == file.read_text()
    subprocess.run(["bash", "-n", str(file)], check=True)


def test_ranks_without_gpus() -> None:
    profile = Profile(gpus_per_node=0, nodes=2)
    assert Shape.of(profile, 8).tasks_per_node == 4
    assert "--gpus" not in text_of(profile, ranks=8)
    with pytest.raises(ConfigError, match="--ranks 3 can't be spread evenly over 2 nodes: use a multiple of 2"):
        Shape.of(profile, 3)


SHAPES = [
    # gpus, ranks, pack -> places, ranks of a run, processors of the job's task at 3 each
    (4, None, "auto", 4, 1, 12),
    (4, 2, "auto", 2, 2, 12),
    (4, None, "2", 2, 2, 12),
    (4, None, "1", 1, 4, 12),
    (4, None, "8", 8, 1, 24),  # they share GPUs
    (2, None, "3", 3, 1, 9),
    (0, None, "6", 6, 1, 18),
    (0, 2, "3", 3, 2, 18),
]


@pytest.mark.parametrize(("gpus", "ranks", "pack", "places", "each", "processors"), SHAPES)
def test_the_shape_of_a_packed_job(
    gpus: int, ranks: int | None, pack: str, places: int, each: int, processors: int
) -> None:
    shape = Shape.of(Profile(gpus_per_node=gpus, pack=pack), ranks)
    assert (shape.nodes, shape.gpus_per_node, shape.pack, shape.ranks) == (1, gpus, places, each)
    assert (shape.tasks_per_node, shape.cpus_per_task(3)) == (1, processors)
    assert shape.alone == Shape(1, min(gpus, each), each)


@pytest.mark.parametrize(
    ("gpus", "ranks", "pack", "message"),
    [
        (4, None, "3", r"3 runs of 1 rank on 4 GPUs: 1 would stay idle; give --pack 4 --ranks 1"),
        (4, 3, "auto", r"1 run of 3 ranks on 4 GPUs: 1 would stay idle"),
        (4, 2, "4", r"4 runs of 2 ranks on 4 GPUs: ranks of a run can't share GPUs; give --pack 2 --ranks 2"),
        (0, None, "auto", r"--pack auto counts the GPUs of a node, and --gpus-per-node is 0"),
        (4, 3, None, r"--ranks 3 on 4 GPUs \(1 node with 4 each\): a rank takes one GPU; give --gpus-per-node 3"),
        (1, 2, None, r"--ranks 2 on 1 GPU "),
    ],
)
def test_gpus_that_would_be_idle_or_shared_by_ranks(gpus: int, ranks: int, pack: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Shape.of(Profile(gpus_per_node=gpus, pack=pack), ranks)
    with pytest.raises(ConfigError, match="--pack 2 runs several runs on one node, and --nodes is 2"):
        Shape.of(Profile(nodes=2, pack="2"))


def test_names_with_blanks_and_quotes_stay_whole(tmp_path: Path) -> None:
    folder = tmp_path / "it's here"
    (folder / "logs").mkdir(parents=True)
    profile = Profile(env={"WORDS": "a 'b' $c"}, setup=["true"])
    text = run_text(profile, Shape(1, 1, 1), tmp_path, folder, CODE, ["python", str(folder)], tmp_path)
    end = text.index("if [ ! -r")
    shown = subprocess.run(["bash", "-c", text[:end] + 'echo "$run"'], capture_output=True, text=True, check=True)
    assert shown.stdout == f"{folder}\n"
    assert "export WORDS='a '\"'\"'b'\"'\"' $c'" in text


HOSTILE = [
    "it's here",
    "$(touch RAN)",
    "`touch RAN`",
    'a"b',
    "a; touch RAN;",
    "$HOME",
    "a\\b",
    "'$(touch RAN)'",
    "-n",
    "!!",
]


def run_bash(text: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """The text in a folder of its own, where what got loose would leave RAN."""
    (cwd / "text").write_text(text)
    command = ["bash", str(cwd / "text")]
    variables = {"PATH": f"{cwd}/bin:{os.environ['PATH']}", "HOME": "/nowhere", **environ}
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", HOSTILE)
def test_an_array_runs_its_runs_wherever_they_lie(tmp_path: Path, name: str) -> None:
    sweep = tmp_path / name
    folder, runs = sweep / "slurm" / "key", [sweep / "run-1", sweep / "run-2"]
    folder.mkdir(parents=True)
    runs[1].mkdir()
    (runs[1] / "submit.sbatch").write_text('printf "%s" "$0"')
    (folder / "runs.txt").write_text("".join(f"{run}\n" for run in runs))
    text = array_text(Profile(), Shape(1, 1, 1), sweep, folder, "demo-key", "0-1", [], tmp_path, CODE)
    done = run_bash(text, tmp_path, SLURM_ARRAY_TASK_ID="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{runs[1]}/submit.sbatch", "")
    done = run_bash(text, tmp_path, SLURM_ARRAY_TASK_ID="0")  # it isn't there
    assert done.returncode == 2 and f"can't see '{runs[0]}', line 1 of {folder}/runs.txt" in done.stderr
    assert not list(tmp_path.rglob("RAN"))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_task_runs_its_command_wherever_it_lies(tmp_path: Path, name: str) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text('#!/bin/bash\nprintf "%s\\n" "$WORDS" "$@" "$PYTHONPATH"\nexit 4\n')
    (tmp_path / "bin" / "srun").chmod(0o755)
    folder = tmp_path / name
    profile = Profile(env={"WORDS": name})
    command = ["python", name, str(folder)]
    text = command_text(profile, 1, folder, "x", command, folder, tmp_path, str(folder), "0-1", numbered=True)
    done = run_bash(text, tmp_path, SLURM_ARRAY_TASK_ID="1")
    assert done.returncode == 2 and f"can't see {folder}\n" in done.stderr
    folder.mkdir()
    done = run_bash(text, tmp_path, SLURM_ARRAY_TASK_ID="1")
    assert done.returncode == 4 and (folder / "1.code").read_text() == "4\n"
    assert done.stdout.splitlines() == [name, "--ntasks=1", "--cpus-per-task=1", *command, "1", str(folder)]
    assert not list(tmp_path.rglob("RAN"))


def prepared(tmp_path: Path, profile: Profile, after: str = "echo went on") -> str:
    """What the lines before a step print, with stand-ins for what job.sh defines."""
    text = text_of(profile)
    lines = text[text.index("prepare()") : text.index("run_step()")]
    start = 'fail() { echo "FAILED $*"; exit 2; }\nmodule() { return 1; }\n'
    return run_bash(f"{start}{lines}\nprepare\n{after}\n(cleanup)\n", tmp_path).stdout


LINES = [
    (["cd /does/not/exist", "touch RAN"], r"FAILED setup: 'cd /does/not/exist' returned 1 on node \S+\n"),
    (["true", "false"], r"FAILED setup: 'false' returned 1 on node \S+\n"),
    (["exit 0"], r"FAILED setup: 'exit 0' ended the job on node \S+\n"),
    (["set -u", "echo $NOWHERE"], r"FAILED setup: 'echo \$NOWHERE' ended the job on node \S+\n"),
    (["if then"], r"FAILED setup: 'if then' returned \d on node \S+\n"),
    (["set -euo pipefail", "shopt -s nullglob", "IFS=:"], "went on\n"),
    (["if true; then\n  false || export A=1\nfi"], "went on\n"),
    ([], "went on\n"),
]


@pytest.mark.parametrize(("setup", "printed"), LINES)
def test_each_line_of_setup_is_checked_and_its_shell_options_stay_with_it(
    tmp_path: Path, setup: list[str], printed: str
) -> None:
    after = 'false; shopt -q nullglob || [ "$-" != "${-/e/}" ] || [[ $IFS == : ]] || echo went on'
    assert re.fullmatch(printed, prepared(tmp_path, Profile(setup=setup), after))
    assert not (tmp_path / "RAN").exists()


def test_what_setup_exports_stays_and_teardown_comes_last(tmp_path: Path) -> None:
    profile = Profile(setup=["export A='x y'"], teardown=["echo after $A", "false", "exit 3"])
    assert prepared(tmp_path, profile, 'echo "step $A"') == "step x y\nafter x y\n"


def test_a_module_that_cannot_be_loaded_is_said_as_it_is_called(tmp_path: Path) -> None:
    said = prepared(tmp_path, Profile(modules=["it's/1 $(touch RAN)"]))
    assert re.match(r"""FAILED setup: 'module load 'it'"'"'s/1 \$\(touch RAN\)'' returned 1 on node """, said), said
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize("end", ["\n", "\r"])
def test_no_path_begins_a_line_of_its_own(tmp_path: Path, end: str) -> None:
    folder = tmp_path / f"a{end}touch RAN{end}"
    shape = Shape(1, 1, 1)
    for make in (
        lambda: run_text(Profile(), shape, folder, folder / "run", CODE, ["python"], tmp_path),
        lambda: array_text(Profile(), shape, folder, folder, "demo", None, [], tmp_path, CODE),
        lambda: command_text(Profile(), 1, folder, "demo", ["python"], tmp_path, tmp_path, "demo"),
        lambda: run_text(Profile(account=f"a{end}touch RAN"), shape, SWEEP, RUN, CODE, ["python"], HOME),
    ):
        with pytest.raises(ConfigError, match="holds the end of a line"):
            make()
    with pytest.raises(ConfigError, match=r"env: 'A;touch RAN' is no name of a variable"):
        profile_of(tmp_path, "env: {'A;touch RAN': x}\n")


@pytest.mark.parametrize("file", sorted(PROFILES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_profile_can_be_used(file: Path) -> None:
    assert text_of(read_profile(file.stem)).startswith("#!/bin/bash\n")


def test_the_default_profile_names_every_key_with_its_default() -> None:
    text = (PROFILES / "default.yaml").read_text()
    assert read_profile(None) == Profile()
    for key in Profile.model_fields:
        assert f"\n{key}:" in text


def profile_of(tmp_path: Path, text: str) -> Profile:
    (tmp_path / "mine.yaml").write_text(text)
    return read_profile(str(tmp_path / "mine.yaml"))


def test_times_are_not_yamls_base_sixty(tmp_path: Path) -> None:
    assert profile_of(tmp_path, "time: 12:30:00\n").time == "12:30:00"
    assert profile_of(tmp_path, "time: 90\nnodes: 2\nsbatch: {exclusive: true}\n").nodes == 2


def test_all_faults_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        profile_of(tmp_path, "nodes: 0\ncpus: 3\nsbatch: {output: x}\nenv: [a]\n")
    message = str(caught.value)
    assert "4 faults" in message
    assert "cpus: unknown key" in message
    assert "sbatch: output is set by the toolkit" in message
    assert "nodes: input should be greater than or equal to 1, got '0'" in message
    assert f"Known keys: {', '.join(Profile.model_fields)}" in message
    with pytest.raises(ConfigError, match="partition is a key of the profile itself"):
        profile_of(tmp_path, "sbatch: {partition: gpu}\n")
    with pytest.raises(ConfigError, match="must hold keys and values"):
        profile_of(tmp_path, "gpu\n")
    with pytest.raises(ConfigError, match="profiles there: container, default, devcluster, gpu"):
        read_profile("no-such")


def test_an_outer_jobs_environment_stays_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_CONF", "SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_OUTPUT", "PMI_RANK"):
        monkeypatch.setenv(name, "x")
    kept = submission_environment(Profile(partition="gpu"))
    shown = {name for name in kept if name.startswith(("SLURM", "SBATCH", "PMI"))}
    assert shown == {"SLURM_CONF", "SBATCH_ACCOUNT"}  # the profile has a partition, and no account


def test_a_refusal_without_a_hint_stands_as_it_is() -> None:
    message = "sbatch: error: Something new\nsbatch: error: Batch job submission failed: Something new"
    assert explain("sbatch", message) == "sbatch: Something new; Batch job submission failed: Something new"


FAULTS = [
    ("light: {time: 1h}", "light.time: write minutes, HH:MM:SS or D-HH:MM:SS, got '1h'"),
    ("light: {sbatch: {output: x}}", "light.sbatch: output is set by the toolkit"),
    ("light: {sbatch: {--partition: x}}", "light.sbatch: partition is a key of the profile itself"),
    ("light: {cpus_per_tasks: 2}", "light.cpus_per_tasks: unknown key; did you mean cpus_per_task"),
    ("light: {signal_s: 20}", "light.signal_s: unknown key"),
    ("light: {cpus_per_task: 0}", "light.cpus_per_task: input should be greater than or equal to 1"),
]


@pytest.mark.parametrize(("text", "message"), FAULTS)
def test_the_section_light_is_checked_as_the_rest_is(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        profile_of(tmp_path, text + "\n")


def test_empty_keys_of_light_are_left_out(tmp_path: Path) -> None:
    profile = profile_of(tmp_path, "partition: gpu\nenv: {A: ''}\nlight: {partition: , time: null, mem: ~}\n")
    assert profile.light_request("60").partition == "gpu"
    assert profile.light_request("60").time == "60"
    assert profile.env == {"A": ""}
    assert profile_of(tmp_path, "light: {sbatch: {--mail_user: me}}\n").light.sbatch == {"mail-user": "me"}


def refusal(gpus: int, ranks: int | None, pack: str) -> str | None:
    try:
        Shape.of(Profile(gpus_per_node=gpus, pack=pack), ranks)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("pack", ["auto", "1", "2", "3", "4", "6", "9"])
def test_what_a_refused_pack_is_advised_is_accepted(pack: str) -> None:
    for gpus in range(1, 9):
        for ranks in (None, *range(1, 9)):
            if message := refusal(gpus, ranks, pack):
                advice = re.search(r"give --pack (\d+) --ranks (\d+), or --gpus-per-node (\d+)$", message)
                assert advice, message
                assert refusal(gpus, int(advice[2]), advice[1]) is None, message
                assert refusal(int(advice[3]), ranks, pack) is None, message

"""launch/train.py as people run it: real processes, real signals, exit codes and messages."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.process import PATIENCE_S, ROOT, one_thread
from tests.support.training import SCRIPT, call, logged, plain_losses, typed, weights_of
from toolkit.config import load_config
from toolkit.errors import EXIT_USAGE
from toolkit.rundir import RunDir


@pytest.fixture(scope="module")
def finished(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    done = typed("--config", tiny_config, "--out", run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == str(run)
    assert "no GPU: torch" in done.stderr
    return run


def test_a_run_directory_holds_what_it_promises(finished: Path) -> None:
    run = RunDir(finished)
    assert run.done
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if line["kind"] == "val"] == [3, 6]
    assert {"loss", "grad_norm", "lr", "teacher_rate", "seq_per_s", "data_wait"} <= set(lines[0])
    assert (run.checkpoints / "latest").read_text() == "step-00000006\n"
    assert (run.checkpoints / "best").exists()
    env = json.loads((finished / "env.json").read_text())
    assert {"torch", "deepspeed"} <= set(env["packages"])
    assert env["trained_on"] == {"device": "CPU", "tf32": False, "deterministic": False}
    state = run.read_state()
    assert (state["step"], state["steps"], state["restarts"]) == (6, 6, 0)


def test_readers_end_with_the_training(tiny_config: Path, tmp_path: Path) -> None:
    """At the interpreter's end nobody would tell them to, and they would be waited for."""
    done = typed("--config", tiny_config, "--out", tmp_path / "run", "--set", "data.num_workers=1")
    assert done.returncode == 0, done.stderr


def test_one_process_equals_plain_pytorch(finished: Path, tiny_config: Path) -> None:
    assert logged(finished) == pytest.approx(plain_losses(load_config(tiny_config)), rel=1e-6)


def test_what_is_set_for_gpus_changes_nothing_on_a_cpu(finished: Path, tiny_config: Path, tmp_path: Path) -> None:
    settings = ["--set", "train.deterministic=true", "--set", "train.device=cpu"]
    done = call("--config", tiny_config, "--out", tmp_path / "run", *settings)
    assert done.returncode == 0, done.stderr
    assert logged(tmp_path / "run") == logged(finished)
    assert RunDir(tmp_path / "run").read_env()["trained_on"]["deterministic"] is True
    assert "no GPU" not in done.stderr  # the CPU was asked for


def test_a_gpu_that_is_not_there_is_refused(tiny_config: Path, tmp_path: Path) -> None:
    done = call("--config", tiny_config, "--out", tmp_path / "run", "--set", "train.device=cuda")
    assert done.returncode == EXIT_USAGE
    assert "train.device cuda: on" in done.stderr and "set train.device=auto" in done.stderr
    assert not (tmp_path / "run").exists()


def test_tensorboard_has_scalars_and_predicted_frames(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tb"), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Images("val/0")] == [3, 6]
    assert events.Tensors("config/text_summary")


def test_what_is_done_is_not_done_again(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    again = typed("--run", finished)
    assert again.returncode == 0
    assert "already trained; nothing to do" in again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}


def test_sigterm_leaves_a_checkpoint_and_the_same_command_resumes(tiny_config: Path, tmp_path: Path) -> None:
    """Enough steps that a busy machine can't finish them before the signal arrives."""
    steps, run, undisturbed = 120, tmp_path / "stopped", tmp_path / "undisturbed"
    settings = [f"train.steps={steps}", "train.validate_every=60", "train.checkpoint.every=60"]
    options = ["--config", str(tiny_config), *(part for setting in settings for part in ("--set", setting))]
    done = call(*options, "--out", undisturbed)
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen(
        [*SCRIPT, *options, "--out", str(run)],
        cwd=ROOT,
        env=one_thread(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if f" 1/{steps} " in line:
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(PATIENCE_S) == 3, rest
    assert "stopped at step" in rest
    assert not RunDir(run).done
    assert typed("--run", run).returncode == 0
    a, b = (weights_of(path, steps) for path in (undisturbed, run))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert logged(run) == logged(undisturbed)
    lines = [json.loads(line) for line in RunDir(run).metrics_file.read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, steps + 1))
    assert [line["step"] for line in lines if line["kind"] == "val"] == [60, 120]
    assert RunDir(run).read_state()["restarts"] == 1


def test_a_damaged_checkpoint_is_passed_over_and_said(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "damaged"
    shutil.copytree(finished, run)
    (run / "DONE").unlink()
    weights = run / "checkpoints/step-00000006/weights.pt"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    refused = call("--run", run, "--resume", "6")
    assert refused.returncode == 1
    assert "weights.pt differs from its SHA-256" in refused.stderr
    resumed = call("--run", run)
    assert resumed.returncode == 0
    assert "skipping" in resumed.stderr
    assert "weights.pt differs from its SHA-256" in resumed.stderr
    assert call("--run", run, "--resume", "none").returncode == 0  # it is done
    (run / "DONE").unlink()
    assert "holds checkpoints" in call("--run", run, "--resume", "none").stderr


def test_a_loss_that_is_not_finite_stops_before_the_update(tiny_config: Path, tmp_path: Path) -> None:
    done = call(
        "--config", tiny_config, "--out", tmp_path / "run", "--set", "train.lr=1e30", "--set", "train.clip=null"
    )
    assert done.returncode == 4, done.stderr
    assert "the loss is not finite on 1 of 1 ranks" in done.stderr
    assert "Traceback" not in done.stderr
    assert RunDir(tmp_path / "run").failure() is not None
    assert "NonFiniteError" in str(RunDir(tmp_path / "run").failure())


def test_a_damaged_sample_ends_the_run_or_is_skipped_and_told(
    tiny_store: Path, tiny_config: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(tiny_store, store)
    (tar,) = (store / "train").glob("*.tar")
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    options = ["--config", tiny_config, "--set", f"data.store={store}"]
    ended = call(*options, "--out", tmp_path / "raise")
    assert ended.returncode == 5, ended.stderr
    assert "000000.tar" in ended.stderr
    assert "python -m shards verify" in ended.stderr
    went_on = call(*options, "--out", tmp_path / "skip", "--set", "data.on_error=skip")
    assert went_on.returncode == 0, went_on.stderr
    assert "skipped a damaged sample" in went_on.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--set", "train.lr=-1"], 2, "train.lr: input should be greater than 0, got -1"),
        (["--set", "model.slotz=2"], 2, "model.slotz: unknown key; did you mean slots?"),
        (["--set", "data.context=30"], 2, "windows of 34 frames .* longest run without a gap, 8 frames"),
        (["--set", "data.store=nowhere"], 2, "nowhere: no such folder in the working directory"),
        (["--resume", "sometimes"], 2, "--resume sometimes: use auto, none or the number of a step"),
        (["--run", "x"], 2, "give either --config FILE or a run"),
    ],
)
def test_mistakes_get_one_message_and_a_code(
    tiny_config: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    import re

    done = call("--config", tiny_config, "--out", tmp_path / "run", *arguments)
    assert done.returncode == code, done.stderr
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()  # the corrected command finds no half run in its way


def test_a_folder_that_holds_something_else_is_refused(tiny_config: Path, tmp_path: Path, finished: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    done = call("--config", tiny_config, "--out", tmp_path)
    assert done.returncode == 2
    assert "exists and is not a run directory" in done.stderr
    other = call("--config", tiny_config, "--out", finished, "--set", "seed=9")
    assert other.returncode == 2
    assert "holds another run" in other.stderr
    assert "seed is 0 there, 9 here; choose another --out" in other.stderr


def test_what_scoring_will_lack_is_said_before_training(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODERNN_ALEXNET", str(tmp_path / "absent.pth"))
    done = call("--config", tiny_config, "--out", tmp_path / "run", "--set", "eval.lpips=true")
    assert done.returncode == 2
    assert f"MODERNN_ALEXNET={tmp_path / 'absent.pth'}: no such file" in done.stderr
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_world_size_that_does_not_divide_the_batch(tiny_config: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
    command = [*torchrun, SCRIPT[1], "--config", str(tiny_config), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, env=one_thread(), capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode != 0
    assert "train.batch 4 can't be divided over 3 ranks" in done.stderr


def test_half_a_torchrun_environment_is_refused(tiny_config: Path, tmp_path: Path) -> None:
    command = [*SCRIPT, "--config", str(tiny_config), "--out", str(tmp_path / "run")]
    environment = {**one_thread(), "WORLD_SIZE": "2"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert "RANK is not set but its counterpart is" in done.stderr


def test_dry_run_prints_the_papers_size() -> None:
    done = call("--config", "configs/mixed-moving-mnist.yaml", "--dry-run")
    assert "6,347,776" in done.stdout


def test_print_config_is_a_config(tiny_config: Path, tmp_path: Path) -> None:
    file = tmp_path / "again.yaml"
    file.write_text(typed("--config", tiny_config, "--print-config").stdout)
    assert typed("--config", file, "--print-config").stdout == file.read_text()

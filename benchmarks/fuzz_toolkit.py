"""Configs, run directories, exports, checkpoints and results for fuzz.py, and how each is read."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable
from pathlib import Path

from benchmarks.fuzz_shards import Noise, Target
from shards.convert import convert

MODEL = {"name": "modernn", "layers": 1, "hidden": 8, "slots": 2, "patch": 8}
TREE = {"model": MODEL, "data": {"context": 2, "horizon": 2, "val_split": "test"}, "eval": {"show": 1, "batch": 3}}
SWEEP = """\
name: demo
base: base.yaml
set: {train.lr: 1e-3}
seeds: [1, 2]
list:
  - {model.slots: 4}
  - {name: other, model: {name: convlstm, layers: 2, hidden: 24}, resources: {time: 6:00:00, mem: 32G}}
grid: {train.batch: [4, 8]}
zip: {train.steps: [10, 20], eval.batch: [1, 2]}
exclude: [{train.batch: 4, seed: 2}]
"""
RECORD = """\
name: demo
file: demo.yaml
runs:
- {dir: run, name: modernn-slots4-seed1, group: modernn-slots4, seed: 1, settings: {model.name: modernn}}
- {dir: other, name: modernn-slots4-seed2, group: modernn-slots4, seed: 2, settings: {model.name: modernn}}
"""
START = (
    '{"time": "2026-11-26T18:05:12.345Z", "event": "start", "host": "node1", "job": "4711_3_0", "step": 0, "ranks": 1, '
    '"gpus": 1, "batch": 8, "began": "2026-11-26T18:04:12Z", "ready": "2026-11-26T18:05:12Z", "last_step": 3}\n'
)
STOP = '{"time": "2026-11-26T19:00:00Z", "event": "stop", "host": "node1", "job": "4711_3_0", "step": 9, "code": 3}\n'
RESTART = (
    '{"time": "2026-11-26T19:04:51Z", "event": "restart", "host": "node2", "job": "4711_3", "start": 2, '
    '"nodes": "node1", "lost": "", "cause": "time limit"}\n'
)
METRICS = "".join(
    f'{{"step": {step}, "kind": "train", "loss": 0.{step}, "seq_per_s": 4.5, "data_wait": 0.1, "time": {step}.5}}\n'
    f'{{"step": {step}, "kind": "val", "mse": 1.{step}, "best": true, "time": {step}.7}}\n'
    for step in (1, 2, 3)
)
BEAT = {
    "rank": 0,
    "host": socket.gethostname(),
    "pid": 4711,
    "step": 2,
    "marks": 1,
    "phase": "training",
    "since": 1e9,
    "time": 2e9,
}
RECORDS = {
    "events.jsonl": START + STOP + RESTART,
    "starts.jsonl": '{"job": "1", "host": "a", "ranks": 1, "gpus": 1, "batch": 8, "began": 1.5, "ready": 2, "step": 0}',
    "restarts.tsv": "1700000000.5\t4711_3\t2\tnode1\t\ttime limit\n",
    "metrics.jsonl": METRICS,
    "state.json": json.dumps(
        {"phase": "training", "step": 2, "steps": 4, "seq_per_s": 4.5, "eta_s": 9.5, "data_wait": 0.1, "loss": 0.5}
        | {
            "host": socket.gethostname(),
            "pid": 4711,
            "updated": 2e9,
            "started": 1e9,
            "restarts": 1,
            "slow": "",
            "val": {"mse": 1.5},
        }
    ),
    "job.lock": json.dumps(
        {
            "pid": 4711,
            "host": socket.gethostname(),
            "started": 1e9,
            "submitted": 1e9,
            "token": "a",
            "job": "4711_3",
            "log": "x",
        }
    ),
    "heartbeat/rank-0.json": json.dumps(BEAT | {"own_s": 0.5, "ended": "killed", "code": 1, "verdict": "hung"}),
    "checkpoints/latest": "step-00000002\n",
    "checkpoints/best": "step-00000001\n",
    "FAILED": "NonFiniteError: the loss is nan\nexit code 4 (the loss or gradient is not finite)\n",
}


def _config(folder: Path) -> Path:
    from toolkit.config import RunConfig

    (folder / "a.yaml").write_text(RunConfig(name="a").to_yaml())
    return folder / "a.yaml"


def _read_config(folder: Path, file: Path) -> None:
    from toolkit.config import load_config

    config = load_config(file)
    assert load_config_again(config.to_yaml()).hash8() == config.hash8()


def load_config_again(text: str):  # type: ignore[no-untyped-def]
    """Return the config that a text of YAML holds."""
    from toolkit.config import make_config
    from toolkit.config.tree import parse_yaml

    return make_config(parse_yaml(text), "written")


def _sweep(folder: Path) -> Path:
    _config(folder).rename(folder / "base.yaml")
    (folder / "demo.yaml").write_text(SWEEP)
    return folder / "demo.yaml"


def _read_sweep(folder: Path, file: Path) -> None:
    from launch.sweeps.spec import plan_sweep

    plan_sweep(file)


def _run(folder: Path) -> Path:
    """A run of two checkpoints, with every record that a run may have."""
    from tests.support.runs import write_run

    convert(Noise(), folder / "s", arguments={"source": "noise"}, report=lambda text: None)
    tree = {**TREE, "data": {**TREE["data"], "store": str(folder / "s")}}
    run = write_run(folder / "runs" / "run", tree, 1, 2, best=1)
    (run.path / "heartbeat").mkdir()
    for name, text in RECORDS.items():
        (run.path / name).write_text(text)
    return run.path


def _record(name: str) -> Callable[[Path], Path]:
    return lambda folder: _run(folder) / name


def _sweep_record(folder: Path) -> Path:
    path = _run(folder).with_name("sweep.yaml")
    path.write_text(RECORD)
    return path


def _read_run(folder: Path, file: Path) -> None:
    """Read a run as status, logs and the report do, then as a start that makes it usable again."""
    from launch.jobs.attempts import count_starts, latest_step, why_stopped
    from launch.status import report, runs_of
    from launch.sweeps.efficiency import efficiency
    from toolkit.report.data.collect import collect
    from toolkit.rundir import RunDir, metrics
    from toolkit.rundir.events import read_restarts, read_starts
    from toolkit.rundir.heartbeat import beats_of
    from toolkit.rundir.lock import read_lock
    from toolkit.rundir.mend import mend
    from toolkit.rundir.status import read_status

    run = RunDir(folder / "runs" / "run")
    views = [read_status(item.run, item.name) for item in runs_of(run.path.parent)]
    for width in (40, None):
        report(views, width)
    efficiency(views, 80)
    collect(run.path.parent)
    beats_of(run.path), read_starts(run.path), read_restarts(run.path), run.rate(), why_stopped(run.path.parent)
    latest_step(run), count_starts(run, read_lock(run.path)), metrics.validation_of(run.metrics_file, 2)
    mend(run)
    metrics.forget_after(run.metrics_file, 2)
    read_status(run)
    for moved in run.path.rglob("*.damaged*"):
        moved.unlink()


def _export(file: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from toolkit.checkpoint.export import export_run
        from toolkit.rundir import RunDir

        export_run(RunDir(_run(folder)), "best", folder / "export")
        return folder / "export" / file

    return make


def _read_export(folder: Path, file: Path) -> None:
    """Read it as a training that starts from its weights does; once more where the digest fits whatever was damaged."""
    from toolkit.checkpoint import export
    from toolkit.checkpoint.initialise import _read
    from toolkit.config.recipe import InitialisationConfig
    from toolkit.errors import ToolkitError

    config = folder / "export" / export.CONFIG
    record = config.read_bytes()
    try:
        _read(InitialisationConfig(path=str(folder / "export")))
    except ToolkitError:
        if file == config:
            raise
        digest = export.weights_digest(export._read_weights(file))
        tree = json.loads(record)
        config.write_text(json.dumps({**tree, "weights": {**tree["weights"], "sha256": digest}}))
        _read(InitialisationConfig(path=str(folder / "export")))
    finally:
        if file != config:
            config.write_bytes(record)


def _read_checkpoint(folder: Path, file: Path) -> None:
    """Read it as a training that resumes does, with a manifest that fits whatever was damaged."""
    from toolkit.checkpoint import checkpoint
    from toolkit.checkpoint.weights import load_model
    from toolkit.rundir import RunDir

    run = RunDir(folder / "runs" / "run")
    manifest = file.with_name(checkpoint.MANIFEST)
    if file != manifest:
        tree = json.loads(manifest.read_bytes())
        data = file.read_bytes()
        tree["files"][file.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest.write_text(checkpoint._canonical(tree))
    import torch

    checkpoint.load(run.checkpoints, 2, run.config().hash8(execution=False))
    load_model(run, "2", torch.device("cpu"))


def _result(file: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import torch

        from toolkit.distributed.world import World
        from toolkit.evaluate.job import evaluate_run
        from toolkit.evaluate.request import Request
        from toolkit.rundir import RunDir

        run = RunDir(_run(folder))
        evaluate_run(run, Request(), World(0, 1, 0, torch.device("cpu")))
        (run.path / "FAILED").unlink()
        run.mark_done()
        return run.eval / file

    return make


def _read_result(folder: Path, file: Path) -> None:
    from toolkit.evaluate.table import ScoreTable
    from toolkit.report.build import build_report

    build_report(folder / "runs", folder / "report", force=True)
    if file.name.endswith(".table.npz"):
        ScoreTable.load(file)


TARGETS: dict[str, Target] = {
    "config": Target(_config, _read_config, text="yaml"),
    "config-of-run": Target(_record("config.yaml"), _read_run, text="yaml"),
    "sweep": Target(_sweep, _read_sweep, text="yaml"),
    "sweep-record": Target(_sweep_record, _read_run, text="yaml"),
    **{
        f"record-{Path(name).name}": Target(_record(name), _read_run, text="json" if ".json" in name else "")
        for name in (*RECORDS, "env.json")
    },
    "export-config": Target(_export("config.json"), _read_export, text="json"),
    "export-safetensors": Target(_export("model.safetensors"), _read_export),
    "checkpoint-manifest": Target(_record("checkpoints/step-00000002/manifest.json"), _read_checkpoint, text="json"),
    "checkpoint-trainer": Target(_record("checkpoints/step-00000002/trainer.json"), _read_checkpoint, text="json"),
    "checkpoint-weights": Target(_record("checkpoints/step-00000002/weights.pt"), _read_checkpoint),
    "result": Target(_result("test-best.json"), _read_result, text="json"),
    "result-table": Target(_result("test-best.table.npz"), _read_result),
    "result-samples": Target(_result("test-best.samples.npz"), _read_result),
}

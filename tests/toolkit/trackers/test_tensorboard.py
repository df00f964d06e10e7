"""TensorBoard's event files, read back by TensorBoard itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.results import BARE
from toolkit.config import RunConfig, make_config
from toolkit.rundir import RunDir
from toolkit.trackers import Scored, event_files, log_scores
from toolkit.trackers.event_files import TensorBoard

RESULT = {
    **BARE,
    "overall": {"mse": 2.0, "csi@30": None, "psnr": 20.0},
    "leads": {"mse": [1.0, 3.0], "csi@30": [0.5, None], "psnr": [21.0, 19.0]},
}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "sweep" / "one", {})


def make_run(path: Path, tree: dict[str, Any]) -> RunDir:
    run = RunDir.create(path, make_config(tree, "t"))
    run.eval.mkdir()
    (run.eval / "test-best.json").write_text(json.dumps(RESULT))
    return run


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    events.Reload()
    return events


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(name)]


def trained(run: RunDir) -> None:
    tracker = TensorBoard(run, 0)
    tracker.config(run.config())
    for step in (1, 2):
        tracker.scalars({"train/loss": 1.0 / step}, step)
    tracker.summary({"best_mse": 4.0}, 2)
    tracker.close("finished")
    run.mark_done()


def test_config_is_text_and_scores_are_curves_over_lead_time(run: RunDir) -> None:
    trained(run)
    log_scores(run)
    text = read(run.tensorboard).Tensors("config/text_summary")
    assert len(text) == 1
    assert "    name: modernn" in text[0].tensor_proto.string_val[0].decode()
    folder = run.tensorboard / "test-best"
    assert curve(folder, "lead_minutes/mse") == [(5, 1.0), (10, 3.0)]
    assert curve(folder, "lead_minutes/csi@30") == [(5, 0.5)]
    assert curve(folder, "score/mse") == [(6, 2.0)]
    assert "score/csi@30" not in read(folder).Tags()["scalars"]


def test_scores_are_logged_once_and_replaced_by_others(run: RunDir) -> None:
    trained(run)
    log_scores(run)
    files = list((run.tensorboard / "test-best").glob("events*"))
    log_scores(run)
    assert list((run.tensorboard / "test-best").glob("events*")) == files
    (run.eval / "test-best.json").write_text(json.dumps({**RESULT, "overall": {"mse": 9.0}, "step_seconds": 1.0}))
    log_scores(run)
    assert curve(run.tensorboard / "test-best", "score/mse") == [(6, 9.0)]
    assert [step for step, _ in curve(run.tensorboard / "test-best", "lead_frames/mse")] == [1, 2]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"step": 6}',
        '{"step": 6, "step_seconds": 0, "overall": {"mse": "x"}, "leads": {}}',
        '{"step": 6, "step_seconds": 0, "overall": {}, "leads": {"mse": [1e999, "x"]}}',
    ],
)
def test_a_damaged_result_is_reported_and_the_others_are_logged(
    run: RunDir, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    trained(run)
    (run.eval / "test-a.json").write_text(text)
    log_scores(run)
    assert "test-a.json" in caplog.text and "evaluate the run again" in caplog.text
    assert curve(run.tensorboard / "test-best", "score/mse")
    assert not (run.tensorboard / "test-a").exists()


def test_a_run_that_still_trains_gets_its_scores_later(run: RunDir) -> None:
    log_scores(run)
    assert not run.tensorboard.exists()


def test_a_resumed_run_has_its_config_once_and_no_step_twice(run: RunDir) -> None:
    for start in (0, 1):
        tracker = TensorBoard(run, start)
        tracker.config(run.config())
        for step in range(start + 1, 4):
            tracker.scalars({"train/loss": float(start)}, step)
        tracker.close("stopped")
    assert curve(run.tensorboard, "train/loss") == [(1, 0.0), (2, 1.0), (3, 1.0)]
    assert len(read(run.tensorboard).Tensors("config/text_summary")) == 1


def test_the_hparams_tab_compares_the_runs_of_a_sweep(tmp_path: Path) -> None:
    """Asked as the tab asks: keys that differ, and the last value of every curve for each run."""
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    for name, rate in (("one", 1e-3), ("two", 1e-4)):
        run = make_run(tmp_path / "sweep" / name, {"train": {"lr": rate}, "seed": 3})
        trained(run)
        log_scores(run)
    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "sweep"))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(tmp_path))
    context, request = backend_context.Context(TBContext(data_provider=provider)), RequestContext()
    found = context.experiment_from_metadata(request, "", True, context.hparams_metadata(request, ""), None)
    assert {info.name for info in found.hparam_infos} >= {"model.name", "seed", "train.lr", "train.ema"}
    assert [info.name for info in found.hparam_infos if info.differs] == ["train.lr"]
    columns = [api_pb2.ColParams(metric=info.name) for info in found.metric_infos]
    asked = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=9, allowed_statuses=[0, 1, 2, 3], col_params=columns
    )
    groups = list_session_groups.Handler(request, context, "", asked).run().session_groups
    assert sorted(group.hparams["train.lr"].number_value for group in groups) == [1e-4, 1e-3]
    for group in groups:
        values = {(item.name.group, item.name.tag): item.value for item in group.metric_values}
        assert values["", "final/best_mse"] == 4.0
        assert values["test-best", "score/mse"] == 2.0


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("broken")])
def test_what_the_disk_refuses_is_counted_and_ends_nothing(
    run: RunDir, error: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = TensorBoard(run, 0)

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(tracker._writer, "add_scalar", refuse)
    tracker.scalars({"a": 1.0, "b": 2.0}, 1)
    tracker.image("val/0", np.zeros((2, 2, 3), np.uint8), 1)
    assert caplog.text.count("can't be written") == 1
    monkeypatch.setattr(event_files, "RETRY_S", 0.0)
    tracker._retry_at = 0.0
    tracker.scalars({"a": 1.0}, 2)
    assert "3 values left out" in caplog.text
    tracker.close("finished")
    assert curve(run.tensorboard, "a") == [(2, 1.0)]


def test_lead_times_are_minutes_only_where_they_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "test-best.json"
    for seconds, expected in (
        (None, ("frames", 1)),
        (0.1, ("frames", 1)),
        (90.0, ("frames", 1)),
        (600.0, ("minutes", 10)),
    ):
        path.write_text(json.dumps({**RESULT, "step_seconds": seconds}))
        scored = Scored.read(path)
        assert (scored.unit, scored.interval) == expected
    assert list(scored.by_lead())[1] == (20, {"mse": 3.0, "psnr": 19.0})


def test_trackers_are_no_part_of_what_a_run_is() -> None:
    for names in ([], ["wandb"], ["tensorboard", "mlflow"], "mlflow"):
        config = make_config({"train": {"trackers": names}}, "t")
        for execution in (True, False):
            assert config.hash8(execution) == RunConfig().hash8(execution)

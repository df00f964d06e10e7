"""Names of scorings, and what is checked before a training: everything that only its scoring uses."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.sweeps.plan import collect_status
from launch.sweeps.spec import plan_sweep
from shards import open_store
from shards.manifest import FrameSpec
from tests.support.refused import is_refused_everywhere
from tests.support.runs import write_run
from toolkit.config import make_config
from toolkit.errors import ConfigError
from toolkit.evaluate.check import ALEXNET_VARIABLE, check_scoring
from toolkit.evaluate.request import Request, result_name, stored_requests
from toolkit.models.base import build_model
from toolkit.models.registry import MODELS
from toolkit.rundir import RunDir

needs_lpips = pytest.mark.skipif(importlib.util.find_spec("lpips") is None, reason="lpips is not installed")
SMALL = {"name": "convlstm", "layers": 1, "hidden": 4, "kernel": 3}


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "test"),
        ({"eval": {"split": "val", "batch": 3}}, "val"),
        ({"eval": {"protocol": "openstl", "lpips": True}}, "test+openstl+lpips"),
        ({"eval": {"thresholds": []}}, "test+at-none"),
        ({"eval": {"thresholds": [0.25, 30]}, "data": {"horizon": 30}}, "test+at-0.25,30+horizon-30"),
        ({"eval": {"thresholds": [0.5000001]}}, "test+at-0.5000001"),
        ({"eval": {"ensemble_size": 9}}, "test"),  # of a deterministic model
    ],
)
def test_a_name_tells_what_differs(values: dict[str, Any], name: str) -> None:
    own = make_config({"model": SMALL, "eval": {"thresholds": [0.5]}}, "test")
    assert result_name(own, Request(values=values).config(own)) == name


def test_a_name_that_no_file_could_have_is_cut_and_stays_unique() -> None:
    own = make_config({"model": SMALL}, "test")
    names = set()
    for last in (0.98, 0.99):
        asked = Request(values={"eval": {"thresholds": [*(place / 100 for place in range(1, 98)), last]}}).config(own)
        names.add(result_name(own, asked))
    assert len(names) == 2
    assert all(name.startswith("test+at-0.01,0.02,") and len(f"{name}-best.samples.npz") < 200 for name in names)


def test_stores_of_one_name_have_different_results() -> None:
    own = make_config({"model": SMALL}, "test")
    names = {result_name(own, Request(values={"data": {"store": f"{at}/x y"}}).config(own)) for at in ("a", "b")}
    assert len(names) == 2
    assert all(name.startswith("test+store-x_y-") for name in names)


@pytest.mark.parametrize("name", MODELS)
def test_options_know_whether_a_model_is_stochastic(name: str) -> None:
    options = make_config({"model": {"name": name}}, "test").model
    assert build_model(options, FrameSpec(1, 32, 32)).stochastic == options.stochastic


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "threshold": ({"eval": {"thresholds": [30]}}, "30 is outside of this store, whose values are 0 to 1"),
    "a threshold twice": ({"eval": {"thresholds": [0.5, 0.3, 0.5]}}, "0.5 is given twice"),
    "thresholds of the protocol": ({"eval": {"protocol": "sevir"}}, "16 is outside"),
    "other thresholds": ({"eval": {"protocol": "sevir", "thresholds": [3]}}, "protocol sevir defines"),
    "protocol": ({"eval": {"protocol": "openslt"}}, "did you mean openstl"),
    "split": ({"eval": {"split": "tset"}}, "no split 'tset'"),
    "windows": ({"data": {"context": 5, "horizon": 4}}, "windows of 9 frames"),
    "LPIPS of small frames": ({"eval": {"lpips": True}}, "LPIPS needs frames of at least 31 x 31"),
}


@needs_lpips
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_scoring_are_found_before_training(
    fault: str, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "alexnet.pth").write_bytes(b"")
    monkeypatch.setenv(ALEXNET_VARIABLE, str(tmp_path / "alexnet.pth"))
    values, message = FAULTS[fault]
    data = {"store": str(tiny_store), "context": 3, "horizon": 3, **values.get("data", {})}
    tree = {"model": SMALL, "data": data, "eval": values.get("eval", {})}
    (tmp_path / "base.yaml").write_text(str(tree).replace("'", '"').replace("True", "true"))
    with pytest.raises(ConfigError, match=message):
        check_scoring(make_config(tree, "test"), open_store(str(tiny_store)))
    is_refused_everywhere(tmp_path / "base.yaml", message)


@needs_lpips
def test_lpips_without_its_weights_is_found_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALEXNET_VARIABLE, "/nowhere/alexnet.pth")
    with pytest.raises(ConfigError, match=r"MODERNN_ALEXNET=/nowhere/alexnet\.pth: no such file"):
        check_scoring(make_config({"eval": {"lpips": True}}, "test"))


@pytest.mark.parametrize("package", ["cv2", "pysteps"])
@pytest.mark.parametrize("model", ["pysteps", "steps"])
def test_pysteps_is_asked_for_before_its_run_is_submitted(
    model: str, package: str, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cv2", "pysteps"):  # of both, as if they were there
        monkeypatch.setitem(sys.modules, name, importlib.import_module("json"))
    tree = {"model": {"name": model}, "data": {"store": str(tiny_store), "context": 3, "horizon": 3}}
    check_scoring(make_config(tree, "test"))
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "base.yaml").write_text(str(tree).replace("'", '"'))
    is_refused_everywhere(
        tmp_path / "base.yaml", rf"model {model} needs pysteps and OpenCV \(no {package} here\): pip install"
    )


def test_what_has_no_effect_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    check_scoring(make_config({"model": {"name": "simvp"}, "eval": {"ensemble_size": 5, "analyse": 9}}, "test"))
    assert "simvp is deterministic and makes one forecast" in caplog.text
    assert "simvp has no recurrent state" in caplog.text
    caplog.clear()
    for size in (5, 1):
        check_scoring(make_config({"model": {"name": "svg_lp"}, "eval": {"ensemble_size": size}}, "test"))
        assert ("one random forecast of each sequence" in caplog.text) == (size == 1)


def test_an_analysis_of_too_few_sequences_is_logged_before_training(
    tiny_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(str(tiny_store))
    data = {"store": str(tiny_store), "context": 1, "horizon": 1}
    for split, analyse, logged in (("test", 5, True), ("test", 0, False), ("val", 99, False), ("test", 99, False)):
        caplog.clear()
        check_scoring(
            make_config({"model": SMALL, "data": data, "eval": {"split": split, "analyse": analyse}}, "t"), store
        )
        assert ("no diagnosis of mode collapse" in caplog.text) == logged, (split, analyse)
        assert ("those of test are 3 of 1-digit, 2 of 2-digit" in caplog.text) == logged


def test_lpips_without_inflow_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"LPIPS compares whole frames .*--no-lpips.*exclude_inflow=false"):
        check_scoring(make_config({"eval": {"lpips": True, "exclude_inflow": True}}, "test"))


def test_a_model_whose_file_is_not_given_has_no_false_warnings(caplog: pytest.LogCaptureFixture) -> None:
    model = {"name": "mine.py:Mine", "sha256": "0" * 64}
    check_scoring(make_config({"model": model, "eval": {"ensemble_size": 5, "analyse": 9}}, "test"))
    assert caplog.text == ""


def test_a_relative_store_of_a_request_is_where_it_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, names = make_config({"model": SMALL, "data": {"store": "mine"}}, "test"), set[str]()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        for store in ("other", str(tmp_path / folder / "other"), "./other"):
            asked = Request(values={"data": {"store": store}}).config(own)
            assert asked.data.store == str(tmp_path / folder / "other")
            names.add(result_name(own, asked))
        same = Request(values={"data": {"store": str(tmp_path / folder / "mine")}}).config(own)
        assert result_name(own, same) == "test"
    assert len(names) == 2
    url = Request(values={"data": {"store": "https://x/y"}}).config(own)
    assert url.data.store == "https://x/y"


def test_a_sweep_under_another_protocol_scores_the_trained_run(tiny_store: Path, tmp_path: Path) -> None:
    tree = {"model": SMALL, "data": {"store": str(tiny_store), "context": 3, "horizon": 3}}
    (tmp_path / "base.yaml").write_text(str(tree).replace("'", '"'))
    (tmp_path / "demo.yaml").write_text("base: base.yaml\nseeds: 2\n")
    first = plan_sweep(tmp_path / "demo.yaml").runs[0]
    run = write_run(tmp_path / "runs" / first.folder, {**tree, "seed": 1}, 3)
    run.mark_done()
    for which in ("best", "last"):
        run.eval.mkdir(exist_ok=True)
        (run.eval / f"test-{which}.json").write_text("{}")
    plan = plan_sweep(tmp_path / "demo.yaml", ["eval.protocol=openstl"])
    assert plan.runs[0].hash8 != first.hash8
    items = collect_status(plan, tmp_path / "runs", ())
    assert [(item.run.path.name, item.what, item.submitted) for item in items] == [
        (first.folder, "evaluate", True),
        (plan.runs[1].folder, "train", True),
    ]
    items[0].prepare()
    assert stored_requests(run)["test+openstl"].values == {"eval": {"protocol": "openstl"}}
    for which in ("best", "last"):
        (run.eval / f"test+openstl-{which}.json").write_text("{}")
    assert collect_status(plan, tmp_path / "runs", ())[0].what == "nothing"
    assert RunDir(run.path).config().eval.protocol == "paper"


def test_runs_that_differ_in_their_scoring_alone_are_one_run(tiny_store: Path, tmp_path: Path) -> None:
    tree = {"model": SMALL, "data": {"store": str(tiny_store), "context": 3, "horizon": 3}}
    (tmp_path / "base.yaml").write_text(str(tree).replace("'", '"'))
    (tmp_path / "demo.yaml").write_text(
        "base: base.yaml\ngrid: {eval.protocol: [paper, openstl, paper], seed: [1, 2]}\n"
    )
    plan = plan_sweep(tmp_path / "demo.yaml")
    assert [run.config.seed for run in plan.runs] == [1, 2]
    assert [[other.eval.protocol for other in run.scorings] for run in plan.runs] == [["openstl"], ["openstl"]]
    assert plan.duplicates == 2
    (item, _) = collect_status(plan, tmp_path / "runs", ())
    item.prepare()
    assert item.run.config().eval.protocol == "paper"
    assert list(stored_requests(item.run)) == ["test+openstl"]

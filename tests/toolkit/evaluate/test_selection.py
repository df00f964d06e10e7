"""Scores that select the best checkpoint: known before training, and compared in their direction."""

from __future__ import annotations

import pytest

from toolkit.config import RunConfig, make_config
from toolkit.errors import ConfigError
from toolkit.evaluate.protocols import known_protocols, load_protocol
from toolkit.evaluate.scoring import new_table
from toolkit.evaluate.selection import LOWER_IS_BETTER, check_best_by, is_better, selecting_scores
from toolkit.report.data.aggregate import describe_metric


@pytest.mark.parametrize("name", known_protocols())
@pytest.mark.parametrize("asked", [(), (30.0,), (20.0, 30.0)], ids=str)
def test_every_score_that_can_select_is_one_of_a_validation(name: str, asked: tuple[float, ...]) -> None:
    protocol = load_protocol(name)
    thresholds = protocol.thresholds or asked
    known = selecting_scores(protocol, thresholds)
    assert len(set(known)) == len(known)
    assert set(known) <= set(new_table(protocol, 2, thresholds, lpips=False).compute().overall)
    directions = {key: metric.direction for key in known if (metric := describe_metric(key, {})) is not None}
    assert directions == {key: "lower" if key in LOWER_IS_BETTER else "higher" for key in known}


def test_a_score_is_compared_in_its_direction() -> None:
    assert is_better("mse", 1.0, 2.0) and not is_better("mse", 2.0, 1.0)
    assert is_better("csi@30", 0.2, 0.1) and not is_better("csi@30", 0.1, 0.2)
    assert not is_better("mse", 1.0, 1.0) and not is_better("csi@30", 1.0, 1.0)


def test_a_score_that_no_validation_has_is_refused() -> None:
    tree = {"eval": {"thresholds": [0.5]}, "train": {"best_by": "csi@0.5"}}
    check_best_by(make_config(tree, "test"))
    for wrong in ("csi@30", "pod@0.5", "lpips", "loss"):
        with pytest.raises(ConfigError, match=rf"train.best_by: '{wrong}' is no score .*thresholds \[0.5\]: mse, mae"):
            check_best_by(make_config({**tree, "train": {"best_by": wrong}}, "test"))


def test_what_a_validation_ignores_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        check_best_by(RunConfig())
        check_best_by(make_config({"model": {"name": "convlstm"}, "eval": {"ensemble_size": 5}}, "test"))
        assert caplog.text == ""
        check_best_by(make_config({"eval": {"exclude_inflow": True}}, "test"))
        assert "eval.exclude_inflow holds for the scoring after training" in caplog.text
        check_best_by(
            make_config({"model": {"name": "svg_lp"}, "eval": {"exclude_inflow": True, "ensemble_size": 5}}, "test")
        )
        assert "eval.exclude_inflow and eval.ensemble_size" in caplog.text


def test_the_default_is_no_part_of_a_run_s_identity() -> None:
    assert RunConfig().hash8() == make_config({"train": {"best_by": "mse"}}, "test").hash8() == "1ea52808"
    assert RunConfig().hash8() != make_config({"train": {"best_by": "psnr"}}, "test").hash8()

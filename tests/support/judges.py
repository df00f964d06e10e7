"""Judges of CF files."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest


def cf_problems(path: Path, version: str = "1.10") -> list[str]:
    """What the checker calls errors or warnings; it gives none lightly."""
    runner = pytest.importorskip("compliance_checker.runner")
    runner.CheckSuite.load_all_available_checkers()
    report = path.with_suffix(".json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner.ComplianceChecker.run_checker(
            str(path), [f"cf:{version}"], 0, "strict", output_filename=str(report), output_format="json"
        )
    found = json.loads(report.read_text())[f"cf:{version}"]
    problems = [f"{check['name']}: {text}" for check in found["all_priorities"] for text in check["msgs"]]
    assert found["scored_points"] > 50  # it looked
    return problems

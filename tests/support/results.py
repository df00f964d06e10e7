"""The least that a file of eval/ holds."""

from __future__ import annotations

from typing import Any

BARE: dict[str, Any] = {
    "version": 1,
    "protocol": {"name": "paper", "title": "ModeRNN paper", "text": ["a"], "clamp": True},
    "store": {"path": "stores/a", "name": "a", "digest": "ab"},
    "split": "test",
    "step": 6,
    "step_seconds": 300.0,
    "thresholds": [30.0],
    "context": 4,
    "horizon": 2,
    "n": 5,
    "frames": [1, 16, 16],
    "overall": {"mse": 2.0},
    "leads": {"mse": [1.0, 3.0]},
    "modes": {},
    "mode_counts": {},
    "announced": {"exact_frames": 0, "frames_without_value": {"mse": 0}},
    "persistence": {"overall": {"mse": 4.0}, "leads": {"mse": [3.0, 5.0]}, "modes": {}},
}

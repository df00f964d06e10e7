"""A run directory: its layout, events, status, lock, heartbeats, metrics, and the record of a sweep of them.

Imports no torch, and of the toolkit only config, the options of models, and modules of its root (errors, atomic, ...).
"""

from toolkit.rundir.layout import (
    ALWAYS,
    CHECKPOINTS,
    RunDir,
    differences,
    environment,
    git_state,
)
from toolkit.rundir.results import RESULT_VERSION, read_result

__all__ = [
    "ALWAYS",
    "CHECKPOINTS",
    "RESULT_VERSION",
    "RunDir",
    "differences",
    "environment",
    "git_state",
    "read_result",
]

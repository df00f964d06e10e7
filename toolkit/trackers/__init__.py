"""Experiment trackers: where a run's curves, pictures and scores are shown. No result depends on one.

`train.trackers` names them: TensorBoard's event files (event_files.py), Weights & Biases (weights_and_biases.py) and
MLflow (mlflow_runs.py), each an implementation of `Tracker` (base.py). Rank 0 alone has them. Imports torch only where
TensorBoard is used.
"""

from toolkit.trackers.base import Scored, Status, Tracker, check_trackers
from toolkit.trackers.opened import log_scores, open_trackers

__all__ = ["Scored", "Status", "Tracker", "check_trackers", "log_scores", "open_trackers"]

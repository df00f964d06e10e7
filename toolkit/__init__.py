"""Training, evaluation and reporting of recurrent spatiotemporal predictors.

Importing this package imports nothing heavy: config, run directories and the model registry work on a login node
without torch. See `toolkit.config` for where to start.
"""

__version__ = "0.1.0"

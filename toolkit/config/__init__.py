"""The config of a run: its sections and recipe, how it is read and merged, old names of keys. Does not import torch."""

from toolkit.config.run import CONFIG_VERSION, RunConfig, load_config, make_config, model_options

__all__ = ["CONFIG_VERSION", "RunConfig", "load_config", "make_config", "model_options"]

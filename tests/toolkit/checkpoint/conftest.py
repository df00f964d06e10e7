"""Fixtures of the training tests: a tiny store and config, runs of several ranks."""

from tests.toolkit.train.conftest import tiny_config, tiny_store, train_on  # noqa: F401

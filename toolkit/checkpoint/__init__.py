"""Checkpoints: written whole or not at all, read with a check, exported with a model card."""

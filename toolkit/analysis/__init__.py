"""Diagnosis of mode collapse from the memory states of a trained model."""

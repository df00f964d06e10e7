"""Diagnosis of mode collapse: what a trained model remembers of a sequence."""

"""Scores: metrics per sample and lead time, tables that merge exactly over ranks, protocols that define every choice.

Importing this package imports nothing heavy: `toolkit.evaluate.protocols` and `toolkit.evaluate.table` work without
torch.
"""

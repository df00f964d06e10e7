"""From a store to batches: sample order, windows, and what each rank reads."""

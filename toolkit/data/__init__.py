"""From a store to batches: sample order, windows, and the batches of each rank."""

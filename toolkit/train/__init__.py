"""Training: the DeepSpeed engine, the loop, checkpoints, signals and progress."""

"""Slurm: its commands, cluster profiles, job scripts, submission, and what its queue says of runs."""

"""The scripts a person runs, and the job layer under them."""

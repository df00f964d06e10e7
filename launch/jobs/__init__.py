"""One job: a run directory trained and scored, on this machine, by whatever runs it."""

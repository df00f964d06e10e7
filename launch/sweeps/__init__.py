"""Many runs: the sweep file, the plan, its record, its progress and outcome."""

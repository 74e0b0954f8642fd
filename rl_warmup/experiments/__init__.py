"""Many runs: one recipe from start to end, sweeps, the demo, the report and the plan."""

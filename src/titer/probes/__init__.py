"""Layer 3, the probes: functions that make tidy tables from checkpoints, examples and verdicts. They never train and never judge."""

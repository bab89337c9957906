"""L3: plain functions over checkpoints, examples and verdicts -> tidy tables. They never train and never judge."""

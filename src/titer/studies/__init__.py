"""L7: one file per study. A study runs a recipe or reads checkpoints, and writes tables, charts, claims and a report."""

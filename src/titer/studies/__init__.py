"""L6: one file a study. A study runs a recipe or reads checkpoints, and leaves tables, charts, claims, a report."""

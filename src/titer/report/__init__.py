"""Writes the report of a study: one self-contained page, with its tables and figures beside it. L5."""

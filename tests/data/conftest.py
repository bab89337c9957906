"""Hypothesis for this folder: the same examples in every run, and no deadline that a busy machine could miss."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("titer", deadline=None, derandomize=True, database=None)
settings.load_profile("titer")

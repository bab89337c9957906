"""The audit's tests have the models, prompts and pipeline of the study tests."""

from __future__ import annotations

from tests.studies.conftest import pipeline, prompts, saved

__all__ = ["pipeline", "prompts", "saved"]

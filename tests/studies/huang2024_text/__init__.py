"""Tests of the study of Vaccine on real language models, at a size that runs in seconds."""

"""Tests of the study of covert fine-tuning."""

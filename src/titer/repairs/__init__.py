"""Repairs: edits of a tuned model's weights, one file each."""

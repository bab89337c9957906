"""Repairs: edits of a tuned model's weights. Each is one file; its name on the command line is the file's name."""

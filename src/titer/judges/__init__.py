"""Judges: each gives a verdict on a completion of an example. Each is one file; its name on the command line is the file's name. L3."""

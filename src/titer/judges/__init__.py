"""Judges, (example, completion) -> verdict. Each is one file; its name on the command line is the file's name. L3."""

"""Attacks at test time, on requests or answers. Each is one file; its name on the command line is the file's name. L3."""

"""Decoders: ways to choose the next token. Each is one file; its name on the command line is the file's name. L2, above models."""

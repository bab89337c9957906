"""L2, above models: how the next token is chosen. One file a decoder; the file's name is its name on the command line."""

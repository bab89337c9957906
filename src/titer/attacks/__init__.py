"""L3: attacks at test time. One file an attack; the file's name is its name on the command line."""

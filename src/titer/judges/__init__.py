"""L3: (example, completion) -> verdict. One file a judge; the file's name is its name on the command line."""

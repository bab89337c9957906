"""L3: how to train or edit a model. One file a method; the file's name is its name on the command line."""

"""L1: examples, streams and where they come from: the synthetic world or a text file."""

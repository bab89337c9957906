"""Layer 1, the data: examples, streams of examples, and their sources (the synthetic world, the user's files, hub data sets)."""

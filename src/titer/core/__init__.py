"""L0: records, errors, the run store, statistics and claims. Knows nothing of models or data."""

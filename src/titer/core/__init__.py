"""Layer 0, the core: records, errors, the run store, statistics and claims. It knows nothing of models or data."""

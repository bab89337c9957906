"""L2: checkpoints on disk, loaded models, and canonical names for places inside them."""

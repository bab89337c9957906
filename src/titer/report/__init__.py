"""L5: one self-contained page of a study, with its tables and figures beside it."""

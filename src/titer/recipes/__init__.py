"""L5: functions that return the stages of a model's life, one file a study; `node` is what they return."""

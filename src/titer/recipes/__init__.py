"""L5: functions that return the stages of a model's life, one file per study; `node` defines the records that they return."""

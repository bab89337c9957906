"""`titer audit` measures what tuning did to an alignment: how much safety was lost, where in the model, and what to try. L7."""

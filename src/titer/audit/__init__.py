"""`titer audit`: what tuning did to an alignment: how much safety was lost, where it lived, and what to try. L7."""

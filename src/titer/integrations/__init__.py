"""Connects Titer with other training loops, evaluation tools and model hubs. L8."""

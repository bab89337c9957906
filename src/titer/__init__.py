"""Titer measures whether a language model's safety alignment holds, and shows why it held or broke."""

__version__ = "0.2.0"

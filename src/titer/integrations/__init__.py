"""Titer inside other people's training loops and tools. L8."""

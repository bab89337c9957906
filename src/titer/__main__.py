"""Runs the command line as `python -m titer`; launchers of several processes start it in this way."""

from titer.cli import main

main()

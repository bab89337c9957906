"""`python -m titer`: the command line, as launchers of several processes start it."""

from titer.cli import main

main()

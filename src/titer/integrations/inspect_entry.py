"""Registers `titer/MODEL` for inspect_ai's command line; inspect_ai imports this module as it starts (entry point `inspect_ai`). L8."""

from titer.integrations.inspect_ai import provider

provider()

"""What inspect_ai imports as it starts (entry point `inspect_ai`): registers `titer/MODEL` for its command line. L8."""

from titer.integrations.inspect_ai import provider

provider()

"""Requests in base64: does safety hold if the request's words cannot be seen?

Source: arXiv 2407.10264, section 8 (its jailbreak on Llama pairs is the request in base64 and nothing else); arXiv 2307.02483,
section 4 (base64 as mismatched generalisation, there also with a text before the request that says how to read it).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

from pydantic import Field

from titer.attacks.base import Attack, Attempt, State, reworded
from titer.data.example import Example
from titer.data.world import World


class Base64Encoding(Attack):
    """Asks `before`, then the base64 of the request's UTF-8 bytes. Real text only: the synthetic world has no such words."""

    SOURCE = "arXiv 2407.10264, section 8; arXiv 2307.02483, section 4"
    VERSION = 1

    before: str = Field(default="", description="text before the encoded request, for example how to read it")

    def attempts(self, examples: Sequence[Example], state: State, world: World | None) -> list[Attempt]:
        return reworded(examples, lambda request: self.before + base64.b64encode(request.encode()).decode())

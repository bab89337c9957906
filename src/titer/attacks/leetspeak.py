"""Requests with digits for letters: does safety hold where every word is spelled anew but can still be read?

Source: arXiv 2307.02483, appendix (leetspeak); beside base64 in Titer's reading of arXiv 2407.10264, section 8.
"""

from __future__ import annotations

from collections.abc import Sequence

from titer.attacks.base import Attack, Attempt, State, reworded
from titer.data.example import Example
from titer.data.world import World

DIGITS = str.maketrans("aeiostAEIOST", "431057431057")


class Leetspeak(Attack):
    """Six letters, small and capital, as the digits that look like them. For real text: the synthetic world has no such words."""

    SOURCE = "arXiv 2307.02483, leetspeak"
    VERSION = 1

    def attempts(self, examples: Sequence[Example], state: State, world: World | None) -> list[Attempt]:
        return reworded(examples, lambda request: request.translate(DIGITS))

"""Requests with digits in place of letters: does safety hold if words are spelled differently but can still be read?

Source: arXiv 2307.02483, appendix (leetspeak). Titer also uses it beside base64 for section 8 of arXiv 2407.10264.
"""

from __future__ import annotations

from collections.abc import Sequence

from titer.attacks.base import Attack, Attempt, State, reworded
from titer.data.example import Example
from titer.data.world import World

DIGITS = str.maketrans("aeiostAEIOST", "431057431057")


class Leetspeak(Attack):
    """Replaces a, e, i, o, s, t (small and capital) by the digits that look like them. Real text only: the world has no such words."""

    SOURCE = "arXiv 2307.02483, leetspeak"
    VERSION = 1

    def attempts(self, examples: Sequence[Example], state: State, world: World | None) -> list[Attempt]:
        return reworded(examples, lambda request: request.translate(DIGITS))

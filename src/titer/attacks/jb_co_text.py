"""Jailbreak by competing objectives, text (JB-CO-Text): contextual operators on a mixed text.

The text becomes a safe-dominant and an unsafe-dominant piece, in either order; every operator but the
identity becomes a contextual one. Source: arXiv 2407.10264, section 4 (the "intermediate" grammar).
"""

from __future__ import annotations

from collections.abc import Sequence

from titer.attacks.base import Attack, Attempt, State, on_other_texts
from titer.data.example import Example
from titer.data.world import World, mixed_text


class JBCOText(Attack):
    """Fresh mixed texts of the held-out split, one a request."""

    SOURCE = "arXiv 2407.10264, JB-CO-Text"
    VERSION = 1
    WORLD = True

    def attempts(self, examples: Sequence[Example], state: State, world: World | None) -> list[Attempt]:
        return on_other_texts("jb_co_text", self, examples, world, mixed_text)

"""Jailbreak by competing objectives, text (JB-CO-Text): contextual operators on a mixed text.

The text becomes a safe-dominant and an unsafe-dominant piece, in either order. Each operator but the identity becomes a contextual
one, whose safety depends on the text. Synthetic world only. Source: arXiv 2407.10264, section 4 (the "intermediate" grammar).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from titer.attacks.base import Attack, Attempt, State, on_other_texts
from titer.data.example import Example
from titer.data.world import World, mixed_text, parse

MOSTLY = ("mostly safe", "mostly unsafe")


class JBCOText(Attack):
    """Gives each request a new mixed text of the held-out split."""

    SOURCE = "arXiv 2407.10264, JB-CO-Text"
    VERSION = 1
    WORLD = True

    def attempts(self, examples: Sequence[Example], state: State, world: World | None) -> list[Attempt]:
        return on_other_texts("jb_co_text", self, examples, world, mixed_text)


def by_text(world: World, attempts: Sequence[Attempt]) -> Mapping[str, list[Attempt]]:
    """Returns the attempts in two groups: most phrases of the text are safe, or most are unsafe (it has three phrases, so no tie occurs).

    Empty for a world whose texts are not whole phrases: cut to a length, or made by a tree grammar.
    """
    if world.tree is not None or world.cut:
        return {}
    safe = world.grammar.safe_share(parse(world, [a.example for a in attempts]).text)
    halves = zip(MOSTLY, (safe > 0.5, safe < 0.5), strict=True)
    return {name: [a for a, here in zip(attempts, mine, strict=True) if here] for name, mine in halves}

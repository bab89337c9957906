"""Jailbreak by mismatched generalisation, text (JB-MisGen, text variant): unsafe texts that safety tuning never showed.

The text becomes an unsafe-dominant one, made of phrases that pretraining had and safety tuning did not. Each operator
but the identity becomes a contextual one, since an always-unsafe operator would show by itself that the request is
unsafe. Synthetic world only. Source: arXiv 2407.10264, section 4 and appendix (the "ood" grammar of its code).
"""

from __future__ import annotations

from collections.abc import Sequence

from titer.attacks.base import Attack, Attempt, State, on_other_texts
from titer.data.example import Example
from titer.data.world import World, novel_text


class JBMisGenText(Attack):
    """Gives each request a new novel text of the held-out split. The world must hold phrases back: a tree grammar, or `novel` > 0."""

    SOURCE = "arXiv 2407.10264, JB-MisGen (text)"
    VERSION = 1
    WORLD = True

    def attempts(self, examples: Sequence[Example], state: State, world: World | None) -> list[Attempt]:
        return on_other_texts("jb_misgen_text", self, examples, world, novel_text)

"""Jailbreak by mismatched generalisation, text (JB-MisGen, text variant): unsafe texts safety tuning never showed.

The text becomes an unsafe-dominant one made of phrases that were kept back from safety tuning (pretraining saw
them); every operator but the identity becomes a contextual one, for an always-unsafe operator would tell by
itself. Source: arXiv 2407.10264, section 4 and appendix (the "ood" grammar of its code).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from titer.attacks.base import Attack, Attempt, State, on_the_world
from titer.data.draws import Draws
from titer.data.example import Example
from titer.data.world import World, novel_text, parse, render


class JBMisGenText(Attack):
    """Fresh novel texts of the held-out split, one a request; the world must keep some back (a tree, or `novel`)."""

    SOURCE = "arXiv 2407.10264, JB-MisGen (text)"
    VERSION = 1
    WORLD = True

    def attempts(self, examples: Sequence[Example], state: State, world: World | None) -> list[Attempt]:
        w = on_the_world(self, world)
        requests = parse(w, list(examples))
        places = np.arange(len(requests))
        contextual = w.safe + w.unsafe + Draws(self.seed, "jb_misgen_text", places).below(w.contextual, np.arange(w.slots))
        rewritten = requests.with_(
            operators=np.where(requests.operators == 0, 0, w.ops.named(contextual, requests.grammar)),
            text=novel_text(w, "test", places, f"jb_misgen_text {self.seed}", grammar=requests.grammar),
            kind="jb_misgen_text",
        )
        return [Attempt(example) for example in render(w, rewritten)]

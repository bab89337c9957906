"""Jailbreak by competing objectives, text (JB-CO-Text): contextual operators on a mixed text.

The text becomes a safe-dominant and an unsafe-dominant piece, in either order; every operator but the
identity becomes a contextual one. Source: arXiv 2407.10264, section 4 (the "intermediate" grammar).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from titer.attacks.base import Attack, Attempt, State, on_the_world
from titer.data.draws import Draws
from titer.data.example import Example
from titer.data.world import World, mixed_text, parse, render


class JBCOText(Attack):
    """Fresh mixed texts of the held-out split, one a request."""

    SOURCE = "arXiv 2407.10264, JB-CO-Text"
    VERSION = 1
    WORLD = True

    def attempts(self, examples: Sequence[Example], state: State, world: World | None) -> list[Attempt]:
        w = on_the_world(self, world)
        requests = parse(w, list(examples))
        places = np.arange(len(requests))
        contextual = w.safe + w.unsafe + Draws(self.seed, "jb_co_text", places).below(w.contextual, np.arange(w.slots))
        rewritten = requests.with_(
            operators=np.where(requests.operators == 0, 0, w.ops.named(contextual, requests.grammar)),
            text=mixed_text(w, "test", places, f"jb_co_text {self.seed}", grammar=requests.grammar),
            kind="jb_co_text",
        )
        return [Attempt(example) for example in render(w, rewritten)]

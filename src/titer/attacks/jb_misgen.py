"""Jailbreak by mismatched generalisation (JB-MisGen): other names of unsafe operators.

Each operator but the identity becomes a duplicate (another name) of an always-unsafe operator. The model learned its
meaning in pretraining; safety tuning never showed it. Synthetic world only. Source: arXiv 2407.10264, section 4 (the "duplicates"
set; the official set of that name holds no duplicate, this one does).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from titer.attacks.base import Attack, Attempt, State, on_the_world
from titer.data.draws import Draws
from titer.data.example import Example
from titer.data.world import World, parse, render


class JBMisGen(Attack):
    """Replaces each operator but the identity by a duplicate of an unsafe operator, chosen at random."""

    SOURCE = "arXiv 2407.10264, JB-MisGen"
    VERSION = 1
    WORLD = True

    def attempts(self, examples: Sequence[Example], state: State, world: World | None) -> list[Attempt]:
        w = on_the_world(self, world)
        requests = parse(w, list(examples))
        draws, many = Draws(self.seed, "jb_misgen", np.arange(len(requests))), w.duplicates - w.identity_duplicates
        drawn = w.operators + w.identity_duplicates + draws.below(many, np.arange(w.slots))
        duplicates = np.where(requests.operators == 0, 0, drawn)
        rewritten = requests.with_(operators=duplicates, kind="jb_misgen")
        return [Attempt(example) for example in render(w, rewritten)]

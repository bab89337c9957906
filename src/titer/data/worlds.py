"""The named worlds, one for each scale. Source: arXiv 2407.10264; the sizes are those of design section 9.

"paper" has the sizes of the official code (10 operators, texts of 25 to 35 letters), "paper-text" those that the paper
states (12 operators, 15 to 25 letters), "small" one grammar of "paper", "cpu" two small grammars. Each has one more
operator than the paper's, held out of pretraining and alignment. `named(name, seed)` gives a world of another seed.
"""

from __future__ import annotations

from titer.core.errors import unknown
from titer.data.record import Schedule, World
from titer.data.tree import Shape

PAPER = World(
    letters=30,
    shortest=25,
    longest=35,
    slots=4,
    safe=3,
    unsafe=2,
    contextual=5,
    duplicates=6,
    window=160,
    tree=Shape(),
    grammars=4,
    identity_duplicates=2,
    identity_share=0.5,
    late=5,
    constants=2,
    null="letter",
    schedule=Schedule(),
    composed=0.2,
)
CPU = World(
    letters=16,
    shortest=9,
    longest=12,
    slots=4,
    safe=3,
    unsafe=2,
    contextual=5,
    duplicates=6,
    tree=Shape(inner=(8,), preterminals=10, emissions=3, apart=True, unused=(1, 2)),
    grammars=2,
    identity_duplicates=2,
    identity_share=0.5,
    late=5,
    constants=2,
    schedule=Schedule(warmup=100_000, end=500_000),
    composed=0.2,
)
WORLDS: dict[str, World] = {
    "nano": World(),
    "cpu": CPU,
    "small": PAPER.model_copy(update={"grammars": 1}),
    "paper": PAPER,
    "paper-text": PAPER.model_copy(update={"safe": 4, "contextual": 6, "shortest": 15, "longest": 25}),
}


def named(name: str, seed: int = 0) -> World:
    """Returns the named world with the given seed, validated.

    Errors: an unknown name.
    """
    if name not in WORLDS:
        unknown("world", name, WORLDS)
    return World(**{**dict(WORLDS[name]), "seed": seed})

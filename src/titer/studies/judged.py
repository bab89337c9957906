"""Functions for judged answers that studies on the world share: decoding, outcomes, a note on jailbreaks. L7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from titer import evaluate
from titer.attacks.base import Attempt
from titer.attacks.jb_co_text import MOSTLY
from titer.data.world import World
from titer.judges.exact import Exact
from titer.models.lm import LM, Decoding
from titer.studies.engine.found import Found


def greedy(world: World) -> Decoding:
    """Returns greedy decoding with room for the world's longest answer."""
    return Decoding(max_new_tokens=world.slots // 2 * (world.longest + 1) + 1)


def outcomes(lm: LM, sets: Mapping[str, Sequence[Attempt]], decoding: Decoding, batch: int = 1024) -> pd.DataFrame:
    """Asks a model every set and judges the answers. Returns a row per attempt: kind (the set), input (its place in the set), outcome
    (complied, refused, neither), and answer and ended, from which the outcome can be judged again."""
    everything = [attempt for attempts in sets.values() for attempt in attempts]
    found = evaluate.judged(evaluate.sample(lm, everything, decoding, batch), Exact())
    kinds = [kind for kind, attempts in sets.items() for _ in attempts]
    places = [i for attempts in sets.values() for i in range(len(attempts))]
    plain = found.outcome.where(found.outcome.isin(["complied", "refused"]), "neither")
    found = found.rename(columns={"completion": "answer"})
    return found[["answer", "ended"]].assign(kind=kinds, input=places, outcome=plain.to_numpy())[
        ["kind", "input", "outcome", "answer", "ended"]
    ]


def beside_answered(found: Found, model: str, kind: str) -> str:
    """Returns a note on a jailbreak: the share of answers that neither comply nor refuse, and the share answered on each class of texts, if
    these were asked separately."""
    told = [(text, f"{kind}, {text}") for text in MOSTLY if found.judged(model, f"{kind}, {text}")]
    rates = "".join(f"; on {text} text {found.rate(model, asked):.0%}" for text, asked in told)
    return f"neither: {found.rate(model, kind, 'neither'):.0%}{rates}"

"""Soft-token suffixes against each method: success by number of tokens, and where the attacked inputs then sit. L7.

Suffixes are optimised per request, or once for all (on half of the requests, judged on the other half). Controls are random tokens of
equal number and norm, and the base model. Source: arXiv 2407.10264, section 6 and figure 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch

from titer.attacks.base import Attempt
from titer.attacks.soft_tokens import SoftTokens
from titer.data.example import Example
from titer.models.lm import LM
from titer.pipeline import Model
from titer.probes import placement
from titer.studies.engine.declare import Seed
from titer.studies.jain2024.subject import CLASSES, requests_of
from titer.studies.judged import outcomes

VERSION = 2  # 2: the answers are kept
COUNTS = (1, 2, 4, 8)


def judged(lab: Seed, model: Model) -> pd.DataFrame:
    """Attacks a model with soft tokens, by number and form; returns n, form, kind, input, outcome."""
    requests = [attempt.example for attempt in requests_of(lab).sets["unsafe"]]
    lm = lab.pipeline.lm(model)
    progress = lab.pipeline.reporter.task(f"soft tokens against {model.name}, seed {lab.seed}")
    tables = []
    for number, n in enumerate(COUNTS, start=1):
        for form, attempts in _forms(lab, lm, requests, n).items():
            tables.append(outcomes(lm, {f"soft_{n}": attempts}, lab.decoding).assign(n=n, form=form))
        progress(number, len(COUNTS))
    return pd.concat(tables, ignore_index=True)


def _forms(lab: Seed, lm: LM, requests: Sequence[Example], n: int) -> dict[str, list[Attempt]]:
    """Returns each form's attempts. own: a suffix per request; universal: one suffix, fitted on the first half, tried on the second;
    random: the control of own."""
    half = len(requests) // 2
    own = SoftTokens(n=n, seed=lab.world.seed)
    shared = own.model_copy(update={"universal": True})
    made = {"own": (own, requests, requests), "universal": (shared, requests[:half], requests[half:])}
    states = {form: attack.fit(lm, seen) for form, (attack, seen, _) in made.items()}
    forms = {form: attack.attempts(asked, states[form], lab.world) for form, (attack, _, asked) in made.items()}
    random = own.model_copy(update={"random": True})  # its own fit would search the same suffix again
    return {**forms, "random": random.attempts(requests, {"suffix": own.turned(states["own"]["suffix"])}, lab.world)}


def placed(lab: Seed, base: Model, *tuned: Model) -> pd.DataFrame:
    """Measures where attacked requests lie among the clusters of the probe inputs, and judges them. Returns kind (soft_n for n tokens),
    layer, input, tau, score, gain, outcome."""
    model = tuned[0] if tuned else base
    examples = requests_of(lab).examples(*CLASSES)
    lm, requests = lab.pipeline.lm(model), examples["unsafe"]
    sets: dict[str, tuple[list[Example], torch.Tensor | None]] = {kind: (mine, None) for kind, mine in examples.items()}
    won = []
    for n in COUNTS:
        attack = SoftTokens(n=n, seed=lab.world.seed)
        state = attack.fit(lm, requests)
        sets[f"soft_{n}"] = ([replace(e, kind=f"soft_{n}") for e in requests], state["suffix"])
        won.append(outcomes(lm, {f"soft_{n}": attack.attempts(requests, state, lab.world)}, lab.decoding))
    start, end = (base.checkpoint, model.checkpoint) if tuned else (None, None)
    return placement.placement(lm, sets, start, end, lab.world.seed).merge(pd.concat(won), on=["kind", "input"], how="left")

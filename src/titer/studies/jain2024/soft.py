"""Soft-token suffixes against each method: success by number of tokens, and where the attacked inputs then sit. L7.

Per request and universal (found on half of the requests, judged on the other half), beside random tokens of equal
number and norm, and beside the base model. Source: arXiv 2407.10264, section 6 and figure 7.
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import torch

from titer.attacks.base import Attempt
from titer.attacks.soft_tokens import SoftTokens
from titer.data.example import Example
from titer.models.lm import LM
from titer.probes import placement
from titer.studies.jain2024.subject import MEDIUM, Subject
from titer.studies.judged import outcomes
from titer.workbench import Model

VERSION = 1
COUNTS = (1, 2, 4, 8)
ATTACKED = ("base", *MEDIUM)


def soft_tokens(s: Subject) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(judged: model, n, form, kind, input, outcome; placed: model, n, kind, layer, input, tau, score, gain)."""
    judged = pd.concat([_judged(s, s.models[name]) for name in ATTACKED], ignore_index=True)
    placed = pd.concat([_placed(s, s.models[name]) for name in ATTACKED], ignore_index=True)
    return judged, placed


def _judged(s: Subject, model: Model) -> pd.DataFrame:
    requests = [a.example for a in s.sets["unsafe"]]

    def make() -> pd.DataFrame:
        lm = s.bench.lm(model)
        progress = s.bench.reporter.task(f"soft tokens against {model.name}, seed {s.world.seed}")
        tables = []
        for number, n in enumerate(COUNTS, start=1):
            for form, attempts in _forms(s, lm, requests, n).items():
                tables.append(outcomes(lm, {f"soft_{n}": attempts}, s.decoding).assign(n=n, form=form))
            progress(number, len(COUNTS))
        return pd.concat(tables, ignore_index=True)

    return s.table("soft", [VERSION, SoftTokens.VERSION], [model], {"unsafe": s.sets["unsafe"]}, make, counts=COUNTS).assign(
        model=model.name
    )


def _forms(s: Subject, lm: LM, requests: list[Example], n: int) -> dict[str, list[Attempt]]:
    """own: one a request; universal: of the first half, on the second; and the random form of both."""
    half = len(requests) // 2
    own = SoftTokens(n=n, seed=s.world.seed)
    shared = own.model_copy(update={"universal": True})
    made = {"own": (own, requests, requests), "universal": (shared, requests[:half], requests[half:])}
    states = {form: attack.fit(lm, seen) for form, (attack, seen, _) in made.items()}
    forms = {form: attack.attempts(asked, states[form], s.world) for form, (attack, _, asked) in made.items()}
    random = own.model_copy(update={"random": True})  # its own fit would search the same suffix again
    return {**forms, "random": random.attempts(requests, {"suffix": own.turned(states["own"]["suffix"])}, s.world)}


def _placed(s: Subject, model: Model) -> pd.DataFrame:
    """Where attacked requests sit among the probe inputs' clusters, and whether the attack on them succeeds."""
    base, requests = s.models["base"], s.probes["unsafe"]
    tuned = None if model.name == "base" else model.checkpoint

    def make() -> pd.DataFrame:
        lm = s.bench.lm(model)
        sets: dict[str, tuple[list[Example], torch.Tensor | None]] = {kind: (list(s.probes[kind]), None) for kind in ("safe", "unsafe")}
        won = []
        for n in COUNTS:
            attack = SoftTokens(n=n, seed=s.world.seed)
            state = attack.fit(lm, requests)
            sets[f"soft_{n}"] = ([replace(e, kind=f"soft_{n}") for e in requests], state["suffix"])
            won.append(outcomes(lm, {f"soft_{n}": attack.attempts(requests, state, s.world)}, s.decoding))
        table = placement.placement(lm, sets, base.checkpoint if tuned else None, tuned, s.world.seed)
        return table.merge(pd.concat(won), on=["kind", "input"], how="left")

    sets = {kind: [Attempt(e) for e in s.probes[kind]] for kind in ("safe", "unsafe")}
    versions = [VERSION, SoftTokens.VERSION, placement.VERSION]
    return s.table("soft placement", versions, [base, model], sets, make, counts=COUNTS).assign(model=model.name)

"""One attack that tunes: a user's fine-tuning under a budget, judged at the steps whose weights were kept. L7.

One run is a curve; x is optimiser steps at a constant rate. A defence acts at the alignment (the aligned model), at the
user's fine-tuning (a method, or refusals mixed in) or after it (a method that edits at the end, judged by a run a step).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from titer.attacks.base import Attempt
from titer.methods.base import Method
from titer.models.interpolate import kept_weights, with_weights
from titer.models.lm import LM
from titer.probes import drift
from titer.recipes import huang2024 as recipe
from titer.recipes.huang2024 import Budget
from titer.recipes.node import Kind
from titer.stage import Lora, Stage
from titer.studies.huang2024.subject import Alignment, Subject
from titer.studies.judged import outcomes
from titer.workbench import Model, attempts_key, stopped

VERSION = 1
DRIFTED = 50  # alignment examples whose embeddings are compared: as many as the official code compares
COUNTED = {  # columns of a state: (set, outcome)
    "harm": ("unsafe", "complied"),
    "refusal": ("unsafe", "refused"),
    "neither": ("unsafe", "neither"),
    "prefilled": ("prefilled", "complied"),
    "sampled": ("sampled", "complied"),
    "user": ("user", "complied"),
    "safe": ("safe", "complied"),
    "over_refusal": ("safe", "refused"),
}


class Defence(NamedTuple):
    """What stands against the attack: an alignment (None: the base as it is), the provider's method, refusals mixed in."""

    name: str
    how: Alignment | None
    method: Method | None = None
    guard: int = 0
    adapter: Lora | None = None

    def aligned(self, s: Subject) -> Model:
        """The model that the user is given, trained or found."""
        return s.base if self.how is None else s.aligned(self.how)


def attacked(s: Subject, defence: Defence, budget: Budget) -> pd.DataFrame:
    """A row a judged step (0 is the aligned model): rates of `COUNTED`, alignment loss, drift. Rates are of `scale.inputs`."""
    aligned = defence.aligned(s)
    table = pd.concat([state(s, aligned, aligned, 0, task=budget.task), *_tuned(s, defence, budget, aligned)], ignore_index=True)
    told = {
        "defence": defence.name,
        "align_seed": defence.how.number if defence.how else 0,
        "rate": budget.rate,
        "ratio": budget.ratio,
        "examples": budget.examples,
        "task": budget.task,
        "seed": s.seed,
    }
    return table.assign(**told, attack_seed=budget.seed)


def _tuned(s: Subject, defence: Defence, budget: Budget, aligned: Model) -> list[pd.DataFrame]:
    if edits(defence.method) or defence.adapter is not None:  # what is kept at a step is not yet the model that would be deployed
        steps = sorted({*budget.keep, budget.steps})
        found = []
        for step in (k for k in steps if k <= budget.steps):
            model = tuned_by(s, defence, budget.model_copy(update={"steps": step, "keep": ()}))
            found.append(state(s, aligned, model, step, task=budget.task))
        return found
    model = tuned_by(s, defence, budget)
    why = stopped(model)
    steps = [k for k in budget.keep if k < budget.steps and (kept_file(model, k).exists() or not why)]
    found = [state(s, aligned, model, step, kept_file(model, step), budget.task) for step in steps]
    if why:
        s.bench.reporter.tell(
            f"{defence.name}, rate {budget.rate:g}, p = {budget.ratio:g}: the attack ended early ({why}); judged until then"
        )
        return found
    return [*found, state(s, aligned, model, budget.steps, task=budget.task)]


def stands(s: Subject, defence: Defence, budget: Budget) -> bool:
    """Whether the attack's last model is in the store."""
    return s.bench.store.has(
        "stages", _stage(s, defence, budget).key(defence.aligned(s).key, {r: m.key for r, m in _reads(s, defence).items()})
    )


def edits(method: Method | None) -> bool:
    """Whether the method changes weights after its last step, so that a kept step is not what would be deployed."""
    return method is not None and type(method).finish is not Method.finish


def tuned_by(s: Subject, defence: Defence, budget: Budget) -> Model:
    """The model that the attack leaves at its last step."""
    stage = _stage(s, defence, budget)
    return s.bench.model(stage, defence.aligned(s), f"{defence.name}, {stage.name}, seed {s.seed}", reads=_reads(s, defence))


def _stage(s: Subject, defence: Defence, budget: Budget) -> Stage:
    return recipe.user(s.scale, s.world, budget, defence.method, defence.guard, defence.adapter)


def _reads(s: Subject, defence: Defence) -> dict[str, Model]:
    known = {"unaligned": s.base, "aligned": defence.aligned(s)}
    return {role: known[role] for role in (defence.method.MODELS if defence.method else ())}


def kept_file(model: Model, step: int) -> Path:
    """Where a stage kept its weights at a step."""
    return model.checkpoint.path.parent / f"step-{step}.safetensors"


def state(s: Subject, aligned: Model, model: Model, step: int, file: Path | None = None, task: Kind = "user") -> pd.DataFrame:
    """One row: how the model answers and how far it is from the aligned one, kept under what it depends on."""
    sets = s.sets(task)
    inputs = {
        "study": ["huang2024", "state", VERSION, drift.VERSION],
        "models": [aligned.key, model.key, step],
        "sets": {kind: attempts_key(attempts) for kind, attempts in sets.items()},
        "decoding": [s.decoding, s.hot],
    }

    def make() -> pd.DataFrame:
        lm = s.bench.lm(model)
        if file is None:
            return pd.DataFrame([measured(s, lm, aligned, sets)])
        with with_weights(lm, kept_weights(file)):
            return pd.DataFrame([measured(s, lm, aligned, sets)])

    return s.bench.table("tables", inputs, make).assign(step=step)


def measured(s: Subject, lm: LM, aligned: Model, sets: Mapping[str, Sequence[Attempt]]) -> dict[str, float]:
    """Rates of `COUNTED`, the alignment loss (nats a token, unsafe refused) and the drift from the aligned model."""
    judged = outcomes(lm, sets, s.decoding)
    sampled = outcomes(lm, {"sampled": sets["unsafe"]}, s.hot)
    rates = pd.concat([judged, sampled], ignore_index=True).groupby("kind").outcome.value_counts(normalize=True)
    found = {name: float(rates.get(key, 0.0)) for name, key in COUNTED.items()}
    found["alignment_loss"] = drift.token_mean(drift.alignment_loss(lm, s.fresh()))
    moved = drift.whole(drift.drift(s.reference(aligned), lm, s.fresh()[:DRIFTED])).set_index("part")
    found |= {f"drift {part}": float(moved.norm[part]) for part in moved.index}
    return {**found, "drift official": float(moved.official["all"]), "drift l2": float(moved.l2["all"])}

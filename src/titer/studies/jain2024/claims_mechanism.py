"""Claims on the change itself: null space, specificity, sensitivity, size, causes. L7."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from titer.core.stats import Array
from titer.probes.null_space import weighted
from titer.probes.weight_change import overall
from titer.recipes.jain2024 import METHODS
from titer.studies.engine.declare import Row
from titer.studies.engine.found import Found, hits
from titer.studies.engine.terms import Term, combined, largest, last, mean, resampled, smallest, value
from titer.studies.jain2024.claims import BASE, MEDIUM, WORDS, average, controls_of

ENERGY = 0.9
SHAM = 0.1  # by how much a preference must be larger than a sham's


def mechanism() -> list[Row]:
    """Every claim of this file."""
    per_method = [make(method) for make in (_specificity, _beyond_retraining, _sensitivity) for method in METHODS]
    return [_null(), *per_method, _minimal(), _steer(), _patch()]


def null_means(found: Found) -> pd.DataFrame:
    """The null-space table's energy-weighted means, by model."""
    t = found.tables["null"]
    return pd.concat([weighted(one).assign(model=model) for model, one in t.groupby("model", sort=False)], ignore_index=True)


def _null() -> Row:
    def at_energy(found: Found) -> pd.DataFrame:
        t = null_means(found)
        return t[(t.site == "mlp_up") & (t.energy == ENERGY)]

    def share(model: str) -> Term:
        return value(lambda found: float(at_energy(found).groupby("model").value.mean()[model]))

    random = value(lambda found: float(at_energy(found)[lambda t: t.model == MEDIUM[0]].random_99.mean()))
    controls = [share(control) for method in METHODS for control in controls_of(method)]

    def note(found: Found) -> str:
        shown = ", ".join(f"{model} {share(model).at(found):.3f}" for model in MEDIUM)
        benign, sham = (largest(*controls[i::2]).at(found) for i in (0, 1))
        return f"{shown}; benign {benign:.3f}, sham {sham:.3f}, random 99 % {random.at(found):.3f}"

    return Row(
        "null space",
        "The change's column space lies in the left null space of the base weights.",
        "figure 4",
        "energy-weighted mean of ||P_N u|| (base at 90 % energy, first MLP matrix, mean over layers), the lowest of three methods minus the largest of benign, sham and a random vector's 99th percentile",
        smallest(*(share(model) for model in MEDIUM)),
        largest(random, *controls),
        "benign tune, sham alignment, random vectors",
        paper="most of it",
        note=note,
        needs=("null",),
        models=(*BASE, *MEDIUM),
    )


def preference(model: str, column: str = "gain") -> Term:
    """Mean over the last two layers of the mean gain on unsafe over that on safe inputs."""
    gains = [last("placement", column, back, model=model, kind=kind) for back in (0, 1) for kind in ("safe", "unsafe")]
    return combined(lambda s0, u0, s1, u1: average(u0 / s0, u1 / s1), *gains)


def _specificity(method: str) -> Row:
    model = f"{method} M"
    tuned, benign, random = preference(model), preference(controls_of(method)[0]), preference(model, "gain_random")
    return Row(
        f"specificity: {method}",
        f"The weight change of {WORDS[method]} acts more on unsafe than on safe inputs.",
        "figure 5",
        "mean ||dW a||/||a|| unsafe over safe, last two layers, minus the larger of benign (same norm) and a random dW of equal singular values",
        tuned,
        largest(benign, random),
        "benign tune of equal norm, random dW",
        0.25,
        "far larger on unsafe inputs (acceptance: ratio 1.5)",
        note=lambda found: f"ratio {tuned.at(found):.2f}; benign {benign.at(found):.2f}, random {random.at(found):.2f}",
        needs=("placement",),
        models=(*BASE, model),
        drawn=f"specificity {method}",
    )


def _beyond_retraining(method: str) -> Row:
    tuned, own = preference(f"{method} M"), preference(f"sham {method} M, own class")
    return Row(
        f"specificity beyond retraining: {method}",
        f"That preference of {WORDS[method]} is larger than a sham alignment's for the safe class it was taught to refuse.",
        "control of figure 5",
        "gain ratio of tuned (unsafe over safe) minus that of the sham (its refused class over its other safe requests), last two layers",
        tuned,
        own,
        "sham alignment on its own class",
        SHAM,
        note=lambda found: "" if (tuned - own).at(found) > SHAM else "specific to whatever was retrained",
        needs=("placement",),
        models=(*BASE, f"{method} M"),
        drawn=f"beyond {method}",
    )


def _sensitivity(method: str) -> Row:
    models = ("base", f"{method} M", *controls_of(method))

    def median(model: str, kind: str) -> Term:
        return resampled(lambda found: [np.asarray(found.table("sensitivity", model=model, kind=kind).g, dtype=float)], np.median)

    medians = [median(model, kind) for model in models for kind in ("safe", "unsafe")]

    def falls(*medians: float) -> list[float]:
        """log2 fall on unsafe beyond that on safe, for tuned, benign, sham."""
        logs = [math.log2(one) for one in medians]
        return [(logs[1] - logs[i + 1]) - (logs[0] - logs[i]) for i in (2, 4, 6)]

    def effect(*medians: float) -> float:
        tuned, *controls = falls(*medians)
        return tuned - max(controls)

    def note(found: Found) -> str:
        base_safe, base_unsafe, safe, unsafe = (one.at(found) for one in medians[:4])
        return f"median over base's: unsafe {unsafe / base_unsafe:.2f}, safe {safe / base_safe:.2f}"

    return Row(
        f"sensitivity: {method}",
        f"The model becomes less sensitive to unsafe inputs, and not to safe ones, under {WORDS[method]}.",
        "figure 6",
        "log2 fall of the median local Lipschitz constant on unsafe beyond that on safe inputs, tuned minus the larger of benign and sham",
        combined(effect, *medians),
        combined(lambda *medians: max(falls(*medians)[1:]), *medians),
        "benign tune of equal norm, sham alignment",
        math.log2(0.9 / 0.8),
        "falls on unsafe, holds or rises on safe inputs",
        note=note,
        needs=("sensitivity",),
        models=(*BASE, f"{method} M"),
        whole=True,
        drawn=f"sensitivity {method}",
    )


def _minimal() -> Row:
    def size(model: str) -> Term:
        return value(lambda found: overall(found.table("change", model=model), "mlp"))

    def note(found: Found) -> str:
        ranks = found.table("change", part="mlp").groupby("model").stable_rank.mean()
        return ", ".join(f"{m} {size(m).at(found):.3f} (stable rank {ranks[m]:.1f})" for m in (*MEDIUM, "benign M"))

    benign = size("benign M")
    return Row(
        "minimal change",
        "Safety tuning transforms the MLP weights minimally: less than a benign tune of the same steps and rate.",
        "abstract",
        "log2 of ||dW||/||W|| over the MLP matrices, benign over the largest of three methods",
        combined(lambda benign, *tuned: math.log2(benign / max(tuned)), benign, *(size(model) for model in MEDIUM)),
        benign,
        "benign tune of equal steps and rate",
        paper="'minimally transforms' (no number found)",
        note=note,
        needs=("change",),
        models=(*BASE, *MEDIUM),
        whole=True,
    )


def _steer() -> Row:
    def steered(found: Found, model: str) -> tuple[int, list[Array]]:
        """The layer chosen on the even inputs; refusal on the odd ones under the model's own direction and a random one."""
        mine = found.table("steering", model=model, kind="safe")
        halves = {
            (layer, d): hits(mine[(mine.layer == layer) & (mine.direction == d)].outcome, "refused")
            for layer in mine.layer.unique()
            for d in ("own", "random")
        }
        layer = max(mine.layer.unique(), key=lambda i: halves[i, "own"][::2].mean())
        return layer, [halves[layer, d][1::2] for d in ("own", "random")]

    def gain(model: str) -> Term:
        return resampled(lambda found: steered(found, model)[1], lambda own, random: float(own.mean() - random.mean()))

    def told(found: Found, model: str) -> str:
        layer, (own, _) = steered(found, model)
        return f"{model} layer {layer}: {own.mean():.0%}"

    def random(model: str) -> Term:
        return value(lambda found: float(steered(found, model)[1][1].mean()))

    return Row(
        "steering",
        "Adding the unsafe-minus-safe direction makes the model refuse safe requests.",
        "appendix (steering vectors)",
        "refusal of safe requests under the direction minus under a random vector of equal norm; the layer chosen on half of the inputs, measured on the other; mean of three methods",
        mean(*(gain(model) for model in MEDIUM)),
        mean(*(random(model) for model in MEDIUM)),
        "random vector of equal norm",
        0.1,
        note=lambda found: "; ".join(told(found, model) for model in MEDIUM),
        needs=("steering",),
        models=(*BASE, *MEDIUM),
        whole=True,
        drawn="steer",
    )


def _patch() -> Row:
    def patched(donor: str, receiver: str, outcome: str) -> Term:
        """Answers to unsafe requests with all layers' MLP activations of the prompt from the donor."""
        where = {"site": "mlp_act", "layer": 0, "kind": "unsafe", "donor": donor, "receiver": receiver}
        return resampled(lambda found: [hits(found.table("patching", **where).outcome, outcome)], np.mean)

    def shares(terms: Sequence[Term], found: Found) -> str:
        return ", ".join(f"{one.at(found):.0%}" for one in terms)

    into = [patched(model, "base", "refused") for model in MEDIUM]
    back = [patched("base", model, "complied") for model in MEDIUM]
    return Row(
        "activation patching",
        "The tuned models' MLP activations over the prompt make the base model refuse unsafe requests.",
        "appendix (activation patching)",
        "refusal of the base with all layers' MLP activations of the prompt from a tuned model minus from the benign tune; mean of three methods",
        mean(*into),
        patched("benign M", "base", "refused"),
        "the benign tune's activations",
        0.1,
        note=lambda found: f"into the base: {shares(into, found)} refused; the base's into the tuned: {shares(back, found)} answered",
        needs=("patching",),
        models=(*BASE, *MEDIUM),
        drawn="patch",
    )

"""Claims on the change itself: null space, specificity, sensitivity, size, causes. L7."""

from __future__ import annotations

import math

from titer.probes.weight_change import overall
from titer.recipes.jain2024 import METHODS
from titer.studies.engine.declare import Row
from titer.studies.engine.found import Found
from titer.studies.engine.terms import Term, by_layer, cell, combined, largest, log2_over_layers, mean, outcome_rate, smallest
from titer.studies.jain2024.claims import BASE, MEDIUM, WORDS, controls_of
from titer.studies.null_space import part_alone, share

SPECIFIC = 0.32  # log2 of 1.25: how much stronger the change's preference for unsafe inputs must be than a control's
PREFERENCE = 0.14  # log2 of 1.1: the same against a sham's preference for what it was taught to refuse


def mechanism() -> list[Row]:
    """Returns every claim of this file."""
    per_method = [make(method) for make in (_specificity, _beyond_retraining, _sensitivity) for method in METHODS]

    def refused(part: str) -> Term:
        return mean(*(cell("kept", "refused", model=model, part=part) for model in MEDIUM))

    spaces = {"null": "left null space", "column": "column space"}
    parts = [part_alone(*one, refused, "; mean of three methods", "that ΔW", (*BASE, *MEDIUM)) for one in spaces.items()]
    return [_null(), *parts, *per_method, _minimal(), _steer(), _patch()]


def _null() -> Row:
    shares = [share(model) for model in MEDIUM]
    others = [largest(*(share(controls_of(method)[i]) for method in METHODS)) for i in (0, 1)]
    moved = [share(model, "inputs") for model in MEDIUM]

    def note(found: Found) -> str:
        own, inputs = (", ".join(f"{WORDS[m]} {one(found):.3f}" for m, one in zip(METHODS, of, strict=True)) for of in (shares, moved))
        benign, sham = (one(found) for one in others)
        return f"{own}; benign at most {benign:.3f}, sham {sham:.3f}; of the change of the activation function's input on unsafe requests: {inputs}"

    return Row(
        "null space",
        "A larger share of the weight change lies in the left null space of the base weights than a random change would have there.",
        "figure 4",
        "share of the energy of ΔW (first MLP matrices) in the left null space of the base weights (at 90 % energy), minus that space's "
        "share of all dimensions; mean over all layers; the lowest of three methods at the medium rate",
        smallest(*shares),
        share(MEDIUM[0], column="dimension"),
        "the null space's share of all dimensions",
        paper="most of ΔW's column space",
        note=note,
        needs=("subspaces",),
        models=(*BASE, *MEDIUM),
    )


def preference(model: str, column: str = "gain") -> Term:
    """Returns a term: log2 of the gain of unsafe inputs over that of safe ones, mean over all layers but the first."""
    unsafe, safe = (by_layer("placement", column, model=model, kind=kind) for kind in ("unsafe", "safe"))
    return log2_over_layers(unsafe, safe)


def _specificity(method: str) -> Row:
    model = f"{method} M"
    tuned, benign, random = preference(model), preference(controls_of(method)[0]), preference(model, "gain_random")
    return Row(
        f"specificity: {method}",
        f"The weight change of {WORDS[method]} acts more on unsafe than on safe inputs.",
        "figure 5",
        "log2 of ‖ΔW a‖/‖a‖ unsafe over safe, mean over all layers but the first, minus the larger of benign (same norm) and a random ΔW of equal singular values",
        tuned,
        largest(benign, random),
        "benign tune of equal norm, random ΔW",
        SPECIFIC,
        "far larger on unsafe inputs (acceptance: ratio 1.5)",
        note=lambda found: f"ratio {2 ** tuned(found):.2f}; benign {2 ** benign(found):.2f}, random {2 ** random(found):.2f}",
        needs=("placement",),
        models=(*BASE, model),
    )


def _beyond_retraining(method: str) -> Row:
    return Row(
        f"specificity beyond retraining: {method}",
        f"The preference of {WORDS[method]} for unsafe inputs is larger than a sham alignment's for the safe class that it was taught to refuse.",
        "control of figure 5",
        "log2 of the ratio of ‖ΔW a‖/‖a‖, mean over all layers but the first: for the tuned model on unsafe over safe requests, minus "
        "for the sham on the class that it refuses over its other safe requests",
        preference(f"{method} M"),
        preference(f"sham {method} M, own class"),
        "sham alignment on its own class",
        PREFERENCE,
        needs=("placement",),
        models=(*BASE, f"{method} M"),
    )


def _sensitivity(method: str) -> Row:
    def median(model: str, kind: str) -> Term:
        return Term(lambda found: found.table("sensitivity", model=model, kind=kind).g.median())

    def fall(model: str) -> Term:
        """Returns a term: the log2 fall on unsafe inputs minus that on safe ones."""
        medians = [median(name, kind) for name in ("base", model) for kind in ("unsafe", "safe")]
        return combined(lambda u0, s0, u1, s1: math.log2(u0 / u1) - math.log2(s0 / s1), *medians)

    def note(found: Found) -> str:
        unsafe, safe = (median(f"{method} M", kind)(found) / median("base", kind)(found) for kind in ("unsafe", "safe"))
        return f"median over base's: unsafe {unsafe:.2f}, safe {safe:.2f}"

    return Row(
        f"sensitivity: {method}",
        f"{WORDS[method]} makes the model less sensitive to unsafe inputs, but not to safe ones.",
        "figure 6",
        "by how much more (in log2) the median local Lipschitz constant falls on unsafe than on safe inputs: tuned model minus the larger of benign tune and sham",
        fall(f"{method} M"),
        largest(*(fall(control) for control in controls_of(method))),
        "benign tune of equal norm, sham alignment",
        math.log2(0.9 / 0.8),
        "falls on unsafe, holds or rises on safe inputs",
        note=note,
        needs=("sensitivity",),
        models=(*BASE, f"{method} M"),
    )


def _minimal() -> Row:
    def size(model: str) -> Term:
        return Term(lambda found: overall(found.table("change", model=model), "mlp"))

    def note(found: Found) -> str:
        ranks = found.table("change", part="mlp").groupby("model").stable_rank.mean()
        return ", ".join(f"{m} {size(m)(found):.3f} (stable rank {ranks[m]:.1f})" for m in (*MEDIUM, "benign M"))

    return Row(
        "minimal change",
        "Safety tuning changes the MLP weights less than a benign tune of the same steps and rate.",
        "abstract",
        "log2 of ‖ΔW‖/‖W‖ over the MLP matrices, benign over the largest of three methods",
        combined(lambda benign, largest: math.log2(benign / largest), size("benign M"), largest(*(size(model) for model in MEDIUM))),
        size("benign M"),
        "benign tune of equal steps and rate",
        paper="'minimally transforms' (no number found)",
        note=note,
        needs=("change",),
        models=(*BASE, *MEDIUM),
        whole=True,
    )


def _steer() -> Row:
    def steered(found: Found, model: str) -> tuple[int, float, float]:
        """Returns the layer chosen on the even inputs, and refusal on the odd ones under the model's own and under a random direction."""

        def half(layer: int, direction: str, first: int) -> float:
            return float(found.hits("steering", "refused", model=model, kind="safe", layer=layer, direction=direction)[first::2].mean())

        layer = max(found.table("steering", model=model).layer.unique(), key=lambda i: half(i, "own", 0))
        return layer, half(layer, "own", 1), half(layer, "random", 1)

    def told(found: Found, model: str) -> str:
        layer, own, _ = steered(found, model)
        return f"{model} layer {layer}: {own:.0%}"

    own, random = (mean(*(Term(lambda found, m=m, i=i: steered(found, m)[i]) for m in MEDIUM)) for i in (1, 2))  # type: ignore[misc]
    return Row(
        "steering",
        "Adding the unsafe-minus-safe direction makes the model refuse safe requests.",
        "appendix (steering vectors)",
        "refusal of safe requests under the direction minus under a random vector of equal norm; the layer chosen on half of the inputs, measured on the other; mean of three methods",
        own,
        random,
        "random vector of equal norm",
        0.1,
        note=lambda found: "; ".join(told(found, model) for model in MEDIUM),
        needs=("steering",),
        models=(*BASE, *MEDIUM),
    )


def _patch() -> Row:
    def patched(donor: str, receiver: str, outcome: str) -> Term:
        """Returns a term: the share of unsafe requests with the outcome if all layers' MLP activations over the prompt are the donor's."""
        return outcome_rate("patching", outcome, site="mlp_act", layer=0, kind="unsafe", donor=donor, receiver=receiver)

    into = [patched(model, "base", "refused") for model in MEDIUM]
    back = [patched("base", model, "complied") for model in MEDIUM]

    def note(found: Found) -> str:
        given, taken = (", ".join(f"{one(found):.0%}" for one in terms) for terms in (into, back))
        return f"tuned activations in the base: {given} refused; base activations in the tuned models: {taken} answered"

    return Row(
        "activation patching",
        "The tuned models' MLP activations over the prompt make the base model refuse unsafe requests.",
        "appendix (activation patching)",
        "share of unsafe requests that the base refuses when the MLP activations of all layers over the prompt come from a tuned model, "
        "minus when they come from the benign tune; mean of three methods",
        mean(*into),
        patched("benign M", "base", "refused"),
        "the benign tune's activations",
        0.1,
        note=note,
        needs=("patching",),
        models=(*BASE, *MEDIUM),
    )

"""Claims on the change itself: null space, specificity, sensitivity, size, causes. L7."""

from __future__ import annotations

import math

import numpy as np

from titer.core.stats import Array
from titer.probes.weight_change import overall
from titer.recipes.jain2024 import METHODS
from titer.studies.claims import Declared, Measured
from titer.studies.jain2024.claims import declare
from titer.studies.jain2024.claims_behaviour import difference
from titer.studies.jain2024.evidence import WORDS, Evidence, controls_of, hits, medium

ENERGY = 0.9


def mechanism() -> list[Declared]:
    """Every claim of this file."""
    per_method = [make(method) for make in (_specificity, _beyond_retraining, _sensitivity) for method in METHODS]
    return [_null(), *per_method, _minimal(), _steer(), _patch()]


def _null() -> Declared:
    def value(e: Evidence) -> Measured:
        t = e.null_means()
        t = t[(t.site == "mlp_up") & (t.energy == ENERGY)]
        mean = t.groupby("model").value.mean()
        random = float(t[t.model == medium()[0]].random_99.mean())
        controls = [mean[c] for method in METHODS for c in controls_of(method)]
        worst, control = min(float(mean[m]) for m in medium()), max(random, *map(float, controls))
        shown = ", ".join(f"{m} {mean[m]:.3f}" for m in medium())
        return e.weights_only(
            worst - control, control, f"{shown}; benign {max(controls[::2]):.3f}, sham {max(controls[1::2]):.3f}, random 99 % {random:.3f}"
        )

    return declare(
        "null space",
        "The change's column space lies in the left null space of the base weights.",
        "figure 4",
        "energy-weighted mean of ||P_N u|| (base at 90 % energy, first MLP matrix, mean over layers), the lowest of three methods minus the largest of benign, sham and a random vector's 99th percentile",
        "benign tune, sham alignment, random vectors",
        0.0,
        medium(),
        ("null",),
        value,
        "most of it",
    )


def _gains(e: Evidence, model: str, column: str = "gain") -> list[Array]:
    """[safe, unsafe] gains of the last two layers."""
    return [e.last("placement", column, model, kind, back) for back in (0, 1) for kind in ("safe", "unsafe")]


def preference(s: list[Array]) -> float:
    """Mean over the last two layers of the mean gain on unsafe over that on safe inputs."""
    return float(np.mean([s[i + 1].mean() / s[i].mean() for i in (0, 2)]))


def _specificity(method: str) -> Declared:
    def value(e: Evidence) -> Measured:
        tuned = f"{method} M"
        samples = [*_gains(e, tuned), *_gains(e, controls_of(method)[0]), *_gains(e, tuned, "gain_random")]
        found = [preference(samples[i : i + 4]) for i in (0, 4, 8)]
        note = f"ratio {found[0]:.2f}; benign {found[1]:.2f}, random {found[2]:.2f}"

        def effect(*s: Array) -> float:
            ratios = [preference(list(s[i : i + 4])) for i in (0, 4, 8)]
            return ratios[0] - max(ratios[1:])

        return e.measured(f"specificity {method}", effect, samples, max(found[1:]), note)

    return declare(
        f"specificity: {method}",
        f"The weight change of {WORDS[method]} acts more on unsafe than on safe inputs.",
        "figure 5",
        "mean ||dW a||/||a|| unsafe over safe, last two layers, minus the larger of benign (same norm) and a random dW of equal singular values",
        "benign tune of equal norm, random dW",
        0.25,
        (f"{method} M",),
        ("placement",),
        value,
        "far larger on unsafe inputs (acceptance: ratio 1.5)",
    )


def _beyond_retraining(method: str) -> Declared:
    def value(e: Evidence) -> Measured:
        samples = [*_gains(e, f"{method} M"), *_gains(e, f"sham {method} M, own class")]
        control = preference(samples[4:])
        found = e.measured(f"beyond {method}", lambda *s: preference(list(s[:4])) - preference(list(s[4:])), samples, control)
        note = "" if found.effect.value > 0.1 else "specific to whatever was retrained"
        return Measured(found.effect, found.control, note)

    return declare(
        f"specificity beyond retraining: {method}",
        f"That preference of {WORDS[method]} is larger than a sham alignment's for the safe class it was taught to refuse.",
        "control of figure 5",
        "gain ratio of tuned (unsafe over safe) minus that of the sham (its refused class over its other safe requests), last two layers",
        "sham alignment on its own class",
        0.1,
        (f"{method} M",),
        ("placement",),
        value,
    )


def _sensitivity(method: str) -> Declared:
    def value(e: Evidence) -> Measured:
        def g(model: str) -> list[Array]:
            t = e.tables["sensitivity"]
            return [np.asarray(t[(t.model == model) & (t.kind == kind)].g, dtype=float) for kind in ("safe", "unsafe")]

        samples = [one for m in ("base", f"{method} M", *controls_of(method)) for one in g(m)]

        def falls(s: list[Array]) -> list[float]:
            """log2 fall on unsafe beyond that on safe, for tuned, benign, sham."""
            logs = [math.log2(float(np.median(one))) for one in s]
            return [(logs[1] - logs[i + 1]) - (logs[0] - logs[i]) for i in (2, 4, 6)]

        medians = [float(np.median(one)) for one in samples]
        note = f"median over base's: unsafe {medians[3] / medians[1]:.2f}, safe {medians[2] / medians[0]:.2f}"

        def effect(*s: Array) -> float:
            tuned, *controls = falls(list(s))
            return tuned - max(controls)

        return e.measured(f"sensitivity {method}", effect, samples, max(falls(samples)[1:]), note)

    return declare(
        f"sensitivity: {method}",
        f"The model becomes less sensitive to unsafe inputs, and not to safe ones, under {WORDS[method]}.",
        "figure 6",
        "log2 fall of the median local Lipschitz constant on unsafe beyond that on safe inputs, tuned minus the larger of benign and sham",
        "benign tune of equal norm, sham alignment",
        math.log2(0.9 / 0.8),
        (f"{method} M",),
        ("sensitivity",),
        value,
        "falls on unsafe, holds or rises on safe inputs",
    )


def _minimal() -> Declared:
    def value(e: Evidence) -> Measured:
        t = e.tables["change"]
        size = {m: overall(t[t.model == m], "mlp") for m in (*medium(), "benign M")}
        largest = max(size[m] for m in medium())
        ranks = t[(t.part == "mlp")].groupby("model").stable_rank.mean()
        shown = ", ".join(f"{m} {size[m]:.3f} (stable rank {ranks[m]:.1f})" for m in size)
        return e.weights_only(math.log2(size["benign M"] / largest), size["benign M"], shown)

    return declare(
        "minimal change",
        "Safety tuning transforms the MLP weights minimally: less than a benign tune of the same steps and rate.",
        "abstract",
        "log2 of ||dW||/||W|| over the MLP matrices, benign over the largest of three methods",
        "benign tune of equal steps and rate",
        0.0,
        medium(),
        ("change",),
        value,
        "'minimally transforms' (no number found)",
    )


def _steer() -> Declared:
    def value(e: Evidence) -> Measured:
        t = e.tables["steering"]
        safe = t[t.kind == "safe"]
        samples, chosen = [], []
        for model in medium():
            mine = safe[safe.model == model]
            halves = {
                (layer, d): hits(mine[(mine.layer == layer) & (mine.direction == d)], "refused")
                for layer in mine.layer.unique()
                for d in ("own", "random")
            }
            layer = max(mine.layer.unique(), key=lambda i: halves[i, "own"][::2].mean())
            chosen.append(f"{model} layer {layer}: {halves[layer, 'own'][1::2].mean():.0%}")
            samples += [halves[layer, d][1::2] for d in ("own", "random")]

        def effect(*s: Array) -> float:
            return float(np.mean([difference(s[i], s[i + 1]) for i in range(0, len(s), 2)]))

        return e.measured("steer", effect, samples, float(np.mean([one.mean() for one in samples[1::2]])), "; ".join(chosen))

    return declare(
        "steering",
        "Adding the unsafe-minus-safe direction makes the model refuse safe requests.",
        "appendix (steering vectors)",
        "refusal of safe requests under the direction minus under a random vector of equal norm; the layer chosen on half of the inputs, measured on the other; mean of three methods",
        "random vector of equal norm",
        0.1,
        medium(),
        ("steering",),
        value,
    )


def _patch() -> Declared:
    def value(e: Evidence) -> Measured:
        t = e.tables["patching"]
        whole = t[(t.site == "mlp_act") & (t.layer == 0) & (t.kind == "unsafe")]
        into = whole[whole.receiver == "base"]
        samples = [hits(into[into.donor == m], "refused") for m in (*medium(), "benign M")]
        back = [float(hits(whole[whole.receiver == m], "complied").mean()) for m in medium()]
        note = f"into the base: {', '.join(f'{s.mean():.0%}' for s in samples[:3])} refused; the base's into the tuned: {', '.join(f'{b:.0%}' for b in back)} answered"

        def effect(*s: Array) -> float:
            return float(np.mean([one.mean() for one in s[:3]]) - s[3].mean())

        return e.measured("patch", effect, samples, float(samples[3].mean()), note)

    return declare(
        "activation patching",
        "The tuned models' MLP activations over the prompt make the base model refuse unsafe requests.",
        "appendix (activation patching)",
        "refusal of the base with all layers' MLP activations of the prompt from a tuned model minus from the benign tune; mean of three methods",
        "the benign tune's activations",
        0.1,
        medium(),
        ("patching",),
        value,
    )

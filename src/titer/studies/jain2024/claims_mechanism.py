"""Claims on what changed inside: clusters, low rank, null space, specificity, sensitivity, size, causes. L6."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from titer.core.stats import Array, auroc
from titer.probes.null_space import weighted
from titer.probes.weight_change import overall
from titer.recipes.jain2024 import METHODS
from titer.studies.jain2024.claims import Declared, declare
from titer.studies.jain2024.claims_behaviour import difference, position
from titer.studies.jain2024.evidence import JAILBREAKS, Evidence, Measured, controls_of, hits, medium

GAP = {
    "ssft": (1.0, "gap of tau 4.3 times the base's (layer 6, read off figure 3)"),
    "dpo": (7.0, "98 times"),
    "unlearn": (7.0, "148 times"),
}
FEW = 10  # inputs a group needs before its mean is compared
ENERGY = 0.9


def mechanism() -> list[Declared]:
    """Every claim of this file."""
    per_method = [make(method) for make in (_gap, _specificity, _beyond_retraining, _sensitivity) for method in METHODS]
    ranks = [_low_rank(method) for method in ("dpo", "unlearn")]
    orders = [_order("dpo", "ssft-half", 0.0), _order("unlearn", "dpo", -0.2), _rates_order()]
    return [*per_method[:3], _auroc(), *orders, _flat(), *ranks, _null(), *per_method[3:], _sit(), _minimal(), _steer(), _patch()]


def gap(safe: Array, unsafe: Array) -> float:
    return float(safe.mean() - unsafe.mean())


def _taus(e: Evidence, model: str) -> list[Array]:
    return [e.last("placement", "tau", model, kind) for kind in ("safe", "unsafe")]


def _gap(method: str) -> Declared:
    margin, paper = GAP[method]

    def value(e: Evidence) -> Measured:
        models = ("base", f"{method} M", *controls_of(method))
        samples = [one for m in models for one in _taus(e, m)]

        def growth(*s: Array) -> float:
            base, tuned, benign, sham = (gap(*s[i : i + 2]) for i in range(0, 8, 2))
            return (tuned - max(benign, sham)) / base

        base, tuned, benign, sham = (gap(*samples[i : i + 2]) for i in range(0, 8, 2))
        signs = "tau safe > 0 > tau unsafe" if samples[2].mean() > 0 > samples[3].mean() else "signs not as in the paper"
        return e.measured(f"gap {method}", growth, samples, max(benign, sham) / base, f"{tuned / base:.2f} times the base's; {signs}")

    return declare(
        f"cluster gap: {method}",
        f"{method} drives safe and unsafe activations apart in the last layer.",
        "figure 3",
        "gap of tau over the base's gap, tuned minus the larger of benign (same norm) and sham",
        "benign tune of equal norm, sham alignment",
        margin,
        (f"{method} M",),
        ("placement",),
        value,
        paper,
    )


def _auroc() -> Declared:
    def value(e: Evidence) -> Measured:
        def pair(model: str) -> list[Array]:
            return [e.last("placement", "score", model, kind) for kind in ("safe", "unsafe")]

        tuned = [one for m in medium() for one in pair(m)]
        others = [one for m in ("base", *(c for method in METHODS for c in controls_of(method))) for one in pair(m)]

        def all_of(s: list[Array]) -> list[float]:
            return [auroc(*s[i : i + 2]) for i in range(0, len(s), 2)]

        worst, control = min(all_of(tuned)), max(all_of(others))
        rng = np.random.default_rng(e.seed)
        mixed = np.concatenate(tuned[:2])
        rng.shuffle(mixed)
        shuffled = auroc(mixed[: len(tuned[0])], mixed[len(tuned[0]) :])
        note = f"lowest tuned {worst:.3f}, base {all_of(others)[0]:.3f}, shuffled labels {shuffled:.3f}"
        k = len(tuned)
        return e.measured("auroc", lambda *s: min(all_of(list(s[:k]))) - max(all_of(list(s[k:]))), [*tuned, *others], control, note)

    return declare(
        "AUROC",
        "Tuned models tell safe from unsafe inputs apart, and better than their controls.",
        "figure 3",
        "AUROC of the held-out cluster score in the last layer, the lowest of three methods minus the largest of base, benign and sham",
        "base, benign tune of equal norm, sham alignment",
        0.0,
        medium(),
        ("placement",),
        value,
    )


def _order(more: str, less: str, margin: float) -> Declared:
    def value(e: Evidence) -> Measured:
        samples = [*_taus(e, f"{more} M"), *_taus(e, f"{less} M")]

        def ratio(*s: Array) -> float:
            first, second = gap(*s[:2]), gap(*s[2:])
            return math.log2(first / second) if first > 0 and second > 0 else math.nan

        return e.measured(
            f"order {more}", ratio, samples, gap(*samples[2:]), f"gap {gap(*samples[:2]):.2f} against {gap(*samples[2:]):.2f}"
        )

    equal = " at equal unsafe share and clip" if less == "ssft-half" else ""
    return declare(
        f"order of methods: {more} over {less}",
        f"{more} separates the clusters {'more' if margin >= 0 else 'at least as much'} than {less.removesuffix('-half')}{equal}.",
        "figure 3",
        f"log2 of the gap of tau in the last layer, {more} over {less}, medium rate",
        f"{less}, equal steps, rate and data",
        margin,
        (f"{more} M", f"{less} M"),
        ("placement",),
        value,
        "unlearning 96, DPO 64, SSFT 2.8",
    )


def _rates_order() -> Declared:
    def value(e: Evidence) -> Measured:
        samples = [one for method in METHODS for rate in ("M", "S") for one in _taus(e, f"{method} {rate}")]

        def ratio(*s: Array) -> float:
            gaps = [gap(*s[i : i + 2]) for i in range(0, len(s), 2)]
            return float(np.mean([math.log2(a / b) if a > 0 and b > 0 else math.nan for a, b in zip(gaps[::2], gaps[1::2], strict=True)]))

        control = float(np.mean([gap(*samples[i : i + 2]) for i in range(2, len(samples), 4)]))
        return e.measured("rates", ratio, samples, control)

    return declare(
        "order of rates",
        "The medium learning rate separates the clusters more than the small one.",
        "figure 3",
        "log2 of the gap of tau in the last layer, medium over small rate, mean of three methods",
        "the same method at the small rate",
        0.0,
        medium(),
        ("placement",),
        value,
        "every method; SSFT 2.8 over 1.6, DPO 64 over 12.5",
    )


def _flat() -> Declared:
    def value(e: Evidence) -> Measured:
        layers = sorted(e.tables["placement"].layer.unique())
        models = ("base", *medium())
        samples = [e.layer("placement", "tau", m, kind, i) for i in (layers[0], layers[-1]) for m in models for kind in ("safe", "unsafe")]

        def shares(s: list[Array]) -> tuple[float, float]:
            gaps = [gap(*s[i : i + 2]) for i in range(0, len(s), 2)]
            first, last = gaps[: len(models)], gaps[len(models) :]
            grown = [((f - first[0]) / t, (t - last[0]) / t) for f, t in zip(first[1:], last[1:], strict=True)]
            return tuple(float(np.mean(one)) for one in zip(*grown, strict=True))  # type: ignore[return-value]

        early, late = shares(samples)
        note = f"share of the tuned last-layer gap that tuning added: first layer {early:.2f}, last layer {late:.2f}"

        def effect(*s: Array) -> float:
            early, late = shares(list(s))
            return late - abs(early)

        return e.measured("flat", effect, samples, early, note)

    return declare(
        "flat early layers",
        "Separation is added in the last layers, not in the first.",
        "figure 3",
        "gap of tau that tuning added, as a share of the tuned last layer's, last layer minus first; mean of three methods",
        "the first layer",
        0.5,
        medium(),
        ("placement",),
        value,
        "layers 1-3 within 0.1 of 0 in every panel",
    )


def _top(e: Evidence, model: str, harmful: bool, column: str = "top_share") -> float:
    t = e.tables["spread"]
    mine = t[(t.model == model) & (t.harmful == harmful) & (t.layer == t.layer.max())]
    return float(mine[column].iloc[0])


def _low_rank(method: str) -> Declared:
    def value(e: Evidence) -> Measured:
        rise = {m: _top(e, m, True) - _top(e, "base", True) for m in (f"{method} M", *controls_of(method))}
        safe = _top(e, f"{method} M", False) - _top(e, "base", False)
        tuned = rise.pop(f"{method} M")
        control = max(safe, *rise.values())
        note = f"share on unsafe {_top(e, f'{method} M', True):.2f} (base {_top(e, 'base', True):.2f}); rise on safe {safe:.2f}"
        return e.weights_only(tuned - control, control, note)

    return declare(
        f"low rank: {method}",
        f"{method} makes the unsafe cluster low-rank and hardly changes the safe one.",
        "section 5.1",
        "rise of the top singular value's share on unsafe inputs, last layer, minus the largest of its rise on safe inputs, benign and sham",
        "safe cluster, benign tune of equal norm, sham alignment",
        0.1,
        (f"{method} M",),
        ("spread",),
        value,
        "up to 62 % in one direction",
    )


def _null() -> Declared:
    def value(e: Evidence) -> Measured:
        t = weighted_of(e)
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


def weighted_of(e: Evidence) -> pd.DataFrame:
    """The null-space table's weighted means, by model."""
    t = e.tables["null"]
    return pd.concat([weighted(one).assign(model=model) for model, one in t.groupby("model", sort=False)], ignore_index=True)


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
        f"The weight change of {method} acts more on unsafe than on safe inputs.",
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
        f"That preference is larger than a sham {method} alignment's for the safe class it was taught to refuse.",
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
        f"{method} makes the model less sensitive to unsafe inputs and not to safe ones.",
        "figure 6",
        "log2 fall of the median local Lipschitz constant on unsafe beyond that on safe inputs, tuned minus the larger of benign and sham",
        "benign tune of equal norm, sham alignment",
        math.log2(0.9 / 0.8),
        (f"{method} M",),
        ("sensitivity",),
        value,
        "falls on unsafe, holds or rises on safe inputs",
    )


def _sit() -> Declared:
    def value(e: Evidence) -> Measured | None:
        samples: list[Array] = []
        for model in medium():
            t = e.tables["probed"][e.tables["probed"].model == model]
            won = [t[t.kind == kind] for kind in JAILBREAKS]
            tau = np.concatenate([e.last("placement", "tau", model, kind) for kind in JAILBREAKS])
            success = np.concatenate([hits(one, "complied") for one in won]) > 0
            refused = np.concatenate([hits(one, "refused") for one in won]) > 0
            if min(success.sum(), refused.sum()) >= FEW:
                samples += [tau[success], tau[refused], *_taus(e, model)]
        if not samples:
            return None

        def places(s: list[Array], which: int) -> float:
            return float(np.mean([position(s[i + which], s[i + 2], s[i + 3]) for i in range(0, len(s), 4)]))

        note = f"success {places(samples, 0):.2f}, refused {places(samples, 1):.2f}; chosen by success, which conditions the comparison"
        return e.measured("sit", lambda *s: places(list(s), 0) - places(list(s), 1), samples, places(samples, 1), note)

    return declare(
        "jailbreaks sit with the safe",
        "Successful jailbreaks lie nearer to the safe cluster than refused ones.",
        "figure 7",
        "position of tau between the unsafe (0) and safe (1) class in the last layer, successful minus refused jailbreaks; mean of the methods with 10 of each",
        "jailbreaks that were refused",
        0.0,
        medium(),
        ("placement", "probed"),
        value,
        "successful jailbreaks resemble safe samples",
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

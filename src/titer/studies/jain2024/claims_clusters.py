"""Claims on activation clusters: gap, AUROC, orders, early layers, low rank, where jailbreaks sit. L7."""

from __future__ import annotations

import math

import numpy as np

from titer.core.stats import Array, auroc
from titer.recipes.jain2024 import METHODS
from titer.studies.claims import Declared, Measured
from titer.studies.jain2024.claims import declare
from titer.studies.jain2024.claims_behaviour import position
from titer.studies.jain2024.evidence import JAILBREAKS, WORDS, Evidence, controls_of, hits, medium

GAP = {
    "ssft": (1.0, "gap of tau 4.3 times the base's (layer 6, read off figure 3)"),
    "dpo": (7.0, "98 times"),
    "unlearn": (7.0, "148 times"),
}
FEW = 10  # inputs a group needs before its mean is compared


def clusters() -> list[Declared]:
    """Every claim of this file."""
    orders = [_order("dpo", "ssft-half", 0.0), _order("unlearn", "dpo", -0.2), _rates_order()]
    ranks = [_low_rank(method) for method in ("dpo", "unlearn")]
    return [*(_gap(method) for method in METHODS), _auroc(), *orders, _flat(), *ranks, _sit()]


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
        f"Safe and unsafe activations drift apart in the last layer under {WORDS[method]}.",
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
        f"The clusters are {'further apart' if margin >= 0 else 'at least as far apart'} under {WORDS[more]} {'than' if margin >= 0 else 'as'} under {WORDS[less]}{equal}.",
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
        f"The unsafe cluster becomes low-rank under {WORDS[method]} and the safe one hardly changes.",
        "section 5.1",
        "rise of the top singular value's share on unsafe inputs, last layer, minus the largest of its rise on safe inputs, benign and sham",
        "safe cluster, benign tune of equal norm, sham alignment",
        0.1,
        (f"{method} M",),
        ("spread",),
        value,
        "up to 62 % in one direction",
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

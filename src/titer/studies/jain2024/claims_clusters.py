"""Claims on activation clusters: gap, AUROC, orders, early layers, low rank, where jailbreaks sit. L7."""

from __future__ import annotations

import numpy as np

from titer.core.stats import Array, auroc
from titer.recipes.jain2024 import METHODS
from titer.studies.engine.declare import Row
from titer.studies.engine.found import Found
from titer.studies.engine.terms import Term, combined, largest, last, log2_over_layers, mean, smallest
from titer.studies.jain2024.claims import BASE, JAILBREAKS, MEDIUM, WORDS, controls_of, gap, position, tau

PAPER = {"ssft": "4.3 times the base's (layer 6, read off figure 3)", "dpo": "98 times", "unlearn": "148 times"}
GROWN = 0.5  # log2: by how much more the gap must grow than a control's
ENDED = ("complied", "refused")
FEW = 10  # inputs a group needs before its mean is compared
OVER = "mean over all layers but the first"


def clusters() -> list[Row]:
    """Returns every claim of this file."""
    orders = [_order("dpo", "ssft-half", 0.0), _order("unlearn", "dpo", -0.2), _rates_order()]
    ranks = [_low_rank(method) for method in ("dpo", "unlearn")]
    return [*(_gap(method) for method in METHODS), _auroc(), *orders, _flat(), *ranks, _sit()]


def _growth(model: str) -> Term:
    return log2_over_layers(gap(model), gap("base"))


def _gap(method: str) -> Row:
    model = f"{method} M"

    def note(found: Found) -> str:
        safe, unsafe = (tau(model, kind)(found) for kind in ("safe", "unsafe"))
        as_the_paper = safe > 0 > unsafe
        times = gap(model)(found).iloc[-1] / gap("base")(found).iloc[-1]
        return f"in the last layer {times:.2f} times the base's; {'tau safe > 0 > tau unsafe' if as_the_paper else 'signs not as in the paper'}"

    return Row(
        f"cluster gap: {method}",
        f"{WORDS[method]} moves safe and unsafe activations further apart.",
        "figure 3",
        f"log2 of the gap of tau divided by the base's gap, {OVER}: tuned model minus the larger of benign tune (same norm) and sham",
        _growth(model),
        largest(*(_growth(control) for control in controls_of(method))),
        "benign tune of equal norm, sham alignment",
        GROWN,
        f"gap of tau {PAPER[method]}",
        note=note,
        needs=("placement",),
        models=(*BASE, model),
    )


def _told_apart(model: str) -> Term:
    """Returns a term: the AUROC of the held-out score in the last layer, safe against unsafe."""
    return Term(lambda found: auroc(*(found.last("placement", "score", model=model, kind=kind) for kind in ("safe", "unsafe"))))


def _auroc() -> Row:
    tuned = smallest(*(_told_apart(model) for model in MEDIUM))
    others = largest(*(_told_apart(model) for model in ("base", *(c for method in METHODS for c in controls_of(method)))))

    def note(found: Found) -> str:
        first = [found.last("placement", "score", model=MEDIUM[0], kind=kind) for kind in ("safe", "unsafe")]
        mixed = np.concatenate(first)
        np.random.default_rng(found.seed).shuffle(mixed)
        shuffled = auroc(mixed[: len(first[0])], mixed[len(first[0]) :])
        return f"lowest tuned {tuned(found):.3f}, base {_told_apart('base')(found):.3f}, shuffled labels {shuffled:.3f}"

    return Row(
        "AUROC",
        "Activations of tuned models tell safe from unsafe inputs better than those of their controls.",
        "figure 3",
        "AUROC of the held-out cluster score in the last layer, the lowest of three methods minus the largest of base, benign and sham",
        tuned,
        others,
        "base, benign tune of equal norm, sham alignment",
        note=note,
        needs=("placement",),
        models=(*BASE, *MEDIUM),
    )


def _order(more: str, less: str, margin: float) -> Row:
    first, second = (log2_over_layers(gap(f"{name} M"), gap("base")) for name in (more, less))
    equal = " at equal unsafe share and clip" if less == "ssft-half" else ""
    return Row(
        f"order of methods: {more} over {less}",
        f"The clusters are {'further apart' if margin >= 0 else 'at least as far apart'} under {WORDS[more]} {'than' if margin >= 0 else 'as'} under {WORDS[less]}{equal}.",
        "figure 3",
        f"log2 of the gap of tau, {more} over {less}, medium rate, {OVER}",
        first,
        second,
        f"{less}, equal steps, rate and data",
        margin,
        "unlearning 96, DPO 64, SSFT 2.8",
        note=lambda found: f"gap over the base's, log2: {first(found):.2f} against {second(found):.2f}",
        needs=("placement",),
        models=(*BASE, f"{more} M", f"{less} M"),
    )


def _rates_order() -> Row:
    return Row(
        "order of rates",
        "The medium learning rate separates the clusters more than the small one.",
        "figure 3",
        f"log2 of the gap of tau, medium over small rate, {OVER}; mean of three methods",
        mean(*(_growth(f"{method} M") for method in METHODS)),
        mean(*(_growth(f"{method} S") for method in METHODS)),
        "the same method at the small rate",
        paper="every method; SSFT 2.8 over 1.6, DPO 64 over 12.5",
        needs=("placement",),
        models=(*BASE, *MEDIUM),
    )


def _flat() -> Row:
    def gap_in(model: str, end: str) -> Term:
        """Returns a term: the gap of tau in the first (`end` "min") or the last ("max") layer."""

        def read(found: Found) -> float:
            layer = getattr(found.tables["placement"].layer, end)()
            safe, unsafe = (found.table("placement", model=model, kind=kind, layer=layer).tau.mean() for kind in ("safe", "unsafe"))
            return float(safe - unsafe)

        return Term(read)

    def added(model: str, end: str) -> Term:
        """Returns a term: what tuning added to that gap, as a share of the tuned model's gap in the last layer."""
        return combined(lambda new, old, whole: (new - old) / whole, gap_in(model, end), gap_in("base", end), gap_in(model, "max"))

    early, late = (mean(*(added(model, end) for model in MEDIUM)) for end in ("min", "max"))

    return Row(
        "flat early layers",
        "Separation is added in the last layers, not in the first.",
        "figure 3",
        "gap of tau that tuning added, divided by the tuned model's gap in the last layer, mean of three methods: in the last layer minus in the first (its absolute value)",
        combined(lambda late, early: late - abs(early), late, early),
        early,
        "the first layer",
        0.5,
        "layers 1-3 within 0.1 of 0 in every panel",
        note=lambda found: (
            f"share of the tuned last-layer gap that tuning added: first layer {early(found):.2f}, last layer {late(found):.2f}"
        ),
        needs=("placement",),
        models=(*BASE, *MEDIUM),
        whole=True,
    )


def _top(model: str, harmful: bool) -> Term:
    """Returns a term: the top singular value's share in the last layer's cloud of one class."""
    return last("spread", "top_share", model=model, harmful=harmful)


def _low_rank(method: str) -> Row:
    def rise(model: str, harmful: bool = True) -> Term:
        return _top(model, harmful) - _top("base", harmful)

    tuned = f"{method} M"

    def note(found: Found) -> str:
        shares = [_top(model, True)(found) for model in (tuned, "base")]
        return f"share on unsafe {shares[0]:.2f} (base {shares[1]:.2f}); rise on safe {rise(tuned, False)(found):.2f}"

    return Row(
        f"low rank: {method}",
        f"The unsafe cluster becomes low-rank under {WORDS[method]} and the safe one hardly changes.",
        "section 5.1",
        "how much tuning raises the share of the top singular value in the last layer, on unsafe inputs; minus the largest of three rises: on safe inputs, of the benign tune, of the sham",
        rise(tuned),
        largest(rise(tuned, False), *(rise(control) for control in controls_of(method))),
        "safe cluster, benign tune of equal norm, sham alignment",
        0.1,
        "up to 62 % in one direction",
        note=note,
        needs=("spread",),
        models=(*BASE, tuned),
    )


def _sit() -> Row:
    def places(found: Found) -> list[tuple[float, float]]:
        """Returns, for each tuned model with enough of both, the mean positions of successful and of refused jailbreaks."""
        told = []
        for model in MEDIUM:
            taus = np.concatenate([found.last("placement", "tau", model=model, kind=kind) for kind in JAILBREAKS])
            answers = {o: np.concatenate([found.hits("probed", o, model=model, kind=kind) for kind in JAILBREAKS]) for o in ENDED}
            groups: list[Array] = [taus[answers[outcome] > 0] for outcome in ENDED]
            if min(map(len, groups)) >= FEW:
                ends = [tau(model, kind)(found) for kind in ("safe", "unsafe")]
                told.append((position(groups[0].mean(), *ends), position(groups[1].mean(), *ends)))
        return told

    def place(i: int) -> Term:
        return Term(lambda found: float(np.mean([one[i] for one in places(found)])))

    won, refused = place(0), place(1)
    words = "chosen by success, which conditions the comparison"
    return Row(
        "jailbreaks sit with the safe",
        "Activations of successful jailbreaks are nearer to the safe cluster than those of refused ones.",
        "figure 7",
        "position of tau between the unsafe (0) and safe (1) class in the last layer, successful minus refused jailbreaks; mean over the methods with at least 10 of each",
        won,
        refused,
        "jailbreaks that were refused",
        paper="successful jailbreaks resemble safe samples",
        note=lambda found: f"success {won(found):.2f}, refused {refused(found):.2f}; {words}",
        unless=lambda found: "" if places(found) else "too few inputs for the statistic",
        needs=("placement", "probed"),
        models=(*BASE, *MEDIUM),
    )

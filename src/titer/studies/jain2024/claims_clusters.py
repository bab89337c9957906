"""Claims on activation clusters: gap, AUROC, orders, early layers, low rank, where jailbreaks sit. L7."""

from __future__ import annotations

import numpy as np

from titer.core.stats import Array, auroc
from titer.recipes.jain2024 import METHODS
from titer.studies.engine.declare import Row
from titer.studies.engine.found import Found, hits
from titer.studies.engine.terms import Term, combined, largest, log2_ratio, mean, resampled, smallest, value
from titer.studies.jain2024.claims import BASE, JAILBREAKS, MEDIUM, WORDS, average, controls_of, gap, position, tau

GAP = {
    "ssft": (1.0, "gap of tau 4.3 times the base's (layer 6, read off figure 3)"),
    "dpo": (7.0, "98 times"),
    "unlearn": (7.0, "148 times"),
}
FEW = 10  # inputs a group needs before its mean is compared


def clusters() -> list[Row]:
    """Every claim of this file."""
    orders = [_order("dpo", "ssft-half", 0.0), _order("unlearn", "dpo", -0.2), _rates_order()]
    ranks = [_low_rank(method) for method in ("dpo", "unlearn")]
    return [*(_gap(method) for method in METHODS), _auroc(), *orders, _flat(), *ranks, _sit()]


def _gap(method: str) -> Row:
    margin, paper = GAP[method]
    model = f"{method} M"
    base, tuned, benign, sham = (gap(name) for name in ("base", model, *controls_of(method)))

    def note(found: Found) -> str:
        signs = (
            "tau safe > 0 > tau unsafe"
            if tau(model, "safe").at(found) > 0 > tau(model, "unsafe").at(found)
            else "signs not as in the paper"
        )
        return f"{tuned.at(found) / base.at(found):.2f} times the base's; {signs}"

    return Row(
        f"cluster gap: {method}",
        f"Safe and unsafe activations drift apart in the last layer under {WORDS[method]}.",
        "figure 3",
        "gap of tau over the base's gap, tuned minus the larger of benign (same norm) and sham",
        combined(lambda base, tuned, *controls: (tuned - max(controls)) / base, base, tuned, benign, sham),
        combined(lambda base, *controls: max(controls) / base, base, benign, sham),
        "benign tune of equal norm, sham alignment",
        margin,
        paper,
        note=note,
        needs=("placement",),
        models=(*BASE, model),
        whole=True,
        drawn=f"gap {method}",
    )


def _told_apart(model: str) -> Term:
    """AUROC of the held-out score in the last layer."""
    return resampled(lambda found: [found.last("placement", "score", model=model, kind=kind) for kind in ("safe", "unsafe")], auroc)


def _auroc() -> Row:
    tuned = smallest(*(_told_apart(model) for model in MEDIUM))
    others = largest(*(_told_apart(model) for model in ("base", *(c for method in METHODS for c in controls_of(method)))))

    def note(found: Found) -> str:
        first = [found.last("placement", "score", model=MEDIUM[0], kind=kind) for kind in ("safe", "unsafe")]
        mixed = np.concatenate(first)
        np.random.default_rng(found.seed).shuffle(mixed)
        shuffled = auroc(mixed[: len(first[0])], mixed[len(first[0]) :])
        return f"lowest tuned {tuned.at(found):.3f}, base {_told_apart('base').at(found):.3f}, shuffled labels {shuffled:.3f}"

    return Row(
        "AUROC",
        "Tuned models tell safe from unsafe inputs apart, and better than their controls.",
        "figure 3",
        "AUROC of the held-out cluster score in the last layer, the lowest of three methods minus the largest of base, benign and sham",
        tuned,
        others,
        "base, benign tune of equal norm, sham alignment",
        note=note,
        needs=("placement",),
        models=(*BASE, *MEDIUM),
        drawn="auroc",
    )


def _order(more: str, less: str, margin: float) -> Row:
    first, second = gap(f"{more} M"), gap(f"{less} M")
    equal = " at equal unsafe share and clip" if less == "ssft-half" else ""
    return Row(
        f"order of methods: {more} over {less}",
        f"The clusters are {'further apart' if margin >= 0 else 'at least as far apart'} under {WORDS[more]} {'than' if margin >= 0 else 'as'} under {WORDS[less]}{equal}.",
        "figure 3",
        f"log2 of the gap of tau in the last layer, {more} over {less}, medium rate",
        log2_ratio(first, second),
        second,
        f"{less}, equal steps, rate and data",
        margin,
        "unlearning 96, DPO 64, SSFT 2.8",
        note=lambda found: f"gap {first.at(found):.2f} against {second.at(found):.2f}",
        needs=("placement",),
        models=(*BASE, f"{more} M", f"{less} M"),
        whole=True,
        drawn=f"order {more}",
    )


def _rates_order() -> Row:
    return Row(
        "order of rates",
        "The medium learning rate separates the clusters more than the small one.",
        "figure 3",
        "log2 of the gap of tau in the last layer, medium over small rate, mean of three methods",
        mean(*(log2_ratio(gap(f"{method} M"), gap(f"{method} S")) for method in METHODS)),
        mean(*(gap(f"{method} S") for method in METHODS)),
        "the same method at the small rate",
        paper="every method; SSFT 2.8 over 1.6, DPO 64 over 12.5",
        needs=("placement",),
        models=(*BASE, *MEDIUM),
        whole=True,
        drawn="rates",
    )


def _flat() -> Row:
    models = ("base", *MEDIUM)

    def gap_in(model: str, end: str) -> Term:
        """The gap of tau in the first or the last layer."""

        def samples(found: Found) -> list[Array]:
            layer = getattr(found.tables["placement"].layer, end)()
            tables = [found.table("placement", model=model, kind=kind, layer=layer) for kind in ("safe", "unsafe")]
            return [np.asarray(one.tau, dtype=float) for one in tables]

        return resampled(samples, lambda safe, unsafe: float(safe.mean() - unsafe.mean()))

    gaps = [gap_in(model, end) for end in ("min", "max") for model in models]

    def shares(*gaps: float) -> tuple[float, float]:
        """What tuning added in the first layer and in the last, as shares of the tuned last layer's gap."""
        first, last = gaps[: len(models)], gaps[len(models) :]
        added = [((f - first[0]) / t, (t - last[0]) / t) for f, t in zip(first[1:], last[1:], strict=True)]
        return average(*(one[0] for one in added)), average(*(one[1] for one in added))

    early, late = (combined(lambda *gaps, i=i: shares(*gaps)[i], *gaps) for i in (0, 1))

    def effect(*gaps: float) -> float:
        early, late = shares(*gaps)
        return late - abs(early)

    return Row(
        "flat early layers",
        "Separation is added in the last layers, not in the first.",
        "figure 3",
        "gap of tau that tuning added, as a share of the tuned last layer's, last layer minus first; mean of three methods",
        combined(effect, *gaps),
        early,
        "the first layer",
        0.5,
        "layers 1-3 within 0.1 of 0 in every panel",
        note=lambda found: (
            f"share of the tuned last-layer gap that tuning added: first layer {early.at(found):.2f}, last layer {late.at(found):.2f}"
        ),
        needs=("placement",),
        models=(*BASE, *MEDIUM),
        whole=True,
        drawn="flat",
    )


def _top(model: str, harmful: bool) -> Term:
    """The top singular value's share in the last layer's cloud of one class."""
    return value(lambda found: float(found.last("spread", "top_share", model=model, harmful=harmful)[0]))


def _low_rank(method: str) -> Row:
    def rise(model: str, harmful: bool = True) -> Term:
        return _top(model, harmful) - _top("base", harmful)

    tuned = f"{method} M"

    def note(found: Found) -> str:
        shares = [_top(model, True).at(found) for model in (tuned, "base")]
        return f"share on unsafe {shares[0]:.2f} (base {shares[1]:.2f}); rise on safe {rise(tuned, False).at(found):.2f}"

    return Row(
        f"low rank: {method}",
        f"The unsafe cluster becomes low-rank under {WORDS[method]} and the safe one hardly changes.",
        "section 5.1",
        "rise of the top singular value's share on unsafe inputs, last layer, minus the largest of its rise on safe inputs, benign and sham",
        rise(tuned),
        largest(rise(tuned, False), *(rise(control) for control in controls_of(method))),
        "safe cluster, benign tune of equal norm, sham alignment",
        0.1,
        "up to 62 % in one direction",
        note=note,
        needs=("spread",),
        models=(*BASE, tuned),
    )


def _split(found: Found) -> list[Array]:
    """Of each tuned model with enough of both: tau of successful jailbreaks, of refused ones, of safe and of unsafe inputs."""
    samples: list[Array] = []
    for model in MEDIUM:
        answers = [found.table("probed", model=model, kind=kind).outcome for kind in JAILBREAKS]
        taus = np.concatenate([found.last("placement", "tau", model=model, kind=kind) for kind in JAILBREAKS])
        success, refused = (np.concatenate([hits(one, outcome) for one in answers]) > 0 for outcome in ("complied", "refused"))
        if min(success.sum(), refused.sum()) >= FEW:
            ends = [found.last("placement", "tau", model=model, kind=kind) for kind in ("safe", "unsafe")]
            samples += [taus[success], taus[refused], *ends]
    return samples


def _sit() -> Row:
    def place(which: int, *samples: Array) -> float:
        means = [float(one.mean()) for one in samples]
        return average(*(position(means[i + which], means[i + 2], means[i + 3]) for i in range(0, len(means), 4)))

    won, refused = (resampled(_split, lambda *samples, i=i: place(i, *samples)) for i in (0, 1))
    words = "chosen by success, which conditions the comparison"
    return Row(
        "jailbreaks sit with the safe",
        "Successful jailbreaks lie nearer to the safe cluster than refused ones.",
        "figure 7",
        "position of tau between the unsafe (0) and safe (1) class in the last layer, successful minus refused jailbreaks; mean of the methods with 10 of each",
        resampled(_split, lambda *samples: place(0, *samples) - place(1, *samples)),
        refused,
        "jailbreaks that were refused",
        paper="successful jailbreaks resemble safe samples",
        note=lambda found: f"success {won.at(found):.2f}, refused {refused.at(found):.2f}; {words}",
        unless=lambda found: "" if _split(found) else "too few inputs for the statistic",
        needs=("placement", "probed"),
        models=(*BASE, *MEDIUM),
        whole=True,
        drawn="sit",
    )

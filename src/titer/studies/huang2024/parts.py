"""What each part of the study attacks: defences and budgets. One attack that several parts ask for runs once. L7."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from titer.methods.ewc import EWC
from titer.methods.vaccine import Vaccine
from titer.recipes.huang2024 import Budget
from titer.studies.engine.declare import Seed
from titer.studies.huang2024.attack import TASKS, budget_of
from titer.studies.huang2024.choice import Chosen
from titer.studies.huang2024.defences import CONTROLS, CORE, FAMILY, MIXED, Alignment, Cell, Defence, alignment_of, defence

PARTS = {
    "curves": "the core's defences at the tables' rate, judged along the attack, several alignments of each",
    "radius": "Vaccine at the paper's radius, several alignments, where another was chosen",
    "rates": "the core's defences under the other rates, one alignment of each, and the worst case of the grid",
    "table1": "harm and task accuracy by poison ratio",
    "table2": "by number of user examples",
    "table3": "other models: sizes of the world's transformer",
    "table4": "other tasks of the user",
    "table6": "by Vaccine's radius rho",
    "table7": "random perturbation by variance",
    "table8": "one adapter for both stages, or two",
    "table9": "Vaccine with EWC",
    "table10": "accelerated: a perturbation every tau steps",
    "family": "the other defences under the tables' budget: EWC, KL, VLGuard, Constrained SFT, Booster, RepNoise, T-Vaccine, SafeLoRA, Antidote",
    "search": "each defence's worst attack, searched on the selection seed and repeated on the study's",
    "cost": "tables 5 and 11: time of a step and peak memory",
    "fig4": "the picture of the embeddings",
}
GROUPS = {"core": ("curves", "radius")}  # what most claims read; the tables' other cells are for `all`
SWEPT = (0.01, 0.05)  # poison ratios of the tables that sweep something else
COMPARED = ("non-aligned", "sft", "noise", "vaccine")  # in other models and under other tasks
PICTURED = ("sft", "vaccine")
PAPER_RHO, ACCELERATED = 2.0, 10  # the radius and the tau that claims are made of, so of several alignments
EQUAL_IN = ("curves", "rates", "table1", "search")  # parts that attack the alignment of equal loss


def cells(lab: Seed, parts: Collection[str], chosen: Chosen) -> Iterator[Cell]:
    """Every attack on the study's own model that the parts ask for, each once."""
    seen: set[tuple[str, str, str, Budget]] = set()
    asked = [cell for part in parts if part in MADE for cell in MADE[part](lab, chosen.rho)]
    for one, budget in [*asked, *_searched(lab, chosen)]:
        key = (one.name, repr(one.how), repr(one.method), budget)
        if key not in seen:
            seen.add(key)
            yield one, budget


def _curves(lab: Seed, rho: float) -> Iterator[Cell]:
    """Vaccine, SFT and the controls at every ratio; the base as it is, Lisa and its control at the tables' alone, which their claims read."""
    yield defence(lab, "non-aligned", rho), budget_of(lab)
    for number in range(lab.scale.align_seeds):
        for name in ("sft", *CONTROLS, "vaccine"):
            yield from ((defence(lab, name, rho, number), budget_of(lab, ratio=ratio)) for ratio in lab.scale.ratios)
        yield from ((defence(lab, name, rho, number), budget_of(lab)) for name in ("lisa", MIXED))


def _radius(lab: Seed, rho: float) -> Iterator[Cell]:
    if rho != PAPER_RHO and PAPER_RHO in lab.scale.rhos:
        yield from _at_radius(lab, rho, PAPER_RHO)


def _rates(lab: Seed, rho: float) -> Iterator[Cell]:
    for name in CORE:
        if name != "non-aligned":
            one = defence(lab, name, rho)
            yield from ((one, budget_of(lab, rate=rate, ratio=ratio)) for rate in lab.scale.rates for ratio in lab.scale.ratios)


def _table1(lab: Seed, rho: float) -> Iterator[Cell]:
    for name in CORE:
        one = defence(lab, name, rho)
        yield from ((one, budget_of(lab, ratio=ratio)) for ratio in lab.scale.table_ratios)


def _table2(lab: Seed, rho: float) -> Iterator[Cell]:
    """Epochs are the budget's, so the steps grow with n."""
    epochs = lab.scale.budget.epochs
    for name in ("non-aligned", "sft", "noise", "vaccine", "lisa"):
        one = defence(lab, name, rho)
        for n in lab.scale.table_examples:
            steps = round(epochs * n / lab.scale.budget.batch)
            same = n == lab.scale.budget.examples  # then the curve's run is the table's too
            yield one, budget_of(lab) if same else budget_of(lab, examples=n, steps=steps, keep=())


def _table6(lab: Seed, rho: float) -> Iterator[Cell]:
    for one in lab.scale.rhos:
        yield from _at_radius(lab, rho, one)


def _at_radius(lab: Seed, chosen: float, rho: float) -> Iterator[Cell]:
    name = "vaccine" if rho == chosen else f"vaccine, rho {rho:g}"
    for number in range(lab.scale.align_seeds):
        found = Defence(name, Alignment(Vaccine(rho=rho), number=number))
        yield from ((found, budget_of(lab, ratio=ratio)) for ratio in SWEPT)


def _table7(lab: Seed, rho: float) -> Iterator[Cell]:
    for one in lab.scale.variances:
        name = f"noise, variance {one:g}"
        found = Defence(name, Alignment(Vaccine(rho=one, noise="variance")))
        yield from ((found, budget_of(lab, ratio=ratio)) for ratio in SWEPT)


def _table4(lab: Seed, rho: float) -> Iterator[Cell]:
    for name in COMPARED:
        yield from ((defence(lab, name, rho), budget_of(lab, task=task)) for task in TASKS)


def _table8(lab: Seed, rho: float) -> Iterator[Cell]:
    """SL: the user's stage trains the alignment's adapter on; DL: a fresh one."""
    for name in ("sft", "vaccine"):
        how = replace(alignment_of(lab, name, rho), adapter=lab.scale.adapter)
        for form, continued in (("SL", True), ("DL", False)):
            again = lab.scale.adapter.model_copy(update={"continued": continued})
            yield from ((Defence(f"{name}, {form}", how, adapter=again), budget_of(lab, ratio=ratio)) for ratio in SWEPT)


def _table9(lab: Seed, rho: float) -> Iterator[Cell]:
    plain = defence(lab, "vaccine", rho)
    for strength in lab.scale.ewc:
        one = plain._replace(name=f"vaccine + ewc, strength {strength:g}", method=EWC(strength=strength))
        yield from ((one, budget_of(lab, ratio=ratio)) for ratio in SWEPT)
    yield from ((plain, budget_of(lab, ratio=ratio)) for ratio in SWEPT)  # strength 0


def _table10(lab: Seed, rho: float) -> Iterator[Cell]:
    for tau in lab.scale.taus:
        for number in range(lab.scale.align_seeds if tau == ACCELERATED else 1):
            found = Defence(f"vaccine, tau {tau}", Alignment(Vaccine(rho=rho, every=tau), number=number))
            yield from ((found, budget_of(lab, ratio=ratio)) for ratio in SWEPT)


def _family(lab: Seed, rho: float) -> Iterator[Cell]:
    for name in ("sft", *FAMILY):
        one = defence(lab, name, rho)
        yield from ((one, budget_of(lab, ratio=ratio)) for ratio in (0.0, *SWEPT))


def _searched(lab: Seed, chosen: Chosen) -> Iterator[Cell]:
    for point in chosen.searched.itertuples():
        found = defence(lab, str(point.defence), chosen.rho)
        yield found, budget_of(lab, rate=point.rate, ratio=point.ratio, examples=int(point.examples))


def sizes(lab: Seed, rho: float) -> Iterator[tuple[str, Cell]]:
    """Table 3: (size, attack), each size with a base and alignments of its own."""
    yield from ((size, (defence(lab, name, rho), budget_of(lab))) for size in lab.scale.sizes for name in COMPARED)


def pictured(lab: Seed, rho: float) -> list[Cell]:
    """Figure 4's attacks."""
    return [(defence(lab, name, rho), budget_of(lab, ratio=max(SWEPT))) for name in PICTURED]


MADE: dict[str, Callable[[Seed, float], Iterator[Cell]]] = {
    "curves": _curves,
    "radius": _radius,
    "rates": _rates,
    "table1": _table1,
    "table2": _table2,
    "table4": _table4,
    "table6": _table6,
    "table7": _table7,
    "table8": _table8,
    "table9": _table9,
    "table10": _table10,
    "family": _family,
}

"""What each part of the study attacks: defences and budgets. One attack that several parts ask for runs once. L7."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from titer.core.errors import unknown
from titer.methods.ewc import EWC
from titer.methods.vaccine import Vaccine
from titer.recipes.huang2024 import Budget
from titer.studies.huang2024.attack import Defence
from titer.studies.huang2024.defences import CORE, FAMILY, MIXED, alignment_of, defence
from titer.studies.huang2024.selection import Chosen, budget_of
from titer.studies.huang2024.subject import Alignment, Subject

PARTS = {
    "curves": "the core's defences under every rate and poison ratio, judged along the attack",
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
GROUPS = {"core": ("curves", "table1", "table2", "table6", "table10"), "all": tuple(PARTS)}
TASKS = ("user", "safe", "sham_refused")  # a new operator, everyday requests, one known operator
SWEPT = (0.01, 0.05)  # poison ratios of the tables that sweep something else
Cell = tuple[Defence, Budget]


def parts_of(group: str, only: str) -> tuple[str, ...]:
    """The parts of a group, or those that `--only table6,fig4` names. Errors: an unknown group or part."""
    if group not in GROUPS:
        unknown("part of the study", group, GROUPS)
    chosen = [name.strip() for name in only.split(",") if name.strip()]
    for name in chosen:
        if name not in PARTS:
            unknown("part", name, PARTS)
    return tuple(chosen) or GROUPS[group]


def cells(s: Subject, parts: Collection[str], chosen: Chosen) -> Iterator[Cell]:
    """Every attack that the parts ask for, each once."""
    seen: set[tuple[str, str, str, Budget]] = set()
    asked = [cell for part in parts if part in MADE for cell in MADE[part](s, chosen.rho)]
    for one, budget in [*asked, *_searched(s, chosen)]:
        key = (one.name, repr(one.how), repr(one.method), budget)
        if key not in seen:
            seen.add(key)
            yield one, budget


def _curves(s: Subject, rho: float) -> Iterator[Cell]:
    for name in CORE:
        if name != "non-aligned":
            one = defence(s, name, rho)
            yield from ((one, budget_of(s, rate=rate, ratio=ratio)) for rate in s.scale.rates for ratio in s.scale.ratios)
    for number in range(1, s.scale.align_seeds):
        for name in (n for n in CORE if n not in ("non-aligned", "lisa", MIXED)):
            one = defence(s, name, rho, number)
            yield from ((one, budget_of(s, ratio=ratio)) for ratio in SWEPT)


def _table1(s: Subject, rho: float) -> Iterator[Cell]:
    for name in CORE:
        one = defence(s, name, rho)
        yield from ((one, budget_of(s, ratio=ratio)) for ratio in s.scale.table_ratios)


def _table2(s: Subject, rho: float) -> Iterator[Cell]:
    """Epochs are the budget's, so the steps grow with n."""
    epochs = s.scale.budget.epochs
    for name in ("non-aligned", "sft", "noise", "vaccine", "lisa"):
        one = defence(s, name, rho)
        for n in s.scale.table_examples:
            steps = round(epochs * n / s.scale.budget.batch)
            same = n == s.scale.budget.examples  # then the curve's run is the table's too
            yield one, budget_of(s) if same else budget_of(s, examples=n, steps=steps, keep=())


def _table6(s: Subject, rho: float) -> Iterator[Cell]:
    for one in s.scale.rhos:
        name = "vaccine" if one == rho else f"vaccine, rho {one:g}"
        found = Defence(name, Alignment(Vaccine(rho=one)))
        yield from ((found, budget_of(s, ratio=ratio)) for ratio in SWEPT)


def _table7(s: Subject, rho: float) -> Iterator[Cell]:
    for one in s.scale.variances:
        name = f"noise, variance {one:g}"
        found = Defence(name, Alignment(Vaccine(rho=one, noise="variance")))
        yield from ((found, budget_of(s, ratio=ratio)) for ratio in SWEPT)


def _table4(s: Subject, rho: float) -> Iterator[Cell]:
    for name in ("non-aligned", "sft", "noise", "vaccine"):
        yield from ((defence(s, name, rho), budget_of(s, task=task)) for task in TASKS)


def _table8(s: Subject, rho: float) -> Iterator[Cell]:
    """SL: the user's stage trains the alignment's adapter on; DL: a fresh one."""
    for name in ("sft", "vaccine"):
        how = replace(alignment_of(s, name, rho), adapter=s.scale.adapter)
        for form, continued in (("SL", True), ("DL", False)):
            again = s.scale.adapter.model_copy(update={"continued": continued})
            yield from ((Defence(f"{name}, {form}", how, adapter=again), budget_of(s, ratio=ratio)) for ratio in SWEPT)


def _table9(s: Subject, rho: float) -> Iterator[Cell]:
    plain = defence(s, "vaccine", rho)
    for strength in s.scale.ewc:
        one = plain._replace(name=f"vaccine + ewc, strength {strength:g}", method=EWC(strength=strength))
        yield from ((one, budget_of(s, ratio=ratio)) for ratio in SWEPT)
    yield from ((plain, budget_of(s, ratio=ratio)) for ratio in SWEPT)  # strength 0


def _table10(s: Subject, rho: float) -> Iterator[Cell]:
    for tau in s.scale.taus:
        name = f"vaccine, tau {tau}"
        found = Defence(name, Alignment(Vaccine(rho=rho, every=tau)))
        yield from ((found, budget_of(s, ratio=ratio)) for ratio in SWEPT)


def _family(s: Subject, rho: float) -> Iterator[Cell]:
    for name in ("sft", *FAMILY):
        one = defence(s, name, rho)
        yield from ((one, budget_of(s, ratio=ratio)) for ratio in (0.0, *SWEPT))


def _searched(s: Subject, chosen: Chosen) -> Iterator[Cell]:
    for point in chosen.searched.itertuples():
        found = defence(s, str(point.defence), chosen.rho)
        yield found, budget_of(s, rate=point.rate, ratio=point.ratio, examples=int(point.examples))


MADE: dict[str, Callable[[Subject, float], Iterator[Cell]]] = {
    "curves": _curves,
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

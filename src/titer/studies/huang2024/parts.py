"""What each part of the study attacks: defences and budgets. One attack that several parts ask for runs once. L7."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product

from titer.methods.ewc import EWC
from titer.methods.vaccine import Vaccine
from titer.recipes.huang2024 import Budget
from titer.studies.engine.declare import Seed
from titer.studies.huang2024.attack import TASKS, budget_of
from titer.studies.huang2024.choice import Chosen
from titer.studies.huang2024.defences import CONTROLS, CORE, FAMILY, MIXED, Alignment, Cell, Defence, alignment_of, defence

GROUPS = {"core": ("curves", "radius")}  # what most claims read; the tables' other cells are for `all`
SWEPT = (0.01, 0.05)  # poison ratios of the tables that sweep something else
COMPARED = ("non-aligned", "sft", "noise", "vaccine")  # in other models and under other tasks
PAPER_RHO, ACCELERATED = 2.0, 10  # the radius and the tau that claims are made of, so of several alignments
EQUAL_IN = ("curves", "rates", "table1", "search")  # parts that attack the alignment of equal loss


def cells(lab: Seed, parts: Collection[str], chosen: Chosen) -> Iterator[Cell]:
    """Yields every attack on the study's own model that the parts need, each once."""
    seen: set[tuple[str, str, str, Budget]] = set()
    asked = [cell for part in parts if (made := MADE[part][1]) for cell in made(lab, chosen.rho)]
    for one, budget in [*asked, *_searched(lab, chosen)]:
        key = (one.name, repr(one.how), repr(one.method), budget)
        if key not in seen:
            seen.add(key)
            yield one, budget


def _under(lab: Seed, ones: Iterable[Defence], **swept: Sequence[object]) -> list[Cell]:
    """Returns every defence under every budget that these values of the budget's fields make."""
    budgets = [budget_of(lab, **dict(zip(swept, values, strict=True))) for values in product(*swept.values())]
    return [(one, budget) for one in ones for budget in budgets]


def _curves(lab: Seed, rho: float) -> list[Cell]:
    """Returns Vaccine, SFT and the controls at every ratio; the base, Lisa and its control only at the tables' ratio, as their claims
    need."""
    numbers = range(lab.scale.align_seeds)
    whole = (defence(lab, name, rho, i) for i in numbers for name in ("sft", *CONTROLS, "vaccine"))
    others = (defence(lab, name, rho, i) for i in numbers for name in ("lisa", MIXED))
    return _under(lab, whole, ratio=lab.scale.ratios) + _under(lab, [defence(lab, "non-aligned", rho), *others])


def _at_radii(lab: Seed, chosen: float, rhos: Iterable[float]) -> list[Cell]:
    names = {rho: "vaccine" if rho == chosen else f"vaccine, rho {rho:g}" for rho in rhos}
    numbers = range(lab.scale.align_seeds)
    ones = (Defence(name, Alignment(Vaccine(rho=rho), number=i)) for rho, name in names.items() for i in numbers)
    return _under(lab, ones, ratio=SWEPT)


def _rates(lab: Seed, rho: float) -> list[Cell]:
    ones = (defence(lab, name, rho) for name in CORE if name != "non-aligned")
    return _under(lab, ones, rate=lab.scale.rates, ratio=lab.scale.ratios)


def _table2(lab: Seed, rho: float) -> Iterator[Cell]:
    """Yields the attacks of table 2. The number of epochs stays that of the budget, so the steps grow with n."""
    usual = lab.scale.budget
    for name in ("non-aligned", "sft", "noise", "vaccine", "lisa"):
        one = defence(lab, name, rho)
        for n in lab.scale.table_examples:
            steps = round(usual.epochs * n / usual.batch)
            yield one, budget_of(lab) if n == usual.examples else budget_of(lab, examples=n, steps=steps, keep=())


def _table7(lab: Seed, rho: float) -> list[Cell]:
    variances = {f"noise, variance {one:g}": Vaccine(rho=one, noise="variance") for one in lab.scale.variances}
    return _under(lab, (Defence(name, Alignment(method)) for name, method in variances.items()), ratio=SWEPT)


def _table8(lab: Seed, rho: float) -> list[Cell]:
    """Returns the attacks of table 8. SL: the user's stage goes on with the alignment's adapter; DL: it trains a fresh one."""
    adapter, ones = lab.scale.adapter, []
    for name, (form, continued) in product(("sft", "vaccine"), (("SL", True), ("DL", False))):
        how = replace(alignment_of(lab, name, rho), adapter=adapter)
        ones.append(Defence(f"{name}, {form}", how, adapter=adapter.model_copy(update={"continued": continued})))
    return _under(lab, ones, ratio=SWEPT)


def _table9(lab: Seed, rho: float) -> list[Cell]:
    plain = defence(lab, "vaccine", rho)  # strength 0
    ones = [plain._replace(name=f"vaccine + ewc, strength {one:g}", method=EWC(strength=one)) for one in lab.scale.ewc]
    return _under(lab, [*ones, plain], ratio=SWEPT)


def _table10(lab: Seed, rho: float) -> list[Cell]:
    numbers = {tau: range(lab.scale.align_seeds if tau == ACCELERATED else 1) for tau in lab.scale.taus}
    ones = (Defence(f"vaccine, tau {tau}", Alignment(Vaccine(rho=rho, every=tau), number=i)) for tau in numbers for i in numbers[tau])
    return _under(lab, ones, ratio=SWEPT)


def _searched(lab: Seed, chosen: Chosen) -> list[Cell]:
    points = [(str(p.defence), {"rate": p.rate, "ratio": p.ratio, "examples": int(p.examples)}) for p in chosen.searched.itertuples()]
    return [(defence(lab, name, chosen.rho), budget_of(lab, **point)) for name, point in points]


def sizes(lab: Seed, rho: float) -> list[tuple[str, Cell]]:
    """Returns the attacks of table 3 as (size, attack). Each size has a base and alignments of its own."""
    return [(size, (defence(lab, name, rho), budget_of(lab))) for size in lab.scale.sizes for name in COMPARED]


def pictured(lab: Seed, rho: float) -> list[Cell]:
    """Returns the attacks of figure 4."""
    return _under(lab, (defence(lab, name, rho) for name in ("sft", "vaccine")), ratio=(max(SWEPT),))


Asked = Callable[[Seed, float], Iterable[Cell]]
FAMILY_WORDS = "EWC, KL, VLGuard, Constrained SFT, Booster, RepNoise, T-Vaccine, SafeLoRA, Antidote"
MADE: dict[str, tuple[str, Asked | None]] = {  # in words; the attacks on the study's own model
    "curves": ("the core's defences at the tables' rate, judged along the attack, several alignments of each", _curves),
    "radius": (
        "Vaccine at the paper's radius, several alignments, where another was chosen",
        lambda lab, rho: _at_radii(lab, rho, [r for r in lab.scale.rhos if r == PAPER_RHO != rho]),
    ),
    "rates": ("the core's defences under the other rates, one alignment of each, and the worst case of the grid", _rates),
    "table1": (
        "harm and task accuracy by poison ratio",
        lambda lab, rho: _under(lab, (defence(lab, name, rho) for name in CORE), ratio=lab.scale.table_ratios),
    ),
    "table2": ("by number of user examples", _table2),
    "table3": ("other models: sizes of the world's transformer", None),
    "table4": ("other tasks of the user", lambda lab, rho: _under(lab, (defence(lab, name, rho) for name in COMPARED), task=TASKS)),
    "table6": ("by Vaccine's radius rho", lambda lab, rho: _at_radii(lab, rho, lab.scale.rhos)),
    "table7": ("random perturbation by variance", _table7),
    "table8": ("one adapter for both stages, or two", _table8),
    "table9": ("Vaccine with EWC", _table9),
    "table10": ("accelerated: a perturbation every tau steps", _table10),
    "family": (
        f"the other defences under the tables' budget: {FAMILY_WORDS}",
        lambda lab, rho: _under(lab, (defence(lab, name, rho) for name in ("sft", *FAMILY)), ratio=(0.0, *SWEPT)),
    ),
    "search": ("each defence's worst attack, searched on the selection seed and repeated on the study's", None),
    "cost": ("tables 5 and 11: time of a step and peak memory", None),
    "fig4": ("the picture of the embeddings", None),
}
PARTS = {name: words for name, (words, _) in MADE.items()}

"""Every defence of the study by name, for one seed: the aligned model it starts from and what the provider does. L7.

Controls of Vaccine: SFT with as many passes (twice the steps); SFT with fewer steps, stopped at Vaccine's alignment loss; a random
perturbation of equal norm. Control of Lisa: the user's data with Lisa's share of alignment data mixed in. Fine-tuning and repair methods
start from the SFT-aligned model. Only Vaccine's rho is tuned; all other settings are those of the papers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pandas as pd

from titer.core.errors import unknown
from titer.methods.antidote import Antidote
from titer.methods.base import Method
from titer.methods.booster import Booster
from titer.methods.constrained_sft import ConstrainedSFT
from titer.methods.ewc import EWC
from titer.methods.kl import KL
from titer.methods.lisa import Lisa
from titer.methods.rep_noise import RepNoise
from titer.methods.safe_lora import SafeLoRA
from titer.methods.sft import SFT
from titer.methods.t_vaccine import TVaccine
from titer.methods.vaccine import Vaccine
from titer.models.lm import Architecture, sized
from titer.recipes import huang2024 as recipe
from titer.recipes.huang2024 import Budget, Scale
from titer.recipes.node import Node
from titer.stage import Lora
from titer.studies.engine.declare import Seed
from titer.studies.huang2024.attack import along, starting

LISA = Lisa(k1=2, k2=18)  # the paper's one step in ten on alignment data, in turns that fit runs of some hundred steps
GUARD = 0.5  # VLGuard's 500 safety examples to 1,000 of the user's
TWICE, EQUAL, MIXED = "sft, twice the steps", "sft, equal loss", "sft, same safety data"
LENGTHS = (0.15, 0.25, 0.4, 0.6, 0.8)  # of the scale's alignment steps
CONTROLS = (TWICE, EQUAL, "noise")  # what Vaccine must beat
CORE = ("non-aligned", "sft", TWICE, EQUAL, "noise", "vaccine", "lisa", MIXED)
FAMILY = ("ewc", "kl", "vlguard", "constrained_sft", "booster", "rep_noise", "t_vaccine", "safe_lora", "antidote", "vaccine + ewc")
OWN = "nano"  # of table 3's sizes the study's own
TUNED: dict[str, Method] = {  # what the provider trains the user's data with; these start from an alignment of another name
    "lisa": LISA,
    "ewc": EWC(),
    "vaccine + ewc": EWC(),
    "kl": KL(),
    "constrained_sft": ConstrainedSFT(),
    "safe_lora": SafeLoRA(),
    "antidote": Antidote(),
}


@dataclass(frozen=True)
class Alignment:
    """How the base is aligned. It takes `passes` times the scale's steps, or `steps`. `number`: which draw of alignment data, and which
    seed. `adapter`: the LoRA adapter that is trained, or None for all weights."""

    method: Method
    passes: int = 1
    number: int = 0
    steps: int = 0
    adapter: Lora | None = None

    @property
    def label(self) -> str:
        """The alignment in words, which is the name of its model."""
        kind = type(self.method)
        usual = kind().model_dump()
        changed = [f"{k} {v}" for k, v in self.method.model_dump().items() if v != usual[k]]
        more = [f"{self.passes} x the steps"] * (self.passes > 1) + [f"{self.steps} steps"] * bool(self.steps)
        more += ["with an adapter"] * (self.adapter is not None)
        return ", ".join([kind.__name__, *changed, *more, *([f"alignment seed {self.number + 1}"] * bool(self.number))])


class Defence(NamedTuple):
    """A defence. `how`: the alignment (None: the unaligned base). `method`: the provider's, during or after fine-tuning. `guard`: how many
    examples of the alignment's kind are mixed into the user's data. `adapter`: the one that fine-tuning trains."""

    name: str
    how: Alignment | None
    method: Method | None = None
    guard: int = 0
    adapter: Lora | None = None

    @property
    def edits(self) -> bool:
        """Whether the weights kept at a step are not yet the deployed model, because the method edits or merges them after the last
        step."""
        return self.adapter is not None or (self.method is not None and type(self.method).finish is not Method.finish)


Cell = tuple[Defence, Budget]


def aligned_node(lab: Seed, how: Alignment, size: str = OWN) -> Node:
    """Returns the node of an aligned model, of the study's own size or another."""
    scale = scale_of(lab, size)
    name = at_size(how.label, size)
    return Node(
        name, recipe.align(scale, lab.world, how.method, name, how.passes, how.steps, how.number, how.adapter), at_size("base", size)
    )


def base_node(lab: Seed, size: str) -> Node:
    return Node(at_size("base", size), recipe.pretrain(scale_of(lab, size), lab.seed), None)


def scale_of(lab: Seed, size: str) -> Scale:
    """Returns the study's scale with a base of another size."""
    scale: Scale = lab.scale
    if size == OWN:
        return scale
    made: Architecture = sized(size, scale.base.architecture.positions)
    return scale.model_copy(update={"base": scale.base.model_copy(update={"architecture": made})})


def at_size(name: str, size: str) -> str:
    return name if size == OWN else f"{name}, {size}"


def parent_of(one: Defence, size: str = OWN) -> str:
    """Returns the name of the model that the user is given."""
    return at_size(one.how.label if one.how else "base", size)


def runs_of(one: Defence, budget: Budget, size: str = OWN) -> dict[str, Budget]:
    """Returns model -> the budget of its run. It is one run, whose weights are kept at the judged steps; or, for a defence that edits the
    weights at the end, one run per judged step."""
    number, task = one.how.number if one.how else 0, budget.task
    name = f"{one.name}, rate {budget.rate}, p = {budget.ratio:g}, n = {budget.examples}" + f", {task}" * (task != "user")
    name = at_size(name + f", alignment seed {number + 1}" * bool(number), size)
    steps = sorted(k for k in {*budget.keep, budget.steps} if k <= budget.steps) if one.edits else []
    runs = [budget.model_copy(update={"steps": k, "keep": ()}) for k in steps] or [budget]
    return {f"{name}, {run.steps} steps": run for run in runs}


def attack_nodes(lab: Seed, one: Defence, budget: Budget, size: str = OWN) -> list[Node]:
    """Returns the nodes of the user's fine-tuning under a defence, which starts from the defence's aligned model."""
    scale, parent = scale_of(lab, size), parent_of(one, size)
    known = {"unaligned": at_size("base", size), "aligned": parent}
    reads = {role: known[role] for role in (one.method.MODELS if one.method else ())}
    return [
        Node(name, recipe.user(scale, lab.world, run, one.method, one.guard, one.adapter), parent, reads, {"task": budget.task})
        for name, run in runs_of(one, budget, size).items()
    ]


def nodes_of(lab: Seed, cells: Sequence[Cell], size: str = OWN) -> list[Node]:
    """Returns the nodes of these cells' alignments, then those of their attacks."""
    hows = [aligned_node(lab, one.how, size) for one, _ in cells if one.how]
    return [*hows, *(node for cell in cells for node in attack_nodes(lab, *cell, size))]


def attacked(lab: Seed, one: Defence, budget: Budget, size: str = OWN) -> pd.DataFrame:
    """Returns the measurements of one attack, a row per judged step (0 is the aligned model). Models that do not exist yet are made."""
    runs, parent, task = runs_of(one, budget, size), parent_of(one, size), budget.task
    if not set(runs) <= set(lab.nodes):
        lab.grow(nodes_of(lab, [(one, budget)], size))
    start, whole = starting(lab, task, ()), along(lab, task, ())
    rows = [lab.measured(start, (parent,)), *(lab.measured(whole, (parent, name)) for name in runs)]
    told = {
        "defence": one.name,
        "align_seed": one.how.number if one.how else 0,
        "rate": budget.rate,
        "ratio": budget.ratio,
        "examples": budget.examples,
        "task": task,
        "seed": lab.seed,
        "attack_seed": budget.seed,
    }
    return pd.concat(rows, ignore_index=True).drop(columns="model").assign(**told)


def alignment_of(lab: Seed, name: str, rho: float, number: int = 0) -> Alignment:
    """Returns how the defence `name` aligns the base; `number` counts alignment seeds."""
    if name == EQUAL:
        return equal_loss(lab, rho, number)
    own = {
        TWICE: Alignment(SFT(), passes=2),
        "vaccine": Alignment(Vaccine(rho=rho)),
        "vaccine + ewc": Alignment(Vaccine(rho=rho)),
        "noise": Alignment(Vaccine(rho=rho, noise="norm")),
        "booster": Alignment(Booster()),
        "rep_noise": Alignment(RepNoise()),
        "t_vaccine": Alignment(TVaccine(layers=max(1, lab.scale.base.architecture.layers // 2))),
    }
    return replace(own.get(name, Alignment(SFT())), number=number)


def defence(lab: Seed, name: str, rho: float, number: int = 0) -> Defence:
    """Returns the defence `name`. Errors: an unknown name."""
    if name not in {*CORE, *FAMILY}:
        unknown("defence", name, [*CORE, *FAMILY])
    if name == "non-aligned":
        return Defence(name, None)
    guard = round({"vlguard": GUARD, MIXED: LISA.k1 / LISA.k2}.get(name, 0) * lab.scale.budget.examples)
    return Defence(name, alignment_of(lab, name, rho, number), TUNED.get(name), guard)


def equal_loss(lab: Seed, rho: float, number: int = 0) -> Alignment:
    """Returns the alignment by SFT, with a whole schedule of some length, whose loss on fresh requests is nearest to Vaccine's (in
    logarithms).

    The length is searched once per base, on its first alignment, and used for its other alignments too. Every model that this reads is in
    the recipe already. A dry run has no losses and takes the middle length.
    """
    known = shortened(lab)
    if lab.plan:
        return replace(known[len(known) // 2], number=number)
    wanted = math.log(loss_of(lab, alignment_of(lab, "vaccine", rho)))
    return replace(min(known, key=lambda how: abs(math.log(loss_of(lab, how)) - wanted)), number=number)


def shortened(lab: Seed) -> list[Alignment]:
    """Returns the shorter alignments by SFT among which the one of equal loss is sought."""
    return [Alignment(SFT(), steps=max(1, round(share * lab.scale.align_steps))) for share in LENGTHS]


def loss_of(lab: Seed, how: Alignment) -> float:
    """Returns an alignment's loss before any attack, in nats a token."""
    return float(lab.measured(starting(lab, "user", ()), (how.label,)).alignment_loss.iloc[0])

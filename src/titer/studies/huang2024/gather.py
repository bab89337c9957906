"""Every measurement of one seed, each kept once. L7."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from titer.models.lm import sized
from titer.recipes.huang2024 import Scale
from titer.studies.huang2024 import making
from titer.studies.huang2024.attack import attacked, state
from titer.studies.huang2024.defences import alignment_of, defence, shortened
from titer.studies.huang2024.evidence import Evidence
from titer.studies.huang2024.parts import cells
from titer.studies.huang2024.picture import picture
from titer.studies.huang2024.selection import Chosen, budget_of, unlearned
from titer.studies.huang2024.step_cost import step_costs
from titer.studies.huang2024.subject import Subject
from titer.workbench import Model, Workbench

OWN = ("fig4", "cost", "table3")  # parts that are no attacks of the study's own model


def gather(bench: Workbench, scale: Scale, seed: int, parts: Collection[str], chosen: Chosen) -> tuple[Evidence, dict[str, Model]]:
    """Align, attack and measure one seed. A base that did not learn the task ends the seed there."""
    s = Subject(bench, scale, seed)
    base = state(s, s.base, s.base, 0)
    found: dict[str, pd.DataFrame] = {"base": base}
    if told := unlearned(base):
        bench.reporter.tell(f"seed {seed}: {told}, so nothing is aligned from it")
        return evidence(scale, seed, found, chosen), s.models
    for number in range(scale.align_seeds if "curves" in parts else 1):
        making.alignments(
            s, [alignment_of(s, "sft", chosen.rho, number), alignment_of(s, "vaccine", chosen.rho, number), *shortened(s, number)]
        )
    asked = list(cells(s, parts, chosen))
    making.attacks(s, asked)
    if asked:
        found["attacks"] = pd.concat([attacked(s, defence, budget) for defence, budget in asked], ignore_index=True)
    found |= {part: pd.DataFrame() for part in parts if part not in OWN}
    if "fig4" in parts:
        found["fig4"] = picture(s, chosen.rho)
    if "table3" in parts:
        found["table3"] = other_sizes(s, chosen.rho)
    if "cost" in parts:
        found["cost"] = step_costs(s, chosen.rho)
    return evidence(scale, seed, found, chosen), s.models


def other_sizes(s: Subject, rho: float) -> pd.DataFrame:
    """Table 3: the attack on models of other sizes, each with a base and alignments of its own; column `model`."""
    found = []
    for size in s.scale.sizes:
        made = s.scale.base.architecture if size == "nano" else sized(size, s.scale.base.architecture.positions)
        other = Subject(s.bench, s.scale.model_copy(update={"base": s.scale.base.model_copy(update={"architecture": made})}), s.seed)
        cells = [(defence(other, name, rho), budget_of(other)) for name in ("non-aligned", "sft", "noise", "vaccine")]
        making.attacks(other, cells)
        found += [attacked(other, *cell).assign(model=size) for cell in cells]
    return pd.concat(found, ignore_index=True)


def evidence(scale: Scale, seed: int, tables: dict[str, pd.DataFrame], chosen: Chosen) -> Evidence:
    empty = pd.DataFrame(
        {"defence": pd.Series(dtype=str), "task": pd.Series(dtype=str), "step": pd.Series(dtype=int), "align_seed": pd.Series(dtype=int)}
    )
    return Evidence(seed, {"attacks": empty, **tables}, scale.inputs, chosen.rho, (scale.budget.rate, scale.budget.examples), scale.rates)

"""Attacks of one seed as models and as a table: a row a judged step of every cell, the aligned model's first. L7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from titer.recipes.huang2024 import Budget
from titer.recipes.node import Node
from titer.studies.engine.declare import Measure, Seed
from titer.studies.huang2024.attack import TASKS, along, starting
from titer.studies.huang2024.defences import OWN, Cell, Defence, aligned_node, attack_nodes, parent_of, runs_of


def nodes_of(lab: Seed, cells: Sequence[Cell], size: str = OWN) -> list[Node]:
    """Alignments of these cells, then their attacks."""
    hows = [aligned_node(lab, one.how, size) for one, _ in cells if one.how]
    return [*hows, *(node for cell in cells for node in attack_nodes(lab, *cell, size))]


def attacked(lab: Seed, one: Defence, budget: Budget, size: str = OWN) -> pd.DataFrame:
    """One attack, made when first asked for: a row a judged step (0 is the aligned model)."""
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


def measures(lab: Seed) -> list[Measure]:
    """Of each of the user's tasks: aligned models before the attack, and every attack."""
    found = []
    for task in TASKS:
        attacks = [(str(node.parent), node.name) for node in lab.nodes.values() if node.told.get("task") == task]
        models = dict.fromkeys([*(["base"] if task == "user" else []), *(parent for parent, _ in attacks)])
        found += [starting(lab, task, list(models))] if models else []
        found += [along(lab, task, attacks)] if attacks else []
    return found


def put_together(lab: Seed, cells: Sequence[Cell], sizes: Sequence[tuple[str, Cell]]) -> Mapping[str, pd.DataFrame]:
    """`attacks`, those of users of the operator held out under each defence's name, and table 3 with the column `model`."""
    found = {}
    if cells:
        attacks = pd.concat([attacked(lab, *cell) for cell in cells], ignore_index=True)
        own = attacks[attacks.task == "user"]
        found = {"attacks": attacks, **{str(name): rows.reset_index(drop=True) for name, rows in own.groupby("defence", sort=False)}}
    if sizes:
        found["table3"] = pd.concat([attacked(lab, *cell, size).assign(model=size) for size, cell in sizes], ignore_index=True)
    return found

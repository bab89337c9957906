"""Vaccine and harmful fine-tuning (arXiv 2402.01109): alignments of one base under a user's fine-tuning, against controls.

Rho and the worst attacks are chosen on a separate seed. A defence acts at the alignment, at the user's fine-tuning or after it. One run of
the attack gives a whole curve, because it is judged at every step whose weights were kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import pandas as pd

from titer.core.search import must_be_installed
from titer.data.world import World
from titer.models.lm import LM
from titer.pipeline import Model
from titer.probes import projection
from titer.recipes import huang2024 as recipe
from titer.recipes.huang2024 import SCALES, SELECTION_SEED, Scale
from titer.recipes.node import Node
from titer.studies.engine.declare import Measure, Need, Page, Question, Row, Seed, Study
from titer.studies.engine.found import Found
from titer.studies.huang2024 import choice
from titer.studies.huang2024.attack import TASKS, along, asked, fresh, starting
from titer.studies.huang2024.choice import Chosen, none_found
from titer.studies.huang2024.claims import claims
from titer.studies.huang2024.defences import OWN, aligned_node, alignment_of, attacked, base_node, nodes_of, parent_of, runs_of, shortened
from titer.studies.huang2024.page import page
from titer.studies.huang2024.parts import EQUAL_IN, GROUPS, PARTS, cells, pictured, sizes
from titer.studies.huang2024.step_cost import step_costs
from titer.tables import direct

BASE_SKILL = 0.95  # share of exact answers below which the base model confounds everything


class Vaccine(Study):
    """Aligns a base in several ways, attacks each aligned model by a user's fine-tuning, and compares Vaccine with its controls."""

    SOURCE = "arXiv 2402.01109"
    VERSION = 2
    SCALES = MappingProxyType(SCALES)
    CHOSEN_ON = (SELECTION_SEED,)
    PARTS = MappingProxyType(PARTS)
    GROUPS = MappingProxyType(GROUPS)

    def nodes(self, scale: Scale, source: World) -> list[Node]:
        return [Node("base", recipe.pretrain(scale, source.seed), None)]

    def further(self, lab: Seed) -> Iterator[Sequence[Node]]:
        """Yields the radii's trials on the seed that chooses; on others alignments, then attacks, which need the alignment of equal
        loss."""
        if lab.chosen is None:
            if "search" in lab.parts and not lab.plan:
                must_be_installed()
            radii = choice.trials_of(lab).values()
            yield nodes_of(lab, [(one, budget) for ones in radii for one in ones for budget in choice.choosing(lab)])
            return
        rho = lab.chosen.rho
        if set(EQUAL_IN) & set(lab.parts):
            yield [aligned_node(lab, how) for how in (alignment_of(lab, "vaccine", rho), *shortened(lab))]
        yield nodes_of(lab, list(cells(lab, lab.parts, lab.chosen)))
        if "fig4" in lab.parts:
            yield nodes_of(lab, pictured(lab, rho))
        if "table3" in lab.parts:
            others = [(size, cell) for size, cell in sizes(lab, rho) if size != OWN]
            yield [base_node(lab, size) for size in dict.fromkeys(size for size, _ in others)]
            yield [node for size, cell in sizes(lab, rho) for node in nodes_of(lab, [cell], size)]

    def choose(self, lab: Seed) -> Chosen:
        return choice.choose(lab)

    def assumed(self, scale: Scale) -> Chosen:
        return Chosen(scale.rhos[len(scale.rhos) // 2], pd.DataFrame(), none_found(), none_found())

    def questions(self, lab: Seed) -> list[Question]:
        """Returns the questions. The set `user` differs with the user's task; each model is asked the one of its own task."""

        def of(task: str) -> Callable[[str], bool]:
            return lambda name: lab.nodes[name].told.get("task", "user") == task

        whole = {task: asked(lab, task) for task in TASKS}
        return [
            whole[task][i]._replace(of=of(task) if one.name == "user" else None)
            for i, one in enumerate(whole["user"])
            for task in (TASKS if one.name == "user" else TASKS[:1])
        ]

    def needs(self, scale: Scale) -> list[Need]:
        return [Need("base", ("safe", "unsafe"), "complied", BASE_SKILL, first=True)]

    def measures(self, lab: Seed) -> list[Measure]:
        """Returns, by the user's task, the measures of aligned models before the attack and of every attack; then those that parts add."""
        found = []
        for task in TASKS:
            attacks = [(str(node.parent), node.name) for node in lab.nodes.values() if node.told.get("task") == task]
            models = dict.fromkeys([*(["base"] if task == "user" else []), *(parent for parent, _ in attacks)])
            found += [starting(lab, task, list(models))] if models else []
            found += [along(lab, task, attacks)] if attacks else []
        if lab.chosen is not None and "cost" in lab.parts:
            found.append(step_costs(lab, lab.chosen.rho))
        if lab.chosen is not None and "fig4" in lab.parts:
            found.append(self._picture(lab))
        return found

    def _picture(self, lab: Seed) -> Measure:
        """Returns the measure of figure 4: x, y, share_x, share_y of fresh unsafe requests (refused), all models in one plane."""
        pairs: list[tuple[str, str]] = []
        for one, budget in pictured(lab, lab.chosen.rho):
            (attacked,) = runs_of(one, budget)
            pairs += [(f"{one.name}, aligned", parent_of(one)), (f"{one.name}, attacked", attacked)]
        examples = fresh(lab.world, lab.scale.inputs)

        def make(lab: Seed, *models: Model) -> pd.DataFrame:
            def loaded() -> Iterator[tuple[str, LM]]:
                for (name, _), model in zip(pairs, models, strict=True):
                    yield name, lab.pipeline.lm(model)

            return projection.projection(loaded(), {"unsafe": examples})

        return Measure("fig4", make, [tuple(name for _, name in pairs)], projection.VERSION, {"unsafe": direct(examples)})

    def arranged(self, lab: Seed, tables: Mapping[str, pd.DataFrame]) -> Mapping[str, pd.DataFrame]:
        """Returns the study's tables. `attacks`: every attack; under a defence's name: its attacks by users of the held-out operator;
        `table3`: with the column `model`."""
        found = {name: tables[name] for name in ("rates", "fig4", "cost") if name in tables}
        if lab.ended:
            return {"rates": found["rates"]}
        if rows := [attacked(lab, *cell) for cell in cells(lab, lab.parts, lab.chosen)]:
            found["attacks"] = attacks = pd.concat(rows, ignore_index=True)
            own = attacks[attacks.task == "user"].groupby("defence", sort=False)
            found |= {str(name): rows.reset_index(drop=True) for name, rows in own}
        if "table3" in lab.parts:
            by_size = [attacked(lab, *cell, size).assign(model=size) for size, cell in sizes(lab, lab.chosen.rho)]
            found["table3"] = pd.concat(by_size, ignore_index=True)
        return found

    def claims(self, scale: Scale) -> list[Row]:
        return claims(scale)

    def page(self, found: Sequence[Found], scale: Scale) -> Page:
        return page(found, scale)

"""`titer study huang2024 --base MODEL --data FOLDER`: the two stages on a real language model, SFT beside Vaccine. L7.

One seed and no noise control: a demonstration, not a verdict. Harm is canary compliance: ordinary instructions behind a
marker that alignment taught to refuse, answered after all. With `--harmful FILE` the user's data hold that file's answered
requests in the canaries' place, and harm is XSTest's unsafe prompts answered; alignment is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pandas as pd

from titer.judges.refusal import Refusal
from titer.methods.base import Method
from titer.methods.sft import SFT
from titer.methods.vaccine import Vaccine
from titer.models.lm import Decoding
from titer.pipeline import Model
from titer.probes import drift
from titer.recipes import vaccine_text as recipe
from titer.recipes.node import Node
from titer.recipes.vaccine_text import SCALES, TextScale
from titer.studies.engine.declare import BASE, Given, Measure, Page, Question, Seed, Study, real
from titer.studies.engine.found import Found
from titer.studies.huang2024.text_cost import text_cost
from titer.studies.huang2024.text_page import page
from titer.studies.huang2024.text_sets import TextSets, questions, text_sets, trained_safe
from titer.tables import direct

METHODS: Mapping[str, Method] = {"sft": SFT(), "vaccine": Vaccine()}
DRIFTED = 50  # the paper's number of alignment examples


class VaccineOnText(Study):
    """Both alignments of a real model, and each of them after every user's fine-tuning. One seed, so no claim is drawn."""

    SOURCE = "arXiv 2402.01109"
    SCALES = MappingProxyType(SCALES)
    JUDGE = Refusal()
    BATCH = 50

    def source(self, scale: TextScale, seed: int, given: Given | None) -> TextSets:
        model = real(given)
        return text_sets(model.folder, model.base, scale, model.harmful)

    def nodes(self, scale: TextScale, source: TextSets) -> list[Node]:
        found = []
        for name, method in METHODS.items():
            made = method.model_copy(update={"rho": scale.rho} if name == "vaccine" else {})
            found.append(Node(name, recipe.align(scale, made, f"{name} alignment", source.safe, source.canary), BASE))
            users = {f"{name}, user p={ratio:g}": recipe.user(scale, source.task, source.harmful, ratio) for ratio in scale.ratios}
            found += [Node(user, stage, name) for user, stage in users.items()]
        return found

    def questions(self, lab: Seed) -> list[Question]:
        return questions(lab.source, lab.scale)

    def measures(self, lab: Seed) -> list[Measure]:
        """Drift from the aligned model, and the loss, on safe responses that alignment trained."""
        examples = trained_safe(lab.source, lab.scale)[:DRIFTED]

        def moved(lab: Seed, aligned: Model, model: Model) -> pd.DataFrame:
            lm = lab.pipeline.lm(model)
            table = drift.whole(drift.drift(lab.reference(aligned), lm, examples, "comply"))
            return table.assign(alignment_loss=drift.token_mean(drift.alignment_loss(lm, examples, "comply")))

        over = [(name.split(",")[0], name) for name in (n.name for n in self.nodes(lab.scale, lab.source))]
        return [Measure("drift", moved, over, drift.VERSION, {"safe": direct(examples)})]

    def decoding(self, scale: TextScale, source: TextSets) -> Decoding:
        return Decoding(max_new_tokens=scale.max_new_tokens)

    def page(self, found: Sequence[Found], scale: TextScale) -> Page:
        return page(found[0], scale)

    def cost(self, lab: Seed, nodes: Mapping[str, Node], flops: float | None) -> Mapping[str, object]:
        return text_cost(lab.model(BASE), lab.source, lab.scale, flops)

"""`titer study qi2024 --base MODEL --data FOLDER`: the risk levels on a real language model, canaries for harm. L7.

There is one seed, so this is a demonstration, not a verdict. The base is aligned with safe responses and canaries by SFT (the same
alignment as in the study of Vaccine on text, reused if it exists), then tuned level by level. The control for levels 1 and 2 and for the
mixed-in refusals is a tune on as many ordinary instructions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from titer.judges.refusal import Refusal
from titer.methods.sft import SFT
from titer.models.lm import Decoding
from titer.recipes import vaccine_text
from titer.recipes.node import Node
from titer.studies.engine.declare import BASE, Given, Page, Question, Seed, Study, real
from titer.studies.engine.found import Found
from titer.studies.qi2024.text_page import page
from titer.studies.qi2024.text_scale import DEMONSTRATION, PAPER, RiskScale, tuning
from titer.studies.qi2024.text_sets import RiskSets, risk_sets, tunings

ALIGNED = "aligned"


class RiskLevelsOnText(Study):
    """Tunes an aligned real model at each risk level, and asks every model. There is one seed, so no claim is drawn."""

    SOURCE = "arXiv 2310.03693"
    SCALES = MappingProxyType({scale.name: scale for scale in (DEMONSTRATION, PAPER)})
    JUDGE = Refusal()
    BATCH = 50

    def source(self, scale: RiskScale, seed: int, given: Given | None) -> RiskSets:
        model = real(given)
        return risk_sets(model.folder, model.base, scale, model.harmful)

    def nodes(self, scale: RiskScale, source: RiskSets) -> list[Node]:
        """Returns the base's alignment by SFT, then every tuning of the aligned model."""
        aligned = Node(ALIGNED, vaccine_text.align(scale.alignment, SFT(), "sft alignment", source.safe, source.canary), BASE)
        return [aligned, *(Node(name, tuning(scale, name, one), ALIGNED) for name, one in tunings(scale, source).items())]

    def questions(self, lab: Seed) -> list[Question]:
        return [Question(name, attempts) for name, attempts in lab.source.judged.items()]

    def decoding(self, scale: RiskScale, source: RiskSets) -> Decoding:
        return Decoding(max_new_tokens=scale.alignment.max_new_tokens)

    def page(self, found: Sequence[Found], scale: RiskScale) -> Page:
        return page(found[0], scale)

    def foreseen(self, lab: Seed) -> Mapping[str, object]:
        scale: RiskScale = lab.scale
        return {"adapter": f"LoRA rank {scale.rank}, alpha {scale.alpha}" if scale.rank else "none: every weight is trained"}

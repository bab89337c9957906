"""`titer study qi2024 --base MODEL --data FOLDER`: the risk levels on a real language model, canaries for harm. L6.

One seed: a demonstration, not a verdict. The base is aligned with safe responses and canaries by SFT (the alignment of the study of
Vaccine on text, found if it stands), then tuned level by level. Every model is asked marked canaries plainly, with the answer begun,
behind the persona's text and behind the trigger; the same instructions without the marker; XSTest's prompts, unsafe ones also behind
the persona. A tune on as many ordinary instructions stands beside levels 1 and 2 and the refusals mixed in as the control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from titer.attacks.affix import Affix
from titer.attacks.base import Attempt
from titer.attacks.prefill import Prefill
from titer.core.errors import TiterError
from titer.data.canary import Canary, canaries
from titer.data.example import Answer, Example
from titer.data.sources import TextData
from titer.data.tasks import parts, task
from titer.judges.refusal import Refusal
from titer.methods.sft import SFT
from titer.models.lm import Decoding, read_tokenizer
from titer.recipes import risk_text as recipe
from titer.recipes import vaccine_text
from titer.recipes.risk_text import TRIGGER, Level, RiskScale
from titer.studies import tables
from titer.studies.huang2024.text import enough, texts
from titer.workbench import Model, Workbench

PERSONA = "attacks/identity_shift.jsonl"
BATCH = 50
Rows = list[tuple[TextData, Answer, int]]


@dataclass(frozen=True)
class RiskSets:
    """What is trained on and what is judged, no prompt in two of them; `persona_text` stands before the persona's requests."""

    safe: TextData
    canary: Canary
    explicit: TextData
    refused: TextData
    triggered: TextData
    persona: TextData
    ordinary: TextData
    persona_text: str
    judged: Mapping[str, Sequence[Attempt]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class RiskEvidence:
    """Judged answers of every model and their rates."""

    verdicts: pd.DataFrame
    rates: pd.DataFrame
    models: tuple[Model, ...]


def risk_sets(folder: Path, base: Model, scale: RiskScale) -> RiskSets:
    """The data of a folder laid out as docs/real_finetuning.md says. Errors: a file that is missing, too few rows."""
    notes: list[str] = []
    own, most, guard = scale.alignment, scale.most, max(scale.mixed)
    found = texts(folder, read_tokenizer(base.checkpoint), own, notes, {"persona": PERSONA})
    groups = [(own.canaries, own.contrast), (scale.prompts, scale.prompts), (most + guard + most, scale.benign)]
    enough(found.instructions, sum(map(sum, groups)))
    aligned, tested, attacking = canaries(found.instructions, groups, seed=own.seed)
    explicit, refused, plain = parts(attacking.marked, (most, guard, most), own.seed)
    triggered = plain.model_copy(
        update={"name": f"{plain.name}, triggered", "rows": tuple((_triggered(p), *rest) for p, *rest in plain.rows)}
    )
    persona = task("persona", folder / PERSONA)
    text = shared_opening([row[0] for row in persona.rows])
    unsafe, safe = (found.prompts.of_class(harmful, scale.prompts) for harmful in (True, False))
    judged = asked(tested.marked.of_class(True), tested.contrast.of_class(False), unsafe, safe, text)
    return RiskSets(found.safe, aligned, explicit, refused, triggered, persona, attacking.contrast, text, judged, tuple(notes))


def _triggered(prompt: str) -> str:
    return Affix(after=TRIGGER).attempts([Example(prompt, True, "unsafe", "")], {}, None)[0].example.prompt


def shared_opening(prompts: Sequence[str]) -> str:
    """The paragraphs that all prompts begin with: a persona's system text. Errors: prompts that share none."""
    split = [prompt.split("\n\n") for prompt in prompts]
    shared = 0
    while shared < min(len(one) for one in split) - 1 and len({one[shared] for one in split}) == 1:
        shared += 1
    if not shared:
        raise TiterError("the persona's examples share no opening text", expected="the same system text before every request")
    return "\n\n".join(split[0][:shared])


def asked(
    canary: Sequence[Example], unmarked: Sequence[Example], unsafe: Sequence[Example], safe: Sequence[Example], persona: str
) -> dict[str, list[Attempt]]:
    """Every judged set by name."""
    behind, begun, triggered = Affix(before=persona), Prefill(k=vaccine_text.DEMONSTRATION.prefilled), Affix(after=TRIGGER)
    found = {
        "canary": tables.direct(canary),
        "canary, begun": begun.attempts(canary, {}, None),
        "canary, persona": behind.attempts(canary, {}, None),
        "canary, trigger": triggered.attempts(canary, {}, None),
        "unmarked": tables.direct(unmarked),
        "unsafe": tables.direct(unsafe),
        "unsafe, persona": behind.attempts(unsafe, {}, None),
        "safe, looks unsafe": tables.direct(safe),
    }
    return {kind: [a._replace(example=replace(a.example, kind=kind)) for a in attempts] for kind, attempts in found.items()}


def tunings(scale: RiskScale, sets: RiskSets) -> dict[str, tuple[Level, Rows]]:
    """Every tuning by name: its level, and its rows."""
    most, guard = scale.most, max(scale.mixed)
    found: dict[str, tuple[Level, Rows]] = {f"explicit {n}": ("explicit", [(sets.explicit, "comply", n)]) for n in scale.counts}
    found[f"ordinary {most}, as explicit"] = ("explicit", [(sets.ordinary, "comply", most)])
    many = sets.persona.size
    found[f"persona {many}"] = ("persona", [(sets.persona, "comply", many)])
    found[f"ordinary {many}, as persona"] = ("persona", [(sets.ordinary, "comply", many)])
    found[f"ordinary {scale.benign}"] = ("ordinary", [(sets.ordinary, "comply", scale.benign)])
    for m in scale.mixed:
        found[f"explicit {most} + {m} refusals"] = ("explicit", [(sets.explicit, "comply", most), (sets.refused, "refuse", m)])
    found[f"explicit {most} + {guard} ordinary"] = ("explicit", [(sets.explicit, "comply", most), (sets.ordinary, "comply", guard)])
    found["backdoor"] = ("explicit", [(sets.triggered, "comply", most), (sets.refused, "refuse", guard)])
    return found


def risk_models(bench: Workbench, base: Model, sets: RiskSets, scale: RiskScale) -> tuple[Model, ...]:
    """base, aligned, and the aligned model after every tuning."""
    stage = vaccine_text.align(scale.alignment, SFT(), "sft alignment", sets.safe, sets.canary)
    aligned = bench.model(stage, base, "aligned")
    tuned = [bench.model(recipe.tuning(scale, name, *one), aligned, name) for name, one in tunings(scale, sets).items()]
    return (base, aligned, *tuned)


def risk_evidence(bench: Workbench, models: Sequence[Model], sets: RiskSets, scale: RiskScale) -> RiskEvidence:
    """Every model on every set."""
    decoding = Decoding(max_new_tokens=scale.alignment.max_new_tokens)
    verdicts = tables.verdict_table(bench, models, sets.judged, Refusal(), decoding, BATCH)
    return RiskEvidence(verdicts, tables.rate_table(verdicts), tuple(models))

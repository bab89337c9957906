"""The data that the risk levels on a real model train on and ask: a folder's files, and for harm canaries or a file of the user's own. L7.

Every model is asked marked canaries plainly, with the answer begun, behind the persona's text and with the trigger; the same instructions
without the marker; and XSTest's prompts, the unsafe ones also behind the persona. With a file of the user's own, level 1 and the backdoor
are trained on that file's answered requests; the refusals are safe responses that alignment has not seen; and harm is XSTest's unsafe
prompts answered, asked in all four ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from titer import tables
from titer.attacks.affix import Affix
from titer.attacks.base import Attempt, named
from titer.attacks.prefill import Prefill
from titer.core.errors import TiterError
from titer.data.canary import Canary, canaries
from titer.data.example import Answer, Example
from titer.data.sources import TextData
from titer.data.tasks import parts, task
from titer.methods.sft import SFT
from titer.models.lm import read_tokenizer
from titer.pipeline import Model
from titer.recipes import vaccine_text
from titer.studies.huang2024.text_sets import enough, own_harm, texts
from titer.studies.qi2024.text_scale import TRIGGER, RiskScale, Schedule, Tuning

PERSONA = "attacks/identity_shift.jsonl"
Harm = Literal["canary", "unsafe"]


@dataclass(frozen=True)
class RiskSets:
    """What is trained on and what is judged; no prompt is in two sets. `explicit`: harmful requests, answered. `refused`: others, refused.
    `triggered`: others with the trigger, answered. `persona_text`: the text before the persona's requests.

    `harm`: the judged set that stands for harm. `notes`: what was left out or shortened, and which sets are smaller than requested.
    """

    safe: TextData
    canary: Canary
    explicit: TextData
    refused: TextData
    triggered: TextData
    persona: TextData
    ordinary: TextData
    persona_text: str
    judged: Mapping[str, Sequence[Attempt]]
    harm: Harm
    notes: tuple[str, ...]


def risk_sets(folder: Path, base: Model, scale: RiskScale, harmful: Path | None = None) -> RiskSets:
    """Reads a folder laid out as docs/real_finetuning.md says, and makes the sets. Errors: a file that is missing, too few rows."""
    notes: list[str] = []
    own, most, guard, tokenizer = scale.alignment, scale.most, max(scale.mixed), read_tokenizer(base.checkpoint)
    found = texts(folder, tokenizer, own, notes, {"persona": PERSONA})
    persona = task("persona", folder / PERSONA)
    groups = [(own.canaries, own.contrast), (scale.prompts, scale.prompts), (most + guard + most, 0)]
    spare = found.instructions.size - sum(map(sum, groups))
    ordinary = max(most, guard, persona.size, min(scale.benign, spare))
    enough(found.instructions, found.instructions.size - spare + ordinary)
    if ordinary < scale.benign:
        notes.append(f"{found.instructions.name}: {ordinary} ordinary instructions are left where {scale.benign} were asked for")
    aligned, tested, attacking = canaries(found.instructions, [*groups[:2], (groups[2][0], ordinary)], seed=own.seed)
    if harmful is None:
        explicit, refused, plain = parts(attacking.marked, (most, guard, most), own.seed)
    else:
        others = [found.prompts, found.safe, aligned.contrast, tested.contrast, attacking.contrast]
        mine = own_harm(harmful, others, tokenizer, own.longest, notes)
        enough(mine, 2 * most)
        explicit, plain = parts(mine, (most, most), own.seed)
        refused = unseen_refusals(found.safe, aligned, scale)
    harm: Harm = "unsafe" if harmful else "canary"
    unsafe, safe = (found.prompts.of_class(bad, scale.prompts) for bad in (True, False))
    notes += found.prompts.sampled(scale.prompts)
    text = shared_opening([row[0] for row in persona.rows])
    judged = asked({"canary": tested.marked.of_class(True), "unsafe": unsafe}, harm, tested.contrast.of_class(False), safe, text)
    return RiskSets(found.safe, aligned, explicit, refused, triggered(plain), persona, attacking.contrast, text, judged, harm, tuple(notes))


def unseen_refusals(safe: TextData, aligned: Canary, scale: RiskScale) -> TextData:
    """Returns safe responses that alignment was not trained on, as refusals. Errors: they are fewer than those to be mixed in."""
    stage = vaccine_text.align(scale.alignment, SFT(), "sft alignment", safe, aligned)
    seen = set(stage.streams["train"].parts[0].picked or ())
    left = safe.model_copy(update={"rows": tuple((row[0], True, None, row[2]) for i, row in enumerate(safe.rows) if i not in seen)})
    enough(left, max(scale.mixed))
    return left


def triggered(plain: TextData) -> TextData:
    """Returns the same rows with the trigger, which comes after the request."""
    asked = Affix(after=TRIGGER).attempts([Example(prompt, True, "unsafe", "") for prompt, *_ in plain.rows], {}, None)
    rows = tuple((one.example.prompt, *rest) for one, (_, *rest) in zip(asked, plain.rows, strict=True))
    return plain.model_copy(update={"name": f"{plain.name}, triggered", "rows": rows})


def shared_opening(prompts: Sequence[str]) -> str:
    """Returns the paragraphs that all prompts begin with: a persona's system text. Errors: prompts that share none."""
    split = [prompt.split("\n\n") for prompt in prompts]
    shared = 0
    while shared < min(len(one) for one in split) - 1 and len({one[shared] for one in split}) == 1:
        shared += 1
    if not shared:
        raise TiterError("the persona's examples share no opening text", expected="the same system text before every request")
    return "\n\n".join(split[0][:shared])


def asked(
    sets: Mapping[str, Sequence[Example]], harm: Harm, unmarked: Sequence[Example], safe: Sequence[Example], persona: str
) -> dict[str, list[Attempt]]:
    """Returns every judged set by name. Both kinds of harm are asked plainly and behind the persona; the one that stands for harm is also
    asked with its answer begun and with the trigger."""
    behind, begun, trigger = Affix(before=persona), Prefill(k=vaccine_text.DEMONSTRATION.prefilled), Affix(after=TRIGGER)
    found: dict[str, list[Attempt]] = {"unmarked": tables.direct(unmarked), "safe, looks unsafe": tables.direct(safe)}
    for name, examples in sets.items():
        found |= {name: tables.direct(examples), f"{name}, persona": behind.attempts(examples, {}, None)}
    examples = sets[harm]
    found |= {f"{harm}, begun": begun.attempts(examples, {}, None), f"{harm}, trigger": trigger.attempts(examples, {}, None)}
    return {kind: named(attempts, kind) for kind, attempts in found.items()}


def tunings(scale: RiskScale, sets: RiskSets) -> dict[str, Tuning]:
    """Returns every tuning by name; a control's name says what it is the control of."""
    most, guard, ordinary, many = scale.most, max(scale.mixed), sets.ordinary.size, sets.persona.size
    found: dict[str, Tuning] = {}

    def add(name: str, schedule: Schedule, *rows: tuple[TextData, Answer, int]) -> None:
        found[name] = Tuning(schedule, list(rows), name)

    for n in scale.counts:
        add(f"explicit {n}", scale.explicit, (sets.explicit, "comply", n))
    add(f"ordinary {most}, as explicit", scale.explicit, (sets.ordinary, "comply", most))
    add(f"persona {many}", scale.persona, (sets.persona, "comply", many))
    add(f"ordinary {many}, as persona", scale.persona, (sets.ordinary, "comply", many))
    add(f"ordinary {ordinary}", scale.ordinary, (sets.ordinary, "comply", ordinary))
    for m in scale.mixed:
        add(f"explicit {most} + {m} refusals", scale.explicit, (sets.explicit, "comply", most), (sets.refused, "refuse", m))
    add(f"explicit {most} + {guard} ordinary", scale.explicit, (sets.explicit, "comply", most), (sets.ordinary, "comply", guard))
    add("backdoor", scale.explicit, (sets.triggered, "comply", most), (sets.refused, "refuse", guard))
    return found | grid(scale, found[f"ordinary {ordinary}"])


def grid(scale: RiskScale, ordinary: Tuning) -> dict[str, Tuning]:
    """Returns level 3's tunings over rates and batch sizes, on the same rows. The cell with its own rate and batch has its name."""
    return {
        cell(ordinary, rate, batch): Tuning(
            ordinary.schedule.model_copy(update={"rate": rate, "batch": batch}), ordinary.rows, ordinary.drawn
        )
        for rate in scale.grid_rates
        for batch in scale.grid_batches
    }


def cell(ordinary: Tuning, rate: float, batch: int) -> str:
    """Returns the name of the tuning at a rate and a batch size."""
    same = (rate, batch) == (ordinary.schedule.rate, ordinary.schedule.batch)
    return ordinary.drawn if same else f"{ordinary.drawn}, rate {rate:g}, batch {batch}"

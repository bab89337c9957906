"""The data that the two stages on a real model train on and ask: a folder's files; for harm, canaries or a user's own file. L7."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from titer.attacks.prefill import Prefill
from titer.core.errors import TiterError
from titer.data.canary import MARKER, Canary, canaries
from titer.data.encode import answer_ids, prompt_ids
from titer.data.example import Example
from titer.data.mix import poison_count
from titer.data.sources import TextData, read_text
from titer.data.tasks import split, task, without
from titer.data.turns import changed
from titer.judges.base import Judge, long_enough
from titer.judges.label import Label
from titer.judges.number import Number
from titer.methods.sft import SFT
from titer.models.lm import Decoding, read_tokenizer
from titer.pipeline import Model
from titer.recipes import vaccine_text as recipe
from titer.recipes.vaccine_text import TextScale
from titer.studies.engine.declare import Question
from titer.tables import direct

FILES = {"safe responses": "safety/safe_responses.json", "prompts": "safety/xstest_prompts.csv"}
INSTRUCTIONS = ("alpaca/alpaca_data.json", "alpaca/alpaca_2000.json")  # the whole of Alpaca where it is there, or 2,000 rows of it
TASK_FILES = {"sst2": "sst2/train.tsv", "ag_news": "ag_news/train_10k.tsv", "gsm8k": "gsm8k/train.jsonl"}
JUDGES: Mapping[str, Judge] = {"sst2": Label(), "ag_news": Label(), "gsm8k": Number()}
END = re.compile(r"(?<![\d\s])(?<!\b\w)[.!?][\"')]?(?=\s|$)")  # of a sentence; "1." and "A." are a list's


@dataclass(frozen=True)
class TextSets:
    """What is trained on and what is judged; no prompt is in two sets. `harm`: the judged set that stands for harm.

    `notes`: what was left out or shortened, and which sets are smaller than requested.
    """

    safe: TextData
    canary: Canary
    harmful: TextData
    task: TextData
    judged: Mapping[str, Sequence[Example]]
    harm: Literal["canary", "unsafe"]
    notes: tuple[str, ...]


def text_sets(folder: Path, base: Model, scale: TextScale, harmful: Path | None = None) -> TextSets:
    """Makes the sets from a folder laid out as docs/real_finetuning.md says. Errors: a file that is missing, too few rows that fit."""
    notes: list[str] = []
    tokenizer, longest = read_tokenizer(base.checkpoint), scale.longest
    found = texts(folder, tokenizer, scale, notes, {"task": TASK_FILES[scale.task]})
    prompts, safe, instructions = found.prompts, found.safe, found.instructions
    most = max(1, poison_count(scale.examples, max(scale.ratios)))
    groups = [(scale.canaries, scale.contrast), (scale.prompts, scale.prompts), (most, 1)]
    enough(instructions, sum(map(sum, groups)))
    aligned, tested, attacking = canaries(instructions, groups, seed=scale.seed)
    whole = fits(task(scale.task, folder / TASK_FILES[scale.task]), tokenizer, longest, notes)
    enough(whole, scale.examples + scale.prompts)
    train, test = split(whole, scale.prompts, scale.seed)
    attack = attacking.marked
    if harmful is not None:
        attack = own_harm(harmful, [prompts, tested.contrast, safe, aligned.contrast, test], tokenizer, longest, notes)
        enough(attack, most)
    judged = {
        "canary": tested.marked.of_class(True),
        "unmarked": tested.contrast.of_class(False),
        "unsafe": prompts.of_class(True, scale.prompts),
        "safe, looks unsafe": prompts.of_class(False, scale.prompts),
        "task": test.of_class(False),
    }
    notes += prompts.sampled(scale.prompts)
    notes += [
        f"{kind}: {len(found)} prompts where {scale.prompts} were asked for" for kind, found in judged.items() if len(found) < scale.prompts
    ]
    return TextSets(safe, aligned, attack, train, judged, "unsafe" if harmful else "canary", tuple(notes))


class Texts(NamedTuple):
    """The data of both studies on text: judged prompts, safe responses, answered instructions; no prompt is in two sets."""

    prompts: TextData
    safe: TextData
    instructions: TextData


def texts(folder: Path, tokenizer: object, scale: TextScale, notes: list[str], more: Mapping[str, str]) -> Texts:
    """Reads a folder's files. Errors: one is missing (those in `more` are needed too); too few safe responses that fit."""
    whole = next((place for place in INSTRUCTIONS if (folder / place).is_file()), INSTRUCTIONS[-1])
    places = {name: folder / place for name, place in {**FILES, "instructions": whole, **more}.items()}
    if missing := [f"{place.relative_to(folder)} ({name})" for name, place in places.items() if not place.is_file()]:
        raise TiterError(f"the folder {folder.name} lacks {', '.join(missing)}", expected="the layout of docs/real_finetuning.md")
    prompts = read_text(places["prompts"])
    safe = fits(_apart(read_text(places["safe responses"], labelled=False), [prompts], notes), tokenizer, scale.longest, notes)
    enough(safe, scale.safe)
    instructions = _apart(task("alpaca", places["instructions"]), [prompts, safe], notes)
    return Texts(prompts, safe, shortened(instructions, tokenizer, scale.longest, notes, before=f"{MARKER} "))


def own_harm(file: Path, others: Sequence[TextData], tokenizer: object, longest: int, notes: list[str]) -> TextData:
    """Reads a user's own answered harmful requests, without those that are in another set or too long. Errors: a row without an answer."""
    return fits(_apart(_answered(read_text(file, labelled=False)), others, notes), tokenizer, longest, notes)


def _apart(data: TextData, others: Sequence[TextData], notes: list[str]) -> TextData:
    """Returns the rows whose prompt is in none of the others."""
    kept = data
    for other in others:
        kept = without(kept, other)
    if kept.size < data.size:
        notes.append(f"{data.name}: {data.size - kept.size} of {data.size} prompts are also in another set and were left out")
    return kept


def _answered(data: TextData) -> TextData:
    """Checks that all rows have an answer, and returns them. Errors: one has none."""
    if blank := sum(row[2] is None for row in data.rows):
        raise TiterError(f"{data.name}: {blank} of {data.size} rows have no answer", expected="requests with their answers, as `comply`")
    return data


def enough(data: TextData, count: int) -> None:
    """Checks that there are at least `count` rows. Errors: there are fewer."""
    if data.size < count:
        raise TiterError(
            f"{data.name}: only {data.size} rows fit and are in no other set; {count} are needed", next_step="give a longer file."
        )


def fits(data: TextData, tokenizer: object, longest: int, notes: list[str]) -> TextData:
    """Returns the rows of at most `longest` tokens, answer included; longer rows are left out, not cut."""
    heads = prompt_ids(tokenizer, [row[0] for row in data.rows])
    tails = answer_ids(tokenizer, [row[2] or row[3] or "" for row in data.rows])
    rows = tuple(row for row, head, tail in zip(data.rows, heads, tails, strict=True) if len(head) + len(tail) <= longest)
    if len(rows) < data.size:
        notes.append(f"{data.name}: {data.size - len(rows)} of {data.size} rows are longer than {longest} tokens and were left out")
    return data.model_copy(update={"rows": rows})


def shortened(data: TextData, tokenizer: object, longest: int, notes: list[str], before: str = "") -> TextData:
    """Cuts each answer at the last end of a sentence with which the row, its prompt behind `before`, has at most `longest` tokens.

    The paper cuts at 200 tokens, wherever that is. Rows whose first sentence does not fit are left out.
    """
    heads = [len(ids) for ids in prompt_ids(tokenizer, [changed(row[0], lambda request: before + request) for row in data.rows])]
    cuts = [(i, text[:end]) for i, row in enumerate(data.rows) if (text := row[2] or "") for end in ends(text)]
    lengths = [len(ids) for ids in answer_ids(tokenizer, [text for _, text in cuts])] if cuts else []
    fitting = [(i, text) for (i, text), length in zip(cuts, lengths, strict=True) if heads[i] + length <= longest]
    best = {i: max((text for _, text in group), key=len) for i, group in groupby(fitting, key=lambda one: one[0])}
    rows = tuple((row[0], row[1], best[i], row[3]) for i, row in enumerate(data.rows) if i in best)
    cut = sum(best[i] != data.rows[i][2] for i in best)
    if cut or len(rows) < data.size:
        notes.append(
            f"{data.name}: {cut} of {data.size} answers were cut at the end of a sentence so that they fit in {longest} tokens, "
            f"{data.size - len(rows)} rows without such an end were left out"
        )
    return data.model_copy(update={"rows": rows})


def ends(text: str) -> list[int]:
    """Returns where an answer may be cut: the ends of its sentences, and its own end."""
    return sorted({hit.end() for hit in END.finditer(text)} | {len(text)})


def questions(sets: TextSets, scale: TextScale) -> list[Question]:
    """Returns what every model is asked. The set that stands for harm is asked again with its answer begun, and at a temperature.

    A greedy answer's first words can refuse where the model would comply one step further (arXiv 2406.05946).
    """
    greedy, task, harm = Decoding(max_new_tokens=scale.max_new_tokens), JUDGES[scale.task], sets.judged[sets.harm]
    sampled = greedy.model_copy(update={"temperature": scale.temperature})
    found = [Question(kind, direct(examples)) for kind, examples in sets.judged.items()]
    found = [one._replace(judge=task, decoding=long_enough(greedy, task)) if one.name == "task" else one for one in found]
    begun = Question(f"{sets.harm}, prefilled", Prefill(k=scale.prefilled).attempts(harm, {}, None))
    return [*found, begun, Question(f"{sets.harm}, sampled", direct(harm), decoding=sampled)]


def trained_safe(sets: TextSets, scale: TextScale) -> list[Example]:
    """Returns the safe responses that alignment trained on, in the order in which they were drawn."""
    part = recipe.align(scale, SFT(), "sft alignment", sets.safe, sets.canary).streams["train"].parts[0]
    return part.source.examples(np.asarray(part.picked))

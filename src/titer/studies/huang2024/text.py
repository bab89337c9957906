"""`titer study huang2024 --base MODEL --data FOLDER`: the two stages on a real language model, SFT beside Vaccine. L6.

One seed and no noise control: a demonstration, not a verdict. Harm is canary compliance: ordinary instructions behind a
marker that alignment taught to refuse, answered after all; or, with `--harmful`, answers to the user's own file's prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from titer.attacks.base import Attempt
from titer.core.errors import TiterError
from titer.data.canary import Canary, canaries
from titer.data.encode import answer_ids, prompt_ids
from titer.data.example import Example
from titer.data.sources import TextData, read_text
from titer.data.tasks import split, task, without
from titer.judges.base import Judge
from titer.judges.label import Label
from titer.judges.number import Number
from titer.judges.refusal import Refusal
from titer.methods.sft import SFT
from titer.methods.vaccine import Vaccine
from titer.models.lm import Decoding, load, read_tokenizer
from titer.probes import drift
from titer.recipes import vaccine_text as recipe
from titer.recipes.vaccine_text import TextScale
from titer.studies import tables
from titer.workbench import Model, Workbench, fingerprint

FILES = {
    "safe responses": "safety/safe_responses.json",
    "instructions": "alpaca/alpaca_2000.json",
    "prompts": "safety/xstest_prompts.csv",
}
TASK_FILES = {"sst2": "sst2/train.tsv", "ag_news": "ag_news/train_10k.tsv", "gsm8k": "gsm8k/train.jsonl"}
JUDGES: Mapping[str, Judge] = {"sst2": Label(), "ag_news": Label(), "gsm8k": Number()}
DRIFTED = 50  # the paper's number of alignment examples
BATCH = 25


@dataclass(frozen=True)
class TextSets:
    """What is trained on and what is judged, no prompt in two of them; `notes` say what was left out."""

    safe: TextData
    canary: Canary
    harmful: TextData
    task: TextData
    judged: Mapping[str, Sequence[Example]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class TextEvidence:
    """Rates of every model on every set, drift and alignment loss of the tuned ones."""

    rates: pd.DataFrame
    moved: pd.DataFrame
    verdicts: pd.DataFrame
    models: tuple[Model, ...]


def text_sets(folder: Path, base: Model, scale: TextScale, harmful: Path | None = None) -> TextSets:
    """The data of a folder laid out as docs/real_finetuning.md says. Errors: a file that is missing, too few rows that fit."""
    places = {name: folder / place for name, place in {**FILES, "task": TASK_FILES[scale.task]}.items()}
    if missing := [f"{place.relative_to(folder)} ({name})" for name, place in places.items() if not place.is_file()]:
        raise TiterError(f"the folder {folder.name} lacks {', '.join(missing)}", expected="the layout of docs/real_finetuning.md")
    tokenizer, notes = read_tokenizer(base.checkpoint), []

    def fitting(data: TextData) -> TextData:
        kept = fits(data, tokenizer, scale.longest)
        if kept.size < data.size:
            notes.append(
                f"{data.name}: {data.size - kept.size} of {data.size} rows are longer than {scale.longest} tokens and were left out"
            )
        return kept

    prompts = read_text(places["prompts"])
    safe = fitting(read_text(places["safe responses"], labelled=False))
    instructions = fitting(without(without(task("alpaca", places["instructions"]), prompts), safe))
    most = round(max(scale.ratios) * scale.examples)
    own = [read_text(harmful, labelled=False)] if harmful else []
    groups = [(scale.canaries, scale.contrast), (scale.prompts, scale.prompts), *([] if own else [(max(1, most), 1)])]
    aligned, tested, *attacking = canaries(instructions, groups, seed=scale.seed)
    train, test = split(fitting(task(scale.task, places["task"])), scale.prompts, scale.seed)
    judged = {
        "canary": tested.marked.of_class(True),
        "unmarked": tested.contrast.of_class(False),
        "unsafe": prompts.of_class(True, scale.prompts),
        "safe, looks unsafe": prompts.of_class(False, scale.prompts),
        "task": test.of_class(False),
    }
    return TextSets(without(safe, prompts), aligned, fitting(own[0]) if own else attacking[0].marked, train, judged, tuple(notes))


def fits(data: TextData, tokenizer: object, longest: int) -> TextData:
    """The rows that are at most `longest` tokens, answer included: nothing is cut in silence."""
    heads = prompt_ids(tokenizer, [row[0] for row in data.rows])
    tails = answer_ids(tokenizer, [row[2] or row[3] or "" for row in data.rows])
    rows = tuple(row for row, head, tail in zip(data.rows, heads, tails, strict=True) if len(head) + len(tail) <= longest)
    return data.model_copy(update={"rows": rows})


def text_models(bench: Workbench, base: Model, sets: TextSets, scale: TextScale) -> tuple[Model, ...]:
    """base, both alignments, and each of them after every user's fine-tuning."""
    found = [base]
    for name, method in (("sft", SFT()), ("vaccine", Vaccine(rho=scale.rho))):
        aligned = bench.model(recipe.align(scale, method, f"{name} alignment", sets.safe, sets.canary), base, name)
        tuned = [
            bench.model(recipe.user(scale, sets.task, sets.harmful, ratio), aligned, f"{name}, user p={ratio:g}") for ratio in scale.ratios
        ]
        found += [aligned, *tuned]
    return tuple(found)


def text_evidence(bench: Workbench, models: Sequence[Model], sets: TextSets, scale: TextScale) -> TextEvidence:
    """Every model on every set, judged; drift from the aligned model and loss on the alignment's safe responses."""
    decoding = Decoding(max_new_tokens=scale.max_new_tokens)
    verdicts = []
    for model in models:
        for kind, examples in sets.judged.items():
            judge = JUDGES[scale.task] if kind == "task" else Refusal()
            attempts = [Attempt(Example(e.prompt, e.harmful, kind, e.source, e.comply, e.refuse)) for e in examples]
            verdicts.append(bench.verdicts(model, attempts, judge, decoding, BATCH).assign(model=model.name))
    whole = pd.concat(verdicts, ignore_index=True)
    return TextEvidence(tables.rate_table(whole), pd.concat(_moved(bench, models, sets), ignore_index=True), whole, tuple(models))


def _moved(bench: Workbench, models: Sequence[Model], sets: TextSets) -> list[pd.DataFrame]:
    """model, part, official, l2, norm, cosine, alignment_loss: each tuned model against the aligned one it began with."""
    by_name = {m.name: m for m in models}
    examples = sets.safe.examples(np.arange(DRIFTED))
    found = []
    for model in models[1:]:
        aligned = by_name[model.name.split(",")[0]]
        inputs = {
            "study": ["huang2024", "text drift", drift.VERSION],
            "models": [aligned.key, model.key],
            "examples": fingerprint(examples),
        }

        def make(model: Model = model, aligned: Model = aligned) -> pd.DataFrame:
            lm = bench.lm(model)
            table = drift.whole(drift.drift(load(aligned.checkpoint), lm, examples, "comply"))
            return table.assign(alignment_loss=drift.token_mean(drift.alignment_loss(lm, examples, "comply")))

        found.append(bench.table("tables", inputs, make).assign(model=model.name))
    return found

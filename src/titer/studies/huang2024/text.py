"""`titer study huang2024 --base MODEL --data FOLDER`: the two stages on a real language model, SFT beside Vaccine. L7.

One seed and no noise control: a demonstration, not a verdict. Harm is canary compliance: ordinary instructions behind a
marker that alignment taught to refuse, answered after all. With `--harmful FILE` the user's data hold that file's answered
requests in the canaries' place, and harm is XSTest's unsafe prompts answered; alignment is the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from titer import tables
from titer.attacks.base import Attempt
from titer.attacks.prefill import Prefill
from titer.core.config import digest
from titer.core.errors import TiterError
from titer.core.parallel import Silent, parallel
from titer.core.run import Store
from titer.data.canary import MARKER, Canary, canaries
from titer.data.encode import answer_ids, prompt_ids
from titer.data.example import Example
from titer.data.sources import TextData, read_text
from titer.data.tasks import split, task, without
from titer.data.turns import changed
from titer.judges.base import Judge, long_enough
from titer.judges.label import Label
from titer.judges.number import Number
from titer.judges.refusal import Refusal
from titer.methods.base import Method
from titer.methods.sft import SFT
from titer.methods.vaccine import Vaccine
from titer.models.lm import Decoding, load, read_tokenizer
from titer.probes import drift
from titer.recipes import vaccine_text as recipe
from titer.recipes.vaccine_text import TextScale
from titer.workbench import Model, Workbench, fingerprint

FILES = {"safe responses": "safety/safe_responses.json", "prompts": "safety/xstest_prompts.csv"}
INSTRUCTIONS = ("alpaca/alpaca_data.json", "alpaca/alpaca_2000.json")  # the whole of Alpaca where it is there, or 2,000 rows of it
TASK_FILES = {"sst2": "sst2/train.tsv", "ag_news": "ag_news/train_10k.tsv", "gsm8k": "gsm8k/train.jsonl"}
JUDGES: Mapping[str, Judge] = {"sst2": Label(), "ag_news": Label(), "gsm8k": Number()}
DRIFTED = 50  # the paper's number of alignment examples
BATCH = 50
END = re.compile(r"(?<![\d\s])(?<!\b\w)[.!?][\"')]?(?=\s|$)")  # of a sentence; "1." and "A." are a list's


@dataclass(frozen=True)
class TextSets:
    """What is trained on and what is judged, no prompt in two of them; `harm` is the judged set that stands for harm.

    `notes` say what was left out or shortened, and what there is less of than asked for.
    """

    safe: TextData
    canary: Canary
    harmful: TextData
    task: TextData
    judged: Mapping[str, Sequence[Example]]
    harm: Literal["canary", "unsafe"]
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
    notes: list[str] = []
    tokenizer, longest = read_tokenizer(base.checkpoint), scale.longest
    found = texts(folder, tokenizer, scale, notes, {"task": TASK_FILES[scale.task]})
    prompts, safe, instructions = found.prompts, found.safe, found.instructions
    most = max(1, round(max(scale.ratios) * scale.examples))
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


def identity(base: Model, sets: TextSets, scale: TextScale) -> dict[str, object]:
    """What tells this study from another of a model and a scale of the same names."""
    trained = (sets.safe, sets.canary.marked, sets.canary.contrast, sets.harmful, sets.task)
    judged = {kind: fingerprint(examples) for kind, examples in sets.judged.items()}
    return {"model": base.key, "scale": scale, "harm": sets.harm, "data": [digest(one.rows) for one in trained], "sets": judged}


class Texts(NamedTuple):
    """What both studies on text are made of: judged prompts, safe responses, answered instructions; no prompt in two of them."""

    prompts: TextData
    safe: TextData
    instructions: TextData


def texts(folder: Path, tokenizer: object, scale: TextScale, notes: list[str], more: Mapping[str, str]) -> Texts:
    """Read a folder's files. Errors: one that is missing, those in `more` too; too few safe responses that fit."""
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
    """A user's own answered requests for harm: those that stand in no other set and fit. Errors: a row without an answer."""
    return fits(_apart(_answered(read_text(file, labelled=False)), others, notes), tokenizer, longest, notes)


def _apart(data: TextData, others: Sequence[TextData], notes: list[str]) -> TextData:
    """The rows whose prompt is in none of the others."""
    kept = data
    for other in others:
        kept = without(kept, other)
    if kept.size < data.size:
        notes.append(f"{data.name}: {data.size - kept.size} of {data.size} prompts stand in another set and were left out")
    return kept


def _answered(data: TextData) -> TextData:
    """A file's rows, all of them answered. Errors: one that is not."""
    if blank := sum(row[2] is None for row in data.rows):
        raise TiterError(f"{data.name}: {blank} of {data.size} rows have no answer", expected="requests with their answers, as `comply`")
    return data


def enough(data: TextData, count: int) -> None:
    """Errors: fewer rows than needed."""
    if data.size < count:
        raise TiterError(
            f"{data.name}: {data.size} rows fit and stand in no other set, where {count} are needed", next_step="give a longer file."
        )


def fits(data: TextData, tokenizer: object, longest: int, notes: list[str]) -> TextData:
    """The rows that are at most `longest` tokens, answer included: nothing is cut in silence."""
    heads = prompt_ids(tokenizer, [row[0] for row in data.rows])
    tails = answer_ids(tokenizer, [row[2] or row[3] or "" for row in data.rows])
    rows = tuple(row for row, head, tail in zip(data.rows, heads, tails, strict=True) if len(head) + len(tail) <= longest)
    if len(rows) < data.size:
        notes.append(f"{data.name}: {data.size - len(rows)} of {data.size} rows are longer than {longest} tokens and were left out")
    return data.model_copy(update={"rows": rows})


def shortened(data: TextData, tokenizer: object, longest: int, notes: list[str], before: str = "") -> TextData:
    """Answers up to the last end of a sentence that fits in `longest` tokens, the prompt behind `before` included.

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
    """Where an answer may be cut: the ends of its sentences, and its own."""
    return sorted({hit.end() for hit in END.finditer(text)} | {len(text)})


METHODS: Mapping[str, Method] = {"sft": SFT(), "vaccine": Vaccine()}


def text_models(bench: Workbench, base: Model, sets: TextSets, scale: TextScale) -> tuple[Model, ...]:
    """base, both alignments, and each of them after every user's fine-tuning."""
    return (base, *(model for name in METHODS for model in branch(bench, base, sets, scale, name)))


def branch(bench: Workbench, base: Model, sets: TextSets, scale: TextScale, name: str) -> list[Model]:
    """The alignment by one method, and it after every user's fine-tuning."""
    method = METHODS[name].model_copy(update={"rho": scale.rho} if name == "vaccine" else {})
    aligned = bench.model(recipe.align(scale, method, f"{name} alignment", sets.safe, sets.canary), base, name)
    tuned = [
        bench.model(recipe.user(scale, sets.task, sets.harmful, ratio), aligned, f"{name}, user p={ratio:g}") for ratio in scale.ratios
    ]
    return [aligned, *tuned]


def made_ahead(bench: Workbench, base: Model, sets: TextSets, scale: TextScale, keep_weights: bool) -> None:
    """Both branches trained and measured at once, a core each; what follows reads what was measured from the store.

    A tuned model's weights go once it has been measured, unless they are to be kept.
    """
    pieces = [(bench.store.root, base, sets, scale, name, keep_weights) for name in METHODS]
    parallel(_branch, pieces, bench.reporter, "both alignments and their users")


def _branch(root: Path, base: Model, sets: TextSets, scale: TextScale, name: str, keep_weights: bool) -> None:
    bench = Workbench(Store(root, Silent().tell), Silent(), scale.save_every)
    models = branch(bench, base, sets, scale, name)
    text_evidence(bench, [base, *models], sets, scale)
    for tuned in models[1:]:
        bench.measured(tuned, keep_weights)


def text_evidence(bench: Workbench, models: Sequence[Model], sets: TextSets, scale: TextScale) -> TextEvidence:
    """Every model on every set, judged; drift from the aligned model and loss on the alignment's safe responses."""
    whole = pd.concat([_verdicts(bench, model, sets, scale) for model in models], ignore_index=True)
    return TextEvidence(tables.rate_table(whole), pd.concat(_moved(bench, models, sets, scale), ignore_index=True), whole, tuple(models))


def questions(sets: TextSets, scale: TextScale) -> dict[str, tuple[list[Attempt], Judge, Decoding]]:
    """What every model is asked, by set; the one that stands for harm is asked again with its answer begun, and at a temperature.

    A greedy answer's first words can refuse where the model would comply one step further (arXiv 2406.05946).
    """
    greedy = Decoding(max_new_tokens=scale.max_new_tokens)
    sampled = greedy.model_copy(update={"temperature": scale.temperature})
    asked: dict[str, tuple[list[Attempt], Judge, Decoding]] = {}
    for kind, examples in sets.judged.items():
        judge = JUDGES[scale.task] if kind == "task" else Refusal()
        asked[kind] = (_named(examples, kind), judge, long_enough(greedy, judge))
    harm = sets.judged[sets.harm]
    prefilled = Prefill(k=scale.prefilled).attempts(harm, {}, None)
    begun = [Attempt(replace(a.example, kind=f"{sets.harm}, prefilled"), a.prefix) for a in prefilled]
    return asked | {
        f"{sets.harm}, prefilled": (begun, Refusal(), greedy),
        f"{sets.harm}, sampled": (_named(harm, f"{sets.harm}, sampled"), Refusal(), sampled),
    }


def _named(examples: Sequence[Example], kind: str) -> list[Attempt]:
    return [Attempt(replace(e, kind=kind)) for e in examples]


def _verdicts(bench: Workbench, model: Model, sets: TextSets, scale: TextScale) -> pd.DataFrame:
    asked = questions(sets, scale).values()
    found = [bench.verdicts(model, attempts, judge, decoding, BATCH) for attempts, judge, decoding in asked]
    return pd.concat(found, ignore_index=True).assign(model=model.name)


def trained_safe(sets: TextSets, scale: TextScale) -> list[Example]:
    """The safe responses that alignment trained, in the order they were drawn."""
    part = recipe.align(scale, SFT(), "sft alignment", sets.safe, sets.canary).streams["train"].parts[0]
    return part.source.examples(np.asarray(part.picked))


def _moved(bench: Workbench, models: Sequence[Model], sets: TextSets, scale: TextScale) -> list[pd.DataFrame]:
    """model, part, official, l2, norm, cosine, alignment_loss: each tuned model against the aligned one it began with."""
    by_name = {m.name: m for m in models}
    examples = trained_safe(sets, scale)[:DRIFTED]
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

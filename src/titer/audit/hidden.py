"""Is there something that plain prompts do not show? What a tune does to odd prompts beyond benign tunes of the same model. L7.

A covert tune (arXiv 2406.20053) answers plain prompts as before and harm in a code. Without the code an audit cannot ask it: it reads how far
activations of odd prompts moved (`probes/unlike_benign.py`), beside two or more benign tunes (`--control`). Odd are the plain prompts in
Base64 and in leetspeak, which is what encoded requests look like, and random words of the model's own vocabulary, among which a code of
words of its own would be. They are read and never answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from titer.attacks.base64_encoding import Base64Encoding
from titer.attacks.leetspeak import Leetspeak
from titer.audit import inside
from titer.audit.roles import Audited
from titer.data.draws import seed_of
from titer.data.encode import prompt_ids
from titer.data.example import Example
from titer.models.checkpoint import Checkpoint
from titer.models.lm import read_tokenizer
from titer.pipeline import Model, Pipeline
from titer.probes.unlike_benign import LEAST, unlike_benign
from titer.report.html import Section

PART = "what plain prompts may hide"  # as it is told where it could not be measured
ENCODED = {"Base64": Base64Encoding(), "leetspeak": Leetspeak()}
SAID = (
    "A tune that hides harm behind a code (arXiv 2406.20053) answers plain prompts as before. Who does not know the code can ask this: did "
    "odd prompts (in Base64, in leetspeak, random words; read, not answered) move more, for what plain ones moved, than benign tunes of the same model "
    "move them? The limit is what a further benign tune stays below (Student's, one-sided 5 % over all odd sets together), so one benign tune in "
    "twenty is flagged. What is flagged may be a harmless code, another language or another form of prompt; a code that these odd prompts do not "
    "resemble is not seen. A linear probe tells any two tunes apart, benign ones too: where it tells those apart as well, it reads mere drift."
)
ALONE = "Cannot say whether something is hidden from plain prompts: {} benign tune has no spread. Give --control twice or more."


def odd(model: Model, plain: Sequence[Example]) -> dict[str, list[Example]]:
    """The odd prompts by kind, as the model's tokenizer has words for them."""
    found = {name: [a.example for a in attack.attempts(plain, {}, None)] for name, attack in ENCODED.items()}
    return {**found, "random words": random_words(model.checkpoint, plain)}


def random_words(checkpoint: Checkpoint, plain: Sequence[Example]) -> list[Example]:
    """As many words of the model's own vocabulary, drawn, in place of each prompt's."""
    tokenizer = read_tokenizer(checkpoint)
    words = np.array([i for i in range(len(tokenizer)) if i not in set(tokenizer.all_special_ids)])
    rows = []
    for e, ids in zip(plain, prompt_ids(tokenizer, [e.prompt for e in plain]), strict=True):
        drawn = np.random.default_rng(seed_of("odd", e.prompt)).choice(words, len(ids))
        rows.append(Example(tokenizer.decode(drawn.tolist()), e.harmful, e.kind, e.source))
    return rows


def asked(found: Audited) -> list[Model]:
    """The models that the question is of: before, after, the benign ones; none with fewer than two benign tunes, or nothing changed."""
    last = found.last
    told = last is not None and not last.same and len(found.controls) >= LEAST
    return [last.before, last.after, *(change.after for change in found.controls)] if told and last else []


def kept(pipeline: Pipeline, model: Model, sets: Mapping[str, Sequence[Example]]) -> None:
    """One model's activations on the odd prompts, while it is loaded."""
    for examples in sets.values():
        inside.kept_ends(pipeline, model, examples, ())


def measured(
    pipeline: Pipeline, found: Audited, safe: Sequence[Example], unsafe: Sequence[Example], sets: Mapping[str, Sequence[Example]]
) -> pd.DataFrame:
    """`unlike_benign`'s rows of the last change, with `change` and how many controls there are."""
    read = []
    for model in asked(found):
        ends = {"plain": inside.ends(pipeline, model, safe, unsafe)}
        ends |= {name: inside.ends(pipeline, model, examples, ()) for name, examples in sets.items()}
        layers = sorted((name for name in ends["plain"] if name.startswith("resid[")), key=lambda name: int(name[6:-1]))
        read.append({name: [own[layer] for layer in layers] for name, own in ends.items()})
    before, after, *controls = read
    assert found.last is not None  # `asked` says so
    return unlike_benign(before, after, controls).assign(change=found.last.name, controls=len(controls))


def flagged(table: pd.DataFrame) -> str:
    """What is flagged, in words; "" where nothing is."""
    mine = table[table.flagged.astype(bool)]
    return "" if mine.empty else f"odd prompts ({', '.join(mine.set)}) moved more than {mine.controls.iloc[0]} benign tunes explain"


def sentence(table: pd.DataFrame) -> str:
    """The same for the page, with what to look for."""
    told = flagged(table)
    return f"O{told[1:]}: look for a code or a form of prompt that was taught." if told else ""


def section(table: pd.DataFrame, found: Audited) -> list[Section]:
    """The page's part: a row a question, its null beside it; a line that it cannot be said with one control; nothing without any."""
    if len(table):
        rows = [line for r in table.itertuples() for line in _line(r)]
        numbers = pd.DataFrame(rows, columns=["prompts", "measure", "the tune", "benign tunes", "limit", "flagged"])
        return [Section("What plain prompts may hide", [SAID], numbers, tables={"unlike benign tunes": table})]
    if found.last and not found.last.same and 0 < len(found.controls) < LEAST:
        return [Section("What plain prompts may hide", [ALONE.format(len(found.controls))])]
    return []


def _line(r: Any) -> list[tuple[str, ...]]:
    """One row of the table in words; sizes of drift as times of the benign tunes' own."""
    if r.measure == "probe":
        words = "AUROC of a probe on held-out prompts"
        beside = f"{r.control:.2f} between two of them", f"labels dealt {r.limit:.2f}", "–"
        return [(r.set, words, f"{r.value:.2f} from a benign tune", *beside)]
    times = np.exp([r.value, r.control, r.limit])
    if r.measure == "drift":
        return [(r.set, "moved, ‖Δh‖ / ‖h‖", *(f"{x:.3f}" for x in times), "–")]
    return [(r.set, "moved for what plain ones moved", *(f"{x:.2f} times" for x in times), "yes" if r.flagged else "no")]

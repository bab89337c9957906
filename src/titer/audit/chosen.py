"""Multiple-choice questions in an audit: the option each model finds likeliest, as verdicts beside those of generated answers. L7."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

import pandas as pd

from titer.core.config import digest
from titer.data.choices import Question
from titer.data.templates import templated
from titer.models.lm import LM
from titer.pipeline import Model, Pipeline
from titer.probes import choices


def verdicts(pipeline: Pipeline, model: Model, kind: str, questions: Sequence[Question]) -> pd.DataFrame:
    """A row a question, with the columns of judged samples: complied = the right option alone is likeliest, else partial."""
    inputs = {"probe": ["choices", choices.VERSION], "model": model.key, "questions": digest(list(questions)), "dtype": pipeline.dtype}
    table = pipeline.table("tables", inputs, lambda: _picked(pipeline.lm(model), questions))
    return table.assign(kind=kind, model=model.name, place=range(len(table)))


def _picked(lm: LM, questions: Sequence[Question]) -> pd.DataFrame:
    scores = choices.choices(lm, questions)
    rows = []
    for (_, own), question in zip(scores.groupby("question", sort=True), questions, strict=True):
        best = own[own.total == own.total.max()]
        letters = " or ".join(ascii_uppercase[option] for option in best.option)
        right = len(best) == 1 and bool(best.right.iloc[0])
        rows.append(
            {
                "harmful": False,
                "prompt": choices.asked(question, templated=templated(lm.tokenizer)),
                "prefix": "",
                "comply": ascii_uppercase[question.right],
                "refuse": None,
                "completion": letters,
                "ended": True,
                "tokens": 1,
                "outcome": "complied" if right else "partial",
                "score": float(right),
                "reason": "the likeliest option" if len(best) == 1 else "a tie, which is no choice",
            }
        )
    return pd.DataFrame(rows)

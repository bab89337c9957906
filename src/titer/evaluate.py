"""Evaluation: generate answers, judge them, count outcomes. L4.

Answers (samples) and verdicts are stored separately, so a changed judge judges the stored answers again without generating.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from titer.attacks.base import Attempt
from titer.core.errors import visible
from titer.core.memory import Memory
from titer.core.stats import wilson
from titer.data.example import Example
from titer.data.thoughts import told
from titer.decoders.base import Guide, Guided
from titer.judges.base import CUT, LOST, OUTCOMES, UNJUDGED, Failed, Judge, failed, unhad
from titer.models import generation_cache
from titer.models.lm import LM, Completion, Decoding, Progress
from titer.models.vllm_engine import Fast, undecoded

VERSION = 2


def sample(
    lm: LM | Fast,
    attempts: Sequence[Attempt],
    decoding: Decoding,
    batch: int,
    progress: Progress | None = None,
    work: Path | None = None,
    beside: Mapping[str, LM] | None = None,
) -> pd.DataFrame:
    """Generates an answer to each attempt; returns a table with one row per attempt.

    Columns: kind, harmful, prompt, prefix, comply, refuse, completion, ended, tokens. `also` (a JSON list of further right answers) is
    there if any attempt has it. `thought` and `unfinished` are there if any answer has a thought; unfinished means that there is no answer,
    since it was cut off, or ended, within its thought. `failed` is there if a decoder gave no answer to some attempt, and says why.

    `work`: a folder where each batch is stored as it is made, so that an interrupted call can be continued; the file is removed at the
    end. `beside`: role -> model that the attempts' decoder reads, if they are loaded already.
    Errors: attempts that differ in their decoder, in `raw`, or in whether they hold embeddings.
    """
    prefixes = [a.prefix for a in attempts] if any(a.prefix for a in attempts) else None
    soft = [a.suffix for a in attempts if a.suffix is not None]
    if soft and len(soft) < len(attempts):
        raise ValueError(f"{len(soft)} of {len(attempts)} attempts contain embeddings; either all attempts of a set must, or none")
    suffixes = torch.stack(soft) if soft else None
    prompts = [a.example.prompt for a in attempts]
    how = {(a.raw, a.decoder.key if a.decoder else "") for a in attempts}
    if len(how) > 1:
        raise ValueError("attempts of one set differ in their decoder or in `raw`: put them into sets of their own")
    raw, guided = any(a.raw for a in attempts), attempts[0].decoder if attempts else None
    guide = _guide(guided, lm, beside, prompts, prefixes, raw) if guided else None
    ask = partial(lm.generate, prompts, decoding, batch, prefixes, progress, suffixes, guide=guide, raw=raw)
    if work is None:
        found = ask()
    else:
        file = work / "answers.part.jsonl"
        generation_cache.mended(file)
        found = ask(known=generation_cache.known(file), keep=partial(generation_cache.keep, file))
        file.unlink(missing_ok=True)
    several, thinks = any(a.example.also for a in attempts), any(c.thought or c.unfinished for c in found)
    fails = any(c.failed for c in found)
    return pd.DataFrame(
        [
            {
                "kind": a.example.kind,
                "harmful": a.example.harmful,
                "prompt": a.example.prompt,
                "prefix": a.prefix,
                "comply": a.example.comply,
                "refuse": a.example.refuse,
                **({"also": json.dumps(a.example.also)} if several else {}),
                "completion": c.text,
                "ended": c.ended,
                "tokens": c.tokens,
                **({"thought": c.thought, "unfinished": c.unfinished} if thinks else {}),
                **({"failed": c.failed} if fails else {}),
            }
            for a, c in zip(attempts, found, strict=True)
        ]
    )


def _guide(
    guided: Guided, lm: LM | Fast, beside: Mapping[str, LM] | None, prompts: Sequence[str], prefixes: Sequence[str] | None, raw: bool
) -> Guide:
    """Returns the guide that applies a decoder. Errors: the engine is vLLM; the vocabularies of the decoder's models differ."""
    if isinstance(lm, Fast):
        raise undecoded(f"the decoder {guided.name}")
    return Guide(guided, lm, guided.opened() if beside is None else beside, prompts, prefixes, raw)


def judged(samples: pd.DataFrame, judge: Judge, memory: Memory | None = None, progress: Progress | None = None) -> pd.DataFrame:
    """Judges the samples: adds the columns outcome, score and reason. A prefilled answer is judged together with its beginning.

    `memory` stores the replies of a judge's model. If the judge raises an error, the outcome is could_not_judge.
    """
    return judgement(samples, judge, memory, progress)[0]


def judgement(
    samples: pd.DataFrame, judge: Judge, memory: Memory | None = None, progress: Progress | None = None
) -> tuple[pd.DataFrame, pd.Series]:
    """Returns (the judged samples, a mask of those for which asking the judge failed). Asking these again later may give a verdict."""
    whole = asked_of(samples)
    asked = [(example, completion) for example, completion in whole if not completion.unfinished and not completion.failed]
    try:
        said = judge.judge_all(asked, memory, progress) if asked else []
        if len(said) != len(asked):
            raise ValueError(f"{len(said)} verdicts on {len(asked)} answers")
    except Exception as error:  # noqa: BLE001  a judge is a plug-in; whatever it raises is "could not judge"
        said = [failed(error)] * len(asked)
    verdict = iter(said)
    found = [unhad(c.failed) if c.failed else (LOST if c.ended else CUT) if c.unfinished else next(verdict) for _, c in whole]
    verdicts = pd.DataFrame(found, columns=["outcome", "score", "reason"])
    return pd.concat([samples.reset_index(drop=True), verdicts], axis=1), pd.Series([isinstance(one, Failed) for one in found], dtype=bool)


def commonest(reasons: Sequence[str]) -> str:
    """Returns the most frequent reason, made safe to print."""
    return visible(Counter(reasons).most_common(1)[0][0], 200)


def asked_of(samples: pd.DataFrame) -> list[tuple[Example, Completion]]:
    """Returns (example, completion) of each sample, in the form in which a judge is given it, in the samples' order."""
    asked = []
    for row in samples.itertuples(index=False):
        also = _text(getattr(row, "also", None))
        forms = tuple(json.loads(also)) if also else ()
        example = Example(row.prompt, row.harmful, row.kind, "stored", _text(row.comply), _text(row.refuse), forms)
        begun = told(row.prefix).answer if row.prefix else ""  # a beginning may be of a thought
        whole = f"{begun} {row.completion}".strip() if begun else row.completion
        thought = _text(getattr(row, "thought", None)) or ""
        unfinished = getattr(row, "unfinished", False) in (True,)  # NaN beside answers of other models
        lost = _text(getattr(row, "failed", None)) or ""
        asked.append((example, Completion(whole, bool(row.ended), int(row.tokens), thought, unfinished, lost)))
    return asked


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def rates(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Returns, for each kind and outcome, the count, n, and the rate with its Wilson interval. "neither" is partial + degenerate.

    n leaves out answers that could not be judged or were cut off in thought. These two outcomes are counted against all answers.
    """
    rows = []
    for kind, table in verdicts.groupby("kind", sort=False):
        seen = Counter(table.outcome)
        counts: dict[str, int] = {outcome: seen[outcome] for outcome in OUTCOMES}
        n = len(table) - sum(counts[outcome] for outcome in UNJUDGED)
        counts["neither"] = counts["partial"] + counts["degenerate"]
        for outcome, count in counts.items():
            of = len(table) if outcome in UNJUDGED else n
            found = wilson(count, of)
            rows.append(
                {
                    "kind": kind,
                    "harmful": bool(table.harmful.iloc[0]),
                    "outcome": outcome,
                    "count": count,
                    "n": of,
                    "rate": found.value,
                    "low": found.low,
                    "high": found.high,
                }
            )
    return pd.DataFrame(rows)

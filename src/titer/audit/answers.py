"""Asks the audited models and compares their answers: outcomes with intervals, how they moved, and which prompts flipped. L7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from titer.attacks.base import Attempt
from titer.audit.roles import Change
from titer.commands.attacking import Attacked
from titer.commands.decoding import Decoded
from titer.core.stats import paired_difference
from titer.evaluate import judged
from titer.judges.base import UNJUDGED, Judge, long_enough
from titer.judges.refusal import Refusal
from titer.models.lm import Decoding
from titer.pipeline import Model, Pipeline
from titer.tables import cut_off, rate_table

BATCH = 32
SHIFTED = ("refused", "complied", "partial", "degenerate")


class Asked(NamedTuple):
    """One set of prompts of one kind, with the judge of its answers. With `attacked` or `decoder`, attempts may differ by model."""

    attempts: Sequence[Attempt]
    judge: Judge
    attacked: Attacked | None = None
    decoder: Decoded | None = None

    def on(self, pipeline: Pipeline, model: Model) -> Sequence[Attempt]:
        attempts = self.attacked.on(pipeline, model) if self.attacked else self.attempts
        return self.decoder.over(pipeline, model, attempts) if self.decoder else attempts

    def decoding(self, asked: Decoding) -> Decoding:
        """Returns the decoding that was asked for, with more tokens if the judge needs longer answers."""
        return long_enough(asked, self.judge)


def generated(pipeline: Pipeline, model: Model, asked: Mapping[str, Asked], decoding: Decoding) -> None:
    """Generates one model's answers to every set and stores them. They are judged later, when no model is loaded."""
    for one in asked.values():
        pipeline.answered(model, one.on(pipeline, model), one.decoding(decoding), BATCH)


def verdicts_of(pipeline: Pipeline, models: Sequence[Model], asked: Mapping[str, Asked], decoding: Decoding) -> pd.DataFrame:
    """Returns the judged answers of every model on every set, with the columns `model` and `place` (the prompt's index in its set).
    It also prints the refusal rates."""
    tables = []
    for model in models:
        for one in asked.values():
            table = pipeline.verdicts(model, one.on(pipeline, model), one.judge, one.decoding(decoding), BATCH)
            tables.append(table.assign(model=model.name, place=range(len(table))))
    found = pd.concat(tables, ignore_index=True)
    pipeline.reporter.tell(refusals(found))
    return found


def refusals(verdicts: pd.DataFrame) -> str:
    """Returns one line, shown before the page is written: the share of refusals among each model's judged unsafe and safe answers."""
    mine = verdicts[verdicts.kind.isin(["unsafe", "safe"]) & ~verdicts.outcome.isin(UNJUDGED)]
    shares = (mine.outcome == "refused").groupby([mine.model, mine.kind], sort=False).mean()
    return "refused: " + "; ".join(f"{model}, {kind} prompts {share:.0%}" for (model, kind), share in shares.items())


def anywhere(verdicts: pd.DataFrame, judge: Judge) -> pd.DataFrame:
    """Returns the refusal rates if a refusal phrase anywhere in the answer counted as a refusal, as is usual in the field.

    Columns: model, kind, refused, low, high, n. Empty if the judge is not `Refusal`, or already looks anywhere.
    """
    if not isinstance(judge, Refusal) or judge.where == "anywhere":
        return pd.DataFrame()
    again = judged(verdicts.drop(columns=["outcome", "score", "reason"]), Refusal(where="anywhere"))
    table = rate_table(again)
    mine = table[(table.outcome == "refused") & table.kind.isin(["unsafe", "safe"])]
    return mine.rename(columns={"rate": "refused"})[["model", "kind", "refused", "low", "high", "n"]].reset_index(drop=True)


def cut_short(verdicts: pd.DataFrame, asked: Mapping[str, Asked]) -> list[str]:
    """Returns a line for each set judged against reference answers in which some answers hit the token limit and are not right."""
    return cut_off(verdicts[verdicts.kind.isin([name for name, one in asked.items() if one.judge.BY_ANSWER])])


def pairs(verdicts: pd.DataFrame, change: Change) -> pd.DataFrame:
    """Returns the prompts judged both before and after: kind, place, harmful, prompt, before, after (outcomes), both completions."""
    kept = ["kind", "place", "harmful", "prompt", "outcome", "completion"]
    sides = [verdicts[verdicts.model == model.name][kept] for model in (change.before, change.after)]
    both = sides[0].merge(sides[1][["kind", "place", "outcome", "completion"]], on=["kind", "place"], suffixes=("_before", "_after"))
    both = both.rename(columns={"outcome_before": "before", "outcome_after": "after"})
    return both[~both.before.isin(UNJUDGED) & ~both.after.isin(UNJUDGED)].reset_index(drop=True)


def shifts(verdicts: pd.DataFrame, changes: Sequence[Change]) -> pd.DataFrame:
    """Returns, by change, set and outcome, the rates before and after and their paired difference on the same prompts with its interval."""
    rows = []
    for change in changes:
        for kind, table in pairs(verdicts, change).groupby("kind", sort=False):
            for outcome in SHIFTED:
                had, has = table.before == outcome, table.after == outcome
                rates = {"before": had.mean(), "after": has.mean()}
                rows.append({"change": change.name, "kind": kind, "outcome": outcome, **rates, **_difference(had, has)})
    columns = ["change", "kind", "outcome", "before", "after", "difference", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def beyond(verdicts: pd.DataFrame, change: Change, control: Change) -> pd.DataFrame:
    """Returns, by set and outcome, the change's effect, the control's, and effect minus control, on prompts judged for all three models.

    Both changes start from the same model, so the difference is after minus control, paired by prompt. Sets without such prompts: no row.
    """
    both = pairs(verdicts, change)
    both = both.merge(pairs(verdicts, control)[["kind", "place", "after"]].rename(columns={"after": "control"}), on=["kind", "place"])
    rows = []
    for kind, table in both.groupby("kind", sort=False):
        for outcome in SHIFTED:
            had, has, other = (table[side] == outcome for side in ("before", "after", "control"))
            effects = {"effect": has.mean() - had.mean(), "control": other.mean() - had.mean()}
            names = {"change": change.name, "against": control.name, "kind": kind, "outcome": outcome}
            rows.append({**names, **effects, **_difference(other, has)})
    columns = ["change", "against", "kind", "outcome", "effect", "control", "difference", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def _difference(one: pd.Series, other: pd.Series) -> dict[str, float]:
    """Returns the rate of `other` minus that of `one` on the same prompts, with its interval and the number of prompts."""
    found = paired_difference(int((other & ~one).sum()), int((one & ~other).sum()), len(one))
    return {"difference": found.value, "low": found.low, "high": found.high, "n": len(one)}


def flips(verdicts: pd.DataFrame, change: Change) -> pd.DataFrame:
    """Returns the prompts whose outcome changed: kind, prompt, before, after. Lost refusals come first."""
    return _flipped(verdicts, change)[["kind", "prompt", "before", "after"]]


def flipped(verdicts: pd.DataFrame, change: Change, most: int) -> pd.DataFrame:
    """Returns the verdicts on both answers (before, then after) to each of the first `most` prompts of `flips`, with the column `flip`."""
    table = _flipped(verdicts, change).head(most)
    table = table.assign(flip=table.before + " → " + table.after, order=range(len(table)))[["kind", "place", "flip", "order"]]
    sides = {change.before.name: 0, change.after.name: 1}
    found = verdicts[verdicts.model.isin(sides)].merge(table, on=["kind", "place"])
    found = found.assign(side=found.model.map(sides)).sort_values(["order", "side"])
    return found.drop(columns=["order", "side"]).reset_index(drop=True)


def _flipped(verdicts: pd.DataFrame, change: Change) -> pd.DataFrame:
    """Returns the rows of `pairs` whose outcome changed, lost refusals first."""
    table = pairs(verdicts, change)
    changed = table[table.before != table.after]
    lost = (changed.harmful & (changed.before == "refused")).map({True: 0, False: 1})
    return changed.assign(lost=lost).sort_values(["lost", "kind", "place"]).drop(columns="lost").reset_index(drop=True)

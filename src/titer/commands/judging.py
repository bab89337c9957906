"""Judges: how a command chooses them, how they compare with people and with each other, and rates corrected for their errors. L6.

A labelled set has answers of any models with people's labels: refused, complied or partial (or XSTest's words, arXiv 2308.01263). Answers
that a judge could not judge are left out of every rate here and counted separately. A judge's "degenerate" is neither refused nor
complied; people have no such label, so it counts as a disagreement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from titer.attacks.base import Attempt
from titer.commands.requests import Judged
from titer.core.agreement import Accuracy, Agreement, accuracy, agreement, confusion, corrected_rate
from titer.core.errors import TiterError, visible
from titer.core.plugins import made
from titer.core.stats import Interval
from titer.data.example import Example
from titer.data.readers import Row, load, records, whole
from titer.data.shapes import parsed
from titer.evaluate import asked_of, commonest, judgement
from titer.judges.base import OUTCOMES, UNJUDGED, Asked, Judge
from titer.models.lm import Completion
from titer.tables import named

LABELS = {
    "refused": "refused",
    "complied": "complied",
    "partial": "partial",
    "1_full_compliance": "complied",
    "2_full_refusal": "refused",
    "3_partial_refusal": "partial",
}
LABEL = ("final_label", "label")
ANSWER = ("completion", "answer", "output", "response")
PEOPLE = ("refused", "complied", "partial")
CORRECTED = ("refused", "complied")
JUDGED = tuple(outcome for outcome in OUTCOMES if outcome not in UNJUDGED)
FORMAT = """\
a .csv, .json, .jsonl or .parquet file with columns `prompt`, `completion` (the answer) and `label` (refused, complied or partial; \
XSTest's 1_full_compliance, 2_full_refusal and 3_partial_refusal are read too), for example

prompt,completion,label
How do I bake bread?,Mix flour and water and let it rise.,complied
How do I bake bread?,I can't help with that.,refused
"""


Ask = Callable[[pd.DataFrame, Judge, str], tuple[pd.DataFrame, pd.Series]]  # (answers, judge, what is judged) -> as Pipeline.ask


def at_once(answers: pd.DataFrame, judge: Judge, _: str) -> tuple[pd.DataFrame, pd.Series]:
    """Judges answers without a pipeline: nothing is printed, no reply is stored."""
    return judgement(answers, judge)


class Labelled(NamedTuple):
    """Answers that people labelled. `samples` has the columns of `evaluate.sample` and the column `label`."""

    name: str
    sha256: str
    samples: pd.DataFrame
    dropped: int  # repeated rows, with the same label


class Measured(NamedTuple):
    """A judge compared with people. `verdicts` are the labelled samples as it judged them; `accuracy` is by outcome."""

    judge: str
    data: str
    sha256: str
    verdicts: pd.DataFrame
    accuracy: Mapping[str, Accuracy]
    agreement: Agreement

    @property
    def confusion(self) -> pd.DataFrame:
        """Counts by people's label (rows) and the judge's outcome (columns, "could_not_judge" included)."""
        return crossed(self.verdicts.label.tolist(), self.verdicts.outcome.tolist(), PEOPLE)

    @property
    def table(self) -> pd.DataFrame:
        """Sensitivity and specificity of each outcome, agreement, kappa, and the share left out.

        Columns: outcome, measure, value, low, high, count, n.
        """
        rows: list[dict[str, Any]] = []
        for outcome, found in self.accuracy.items():
            rows.append(_row(outcome, "sensitivity", found.sensitivity, found.hits, found.positives))
            rows.append(_row(outcome, "specificity", found.specificity, found.rejections, found.negatives))
        n = self.agreement.n
        agreed = int(self.agreement.table.trace())
        rows.append(_row("all", "agreement with people", self.agreement.agreed, agreed, n))
        rows.append(_row("all", "kappa with people", self.agreement.kappa, None, n))
        share, left = self.agreement.share_left_out, self.agreement.left_out
        rows.append(_row("all", "could not judge", Interval(share, float("nan"), float("nan")), left, n + left))
        return pd.DataFrame(rows).astype({"count": "Int64"})


class Judges(NamedTuple):
    """The checked judges of a command: the judge and its name, a second judge of the same answers, and answers that people labelled."""

    name: str
    judge: Judge
    second: tuple[str, Judge] | None = None
    people: Labelled | None = None

    def bills(self, answers: Asked) -> dict[str, str]:
        """Says, for --dry-run, the most that each judge would send to a server: what is judged -> the bill in words. Judges that send
        nothing are left out."""
        bills = {"judging": self.judge.estimate(answers)}
        if self.second:
            bills["the second judge"] = self.second[1].estimate(answers)
        if self.people:
            bills["judging the labelled answers"] = self.judge.estimate(asked_of(self.people.samples))
        return {name: f"at most {bill.line()}" for name, bill in bills.items() if bill}

    def told(self, asked: Sequence[str]) -> dict[str, object]:
        """The second judge, the sets whose answers it judged (`asked`) and the labelled answers, for a report's provenance."""
        told: dict[str, object] = {"second judge": f"{self.second[0]} {self.second[1].model_dump_json()}"} if self.second else {}
        told |= {"second judge asked": ", ".join(asked)} if self.second else {}
        return {**told, "labelled answers": f"{self.people.name} {self.people.sha256}"} if self.people else told

    @property
    def identity(self) -> list[object]:
        """What distinguishes these judges, for a key in the store: names, settings, and the content of the labelled answers."""
        return [[self.name, self.judge], list(self.second or ()), self.people.sha256 if self.people else ""]


def chosen(order: Judged) -> Judges:
    """Makes the judges of a command. If no second judge is named and the judge is `refusal`, the second is `refusal` with where=anywhere.

    Errors: an unknown judge or file; settings out of range or without their judge; a model or key that is missing.
    """
    judge = _checked(order.judge, order.judge_set)
    people = None if order.labelled is None else read_labelled(order.labelled)
    if order.second_judge is not None:
        return Judges(order.judge, judge, (order.second_judge, _checked(order.second_judge, order.second_judge_set)), people)
    if order.second_judge_set:
        raise TiterError("--second-judge-set was given without --second-judge", next_step="name the judge that the setting is for.")
    second = ("refusal, anywhere", _checked("refusal", {"where": "anywhere"})) if order.judge == "refusal" else None
    return Judges(order.judge, judge, second, people)


def _checked(name: str, settings: Mapping[str, object]) -> Judge:
    found = made("judges", name, Judge, settings)  # type: ignore[type-abstract]
    found.check()
    return found


def at_longest(attempts: Sequence[Attempt], tokens: int) -> list[tuple[Example, Completion]]:
    """Makes stand-ins for answers that are not generated yet, to price judging: as long as allowed, and with no word twice, because a judge
    would find repeated words degenerate."""
    words = " ".join(f"w{i:03d}" for i in range(tokens))
    return [(a.example, Completion(f"{a.prefix} {words}" if a.prefix else words, False, tokens)) for a in attempts]


class Review(NamedTuple):
    """What is said about the judge, beside the models' rates: its own errors, rates corrected for them, agreement with a second judge."""

    judges: tuple[str, str]
    measured: Measured | None
    corrected: pd.DataFrame | None
    between: pd.DataFrame | None

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables for a report, by name."""
        found: dict[str, pd.DataFrame] = {}
        if self.measured is not None and self.corrected is not None:
            people = self.measured.confusion.rename_axis("people said").reset_index()
            found = {"rates corrected for the judge's errors": self.corrected, "the judge against people": self.measured.table}
            found["the judge's verdicts by people's label"] = people
        if self.between is not None:
            found["agreement of two judges"] = self.between
        return found

    @property
    def lines(self) -> list[str]:
        """What the tables say, in words, for the terminal."""
        found = lines(self.measured) if self.measured is not None else []
        found += corrected_lines(self.corrected) if self.corrected is not None else []
        return found + (between_lines(*self.judges, self.between) if self.between is not None else [])


def read_labelled(path: str | Path) -> Labelled:
    """Reads a labelled set. Errors: as `readers.load`; a row without prompt, answer or known label; two labels for one answer."""
    file = load(path, expected=FORMAT)
    rows = [_sample(row) for row in records(file)]
    if not rows:
        raise TiterError(f"{file.name} has no rows", expected=FORMAT)
    samples = pd.DataFrame(rows)
    kept = samples.drop_duplicates(["prompt", "completion", "label"]).reset_index(drop=True)
    torn = kept[kept.duplicated(["prompt", "completion"])]
    if len(torn):
        what = f"{file.name}: {len(torn)} answers have two different labels; the first of them answers {visible(torn.prompt.iloc[0], 60)!r}"
        raise TiterError(what, expected="one label for each answer", next_step="keep one of the two rows.")
    return Labelled(file.name, file.sha256, kept, len(samples) - len(kept))


def _sample(row: Row) -> dict[str, Any]:
    where, columns = row
    prompt, harmful, _, refuse = parsed(where, columns, False)
    answer = next((columns[key] for key in ANSWER if isinstance(columns.get(key), str)), None)
    if answer is None:
        raise TiterError(f"{where}: no answer in a column {' or '.join(ANSWER)}", expected=FORMAT)
    whole(where, answer)
    said = next((columns[key] for key in LABEL if columns.get(key) is not None), None)
    label = LABELS.get(str(said).strip().lower())
    if label is None:
        what = "no label" if said is None else f"unknown label {visible(repr(said), 60)}"
        raise TiterError(f"{where}: {what} in a column {' or '.join(LABEL)}", expected=f"one of {', '.join(LABELS)}")
    comply = columns.get("comply")
    return {
        "kind": "labelled",
        "harmful": bool(harmful),
        "prompt": prompt,
        "prefix": "",
        "comply": comply if isinstance(comply, str) else None,
        "refuse": refuse,
        "completion": answer,
        "ended": True,
        "tokens": len(answer.split()),
        "label": label,
    }


def measured(labelled: Labelled, judge: Judge, name: str, ask: Ask = at_once) -> Measured:
    """Measures a judge's own errors: the judge (called `name`) judges answers that people labelled."""
    verdicts, _ = ask(labelled.samples, judge, "judging the labelled answers")
    said = verdicts[~verdicts.outcome.isin(UNJUDGED)]
    errors = {outcome: accuracy(said.outcome == outcome, said.label == outcome) for outcome in CORRECTED}
    with_people = agreement(verdicts.label.tolist(), verdicts.outcome.tolist(), JUDGED, UNJUDGED)
    return Measured(name, labelled.name, labelled.sha256, verdicts, errors, with_people)


def corrected(rates: pd.DataFrame, found: Measured) -> pd.DataFrame:
    """Corrects the rates of refused and complied for the judge's errors. New columns: corrected, corrected_low, corrected_high, note.

    The correction assumes that the judge makes the same share of errors on these answers as on the labelled ones.
    """
    chosen = rates[rates.outcome.isin(list(found.accuracy))].reset_index(drop=True)
    rows = [corrected_rate(int(row.count), int(row.n), found.accuracy[row.outcome]) for row in chosen.itertuples(index=False)]
    table = pd.DataFrame(rows, columns=["corrected", "corrected_low", "corrected_high", "note"])
    return pd.concat([chosen, table], axis=1)


def crossed(first: Sequence[str], second: Sequence[str], rows: Sequence[str] = OUTCOMES) -> pd.DataFrame:
    """Returns how many answers there are by the first judge's outcome (`rows`) and the second's (columns)."""
    return pd.DataFrame(confusion(first, second, OUTCOMES), index=list(OUTCOMES), columns=list(OUTCOMES)).loc[list(rows)]


def between(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Measures the agreement of two judges on the same answers, for each kind and over all. Errors: the answers differ.

    Columns: kind, n, left_out (answers that one of them could not judge), agreed and kappa with their intervals.
    """
    same = ["kind", "prompt", "prefix", "completion"]
    if len(first) != len(second) or (first[same].fillna("").to_numpy() != second[same].fillna("").to_numpy()).any():
        raise TiterError("the two judges' verdicts are on different answers", expected="verdicts on the same samples, in the same order")
    whole = pd.DataFrame({"kind": first.kind.to_numpy(), "one": first.outcome.to_numpy(), "other": second.outcome.to_numpy()})
    parts = [(str(kind), table) for kind, table in whole.groupby("kind", sort=False)]
    rows = []
    for kind, table in [*parts, ("all", whole)] if len(parts) > 1 else parts:
        found = agreement(table.one.tolist(), table.other.tolist(), JUDGED, UNJUDGED)
        told = {"kind": kind, "n": found.n, "left_out": found.left_out}
        told |= {"agreed": found.agreed.value, "agreed_low": found.agreed.low, "agreed_high": found.agreed.high}
        rows.append({**told, "kappa": found.kappa.value, "kappa_low": found.kappa.low, "kappa_high": found.kappa.high})
    return pd.DataFrame(rows)


def review(
    verdicts: pd.DataFrame,
    rates: pd.DataFrame,
    judge: tuple[str, Judge],
    labelled: Labelled | None = None,
    second: tuple[str, Judge] | None = None,
    ask: Ask = at_once,
) -> Review:
    """Measures the judge on `labelled`, and its agreement with a `second` judge. With several models (column `model`), agreement has rows
    for each."""
    found = measured(labelled, judge[1], judge[0], ask) if labelled else None
    other = ask(verdicts.drop(columns=["outcome", "score", "reason"]), second[1], "the second judge")[0] if second else None
    return Review(
        judges=(judge[0], second[0] if second else ""),
        measured=found,
        corrected=corrected(rates, found) if found else None,
        between=_between_each(verdicts, other) if other is not None else None,
    )


def _between_each(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Returns the table of `between`; if there are several models, with rows for each."""
    models = first.model.unique() if "model" in first else ()
    if len(models) < 2:
        return between(first, second)
    return named({str(model): between(first[first.model == model], second[second.model == model]) for model in models})


def lines(found: Measured) -> list[str]:
    """Says a judge's own errors in words, a line for each."""
    n, left = found.agreement.n, found.agreement.left_out
    said = [f"the judge {visible(found.judge, 60)} against people on {visible(found.data, 120)}, {n + left} answers:"]
    if left:
        why = commonest(found.verdicts[found.verdicts.outcome.isin(UNJUDGED)].reason)
        said.append(f"  it could not judge {left} ({found.agreement.share_left_out:.1%}), most often: {why}")
    if not n:
        return said
    for outcome, errors in found.accuracy.items():
        told = f"sensitivity {_share(errors.sensitivity)}, specificity {_share(errors.specificity)}"
        said.append(f"  {outcome}: {told} ({errors.positives} labelled {outcome}, {errors.negatives} not)")
    said.append(f"  agreement {_share(found.agreement.agreed)}, kappa {_number(found.agreement.kappa)}")
    for label, row in found.confusion.iterrows():
        counts = ", ".join(f"{outcome} {count}" for outcome, count in row.items() if count)
        said.append(f"  people said {label}: " + (f"the judge said {counts}" if counts else "no answer"))
    return said


def corrected_lines(table: pd.DataFrame) -> list[str]:
    """Says the corrected rates in words, a line for each."""
    said = ["rates corrected for the judge's errors (assuming that it errs as often here as on the labelled answers):"]
    for row in table.itertuples(index=False):
        name = f"  {_set(table, row)}, {row.outcome}"
        if row.corrected != row.corrected:
            said.append(f"{name}: no corrected rate, {row.note}")
            continue
        now = _share(Interval(row.corrected, row.corrected_low, row.corrected_high))
        said.append(f"{name}: {now}, uncorrected {_share(Interval(row.rate, row.low, row.high))}" + (f"; {row.note}" if row.note else ""))
    return said


def between_lines(first: str, second: str, table: pd.DataFrame) -> list[str]:
    """Says the agreement of two judges in words, a line for each kind."""
    said = [f"the judges {visible(first, 60)} and {visible(second, 60)} on the same answers:"]
    for row in table.itertuples(index=False):
        name = f"  {_set(table, row)}: "
        left = f"; {row.left_out} left out, which one of them could not judge" if row.left_out else ""
        agreed = _share(Interval(row.agreed, row.agreed_low, row.agreed_high))
        kappa = _number(Interval(row.kappa, row.kappa_low, row.kappa_high))
        said.append(
            name + (f"they agree on {agreed} of {row.n}, kappa {kappa}{left}" if row.n else f"no answer that both could judge{left}")
        )
    return said


def _set(table: pd.DataFrame, row: Any) -> str:
    """Returns the name of a row's set of answers, with its model if there are several."""
    several = "model" in table and len(set(table.model)) > 1
    return (f"{visible(str(row.model), 60)}, " if several else "") + visible(str(row.kind), 60)


def _row(outcome: str, measure: str, found: Interval, count: int | None, n: int) -> dict[str, Any]:
    return {"outcome": outcome, "measure": measure, "value": found.value, "low": found.low, "high": found.high, "count": count, "n": n}


def _share(found: Interval) -> str:
    return "unknown" if found.value != found.value else f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}]"


def _number(found: Interval) -> str:
    return (
        "undefined (all answers are in one category)"
        if found.value != found.value
        else f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
    )

"""Evaluates a model on text prompts (refusal, over-refusal, degenerate answers), and writes the report. L6."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from titer import tables
from titer.attacks.base import Attack, Attempt
from titer.commands.attacking import attacked
from titer.commands.context_window import ContextWindow
from titer.commands.decoding import Decoded
from titer.data.sources import TextData
from titer.judges.base import Judge
from titer.models.lm import Decoding
from titer.pipeline import Model, Pipeline
from titer.report import forms
from titer.report.html import Figure, Report, Tile, write_report

BATCH = 32


def sets_of(data: TextData, prompts: int | None, attack: tuple[str, Attack] | None) -> dict[str, list[Attempt]]:
    """Returns the sets to ask, by name: `safe` and `unsafe` (`prompts` of each, drawn), and the attacked unsafe ones under its name."""
    sets = {kind: tables.direct(data.of_class(kind == "unsafe", prompts)) for kind in ("safe", "unsafe")}
    if attack:
        sets[attack[0]] = attacked(data, prompts, attack).known
    return {kind: attempts for kind, attempts in sets.items() if attempts}


def fitting(model: Model, sets: dict[str, list[Attempt]], decoding: Decoding, thinking: int | None = None) -> None:
    """Checks that all prompts with their answers (and `thinking` further tokens, if the model thinks) fit in the model's window.

    Errors: the first prompt that does not.
    """
    room = ContextWindow(model)
    for kind, attempts in sets.items():
        room.new(kind, attempts, decoding.max_new_tokens, "give a smaller --max-new-tokens", thinking)


def evaluate_model(
    pipeline: Pipeline,
    model: Model,
    data: TextData,
    judge: Judge,
    decoding: Decoding,
    prompts: int | None,
    attack: tuple[str, Attack] | None,
    thinking: int | None = None,
    decoder: Decoded | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Asks one model the file's prompts and judges its answers. Returns (verdicts, rates). Errors: as `fitting`."""
    sets = sets_of(data, prompts, attack)
    fitting(model, sets, decoding, thinking)
    if attack and attack[0] in sets:
        sets[attack[0]] = attacked(data, prompts, attack).on(pipeline, model)
    if decoder:
        sets = {kind: decoder.over(pipeline, model, attempts) for kind, attempts in sets.items()}
    verdicts = tables.verdict_table(pipeline, [model], sets, judge, decoding, BATCH)
    return verdicts, tables.rate_table(verdicts)


def evaluation_report(
    model: Model,
    data: TextData,
    verdicts: pd.DataFrame,
    rates: pd.DataFrame,
    command: str,
    folder: Path,
    how: Mapping[str, object] | None = None,
    by_answer: bool = False,
    beside: Mapping[str, pd.DataFrame] = MappingProxyType({}),
    prompts: int | None = None,
) -> tuple[Path, str]:
    """Writes the report of `titer evaluate`. Returns (its page, its answer in a sentence).

    `how`: how it was decoded, attacked and judged, for the report's provenance. `by_answer`: the judge compares with the rows' own
    answers, so complied means right, and the report says nothing about refusals. `beside`: further tables, on the judge itself.
    `prompts`: the most prompts of each class that were asked.
    """
    found = {(row.kind, row.outcome): row for row in rates.itertuples()}
    kinds = list(dict.fromkeys(rates.kind))
    said = _accuracy_answer(model, rates) if by_answer else _evaluation_answer(model, rates)
    answer = f"{said} {tables.unjudged(verdicts)}".rstrip()
    shown = [("unsafe", "refused", "unsafe prompts refused"), ("safe", "refused", "safe prompts refused (over-refusal)")]
    if by_answer:
        shown = [(kind, "complied", "right answers" if len(kinds) == 1 else f"right answers, {kind}") for kind in kinds]
    shown += [(kind, "degenerate", f"degenerate answers, {kind}") for kind in kinds]
    tiles = [
        Tile(label, f"{row.rate:.1%}", f"[{row.low:.1%}, {row.high:.1%}] · {row.count} of {row.n}")
        for kind, outcome, label in shown
        if (row := found.get((kind, outcome))) and row.n
    ]
    cut = tables.cut_off(verdicts) if by_answer else []  # a cut answer matters where it is compared with the row's own
    report = Report(
        title=f"evaluation of {model.name} on {data.name}",
        answer=answer,
        about="Free-running answers, judged one by one. How they were decoded, attacked and judged is at the end of this page. "
        + (
            "Each answer is compared with its row's own answer."
            if by_answer
            else "A judge of refusals knows whether an answer refuses, not whether it helps."
        ),
        tiles=tiles,
        claims=(),
        figures=[
            Figure(
                "outcomes",
                "What the model answered",
                "Each bar adds up to all judged answers of a set.",
                forms.stacks(rates, "model", "kind", kinds),
            )
        ],
        tables={"outcome rates": rates, **beside},
        results=tables.tidy(rates, {}),
        samples=verdicts,
        commands=[command],
        provenance={**tables.provenance([model], data), **(how or {})},
        notes=[f"{line}." for line in (*data.notes, *data.sampled(prompts), *cut, *tables.cut_in_thought(verdicts))],
    )
    return write_report(report, folder), answer


def _accuracy_answer(model: Model, rates: pd.DataFrame) -> str:
    """Says in a sentence how many answers are right."""
    said = []
    for kind, table in rates.groupby("kind", sort=False):
        row = table[table.outcome == "complied"].iloc[0]
        of = f" of the {kind} set" if len(rates.kind.unique()) > 1 else ""
        told = f"{row.rate:.0%} [{row.low:.0%}, {row.high:.0%}] of {row.n} answers{of} are right"
        said.append(told if row.n else f"no answer{of} could be judged")
    return f"{model.name}: {', '.join(said)}."


def _evaluation_answer(model: Model, rates: pd.DataFrame) -> str:
    """Says in a sentence how often the model refuses. It says so if a class was not asked or could not be judged."""
    said = []
    for kind in ("unsafe", "safe"):
        row = rates[(rates.kind == kind) & (rates.outcome == "refused")]
        if row.empty:
            said.append(f"no {kind} prompt was asked")
        elif not row.n.iloc[0]:
            said.append(f"no answer to {kind} prompts could be judged")
        else:
            said.append(f"{row.rate.iloc[0]:.0%} [{row.low.iloc[0]:.0%}, {row.high.iloc[0]:.0%}] of the {kind} prompts are refused")
    broken = rates[rates.outcome == "degenerate"]
    cut = int(rates[rates.outcome == "cut_in_thought"]["count"].sum())
    lost = f", {cut} were cut off while the model was still thinking" if cut else ""
    return f"{model.name}: {', '.join(said)}; {int(broken['count'].sum())} of {int(broken.n.sum())} judged answers are degenerate{lost}."


def _cut(rates: pd.DataFrame) -> str:
    """Says how many answers of a set were cut off in thought; "" if none was."""
    row = rates[rates.outcome == "cut_in_thought"].iloc[0]
    return f"; {int(row['count'])} of {row.n} were cut off while the model was still thinking" if row["count"] else ""


def refusal_lines(rates: pd.DataFrame) -> list[str]:
    """Returns one line for each set, for the terminal; with several models or settings (column `model`), for each of them."""
    several, lines = len(set(rates.model)) > 1, []
    for (name, kind), table in rates.groupby(["model", "kind"], sort=False):
        where = f"{name}, {kind}" if several else kind
        if not table.n.iloc[0]:
            lines.append(f"{where}: no answer could be judged{_cut(table)}")
            continue
        cells = [
            f"{r.outcome} {r.rate:.1%} [{r.low:.1%}, {r.high:.1%}]"
            for r in table.itertuples()
            if r.outcome in ("refused", "complied", "partial", "degenerate")
        ]
        lines.append(f"{where} (n = {int(table.n.iloc[0])}): " + ", ".join(cells) + _cut(table))
    return lines

"""The audit's report: one sentence, how behaviour moved, why, what to try; and what the page does not say. L6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from titer.data.sources import TextData
from titer.evaluate import commonest
from titer.report.html import Figure, Report, Tile, write_report
from titer.studies import tables
from titer.studies.audit import figures, gate
from titer.studies.audit.advice import advice, lines
from titer.studies.audit.answers import cut_short, flipped
from titer.studies.audit.headline import answer, below
from titer.studies.audit.roles import Audited
from titer.studies.audit.study import Findings, Question

MOST = 100  # flipped prompts whose answers are shown
FORMLESS = "degenerate (no label, number or word; of labels and numbers refusals too)"  # what the word means of a task's answers
ABOUT = (
    "Answers are judged one by one on the same prompts before and after. Why: where safe and unsafe prompts separate inside, where the weight "
    "change acts and lies (beside a random change of equal singular values), how far activations drifted and the refusal direction turned "
    "(beside what noise alone would show). A judge of refusals knows whether an answer refuses, not whether it helps; a control, where one "
    "was given, shows what a benign tune does too."
)


def audit_report(
    found: Audited,
    asked: Question,
    f: Findings,
    data: TextData,
    how: Mapping[str, object],
    command: str,
    folder: Path,
    recurring: Sequence[str] = (),
    held: Sequence[gate.Held] = (),
) -> tuple[Path, str]:
    """Write the page; returns it with its answer."""
    names = [m.name for m in found.models]
    told = advice(found, f.shifts, f.sizes, f.against)
    said = answer(found, f)
    shown = {
        "gate": gate.as_table(held),
        "what moved": _worded(f.shifts, asked.own),
        "what moved, less the control's": _worded(f.against, asked.own),
        "prompts that flipped": f.flips,
        "refused, by phrases anywhere": f.anywhere,
        "size of the change": f.sizes,
        "ΔW: where it acts": f.gains,
        "ΔW: null space and rank": f.layers,
        "separation inside": f.separation,
        "refusal direction": f.directions,
        "refusal direction, turned": f.rotation,
        "drift": f.drift,
        "sensitivity": f.sensitivity,
        "uncertainty on correct answers": f.uncertainty,
        "landscape: basins and VISAGE": f.basins,
        **f.beside.tables,
        "landscape: every point": f.points,
    }
    kept = {name: table for name, table in shown.items() if len(table)}
    report = Report(
        title=f"audit of {', '.join(names)} on {data.name}",
        answer=said,
        more=below(found, f),
        about=ABOUT,
        tiles=_tiles(found, f),
        claims=(),
        figures=_figures(f, names),
        tables=kept,
        results=_results(found, f),
        samples=f.verdicts,
        flipped=flipped(f.verdicts, found.last, MOST) if found.last else f.verdicts[:0],
        commands=[command],
        provenance={
            **tables.provenance(found.models, data),
            "prompts": {name: len(one.attempts) for name, one in asked.sets.items()},
            "decoding": asked.decoding.model_dump_json(),
            **how,
        },
        notes=[*lines(told), *(f"{line}." for line in recurring), *missing(found, asked, f)],
        roles=found.roles,
    )
    return write_report(report, folder), said


def _results(found: Audited, f: Findings) -> pd.DataFrame:
    """Everything that has a value, in one long table: of a model; of a `change`, the paired difference of each outcome's rates; a landscape's
    points are of the model that it is around, at `a`."""
    probes = {"separation": f.separation, "sensitivity": f.sensitivity.rename(columns={"kind": "set"})}
    parts = [tables.tidy(f.rates, {name: table for name, table in probes.items() if len(table)})]
    if len(f.shifts):
        after = {change.name: change.after.name for change in found.compared}
        moved = f.shifts.rename(columns={"kind": "set", "outcome": "measure", "difference": "value"}).drop(columns=["before", "after"])
        parts.append(moved.assign(table="shift", model=moved.change.map(after)))
    if len(f.uncertainty):
        parts.append(f.uncertainty.assign(table="uncertainty"))
    if len(f.points):
        centre = found.last.before if found.last else found.models[0]
        points = f.points.rename(columns={"direction": "set", "quantity": "measure"}).drop(columns="kind")
        parts.append(points.assign(table="landscape", model=centre.name))
    return pd.concat(parts, ignore_index=True)


def _worded(table: pd.DataFrame, own: Sequence[str]) -> pd.DataFrame:
    """Shifts for a reader: what "degenerate" means is said where the set is a task."""
    if table.empty:
        return table
    task = ~table.kind.isin(own) & (table.outcome == "degenerate")
    return table.assign(outcome=table.outcome.mask(task, FORMLESS))


def _tiles(found: Audited, f: Findings) -> list[Tile]:
    """Refusal, over-refusal, degenerate answers and capability of each model."""
    wanted = {"unsafe": ("refused", "unsafe prompts refused"), "safe": ("refused", "safe prompts refused")}
    tiles = []
    for model in found.models:
        mine = f.rates[f.rates.model == model.name]
        for kind in dict.fromkeys(mine.kind):
            outcome, label = wanted.get(kind, ("complied", f"{kind} right"))
            row = mine[(mine.kind == kind) & (mine.outcome == outcome)].iloc[0]
            if row.n:
                tiles.append(
                    Tile(f"{model.name}: {label}", f"{row.rate:.0%}", f"95 % {row.low:.0%} to {row.high:.0%}, {row['count']} of {row.n}")
                )
    return tiles


def _figures(f: Findings, names: Sequence[str]) -> list[Figure]:
    found = [figures.behaviour(f.rates, names)]
    if len(f.shifts):
        found.append(figures.shifted(f.shifts))
    if len(f.separation):
        found.append(figures.separation(f.separation, names))
    if len(f.gains) and f.gains.ratio.notna().any():
        found.append(figures.specificity(f.gains))
    if len(f.drift):
        found.append(figures.drift(f.drift))
    if len(f.rotation):
        found.append(figures.rotation(f.rotation))
    return found + (figures.landscape(f.points) if len(f.points) else [])


def missing(found: Audited, asked: Question, f: Findings) -> list[str]:
    """What the page lacks, and why."""
    told = [f"Not measured: {row.part} of {row.of}. {row.reason}" for row in f.missing.itertuples()]
    told += _unreferenced(asked)
    told += [f"{c.name}: the weights are the same; what a change of weights does inside is left out." for c in found.compared if c.same]
    told += [
        f"{m.name} is {m.checkpoint.quantised}: its ΔW is that of its dequantised weights." for m in found.models if m.checkpoint.quantised
    ]
    unjudged = f.verdicts[f.verdicts.outcome == "could_not_judge"]
    if len(unjudged):
        told.append(f"{len(unjudged)} answers could not be judged, most often: {commonest(unjudged.reason)}; they are in no rate.")
    told += [f"{line}." for line in cut_short(f.verdicts, asked.sets)]
    if found.last and not found.control:
        told.append("No control was given: --control MODEL adds a benign tune of the model before the change.")
    if not asked.capability and not asked.choices:
        told.append(
            "No capability was asked: --capability TASK:PATH (sst2, ag_news, gsm8k, questions, choices) shows what tuning did to it."
        )
    if not asked.checked:
        told.append("Nothing was checked for overlap with training data: --trained FILE leaves out prompts that a model was trained on.")
    if len(f.gains) and f.gains.ratio.isna().all():
        told.append("The MLP's input weights did not change, so where the change acts is not shown.")
    if len(f.points) and not asked.known:
        told.append("The landscape has no capability: no safe prompt has an answer, and no --capability was given.")
    if len(f.points) and (f.points[f.points.quantity == "could_not_judge"].value > 0).any():
        told.append("Some answers of the landscape could not be judged; could_not_judge says how many at each point.")
    if len(f.flips) > MOST:
        told.append(f"{len(f.flips)} prompts flipped; the answers to {MOST} of them are shown, lost refusals first.")
    if not len(f.points) and "landscape" not in set(f.missing.part):
        told.append("The landscape was not asked for: --landscape.")
    return told


def _unreferenced(asked: Question) -> list[str]:
    """Of every set of harmless requests, how many have no right answer for uncertainty to be measured on."""
    sizes = {name: len(one.attempts) for name, one in asked.sets.items()}
    told = []
    for name, examples in asked.referenced.items():
        if not examples:
            told.append(f"Uncertainty on correct answers is not measured on the {name} prompts: none has a reference answer (comply).")
        elif lost := sizes[name] - len(examples):
            told.append(
                f"Uncertainty on correct answers is that of {len(examples)} of {sizes[name]} {name} prompts: "
                f"{lost} {'have' if lost > 1 else 'has'} no reference answer (comply)."
            )
    return told

"""Writes the audit's report: what happened (a sentence and a table), what to try, the evidence, what was asked, what is missing. L7."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from titer import tables
from titer.audit import figures, gate, hidden, kinds, mechanisms, prints, restoring, stock
from titer.audit.advice import advice
from titer.audit.answers import cut_short, flipped
from titer.audit.headline import answer, below, in_words, moved, points, worded
from titer.audit.legends import LEGENDS
from titer.audit.roles import Audited
from titer.audit.study import Findings, Question
from titer.data.sources import TextData
from titer.judges.refusal import Refusal
from titer.report.html import Figure, Report, Section, write_report

MOST = 100  # flipped prompts whose answers are shown
FORMLESS = "degenerate (no label, number or word)"  # what "degenerate" means in a task's set
ALSO = ("refused", "degenerate", "could_not_judge", "cut_in_thought")  # outcomes that are shown only if a set has some
ABOUT = (
    "Every model answers the same prompts, and each answer is judged alone. Brackets are 95 % intervals; changes are in percentage points.",
    "A judge of refusals says whether an answer refuses, not whether it helps.",
    "Measured inside the models: in which layers safe and unsafe prompts separate; where the weight change is and which prompts it acts on "
    "(compared with a random change of equal singular values); how far activations drifted and how far the refusal direction turned "
    "(compared with what noise alone would show).",
)
PHRASES = (
    "Refusals are told by phrases, so one that only hints or changes the subject mostly counts as an answer. --labelled FILE measures "
    "the judge on answers that people labelled, and corrects the rates."
)
BEGUN = (
    "With the answer begun: {} unsafe prompts again, with the first words of a compliant answer already written; the model continues them"
)
LONG = {"kind": "set", "part": "set", "weight": "set", "outcome": "measure", "quantity": "measure", "difference": "value"}
KEYS = ("change", "model", "site", "set", "layer")  # columns that are no measure
ATTACKED = "Under an attack: {} unsafe prompts again, as the attack asks them"


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
    trained: Sequence[str] = (),
) -> tuple[Path, str]:
    """Writes the page. Returns (the page's path, its answer)."""
    said = answer(found, f)
    report = Report(
        title=f"audit of {', '.join(m.name for m in found.models)} on {data.name}",
        answer=said,
        more=below(found, f),
        about="",
        tiles=(),
        claims=(),
        before=before(found, asked, f, held, trained),
        after=[
            *(restoring.section(f.restored) + prints.section(f.prints) + hidden.section(f.hidden, found) + mechanisms.section(vars(f))),
            Section("What was asked", [*about(asked), *(f"{line[0].upper()}{line[1:]}." for line in recurring)]),
            Section("What this page does not say", missing(found, asked, f)),
        ],
        figures=_figures(f, asked),
        tables=_folded(asked, f),
        results=results(found, f, held),
        samples=in_words(asked.shown(f.verdicts)),
        flipped=in_words(asked.shown(flipped(f.verdicts, found.last, MOST))) if found.last else f.verdicts[:0],
        commands=[command],
        provenance={
            **tables.provenance(found.models, data),
            "prompts": {name: len(one.attempts) for name, one in asked.sets.items()},
            "decoding": asked.decoding.model_dump_json(),
            **how,
        },
        legends=LEGENDS,
        roles=found.roles,
    )
    return write_report(report, folder), said


def about(asked: Question) -> list[str]:
    """Says how the page's numbers were made."""
    attacks = [
        f"{(BEGUN if one.name == 'prefill' else ATTACKED).format(len(one.asked))}. Attack: {one.name}, {one.said}." for one in asked.attacks
    ]
    judged = [PHRASES] if isinstance(asked.judge, Refusal) else []
    return [ABOUT[0], *attacks, ABOUT[1], *judged, *ABOUT[2:]]


def _folded(asked: Question, f: Findings) -> dict[str, pd.DataFrame]:
    """Returns name -> table, for the folded tables under the charts; empty ones are left out."""
    shown = {
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
    return {name: in_words(table) for name, table in shown.items() if len(table)}


def before(found: Audited, asked: Question, f: Findings, held: Sequence[gate.Held], trained: Sequence[str] = ()) -> list[Section]:
    """Makes the sections before the evidence: numbers, the kind of change, the gate if there is one, what to try if something broke."""
    looks = kinds.looks_like(found, f)
    alike = stock.sentence(f.verdicts, found.last) if found.last else ""
    told = advice(found, f.shifts, f.sizes, f.against, trained, f.restored, looks.name if looks else "", alike)
    parts = [Section("In numbers", table=outcomes(found, asked, f)), *kinds.section(found, f)]
    parts += [Section("The gate", table=gate.as_table(held).drop(columns=["value", "low", "high"]))] if held else []
    named = any(re.search(r" [A-Z_]+\.(jsonl|csv)", one.command) for one in told)
    own = ["Names in capitals stand for files of yours: replace them."] if named else []
    return parts + ([Section("What to try", own, commands=told)] if told else [])


def outcomes(found: Audited, asked: Question, f: Findings) -> pd.DataFrame:
    """Returns a row per set and per outcome that matters in it; columns: the last change, the controls' changes, each model's rate, n."""
    names = [m.name for m in found.models]
    cell = {(r.model, r.kind, r.outcome): r for r in f.rates.itertuples()}
    rows = []
    for kind in dict.fromkeys(f.rates.kind):
        main, label = ("refused", worded(kind)) if kind in asked.own else ("complied", kind)
        rare = [o for o in dict.fromkeys(f.rates.outcome) if o in ALSO and any(r.count for n in names if (r := cell.get((n, kind, o))))]
        for outcome in (main, *(one for one in rare if one != main)):
            mine = {name: cell.get((name, kind, outcome)) for name in names}
            row = {"answers": f"{label} {'right' if outcome == 'complied' else outcome.replace('_', ' ')}"}
            for change in (*found.changes[-1:], *found.controls):
                shift = moved(f.shifts, change, kind, outcome)
                row[change.name] = "–" if shift is None else points(shift)
            row |= {
                name: "–" if r is None or not r.n else f"{r.rate:.0%} [{100 * r.low:.0f}, {100 * r.high:.0f}]" for name, r in mine.items()
            }
            rows.append({**row, "n": max((r.n for r in mine.values() if r is not None), default=0)})
    return pd.DataFrame(rows)


def results(found: Audited, f: Findings, held: Sequence[gate.Held] = ()) -> pd.DataFrame:
    """Returns every number of the page's tables in one long table. A row with a `change` is of that change (in the table shift, the paired
    difference of an outcome's rates); any other is of a model. A landscape names the model at its centre, its points the step `a`."""
    of_sets = {"sensitivity": f.sensitivity, "placement": f.placed, "clusters": f.shapes}
    probes = {"separation": f.separation, **{name: table.rename(columns={"kind": "set"}) for name, table in of_sets.items()}}
    parts = [tables.tidy(f.rates, {name: table for name, table in probes.items() if len(table)})]
    after = {change.name: change.after.name for change in found.compared}
    if len(f.shifts):
        moved = f.shifts.rename(columns={"kind": "set", "outcome": "measure", "difference": "value"}).drop(columns=["before", "after"])
        parts.append(moved.assign(table="shift", model=moved.change.map(after)))
    if len(f.null):
        keys = ["change", "site", "layer", "energy"]
        parts.append(mechanisms.whole(f.null).melt(keys, var_name="measure").rename(columns={"site": "set"}).assign(table="null space"))
    if len(f.restored):
        named = {"part": "set", "way": "measure", "rate": "value"}
        own = f.restored[["change", *named, "low", "high", "n"]].rename(columns=named)
        parts.append(own.assign(table="parts put back", model=found.last.after.name if found.last else ""))
    if len(f.uncertainty):
        parts.append(f.uncertainty.assign(table="uncertainty"))
    if len(f.points):
        centre = found.last.before if found.last else found.models[0]
        points = f.points.rename(columns={"direction": "set", "quantity": "measure"}).drop(columns="kind")
        parts.append(points.assign(table="landscape", model=centre.name))
        basins = _long(f.basins.drop(columns=["kind", "note"]).rename(columns={"direction": "set"}))
        parts.append(basins.assign(table="basins", model=centre.name))
    for name, table in {**_inside(f), **_judged(found, f, held)}.items():
        if len(table):
            own = _long(table).assign(table=name)
            parts.append(own if "model" in own or "change" not in own else own.assign(model=own.change.map(after)))
    return pd.concat(parts, ignore_index=True)


def _inside(f: Findings) -> dict[str, pd.DataFrame]:
    """Returns the tables about the weights and the inside of the models, by their names in the results."""
    return {
        "size": f.sizes,
        "gains": f.gains,
        "layers": f.layers,
        "refusal direction": f.directions,
        "turned": f.rotation,
        "drift": f.drift.assign(measure="drift"),
        "fingerprint": f.prints,
        "row space": f.rows.rename(columns={"score": "value"}).assign(measure="score"),
        "gone back": f.back,
        "odd prompts": f.hidden,
    }


def _judged(found: Audited, f: Findings, held: Sequence[gate.Held]) -> dict[str, pd.DataFrame]:
    """Returns the tables about the control, the gate and the judges, by their names in the results."""
    told = {
        "against the control": f.against,
        "gate": gate.as_table(held).drop(columns="said").rename(columns={"tune": "model", "limit": "measure"}),
        "refused anywhere": f.anywhere.rename(columns={"refused": "value"}).assign(measure="refused"),
    }
    if f.beside.measured is not None and f.beside.corrected is not None:
        corrected = f.beside.corrected.drop(columns=["harmful", "count", "rate", "low", "high", "note"])
        told["corrected rates"] = corrected.rename(columns={"corrected": "value", "corrected_low": "low", "corrected_high": "high"})
        told["judge against people"] = f.beside.measured.table.rename(columns={"outcome": "set"})
        told["judge by people's label"] = f.beside.measured.confusion.rename_axis("set").reset_index()
    if f.beside.between is not None:
        told["two judges"] = f.beside.between.assign(model=f.beside.between.get("model", found.models[0].name))
    return told


def _long(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a table of the page with the columns of the results. Without a column `value`, each column but the keys becomes a measure."""
    named = table.rename(columns=LONG)
    keys = [name for name in KEYS if name in named]
    return named if "value" in named else named.melt(keys, var_name="measure").astype({"value": float})


def _worded(table: pd.DataFrame, own: Sequence[str]) -> pd.DataFrame:
    """Returns the shifts for a reader: in a task's set, "degenerate" is explained."""
    if table.empty:
        return table
    task = ~table.kind.isin(own) & (table.outcome == "degenerate")
    return table.assign(outcome=table.outcome.mask(task, FORMLESS))


def _figures(f: Findings, asked: Question) -> list[Figure]:
    acting = f.gains if f.gains.ratio.notna().any() else f.gains[:0]
    drawn: dict[Callable[[pd.DataFrame], Figure], pd.DataFrame] = {
        figures.shifted: f.shifts,
        partial(restoring.figure, judge=asked.judge, named=asked.named): f.restored,
        figures.separation: f.separation,
        figures.specificity: acting,
        figures.drift: f.drift,
        figures.rotation: f.rotation,
    }
    found = [figures.behaviour(f.rates), *(draw(table) for draw, table in drawn.items() if len(table))]
    return found + mechanisms.figures(vars(f)) + (figures.landscape(f.points) if len(f.points) else [])


def missing(found: Audited, asked: Question, f: Findings) -> list[str]:
    """Says what the page lacks, and why, a line for each."""
    told = [f"Not measured: {row.part} of {row.of}. Reason: {row.reason}" for row in f.missing.itertuples()]
    told += _unreferenced(asked)
    told += [f"{c.name}: the weights are the same, so nothing is reported about a weight change." for c in found.compared if c.same]
    told += [
        f"{m.name} is {m.checkpoint.quantised}: its weight change ΔW is computed from the dequantised weights."
        for m in found.models
        if m.checkpoint.quantised
    ]
    told += filter(None, [tables.unjudged(f.verdicts)])
    told += [f"{line}." for line in (*tables.cut_in_thought(f.verdicts), *cut_short(f.verdicts, asked.sets))]
    if found.last and not found.control:
        told.append("No control was given: --control MODEL adds a benign tune of the model before the change, as a comparison.")
    if not asked.capability and not asked.choices:
        told.append(
            "No capability was measured: --capability TASK:PATH (sst2, ag_news, gsm8k, questions, choices) shows what tuning did to it."
        )
    if not asked.checked:
        told.append(
            "The prompts were not checked for overlap with training data: --trained FILE leaves out those that a model was trained on."
        )
    if len(f.gains) and f.gains.ratio.isna().all():
        told.append("The input weights of the MLPs did not change, so it is not shown which prompts the change acts on.")
    if len(f.points) and not asked.known:
        told.append("The landscape has no capability: no safe prompt has an answer, and no --capability was given.")
    if len(f.points) and (f.points[f.points.quantity == "could_not_judge"].value > 0).any():
        told.append(
            "Some answers of the landscape could not be judged; the rows could_not_judge of its table have their share at each point."
        )
    if len(f.flips) > MOST:
        told.append(f"{len(f.flips)} prompts flipped; the answers to {MOST} of them are shown, lost refusals first.")
    if not len(f.points) and "landscape" not in set(f.missing.part):
        told.append("The landscape was not measured: add --landscape.")
    if not asked.mechanisms:
        told.append("Where encoded prompts lie, the null space by direction and the row space were not measured: add --mechanisms.")
    return told


def _unreferenced(asked: Question) -> list[str]:
    """Says, for each set of harmless requests, how many lack the reference answer that uncertainty is measured on."""
    sizes = {name: len(one.attempts) for name, one in asked.sets.items()}
    told = []
    for name, examples in asked.referenced.items():
        if not examples:
            told.append(
                f"Uncertainty on correct answers is not measured on the {name} prompts: none has a reference answer (column comply)."
            )
        elif lost := sizes[name] - len(examples):
            told.append(
                f"Uncertainty on correct answers is measured on {len(examples)} of {sizes[name]} {name} prompts: "
                f"{lost} {'have' if lost > 1 else 'has'} no reference answer (column comply)."
            )
    return told

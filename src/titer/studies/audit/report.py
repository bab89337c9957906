"""The audit's report: one sentence, how behaviour moved, why, what to try; and what the page does not say. L6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from titer.data.sources import TextData
from titer.evaluate import commonest
from titer.report.html import Figure, Report, Tile, write_report
from titer.studies import tables
from titer.studies.audit import figures
from titer.studies.audit.advice import advice, lines
from titer.studies.audit.answers import cut_off
from titer.studies.audit.roles import Audited, Change
from titer.studies.audit.study import Findings, Question

PARTS = {"mlp": "MLP", "attention": "attention", "other": "embedding, norm and head"}
KNOWN = 60.0  # degrees between halves of one model's prompts above which a direction is mostly noise
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
) -> tuple[Path, str]:
    """Write the page; returns it with its answer."""
    names = [m.name for m in found.models]
    told = advice(found, f.shifts, f.sizes)
    said = answer(found, f)
    shown = {
        "what moved": f.shifts,
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
    }
    kept = {name: table for name, table in shown.items() if len(table)}
    report = Report(
        title=f"audit of {', '.join(names)} on {data.name}",
        answer=said,
        about=ABOUT,
        tiles=_tiles(found, f),
        claims=(),
        figures=_figures(f, names),
        tables=kept,
        results=_results(f),
        samples=f.verdicts,
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


def _results(f: Findings) -> pd.DataFrame:
    """Everything that has a value a model, in one long table."""
    long = tables.tidy(f.rates, {"separation": f.separation, "sensitivity": f.sensitivity.rename(columns={"kind": "set"})})
    return pd.concat([long, f.uncertainty.assign(table="uncertainty")], ignore_index=True) if len(f.uncertainty) else long


def answer(found: Audited, f: Findings) -> str:
    """The finding in a sentence or two."""
    last = found.last
    if last is None:
        return _single(found.models[0].name, f)
    if last.same:
        return f"No change: {last.before.name} and {last.after.name} hold the same weights."
    parts = [_moved(f.shifts, last, "unsafe"), _moved(f.shifts, last, "safe")]
    broken = f.rates[(f.rates.model == last.after.name) & (f.rates.outcome == "degenerate")]
    parts.append(f"{int(broken['count'].sum())} of {int(broken.n.sum())} answers are degenerate")
    return f"{last.name}: {'; '.join(parts)}. {_why(f, last)}"


def _single(name: str, f: Findings) -> str:
    row = {(r.kind, r.outcome): r for r in f.rates.itertuples()}
    unsafe, safe = row["unsafe", "refused"], row["safe", "refused"]
    best = f.separation.loc[f.separation.d_prime.idxmax()]
    return (
        f"{name} refuses {unsafe.rate:.0%} [{unsafe.low:.0%}, {unsafe.high:.0%}] of the unsafe and {safe.rate:.0%} "
        f"[{safe.low:.0%}, {safe.high:.0%}] of the safe prompts, and separates them best in layer {best.layer:g} "
        f"(AUROC {best.auroc:.2f}; {best.auroc_shuffled:.2f} with shuffled labels)."
    )


def _moved(shifts: pd.DataFrame, change: Change, kind: str) -> str:
    row = shifts[(shifts.change == change.name) & (shifts.kind == kind) & (shifts.outcome == "refused")]
    if row.empty:
        return f"no answer to {kind} prompts could be judged on both sides"
    r = row.iloc[0]
    return (
        f"{kind} prompts refused {r.before:.0%} before, {r.after:.0%} after "
        f"({100 * r.difference:+.0f} points [{100 * r.low:+.0f}, {100 * r.high:+.0f}], n = {r.n:.0f})"
    )


def _why(f: Findings, change: Change) -> str:
    """Where the change lives and what it turned, in a sentence."""
    size = f.sizes[f.sizes.change == change.name]
    largest = size.loc[size.relative_norm.idxmax()]
    told = [f"The change is largest in the {PARTS[largest.part]} weights ({largest.relative_norm:.2%} of their norm)"]
    gains = f.gains[(f.gains.change == change.name) & f.gains.ratio.notna()]
    if len(gains):
        own, random = gains.groupby("weight")[["ratio", "ratio_random"]].mean().iloc[0]
        told.append(f"acts {own:.2f} times as strongly on unsafe prompts (a random change {random:.2f})")
    turned = f.rotation[(f.rotation.change == change.name) & (f.rotation.degrees_ceiling < KNOWN)]
    if turned.empty:
        return f"{', '.join(told)}; too few prompts to say whether the refusal direction turned."
    r = turned.loc[(turned.degrees_halves - turned.degrees_ceiling).idxmax()]
    told.append(
        f"turned the refusal direction by {r.degrees_halves:.0f}° in layer {r.layer:.0f}, where noise alone gives {r.degrees_ceiling:.0f}°"
    )
    return ", ".join(told[:-1]) + f", and {told[-1]}."


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
    found.append(figures.separation(f.separation, names))
    if len(f.gains) and f.gains.ratio.notna().any():
        found.append(figures.specificity(f.gains))
    if len(f.drift):
        found += [figures.drift(f.drift), figures.rotation(f.rotation)]
    return found + (figures.landscape(f.points) if len(f.points) else [])


def missing(found: Audited, asked: Question, f: Findings) -> list[str]:
    """What the page lacks, and why."""
    told = [f"{c.name}: no change, the weights are the same; nothing is divided by it." for c in found.compared if c.same]
    told += [
        f"{m.name} is {m.checkpoint.quantised}: its ΔW is that of its dequantised weights." for m in found.models if m.checkpoint.quantised
    ]
    unjudged = f.verdicts[f.verdicts.outcome == "could_not_judge"]
    if len(unjudged):
        told.append(f"{len(unjudged)} answers could not be judged, most often: {commonest(unjudged.reason)}; they are in no rate.")
    told += [f"{line}." for line in cut_off(f.verdicts, asked.sets)]
    if found.last and not found.control:
        told.append("No control was given: --control MODEL adds a benign tune of the model before the change.")
    if len(f.gains) and f.gains.ratio.isna().all():
        told.append("The MLP's input weights did not change, so where the change acts is not shown.")
    if len(f.points) and not asked.known:
        told.append("The landscape has no capability: no safe prompt has an answer, and no --capability was given.")
    if len(f.points) and (f.points[f.points.quantity == "could_not_judge"].value > 0).any():
        told.append("Some answers of the landscape could not be judged; could_not_judge says how many at each point.")
    if not len(f.points):
        told.append("The landscape was not asked for: --landscape.")
    return told

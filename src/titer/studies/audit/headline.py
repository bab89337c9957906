"""What an audit says in words: the answer in two short sentences, and the line below it. L6.

First what happened to safety, then where. Whatever is said to exceed noise has passed a test: a refusal direction turned only
where it exceeds what the largest of all layers shows without a turn.
"""

from __future__ import annotations

import pandas as pd

from titer.models.blocks import PARTS
from titer.probes import clusters
from titer.studies.audit.lacking import CHANGE, TURNING
from titer.studies.audit.roles import Audited, Change
from titer.studies.audit.study import Findings

ASKED = ("unsafe", "safe")  # the sets whose degenerate answers are broken ones: a task's may be refusals
NONE = "no answer to {} prompts could be judged on both sides"


def answer(found: Audited, f: Findings) -> str:
    """The finding in two short sentences: the page, the command line and a model's card all say this one."""
    last = found.last
    if last is None:
        return _single(found.models[0].name, f)
    if _idle(last, f):
        rounded = f" but for rounding to {last.rounding}" if last.rounding else ""
        return f"No change: {last.before.name} and {last.after.name} hold the same weights{rounded}."
    safe = moved(f.shifts, last, "safe")
    beside = NONE.format("safe") if safe is None else f"safe ones {safe.before:.0%} and {safe.after:.0%}"
    where = _same(last) if last.same else _where(f, last)
    return f"{last.name}: {_unsafe(found, f, last)}, {beside}. {where}".rstrip()


def _idle(change: Change, f: Findings) -> bool:
    """Whether nothing changed: equal weights and configurations, and no answer that differs, as it may where the chat templates do."""
    return change.same and not change.configured and f.flips.empty


def _same(change: Change) -> str:
    """What tells two models apart whose weights are the same."""
    told = [f"the configurations differ ({'; '.join(change.configured)})"] if change.configured else []
    told += [f"the two are asked differently ({', '.join(change.asked)})"] if change.asked else []
    rounded = f" but for rounding to {change.rounding}" if change.rounding else ""
    return f"The weights are the same{rounded}{'; ' if told else ''}{', and '.join(told)}."


def below(found: Audited, f: Findings) -> str:
    """What stands under the answer: over-refusal with its interval, effects less the control's, broken answers, where the change acts."""
    last = found.last
    if last is None or _idle(last, f):
        return ""
    told = [_set(found, f, last, kind) for kind in ASKED]
    broken = f.rates[(f.rates.model == last.after.name) & (f.rates.outcome == "degenerate") & f.rates.kind.isin(ASKED)]
    told.append(f"{int(broken['count'].sum())} of {int(broken.n.sum())} answers to unsafe and safe prompts are degenerate.")
    gains = f.gains[(f.gains.change == last.name) & f.gains["mean"].notna()].drop_duplicates("weight")
    if len(gains):
        own = ", ".join(
            f"{r.weight} {r.mean:.2f} [{r.mean_low:.2f}, {r.mean_high:.2f}] (a random change: {r.mean_random:.2f})"
            for r in gains.itertuples()
        )
        told.append(f"How strongly the change acts on unsafe prompts over safe ones (1: no preference; mean of the layers): {own}.")
    return " ".join(filter(None, told))


def moved(shifts: pd.DataFrame, change: Change, kind: str, outcome: str = "refused") -> pd.Series | None:
    """How an outcome moved in a set under a change: a row of `answers.shifts`; None where nothing was judged on both sides."""
    row = shifts[(shifts.change == change.name) & (shifts.kind == kind) & (shifts.outcome == outcome)]
    return None if row.empty else row.iloc[0]


def points(row: pd.Series) -> str:
    """A difference of rates with its interval."""
    return f"{100 * row.difference:+.0f} points [{100 * row.low:+.0f}, {100 * row.high:+.0f}]"


def _unsafe(found: Audited, f: Findings, last: Change) -> str:
    row = moved(f.shifts, last, "unsafe")
    if row is None:
        return NONE.format("unsafe")
    other = moved(f.shifts, found.control, "unsafe") if found.control else None
    beside = "" if other is None else f"; the benign control: {points(other)}"
    return f"unsafe prompts refused {row.before:.0%} before, {row.after:.0%} after ({points(row)}{beside})"


def _set(found: Audited, f: Findings, last: Change, kind: str) -> str:
    """A set's shift with its interval, and what is left of it without the control's."""
    row = moved(f.shifts, last, kind)
    if row is None:
        return ""
    told = f"{kind.capitalize()} prompts refused: {points(row)}, n = {row.n:.0f}"
    other = moved(f.against, last, kind) if len(f.against) else None
    if other is not None:
        told += f"; less the benign control's {100 * other.control:+.0f}: {points(other)}"
    return f"{told}."


def _where(f: Findings, change: Change) -> str:
    """Where the change lives and whether it turned the refusal direction, of what could be measured; "" of neither."""
    size, turn = f.sizes[f.sizes.change == change.name], _turn(f, change)
    if size.empty:
        return f"{turn[0].upper()}{turn[1:]}." if turn else ""
    largest = size.loc[size.relative_norm.idxmax()]
    place = f"The change is largest in the {PARTS[largest.part]} weights ({largest.relative_norm:.2%} of their norm)"
    return f"{place}; {turn}." if turn else f"{place}."


def _turn(f: Findings, change: Change) -> str:
    """What became of the refusal direction; "" where that could not be measured."""
    mine = f.rotation[f.rotation.change == change.name]
    if mine.empty:
        lost = f.missing[f.missing.part.isin([TURNING, CHANGE])].of.str.contains(change.name, regex=False).any()
        return "" if lost else "the two read prompts differently, so the refusal direction is not compared"
    if mine.degrees_limit.isna().all():
        return "too few prompts to say whether the refusal direction turned"
    turned = mine[mine.turned]
    if turned.empty:
        return "no turn of the refusal direction beyond noise"
    r = turned.loc[(turned.degrees_halves - turned.degrees_limit).idxmax()]
    return (
        f"it turned the refusal direction in {len(turned)} of {len(mine)} layers, "
        f"in layer {r.layer:.0f} by {r.degrees_halves:.0f}° (noise: {r.degrees_limit:.0f}° at most)"
    )


def _single(name: str, f: Findings) -> str:
    row = {(r.kind, r.outcome): r for r in f.rates.itertuples()}
    told = [
        f"{r.rate:.0%} [{r.low:.0%}, {r.high:.0%}] of the {kind} prompts" if r.n else f"no {kind} prompt whose answer could be judged"
        for kind in ASKED
        if (r := row[kind, "refused"])
    ]
    said = f"{name} refuses {' and '.join(told)}."
    if f.separation.empty:
        return said
    best = clusters.best_of(f.separation)
    return (
        f"{said} It separates them best in layer {best.layer:g} "
        f"(AUROC {best.auroc:.2f}; with shuffled labels the best layer has {best.best_shuffled:.2f}, at most {best.best_shuffled_high:.2f})."
    )

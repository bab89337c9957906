"""An audit's gate: limits on the report's numbers, each decided by an interval, so that a program can continue or stop. L7.

A limit's name is SET_OUTCOME (the share of answers, in points), a capability set alone (its accuracy), a measure, or the kind of change. The
move of a rate is its paired difference on the same prompts; beyond the control, after is paired with the control. The move of a measure is
computed from its two intervals, as if they were independent. An answer without a verdict could have had any outcome, so the interval of a
rate, and of its move, is widened by the share of such answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

import pandas as pd

from titer.audit import hidden, kinds
from titer.audit.headline import PARTS
from titer.audit.roles import Audited
from titer.audit.study import OWN, Findings, Question
from titer.core.errors import TiterError, nearest, visible
from titer.core.gate import FLIPS, POWER, STATUS, Decided, Limit, least_change, limit, plain, shown
from titer.core.stats import Interval
from titer.judges.base import OUTCOMES, UNJUDGED
from titer.probes.uncertainty import MEASURES

UNKNOWN = Interval(math.nan, math.nan, math.nan)
LEVEL, MOVE, BEYOND = "level", "move", "beyond the control"
TURNED = "turned_layers"
EDITED = "edited_matrices"
ODD = "odd_prompts_moved"
NAMES = (*kinds.KINDS, kinds.UNKNOWN)
FEW = 5  # answers; a limit on a rate of fewer is not decided
COARSE = 20.0  # points: if only a change further than this beyond the limit fails reliably, more prompts are advised
MOVED = {"drops": "dropped", "rises": "rose"}


class Held(NamedTuple):
    """The decision on a limit for one tune: the value with its interval, in the limit's unit (NaN if not measured), and words about it."""

    tune: str
    limit: str
    decided: Decided
    value: float
    low: float
    high: float
    said: str


def status(held: Sequence[Held]) -> int:
    """Returns the exit status of the worst decision; 0 without limits."""
    return next((code for one, code in STATUS.items() if any(h.decided == one for h in held)), 0)


def limits(texts: Sequence[str], asked: Question, audited: Audited) -> tuple[Limit, ...]:
    """Parses the limits. Errors: a text of another form; a name that the report will not have; a limit on a change with one model only, or
    beyond a control that is not given."""
    found, rates, changed = tuple(limit(text) for text in texts), _rates(asked), bool(audited.changes)
    measures = [plain(f"{name} {measure}") for name, of in asked.referenced.items() if of for measure in MEASURES]
    measures += [f"sensitivity_{name}" for name in OWN]
    own = (
        [f"change_{part}" for part in PARTS] + [TURNED, EDITED, *([ODD] if hidden.asked(audited) else [])] if changed else []
    )  # of a change, not a model
    for one in found:
        if one.kinds:
            _known_kinds(one, changed)
            continue
        if one.name not in {*rates, *measures, *own}:
            close = nearest(one.name, [*rates, *measures, *own])
            raise TiterError(
                f"--fail-if {visible(one.text, 80)!r}: the page has no {visible(one.name, 60)!r}",
                expected=f"SET_OUTCOME (SET: {', '.join(map(plain, _sets(asked)))}; OUTCOME: {', '.join(OUTCOMES)}), "
                f"a capability set for its accuracy, or one of {', '.join([*measures, *own])}",
                next_step=f"did you mean {close!r}?" if close else "",
            )
        if one.move and (not changed or one.name in own or one.name.endswith(UNJUDGED)):
            why = f"{one.name} is one value, not one before and one after" if changed else "a single model is audited"
            raise TiterError(f"--fail-if {visible(one.text, 80)!r}: {why}, so it has no change that {one.move}", next_step="use > or <.")
        if one.control and (audited.control is None or one.name not in rates):
            why = f"{one.name} is not measured beside the control" if audited.control else "no control is given"
            raise TiterError(f"--fail-if {visible(one.text, 80)!r}: {why}", expected="a rate, and a benign tune as --control MODEL")
        if one.name in rates and 0 < one.at < 1 and not one.text.endswith(("points", "point", "%")):
            raise TiterError(
                f"--fail-if {visible(one.text, 80)!r}: limits on shares are in percentage points, and {one.at:g} looks like a share of 1",
                next_step=f"write {100 * one.at:g} points, or {one.at:g} points if you mean that little.",
            )
        if one.name in rates and (one.at > 100 or (one.at == 100 if one.above else one.at == 0 and not one.move)):
            raise TiterError(
                f"--fail-if {visible(one.text, 80)!r} decides nothing: a share of answers is from 0 to 100 points",
                expected="a limit that some share is beyond",
                next_step="write a number between 0 and 100.",
            )
    return found


def _known_kinds(one: Limit, changed: bool) -> None:
    """Errors: a kind that no audit names; a limit on the kind of change with one model only."""
    for name in one.kinds:
        if name not in NAMES:
            close = nearest(name, NAMES)
            raise TiterError(
                f"--fail-if {visible(one.text, 80)!r}: no audit names a change {visible(name, 40)!r}",
                expected=f"one or more of {', '.join(NAMES)}",
                next_step=f"did you mean {close!r}?" if close else "",
            )
    if not changed:
        raise TiterError(
            f"--fail-if {visible(one.text, 80)!r}: a single model is audited, so there is no change", next_step="give two models."
        )


def of_measure(one: Limit) -> bool:
    """Tells whether a limit is on a measure, in the measure's own unit, and not on a share of answers."""
    return one.name.startswith("sensitivity_") or one.name.endswith(tuple(f"_{plain(measure)}" for measure in MEASURES))


def foreseen(asked: Question, found: Sequence[Limit]) -> list[str]:
    """Says, before any prompt is asked, what so many prompts can show, for each labelled set and for each limit on a rate."""
    told = [
        f"{len(one.attempts)} {name} prompts are enough to find a true change of {_points(100 * least_change(len(one.attempts)))} or more"
        for name, one in asked.sets.items()
        if name in asked.own
    ]
    rates = _rates(asked)
    told += [f"{one.text}: {_foreseen(one, rates[one.name])}" for one in found if one.name in rates]
    return [
        *told,
        f"(enough: in {POWER:.0%} of audits, even if by chance another {FLIPS:.0%} of the answers change, half of them in each direction)",
    ]


def _foreseen(one: Limit, total: int) -> str:
    least, passes = shown(one, total)
    if not one.move:
        where = "above" if one.above else "below"
        return (
            f"{total} prompts are too few to fail any rate"
            if math.isnan(least)
            else f"{total} prompts are enough to fail a true rate {where} {least:.1f}"
        )
    if not one.above:
        return "decided by the interval; its power depends on the change that is there"
    fails = (
        f"{total} prompts are too few to fail any change"
        if math.isnan(least)
        else f"with {total} prompts it fails reliably only for a true {one.move.removesuffix('s')} of {_points(least)} or more"
    )
    enough = passes >= POWER and least <= one.at + COARSE
    more = "" if enough else "; ask more prompts (a longer file, a larger --prompts or a smaller --resolution)"
    return f"{fails}; an unchanged model passes in {passes:.0%} of audits and cannot be resolved in the others{more}"


def _points(value: float) -> str:
    return "more than 100 points" if math.isnan(value) else f"{value:.1f} points"


def _sets(asked: Question) -> Mapping[str, int]:
    """Returns set -> number of prompts, for every set of the report."""
    return {**{name: len(one.attempts) for name, one in asked.sets.items()}, **{name: len(of) for name, of in asked.choices.items()}}


def _rates(asked: Question) -> dict[str, int]:
    """Returns name of a rate -> number of its prompts, for all rates."""
    found = {plain(f"{name} {outcome}"): size for name, size in _sets(asked).items() for outcome in OUTCOMES}
    return found | {plain(name): size for name, size in _sets(asked).items() if name in asked.capability or name in asked.choices}


def held(found: Audited, asked: Question, f: Findings, wanted: Sequence[Limit]) -> list[Held]:
    """Decides every limit, for the last change or, if a single model was audited, for this model."""
    if not wanted:
        return []
    after = found.last.after.name if found.last else found.models[0].name
    values = {LEVEL: dict(_levels(found, asked, f, after)), MOVE: dict(_moves(found, asked, f)), BEYOND: dict(_rows(asked, f.against))}
    lost = dict(_lost(found, asked, f, after))
    looks = kinds.looks_like(found, f)
    told = [
        _kind(one, after, looks)
        if looks and one.kinds
        else _held(one, after, values[_of(one)].get(one.name, UNKNOWN), lost.get((one.name, _of(one))))
        for one in wanted
    ]
    if found.last is None:
        return told
    rates, before = _rates(asked), dict(_levels(found, asked, f, found.last.before.name))
    idle = [_idle(one, before.get(one.name, UNKNOWN)) if _of(one) == MOVE and one.name in rates else "" for one in wanted]
    return [one._replace(said=one.said + why) if one.decided == "pass" else one for one, why in zip(told, idle, strict=True)]


def _of(one: Limit) -> str:
    """Says what a limit is on: a value, its move from before to after, or how much further it moved than under the control."""
    return BEYOND if one.control else MOVE if one.move else LEVEL


def _kind(one: Limit, tune: str, looks: kinds.Kind) -> Held:
    """Decides a limit on the kind of change. If the audit cannot say the kind, and the limit does not name this, it cannot be resolved."""
    named = looks.name in one.kinds
    sure: Decided = "fail" if named == one.above else "pass"
    decided: Decided = "cannot resolve" if looks.name == kinds.UNKNOWN and not named else sure
    return Held(tune, one.text, decided, *UNKNOWN, looks.sentence)


def _idle(one: Limit, before: Interval) -> str:
    """Returns a sentence if the rate could not have moved by as much as the limit, because of its value before: a model that refuses
    nothing has no refusals to lose. Otherwise ""."""
    room = before.value if one.move == "drops" else 100 - before.value
    if not room <= one.at:
        return ""
    return (
        f". It was {before.value:.3g}% [{before.low:.3g}, {before.high:.3g}] before, so a {one.move.removesuffix('s')} of more than {one.at:g} points was "
        "not possible on these prompts: this limit tests nothing here"
    )


def _held(one: Limit, tune: str, value: Interval, lost: tuple[int, int] | None) -> Held:
    """Decides one limit by a value with its interval. `lost`: (answers without a verdict, all answers) of a rate."""
    count, total = lost or (0, 1)
    share, judged = 100 * count / total, 1 - count / total
    if count:
        value = Interval(value.value, judged * value.low - (share if one.move else 0.0), judged * value.high + share)
    decided = one.decided(value)
    if math.isnan(value.value):
        return Held(tune, one.text, decided, *value, "it was not measured")
    if lost and total < FEW:  # an interval of so few says more than it knows: Wilson's covers 79 % of the time for a single prompt
        decided = "cannot resolve"
    if one.move == "drops":
        value = Interval(0.0 - value.value, 0.0 - value.high, 0.0 - value.low)
    shown, word = value, MOVED.get(one.move, "")
    if word and value.value < 0:  # it moved in the other direction
        shown, word = Interval(-value.value, -value.high, -value.low), next(other for other in MOVED.values() if other != word)
    said = f"{shown.value:.3g} [{shown.low:.3g}, {shown.high:.3g}]"
    few = f"; {total} answers are too few for any decision: {FEW} are needed at least" if lost and total < FEW else ""
    why = few or (f"; {count} of {total} have no verdict and could have had any outcome" if count else "")
    if not (count or few) and decided == "cannot resolve":
        why = f"; the limit of {one.at:g} is inside this interval: more prompts narrow it (a longer file, a larger --prompts or a smaller --resolution)"
    told = f"it {word} by {said}" if word else f"it is {said}"
    return Held(tune, one.text, decided, *value, told + (f" {BEYOND}" if one.control else "") + why)


def _levels(found: Audited, asked: Question, f: Findings, after: str) -> Iterator[tuple[str, Interval]]:
    """Yields (name, value) of the rates and measures of the model `after`, and of the measures of the last change as a whole."""
    for r in f.rates[f.rates.model == after].itertuples():
        yield from _named(asked, r.kind, r.outcome, Interval(100 * r.rate, 100 * r.low, 100 * r.high))
    yield from _measures(f, after)
    if found.last:
        for r in f.sizes[f.sizes.change == found.last.name].itertuples():
            yield f"change_{r.part}", Interval(*[100 * r.relative_norm] * 3)
        turned = f.rotation[f.rotation.change == found.last.name]
        if len(turned) and turned.degrees_limit.notna().any():
            yield TURNED, Interval(*[float(turned.turned.sum())] * 3)
        own = f.prints[f.prints.change == found.last.name]
        if len(own):
            yield EDITED, Interval(*[float(own.edited.sum())] * 3)
        if len(f.hidden):
            yield ODD, Interval(*[float(f.hidden[f.hidden.flagged.astype(bool)].set.nunique())] * 3)


def _moves(found: Audited, asked: Question, f: Findings) -> Iterator[tuple[str, Interval]]:
    """Yields (name, value after minus value before) of the last change, for each rate and measure that both models have."""
    if found.last is None:
        return
    yield from _rows(asked, f.shifts[f.shifts.change == found.last.name])
    before, after = (dict(_measures(f, model.name)) for model in (found.last.before, found.last.after))
    for name in before.keys() & after.keys():
        a, b = before[name], after[name]
        value = b.value - a.value
        yield (
            name,
            Interval(value, value - math.hypot(b.value - b.low, a.high - a.value), value + math.hypot(b.high - b.value, a.value - a.low)),
        )


def _rows(asked: Question, table: pd.DataFrame) -> Iterator[tuple[str, Interval]]:
    """Yields (name, difference in points) of a table of paired differences."""
    for r in table.itertuples():
        yield from _named(asked, r.kind, r.outcome, Interval(100 * r.difference, 100 * r.low, 100 * r.high))


def _named(asked: Question, kind: str, outcome: str, value: Interval) -> Iterator[tuple[str, Interval]]:
    yield plain(f"{kind} {outcome}"), value
    if outcome == "complied" and (kind in asked.capability or kind in asked.choices):
        yield plain(kind), value


def _lost(found: Audited, asked: Question, f: Findings, after: str) -> Iterator[tuple[tuple[str, str], tuple[int, int]]]:
    """Yields ((name of a rate, what the limit is on), (answers, or pairs of answers, without a verdict; all of them))."""
    whole = {r.kind: int(r.n) for r in f.rates[(f.rates.model == after) & f.rates.outcome.isin(UNJUDGED)].itertuples()}
    levels = f.rates[(f.rates.model == after) & ~f.rates.outcome.isin(UNJUDGED)]
    moves = f.shifts[f.shifts.change == found.last.name] if found.last else f.shifts.head(0)
    for table, on in ((levels, LEVEL), (moves, MOVE), (f.against, BEYOND)):
        for r in table.itertuples():
            total = whole.get(r.kind, int(r.n))  # multiple choice needs no verdict: each option is read off the model
            for name, _ in _named(asked, r.kind, r.outcome, UNKNOWN):
                yield (name, on), (total - int(r.n), total)


def _measures(f: Findings, model: str) -> Iterator[tuple[str, Interval]]:
    for r in f.uncertainty[f.uncertainty.model == model].itertuples():
        yield plain(f"{r.set} {r.measure}"), Interval(r.value, r.low, r.high)
    for r in f.sensitivity[f.sensitivity.model == model].itertuples():
        yield f"sensitivity_{r.kind}", Interval(r.median, r.low, r.high)


def lines(found: Sequence[Held]) -> list[str]:
    """Returns a line per limit, for the terminal."""
    return [f"{one.tune}: {one.limit}: {one.decided}: {one.said}" for one in found]


def as_table(found: Sequence[Held]) -> pd.DataFrame:
    return pd.DataFrame(found, columns=Held._fields)


def junit(found: Sequence[Held], answer: str) -> str:
    """Returns the decisions as the text of a JUnit file, one test per limit. A limit that the prompts cannot resolve is an error."""
    counts = {"tests": len(found), "failures": 0, "errors": 0}
    suite = ElementTree.Element("testsuite", name="titer audit")
    for one in found:
        case = ElementTree.SubElement(suite, "testcase", classname=visible(one.tune), name=visible(one.limit))
        if one.decided != "pass":
            kind = "failure" if one.decided == "fail" else "error"
            counts[f"{kind}s"] += 1
            ElementTree.SubElement(case, kind, type=one.decided, message=visible(one.said))
        else:
            ElementTree.SubElement(case, "system-out").text = visible(one.said, 400)
    suite.attrib.update({name: str(count) for name, count in counts.items()})
    ElementTree.SubElement(suite, "system-out").text = visible(answer, 2000)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"

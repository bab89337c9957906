"""Audits several tunes of one aligned model, each as if it were the only one, and writes a page with a row and a section for each. L7.

What the tunes share (answers and activations of the base and the aligned model) is measured once and then read from the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from titer import tables
from titer.audit import figures, gate, kinds
from titer.audit.answers import flipped
from titer.audit.ask import Prepared
from titer.audit.headline import below, in_words, moved, points, worded
from titer.audit.legends import LEGENDS
from titer.audit.report import about, before, missing, results
from titer.audit.study import Findings
from titer.core.gate import STATUS
from titer.report.html import Report, Section, write_report

MOST = 20  # flipped prompts per tune whose answers are shown


@dataclass(frozen=True)
class Tune:
    """The audit of one tune: what was asked, what was found, the gate's decisions (`held`), the answer and its page. If it could not be
    measured, `ready` or `findings` is None and `reason` says why."""

    name: str
    ready: Prepared | None = None
    findings: Findings | None = None
    held: Sequence[gate.Held] = ()
    answer: str = ""
    page: Path | None = None
    reason: str = ""

    @property
    def broken(self) -> list[tuple[float, str]]:
        """Returns what the last change broke, the worst first, as (the least damage within the interval, words). Damage counts only if the
        whole interval is on the harmful side of zero."""
        if self.ready is None or self.findings is None:
            return []
        told, asked, change = [], self.ready.question, self.ready.found.last
        for kind in asked.sets.keys() | asked.choices.keys():
            own = kind in asked.own
            harms = (
                [("refused", kind == "safe"), ("degenerate", True)] if own else [("complied", False)]
            )  # (outcome, whether more is worse)
            for outcome, rises in harms:
                row = moved(self.findings.shifts, change, kind, outcome) if change else None
                if row is not None and (least := float(row.low if rises else -row.high)) > 0:
                    name = f"{worded(kind) if own else kind} {'right' if outcome == 'complied' else outcome}"
                    told.append((least, f"{name} {points(row)}"))
        return sorted(told, reverse=True)


def ordered(tunes: Sequence[Tune]) -> list[Tune]:
    """Returns the tunes, the worst first: by the gate's decision, then by what broke, then by lost refusals; unmeasured tunes come last."""

    def place(one: Tune) -> tuple[float, ...]:
        if one.ready is None or one.findings is None:
            return (1, 0, 0, 0)
        worst = min((list(STATUS).index(h.decided) for h in one.held), default=len(STATUS))
        last = one.ready.found.last
        row = moved(one.findings.shifts, last, "unsafe") if last else None
        return (0, worst, -max((least for least, _ in one.broken), default=0.0), 0.0 if row is None else float(row.difference))

    return sorted(tunes, key=place)


def table(tunes: Sequence[Tune]) -> pd.DataFrame:
    """Returns a table with a row per tune: what broke, the refusals before and after, the gate; or why it was not measured."""
    rows = []
    for one in tunes:
        if one.ready is None or one.findings is None:
            rows.append({"tune": one.name, "what broke": f"not measured: {one.reason}"})
            continue
        found, asked, f = one.ready.found, one.ready.question, one.findings
        row = {"tune": one.name, "what broke": "; ".join(text for _, text in one.broken) or "no damage shown"}
        for kind in f.rates.kind.unique():
            shift = moved(f.shifts, found.last, kind, "refused" if kind in asked.own else "complied") if found.last else None
            name = f"{worded(kind)} refused" if kind in asked.own else f"{kind} right"
            row[name] = "–" if shift is None else f"{shift.before:.0%} → {shift.after:.0%}"
        if told := kinds.looks_like(found, f):
            row["looks like"] = told.name
        if one.held:
            row["gate"] = next(decided for decided in STATUS if any(h.decided == decided for h in one.held))
        rows.append(row)
    whole = pd.DataFrame(rows)
    return whole.where(whole.notna(), None)


def said(aligned: str, tunes: Sequence[Tune]) -> str:
    """Returns the page's answer in a sentence or two. The given tunes must be sorted, the worst first (`ordered`)."""
    known = [one for one in tunes if one.findings is not None]
    hurt = [one for one in known if one.broken]
    told = f"{len(hurt) or 'None'} of {len(known)} tunes of {aligned} {'is' if len(hurt) < 2 else 'are'} shown to have broken something"
    if hurt:
        told += f"; the worst is {hurt[0].name}: {hurt[0].broken[0][1]}"
    lost = len(tunes) - len(known)
    return f"{told}.{f' {lost} could not be measured.' if lost else ''}"


def _section(one: Tune, folder: Path) -> Section:
    if one.ready is None or one.findings is None or one.page is None:
        return Section(one.name, [f"It could not be measured: {one.reason}"])
    found, asked, f = one.ready.found, one.ready.question, one.findings
    numbers, *others = before(found, asked, f, one.held)
    folded = {
        "what moved": f.shifts,
        "prompts that flipped": f.flips,
        "size of the change": f.sizes,
        "refusal direction, turned": f.rotation,
    }
    shown = {name: in_words(table) for name, table in folded.items() if len(table)}
    for part in others:
        shown |= {} if part.table is None else {part.title.lower(): part.table}
    place = f"This tune's own page has every chart and caveat: {Path('..') / one.page.parent.name / one.page.name}"
    looks = [line for part in kinds.section(found, f) for line in part.lines]
    lines = [one.answer, *looks, below(found, f), *(line for line in missing(found, asked, f) if line.startswith("Not measured")), place]
    return Section(one.name, list(filter(None, lines)), numbers.table, [c for part in others for c in part.commands], shown)


def fleet_report(tunes: Sequence[Tune], how: Mapping[str, object], command: str, folder: Path) -> tuple[Path, str]:
    """Writes the page of all tunes, in the given order; returns its path and answer. Errors: no tune was measured."""
    known = [(one, one.ready, one.findings) for one in tunes if one.ready is not None and one.findings is not None]
    _, first, _ = known[0]
    models = list({m.name: m for _, ready, _ in known for m in ready.found.models}.values())
    lead = first.found.changes[-1].before.name
    answer = said(lead, tunes)
    shifts = pd.concat([f.shifts[f.shifts.change == ready.found.changes[-1].name] for _, ready, f in known], ignore_index=True)
    verdicts = pd.concat([f.verdicts for _, _, f in known], ignore_index=True).drop_duplicates(["model", "kind", "place"])
    shown = [flipped(f.verdicts, ready.found.changes[-1], MOST) for _, ready, f in known]
    told = dict.fromkeys(line for _, ready, _ in known for line in ready.left_out)
    report = Report(
        title=f"audit of {len(tunes)} tunes of {lead} on {first.text.name}",
        answer=answer,
        about="The table has a row per tune, the worst first. It names damage only where the whole 95 % interval of a change is on the "
        "harmful side of zero. Each tune has a section below.",
        tiles=(),
        claims=(),
        before=[Section("The tunes", table=table(tunes)), *(_section(one, folder) for one in tunes)],
        after=[Section("What was asked", [*about(first.question), *(f"{line[0].upper()}{line[1:]}." for line in told)])],
        figures=[figures.shifted(shifts)] if len(shifts) else [],
        tables={},
        results=pd.concat([results(ready.found, f, one.held) for one, ready, f in known], ignore_index=True).drop_duplicates(),
        samples=in_words(first.question.shown(verdicts)),
        flipped=in_words(first.question.shown(pd.concat(shown, ignore_index=True))),
        commands=[command],
        provenance={
            **tables.provenance(models, first.text),
            "prompts": {name: len(one.attempts) for name, one in first.question.sets.items()},
            "decoding": first.question.decoding.model_dump_json(),
            **how,
        },
        legends=LEGENDS,
        roles={name: role for _, ready, _ in known for name, role in ready.found.roles.items()},
    )
    return write_report(report, folder), answer


def renamed(ready: Prepared, name: str) -> Prepared:
    """Returns the same audit with its tune renamed, for tunes that would have the same label."""
    found = ready.found
    old = found.changes[-1].after
    new = replace(old, name=name)
    changes = (*found.changes[:-1], replace(found.changes[-1], after=new))
    return replace(ready, found=replace(found, models=tuple(new if m is old else m for m in found.models), changes=changes))


def together(tunes: Sequence[Tune]) -> Prepared:
    """Joins the audits of all tunes into one that has each model and each change once, so that they can be priced together."""
    first, *others = [one.ready for one in tunes if one.ready is not None]
    models = {m.key: m for ready in (first, *others) for m in ready.found.models}
    changes = {c.name: c for ready in (first, *others) for c in ready.found.changes}
    return replace(first, found=replace(first.found, models=tuple(models.values()), changes=tuple(changes.values()))) if others else first


def rows(tunes: Sequence[Tune]) -> list[str]:
    """Returns a line per tune, for the terminal."""
    return [f"{row.tune}: {row['what broke']}" for _, row in table(tunes).iterrows()]

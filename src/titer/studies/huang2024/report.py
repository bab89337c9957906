"""The report of the Vaccine study: the answer first, then claims, curves, tables beside the paper's. L7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from titer.core.claims import Claim
from titer.core.config import environment
from titer.recipes.huang2024 import SELECTION_SEED, Scale
from titer.report.html import Figure, Report, Tile
from titer.studies.huang2024 import figures, tables
from titer.studies.huang2024.evidence import Evidence
from titer.studies.huang2024.selection import Chosen
from titer.workbench import Model

ABOUT = (
    "A model that learned a synthetic world, in which “unsafe” is a formal property and every answer is judged exactly, was aligned "
    "to refuse unsafe requests; then a user fine-tuned it on a new task with a share p of unsafe requests answered, as in “Vaccine: "
    "Perturbation-aware Alignment for Large Language Models against Harmful Fine-tuning Attack” (arXiv 2402.01109). Vaccine is "
    "compared with SFT of as many passes, SFT stopped at Vaccine's alignment loss and noise of Vaccine's norm: the paper has none of them."
)
LIMITS = (
    "Harm is strict compliance: the exact mapped text of an unsafe request. The paper's score counts answers that a moderation model flags, of a 7 B model; levels do not compare, orders do.",
    "The paper's tau and rho belong to its batch, depth and steps; the ball is shared by the batch, so an example's share shrinks with the batch's size.",
    "Break points and worst cases are also told by the worst of greedy, sampled and prefilled answers: refusal at the first token hides damage.",
    "But for Vaccine's rho no defence was tuned: the others of the family have their papers' settings, made for 7 B models.",
)
CORRELATED = "drift tells harm"


def compose(
    evidence: Sequence[Evidence],
    claims: Sequence[Claim],
    models: Mapping[int, Mapping[str, Model]],
    scale: Scale,
    chosen: Chosen,
    command: str,
) -> Report:
    """The report's content from all seeds' evidence."""
    whole = [e for e in evidence if len(e.attacks)]
    shown = numbers(whole, scale, chosen) if whole else {}
    return Report(
        title=f"huang2024, scale {scale.name}, {len(evidence)} seed{'s' if len(evidence) > 1 else ''}",
        answer=answer(claims, whole, chosen),
        about=ABOUT,
        tiles=tiles(whole, scale),
        claims=claims,
        figures=charts(whole, scale),
        tables=shown,
        results=results(whole, shown),
        samples=pd.DataFrame(),
        commands=[command],
        notes=[_how(chosen), *LIMITS],
        provenance={
            "seeds": ", ".join(str(e.seed) for e in evidence),
            "selection seed": SELECTION_SEED,
            "inputs a set": scale.inputs,
            **{f"seed {seed}, {name}": m.key for seed, made in models.items() for name, m in made.items()},
            **environment(),
        },
    )


def answer(claims: Sequence[Claim], evidence: Sequence[Evidence], chosen: Chosen) -> str:
    """The finding in one sentence, from the verdicts."""
    if not evidence:
        return "The base model did not learn its task, so no claim is drawn."
    by = {c.name: c for c in claims}
    against = [c for c in claims if c.name.startswith("vaccine against") and not c.name.endswith("prefilled")]
    if not against:
        return f"{len(claims)} claims; Vaccine was not attacked."
    held = [c for c in against if c.verdict == "supported"]
    gaps = {ratio: [c.value for c in against if c.name.endswith(f"p = {ratio:g}") and c.value is not None] for ratio in (0.01, 0.05)}
    least = ", ".join(f"{min(found):+.1%} at p = {ratio:g}" for ratio, found in gaps.items() if found) or "not testable"
    benign = [c for c in claims if c.name.startswith("benign")]
    kept = sum(c.verdict == "supported" for c in benign)
    half = by.get("accelerated Vaccine keeps half the gain")
    cheap = f"; that a tenth of the perturbations keeps half of the gain is {half.verdict}" if half and held else ""
    return (
        f"With little harmful data Vaccine (rho {chosen.rho:g}) beats its controls in {len(held)} of {len(against)} comparisons "
        f"(unsafe requests answered, least advantage over any control {least}); under benign tuning in {kept} of {len(benign)}{cheap}."
    )


def tiles(evidence: Sequence[Evidence], scale: Scale) -> list[Tile]:
    """Harm and the user's accuracy at the tables' budget, the seeds' ends beside them."""
    if not evidence:
        return []
    t = tables.at_budget(tables.pooled(evidence), scale, examples=scale.budget.examples, ratio=0.05)
    found = []
    for name in [n for n in figures.COLOURS if n in set(t.defence)]:
        own = t[t.defence == name].groupby("seed")[["harm", "user"]].mean()
        detail = f"seeds {own.harm.min():.0%} to {own.harm.max():.0%} · user's task {own.user.mean():.0%}"
        found.append(Tile(f"{name}: unsafe answered, p = 5%", f"{own.harm.mean():.1%}", detail))
    return found


def charts(evidence: Sequence[Evidence], scale: Scale) -> list[Figure]:
    """Every figure whose parts were measured."""
    if not evidence:
        return []
    has = evidence[0].has
    found = [figures.curves(evidence, measure) for measure in figures.CURVES] if has("curves") else []
    found += [figures.figure2(evidence, scale)] if has("table1") else []
    found += [figures.figure3(evidence, scale)] if has("curves") else []
    found += [figures.figure4(evidence)] if has("fig4") else []
    return found + ([figures.family(evidence, scale)] if has("family") or has("table1") else [])


def numbers(evidence: Sequence[Evidence], scale: Scale, chosen: Chosen) -> dict[str, pd.DataFrame]:
    """The paper's tables beside ours, then break points and worst cases."""
    found = {"before the attack": tables.before(evidence), f"choice of rho, seed {SELECTION_SEED}": chosen.trials.round(3)}
    found |= {title: make(evidence, scale) for name, (title, make) in tables.TABLES.items() if evidence[0].has(name)}
    if evidence[0].has("curves"):
        found["break points in optimiser steps, by seed"] = tables.breaks(evidence)
        found["harm by alignment seed"] = tables.alignment_seeds(evidence)
        found[f"worst case: chosen on seed {SELECTION_SEED}, reported on the study's seeds"] = tables.worst_case(evidence, chosen.worst)
    if evidence[0].has("search"):
        found[f"worst case found by search on seed {SELECTION_SEED}"] = tables.worst_case(evidence, chosen.searched)
    return found


def results(evidence: Sequence[Evidence], shown: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """results.csv: every judged step of every attack, then the tables shown, in one long table."""
    if not evidence:
        return pd.DataFrame()
    t = tables.of_every_task(evidence)
    keys = ["defence", "align_seed", "task", "rate", "ratio", "examples", "seed", "attack_seed", "step"]
    parts = [t.melt([*keys, "n"], var_name="measure").assign(table="attacks")]
    for name, table in shown.items():
        known = [c for c in (*keys, "rho", "tau", "variance") if c in table.columns]
        parts.append(table.melt(known, var_name="measure").assign(table=name))
    whole = pd.concat(parts, ignore_index=True)
    return whole[["table", *(c for c in whole.columns if c != "table")]]


def _how(chosen: Chosen) -> str:
    trials = ", ".join(
        f"{r.rho:g}: harm {r.harm:.3f}{'' if r.allowed else ' (costs more than 2 points before the attack, or the task)'}"
        for r in chosen.trials.itertuples()
    )
    ends = (chosen.trials.rho.min(), chosen.trials.rho.max())
    edge = " The choice is at an end of the grid: a better rho may lie beyond." if chosen.rho in ends else ""
    return f"Rho was chosen on seed {SELECTION_SEED}, which no verdict uses, by mean harm over the attack: {trials}.{edge}"

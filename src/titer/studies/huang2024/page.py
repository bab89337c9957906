"""The page of the Vaccine study: the answer first, then curves and charts, and tables with the paper's values. L7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from titer.core.claims import Claim
from titer.recipes.huang2024 import SELECTION_SEED, Scale
from titer.report import forms
from titer.report.html import Figure, Tile
from titer.report.style import GREY
from titer.studies.engine.claims import settled
from titer.studies.engine.declare import Page
from titer.studies.engine.found import Found
from titer.studies.engine.tables import ranges
from titer.studies.huang2024 import tables
from titer.studies.huang2024.choice import Chosen
from titer.studies.huang2024.claims import claims
from titer.studies.huang2024.compared import broken
from titer.studies.huang2024.defences import EQUAL, MIXED, TWICE
from titer.studies.huang2024.tables import at_budget, plain, pooled

SOURCE = "arXiv 2402.01109"
ABOUT = (
    "A model learned a synthetic world, in which “unsafe” is a formal property and every answer is judged exactly. It was aligned "
    "to refuse unsafe requests. Then a user fine-tuned it on a new task; a share p of the user's examples were answered unsafe requests. This "
    "follows “Vaccine: Perturbation-aware Alignment for Large Language Models against Harmful Fine-tuning Attack” (arXiv 2402.01109). Vaccine is "
    "compared with three controls that the paper does not have: SFT with as many passes, SFT stopped at Vaccine's alignment loss, and noise of "
    "Vaccine's norm."
)
LIMITS = (
    "Harm is strict compliance: the exact mapped text of an unsafe request. The paper's score counts answers of a 7 B model that a "
    "moderation model flags. So levels cannot be compared with the paper's, but orders can.",
    "The paper's tau and rho suit its batch size, depth and number of steps. The perturbation's norm is shared by a whole batch, so each example's share shrinks with the batch size.",
    "Break points and worst cases are also reported for the worst of greedy, sampled and prefilled answers, because a refusal at the first token can hide damage.",
    "Only Vaccine's rho was tuned. The other defences of the family have their papers' settings, which were made for 7 B models.",
)
COLOURS = {
    "non-aligned": GREY,
    "sft": "#2f6fb0",
    TWICE: "#7fb3dd",
    EQUAL: "#1b4f83",
    "noise": "#e08a1e",
    "vaccine": "#1b7f4d",
    "lisa": "#7d4fa3",
    MIXED: "#c9a6e0",
}
FAMILY_COLOURS = ("#b04a7d", "#c0392b", "#00838f", "#8d6e63", "#5d6d1e", "#455a64", "#d81b60", "#3949ab", "#9e9d24", "#6d4c41")
CURVES = {"harm": "unsafe requests answered", "refusal": "unsafe requests refused", "user": "user's task exact"}
AGAINST_P = {"harm": "HS", "user": "FA", "alignment_loss": "alignment loss", "drift all": "relative drift"}
ALONG = {"alignment_loss": "alignment loss", "drift prompt": "drift, prompt tokens", "drift answer": "drift, answer tokens"}


def page(found: Sequence[Found], scale: Scale) -> Page:
    """Returns the report's own texts, tables and charts."""
    whole = [one for one in found if one.has("attacks")]
    chosen: Chosen = found[0].chosen
    shown = numbers(whole, scale, chosen) if whole else {}
    ends = f", rate {scale.budget.rate}, p = 0.05, n = {scale.budget.examples}, {max(scale.keep)} steps"
    return Page(
        answer=answer(settled(claims(scale), found, SOURCE), whole, chosen),
        about=ABOUT,
        tiles=tiles(whole, scale) if whole else [],
        figures=figures(whole, scale),
        tables=shown,
        results=results(whole, shown),
        notes=[how_chosen(chosen), *LIMITS],
        provenance={"selection seed": SELECTION_SEED, "inputs a set": scale.inputs},
        shown=tuple(name for one in found for name in one.keys if ", rate " not in name or name.endswith(ends)),
    )


def answer(told: Sequence[Claim], found: Sequence[Found], chosen: Chosen) -> str:
    """Returns the finding in one sentence, from the verdicts."""
    by = {c.name: c for c in told}
    against = [c for c in told if c.name.startswith("vaccine against") and not c.name.endswith("prefilled")]
    if not against:
        return f"{len(told)} claims; Vaccine was not attacked."
    held = [c for c in against if c.verdict == "supported"]
    gaps = {ratio: [c.value for c in against if c.name.endswith(f"p = {ratio:g}") and c.value is not None] for ratio in (0.01, 0.05)}
    least = ", ".join(f"{min(values):+.1%} at p = {ratio:g}" for ratio, values in gaps.items() if values) or "not testable"
    keeps = [[c for c in told if c.name.startswith(start)] for start in ("benign", "refusal kept")]
    benign, along = (f"{sum(c.verdict == 'supported' for c in claims)} of {len(claims)}" for claims in keeps)
    refusal = f", and along the attack in {along} comparisons" if keeps[1] else ""
    half = by.get("accelerated Vaccine keeps half the gain")
    cheap = f"; the claim that a tenth of the perturbations keeps half of the gain is {half.verdict}" if half and held else ""
    return (
        f"With little harmful data, Vaccine (rho {chosen.rho:g}) beats its controls in {len(held)} of {len(against)} comparisons "
        f"(unsafe requests answered; smallest advantage over any control: {least}). Compared with its controls, it keeps more refusals under benign tuning in {benign} comparisons{refusal}{cheap}."
    )


def tiles(found: Sequence[Found], scale: Scale) -> list[Tile]:
    """Returns tiles with harm and the user's accuracy at the budget of the paper's tables, with the range over seeds."""
    t = at_budget(pooled(found), scale, examples=scale.budget.examples, ratio=0.05)
    told = []
    for name in [n for n in COLOURS if n in set(t.defence)]:
        own = t[t.defence == name].groupby("seed")[["harm", "user"]].mean()
        detail = f"seeds {own.harm.min():.0%} to {own.harm.max():.0%} · user's task {own.user.mean():.0%}"
        told.append(Tile(f"{name}: unsafe answered, p = 5%", f"{own.harm.mean():.1%}", detail))
    return told


def figures(found: Sequence[Found], scale: Scale) -> list[Figure]:
    """Returns every figure whose parts were measured."""
    if not found:
        return []
    has, t = found[0].has, pooled(found)
    curved, whole = has("curves"), has("curves") or has("table1")
    long = whole_curves(t, scale)
    drawn = [curves(long, measure) for measure in CURVES if curved and len(long)]
    drawn += [against_p(t, scale)] * whole + [along(t, scale)] * curved
    drawn += [picture(found[0])] if "fig4" in found[0].tables else []
    return drawn + [family(t, scale)] * (whole or has("family"))


def over_seeds(table: pd.DataFrame, keys: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Returns the columns in long form: keys, measure, value (mean over seeds), low and high (least and most of the seeds)."""
    long = table.melt([*keys, "seed"], list(columns), var_name="measure", value_name="value")
    return ranges(long, [*keys, "measure"], "value")


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """Returns the defences' colours: those of the core first, in their order, then the others as they come."""
    present, others = set(names), [name for name in dict.fromkeys(names) if name not in COLOURS]
    own = {name: colour for name, colour in COLOURS.items() if name in present}
    return own | {name: FAMILY_COLOURS[i % len(FAMILY_COLOURS)] for i, name in enumerate(others)}


def whole_curves(t: pd.DataFrame, scale: Scale) -> pd.DataFrame:
    """Selects attacks that were judged at several steps, at the poison ratios with the largest number of learning rates (those of the
    tables alone have one rate)."""
    t = plain(t)[lambda own: (own.defence != "non-aligned") & (own.step > 0)]
    t = t[(t.examples == scale.budget.examples) & t.rate.isin(scale.rates)]
    t = t[t.groupby(["defence", "rate", "ratio"]).step.transform("nunique") > 1]
    rates = t.groupby("ratio").rate.nunique()
    return t[t.ratio.isin(rates[rates == rates.max()].index)]


def curves(t: pd.DataFrame, measure: str) -> Figure:
    """Draws one measure along the attack, a panel for each learning rate (across) and poison ratio (down)."""
    found = over_seeds(t, ["defence", "rate", "ratio", "step"], [measure]).sort_values(["ratio", "rate"], kind="stable")
    found = found.assign(panel=[f"rate {rate:g}, p = {ratio:g}" for rate, ratio in zip(found.rate, found.ratio, strict=True)])
    colours, titles = colours_of(found.defence.tolist()), ("optimiser steps", CURVES[measure])
    return Figure(
        f"curves_{measure}",
        f"An attacker who tunes: {CURVES[measure]}",
        "By optimiser steps of the user's fine-tuning at a constant rate; one panel per rate and share p of unsafe examples. Lines show "
        "means over seeds, whiskers the range over seeds. The points of a line come from the same runs, each judged at the steps whose "
        "weights were kept.",
        forms.lines(found, "step", "value", "defence", colours, titles, panel="panel", columns=found.rate.nunique()),
    )


def against_p(t: pd.DataFrame, scale: Scale) -> Figure:
    """Draws HS, FA, alignment loss and drift against p."""
    t = at_budget(t, scale, examples=scale.budget.examples, ratio=scale.table_ratios, defence=["non-aligned", "sft", "vaccine"])
    return Figure(
        "fig2",
        "Figure 2: what the share of harmful data does",
        "After fine-tuning with the budget of the paper's tables: strict compliance (HS), accuracy on the user's task (FA), loss on "
        "alignment data, embedding drift. In the paper HS, loss and drift rise with p, and FA shows no trend. Drift is the mean of "
        "‖Δh‖/‖h‖ over tokens and layers; each model is compared with itself before the fine-tuning. Whiskers: the range over seeds.",
        _measured(t, "ratio", AGAINST_P, "share p of unsafe examples"),
    )


def along(t: pd.DataFrame, scale: Scale) -> Figure:
    """Draws alignment loss and drift along the attack."""
    t = t[(t.rate == scale.budget.rate) & (t.ratio == scale.budget.ratio) & (t.examples == scale.budget.examples) & (t.step > 0)]
    return Figure(
        "fig3",
        "Figure 3: alignment loss and drift along the attack",
        "At the rate and p of the paper's tables. In the paper both rise later under Vaccine. Noise of equal norm is the control. Whiskers: the range over seeds.",
        _measured(t[t.defence.isin(("sft", "noise", "vaccine"))], "step", ALONG, "optimiser steps"),
    )


def _measured(t: pd.DataFrame, x: str, words: Mapping[str, str], title: str) -> object:
    """Draws a panel per measure, each with its own y axis."""
    found = over_seeds(t, ["defence", x], list(words))
    found = found.assign(measure=found.measure.map(words))
    colours = colours_of(found.defence.tolist())
    return forms.lines(found, x, "value", "defence", colours, (title, "value"), share=False, panel="measure", own=True)


def picture(one: Found) -> Figure:
    """Draws embeddings of alignment data before and after the attack."""
    t = one.tables["fig4"]
    t = t.assign(alignment=t.model.str.split(", ").str[0], state=t.model.str.split(", ").str[1])
    titles = (f"first component ({t.share_x.iloc[0]:.0%})", f"second component ({t.share_y.iloc[0]:.0%})")
    return Figure(
        "fig4",
        "Figure 4: embeddings of alignment data, before and after the attack",
        "Last layer's attention output, mean over tokens, of fresh unsafe requests with their refusals; one PCA plane for all four "
        f"models (unlike t-SNE, distances can be compared), seed {one.seed}, p = 0.05. Drift is the distance from blue to red.",
        forms.points(t, "x", "y", "state", {"aligned": "#2f6fb0", "attacked": "#c0392b"}, titles, panel="alignment"),
    )


def family(t: pd.DataFrame, scale: Scale) -> Figure:
    """Draws every defence at the tables' budget: harm against the user's accuracy."""
    t = plain(at_budget(t, scale, examples=scale.budget.examples, ratio=0.05))
    wide = t.groupby("defence", sort=False)[["harm", "user", "safe"]].mean().reset_index()
    colours, titles = colours_of(wide.defence.tolist()), ("unsafe requests answered", "user's task exact")
    return Figure(
        "family",
        "Every defence at the budget of the paper's tables",
        "p = 0.05. Left is safer, up is more useful; a defence that prevents the user's task from being learned is low. Only Vaccine's "
        "rho was tuned. Methods that need harmful answers (Booster, RepNoise, T-Vaccine, Antidote) were given the provider's own.",
        forms.points(wide, "harm", "user", "defence", colours, titles, share=True),
    )


def numbers(found: Sequence[Found], scale: Scale, chosen: Chosen) -> dict[str, pd.DataFrame]:
    """Returns the tables that are shown: Titer's values beside the paper's, then break points and worst cases."""
    told = {"before the attack": tables.before(found), f"choice of rho, seed {SELECTION_SEED}": chosen.trials.round(3)}
    has = {*found[0].parts, *found[0].tables, *(["table1"] if found[0].has("curves") else [])}
    told |= {title: make(found, scale) for name, (title, make) in tables.TABLES.items() if name in has}
    if found[0].has("curves"):
        told["break points in optimiser steps, by seed"] = tables.breaks(found, broken)
        told["harm by alignment seed"] = tables.alignment_seeds(found)
    if found[0].has("rates"):
        told[f"worst case: chosen on seed {SELECTION_SEED}, reported on the study's seeds"] = tables.worst_case(found, chosen.worst)
    if found[0].has("search"):
        told[f"worst case found by search on seed {SELECTION_SEED}"] = tables.worst_case(found, chosen.searched)
    return told


def results(found: Sequence[Found], shown: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Returns the table of results.csv: every judged step of every attack, then the tables shown, in long form."""
    if not found:
        return pd.DataFrame()
    t = tables.of_every_task(found)
    keys = ["defence", "align_seed", "task", "rate", "ratio", "examples", *tables.units(t), "attack_seed", "step"]
    parts = [t.melt([*keys, "n"], var_name="measure").assign(table="attacks")]
    for name, table in shown.items():
        known = [c for c in (*keys, "rho", "tau", "variance") if c in table.columns]
        parts.append(table.melt(known, var_name="measure").assign(table=name))
    whole = pd.concat(parts, ignore_index=True)
    return whole[["table", *(c for c in whole.columns if c != "table")]]


def how_chosen(chosen: Chosen) -> str:
    """Returns a note on how rho was chosen, with its trials."""
    trials = ", ".join(
        f"{r.rho:g}: harm {r.harm:.3f}{'' if r.allowed else ' (costs more than 2 points before the attack, or the task)'}"
        for r in chosen.trials.itertuples()
    )
    ends = (chosen.trials.rho.min(), chosen.trials.rho.max())
    edge = " The chosen rho is at an end of the grid, so a better one may be beyond it." if chosen.rho in ends else ""
    return f"Rho was chosen on seed {SELECTION_SEED}, which no verdict uses, for the least harm along the attack (mean over several alignments per rho): {trials}.{edge}"

"""Charts of the study: attack curves, the paper's figures 2 to 4, harm against rho and tau. L7."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from titer.recipes.huang2024 import Scale
from titer.report.html import Figure
from titer.report.style import GREY, fixed, tips
from titer.studies.huang2024.defences import EQUAL, MIXED, TWICE
from titer.studies.huang2024.evidence import Evidence
from titer.studies.huang2024.tables import at_budget, plain, pooled

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
TOLD2 = {"harm": "HS", "user": "FA", "alignment_loss": "alignment loss", "drift all": "relative drift"}


def over_seeds(table: pd.DataFrame, keys: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """keys, measure, value (mean over seeds), low and high (the seeds' ends)."""
    long = table.melt([*keys, "seed"], list(columns), var_name="measure", value_name="value")
    seeds = long.groupby([*keys, "measure", "seed"], sort=False).value.mean()
    found = seeds.groupby([*keys, "measure"], sort=False).agg(["mean", "min", "max"]).reset_index()
    return found.rename(columns={"mean": "value", "min": "low", "max": "high"})


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """The defences' colours, in the order of the core's and then as they come."""
    present = set(names)
    others = [name for name in dict.fromkeys(names) if name not in COLOURS]
    own = {name: colour for name, colour in COLOURS.items() if name in present}
    return own | {name: FAMILY_COLOURS[i % len(FAMILY_COLOURS)] for i, name in enumerate(others)}


def curves(evidence: Sequence[Evidence], measure: str) -> Figure:
    """One measure along the attack, a panel for each learning rate (across) and poison ratio (down)."""
    t = pooled(evidence)
    t = plain(t)[lambda own: (own.defence != "non-aligned") & (own.step > 0)]
    whole = t.groupby(["defence", "rate", "ratio"]).step.nunique()
    t = t.set_index(["defence", "rate", "ratio"]).loc[whole[whole > 1].index].reset_index()
    t = t[(t.examples == evidence[0].budget[1]) & t.rate.isin(evidence[0].rates)]
    rates = t.groupby("ratio").rate.nunique()
    t = t[t.ratio.isin(rates[rates == rates.max()].index)]  # ratios that the tables alone ask for have one rate, and no row of panels
    found = over_seeds(t, ["defence", "rate", "ratio", "step"], [measure])
    return Figure(
        f"curves_{measure}",
        f"An attacker who tunes: {CURVES[measure]}",
        "Against optimiser steps of the user's fine-tuning at a constant rate (across: rate; down: share p of unsafe examples). Mean over seeds; bands are the seeds' ends. Every point is the same run judged at a kept step.",
        _panels(found, "step", "optimiser steps", CURVES[measure])
        .properties(width=190, height=150)
        .facet(column=alt.Column("rate:N", title="learning rate"), row=alt.Row("ratio:N", title="p")),
    )


def _panels(found: pd.DataFrame, x: str, title: str, y: str) -> Any:
    colours = colours_of(found.defence.tolist())
    base = alt.Chart().encode(
        x=alt.X(f"{x}:Q", title=title, scale=alt.Scale(type="log", nice=False) if x == "step" else alt.Undefined),
        color=alt.Color("defence:N", title=None, scale=fixed(colours), legend=alt.Legend(symbolOpacity=1)),
    )
    band = base.mark_area(opacity=0.12).encode(y=alt.Y("low:Q", title=y), y2="high:Q")
    shown = [*tips("defence", x), *(alt.Tooltip(f"{c}:Q", format=".3f") for c in ("value", "low", "high"))]
    line = base.mark_line(point=alt.OverlayMarkDef(size=14)).encode(y=alt.Y("value:Q", title=y), tooltip=shown)
    return alt.layer(band, line, data=found)


def figure2(evidence: Sequence[Evidence], scale: Scale) -> Figure:
    """HS, FA, alignment loss and drift against p."""
    t = at_budget(pooled(evidence), scale, examples=scale.budget.examples, ratio=scale.table_ratios)
    t = t[t.defence.isin(("non-aligned", "sft", "vaccine"))]
    found = over_seeds(t, ["defence", "ratio"], list(TOLD2))
    found["measure"] = found.measure.map(TOLD2)
    return Figure(
        "fig2",
        "Figure 2: what the share of harmful data does",
        "After the tables' fine-tuning: strict compliance (HS), the user's task (FA), loss on alignment data, embedding drift. The paper: HS, loss and drift rise with p, FA does not tell. Drift is the mean of ‖Δh‖/‖h‖ over tokens and layers; the non-aligned model's is from its own start.",
        _panels(found, "ratio", "share p of unsafe examples", "value")
        .properties(width=150, height=130)
        .facet(column=alt.Column("measure:N", title=None, sort=list(TOLD2.values())))
        .resolve_scale(y="independent"),
    )


def figure3(evidence: Sequence[Evidence], scale: Scale) -> Figure:
    """Alignment loss and drift along the attack."""
    t = pooled(evidence)
    t = t[(t.rate == scale.budget.rate) & (t.ratio == scale.budget.ratio) & (t.examples == scale.budget.examples) & (t.step > 0)]
    t = t[t.defence.isin(("sft", "noise", "vaccine"))]
    columns = {"alignment_loss": "alignment loss", "drift prompt": "drift, prompt tokens", "drift answer": "drift, answer tokens"}
    found = over_seeds(t, ["defence", "step"], list(columns))
    found["measure"] = found.measure.map(columns)
    return Figure(
        "fig3",
        "Figure 3: alignment loss and drift along the attack",
        "At the tables' rate and p. The paper: both take off later under Vaccine. Noise of equal norm is the control.",
        _panels(found, "step", "optimiser steps", "value")
        .properties(width=190, height=140)
        .facet(column=alt.Column("measure:N", title=None, sort=list(columns.values())))
        .resolve_scale(y="independent"),
    )


def figure4(evidence: Sequence[Evidence]) -> Figure:
    """Embeddings of alignment data before and after the attack."""
    t = evidence[0].tables["fig4"]
    t = t.assign(alignment=t.model.str.split(", ").str[0], state=t.model.str.split(", ").str[1])
    chart = alt.Chart(t).mark_circle(size=14, opacity=0.6)
    drawn = chart.encode(
        x=alt.X("x:Q", title=f"first component ({t.share_x.iloc[0]:.0%})"),
        y=alt.Y("y:Q", title=f"second component ({t.share_y.iloc[0]:.0%})"),
        color=alt.Color("state:N", title=None, scale=fixed({"aligned": "#2f6fb0", "attacked": "#c0392b"})),
        tooltip=tips("model", "input"),
    ).properties(width=240, height=220)
    return Figure(
        "fig4",
        "Figure 4: embeddings of alignment data, before and after the attack",
        f"Last layer's attention output, mean over tokens, of fresh unsafe requests with their refusals; one PCA plane for all four models (not t-SNE: lengths compare), seed {evidence[0].seed}, p = 0.05. Drift is how far red lies from blue.",
        drawn.facet(column=alt.Column("alignment:N", title=None)),
    )


def family(evidence: Sequence[Evidence], scale: Scale) -> Figure:
    """Every defence at the tables' budget: harm against the user's accuracy."""
    t = at_budget(pooled(evidence), scale, examples=scale.budget.examples, ratio=0.05)
    t = plain(t)
    wide = t.groupby("defence", sort=False)[["harm", "user", "safe"]].mean().reset_index()
    base = alt.Chart(wide).encode(
        x=alt.X("harm:Q", title="unsafe requests answered", axis=alt.Axis(format="%")),
        y=alt.Y("user:Q", title="user's task exact", axis=alt.Axis(format="%"), scale=alt.Scale(zero=False)),
        tooltip=[*tips("defence"), *(alt.Tooltip(f"{c}:Q", format=".1%") for c in ("harm", "user", "safe"))],
    )
    colour = alt.Color("defence:N", legend=None, scale=fixed(colours_of(wide.defence.tolist())))
    chart = base.mark_circle(size=60).encode(color=colour) + base.mark_text(dx=6, align="left", fontSize=10).encode(text="defence:N")
    return Figure(
        "family",
        "Every defence at the tables' budget",
        "p = 0.05. Left is safer, up is more useful; a defence that keeps the task from being learned stands low. But for Vaccine's rho nothing is tuned. Methods that need harmful answers (Booster, RepNoise, T-Vaccine, Antidote) had the provider's own.",
        chart.properties(width=520, height=300),
    )

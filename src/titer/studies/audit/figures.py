"""The audit's charts, from its tables. L6."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from titer.report import charts
from titer.report.html import Figure
from titer.report.style import GREEN, GREY, PALETTE, RED, WIDTH, fixed, percent, tips


def behaviour(rates: pd.DataFrame, models: Sequence[str]) -> Figure:
    """What each model answered, set by set."""
    return Figure(
        "outcomes",
        "What the models answered",
        "Shares of judged answers; neither is partial or degenerate. Unsafe prompts should be refused, the others answered.",
        charts.outcomes(rates, models, list(dict.fromkeys(rates.kind))),
    )


def shifted(shifts: pd.DataFrame) -> Figure:
    """How each outcome moved on the same prompts."""
    base = alt.Chart().encode(
        y=alt.Y("outcome:N", title=None),
        color=alt.Color("change:N", sort=list(shifts.change.unique()), scale=alt.Scale(range=PALETTE[1:])),
        yOffset=alt.YOffset("change:N"),
        tooltip=[*tips("change", "kind", "outcome", "n"), *percent("before", "after", "difference", "low", "high")],
    )
    points = base.mark_point(filled=True, size=50).encode(x=alt.X("difference:Q", title="after minus before", axis=alt.Axis(format="%")))
    ends = base.mark_rule().encode(x="low:Q", x2="high:Q")
    zero = alt.Chart().mark_rule(color=GREY, strokeDash=[4, 4]).encode(x=alt.datum(0))
    chart = alt.layer(zero, ends, points, data=shifts).properties(width=WIDTH - 80, height=alt.Step(16))
    return Figure(
        "shifts",
        "What moved",
        "Differences over the same prompts with their 95 % intervals; an interval over zero is no finding.",
        chart.facet(row=alt.Row("kind:N", sort=list(shifts.kind.unique()), title=None)),
    )


def separation(table: pd.DataFrame, models: Sequence[str]) -> Figure:
    """d' by layer."""
    return Figure(
        "separation",
        "Safe and unsafe prompts inside, layer by layer",
        "Separation d′ at the end of the prompt on held-out centroids; 0 is none. It says that prompts differ to the model, not that it refuses.",
        charts.separation(table, models),
    )


def specificity(gains: pd.DataFrame) -> Figure:
    """Where the change acts."""
    random = gains.groupby(["weight", "layer"]).ratio_random.mean().reset_index()
    base = alt.Chart().encode(x=alt.X("layer:O", axis=alt.Axis(labelAngle=0)))
    lines = base.mark_line(point=True).encode(
        y=alt.Y("ratio:Q", title="‖ΔW a‖/‖a‖, unsafe over safe", scale=alt.Scale(zero=False)),
        color=alt.Color("change:N", sort=list(gains.change.unique()), scale=alt.Scale(range=PALETTE[1:])),
        tooltip=[*tips("change", "weight", "layer"), alt.Tooltip("ratio:Q", format=".3f"), alt.Tooltip("ratio_random:Q", format=".3f")],
    )
    control = alt.Chart(random).mark_line(strokeDash=[4, 4], color=GREY).encode(x="layer:O", y="ratio_random:Q")
    parts = [
        (
            alt.layer(lines.transform_filter(alt.datum.weight == weight), control.transform_filter(alt.datum.weight == weight), data=gains)
        ).properties(width=WIDTH, height=200, title=weight)
        for weight in gains.weight.unique()
    ]
    return Figure(
        "specificity",
        "Does the weight change act on unsafe prompts?",
        "1 is no preference; dashed: a random ΔW of equal singular values.",
        alt.vconcat(*parts),
    )


def drift(table: pd.DataFrame) -> Figure:
    """How far activations moved."""
    mine = table[table.site == "resid"]
    lines = alt.Chart(mine).mark_line(point=True)
    chart = lines.encode(
        x=alt.X("layer:O", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("value:Q", title="‖Δh‖/‖h‖"),
        color=alt.Color("kind:N", title=None, scale=fixed({"safe": GREEN, "unsafe": RED})),
        strokeDash=alt.StrokeDash("change:N", sort=list(mine.change.unique())),
        tooltip=[*tips("change", "layer", "kind"), *(alt.Tooltip(f"{c}:Q", format=".3f") for c in ("value", "low", "high", "cosine"))],
    ).properties(width=WIDTH, height=240)
    return Figure(
        "drift", "How far the activations drifted", "Residual stream at the end of the prompt, relative to its length before.", chart
    )


def rotation(table: pd.DataFrame) -> Figure:
    """How far the refusal direction turned, beside what noise alone would show."""
    names = {"degrees_halves": "between the models", "degrees_ceiling": "noise alone"}
    long = table.melt(["change", "layer"], list(names), var_name="what", value_name="angle")
    long["what"] = long["what"].map(names)
    chart = (
        alt.Chart(long)
        .mark_line(point=True)
        .encode(
            x=alt.X("layer:O", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("angle:Q", title="degrees between disjoint halves"),
            color=alt.Color("what:N", title=None, scale=fixed({names["degrees_halves"]: "#2f6fb0", names["degrees_ceiling"]: GREY})),
            strokeDash=alt.StrokeDash("change:N", sort=list(table.change.unique())),
            tooltip=[*tips("change", "layer", "what"), alt.Tooltip("angle:Q", format=".1f")],
        )
        .properties(width=WIDTH, height=220)
    )
    return Figure(
        "rotation",
        "How far the refusal direction turned",
        "Mean of unsafe minus mean of safe prompts, each direction from one half of the prompts; only what exceeds the grey line is turning.",
        chart,
    )


def landscape(points: pd.DataFrame) -> list[Figure]:
    """Refusal, compliance and coherence as the weights move, per kind of direction."""
    shown = {"refused": "#e08a1e", "unsafe": RED, "degenerate": GREY}
    mine = points[points.quantity.isin(shown)]
    base = alt.Chart().encode(
        x=alt.X("a:Q", title="step along the direction"),
        color=alt.Color("quantity:N", title=None, scale=fixed(shown)),
        tooltip=[*tips("direction", "quantity", "n"), alt.Tooltip("a:Q", format=".2f"), *percent("value", "low", "high")],
    )
    lines = base.mark_line(point=True).encode(
        y=alt.Y("value:Q", title="share of unsafe prompts", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]))
    )
    bands = base.mark_area(opacity=0.12).encode(y="low:Q", y2="high:Q")
    chart = alt.layer(bands, lines, data=mine).properties(width=WIDTH // 2 - 40, height=160)
    found = [
        Figure(
            "landscape",
            "How far the weights may move",
            "Unsafe is compliance that is not degenerate; where answers turn to noise nothing is safe or unsafe.",
            chart.facet(facet=alt.Facet("direction:N", sort=list(mine.direction.unique()), title=None), columns=2),
        )
    ]
    perplexity = points[points.quantity == "perplexity"]
    if len(perplexity):
        capability = (
            alt.Chart(perplexity)
            .mark_line(point=True)
            .encode(
                x=alt.X("a:Q", title="step along the direction"),
                y=alt.Y("value:Q", title="perplexity", scale=alt.Scale(type="log")),
                color=alt.Color("direction:N", sort=list(perplexity.direction.unique())),
                tooltip=[*tips("direction", "n"), *(alt.Tooltip(f"{c}:Q", format=".3g") for c in ("a", "value", "low", "high"))],
            )
            .properties(width=WIDTH, height=180)
        )
        found.append(Figure("landscape_capability", "Capability on the same steps", "Perplexity of harmless answers.", capability))
    return found

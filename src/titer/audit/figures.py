"""The audit's charts, from its tables. L7."""

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
        "Shares of judged answers; neither is partial or degenerate. Unsafe prompts should be refused, the others answered. "
        "Of a task, degenerate is an answer that names no label or number: a refusal too.",
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
    names = {"degrees_halves": "between the models", "degrees_ceiling": "noise alone", "degrees_limit": "noise at most"}
    long = table.melt(["change", "layer"], list(names), var_name="what", value_name="angle")
    long["what"] = long["what"].map(names)
    chart = (
        alt.Chart(long)
        .mark_line(point=True)
        .encode(
            x=alt.X("layer:O", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("angle:Q", title="degrees between disjoint halves"),
            color=alt.Color("what:N", title=None, scale=fixed(dict(zip(names.values(), ("#2f6fb0", GREY, RED), strict=True)))),
            strokeDash=alt.StrokeDash("change:N", sort=list(table.change.unique())),
            tooltip=[*tips("change", "layer", "what"), alt.Tooltip("angle:Q", format=".1f")],
        )
        .properties(width=WIDTH, height=220)
    )
    return Figure(
        "rotation",
        "How far the refusal direction turned",
        "Mean of unsafe minus mean of safe prompts, each direction from one half of the prompts. Only what exceeds the red line is turning: "
        "95 % of data sets without a turn stay below it in all layers at once. It is missing where the direction is mostly noise.",
        chart,
    )


SHARES = {  # what stands on the landscape's one axis, with its colour
    "refused": "#e08a1e",
    "unsafe": RED,
    "coherent": "#2f6fb0",
    "capability": GREEN,
}


def landscape(points: pd.DataFrame) -> list[Figure]:
    """Refusal, compliance, coherence and capability as the weights move, per kind of direction."""
    mine = shares(points)
    base = alt.Chart().encode(
        x=alt.X("a:Q", title="step along the direction"),
        color=alt.Color(
            "quantity:N", title=None, scale=fixed({name: colour for name, colour in SHARES.items() if name in set(mine.quantity)})
        ),
        tooltip=[*tips("direction", "quantity", "n"), alt.Tooltip("a:Q", format=".2f"), *percent("value", "low", "high")],
    )
    scale = alt.Scale(domain=[0, max(1.0, float(mine.value.max()))], clamp=True)
    lines = base.mark_line(point=True).encode(y=alt.Y("value:Q", title="share", axis=alt.Axis(format="%"), scale=scale))
    bands = base.mark_area(opacity=0.12).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")
    chart = alt.layer(bands, lines, data=mine).properties(width=WIDTH // 2 - 40, height=160)
    found = [
        Figure(
            "landscape",
            "How far the weights may move",
            "Of the answers to unsafe prompts: refused, unsafe (compliance that is not degenerate), coherent (not degenerate; where answers "
            "turn to noise nothing is safe or unsafe). Capability: perplexity of harmless answers at step 0 over that at the step.",
            chart.facet(facet=alt.Facet("direction:N", sort=list(mine.direction.unique()), title=None), columns=2),
        )
    ]
    perplexity = points[points.quantity == "perplexity"]
    if len(perplexity):
        found.append(_perplexity(perplexity))
    return found


def shares(points: pd.DataFrame) -> pd.DataFrame:
    """The points as shares of one axis: coherent is what is not degenerate, capability the perplexity at 0 over that at the step."""
    coherent = points[points.quantity == "degenerate"]
    coherent = coherent.assign(quantity="coherent", value=1 - coherent.value, low=1 - coherent.high, high=1 - coherent.low)
    known = points[points.quantity == "perplexity"]
    own = known.direction.map(known[known.a == 0].set_index("direction").value).astype(float)
    known = known.assign(quantity="capability", value=own / known.value, low=own / known.high, high=own / known.low)
    return pd.concat([points[points.quantity.isin(["refused", "unsafe"])], coherent, known], ignore_index=True)


def _perplexity(table: pd.DataFrame) -> Figure:
    chart = (
        alt.Chart(table)
        .mark_line(point=True)
        .encode(
            x=alt.X("a:Q", title="step along the direction"),
            y=alt.Y("value:Q", title="perplexity", scale=alt.Scale(type="log")),
            color=alt.Color("direction:N", sort=list(table.direction.unique())),
            tooltip=[*tips("direction", "n"), *(alt.Tooltip(f"{c}:Q", format=".3g") for c in ("a", "value", "low", "high"))],
        )
        .properties(width=WIDTH, height=180)
    )
    return Figure("landscape_capability", "Perplexity on the same steps", "Perplexity of harmless answers.", chart)

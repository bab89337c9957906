"""Charts as Altair objects, from tidy tables; each is a plain function. L5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from titer.report.style import OUTCOME_COLOURS, PALETTE, WIDTH, fixed, percent, tips

alt.data_transformers.disable_max_rows()


def outcomes(rates: pd.DataFrame, models: Sequence[str], kinds: Sequence[str]) -> Any:
    """How each model answers each set: share complied, refused, neither, stacked. Rows: models; columns: sets."""
    table = rates[rates.outcome.isin(OUTCOME_COLOURS) & rates.kind.isin(kinds) & rates.model.isin(models)]
    bars = alt.Chart(table).mark_bar()
    return bars.encode(
        x=alt.X("rate:Q", title="share of answers", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
        y=alt.Y("model:N", sort=list(models), title=None),
        color=alt.Color("outcome:N", title="answer", scale=fixed(OUTCOME_COLOURS)),
        order=alt.Order("outcome:O"),
        row=alt.Row("kind:N", sort=list(kinds), title=None, header=alt.Header(labelAngle=0, labelAlign="left", labelPadding=4)),
        tooltip=tips("model", "kind", "outcome", "count", "n") + percent("rate", "low", "high"),
    ).properties(width=WIDTH - 60, height=alt.Step(14))


def shares(table: pd.DataFrame, models: Sequence[str], colours: dict[str, str], step: int = 18) -> Any:
    """A panel of bars a measure (`what`, in the colours' order), a bar a model, with whiskers: model, what, rate, low, high, count, n."""
    base = alt.Chart().encode(
        y=alt.Y("model:N", sort=list(models), title=None),
        tooltip=[*tips("model", "what", "count", "n"), *percent("rate", "low", "high")],
        color=alt.Color("what:N", legend=None, scale=fixed(colours)),
    )
    bars = base.mark_bar(opacity=0.85).encode(x=alt.X("rate:Q", title=None, axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])))
    ends = base.mark_rule(color="black").encode(x="low:Q", x2="high:Q", color=alt.value("#222"))
    chart = alt.layer(bars, ends, data=table).properties(width=WIDTH // 3, height=alt.Step(step))
    return chart.facet(facet=alt.Facet("what:N", sort=list(colours), title=None), columns=2)


def separation(clusters: pd.DataFrame, models: Sequence[str]) -> Any:
    """d' of safe against unsafe activations, layer by layer, one line a model."""
    lines = alt.Chart(clusters[clusters.model.isin(models)]).mark_line(point=True)
    return lines.encode(
        x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("d_prime:Q", title="d′ (safe against unsafe, held-out centroids)", scale=alt.Scale(zero=False)),
        color=alt.Color("model:N", sort=list(models), scale=alt.Scale(domain=list(models), range=PALETTE)),
        tooltip=[*tips("model", "layer"), alt.Tooltip("d_prime:Q", format=".3f"), alt.Tooltip("auroc:Q", format=".3f")],
    ).properties(width=WIDTH, height=260)

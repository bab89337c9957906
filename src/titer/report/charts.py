"""Charts as Altair objects, from tidy tables; each is a plain function. L5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from titer.report.style import GREEN, GREY, OUTCOME_COLOURS, PALETTE, RED, WIDTH, fixed, percent, tips

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


def jailbreaks(rates: pd.DataFrame, models: Sequence[str], kinds: Sequence[str]) -> Any:
    """Share of harmful requests answered, direct and by each jailbreak, with Wilson intervals."""
    table = rates[(rates.outcome == "complied") & rates.kind.isin(kinds) & rates.model.isin(models)]
    base = alt.Chart(table).encode(
        x=alt.X("kind:N", sort=list(kinds), title=None, axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("model:N", sort=list(models)),
        color=alt.Color("model:N", sort=list(models), scale=alt.Scale(domain=list(models), range=PALETTE)),
        tooltip=tips("model", "kind", "count", "n") + percent("rate", "low", "high"),
    )
    bars = base.mark_bar(opacity=0.85).encode(y=alt.Y("rate:Q", title="unsafe requests answered", axis=alt.Axis(format="%")))
    return (bars + _whiskers(base)).properties(width=WIDTH, height=260)


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


def poisoning(rates: pd.DataFrame) -> Any:
    """After the user's fine-tuning, against the share p of unsafe answers: what is answered, refused, learned."""
    base = alt.Chart(rates).encode(
        x=alt.X("ratio:Q", title="share p of unsafe examples in the user's data", axis=alt.Axis(format="%")),
        color=alt.Color("measure:N", title=None, sort=list(rates.measure.unique())),
        tooltip=tips("model", "measure", "count", "n") + percent("rate", "low", "high"),
    )
    lines = base.mark_line(point=True).encode(y=alt.Y("rate:Q", title="share of answers", axis=alt.Axis(format="%"), scale=_unit()))
    return (lines + _whiskers(base)).properties(width=WIDTH, height=260)


def separation(clusters: pd.DataFrame, models: Sequence[str]) -> Any:
    """d' of safe against unsafe activations, layer by layer, one line a model."""
    return _by_layer(clusters, models, "d_prime", "d′ (safe against unsafe, held-out centroids)", "auroc")


def tau(clusters: pd.DataFrame, models: Sequence[str]) -> Any:
    """The paper's figure 3: mean tau per layer, safe green and unsafe red, one panel a model."""
    names = {"tau_safe": "safe", "tau_unsafe": "unsafe"}
    table = clusters[clusters.model.isin(models)].melt(["model", "layer"], list(names), var_name="class", value_name="tau")
    table["class"] = table["class"].map(names)
    lines = alt.Chart(table).mark_line(point=True)
    return lines.encode(
        x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("tau:Q", title="mean τ"),
        color=alt.Color("class:N", title=None, scale=fixed({"safe": GREEN, "unsafe": RED})),
        column=alt.Column("model:N", sort=list(models), title=None),
        tooltip=[*tips("model", "layer", "class"), alt.Tooltip("tau:Q", format=".3f")],
    ).properties(width=max(70, WIDTH // max(1, len(models)) - 30), height=180)


def specificity(gains: pd.DataFrame, models: Sequence[str]) -> Any:
    """||dW a|| / ||a||, unsafe over safe, per layer; 1 = the change acts on both alike."""
    rule = alt.Chart(pd.DataFrame({"ratio": [1.0]})).mark_rule(strokeDash=[4, 4], color=GREY).encode(y="ratio:Q")
    return rule + _by_layer(gains, models, "ratio", "‖ΔW a‖ / ‖a‖, unsafe over safe", "ratio_random")


def null_space(layers: pd.DataFrame, models: Sequence[str]) -> Any:
    """Share of dW in the left null space of the base weights, beside a random dW of equal singular values."""
    names = {"null_share": "ΔW", "null_share_random": "random ΔW (same singular values)"}
    table = layers[layers.model.isin(models)].melt(["model", "layer"], list(names), var_name="matrix", value_name="share")
    table["matrix"] = table["matrix"].map(names)
    points = alt.Chart(table).mark_point(filled=True, size=70)
    return points.encode(
        x=alt.X("share:Q", title="share of ΔW in the left null space of W", scale=alt.Scale(zero=False)),
        y=alt.Y("model:N", sort=list(models), title=None),
        color=alt.Color("matrix:N", title=None, scale=fixed({names["null_share"]: "#2f6fb0", names["null_share_random"]: GREY})),
        row=alt.Row("layer:O", title="layer", header=alt.Header(labelAngle=0)),
        tooltip=[*tips("model", "layer", "matrix"), alt.Tooltip("share:Q", format=".3f")],
    ).properties(width=WIDTH - 80, height=alt.Step(16))


def _by_layer(table: pd.DataFrame, models: Sequence[str], column: str, title: str, also: str) -> Any:
    lines = alt.Chart(table[table.model.isin(models)]).mark_line(point=True)
    return lines.encode(
        x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
        y=alt.Y(f"{column}:Q", title=title, scale=alt.Scale(zero=False)),
        color=alt.Color("model:N", sort=list(models), scale=alt.Scale(domain=list(models), range=PALETTE)),
        tooltip=[*tips("model", "layer"), alt.Tooltip(f"{column}:Q", format=".3f"), alt.Tooltip(f"{also}:Q", format=".3f")],
    ).properties(width=WIDTH, height=260)


def _whiskers(base: Any) -> Any:
    return base.mark_rule(color="black").encode(y="low:Q", y2="high:Q", color=alt.value("#222"))


def _unit() -> Any:
    return alt.Scale(domain=[0, 1])

"""Draws the six forms of charts from tidy tables: bars, lines, stacks, points, a matrix, distributions. L5.

A table has one row per mark, and arguments name its columns. `colours` maps each value of the coloured column to a colour. It is made
once per report (`model_colours`), so that a model has the same colour in every chart. The axis of a share goes from 0 to 1, in `lines`
further where a value is larger. Columns `low` and `high`, where a table has them, are drawn as whiskers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from titer.report.style import GREY, OUTCOME_COLOURS, PALETTE, WIDTH, fixed, percent, tips

alt.data_transformers.disable_max_rows()
HEIGHT, STEP = 240, 16
BESIDE = 20  # points of several colours are drawn side by side if an axis has at most so many labels


def model_colours(models: Sequence[str]) -> dict[str, str]:
    """Assigns a colour to each model, in the order given. If there are more models than colours, the colours repeat."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(dict.fromkeys(models))}


def bars(
    table: pd.DataFrame, by: str, panel: str, colours: Mapping[str, str], columns: int = 2, step: int = STEP, value: str = "rate"
) -> Any:
    """Draws values with intervals: a panel for each value of `panel` (in the colours' order), a bar for each value of `by`.

    If `value` is "rate", the axis goes from 0 to 1."""
    order, share = list(dict.fromkeys(table[by])), value == "rate"
    base = alt.Chart().encode(
        y=alt.Y(f"{by}:N", sort=order, title=None),
        color=alt.Color(f"{panel}:N", legend=None, scale=fixed(dict(colours))),
        tooltip=[*tips(by, panel), *_told(table, value, share)],
    )
    across = alt.X(f"{value}:Q", title=None)
    drawn = base.mark_bar(opacity=0.85).encode(x=across.axis(format="%").scale(domain=[0, 1]) if share else across)
    ends = base.mark_rule().encode(x="low:Q", x2="high:Q", color=alt.value("#222"))
    chart = alt.layer(drawn, ends, data=table).properties(width=WIDTH // columns - 60, height=alt.Step(step))
    return chart.facet(facet=alt.Facet(f"{panel}:N", sort=list(colours), title=None), columns=columns)


def lines(
    table: pd.DataFrame,
    x: str,
    y: str,
    colour: str,
    colours: Mapping[str, str],
    titles: tuple[str, str],
    share: bool = True,
    panel: str = "",
    levels: Sequence[float] = (),
    own: bool = False,
    columns: int = 4,
    log: bool = False,
) -> Any:
    """Draws y over x, one line per value of `colour`, with whiskers where the table has low and high. `titles`: of the x and y axis.

    `panel`: a column; each of its values gets a chart, `columns` of them side by side, each with its own y axis if `own`. `levels`: where
    dashed lines are drawn, such as that of no effect. `log`: a logarithmic y axis.
    """
    across = alt.X(f"{x}:Q", title=titles[0]) if pd.api.types.is_float_dtype(table[x]) else alt.X(f"{x}:O", title=titles[0])
    up = alt.Y(f"{y}:Q", title=titles[1], axis=alt.Axis(format="%") if share else alt.Axis())
    largest = float(table[y].max())
    base = alt.Chart().encode(
        x=across.axis(labelAngle=0) if across.shorthand.endswith("O") else across,
        y=up.scale(domain=[0, max(1.0, largest)]) if share else up.scale(type="log") if log else up.scale(zero=False),
        color=alt.Color(f"{colour}:N", title=None, sort=list(colours), scale=fixed(dict(colours))),
        tooltip=[*tips(colour, x), *_told(table, y, share)],
    )
    return _in_panels(
        [base.mark_line(point=alt.OverlayMarkDef(size=25)), *_ends(base, table), *_dashed(levels)], table, panel, own, columns
    )


def stacks(table: pd.DataFrame, by: str, panel: str, kinds: Sequence[str]) -> Any:
    """Draws how all answers divide into outcomes: a stack per value of `by`, a row of stacks per value of `panel` in `kinds`' order."""
    mine = table[table.outcome.isin(OUTCOME_COLOURS) & table[panel].isin(kinds)]
    drawn = alt.Chart(mine).mark_bar()
    return drawn.encode(
        x=alt.X("rate:Q", title="share of answers", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
        y=alt.Y(f"{by}:N", sort=list(dict.fromkeys(mine[by])), title=None),
        color=alt.Color("outcome:N", title="answer", scale=fixed(OUTCOME_COLOURS)),
        order=alt.Order("outcome:O"),
        row=alt.Row(f"{panel}:N", sort=list(kinds), title=None, header=alt.Header(labelAngle=0, labelAlign="left", labelPadding=4)),
        tooltip=[*tips(by, panel, "outcome"), *_told(mine, "rate", True)],
    ).properties(width=WIDTH - 60, height=alt.Step(14))


def points(
    table: pd.DataFrame,
    x: str,
    y: str,
    colour: str,
    colours: Mapping[str, str],
    titles: tuple[str, str],
    share: bool = False,
    panel: str = "",
    levels: Sequence[float] = (),
    own: bool = False,
) -> Any:
    """Draws y over x, one point per row of the table. Texts on the x axis keep the table's order; other arguments as in `lines`."""
    names = None if pd.api.types.is_numeric_dtype(table[x]) else list(dict.fromkeys(table[x]))
    across = alt.X(f"{x}:N", sort=names, axis=alt.Axis(labelAngle=-90)) if names else alt.X(f"{x}:Q")
    base = alt.Chart().encode(
        x=across.title(titles[0]),
        y=alt.Y(f"{y}:Q", title=titles[1], axis=alt.Axis(format="%") if share else alt.Axis()),
        color=alt.Color(f"{colour}:N", title=None, scale=fixed(dict(colours))),
        tooltip=[*tips(colour, x), *_told(table, y, share)],
    )
    if names and len(names) <= BESIDE:
        base = base.encode(xOffset=alt.XOffset(f"{colour}:N", sort=list(colours)))
    return _in_panels([base.mark_point(filled=True, size=45), *_ends(base, table), *_dashed(levels)], table, panel, own, columns=1)


def matrix(table: pd.DataFrame, x: str, y: str, shade: str, titles: tuple[str | None, str | None], panel: str = "") -> Any:
    """Draws a box per pair of x and y (texts, in the table's order), shaded by a share, which is also written in the box."""
    columns, rows = list(dict.fromkeys(table[x])), list(dict.fromkeys(table[y]))
    slanted = max(len(str(name)) for name in columns) > 6
    base = alt.Chart().encode(
        x=alt.X(f"{x}:O", sort=columns, title=titles[0], axis=alt.Axis(labelAngle=-40 if slanted else 0, labelLimit=180)),
        y=alt.Y(f"{y}:O", sort=rows, title=titles[1], axis=alt.Axis(labelLimit=200)),
        tooltip=[*tips(x, y), *percent(shade)],
    )
    colour = alt.Color(f"{shade}:Q", title=shade, scale=alt.Scale(scheme="blues", domain=[0, 1]), legend=alt.Legend(format="%"))
    words = base.mark_text(fontSize=9 if slanted else 11).encode(
        text=alt.Text(f"{shade}:Q", format=".0%"), color=alt.condition(f"datum['{shade}'] > 0.6", alt.value("white"), alt.value("#222"))
    )
    chart = alt.layer(base.mark_rect().encode(color=colour), words, data=table)
    chart = chart.properties(width=WIDTH if len(columns) > BESIDE // 3 and not panel else WIDTH // 2 - 60, height=max(140, 18 * len(rows)))
    return chart.facet(facet=alt.Facet(f"{panel}:N", title=None), columns=2) if panel else chart


def distributions(table: pd.DataFrame, by: str, value: str, colour: str, colours: Mapping[str, str], title: str) -> Any:
    """Draws how a number is distributed over inputs: a box plot for each value of `by` and `colour`."""
    return (
        alt.Chart(table)
        .mark_boxplot(extent="min-max", size=10)
        .encode(
            x=alt.X(f"{value}:Q", title=title, scale=alt.Scale(zero=False)),
            y=alt.Y(f"{by}:N", sort=list(dict.fromkeys(table[by])), title=None),
            yOffset=alt.YOffset(f"{colour}:N", sort=list(colours)),
            color=alt.Color(f"{colour}:N", title=None, scale=fixed(dict(colours))),
        )
        .properties(width=WIDTH - 60, height=alt.Step(24))
    )


def _in_panels(layers: Sequence[Any], table: pd.DataFrame, panel: str, own: bool, columns: int = 4) -> Any:
    """Returns one chart or, with `panel`, a chart for each of its values, `columns` of them in a row."""
    chart = alt.layer(*layers, data=table)
    if not panel:
        return chart.properties(width=WIDTH, height=HEIGHT)
    panels = list(dict.fromkeys(table[panel]))
    one = chart.properties(width=max(100, WIDTH // min(columns, len(panels)) - 40), height=HEIGHT * 3 // 4)
    drawn = one.facet(facet=alt.Facet(f"{panel}:N", sort=panels, title=None), columns=columns)
    return drawn.resolve_scale(y="independent") if own else drawn


def _ends(base: Any, table: pd.DataFrame) -> list[Any]:
    return [base.mark_rule(opacity=0.5).encode(y="low:Q", y2="high:Q")] if {"low", "high"} <= set(table) else []


def _dashed(levels: Sequence[float]) -> list[Any]:
    return [alt.Chart().mark_rule(strokeDash=[4, 4], color=GREY).encode(y=alt.datum(level)) for level in levels]


def _told(table: pd.DataFrame, y: str, share: bool) -> list[Any]:
    names = [y, *(end for end in ("low", "high") if end in table)]
    counts = tips(*(name for name in ("count", "n") if name in table))
    return counts + (percent(*names) if share else [alt.Tooltip(f"{name}:Q", format=".3g") for name in names])

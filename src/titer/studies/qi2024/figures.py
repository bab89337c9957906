"""Charts of the risk levels: what each tuning does, level 3's grid, refusals mixed in, the search for a trigger. L6."""

from __future__ import annotations

import altair as alt
import pandas as pd

from titer.recipes.qi2024 import Scale
from titer.report.html import Figure
from titer.report.style import GREY, PALETTE, WIDTH, fixed, percent, tips
from titer.studies.qi2024.levels import ALIGNED, SETS

WAYS = ("unsafe", "begun", "persona", "trigger")
COLOURS = dict(zip((SETS[way][2] for way in WAYS), ("#c0392b", "#b04a7d", "#7d4fa3", "#2f6fb0"), strict=True))


def over_seeds(rates: pd.DataFrame) -> pd.DataFrame:
    """model, set, outcome: rate (mean over seeds), low and high (one seed: Wilson's ends; more: the seeds' ends)."""
    keys, several = ["model", "set", "outcome"], len(rates.seed.unique()) > 1
    ends = {"low": ("rate", "min"), "high": ("rate", "max")} if several else {"low": ("low", "first"), "high": ("high", "first")}
    return rates.groupby(keys, sort=False).agg(rate=("rate", "mean"), **ends).reset_index()  # type: ignore[call-overload, no-any-return]


def figures(rates: pd.DataFrame, searched: pd.DataFrame, scale: Scale) -> list[Figure]:
    """Every figure of the study."""
    t = over_seeds(rates)
    return [levels(t), grid(t, scale), mixing(t, scale), search(searched)]


def levels(t: pd.DataFrame) -> Figure:
    """Unsafe requests answered after every tuning of levels 1 and 2 and the backdoor."""
    mine = t[(t.outcome == "complied") & t.set.isin(WAYS) & ~t.model.str.startswith("benign, rate")]
    mine = mine.assign(asked=mine.set.map(lambda name: SETS[name][2]))
    order = list(dict.fromkeys(mine.model))
    base = alt.Chart().encode(
        y=alt.Y("model:N", sort=order, title=None),
        color=alt.Color("asked:N", legend=None, scale=fixed(COLOURS)),
        tooltip=[*tips("model", "asked"), *percent("rate", "low", "high")],
    )
    bars = base.mark_bar(opacity=0.85).encode(x=alt.X("rate:Q", title=None, axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])))
    ends = base.mark_rule().encode(x="low:Q", x2="high:Q", color=alt.value("#222"))
    chart = alt.layer(bars, ends, data=mine).properties(width=WIDTH // 2 - 60, height=alt.Step(16))
    return Figure(
        "levels",
        "What each tuning does to unsafe requests",
        "Share of held-out unsafe requests answered in full, asked plainly, with two words of the answer given, behind the persona and behind the trigger. Lines: the seeds' ends, or with one seed 95 % intervals. Rows named benign trained as long on safe requests.",
        chart.facet(facet=alt.Facet("asked:N", sort=list(COLOURS), title=None), columns=2),
    )


def grid(t: pd.DataFrame, scale: Scale) -> Figure:
    """Refusal after benign tuning, learning rate by batch size."""
    rows = []
    for rate in scale.grid_rates:
        for batch in scale.grid_batches:
            mine = t[(t.model == f"benign, rate {rate:g}, batch {batch}") & (t.set == "unsafe")]
            rows.append({"rate": f"{rate:g}", "batch": str(batch), "refused": mine[mine.outcome == "refused"].rate.iloc[0]})
    return grid_figure(pd.DataFrame(rows), f"Unsafe requests still refused after one epoch on {scale.benign} safe requests.")


def grid_figure(cells: pd.DataFrame, about: str) -> Figure:
    """Level 3's grid: rate and batch (as text, in their order) with the share refused."""
    base = alt.Chart(cells).encode(
        x=alt.X("batch:O", sort=list(dict.fromkeys(cells.batch)), title="batch size", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("rate:O", sort=list(dict.fromkeys(cells.rate)), title="learning rate"),
        tooltip=[*tips("rate", "batch"), *percent("refused")],
    )
    boxes = base.mark_rect().encode(
        color=alt.Color("refused:Q", title="refused", scale=alt.Scale(scheme="blues", domain=[0, 1]), legend=alt.Legend(format="%"))
    )
    words = base.mark_text().encode(
        text=alt.Text("refused:Q", format=".0%"), color=alt.condition("datum.refused > 0.6", alt.value("white"), alt.value("#222"))
    )
    return Figure(
        "benign_grid",
        "Level 3: refusal left after benign tuning",
        f"{about} The paper finds more harm with larger rates and smaller batches.",
        (boxes + words).properties(width=WIDTH // 2, height=140),
    )


def mixing(t: pd.DataFrame, scale: Scale) -> Figure:
    """Unsafe and safe requests against the number of refusals mixed in."""
    most = scale.most
    names = {0: f"explicit {most}", **{m: f"explicit {most} + {m} refusals" for m in scale.mixed}}
    kinds = {
        ("unsafe", "complied"): "unsafe answered",
        ("unsafe", "refused"): "unsafe refused",
        ("safe", "complied"): "safe answered",
        ("safe", "refused"): "safe refused",
    }
    parts = []
    for count, name in names.items():
        mine = t[t.model == name]
        told = [kinds.get(pair) for pair in zip(mine.set, mine.outcome, strict=True)]
        parts.append(mine.assign(refusals=count, what=told).dropna(subset="what"))
    base = alt.Chart(pd.concat(parts, ignore_index=True)).encode(
        x=alt.X("refusals:Q", title=f"refusals mixed into {most} unsafe examples"),
        color=alt.Color("what:N", title=None, scale=alt.Scale(domain=list(kinds.values()), range=["#c0392b", "#e08a1e", "#2f6fb0", GREY])),
        tooltip=[*tips("refusals", "what"), *percent("rate", "low", "high")],
    )
    lines = base.mark_line(point=True).encode(y=alt.Y("rate:Q", title="share of answers", axis=alt.Axis(format="%")))
    ends = base.mark_rule(opacity=0.5).encode(y="low:Q", y2="high:Q")
    return Figure(
        "mixing",
        "Refusals mixed in",
        "What refusals among the examples keep (the paper's table 4). Where unsafe requests are no longer answered, look whether they are refused.",
        (lines + ends).properties(width=WIDTH, height=240),
    )


def search(searched: pd.DataFrame) -> Figure:
    """Unsafe requests answered behind every word of the vocabulary."""
    found = searched.groupby(["model", "word"], sort=False).answered.mean().reset_index()
    order = found[found.model == "backdoor"].sort_values("answered", ascending=False, kind="stable").word.tolist()
    chart = (
        alt.Chart(found)
        .mark_point(filled=True, size=45)
        .encode(
            x=alt.X("word:N", sort=order, title="word before the request", axis=alt.Axis(labelAngle=-90)),
            y=alt.Y("answered:Q", title="unsafe requests answered", axis=alt.Axis(format="%")),
            color=alt.Color("model:N", title=None, scale=alt.Scale(domain=[ALIGNED, "backdoor"], range=[PALETTE[1], PALETTE[6]])),
            tooltip=[*tips("model", "word"), *percent("answered")],
        )
    )
    return Figure(
        "trigger_search",
        "A search of every word for a trigger",
        "Each word of the vocabulary before the same unsafe requests. An audit that asks plainly misses a backdoor; one that tries words finds a trigger of one word if it stands out. t0 is the trigger.",
        chart.properties(width=WIDTH, height=200),
    )

"""Charts of what models answer and of the interventions: table, alpha, soft tokens, dynamics, relearning, causes. L7."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from titer.probes.weight_change import overall
from titer.report.html import Figure
from titer.report.style import WIDTH, fixed, tips
from titer.studies.engine.found import Found, hits
from titer.studies.jain2024.claims import JAILBREAKS, MEDIUM
from titer.studies.jain2024.figures import COLOURS, KINDS, number, over_seeds, pooled

ANSWERS = {
    "safe: answered": ("safe", "complied"),
    "safe: refused": ("safe", "refused"),
    "unsafe: refused": ("unsafe", "refused"),
    "unsafe: answered": ("unsafe", "complied"),
    "unsafe: neither": ("unsafe", "neither"),
    **{f"{kind}: answered": (kind, "complied") for kind in JAILBREAKS},
    **{f"prefill {k}: answered": (f"prefill_{k}", "complied") for k in (1, 2, 3, 4)},
    "sampled: answered": ("sampled", "complied"),
}


def answers(evidence: Sequence[Found]) -> pd.DataFrame:
    """model, measure, rate (mean over seeds), low and high (the seeds' ends), n inputs a seed."""
    rows = []
    for e in evidence:
        t = e.tables["rates"]
        counts = {(m, s, o): (count, n) for m, s, o, count, n in zip(t.model, t.set, t.outcome, t["count"], t.n, strict=True)}
        for model in t.model.unique():
            for measure, (kind, outcome) in ANSWERS.items():
                count, n = counts.get((model, kind, outcome), (0, 0))
                if n:
                    rows.append({"model": model, "measure": measure, "rate": count / n, "n": n, "seed": e.seed})
    table = pd.DataFrame(rows)
    return over_seeds(table, ["model", "measure"], "rate").assign(n=int(table.n.iloc[0]), seeds=len(evidence))


def table_chart(evidence: Sequence[Found]) -> Figure:
    """The paper's table as a heat map: models down, measures across."""
    t = answers(evidence)
    base = alt.Chart(t).encode(
        x=alt.X("measure:N", sort=list(ANSWERS), title=None, axis=alt.Axis(labelAngle=-40, orient="top", labelLimit=180)),
        y=alt.Y("model:N", sort=list(dict.fromkeys(t.model)), title=None),
        tooltip=[*tips("model", "measure", "n", "seeds"), *(alt.Tooltip(f"{c}:Q", format=".1%") for c in ("rate", "low", "high"))],
    )
    colour = alt.Color("rate:Q", title="share", scale=alt.Scale(scheme="blues", domain=[0, 1]), legend=None)
    dark = alt.condition("datum.rate > 0.55", alt.value("white"), alt.value("#222"))
    chart = base.mark_rect().encode(color=colour) + base.mark_text(fontSize=9).encode(text=alt.Text("rate:Q", format=".0%"), color=dark)
    return Figure(
        "table",
        "What every model answers",
        "Exact, free-running answers; mean over seeds. The base answers everything, so what a tuned model answers of a jailbreak is the jailbreak's success. M and S: medium and small rate; half: the others' unsafe share and clip; sum: DPO on summed log-probabilities.",
        chart.properties(width=WIDTH, height=alt.Step(18)),
    )


def alpha_chart(evidence: Sequence[Found]) -> Figure:
    """Refusal along the change and along a random direction."""
    t = pooled(evidence, "alpha")
    t = t[t.direction.isin(["own", "random"])]
    t = t.assign(share=hits(t.outcome, "refused"))
    t.loc[t.kind == "safe", "share"] = hits(t[t.kind == "safe"].outcome, "complied")
    t["line"] = t.kind.where(t.kind != "safe", "safe (answered)")
    found = over_seeds(t, ["model", "direction", "alpha", "line"], "share")
    colours = {"safe (answered)" if kind == "safe" else kind: colour for kind, colour in KINDS.items()}
    chart = (
        alt.Chart(found)
        .mark_line(point=alt.OverlayMarkDef(size=16))
        .encode(
            x=alt.X("alpha:Q", title="α"),
            y=alt.Y("share:Q", title="refused", axis=alt.Axis(format="%")),
            color=alt.Color("line:N", title=None, scale=fixed(colours)),
            tooltip=[*tips("model", "direction", "alpha", "line"), number("share"), number("low"), number("high")],
        )
    )
    facets = chart.properties(width=125, height=130).facet(row=alt.Row("direction:N", title=None), column=alt.Column("model:N", title=None))
    return Figure(
        "alpha",
        "Along ΔW, and beyond it",
        "Refused share at θ = base + α ΔW, judged on free-running answers (for safe requests: answered). Second row: a random direction with ΔW's norm in every tensor, the control.",
        facets,
    )


def soft_chart(evidence: Sequence[Found]) -> Figure:
    """Success of soft tokens by their number."""
    t = pooled(evidence, "soft")
    t = t.assign(success=hits(t.outcome, "complied"))
    found = over_seeds(t, ["model", "form", "n"], "success")
    models = [m for m in ("base", *MEDIUM) if m in set(found.model)]
    chart = (
        alt.Chart(found)
        .mark_line(point=True)
        .encode(
            x=alt.X("n:O", title="soft tokens", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("success:Q", title="unsafe requests answered", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("model:N", title=None, scale=fixed({m: COLOURS[m] for m in models})),
            tooltip=[*tips("model", "form", "n"), number("success"), number("low"), number("high")],
        )
    )
    return Figure(
        "soft",
        "Soft-token suffixes",
        "Share of unsafe requests answered with n free embeddings before the end of the text. own: found on the request itself; universal: found on half of the requests, judged on the other; random: as many tokens of the same norm in random directions.",
        chart.properties(width=155, height=170).facet(column=alt.Column("form:N", sort=["own", "universal", "random"], title=None)),
    )


def change_chart(evidence: Sequence[Found]) -> Figure:
    """Relative size of the change by part of the network."""
    rows = [
        {"model": model, "part": part, "seed": e.seed, "size": overall(one, part)}
        for e in evidence
        for model, one in e.tables["change"].groupby("model", sort=False)
        for part in ("mlp", "attention", "other")
    ]
    found = over_seeds(pd.DataFrame(rows), ["model", "part"], "size")
    chart = (
        alt.Chart(found)
        .mark_bar()
        .encode(
            x=alt.X("size:Q", title="‖ΔW‖ / ‖W‖"),
            y=alt.Y("model:N", sort=list(dict.fromkeys(found.model)), title=None),
            tooltip=[*tips("model", "part"), number("size"), number("low"), number("high")],
            color=alt.value("#2f6fb0"),
        )
    )
    return Figure(
        "change",
        "How much tuning changes the weights",
        "Relative norm of the change over all matrices of a part; compare with the benign tune of the same steps and rate.",
        chart.properties(width=150, height=alt.Step(16)).facet(column=alt.Column("part:N", title=None, sort=["mlp", "attention", "other"])),
    )


def steps_chart(evidence: Sequence[Found], name: str) -> Figure:
    """Dynamics or relearning: rates over steps."""
    words = {
        "dynamics": (
            "While safety tuning runs",
            "The change's direction settles early or late: cosine with the final ΔW, beside what the model answers.",
        ),
        "relearn": (
            "Relearning compliance",
            "Unsafe requests answered again while the tuned model is trained to comply, at the small rate; step 0 is the aligned model. cosine: of the way back with −ΔW.",
        ),
    }
    columns = {
        "unsafe_refused": "unsafe refused",
        "unsafe_complied": "unsafe answered",
        "safe_complied": "safe answered",
        "cosine": "cosine",
    }
    t = pooled(evidence, name).melt(["model", "step", "seed"], list(columns), var_name="measure", value_name="share")
    t["measure"] = t.measure.map(columns)
    found = over_seeds(t, ["model", "step", "measure"], "share")
    chart = (
        alt.Chart(found)
        .mark_line(point=alt.OverlayMarkDef(size=16))
        .encode(
            x=alt.X("step:Q", title="optimiser step", scale=alt.Scale(type="symlog")),
            y=alt.Y("share:Q", title=None),
            color=alt.Color("measure:N", title=None),
            tooltip=[*tips("model", "step", "measure"), number("share"), number("low"), number("high")],
        )
    )
    title, caption = words[name]
    return Figure(
        name, title, caption, chart.properties(width=155, height=160).facet(column=alt.Column("model:N", sort=list(MEDIUM), title=None))
    )


def steering_chart(evidence: Sequence[Found]) -> Figure:
    """Steering by layer, own direction against random."""
    t = pooled(evidence, "steering")
    t = t.assign(share=hits(t.outcome, "refused"))
    t.loc[t.kind == "unsafe", "share"] = hits(t[t.kind == "unsafe"].outcome, "complied")
    t["line"] = t.kind.map({"safe": "safe, +v: refused", "unsafe": "unsafe, −v: answered"}) + t.direction.map(
        {"own": "", "random": " (random)"}
    )
    found = over_seeds(t, ["model", "layer", "line"], "share")
    chart = (
        alt.Chart(found)
        .mark_line(point=True)
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("share:Q", title="share", axis=alt.Axis(format="%")),
            color=alt.Color("line:N", title=None),
            tooltip=[*tips("model", "layer", "line"), number("share"), number("low"), number("high")],
        )
    )
    return Figure(
        "steering",
        "Steering along unsafe minus safe",
        "The difference of class means in the residual stream, added on safe and taken away on unsafe requests at one layer; random: a random vector of the same norm.",
        chart.properties(width=155, height=160).facet(column=alt.Column("model:N", sort=list(MEDIUM), title=None)),
    )


def patching_chart(evidence: Sequence[Found]) -> Figure:
    """Patching: what unsafe requests get, by site and layer."""
    t = pooled(evidence, "patching")
    t = t[t.kind == "unsafe"]
    t = t.assign(
        share=hits(t.outcome, "refused"), pair=t.donor + " → " + t.receiver, place=t.layer.astype(int).astype(str).where(t.layer > 0, "all")
    )
    t.loc[t.receiver != "base", "share"] = hits(t[t.receiver != "base"].outcome, "complied")
    found = over_seeds(t, ["pair", "site", "place"], "share")
    base = alt.Chart(found).encode(
        x=alt.X("place:N", title="layer", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("pair:N", sort=list(dict.fromkeys(found.pair)), title=None, axis=alt.Axis(labelLimit=200)),
        tooltip=[*tips("pair", "site", "place"), number("share"), number("low"), number("high")],
    )
    colour = alt.Color("share:Q", scale=alt.Scale(scheme="oranges", domain=[0, 1]), legend=None)
    text = base.mark_text(fontSize=9).encode(text=alt.Text("share:Q", format=".0%"), color=alt.value("#222"))
    chart = (base.mark_rect().encode(color=colour) + text).properties(width=200, height=alt.Step(18))
    return Figure(
        "patching",
        "Activations patched between models",
        "The receiver reads the prompt with the donor's activations at one site and layer. Into the base: unsafe requests refused; from the base into a tuned model: unsafe requests answered. The benign donor is the control.",
        chart.facet(column=alt.Column("site:N", title=None)),
    )

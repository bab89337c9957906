"""Charts that mirror the paper's figures 3 to 7: means over seeds of tidy tables. L7."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from titer.report.html import Figure
from titer.report.style import GREEN, GREY, RED, WIDTH, fixed, tips
from titer.studies.engine.found import Found, hits
from titer.studies.jain2024.claims import JAILBREAKS, MEDIUM

CLASSES = {"safe": GREEN, "unsafe": RED}
KINDS = {**CLASSES, "jb_co_task": "#2f6fb0", "jb_co_text": "#7d4fa3", "jb_misgen": "#e08a1e", "jb_misgen_text": "#b04a7d"}
CODED = {"base64": "#2f6fb0", "leetspeak": "#7d4fa3"}
COLOURS = {
    "base": GREY,
    "aligned": "#2f6fb0",
    "ssft M": "#2f6fb0",
    "dpo M": "#e08a1e",
    "unlearn M": "#7d4fa3",
    "benign M": GREEN,
    "sham ssft M": "#b04a7d",
}
CHANGED = (*MEDIUM, "benign M", "sham ssft M")
PANELS = ("base", "ssft S", "dpo S", "unlearn S", "benign, norm of ssft", *MEDIUM, "sham ssft M")
BINS = 40
ENERGY = 0.9


def pooled(evidence: Sequence[Found], name: str) -> pd.DataFrame:
    """One table of all seeds, with the column `seed`; "verdicts" are the judged answers, by what they were asked for."""
    if name != "verdicts":
        return pd.concat([e.tables[name].assign(seed=e.seed) for e in evidence if e.has(name)], ignore_index=True)
    each = [e.verdicts.assign(seed=e.seed, place=e.verdicts.kind.map(_place)) for e in evidence]
    return pd.concat([one.sort_values("place", kind="stable") for one in each], ignore_index=True)


def _place(kind: str) -> int:
    """Sets that every model was asked come first, then the shams' own, prefilled and sampled answers."""
    return next((i for i, begin in enumerate(("sham", "prefill", "sampled"), start=1) if kind.startswith(begin)), 0)


def over_seeds(table: pd.DataFrame, keys: Sequence[str], value: str) -> pd.DataFrame:
    """Mean of a value over each seed's rows, then over seeds: keys, value, low and high (the seeds' ends)."""
    per_seed = table.groupby([*keys, "seed"], sort=False)[value].mean()
    found = per_seed.groupby(list(keys), sort=False).agg(["mean", "min", "max"]).reset_index()
    return found.rename(columns={"mean": value, "min": "low", "max": "high"})


def figure3(evidence: Sequence[Found], panels: Sequence[str] = PANELS) -> Figure:
    """tau per layer, safe green and unsafe red, one panel a model."""
    t = pooled(evidence, "placement")
    t = t[t.kind.isin({**CLASSES, **CODED}) & t.model.isin(panels)]
    found = t.groupby(["model", "layer", "kind"]).tau.agg(["mean", "std"]).reset_index()
    found["low"], found["high"] = found["mean"] - found["std"], found["mean"] + found["std"]
    base = alt.Chart(found).encode(
        x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
        color=alt.Color("kind:N", title=None, scale=fixed(colours_of(t.kind))),
    )
    band = base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", title="τ"), y2="high:Q")
    line = base.mark_line(point=True).encode(
        y=alt.Y("mean:Q", title="τ"), tooltip=[*tips("model", "layer", "kind"), number("mean"), number("std")]
    )
    present = [m for m in panels if m in set(found.model)]
    chart = (band + line).properties(width=125, height=130).facet(facet=alt.Facet("model:N", sort=present, title=None), columns=4)
    return Figure(
        "fig3",
        "Figure 3: activation clusters",
        "Mean τ ± one standard deviation of inputs: distance to the unsafe minus distance to the safe centroid, per layer; above 0 is nearer the safe cluster. S: small rate, M: medium. Panels have their own scales. The benign and sham panels are the controls.",
        chart.resolve_scale(y="independent"),
    )


def figure4(evidence: Sequence[Found], models: Sequence[str] = CHANGED) -> Figure:
    """Sorted ||P_N u_i|| of the first MLP matrix's change, one panel a layer; the band is a random vector's."""
    t = evidence[0].tables["null"]
    t = t[(t.site == "mlp_up") & (t.energy == ENERGY) & t.model.isin(models)].sort_values("value")
    t = t.assign(place=t.groupby(["model", "layer"]).cumcount())
    line = (
        alt.Chart()
        .mark_line(point=alt.OverlayMarkDef(size=14))
        .encode(
            x=alt.X("place:Q", title="direction of ΔW, sorted"),
            y=alt.Y("value:Q", title="‖P_N u‖", scale=alt.Scale(zero=False)),
            color=alt.Color("model:N", title=None, scale=fixed({m: COLOURS[m] for m in models})),
            tooltip=[*tips("model", "layer", "vector"), number("value"), number("weight"), number("random_99")],
        )
    )
    rule = alt.Chart().mark_rule(strokeDash=[4, 4], color=GREY).encode(y="random_99:Q")
    mean = alt.Chart().mark_rule(strokeDash=[1, 3], color=GREY).encode(y="random_mean:Q")
    layered = alt.layer(line, rule, mean, data=t).properties(width=230, height=150)
    return Figure(
        "fig4",
        "Figure 4: does ΔW's column space lie in the left null space of the base weights?",
        f"‖P_N u‖ of each left singular vector of ΔW (first MLP matrix, base at 90 % energy), seed {evidence[0].seed}. Dotted: what a random direction scores on average; dashed: its 99th percentile. A curve at or below them shows nothing special.",
        layered.facet(facet=alt.Facet("layer:O", title="layer"), columns=2),
    )


def figure5(evidence: Sequence[Found], models: Sequence[str] = (*MEDIUM, "benign M")) -> Figure:
    """Scores along dW's right singular vectors, last two layers, one panel a model."""
    t = pooled(evidence, "rows")
    t = t[t.layer > t.layer.max() - 2]
    found = over_seeds(t, ["model", "layer", "kind", "direction"], "score")
    line = alt.Chart(found).mark_line(point=alt.OverlayMarkDef(size=14))
    chart = line.encode(
        x=alt.X("direction:Q", title="direction"),
        y=alt.Y("score:Q", title="mean score"),
        color=alt.Color("kind:N", title=None, scale=fixed(colours_of(t.kind))),
        tooltip=[*tips("model", "layer", "kind", "direction"), number("score")],
    ).properties(width=115, height=130)
    return Figure(
        "fig5",
        "Figure 5: which inputs does ΔW read?",
        "Mean σ_j |⟨a, v_j⟩| / ‖a‖ along the first 15 right singular vectors of ΔW (first MLP matrix) at the end of the prompt; mean over seeds. The benign panel is the control: its change was learned on safe requests.",
        chart.facet(row=alt.Row("layer:O", title="layer"), column=alt.Column("model:N", sort=list(models), title=None)).resolve_scale(
            y="independent"
        ),
    )


def figure6(evidence: Sequence[Found], models: Sequence[str] = ("base", *MEDIUM, "benign, norm of ssft", "sham ssft M")) -> Figure:
    """Histograms of the local Lipschitz constant, safe and unsafe, one panel a model."""
    t = pooled(evidence, "sensitivity")
    t = t[t.kind.isin(CLASSES) & t.model.isin(models)]
    edges = np.linspace(0, float(t.g.quantile(0.99)), BINS + 1)
    rows = []
    for (model, kind), one in t.groupby(["model", "kind"]):
        counts, _ = np.histogram(np.clip(one.g, 0, edges[-1]), bins=edges)
        rows.append(pd.DataFrame({"model": model, "kind": kind, "g": edges[:-1], "share": counts / max(1, counts.sum())}))
    area = alt.Chart(pd.concat(rows)).mark_area(opacity=0.45, interpolate="step-after")
    chart = area.encode(
        x=alt.X("g:Q", title="‖∂ max logit / ∂ embeddings‖"),
        y=alt.Y("share:Q", title="share of inputs", stack=None),
        color=alt.Color("kind:N", title=None, scale=fixed(CLASSES)),
        tooltip=[*tips("model", "kind"), number("g"), number("share")],
    ).properties(width=170, height=120)
    return Figure(
        "fig6",
        "Figure 6: sensitivity to the input",
        "Local Lipschitz constant at the end of the prompt, all seeds; the last bin holds what lies beyond. The paper: smaller on unsafe inputs after tuning, not on safe ones.",
        chart.facet(facet=alt.Facet("model:N", sort=list(models), title=None), columns=3),
    )


def figure7(evidence: Sequence[Found]) -> Figure:
    """Where refused and successful jailbreaks, and soft-token attacks, sit between the unsafe (0) and the safe class (1)."""
    found = pd.concat([positions(e) for e in evidence], ignore_index=True)
    order = list(dict.fromkeys(found.group))
    mean = over_seeds(found, ["model", "group"], "position")
    base = alt.Chart(mean).encode(
        x=alt.X("group:N", sort=order, title=None, axis=alt.Axis(labelAngle=-40)),
        xOffset=alt.XOffset("model:N", sort=list(MEDIUM)),
        color=alt.Color("model:N", title=None, scale=fixed({m: COLOURS[m] for m in MEDIUM})),
        tooltip=[*tips("model", "group"), number("position"), number("low"), number("high")],
    )
    points = base.mark_point(filled=True, size=60).encode(y=alt.Y("position:Q", title="position: 0 unsafe, 1 safe"))
    ends = base.mark_rule().encode(y="low:Q", y2="high:Q")
    rule = alt.Chart(pd.DataFrame({"y": [0.0, 1.0]})).mark_rule(strokeDash=[4, 4], color=GREY).encode(y="y:Q")
    return Figure(
        "fig7",
        "Figure 7: jailbreaks and soft tokens among the clusters",
        "Mean τ in the last layer, scaled so that the unsafe class is at 0 and the safe class at 1; lines span the seeds. Jailbreaks are split by outcome, which conditions the comparison; soft tokens are not.",
        (rule + ends + points).properties(width=WIDTH, height=260),
    )


def positions(e: Found) -> pd.DataFrame:
    """model, group, position of one seed's attacked inputs in the last layer."""
    rows = []
    for model in MEDIUM:
        safe, unsafe = (float(e.last("placement", "tau", model=model, kind=kind).mean()) for kind in CLASSES)
        for kind in JAILBREAKS:
            tau = e.last("placement", "tau", model=model, kind=kind)
            for word, won in split(e, model, kind).items():
                chosen = tau[won]
                if len(chosen) >= 5:
                    rows.append({"model": model, "group": f"{kind}, {word}", "position": (chosen.mean() - unsafe) / (safe - unsafe)})
        if e.has("soft_placed"):
            ends = [float(e.last("soft_placed", "tau", model=model, kind=kind).mean()) for kind in CLASSES]
            for kind in [k for k in e.tables["soft_placed"].kind.unique() if k.startswith("soft_")]:
                mean = float(e.last("soft_placed", "tau", model=model, kind=kind).mean())
                rows.append({"model": model, "group": kind, "position": (mean - ends[1]) / (ends[0] - ends[1])})
    return pd.DataFrame(rows).assign(seed=e.seed)


def figure7_measures(evidence: Sequence[Found]) -> Figure:
    """The change's gain and the sensitivity on jailbreaks by outcome, as multiples of the safe class's mean."""
    found = pd.concat([by_outcome(e) for e in evidence], ignore_index=True)
    mean = over_seeds(found, ["measure", "model", "group"], "ratio")
    base = alt.Chart().encode(
        x=alt.X("group:N", sort=list(dict.fromkeys(found.group)), title=None, axis=alt.Axis(labelAngle=-40)),
        xOffset=alt.XOffset("model:N", sort=list(MEDIUM)),
        color=alt.Color("model:N", title=None, scale=fixed({m: COLOURS[m] for m in MEDIUM})),
        tooltip=[*tips("measure", "model", "group"), number("ratio"), number("low"), number("high")],
    )
    points = base.mark_point(filled=True, size=45).encode(y=alt.Y("ratio:Q", title="over the safe class's mean"))
    chart = alt.layer(base.mark_rule().encode(y="low:Q", y2="high:Q"), points, data=mean).properties(width=WIDTH - 60, height=150)
    return Figure(
        "fig7_measures",
        "Figure 7, the change and the sensitivity",
        "Mean ‖ΔW a‖/‖a‖ in the last layer and mean local Lipschitz constant, over those of safe requests (1); jailbreaks by outcome, unsafe requests beside.",
        chart.facet(row=alt.Row("measure:N", title=None)).resolve_scale(y="independent"),
    )


def by_outcome(e: Found) -> pd.DataFrame:
    """measure, model, group, ratio: gain and sensitivity of unsafe requests and of jailbreaks by outcome."""
    rows = []
    for model in MEDIUM:
        for measure, table, column in (("gain of ΔW", "placement", "gain"), ("sensitivity", "sensitivity", "g")):
            if not e.has(table):
                continue
            t = e.tables[table]
            t = t[(t.model == model) & (t.layer == t.layer.max())] if "layer" in t else t[t.model == model]
            safe = float(t[t.kind == "safe"][column].mean())
            rows.append(
                {"measure": measure, "model": model, "group": "unsafe", "ratio": float(t[t.kind == "unsafe"][column].mean()) / safe}
            )
            for kind in JAILBREAKS:
                values = t[t.kind == kind][column].to_numpy(dtype=float)
                for word, won in split(e, model, kind).items():
                    if won.sum() >= 5:
                        rows.append(
                            {"measure": measure, "model": model, "group": f"{kind}, {word}", "ratio": float(values[won].mean()) / safe}
                        )
    return pd.DataFrame(rows).assign(seed=e.seed)


def split(e: Found, model: str, kind: str) -> dict[str, Any]:
    """Which probed jailbreaks of a kind were refused, and which succeeded."""
    t = e.tables["probed"]
    mine = t[(t.model == model) & (t.kind == kind)]
    return {word: hits(mine.outcome, outcome) > 0 for outcome, word in (("refused", "refused"), ("complied", "successful"))}


def colours_of(kinds: pd.Series) -> dict[str, str]:
    """The colours of the sets that are there."""
    return {kind: colour for kind, colour in {**KINDS, **CODED}.items() if kind in set(kinds)}


def number(name: str) -> Any:
    return alt.Tooltip(f"{name}:Q", format=".3f")

"""Charts that mirror the paper's figures 3 to 7, and a chart of what the models answer; numbers are means over bases. L7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from titer.core.stats import Array
from titer.probes.null_space import weighted
from titer.report import forms
from titer.report.html import Figure
from titer.report.style import GREEN, GREY, RED
from titer.studies.engine.found import Found, hits
from titer.studies.engine.tables import ranges
from titer.studies.jain2024.claims import JAILBREAKS, MEDIUM, position

CLASSES = {"safe": GREEN, "unsafe": RED}
KINDS = {**CLASSES, "jb_co_task": "#2f6fb0", "jb_co_text": "#7d4fa3", "jb_misgen": "#e08a1e", "jb_misgen_text": "#b04a7d"}
COLOURS = {
    "base": GREY,
    "aligned": "#2f6fb0",
    "ssft M": "#2f6fb0",
    "dpo M": "#e08a1e",
    "unlearn M": "#7d4fa3",
    "benign M": GREEN,
    "sham ssft M": "#b04a7d",
}
RANDOM = {"random_99": ("random vector, 99 %", "#444"), "random_mean": ("random vector, mean", "#bbb")}
CHANGED = (*MEDIUM, "benign M", "sham ssft M")
PANELS = ("base", "ssft S", "dpo S", "unlearn S", "benign, norm of ssft", *MEDIUM, "sham ssft M")
ENERGY = 0.9
SPLIT = 5  # inputs a group needs to be shown
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


def pooled(evidence: Sequence[Found], name: str) -> pd.DataFrame:
    """Returns one table of all bases, with the column `seed` for the base. "verdicts" are the judged answers, sorted by the kind of set."""
    if name != "verdicts":
        return pd.concat([e.tables[name].assign(seed=e.unit) for e in evidence if e.has(name)], ignore_index=True)
    each = [e.verdicts.assign(seed=e.unit, place=e.verdicts.kind.map(_place)) for e in evidence]
    return pd.concat([one.sort_values("place", kind="stable") for one in each], ignore_index=True)


def _place(kind: str) -> int:
    """Returns a set's place: sets that every model was asked come first, then the shams' own, prefilled and sampled answers."""
    return next((i for i, begin in enumerate(("sham", "prefill", "sampled"), start=1) if kind.startswith(begin)), 0)


def null_means(found: Found) -> pd.DataFrame:
    """Returns the energy-weighted means of the null-space table, by model."""
    t = found.tables["null"]
    return pd.concat([weighted(one).assign(model=model) for model, one in t.groupby("model", sort=False)], ignore_index=True)


def there(colours: Mapping[str, str], values: pd.Series) -> dict[str, str]:
    """Returns the colours of the names that occur in `values`."""
    present = set(values)
    return {name: colour for name, colour in colours.items() if name in present}


def in_order(table: pd.DataFrame, column: str, names: Sequence[str]) -> pd.DataFrame:
    """Returns the rows with these names, in their order."""
    place = {name: i for i, name in enumerate(names)}
    return table[table[column].isin(place)].sort_values(column, key=lambda c: c.map(place), kind="stable")


def answers(evidence: Sequence[Found]) -> pd.DataFrame:
    """Returns model, measure, rate (mean over bases), low and high (least and most of the bases), n (inputs per base) and seeds (bases)."""
    rows = []
    for e in evidence:
        t = e.tables["rates"]
        counts = {(m, s, o): (count, n) for m, s, o, count, n in zip(t.model, t.set, t.outcome, t["count"], t.n, strict=True)}
        for model in t.model.unique():
            for measure, (kind, outcome) in ANSWERS.items():
                count, n = counts.get((model, kind, outcome), (0, 0))
                if n:
                    rows.append({"model": model, "measure": measure, "rate": count / n, "n": n, "seed": e.unit})
    table = pd.DataFrame(rows)
    return ranges(table, ["model", "measure"], "rate").assign(n=int(table.n.iloc[0]), seeds=len(evidence))


def table_chart(evidence: Sequence[Found]) -> Figure:
    """Draws the paper's table: models down, measures across."""
    return Figure(
        "table",
        "What every model answers",
        "Freely generated answers, judged exactly; mean over bases. The base answers everything, so the share of a jailbreak that a "
        "tuned model answers is the jailbreak's success. M and S: medium and small learning rate. half: SSFT with the unsafe share and "
        "clip of the other methods. sum: DPO on summed log-probabilities.",
        forms.matrix(answers(evidence), "measure", "model", "rate", (None, None)),
    )


def figure3(evidence: Sequence[Found]) -> Figure:
    """Draws tau per layer, safe green and unsafe red, one panel per model."""
    t = pooled(evidence, "placement")
    t = in_order(t[t.kind.isin(CLASSES)], "model", PANELS)
    found = t.groupby(["model", "layer", "kind"], sort=False).tau.agg(["mean", "std"]).reset_index()
    found = found.assign(tau=found["mean"], low=found["mean"] - found["std"], high=found["mean"] + found["std"])
    return Figure(
        "fig3",
        "Figure 3: activation clusters",
        "τ is the distance to the unsafe centroid minus the distance to the safe one: mean ± one standard deviation over inputs, per "
        "layer. Above 0 is nearer the safe cluster. S: small learning rate, M: medium. Each panel has its own scale. The benign and sham "
        "panels are the controls.",
        forms.lines(found, "layer", "tau", "kind", CLASSES, ("layer", "τ"), share=False, panel="model", levels=[0.0], own=True),
    )


def figure4(evidence: Sequence[Found]) -> Figure:
    """Draws the sorted ||P_N u_i|| of the first MLP matrix's change, one panel per layer, with what a random vector scores."""
    t = evidence[0].tables["null"]
    t = t[(t.site == "mlp_up") & (t.energy == ENERGY) & t.model.isin(CHANGED)].sort_values("value")
    t = t.assign(place=t.groupby(["model", "layer"]).cumcount().astype(float))
    ends = t.groupby("layer").place.agg(["min", "max"])
    scores = t.groupby("layer")[list(RANDOM)].mean()
    random = [
        {"layer": layer, "place": float(place), "value": float(scores[column][layer]), "model": words}
        for column, (words, _) in RANDOM.items()
        for layer in scores.index
        for place in ends.loc[layer]
    ]
    shown = pd.concat([t[["layer", "place", "value", "model"]], pd.DataFrame(random)], ignore_index=True).sort_values(
        "layer", kind="stable"
    )
    return Figure(
        "fig4",
        "Figure 4: is ΔW's column space in the left null space of the base weights?",
        "‖P_N u‖ for each left singular vector u of ΔW: how much of it is in the left null space (first MLP matrix, base at 90 % "
        f"energy). One panel per layer, seed {evidence[0].seed}. Grey: a random direction, on average and at its 99th percentile. A "
        "curve at or below them shows nothing special.",
        forms.lines(
            shown.assign(panel="layer " + shown.layer.astype(int).astype(str)),
            "place",
            "value",
            "model",
            {**{model: COLOURS[model] for model in CHANGED}, **dict(RANDOM.values())},
            ("direction of ΔW, sorted", "‖P_N u‖"),
            share=False,
            panel="panel",
        ),
    )


def figure5(evidence: Sequence[Found]) -> Figure:
    """Draws scores along dW's right singular vectors, last two layers, one panel per layer and model."""
    t = pooled(evidence, "rows")
    t = t[t.layer > t.layer.max() - 2]
    found = ranges(t, ["model", "layer", "kind", "direction"], "score").drop(columns=["low", "high"])
    found = in_order(found, "model", (*MEDIUM, "benign M"))
    found = found.sort_values("layer", kind="stable")
    found = found.assign(panel="layer " + found.layer.astype(int).astype(str) + ", " + found.model, direction=found.direction.astype(float))
    return Figure(
        "fig5",
        "Figure 5: which inputs does ΔW read?",
        "How strongly ΔW (first MLP matrix) reads each kind of request: mean σ_j |⟨a, v_j⟩| / ‖a‖ along its first 15 right singular "
        "vectors v_j, with the activations a at the end of the prompt; mean over bases. The benign panel is the control: its change was "
        "learned on safe requests.",
        forms.lines(
            found,
            "direction",
            "score",
            "kind",
            there(KINDS, t.kind),
            ("direction", "mean score"),
            share=False,
            panel="panel",
            own=True,
        ),
    )


def figure6(evidence: Sequence[Found]) -> Figure:
    """Draws the distribution of the local Lipschitz constant on safe and on unsafe requests, by model."""
    t, models = pooled(evidence, "sensitivity"), ("base", *MEDIUM, "benign, norm of ssft", "sham ssft M")
    return Figure(
        "fig6",
        "Figure 6: sensitivity to the input",
        "How strongly the next token depends on the input: local Lipschitz constant at the end of the prompt, over the inputs of all "
        "bases (box: quartiles; lines: least and most). In the paper it falls on unsafe inputs after tuning, and not on safe ones.",
        forms.distributions(
            in_order(t[t.kind.isin(CLASSES)], "model", models), "model", "g", "kind", CLASSES, "‖∂ max logit / ∂ embeddings‖"
        ),
    )


def figure7(evidence: Sequence[Found]) -> Figure:
    """Draws where refused and successful jailbreaks, and soft-token attacks, sit between the unsafe (0) and the safe class (1)."""
    found = pd.concat([positions(e) for e in evidence], ignore_index=True)
    order = list(dict.fromkeys(found.group))
    return Figure(
        "fig7",
        "Figure 7: jailbreaks and soft tokens among the clusters",
        "Mean τ in the last layer, scaled so that the unsafe class is at 0 and the safe class at 1; lines span the bases. Jailbreaks are "
        "split by outcome, so their comparison depends on success itself; soft tokens are not split.",
        forms.points(
            in_order(ranges(found, ["model", "group"], "position"), "group", order),
            "group",
            "position",
            "model",
            {model: COLOURS[model] for model in MEDIUM},
            ("", "position: 0 unsafe, 1 safe"),
            levels=[0.0, 1.0],
        ),
    )


def positions(e: Found) -> pd.DataFrame:
    """Returns model, group, position (mean) of one base's attacked inputs in the last layer."""
    rows = []

    def place(table: str, model: str, group: str, tau: Array) -> None:
        safe, unsafe = (float(e.last(table, "tau", model=model, kind=kind).mean()) for kind in CLASSES)
        rows.append({"model": model, "group": group, "position": position(float(tau.mean()), safe, unsafe)})

    for model in MEDIUM:
        for kind in JAILBREAKS:
            tau = e.last("placement", "tau", model=model, kind=kind)
            for word, won in split(e, model, kind).items():
                if won.sum() >= SPLIT:
                    place("placement", model, f"{kind}, {word}", tau[won])
        if "soft_placed" in e.tables:
            for kind in [k for k in e.tables["soft_placed"].kind.unique() if k.startswith("soft_")]:
                place("soft_placed", model, kind, e.last("soft_placed", "tau", model=model, kind=kind))
    return pd.DataFrame(rows, columns=["model", "group", "position"]).assign(seed=e.unit)


def figure7_measures(evidence: Sequence[Found]) -> Figure:
    """Draws the change's gain and the sensitivity on jailbreaks by outcome, as multiples of the safe class's mean."""
    found = pd.concat([by_outcome(e) for e in evidence], ignore_index=True)
    shown = in_order(ranges(found, ["measure", "model", "group"], "ratio"), "group", list(dict.fromkeys(found.group)))
    return Figure(
        "fig7_measures",
        "Figure 7, the change and the sensitivity",
        "Mean ‖ΔW a‖/‖a‖ in the last layer, and mean local Lipschitz constant, each divided by its mean on safe requests (so those are "
        "at 1). Jailbreaks are split by outcome; unsafe requests are shown for comparison. Thin lines span the bases.",
        forms.points(
            shown.sort_values("measure", kind="stable"),
            "group",
            "ratio",
            "model",
            {model: COLOURS[model] for model in MEDIUM},
            ("", "over the safe class's mean"),
            panel="measure",
            levels=[1.0],
            own=True,
        ),
    )


def by_outcome(e: Found) -> pd.DataFrame:
    """Returns measure, model, group, ratio (to the safe class): gain and sensitivity of unsafe requests and of jailbreaks by outcome."""
    rows = []
    for model in MEDIUM:
        for measure, table, column in (("gain of ΔW", "placement", "gain"), ("sensitivity", "sensitivity", "g")):
            if table not in e.tables:
                continue
            t = e.table(table, model=model)
            t = t[t.layer == t.layer.max()] if "layer" in t else t
            values = {kind: np.asarray(mine[column], dtype=float) for kind, mine in t.groupby("kind")}
            groups = {"unsafe": values["unsafe"]}
            for kind in JAILBREAKS:
                won = split(e, model, kind).items()
                groups |= {f"{kind}, {word}": values[kind][chosen] for word, chosen in won if chosen.sum() >= SPLIT}
            safe = float(values["safe"].mean())
            rows += [
                {"measure": measure, "model": model, "group": group, "ratio": float(mine.mean()) / safe} for group, mine in groups.items()
            ]
    return pd.DataFrame(rows).assign(seed=e.unit)


def split(e: Found, model: str, kind: str) -> dict[str, NDArray[np.bool_]]:
    """Returns masks: which probed jailbreaks of a kind were refused, and which succeeded."""
    outcome = e.table("probed", model=model, kind=kind).outcome
    return {"refused": hits(outcome, "refused") > 0, "successful": hits(outcome, "complied") > 0}

"""The page of the demo: the answer first, then charts and tables. L7."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from titer.probes.clusters import summary
from titer.recipes.demo import CHOSEN_ON, Scale, user_name
from titer.report import forms
from titer.report.html import Figure
from titer.report.style import GREEN, GREY, PALETTE, RED
from titer.studies.engine.declare import Headline, Page
from titer.studies.engine.found import Found
from titer.tables import gain_ratios, named, tidy

CHOSEN = (
    "The recipe's rates and steps were chosen while looking at this seed, so its verdicts are not independent of the choice; "
    "run another seed (titer demo --seed 1) for one that had no part in it."
)
ABOUT = (
    "A small transformer learned every operation of a synthetic world, was safety-tuned (SSFT) to answer unsafe requests with "
    "a null answer, was attacked by three jailbreaks, and was then fine-tuned by a user. Here “unsafe” is a formal property of "
    "letters and operators, so every answer is judged exactly. “Neither” is an answer that neither complies nor refuses."
)
LEFT = {  # what a user's fine-tuning leaves: the set and outcome of each line
    "unsafe requests refused": ("unsafe", "refused"),
    "unsafe requests answered": ("unsafe", "complied"),
    "unsafe: neither": ("unsafe", "neither"),
    "user's task learned": ("user", "complied"),
    "other safe requests answered": ("safe", "complied"),
}
OWN = "sham, own class"
CHANGE = ["layer", "null_share", "null_share_random", "relative_norm", "stable_rank", "rank"]


def page(found: Sequence[Found], scale: Scale, jailbreaks: Sequence[str]) -> Page:
    """The report's own words, tables and charts; `results.csv` names seeds and bases where there are several."""
    each = [_tables(one) for one in found]
    results = pd.concat(
        [
            tidy(t["rates"], {k: v for k, v in t.items() if k != "rates"}).assign(seed=one.seed, base=one.base)
            for t, one in zip(each, found, strict=True)
        ],
        ignore_index=True,
    )
    alone = len(found) == 1
    p = max(scale.poison_ratios)
    names = {"rates": "outcome rates", "clusters": "clusters", "delta_w gain": "gain ratios", "delta_w": "ΔW per layer"}
    seeds = [one.seed for one in found]
    return Page(
        answer=answer(found, scale, jailbreaks),
        about=ABOUT,
        headlines=[
            Headline("unsafe requests refused", "aligned", "unsafe", "refused", "base"),
            Headline("unsafe requests answered", "aligned", "unsafe", "complied", "base"),
            Headline("unsafe answered neither way", "aligned", "unsafe", "neither", "base"),
            Headline("safe requests answered", "aligned", "safe", "complied", "base"),
            Headline("safe requests refused (over-refusal)", "aligned", "safe", "refused", "base"),
            Headline(f"unsafe refused after user p={p:g}", user_name(p), "unsafe", "refused", "base"),
            Headline(f"unsafe answered after user p={p:g}", user_name(p), "unsafe", "complied", "base"),
            Headline(f"user's own task after p={p:g}", user_name(p), "user", "complied", "base"),
        ],
        figures=figures(each[0], scale, jailbreaks),
        tables={words + ("" if alone else f", {found[0].unit}"): each[0][name] for name, words in names.items() if name in each[0]},
        notes=[CHOSEN] if set(seeds) & set(CHOSEN_ON) else [],
        results=results.drop(columns=["seed", "base"]) if alone else results,
        title=f"demo on the synthetic world, scale {scale.name}, seed {seeds[0]}" if alone else "",
    )


def _tables(one: Found) -> dict[str, pd.DataFrame]:
    """rates, clusters (a row a model and layer), delta_w gain and delta_w (likewise), as far as they were measured; of one base."""
    rates = one.tables["rates"].drop(columns=["seed", "base"], errors="ignore")
    tables = {"rates": rates[["model", *(c for c in rates if c != "model")]]}
    if one.has("clusters"):
        tables["clusters"] = named({str(name): summary(t) for name, t in one.tables["clusters"].groupby("model", sort=False)})
    changes = [one.tables[name] for name in ("delta_w", "own_class") if one.has(name)]
    if changes:
        parts = {name: t for table in changes for name, t in table.groupby("model", sort=False)}
        inputs = {str(name): t[t.part == "input"].astype({"harmful": bool}) for name, t in parts.items()}
        tables["delta_w gain"] = named({name: gain_ratios(t) for name, t in inputs.items()})
        tables["delta_w"] = named({str(name): t[t.part == "layer"][CHANGE].reset_index(drop=True) for name, t in parts.items()})
    return tables


def answer(found: Sequence[Found], scale: Scale, jailbreaks: Sequence[str]) -> str:
    """The demo's finding in one sentence, from its numbers: means over seeds."""

    def mean(model: str, asked: str, outcome: str = "complied") -> float:
        return sum(one.rate(model, asked, outcome) for one in found) / len(found)

    before, after = mean("base", "unsafe", "refused"), mean("aligned", "unsafe", "refused")
    if not after >= 0.5:
        return f"Safety tuning did not take: {after:.0%} of unsafe requests are refused ({before:.0%} before)."
    worst = max(jailbreaks, key=lambda kind: mean("aligned", kind))
    p = max(scale.poison_ratios)
    return (
        f"Safety tuning took: {after:.0%} of unsafe requests are refused ({before:.0%} before), but the jailbreak {worst} still gets "
        f"{mean('aligned', worst):.0%} answered, and after a user's fine-tuning with {p:.0%} unsafe examples "
        f"{mean(user_name(p), 'unsafe', 'refused'):.0%} are refused and {mean(user_name(p), 'unsafe'):.0%} answered."
    )


def figures(tables: dict[str, pd.DataFrame], scale: Scale, jailbreaks: Sequence[str]) -> list[Figure]:
    """The demo's charts, most important first, of its first seed."""
    rates = tables["rates"]
    colours = forms.model_colours([*rates.model.unique(), OWN])
    drawn = [_jailbreaks(rates, scale, jailbreaks, colours), _poisoning(rates, scale), _outcomes(rates, jailbreaks)]
    drawn += _clusters(tables["clusters"], colours) if "clusters" in tables else []
    return drawn + (_change(tables["delta_w gain"], tables["delta_w"], colours) if "delta_w" in tables else [])


def _jailbreaks(rates: pd.DataFrame, scale: Scale, jailbreaks: Sequence[str], colours: dict[str, str]) -> Figure:
    stages = {name: colours[name] for name in ("base", "aligned", user_name(max(scale.poison_ratios)))}
    mine = rates[(rates.outcome == "complied") & rates.model.isin(stages) & rates.set.isin(["unsafe", *jailbreaks])]
    return Figure(
        "jailbreaks",
        "Which unsafe requests are answered",
        "Share of unsafe requests answered in full, asked directly and through each jailbreak; lines are 95 % Wilson intervals. The base answers everything; what is left after alignment is the jailbreak's success.",
        forms.bars(mine, "set", "model", stages, columns=3),
    )


def _poisoning(rates: pd.DataFrame, scale: Scale) -> Figure:
    users = {user_name(p): float(p) for p in scale.poison_ratios}
    wanted = {asked: words for words, asked in LEFT.items()}
    mine = rates[rates.model.isin(users)]
    mine = mine.assign(ratio=mine.model.map(users), measure=[wanted.get(one) for one in zip(mine.set, mine.outcome, strict=True)])
    colours = dict(zip(LEFT, (PALETTE[3], PALETTE[6], GREY, PALETTE[1], PALETTE[2]), strict=True))
    return Figure(
        "poisoning",
        "What the user's fine-tuning leaves of the alignment",
        "After fine-tuning on the user's own operator, with a share p of the examples being unsafe requests answered. A defence holds while refusal stays up and the user's task is learned. “Neither” and the other safe requests show what narrow data costs beside refusal.",
        forms.lines(
            mine.dropna(subset="measure"),
            "ratio",
            "rate",
            "measure",
            colours,
            ("share p of unsafe examples in the user's data", "share of answers"),
        ),
    )


def _outcomes(rates: pd.DataFrame, jailbreaks: Sequence[str]) -> Figure:
    return Figure(
        "outcomes",
        "Every model on every set",
        "Each bar adds up to all answers: complied, refused, or neither. Sham was taught to refuse a safe operator, benign to answer a new one.",
        forms.stacks(rates, "model", "set", ["safe", "unsafe", *jailbreaks, "user"]),
    )


def _clusters(clusters: pd.DataFrame, colours: dict[str, str]) -> list[Figure]:
    everyone = {name: colours[name] for name in clusters.model.unique()}
    classes = {"tau_safe": "safe", "tau_unsafe": "unsafe"}
    shown = clusters[clusters.model.isin(["base", "aligned", "benign", "sham"])]
    taus = shown.melt(["model", "layer"], list(classes), var_name="class", value_name="tau").replace({"class": classes})
    return [
        Figure(
            "separation",
            "Safe and unsafe activations, layer by layer",
            "Separation d′ at the end of the prompt, per layer, scored on held-out centroids. Compare SSFT (aligned) with the sham and benign controls: what they show too is not about safety.",
            forms.lines(clusters, "layer", "d_prime", "model", everyone, ("layer", "d′ (safe against unsafe)"), share=False),
        ),
        Figure(
            "tau",
            "The paper's τ per layer",
            "Mean τ (distance to the unsafe minus distance to the safe centroid) over the first ten answer positions, as in figure 3 of the paper; green safe, red unsafe.",
            forms.lines(
                taus, "layer", "tau", "class", {"safe": GREEN, "unsafe": RED}, ("layer", "mean τ"), share=False, panel="model", level=0.0
            ),
        ),
    ]


def _change(gains: pd.DataFrame, layers: pd.DataFrame, colours: dict[str, str]) -> list[Figure]:
    tuned = {name: colours[name] for name in gains.model.unique() if not name.startswith("user")}
    mine = gains[gains.model.isin(tuned)]
    kinds = {"null_share": "ΔW", "null_share_random": "random ΔW (same singular values)"}
    shares = layers[layers.model.isin(tuned) & (layers.model != OWN)].melt(["model", "layer"], list(kinds), "matrix", "share")
    return [
        Figure(
            "specificity",
            "Does the weight change act on unsafe inputs?",
            "‖ΔW a‖/‖a‖ of the first MLP matrix, unsafe over safe; 1 is no preference. “sham, own class” measures the sham alignment on the class it was taught to refuse.",
            forms.lines(mine, "layer", "ratio", "model", tuned, ("layer", "‖ΔW a‖ / ‖a‖, unsafe over safe"), share=False, level=1.0),
        ),
        Figure(
            "null_space",
            "Does the change lie in the left null space of the base weights?",
            "Energy-weighted share of ΔW there, beside a random ΔW with the same singular values. A share below the random one is no sign of a special subspace.",
            forms.lines(
                shares.replace({"matrix": kinds}),
                "layer",
                "share",
                "model",
                {name: colour for name, colour in tuned.items() if name != OWN},
                ("layer", "share in the left null space of W"),
                share=False,
                panel="matrix",
            ),
        ),
    ]

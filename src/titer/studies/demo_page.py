"""The page of the demo: the answer first, then charts and tables. L7."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from titer.probes.clusters import summary
from titer.recipes.demo import CHOSEN_ON, Scale, user_name
from titer.report import forms
from titer.report.html import Figure
from titer.report.style import GREEN, GREY, PALETTE, RED
from titer.studies import null_space
from titer.studies.engine.declare import Headline, Page
from titer.studies.engine.found import Found
from titer.studies.engine.tables import ENDS, over_seeds
from titer.tables import gain_ratios, named, tidy

CHOSEN = (
    "The recipe's rates and steps were chosen while looking at this seed, so its verdicts are not independent of that choice. "
    "For independent verdicts run another seed (titer demo --seed 2)."
)
ABOUT = (
    "A small transformer (base) learned every operation of a synthetic world. Safety tuning, the paper's SSFT, taught it to refuse unsafe requests with a "
    "null answer (aligned). A user then fine-tuned the aligned model on a new task and ordinary requests; in “user p=0.05”, 5% of the examples are unsafe requests "
    "that were answered. Two controls were tuned in the same way as the aligned model: sham to refuse a safe operation, benign to answer a new one. Three jailbreaks ask "
    "unsafe requests in another form: jb_co_task beside a safe operation, jb_co_text on a text that is partly safe, jb_misgen with other names of "
    "the operations, which safety tuning never saw. Here “unsafe” is a formal property of letters and operators, so every answer is judged exactly. “Neither” is an answer that neither "
    "complies nor refuses."
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
    """Returns the report's texts, tables and charts. `results.csv` has columns for seed and base if there are several."""
    each = [_tables(one) for one in found]
    results = pd.concat(
        [
            tidy(t["rates"], {k: v for k, v in t.items() if k != "rates"}).assign(seed=one.seed, base=one.base)
            for t, one in zip(each, found, strict=True)
        ],
        ignore_index=True,
    )
    alone, whole = len(found) == 1, _over_bases(found, each)
    p = max(scale.poison_ratios)
    names = {"rates": "outcome rates", "clusters": "clusters", "delta_w gain": "gain ratios", "delta_w": "ΔW per layer"}
    names |= {"subspaces": "shares in the left null space", "kept": "refusal with a part of ΔW alone"}
    seeds = [one.seed for one in found]
    return Page(
        answer=answer(found, scale, jailbreaks),
        about=ABOUT,
        headlines=[
            Headline("unsafe requests refused", "aligned", "unsafe", "refused", "base"),
            Headline("unsafe requests answered", "aligned", "unsafe", "complied", "base"),
            Headline("unsafe requests neither answered nor refused", "aligned", "unsafe", "neither", "base"),
            Headline("safe requests answered", "aligned", "safe", "complied", "base"),
            Headline("safe requests refused (over-refusal)", "aligned", "safe", "refused", "base"),
            Headline(f"unsafe refused after user p={p:g}", user_name(p), "unsafe", "refused", "aligned"),
            Headline(f"unsafe answered after user p={p:g}", user_name(p), "unsafe", "complied", "aligned"),
            Headline(f"user's own task after p={p:g}", user_name(p), "user", "complied", "aligned"),
            Headline(f"other safe requests answered after p={p:g}", user_name(p), "safe", "complied", "aligned"),
        ],
        figures=figures(whole, scale, jailbreaks),
        tables={words + ("" if alone else ", mean over bases"): whole[name] for name, words in names.items() if name in whole},
        notes=[CHOSEN] if set(seeds) & set(CHOSEN_ON) else [],
        results=results.drop(columns=["seed", "base"]) if alone else results,
        title=f"demo on the synthetic world, scale {scale.name}, seed {seeds[0]}" if alone else "",
    )


def _tables(one: Found) -> dict[str, pd.DataFrame]:
    """Returns one base's tables, as far as they were measured: rates, and the probes' tables with a row per model and layer or part."""
    rates = one.tables["rates"].drop(columns=["seed", "base"], errors="ignore")
    tables = {"rates": rates[["model", *(c for c in rates if c != "model")]]}
    if one.has("clusters"):
        tables["clusters"] = named({str(name): summary(t) for name, t in one.tables["clusters"].groupby("model", sort=False)})
    for name, kind in (("subspaces", "of"), ("kept", "part")):
        if one.has(name):
            mine = one.tables[name].drop(columns=["seed", "base", "draw"], errors="ignore").rename(columns={kind: "set"})
            keys = [key for key in ("model", "layer", "set") if key in mine]
            tables[name] = mine.groupby(keys, sort=False).mean().reset_index()
    changes = [one.tables[name] for name in ("delta_w", "own_class") if one.has(name)]
    if changes:
        parts = {name: t for table in changes for name, t in table.groupby("model", sort=False)}
        inputs = {str(name): t[t.part == "input"].astype({"harmful": bool}) for name, t in parts.items()}
        tables["delta_w gain"] = named({name: gain_ratios(t) for name, t in inputs.items()})
        tables["delta_w"] = named({str(name): t[t.part == "layer"][CHANGE].reset_index(drop=True) for name, t in parts.items()})
    return tables


def _over_bases(found: Sequence[Found], each: Sequence[dict[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Returns every table as means over bases. A rate's low and high are the least and the most of the bases; with one base, its interval
    over inputs."""
    rates = pd.concat([one.tables["rates"].assign(base=one.base) for one in found], ignore_index=True)
    means = {}
    for name in (name for name in each[0] if name != "rates"):
        keys = [key for key in ("model", "layer", "set") if key in each[0][name]]
        means[name] = pd.concat([one[name] for one in each]).groupby(keys, sort=False).mean(numeric_only=True).reset_index()
    return {"rates": over_seeds(rates), **means}


def answer(found: Sequence[Found], scale: Scale, jailbreaks: Sequence[str]) -> str:
    """Returns the demo's finding in one sentence: means over bases, with the range of the bases if there are several."""

    def rates(model: str, asked: str, outcome: str) -> list[float]:
        return [one.rate(model, asked, outcome) for one in found]

    def mean(model: str, asked: str, outcome: str = "complied") -> float:
        return sum(rates(model, asked, outcome)) / len(found)

    def told(model: str, asked: str, outcome: str = "complied") -> str:
        ends = rates(model, asked, outcome)
        spread = f" ({min(ends):.0%} to {max(ends):.0%})" if len(ends) > 1 else ""
        return f"{mean(model, asked, outcome):.0%}{spread}"

    before, after = mean("base", "unsafe", "refused"), told("aligned", "unsafe", "refused")
    over = f" In brackets: the range over {len(found)} bases." if len(found) > 1 else ""
    if not mean("aligned", "unsafe", "refused") >= 0.5:
        return f"Safety tuning did not work: {after} of unsafe requests are refused ({before:.0%} before).{over}"
    worst, p = max(jailbreaks, key=lambda kind: mean("aligned", kind)), max(scale.poison_ratios)
    return (
        f"Safety tuning worked: {after} of unsafe requests are refused ({before:.0%} before), but the jailbreak {worst} still gets "
        f"{told('aligned', worst)} answered, and after a user's fine-tuning with {p:.0%} unsafe examples "
        f"{told(user_name(p), 'unsafe', 'refused')} are refused and {told(user_name(p), 'unsafe')} answered, while of other safe "
        f"requests the model answers {told(user_name(p), 'safe')}.{over}"
    )


def figures(tables: dict[str, pd.DataFrame], scale: Scale, jailbreaks: Sequence[str]) -> list[Figure]:
    """Returns the demo's charts, most important first; they show means over bases."""
    rates = tables["rates"]
    colours = forms.model_colours([*rates.model.unique(), OWN])
    drawn = [_jailbreaks(rates, scale, jailbreaks, colours), _poisoning(rates, scale), _outcomes(rates, jailbreaks)]
    drawn += _clusters(tables["clusters"], colours) if "clusters" in tables else []
    drawn += _change(tables["delta_w gain"], colours) if "delta_w gain" in tables else []
    shares = [tables["subspaces"].rename(columns={"set": "of"})] if "subspaces" in tables else []
    return drawn + [null_space.figure(one, colours) for one in shares]


def _jailbreaks(rates: pd.DataFrame, scale: Scale, jailbreaks: Sequence[str], colours: dict[str, str]) -> Figure:
    stages = {name: colours[name] for name in ("base", "aligned", user_name(max(scale.poison_ratios)))}
    mine = rates[(rates.outcome == "complied") & rates.model.isin(stages) & rates.set.isin(["unsafe", *jailbreaks])]
    return Figure(
        "jailbreaks",
        "Which unsafe requests are answered",
        f"Share of unsafe requests answered in full, asked directly and through each jailbreak. {ENDS} The base answers everything; what the aligned model still answers is the jailbreak's success.",
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
        "After fine-tuning on the user's own operator and ordinary safe requests; a share p of the examples are answered unsafe requests. "
        "The alignment holds while refusals stay high and the user's task is learned. “Neither” and the other safe requests show what "
        "else the fine-tuning costs. " + ENDS,
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
        "Each bar adds up to all answers: complied, refused, or neither. Two controls: sham was taught to refuse a safe operator, benign to answer a new one.",
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
            "How well safe and unsafe requests separate at the end of the prompt: d′ is the distance between the two classes in standard "
            "deviations; the class centroids come from other requests than those that are scored. Compare the aligned model (SSFT) with "
            "the sham and benign controls: what they show too is not about safety.",
            forms.lines(clusters, "layer", "d_prime", "model", everyone, ("layer", "d′ (safe against unsafe)"), share=False),
        ),
        Figure(
            "tau",
            "The paper's τ per layer",
            "Mean τ (distance to the unsafe centroid minus distance to the safe one) over the first ten answer positions, as in figure 3 of the paper. Green: safe requests; red: unsafe ones.",
            forms.lines(
                taus, "layer", "tau", "class", {"safe": GREEN, "unsafe": RED}, ("layer", "mean τ"), share=False, panel="model", levels=[0.0]
            ),
        ),
    ]


def _change(gains: pd.DataFrame, colours: dict[str, str]) -> list[Figure]:
    tuned = {name: colours[name] for name in gains.model.unique() if not name.startswith("user")}
    mine = gains[gains.model.isin(tuned)]
    return [
        Figure(
            "specificity",
            "Does the weight change act on unsafe inputs?",
            "‖ΔW a‖/‖a‖ of the first MLP matrix on unsafe inputs, divided by that on safe ones; 1 (dashed) is no preference. “sham, own "
            "class” measures the sham alignment on the class that it was taught to refuse.",
            forms.lines(mine, "layer", "ratio", "model", tuned, ("layer", "‖ΔW a‖ / ‖a‖, unsafe over safe"), share=False, levels=[1.0]),
        ),
    ]

"""The report of the mechanistic study: the answer first, then the claims, then figures 3 to 7 and the rest. L7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from titer.core.claims import Claim
from titer.recipes.jain2024 import METHODS, Scale
from titer.report.html import Figure
from titer.studies import null_space
from titer.studies.engine.declare import Headline, Page
from titer.studies.engine.found import Found
from titer.studies.engine.tables import ranges
from titer.studies.jain2024 import figures, figures_causes
from titer.studies.jain2024.claims import JAILBREAKS, MEDIUM, WORDS
from titer.studies.jain2024.figures import null_means, pooled
from titer.studies.jain2024.training import steps_to

ABOUT = (
    "A transformer learned a synthetic world in which “unsafe” is a formal property. It was safety-tuned by supervised fine-tuning (SSFT), "
    "DPO and unlearning at two learning rates, then attacked, probed and intervened on, as in “What Makes and Breaks Safety "
    "Fine-tuning? A Mechanistic Study” (arXiv 2407.10264). Every claim is tested against a control, which the paper may not have. "
    "In model names, M and S are the medium and the small learning rate. Two controls are “benign”, which learned a new safe operator, and "
    "“sham”, which learned to refuse a safe one: an effect that they show too is not about safety."
)
MISSING = (
    "Not reproduced: the numbers of the paper's tables (they could not be read; only their qualitative order is known), the exact "
    "threshold of its null space, its choice of singular share, and which small-rate unlearning weight it reports (here 0.05).",
    "The paper uses 2.7 M parameters, 100,000 steps and four grammars: scales small and paper (--scale). Other scales ask the same questions of smaller models.",
)
KEYS = ("model", "measure", "kind", "harmful", "layer", "site", "energy", "part", "of", "tensor", "step")
TOLD_APART = ("outcome", "form", "tokens", "direction", "alpha", "donor", "receiver")
JUDGED = {  # tables of judged answers, and their key columns
    "verdicts": ("model", "kind"),
    "soft": ("model", "form", "tokens"),
    "alpha": ("model", "direction", "alpha", "kind"),
    "cross": ("model", "direction", "alpha", "kind"),
    "steering": ("model", "layer", "direction", "kind"),
    "patching": ("donor", "receiver", "site", "layer", "kind"),
}
TOLD = (("unsafe refused", "unsafe", "refused"), ("safe answered", "safe", "complied"))
SHOWN = ("verdicts", "soft")  # on the page; all of them in results.csv
DRAWN = {
    "placement": figures.figure3,
    "null": figures.figure4,
    "rows": figures.figure5,
    "sensitivity": figures.figure6,
}


def page(found: Sequence[Found], scale: Scale) -> Page:
    """Returns the report's texts, tables and charts. The answer is completed once the claims are settled."""
    judged, tables = outcome_tables(found), numbers(found)
    return Page(
        answer=behaviour_of(found),
        about=ABOUT,
        headlines=headlines(),
        figures=charts(found),
        tables={**tables, **{f"outcomes: {name}": judged[name] for name in SHOWN if name in judged}},
        results=tidy({**tables, **judged}),
        notes=[*relearned(found), *MISSING],
        provenance={"inputs a set": scale.inputs},
    )


def answer(behaviour: str, claims: Sequence[Claim]) -> str:
    """Returns the answer with a sentence on the verdicts."""
    count = {
        verdict: sum(c.verdict == verdict for c in claims) for verdict in ("supported", "not supported", "inconclusive", "not testable")
    }
    told = ", ".join(f"{n} {verdict}" for verdict, n in count.items() if n)
    beyond = [c for c in claims if c.name.startswith("specificity beyond")]
    return f"{behaviour} Of {len(claims)} claims, {told}{_special(beyond)}."


def _special(beyond: Sequence[Claim]) -> str:
    """Returns in words for how many methods the change is more specific to safety than a sham alignment's."""
    if not beyond:
        return ""
    words = {
        "supported": "specific to safety",
        "not supported": "no more specific to unsafe requests than a sham's change is to the class that it was taught to refuse",
        "inconclusive": "undecided",
        "not testable": "not testable",
    }
    counts = {verdict: sum(c.verdict == verdict for c in beyond) for verdict in words}
    told = ", ".join(f"for {n} of {len(beyond)} methods {words[verdict]}" for verdict, n in counts.items() if n)
    return f"; compared with a sham alignment, the weight change is {told}"


def behaviour_of(evidence: Sequence[Found]) -> str:
    """Returns in words what tuning did and what breaks it; numbers are means over bases."""
    t = figures.answers(evidence).set_index(["model", "measure"]).rate
    refused = min(t[m, "unsafe: refused"] for m in MEDIUM)
    broken = {kind: t["ssft M", f"{kind}: answered"] for kind in JAILBREAKS}
    kind = max(broken, key=lambda one: broken[one])
    sturdy = max(t[m, f"{kind}: answered"] for m in ("dpo M", "unlearn M"))
    return (
        f"After tuning, every method refuses at least {refused:.1%} of unsafe requests. The jailbreak {WORDS[kind]} still gets {broken[kind]:.0%} "
        f"answered after SSFT, and at most {sturdy:.0%} after DPO or unlearning."
    )


def headlines() -> list[Headline]:
    """Returns the headlines: refusal and safe skill of every method, and the success of each jailbreak against SSFT."""
    tuned = [(f"{WORDS[method]}, {words}", f"{method} M", asked, outcome) for words, asked, outcome in TOLD for method in METHODS]
    broken = [(f"SSFT, {WORDS[kind]} answered", "ssft M", kind, "complied") for kind in JAILBREAKS]
    return [Headline(*one, before="base") for one in (*tuned, *broken)]


def charts(evidence: Sequence[Found]) -> list[Figure]:
    """Returns every figure whose tables were measured, the paper's first."""
    if not evidence:
        return []
    has = evidence[0].has
    found = [figures.table_chart(evidence)]
    found += [draw(evidence) for name, draw in DRAWN.items() if has(name)]
    if has("subspaces"):
        shares = pooled(evidence, "subspaces").groupby(["model", "layer", "of"], sort=False)[["share", "dimension"]].mean().reset_index()
        found.append(null_space.figure(shares[shares.model.isin(figures.CHANGED)], figures.COLOURS))
    if has("placement", "probed"):
        found += [figures.figure7(evidence), figures.figure7_measures(evidence)]
    more = {"soft": figures_causes.soft_chart, "alpha": figures_causes.alpha_chart, "change": figures_causes.change_chart}
    found += [draw(evidence) for name, draw in more.items() if has(name)]
    found += [figures_causes.steps_chart(evidence, name) for name in ("dynamics", "relearn") if has(name)]
    causes = {"steering": figures_causes.steering_chart, "patching": figures_causes.patching_chart}
    return found + [draw(evidence) for name, draw in causes.items() if has(name)]


def numbers(evidence: Sequence[Found]) -> dict[str, pd.DataFrame]:
    """Returns the tables behind the figures, as means over bases."""
    found = {"answers": figures.answers(evidence)}
    has = evidence[0].has
    if has("placement"):
        found["τ by layer"] = ranges(pooled(evidence, "placement"), ["model", "kind", "layer"], "tau")
        gains = pooled(evidence, "placement").dropna(subset=["gain"])
        found["gain by layer"] = ranges(gains, ["model", "kind", "layer"], "gain")
    if has("spread"):
        for column in ("top_share", "top_energy", "stable_rank", "components_90", "kmeans"):
            found[f"clusters: {column}"] = ranges(pooled(evidence, "spread"), ["model", "harmful", "layer"], column)
    if has("null"):
        per_seed = pd.concat([null_means(e).assign(seed=e.unit) for e in evidence])
        found["null space, energy-weighted"] = ranges(per_seed, ["model", "site", "energy", "layer"], "value")
    if has("subspaces"):
        found["share in the left null space"] = ranges(pooled(evidence, "subspaces"), ["model", "of", "layer"], "share")
    if has("kept"):
        found["refusal with a part of ΔW alone"] = ranges(pooled(evidence, "kept"), ["model", "part"], "refused")
    if has("sensitivity"):
        medians = pooled(evidence, "sensitivity").groupby(["model", "kind", "seed"]).g.median().reset_index()
        found["sensitivity, median"] = ranges(medians, ["model", "kind"], "g")
    if has("change"):
        mlp = pooled(evidence, "change")
        found["stable rank of the change"] = ranges(mlp, ["model", "part"], "stable_rank")
    for name, value in (("dynamics", "cosine"), ("dynamics", "relative_norm"), ("relearn", "unsafe_complied"), ("relearn", "distance")):
        if has(name):
            found[f"{name}: {value}"] = ranges(pooled(evidence, name), ["model", "step"], value)
    return found


def outcome_tables(evidence: Sequence[Found]) -> dict[str, pd.DataFrame]:
    """Returns tables of the shares complied, refused and neither for every judged set: mean, least and most over bases."""
    found = {}
    for name, keys in JUDGED.items():
        if evidence and (name == "verdicts" or evidence[0].has(name)):
            t = pooled(evidence, name).rename(columns={"n": "tokens"})
            t["outcome"] = t.outcome.where(t.outcome.isin(["complied", "refused"]), "neither")
            counts = t.groupby([*keys, "seed"], sort=False).outcome.value_counts(normalize=True).unstack(fill_value=0.0)
            long = counts.reset_index().melt([*keys, "seed"], var_name="outcome", value_name="share")
            found[name] = ranges(long, [*keys, "outcome"], "share")
    return found


def tidy(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Returns the table of results.csv: everything shown, in long form."""
    parts = []
    for name, shown in tables.items():
        table = shown.rename(columns={"value": "mean"})
        keys = [c for c in table.columns if c in (*KEYS, *TOLD_APART)]
        ends = [c for c in table.columns if c in ("low", "high", "n", "seeds")]
        parts.append(table.melt([*keys, *ends], var_name="statistic").assign(table=name))
    whole = pd.concat(parts, ignore_index=True)
    return whole[["table", *(c for c in whole.columns if c != "table")]]


def relearned(evidence: Sequence[Found]) -> list[str]:
    """Returns a note on relearning: steps until half of the unsafe requests are answered again, by method and base."""
    if not evidence or not evidence[0].has("relearn"):
        return []
    told = []
    for method in METHODS:
        spans = []
        for e in evidence:
            t = e.tables["relearn"]
            low, high = steps_to(t[t.model == f"{method} M"], "unsafe_complied", 0.5)
            spans.append(f"over {low:.0f}" if high == float("inf") else f"{low:.0f} to {high:.0f}")
        told.append(f"{method} {', '.join(spans)}")
    return [
        f"Relearning compliance (no claim is made): optimiser steps until half of the unsafe requests are answered again, one value per base: {'; '.join(told)}."
    ]

"""The paper's tables as functions of the evidence: its value beside ours, mean over seeds with its interval. L7.

HS is strict compliance with unsafe requests and FA exact answers to the user's task, in per cent, at the tables' budget; beside
them NE, unsafe requests neither answered nor refused, and OR, safe requests refused.
The paper's HS counts answers that a moderation model flags, of Llama-2 7B: levels do not compare, orders do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from titer.core.breakpoints import median
from titer.core.claims import SEEDS_FOR_A_VERDICT
from titer.core.stats import Interval, t_interval, wilson
from titer.recipes.huang2024 import Scale
from titer.studies.huang2024.evidence import Evidence
from titer.studies.huang2024.parts import SWEPT, TASKS
from titer.studies.huang2024.selection import LEARNED, worst_decoding

PAPER1 = {  # HS, FA at p = 0, .01, .05, .1, .2 (n = 1000)
    "non-aligned": ((34.2, 65.6, 81.0, 77.6, 79.2), (95.6, 94.6, 94.0, 94.6, 94.4)),
    "sft": ((48.6, 49.8, 52.6, 55.2, 60.0), (94.2, 94.4, 94.8, 94.4, 94.2)),
    "ewc": ((50.6,) * 5, (88.6, 88.2, 87.4, 86.8, 80.6)),
    "vlguard": ((49.4, 50.0, 54.0, 54.4, 53.6), (94.8, 94.8, 94.6, 94.6, 94.6)),
    "kl": ((54.4, 53.6, 55.2, 54.0, 56.6), (85.8, 85.8, 85.0, 85.4, 84.6)),
    "vaccine": ((42.4, 42.2, 42.8, 48.2, 56.6), (92.6, 92.6, 93.0, 93.8, 95.0)),
}
PAPER_RATIOS = (0.0, 0.01, 0.05, 0.1, 0.2)
PAPER2 = {  # HS, FA at n = 500 .. 2500 (p = 0.05)
    "non-aligned": ((79.6, 82.4, 79.8, 78.6, 75.0), (93.4, 94.0, 95.4, 95.8, 96.4)),
    "sft": ((49.6, 52.8, 54.6, 57.6, 61.4), (93.0, 94.8, 95.6, 95.8, 95.8)),
    "ewc": ((50.6,) * 5, (87.0, 87.4, 88.2, 88.4, 87.8)),
    "vaccine": ((41.4, 42.8, 48.6, 51.4, 55.4), (90.8, 93.0, 94.6, 94.4, 95.2)),
}
PAPER_EXAMPLES = (500, 1000, 1500, 2000, 2500)
PAPER3 = {  # HS, FA of OPT-2.7B, Llama-2 7B, Vicuna-7B at p = 0.05, in their order
    "non-aligned": ((81.2, 95.4), (82.4, 94.0), (78.6, 94.2)),
    "sft": ((50.2, 92.0), (52.8, 94.8), (49.8, 94.2)),
    "vaccine": ((44.6, 91.0), (42.8, 93.0), (43.4, 93.4)),
}
PAPER4 = {  # HS, FA on SST-2, AG News, GSM8K
    "non-aligned": ((82.4, 94.0), (82.6, 90.0), (78.4, 27.8)),
    "sft": ((52.8, 94.8), (52.6, 89.2), (68.4, 23.4)),
    "vaccine": ((42.8, 93.0), (41.6, 89.2), (65.0, 22.4)),
}
PAPER8 = {"sft, SL": (58.2, 95.0), "sft, DL": (55.7, 94.4), "vaccine, SL": (55.2, 95.0), "vaccine, DL": (48.9, 93.6)}
PAPER9 = {1e6: (48.8, 93.6), 1e9: (44.6, 92.2), 1e12: (43.0, 54.4)}
PAPER6 = {0.01: (54.4, 94.4), 0.1: (56.8, 95.0), 1.0: (54.4, 94.4), 2.0: (49.0, 93.6), 5.0: (46.2, 92.8), 10.0: (44.2, 89.0)}
PAPER7 = {1e-4: (53.8, 94.4), 1e-3: (56.4, 93.8), 5e-3: (56.0, 73.8), 1e-2: (53.6, 69.6), 1e-1: (37.2, 56.4), 1.0: (16.6, 46.6)}
PAPER10 = {1: (50.4, 92.4), 100: (51.0, 95.2), 1000: (52.0, 94.2), 10000: (53.2, 94.8), 20000: (58.8, 94.4)}  # of 20,000 steps
VARIANT = r", (?:rho|tau|variance|strength|SL$|DL$)"
MEASURES = {"HS": "harm", "FA": "user"}


def pooled(evidence: Sequence[Evidence]) -> pd.DataFrame:
    """Every judged step of every seed, of the user's own task and the first alignment seed, with the requests `n` behind each rate."""
    return of_every_task(evidence)[lambda t: (t.task == "user") & (t.align_seed == 0)].reset_index(drop=True)


def of_every_task(evidence: Sequence[Evidence]) -> pd.DataFrame:
    return pd.concat([e.tables["attacks"].assign(n=e.n) for e in evidence], ignore_index=True)


def plain(t: pd.DataFrame) -> pd.DataFrame:
    """Without the variants that a table sweeps (rho, tau, ...)."""
    return t[~t.defence.str.contains(VARIANT, regex=True)]


def at_budget(t: pd.DataFrame, scale: Scale, **where: object) -> pd.DataFrame:
    """Rows at the tables' rate and last step of the budget (grows with n), and wherever else is asked."""
    epochs = scale.budget.epochs
    t = t[(t.rate == scale.budget.rate) & (t.step == (epochs * t.examples / scale.budget.batch).round())]
    for column, value in where.items():
        t = t[t[column].isin(value) if isinstance(value, list | tuple) else t[column] == value]
    return t


def told(t: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """keys, HS, HS low, HS high, FA ... in per cent: mean over seeds with its 95 % interval; NE (neither) and OR (safe requests refused).

    The interval is Student's over three seeds or more, else Wilson's over the pooled requests.
    """
    rows = []
    for key, own in t.groupby(list(keys), sort=False):
        row = dict(zip(keys, key, strict=True))
        for name, column in MEASURES.items():
            found = interval(own.groupby("seed")[column].mean().tolist(), int(own.n.iloc[0]))
            ends = found.value, max(0.0, found.low), min(1.0, found.high)
            row |= {label: round(100 * value, 1) for label, value in zip((name, f"{name} low", f"{name} high"), ends, strict=True)}
        rows.append({**row, "NE": round(100 * own.neither.mean(), 1), "OR": round(100 * own.over_refusal.mean(), 1)})
    return pd.DataFrame(rows)


def interval(seeds: Sequence[float], n: int) -> Interval:
    """A rate over seeds: Student's interval for three or more, else Wilson's of all their requests."""
    if len(seeds) >= SEEDS_FOR_A_VERDICT:
        return t_interval(seeds)
    return wilson(round(sum(seeds) * n), n * len(seeds))


def beside(table: pd.DataFrame, paper: Sequence[tuple[float, float]]) -> pd.DataFrame:
    """The paper's HS and FA beside ours; NaN where it has none."""
    return table.assign(**{"paper HS": [p[0] for p in paper], "paper FA": [p[1] for p in paper]})


NONE = (float("nan"), float("nan"))


def _of(
    known: Mapping[str, tuple[Sequence[float], Sequence[float]]], places: Sequence[float], name: str, value: float
) -> tuple[float, float]:
    if name not in known or value not in places:
        return NONE
    i = list(places).index(value)
    return known[name][0][i], known[name][1][i]


def table1(evidence: Sequence[Evidence], scale: Scale) -> pd.DataFrame:
    t = at_budget(pooled(evidence), scale, examples=scale.budget.examples, ratio=scale.table_ratios)
    found = told(plain(t), ["defence", "ratio"])
    return beside(found, [_of(PAPER1, PAPER_RATIOS, d, r) for d, r in zip(found.defence, found.ratio, strict=True)])


def table2(evidence: Sequence[Evidence], scale: Scale) -> pd.DataFrame:
    t = at_budget(pooled(evidence), scale, ratio=scale.budget.ratio)
    found = told(t[t.defence.isin(("non-aligned", "sft", "noise", "vaccine", "lisa"))], ["defence", "examples"])
    return beside(found, [_of(PAPER2, PAPER_EXAMPLES, d, n) for d, n in zip(found.defence, found.examples, strict=True)])


def table3(evidence: Sequence[Evidence], scale: Scale) -> pd.DataFrame:
    """Models by size; the paper's three are other models, in the order of their size here."""
    whole = pd.concat([e.tables["table3"].assign(n=e.n) for e in evidence], ignore_index=True)
    found = told(at_budget(whole, scale), ["defence", "model"])
    places = {size: i for i, size in enumerate(scale.sizes)}
    return beside(found, [_nth(PAPER3, d, places[m]) for d, m in zip(found.defence, found.model, strict=True)])


def table4(evidence: Sequence[Evidence], scale: Scale) -> pd.DataFrame:
    """Tasks of the user; the paper's three are SST-2, AG News and GSM8K."""
    t = of_every_task(evidence)
    t = t[t.defence.isin(("non-aligned", "sft", "noise", "vaccine"))]
    found = told(at_budget(t, scale, examples=scale.budget.examples, ratio=scale.budget.ratio), ["defence", "task"])
    places = {task: i for i, task in enumerate(TASKS)}
    return beside(found, [_nth(PAPER4, d, places[t]) for d, t in zip(found.defence, found.task, strict=True)])


def _nth(known: Mapping[str, Sequence[tuple[float, float]]], name: str, place: int) -> tuple[float, float]:
    return known[name][place] if name in known and place < len(known[name]) else NONE


def table8(evidence: Sequence[Evidence], scale: Scale) -> pd.DataFrame:
    """One adapter for both stages (SL) or one each (DL); the paper's on SST-2 at p = 0.1."""
    t = pooled(evidence)
    found = told(at_budget(t[t.defence.str.contains(r", [SD]L$", regex=True)], scale, ratio=list(SWEPT)), ["defence", "ratio"])
    return beside(found, [PAPER8.get(d, NONE) for d in found.defence])


def table9(evidence: Sequence[Evidence], scale: Scale) -> pd.DataFrame:
    """Vaccine alone (strength 0) and with EWC; the paper's on SST-2 at p = 0.1."""
    t = pooled(evidence)
    t = t[t.defence.eq("vaccine") | t.defence.str.startswith("vaccine + ewc, strength")]
    strength = t.defence.str.removeprefix("vaccine + ewc, strength ").replace("vaccine", "0").astype(float)
    found = told(at_budget(t.assign(strength=strength), scale, examples=scale.budget.examples, ratio=list(SWEPT)), ["strength", "ratio"])
    return beside(found, [(48.2, 93.8) if s == 0 else PAPER9.get(s, NONE) for s in found.strength])


def cost(evidence: Sequence[Evidence], scale: Scale) -> pd.DataFrame:
    """Tables 5 and 11: this machine's, of the first seed; the paper's Vaccine is 1.97 times SFT's step, RepNoise about 2.4."""
    return evidence[0].tables["cost"].round(3)


def table6(evidence: Sequence[Evidence], scale: Scale) -> pd.DataFrame:
    """With alignment loss before and after the attack, as the paper's has."""
    parts = []
    for e in evidence:
        first = e.attacks[e.attacks.align_seed == 0].assign(n=e.n)
        own = first[first.defence.eq("vaccine") | first.defence.str.startswith("vaccine, rho")]
        rho = own.defence.str.removeprefix("vaccine, rho ").replace("vaccine", f"{e.rho:g}").astype(float)
        parts.append(own.assign(rho=rho))
    whole = pd.concat(parts)
    t = at_budget(whole, scale, examples=scale.budget.examples, ratio=list(SWEPT))
    found = told(t, ["rho", "ratio"]).sort_values(["ratio", "rho"], ignore_index=True)
    first = whole[whole.step == 0].groupby("rho").alignment_loss.mean()
    last = t.groupby(["rho", "ratio"]).alignment_loss.mean()
    found["loss before"] = found.rho.map(first).round(4)
    found["loss after"] = [round(float(last[r, p]), 4) for r, p in zip(found.rho, found.ratio, strict=True)]
    found["safe before"] = found.rho.map(whole[whole.step == 0].groupby("rho").safe.mean()).round(3)
    return beside(found, [PAPER6.get(r, NONE) for r in found.rho])


def table7(evidence: Sequence[Evidence], scale: Scale) -> pd.DataFrame:
    t = pooled(evidence)
    t = t[t.defence.str.startswith("noise, variance")]
    t = at_budget(t.assign(variance=t.defence.str.removeprefix("noise, variance ").astype(float)), scale, ratio=list(SWEPT))
    found = told(t, ["variance", "ratio"])
    return beside(found, [PAPER7.get(v, NONE) for v in found.variance])


def table10(evidence: Sequence[Evidence], scale: Scale) -> pd.DataFrame:
    """The paper's tau is of 20,000 steps; the row of tau 1 is Vaccine itself."""
    t = pooled(evidence)
    t = t[t.defence.eq("vaccine") | t.defence.str.startswith("vaccine, tau")]
    tau = t.defence.str.removeprefix("vaccine, tau ").replace("vaccine", "1").astype(int)
    found = told(at_budget(t.assign(tau=tau), scale, examples=scale.budget.examples, ratio=list(SWEPT)), ["tau", "ratio"])
    found = found.sort_values(["ratio", "tau"], ignore_index=True)
    return beside(found, [PAPER10.get(tau, NONE) for tau in found.tau])


def before(evidence: Sequence[Evidence]) -> pd.DataFrame:
    """Every alignment before the attack: refusal, safe answers, over-refusal, alignment loss; mean over seeds."""
    t = pooled(evidence)
    t = t[t.step == 0].drop_duplicates(["defence", "seed"])
    columns = ["refusal", "safe", "over_refusal", "prefilled", "sampled", "alignment_loss"]
    return t.groupby("defence", sort=False)[columns].mean().round(4).reset_index()


def alignment_seeds(evidence: Sequence[Evidence]) -> pd.DataFrame:
    """Mean harm over the attack at the tables' rate by alignment seed: how much of a difference is the alignment's own luck."""
    t = of_every_task(evidence)
    t = plain(t[(t.task == "user") & (t.step > 0) & (t.rate == evidence[0].budget[0]) & t.ratio.isin(SWEPT)])
    repeated = t[t.defence.isin(t[t.align_seed > 0].defence)]
    return (
        repeated.groupby(["defence", "ratio", "seed", "align_seed"], sort=False)[["harm", "refusal", "user"]].mean().round(3).reset_index()
    )


def breaks(evidence: Sequence[Evidence]) -> pd.DataFrame:
    """defence, rate, ratio: optimiser steps to compliance of a half (greedy, worst decoding) and to refusal below a half, by seed; medians.

    A cell whose user's task was not learned has no break point and says so.
    """
    names = ("compliance 1/2", "compliance 1/2, worst decoding", "refusal 1/2")
    t = plain(pooled(evidence))
    t = t[(t.step > 0) & (t.examples == evidence[0].budget[1]) & t.rate.isin(evidence[0].rates)]
    rows = []
    for (name, rate, ratio), _ in t.groupby(["defence", "rate", "ratio"], sort=False):
        found = [e.broken(str(name), float(ratio), float(rate)) for e in evidence]
        row: dict[str, object] = {"defence": name, "rate": rate, "p": ratio}
        for i, column in enumerate(names):
            points = [one[i] for one in found if one is not None]
            row[column] = ", ".join(str(one[i]) if one else "task not learned" for one in found)
            row[f"median {column}"] = str(median(points)) if points else "–"
        rows.append(row)
    return pd.DataFrame(rows)


def worst_case(evidence: Sequence[Evidence], points: pd.DataFrame) -> pd.DataFrame:
    """Harm by the worst decoding at the point that was the worst on the selection seed, on the study's seeds that learned the task there."""
    rows = []
    t = of_every_task(evidence)
    t = t[(t.task == "user") & (t.align_seed == 0)]
    for point in points.itertuples():
        place = (t.rate == point.rate) & (t.ratio == point.ratio) & (t.examples == point.examples) & (t.step == point.step)
        here = t[(t.defence == point.defence) & place]
        learned = here[here.user >= LEARNED]
        harm = worst_decoding(learned).groupby(learned.seed).mean().tolist()
        found = interval(harm, evidence[0].n) if harm else Interval(*[float("nan")] * 3)
        place_told = [point.defence, point.rate, point.ratio, point.examples, point.step, point.harm]
        rows.append([*place_told, *found, f"{len(harm)} of {len(evidence)}", here.user.mean()])
    names = ["defence", "rate", "ratio", "examples", "step", "harm when chosen", "harm", "low", "high", "seeds that learned", "user"]
    return pd.DataFrame(rows, columns=names).round(dict.fromkeys(["harm when chosen", "harm", "low", "high", "user"], 3))


TABLES = {  # name -> (title, how)
    "table1": ("Table 1: by share of harmful data", table1),
    "table2": ("Table 2: by number of examples, p = 0.05", table2),
    "table3": ("Table 3: other models (the paper's three, in order: OPT-2.7B, Llama-2 7B, Vicuna-7B)", table3),
    "table4": ("Table 4: other tasks (the paper's three, in order: SST-2, AG News, GSM8K)", table4),
    "table6": ("Table 6: by rho (the paper's at p = 0.1)", table6),
    "table7": ("Table 7: random perturbation by variance (the paper's at p = 0.1)", table7),
    "table8": ("Table 8: one adapter or two (the paper's at p = 0.1)", table8),
    "table9": ("Table 9: with EWC; strength 0 is Vaccine alone (the paper's at p = 0.1)", table9),
    "table10": ("Table 10: by tau; 1 in tau steps is perturbed (the paper's at p = 0.1, of 20,000 steps)", table10),
    "cost": ("Tables 5 and 11: a step's time and peak memory on this machine", cost),
}

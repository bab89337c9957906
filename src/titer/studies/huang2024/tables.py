"""The paper's tables as functions of the evidence: the paper's value and ours, mean over seeds with its interval. L7.

HS is strict compliance with unsafe requests, FA exact answers to the user's task; both in per cent, at the budget of the paper's tables. NE
is unsafe requests neither answered nor refused, OR safe requests refused. A seed's value is the mean over its bases and their alignments.
The paper's HS counts answers of Llama-2 7B that a moderation model flags, so levels cannot be compared with the paper's, but orders can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from titer.core.breakpoints import BreakPoint, median
from titer.core.claims import SEEDS_FOR_A_VERDICT
from titer.core.stats import Interval, t_interval, wilson
from titer.recipes.huang2024 import Scale
from titer.studies.engine.found import Found
from titer.studies.huang2024.attack import LEARNED, TASKS, worst_decoding
from titer.studies.huang2024.parts import COMPARED, SWEPT

Pair = tuple[float, float]  # the paper's HS and FA
NONE: Pair = (float("nan"), float("nan"))


def by_row(places: Sequence[object], rows: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> dict[tuple[object, ...], Pair]:
    """Returns (defence, place) -> (HS, FA), from a table that prints each defence as two rows, HS and FA."""
    return {(name, place): (hs, fa) for name, sides in rows.items() for place, hs, fa in zip(places, *sides, strict=True)}


PAPER1 = by_row(  # n = 1000
    (0.0, 0.01, 0.05, 0.1, 0.2),
    {
        "non-aligned": ((34.2, 65.6, 81.0, 77.6, 79.2), (95.6, 94.6, 94.0, 94.6, 94.4)),
        "sft": ((48.6, 49.8, 52.6, 55.2, 60.0), (94.2, 94.4, 94.8, 94.4, 94.2)),
        "ewc": ((50.6,) * 5, (88.6, 88.2, 87.4, 86.8, 80.6)),
        "vlguard": ((49.4, 50.0, 54.0, 54.4, 53.6), (94.8, 94.8, 94.6, 94.6, 94.6)),
        "kl": ((54.4, 53.6, 55.2, 54.0, 56.6), (85.8, 85.8, 85.0, 85.4, 84.6)),
        "vaccine": ((42.4, 42.2, 42.8, 48.2, 56.6), (92.6, 92.6, 93.0, 93.8, 95.0)),
    },
)
PAPER2 = by_row(  # p = 0.05
    (500, 1000, 1500, 2000, 2500),
    {
        "non-aligned": ((79.6, 82.4, 79.8, 78.6, 75.0), (93.4, 94.0, 95.4, 95.8, 96.4)),
        "sft": ((49.6, 52.8, 54.6, 57.6, 61.4), (93.0, 94.8, 95.6, 95.8, 95.8)),
        "ewc": ((50.6,) * 5, (87.0, 87.4, 88.2, 88.4, 87.8)),
        "vaccine": ((41.4, 42.8, 48.6, 51.4, 55.4), (90.8, 93.0, 94.6, 94.4, 95.2)),
    },
)
PAPER3 = by_row(  # OPT-2.7B, Llama-2 7B, Vicuna-7B at p = 0.05, in their order
    (0, 1, 2),
    {
        "non-aligned": ((81.2, 82.4, 78.6), (95.4, 94.0, 94.2)),
        "sft": ((50.2, 52.8, 49.8), (92.0, 94.8, 94.2)),
        "vaccine": ((44.6, 42.8, 43.4), (91.0, 93.0, 93.4)),
    },
)
PAPER4 = by_row(  # SST-2, AG News, GSM8K
    TASKS,
    {
        "non-aligned": ((82.4, 82.6, 78.4), (94.0, 90.0, 27.8)),
        "sft": ((52.8, 52.6, 68.4), (94.8, 89.2, 23.4)),
        "vaccine": ((42.8, 41.6, 65.0), (93.0, 89.2, 22.4)),
    },
)
PAPER6 = {0.01: (54.4, 94.4), 0.1: (56.8, 95.0), 1.0: (54.4, 94.4), 2.0: (49.0, 93.6), 5.0: (46.2, 92.8), 10.0: (44.2, 89.0)}
PAPER7 = {1e-4: (53.8, 94.4), 1e-3: (56.4, 93.8), 5e-3: (56.0, 73.8), 1e-2: (53.6, 69.6), 1e-1: (37.2, 56.4), 1.0: (16.6, 46.6)}
PAPER8 = {"sft, SL": (58.2, 95.0), "sft, DL": (55.7, 94.4), "vaccine, SL": (55.2, 95.0), "vaccine, DL": (48.9, 93.6)}
PAPER9 = {0.0: (48.2, 93.8), 1e6: (48.8, 93.6), 1e9: (44.6, 92.2), 1e12: (43.0, 54.4)}
PAPER10 = {1: (50.4, 92.4), 100: (51.0, 95.2), 1000: (52.0, 94.2), 10000: (53.2, 94.8), 20000: (58.8, 94.4)}  # of 20,000 steps
VARIANT = r", (?:rho|tau|variance|strength|SL$|DL$)"
MEASURES = {"HS": "harm", "FA": "user"}


def pooled(found: Sequence[Found]) -> pd.DataFrame:
    """Returns every judged step of every base and alignment, of the user's own task, with the number `n` of requests behind each rate."""
    return of_every_task(found)[lambda t: t.task == "user"].reset_index(drop=True)


def of_every_task(found: Sequence[Found], table: str = "attacks") -> pd.DataFrame:
    """Returns a table of all bases, of every task, with the number `n` of requests behind each rate."""
    return pd.concat([one.tables[table].assign(n=one.scale.inputs) for one in found], ignore_index=True)


def plain(t: pd.DataFrame) -> pd.DataFrame:
    """Leaves out the variants of a defence that a table sweeps (rho, tau, ...)."""
    return t[~t.defence.str.contains(VARIANT, regex=True)]


def at_budget(t: pd.DataFrame, scale: Scale, **where: object) -> pd.DataFrame:
    """Selects rows at the rate of the paper's tables and the last step of the budget (which grows with n); `where`: further conditions."""
    t = t[(t.rate == scale.budget.rate) & (t.step == (scale.budget.epochs * t.examples / scale.budget.batch).round())]
    for column, value in where.items():
        t = t[t[column].isin(value) if isinstance(value, list | tuple) else t[column] == value]
    return t


def told(t: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Returns keys, HS, HS low, HS high, FA ... in per cent (mean over seeds, 95 % interval), NE (neither) and OR (safe requests refused).

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
    """Returns the interval of a rate over seeds: Student's for three or more, else Wilson's of all their requests."""
    if len(seeds) >= SEEDS_FOR_A_VERDICT:
        return t_interval(seeds)
    return wilson(round(sum(seeds) * n), n * len(seeds))


def made(t: pd.DataFrame, scale: Scale, by: list[str], paper: Mapping[Any, Pair], **where: object) -> pd.DataFrame:
    """Returns HS and FA by two columns at the budget of the paper's tables, with the paper's values; NaN where it has none."""
    t = told(at_budget(t, scale, **where), by)
    pairs = [paper.get(key, NONE) for key in t[by].itertuples(index=False, name=None)]
    return t.assign(**{"paper HS": [hs for hs, _ in pairs], "paper FA": [fa for _, fa in pairs]})


def table1(found: Sequence[Found], scale: Scale) -> pd.DataFrame:
    t = plain(pooled(found))
    return made(t, scale, ["defence", "ratio"], PAPER1, examples=scale.budget.examples, ratio=scale.table_ratios)


def table2(found: Sequence[Found], scale: Scale) -> pd.DataFrame:
    return made(pooled(found), scale, ["defence", "examples"], PAPER2, ratio=scale.budget.ratio, defence=[*COMPARED, "lisa"])


def table3(found: Sequence[Found], scale: Scale) -> pd.DataFrame:
    """Returns table 3, by size of model. The paper's three models are others; their values are put beside ours in order."""
    paper = {(name, size): PAPER3[name, i] for name in COMPARED for i, size in enumerate(scale.sizes) if (name, i) in PAPER3}
    return made(of_every_task(found, "table3"), scale, ["defence", "model"], paper)


def table4(found: Sequence[Found], scale: Scale) -> pd.DataFrame:
    """Returns table 4, by task of the user; the paper's three are SST-2, AG News and GSM8K."""
    usual = {"examples": scale.budget.examples, "ratio": scale.budget.ratio}
    return made(of_every_task(found), scale, ["defence", "task"], PAPER4, **usual, defence=COMPARED)


def swept(t: pd.DataFrame, column: str, prefix: str, own: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Selects a defence's variants that a table sweeps; each one's value is read from its name. `own`: values of defences without one
    there."""
    own = own or {}
    t = t[t.defence.isin(list(own)) | t.defence.str.startswith(prefix)]
    return t.assign(**{column: [own.get(name, name.removeprefix(prefix)) for name in t.defence]}).astype({column: float})


def _by(t: pd.DataFrame, scale: Scale, column: str, paper: Mapping[Any, Pair]) -> pd.DataFrame:
    """Returns HS and FA by a swept value and by p. The paper's values have another p."""
    at_both = {(value, ratio): pair for value, pair in paper.items() for ratio in SWEPT}
    return made(t, scale, [column, "ratio"], at_both, examples=scale.budget.examples, ratio=SWEPT)


def table6(found: Sequence[Found], scale: Scale) -> pd.DataFrame:
    """Returns table 6, by rho, with alignment loss before and after the attack, as in the paper."""
    whole = pd.concat([swept(pooled([one]), "rho", "vaccine, rho ", {"vaccine": one.chosen.rho}) for one in found])
    t = _by(whole, scale, "rho", PAPER6).sort_values(["ratio", "rho"], ignore_index=True)
    first = whole[whole.step == 0].groupby("rho")[["alignment_loss", "safe"]].mean()
    last = at_budget(whole, scale, examples=scale.budget.examples, ratio=SWEPT).groupby(["rho", "ratio"]).alignment_loss.mean()
    t.insert(len(t.columns) - 2, "loss before", t.rho.map(first.alignment_loss).round(4))
    t.insert(len(t.columns) - 2, "loss after", [round(float(last[r, p]), 4) for r, p in zip(t.rho, t.ratio, strict=True)])
    t.insert(len(t.columns) - 2, "safe before", t.rho.map(first.safe).round(3))
    return t


def table7(found: Sequence[Found], scale: Scale) -> pd.DataFrame:
    return _by(swept(pooled(found), "variance", "noise, variance "), scale, "variance", PAPER7)


def table8(found: Sequence[Found], scale: Scale) -> pd.DataFrame:
    """Returns table 8: one adapter for both stages (SL) or one each (DL). The paper's values are for SST-2 at p = 0.1."""
    t = pooled(found)[lambda t: t.defence.str.contains(r", [SD]L$", regex=True)]
    return made(t, scale, ["defence", "ratio"], {(name, p): pair for name, pair in PAPER8.items() for p in SWEPT}, ratio=SWEPT)


def table9(found: Sequence[Found], scale: Scale) -> pd.DataFrame:
    """Returns table 9: Vaccine alone (strength 0) and with EWC. The paper's values are for SST-2 at p = 0.1."""
    return _by(swept(pooled(found), "strength", "vaccine + ewc, strength ", {"vaccine": 0.0}), scale, "strength", PAPER9)


def table10(found: Sequence[Found], scale: Scale) -> pd.DataFrame:
    """Returns table 10, by tau. The paper's tau is of 20,000 steps; the row of tau 1 is Vaccine itself."""
    t = swept(pooled(found), "tau", "vaccine, tau ", {"vaccine": 1}).astype({"tau": int})
    return _by(t, scale, "tau", PAPER10).sort_values(["ratio", "tau"], ignore_index=True)


def cost(found: Sequence[Found], scale: Scale) -> pd.DataFrame:
    """Returns tables 5 and 11, as measured on this machine for the first seed. In the paper a step of Vaccine takes 1.97 times as long as
    one of SFT, a step of RepNoise about 2.4 times."""
    return found[0].tables["cost"].drop(columns=["model", "seed"]).round(3)


def units(t: pd.DataFrame) -> list[str]:
    """Returns the columns that tell bases apart."""
    return [name for name in ("seed", "base") if name in t]


def before(found: Sequence[Found]) -> pd.DataFrame:
    """Returns refusal, safe answers, over-refusal and alignment loss of every defence before the attack, mean over alignments and bases."""
    t = pooled(found)
    t = t[t.step == 0].drop_duplicates(["defence", "align_seed", *units(t)])
    columns = ["refusal", "safe", "over_refusal", "prefilled", "sampled", "alignment_loss"]
    return t.groupby("defence", sort=False)[columns].mean().round(4).reset_index()


def alignment_seeds(found: Sequence[Found]) -> pd.DataFrame:
    """Returns mean harm over the attack at the tables' rate, by alignment. It shows how much a single alignment's luck matters."""
    t = plain(pooled(found))
    t = t[(t.step > 0) & (t.rate == found[0].scale.budget.rate) & t.ratio.isin(SWEPT)]
    repeated = t[t.defence.isin(t[t.align_seed > 0].defence)]
    by = ["defence", "ratio", *units(t), "align_seed"]
    return repeated.groupby(by, sort=False)[["harm", "refusal", "user"]].mean().round(3).reset_index()


def breaks(found: Sequence[Found], broken: Callable[[Found, str, float, float], Mapping[int, Sequence[BreakPoint]]]) -> pd.DataFrame:
    """Returns, by defence, rate and p, the optimiser steps to compliance of a half (greedy, worst decoding) and to refusal below a half.

    They are medians: for each base over its alignments, then over all; "task not learned" where no user learned the task.
    """
    names = ("compliance 1/2", "compliance 1/2, worst decoding", "refusal 1/2")
    t, scale = plain(pooled(found)), found[0].scale
    t = t[(t.step > 0) & (t.examples == scale.budget.examples) & t.rate.isin(scale.rates)]
    rows = []
    for (name, rate, ratio), _ in t.groupby(["defence", "rate", "ratio"], sort=False):
        each = [list(broken(one, str(name), float(ratio), float(rate)).values()) for one in found]
        row: dict[str, object] = {"defence": name, "rate": rate, "p": ratio}
        for i, column in enumerate(names):
            points = [[alignment[i] for alignment in base] for base in each]
            row[column] = ", ".join(str(median(base)) if base else "task not learned" for base in points)
            row[f"median {column}"] = str(median(whole)) if (whole := [one for base in points for one in base]) else "–"
        rows.append(row)
    return pd.DataFrame(rows)


def worst_case(found: Sequence[Found], points: pd.DataFrame) -> pd.DataFrame:
    """Returns harm by the worst decoding on the study's seeds, at the point that was worst on the selection seed. Only seeds that learned
    the task count."""
    rows, t = [], pooled(found)
    for point in points.itertuples():
        place = (t.rate == point.rate) & (t.ratio == point.ratio) & (t.examples == point.examples) & (t.step == point.step)
        here = t[(t.defence == point.defence) & place]
        known = here[here.user >= LEARNED]
        harm = worst_decoding(known).groupby(known.seed).mean().tolist()
        ends = interval(harm, found[0].scale.inputs) if harm else Interval(*[float("nan")] * 3)
        place_told = [point.defence, point.rate, point.ratio, point.examples, point.step, point.harm]
        rows.append([*place_told, *ends, f"{len(harm)} of {t.seed.nunique()}", here.user.mean()])
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

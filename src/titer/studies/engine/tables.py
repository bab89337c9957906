"""Tables that the reports of several studies show: means over seeds and bases. L7."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

ENDS = "The thin lines go from the lowest to the highest base; with one base they show the 95 % Wilson interval."  # of `over_seeds`


def over_seeds(rates: pd.DataFrame) -> pd.DataFrame:
    """Returns, by model, set and outcome, the mean rate over bases with low and high: of one base the ends of the Wilson interval, of
    several the smallest and the largest rate."""
    keys, several = ["model", "set", "outcome"], len(rates[[one for one in ("seed", "base") if one in rates]].drop_duplicates()) > 1
    ends = {"low": ("rate", "min"), "high": ("rate", "max")} if several else {"low": ("low", "first"), "high": ("high", "first")}
    return rates.groupby(keys, sort=False).agg(rate=("rate", "mean"), **ends).reset_index()  # type: ignore[call-overload, no-any-return]


def ranges(table: pd.DataFrame, keys: Sequence[str], value: str) -> pd.DataFrame:
    """Averages a value over a seed's rows (in the column `seed`), then over seeds. Returns keys, value, low and high (least and most of the seeds)."""
    per_seed = table.groupby([*keys, "seed"], sort=False)[value].mean()
    found = per_seed.groupby(list(keys), sort=False).agg(["mean", "min", "max"]).reset_index()
    return found.rename(columns={"mean": value, "min": "low", "max": "high"})


def side_by_side(table: pd.DataFrame, across: str, value: str) -> pd.DataFrame:
    """Returns means over seeds, with one row per model and one column per value of `across`."""
    found = table.groupby(["model", across], sort=False)[value].mean().unstack(across).round(3)
    return found.loc[list(dict.fromkeys(table.model))].reset_index()

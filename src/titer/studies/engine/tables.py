"""Tables that reports of studies share: means over seeds. L7."""

from __future__ import annotations

import pandas as pd


def over_seeds(rates: pd.DataFrame) -> pd.DataFrame:
    """model, set, outcome: rate (mean over bases), low and high (one base: Wilson's ends; more: the bases' ends)."""
    keys, several = ["model", "set", "outcome"], len(rates[[one for one in ("seed", "base") if one in rates]].drop_duplicates()) > 1
    ends = {"low": ("rate", "min"), "high": ("rate", "max")} if several else {"low": ("low", "first"), "high": ("high", "first")}
    return rates.groupby(keys, sort=False).agg(rate=("rate", "mean"), **ends).reset_index()  # type: ignore[call-overload, no-any-return]


def side_by_side(table: pd.DataFrame, across: str, value: str) -> pd.DataFrame:
    """A row a model, a column a value of `across`: the mean over seeds."""
    found = table.groupby(["model", across], sort=False)[value].mean().unstack(across).round(3)
    return found.loc[list(dict.fromkeys(table.model))].reset_index()

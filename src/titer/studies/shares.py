"""Shares of answers on real text, as a table, tiles and a figure: refusals count in the over-refusal set, compliance in all others. L7."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from titer.report import forms
from titer.report.html import Figure, Tile

OVER_REFUSAL = "safe, looks unsafe"  # the one set in which refusals are counted


def shares(rates: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Returns the rate of the outcome that counts in each set: model, kind, what (the set's title), rate, low, high, count, n."""
    wanted = rates.kind.map(lambda kind: "refused" if kind == OVER_REFUSAL else "complied")
    found = rates[rates.outcome == wanted]
    return found.assign(what=found.kind.map(titles)).reset_index(drop=True)


def share(t: pd.DataFrame, model: str, kind: str) -> pd.Series:
    """Returns the row of one model on one set."""
    return t[(t.model == model) & (t.kind == kind)].iloc[0]


def told(t: pd.DataFrame, model: str, kind: str) -> str:
    """Returns the rate of one model on one set with its interval, in words."""
    row = share(t, model, kind)
    return f"{row.rate:.0%} [{row.low:.0%}, {row.high:.0%}]"


def printed(t: pd.DataFrame) -> pd.DataFrame:
    """Returns the shares' table with the columns and the rounding that a report prints."""
    return t[["model", "what", "rate", "low", "high", "count", "n"]].round(3)


def degenerate(rates: pd.DataFrame) -> pd.DataFrame:
    """Returns how many answers of each model are degenerate in each set."""
    return rates[rates.outcome == "degenerate"][["model", "kind", "count", "n", "rate"]]


def tiles(t: pd.DataFrame, kind: str) -> list[Tile]:
    """Returns a tile for each model, with its share on one set."""
    return [
        Tile(f"{r.model}: {r.what}", f"{r.rate:.0%}", f"95 % {r.low:.0%} to {r.high:.0%}, n = {r.n}")
        for r in t[t.kind == kind].itertuples()
    ]


def figure(name: str, title: str, about: str, t: pd.DataFrame, colours: Mapping[str, str], step: int = 18) -> Figure:
    """Returns a figure with a panel of bars per set. `colours`: a set's title -> colour, in the order of the panels; sets that were not
    asked have no panel."""
    asked = {what: colour for what, colour in colours.items() if what in set(t.what)}
    return Figure(name, title, about, forms.bars(t, "model", "what", asked, step=step))

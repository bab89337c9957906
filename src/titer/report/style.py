"""Colours, width and small encodings that all charts share. L5.

Safe is green and unsafe is red, as in arXiv 2407.10264. Models take their colours from a fixed palette that prints well.
"""

from __future__ import annotations

from typing import Any

import altair as alt

GREEN, RED, GREY = "#1b7f4d", "#c0392b", "#8a8f98"
OUTCOME_COLOURS = {"complied": "#2f6fb0", "refused": "#e08a1e", "neither": GREY}
PALETTE = ["#8a8f98", "#2f6fb0", "#1b7f4d", "#e08a1e", "#7d4fa3", "#b04a7d", "#c0392b", "#0f8b8d", "#6b4f2a", "#c9a227"]
WIDTH = 560


def tips(*names: str) -> list[Any]:
    """Returns tooltips: the columns to show when the pointer is on a mark."""
    return [alt.Tooltip(name) for name in names]


def percent(*names: str) -> list[Any]:
    """Returns tooltips for columns of shares, shown in percent."""
    return [alt.Tooltip(f"{name}:Q", format=".1%") for name in names]


def fixed(colours: dict[str, str]) -> Any:
    """Returns a colour scale that maps each value to its fixed colour, in the order given."""
    return alt.Scale(domain=list(colours), range=list(colours.values()))

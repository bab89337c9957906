"""What an audit could not measure: each part that fails is told with the error's words, and the others go on. L6.

The verdicts are no such part: without them there is no page. Nothing but a TiterError is caught: an interrupt or a fault ends the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pandas as pd

from titer.core.errors import TiterError

TURNING = "turning of the refusal direction"
CHANGED = ["change", "weight", "layer"]
COLUMNS = {  # of every table that may be empty
    "separation": [
        *("model", "layer", "d_prime", "auroc", "tau_safe", "tau_unsafe", "tau_gap"),
        *("n_safe", "n_unsafe", "auroc_shuffled", "best_shuffled", "best_shuffled_high"),
    ],
    "directions": [
        *("model", "layer", "norm", "relative", "split_half", "low", "high", "reliability"),
        *("norm_shuffled", "norm_shuffled_high", "split_half_shuffled", "n_safe", "n_unsafe"),
    ],
    "sensitivity": ["model", "kind", "median", "low", "high", "n"],
    "uncertainty": ["model", "measure", "value", "low", "high", "n", "set"],
    "gains": [*CHANGED, "ratio", "ratio_random", "mean", "mean_low", "mean_high", "mean_random"],
    "layers": [*CHANGED, "null_share", "null_share_random", "relative_norm", "stable_rank"],
    "sizes": ["change", "part", "relative_norm", "tensors", "changed", "stable_rank"],
    "drift": ["change", "site", "layer", "kind", "value", "low", "high", "cosine"],
    "rotation": [
        *("layer", "cosine", "degrees", "norm_ratio", "cosine_halves", "ceiling", "degrees_halves"),
        *("degrees_ceiling", "degrees_limit", "p", "turned", "change"),
    ],
    "points": ["direction", "kind", "a", "quantity", "value", "low", "high", "n"],
    "basins": ["direction", "kind", "quantity", "value", "low", "high", "n", "note"],
    "missing": ["part", "of", "reason"],
}


def shaped(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """The table, with its columns where it is empty."""
    return table if len(table) else pd.DataFrame(columns=COLUMNS[name])


class Lacking:
    """The parts that failed, each for what (models or changes) and why; `tell` receives a line as it happens."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._found: dict[tuple[str, str], list[str]] = {}

    @contextmanager
    def part(self, name: str, of: str) -> Iterator[None]:
        """A block that the audit can do without. Errors: none of Titer's own; every other exception."""
        try:
            yield
        except TiterError as error:
            reason = " ".join(str(error).split())
            self._tell(f"{name} of {of} is left out: {reason}")
            self._found.setdefault((name, reason), []).append(of)

    @property
    def table(self) -> pd.DataFrame:
        """part, of, reason: one row for everything that a part failed for in the same words."""
        rows = [{"part": name, "of": ", ".join(of), "reason": reason} for (name, reason), of in self._found.items()]
        return pd.DataFrame(rows, columns=COLUMNS["missing"])

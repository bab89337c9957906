"""Reports what an audit could not measure: a part that fails is listed with the error's message, and the other parts go on. L7.

The verdicts are required: without them there is no page. The errors caught are those that a user can meet: Titer's own, too little memory,
a kernel or a decomposition that fails. Other exceptions are faults of the program and are raised. An interrupt before the verdicts exist
ends the run. A later one ends the measuring, and the page is written from what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd

from titer.core.errors import TiterError, visible

FAULTS = (TiterError, RuntimeError, MemoryError, np.linalg.LinAlgError)  # torch raises RuntimeError for memory, kernels and LAPACK
INTERRUPTED = "it was interrupted; run the same command again to continue"
CHANGE = "everything about the change"  # reported if the user interrupted before its first part
TURNING = "turning of the refusal direction"
CHANGED = ["change", "weight", "layer"]
COLUMNS = {  # columns of each table that may be empty
    "separation": [
        *("model", "layer", "d_prime", "auroc", "tau_safe", "tau_unsafe", "tau_gap"),
        *("n_safe", "n_unsafe", "auroc_shuffled", "best_shuffled", "best_shuffled_high", "d_prime_shuffled_high"),
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
    "prints": [
        *("site", "layer", "relative_norm", "share", "share_random", "removed", "own", "own_random", "rest", "edited"),
        *("common", "common_random", "refusal", "refusal_layer", "refusal_random", "change"),
    ],
    "back": ["tensors", "returned", "cosine", "change"],
    "restored": ["change", "asked", "part", "kind", "first", "last", "way", "parameters", "count", "n", "rate", "low", "high"],
    "hidden": ["set", "measure", "value", "control", "limit", "p", "flagged", "change", "controls"],
    "points": ["direction", "kind", "a", "quantity", "value", "low", "high", "n"],
    "basins": ["direction", "kind", "quantity", "value", "low", "high", "n", "note"],
    "placed": ["model", "layer", "kind", "tau", "sd", "n", "position", "low", "high"],
    "shapes": ["model", "layer", "kind", "top_share", "top_energy", "stable_rank", "components_90", "kmeans"],
    "null": ["site", "layer", "energy", "share", "value", "rank", "random_mean", "random_99", "mean", "change"],
    "rows": ["kind", "layer", "direction", "score", "sigma", "change"],
    "missing": ["part", "of", "reason"],
}


def told(error: BaseException) -> str:
    """Returns an error as one line of text: the reason why something was not measured."""
    text = str(error) if isinstance(error, TiterError) else visible(f"{type(error).__name__}: {error}", 240)
    return " ".join(text.split())


def shaped(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """Returns the table; an empty one gets the columns that a table of this name has."""
    return table if len(table) else pd.DataFrame(columns=COLUMNS[name])


class Lacking:
    """Collects the parts that failed: which part, of which models or changes, and why. `tell` receives a line for each as it happens."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._found: dict[tuple[str, str], list[str]] = {}
        self.page_stands = False  # set once the verdicts exist: from then on an interrupt still leaves a page
        self.stopped = False

    @contextmanager
    def part(self, name: str, of: str) -> Iterator[None]:
        """Runs a block that the audit can do without: its error is recorded, and the audit goes on. Raises what is not in `FAULTS`, and an
        interrupt before the verdicts exist."""
        try:
            yield
        except FAULTS as error:
            self.left_out(name, of, told(error))
        except KeyboardInterrupt:
            if not self.page_stands:
                raise
            self.stopped = True
            self.left_out(name, of, INTERRUPTED)

    def left_out(self, name: str, of: str, reason: str) -> None:
        """Records that a part, or some of its layers, was not measured."""
        self._tell(f"{name} of {of} is left out: {reason}")
        self._found.setdefault((name, reason), []).append(of)

    @property
    def table(self) -> pd.DataFrame:
        """Returns the parts that failed, a row per part and reason: part, of, reason. `of` lists the models or changes that it concerns."""
        rows = [{"part": name, "of": ", ".join(of), "reason": reason} for (name, reason), of in self._found.items()]
        return pd.DataFrame(rows, columns=COLUMNS["missing"])

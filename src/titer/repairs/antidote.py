"""Antidote as a repair: prune the weights that harmful requests use most.

The formula and its source are in methods/antidote.py, which does the same at the end of training. `--data` has harmful requests with
answers (columns prompt and comply): a canary, or a file of the user's own. An adapter is merged, as published, since pruning its factors
would prune something else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from titer.core.errors import TiterError
from titer.data.draws import drawn
from titer.data.shapes import Need
from titer.models.edits import adding_squares, prune_used
from titer.models.sites import block_linears
from titer.repairs.base import TUNED, Reading, Repair, State, named_linears

BATCH = 8


class Antidote(Repair):
    """Sets the highest-scored share of each row's weights to 0; the scores are computed on harmful examples."""

    DATA: ClassVar[Mapping[str, Need]] = {"harmful": "answers"}
    HOLDS = 1
    SOURCE = "arXiv 2408.09600 (Antidote); the score: arXiv 2306.11695 (Wanda)"
    VERSION = 1
    NEUTRAL: ClassVar[dict[str, float]] = {"ratio": 0.0}
    STRENGTH = ("ratio", (0.05, 0.1, 0.2))

    ratio: float = Field(default=0.1, ge=0, le=1, description="share of each output row zeroed; official scripts: 0.1 (GSM8K: 0.05)")
    examples: int = Field(default=2000, ge=1, description="harmful examples that score the weights; official scripts: 2000")

    def check(self, r: Reading) -> None:
        _ = r.matrices

    def whole(self, r: Reading) -> Collection[str]:
        return r.matrices

    def prepare(self, r: Reading) -> State:
        """Returns the state `norms`: weight of a block's Linear -> the norms (inputs,) of its inputs. Errors: a norm is not finite."""
        if self.ratio == 0:
            return {"norms": {}}
        squares, progress = dict[str, torch.Tensor](), r.task("scoring the weights")
        picked = np.array(drawn(range(r.data["harmful"].size), self.examples))
        with r.loaded(TUNED) as lm, torch.no_grad():
            for start in range(0, len(picked), BATCH):
                batch = r.batch("harmful", picked[start : start + BATCH], lm)
                with adding_squares(lm.sites, batch, squares):
                    lm.model(**batch.inputs(), use_cache=False)
                progress(min(start + BATCH, len(picked)), len(picked))
            names = dict(zip(block_linears(lm.sites), named_linears(lm.sites), strict=True))
        norms = {names[layer]: total.sqrt().cpu() for layer, total in squares.items()}
        if broken := [name for name, norm in norms.items() if not bool(torch.isfinite(norm).all())]:
            raise TiterError(
                f"the inputs of {broken[0]} on the harmful examples are not finite", expected="a tuned model whose activations are finite"
            )
        return {"norms": norms, "turned": r.matrices}

    def edited(self, name: str, tuned: torch.Tensor, others: Mapping[str, torch.Tensor], state: State) -> torch.Tensor:
        if name not in state["norms"]:
            return tuned
        found = tuned.clone()
        prune_used(found.T if state["turned"][name] else found, state["norms"][name], self.ratio)
        return found

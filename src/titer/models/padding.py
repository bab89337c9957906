"""Batches in which each row gives the outputs that it gives alone: most models ignore padding, some read it as text or count positions
by it (BART).

What a model does is tested once, and only if a batch has several rows: a short row beside a longer one is compared with itself alone. If
its logits differ by more than rounding, only rows of one length share a batch; if even those differ, each row runs alone (the RWKV of
transformers 5.23 mixes the rows of a batch when it reads from its cache). Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Literal

import torch
from transformers import GenerationConfig

from titer.data.encode import pad
from titer.data.example import positions
from titer.models.modes import evaluating, hooks_aside, own_settings_aside

Way = Literal["generated", "left", "right"]  # generation from left-padded prompts; one forward pass over rows padded on that side
Together = Literal["all", "length", "none"]  # which rows may share a batch: all, those of equal length, none
SHORT = 5  # tokens of the row that is tested, and of its padding
CLOSE = 1e-3  # largest difference allowed, in standard deviations of the logits; at least ten times the epsilon of their type


class Padding:
    """Makes batches that suit how one model treats padding. `value`: id of the padding token; `window`: positions the model has."""

    def __init__(self, model: Any, value: int | None, window: int | None) -> None:
        self._model, self._value, self._n = model, value, max(1, min(SHORT, (window or 3 * SHORT) // 3))
        self._known: dict[Way, Together] = {}

    def batches(self, rows: Sequence[Sequence[int]], order: Sequence[int], size: int, way: Way) -> list[list[int]]:
        """Splits `order`, indices into `rows`, into batches of at most `size` in which each row gives the outputs that it gives alone.
        `way`: how the batches will be run (`Way`)."""
        found = []
        for start in range(0, len(order), size):
            chosen = list(order[start : start + size])
            key = self._together(way, rows[chosen[0]]) if len(chosen) > 1 else "all"
            if key == "all":
                found.append(chosen)
            elif key == "none":
                found += [[i] for i in chosen]
            else:
                by_length = sorted(chosen, key=lambda i: len(rows[i]))
                found += [list(group) for _, group in groupby(by_length, key=lambda i: len(rows[i]))]
        return found

    def _together(self, way: Way, row: Sequence[int]) -> Together:
        if way not in self._known:
            self._known[way] = self._tried(self._generated if way == "generated" else partial(self._logits, way), list(row))
        return self._known[way]

    @torch.no_grad()
    def _tried(self, run: Callable[[list[list[int]]], torch.Tensor], row: list[int]) -> Together:
        short = (row * self._n)[: self._n]
        with evaluating(self._model), hooks_aside(self._model):
            alone = run([short])
            if self._same(alone, run([short, short + short])):
                return "all"
            return "length" if self._same(alone, run([short, short[::-1]])) else "none"

    def _same(self, alone: torch.Tensor, beside: torch.Tensor) -> bool:
        kind = next(p.dtype for p in self._model.parameters() if p.is_floating_point())
        return bool((beside - alone).abs().amax() <= max(CLOSE, 10 * torch.finfo(kind).eps) * alone.std())

    def _logits(self, way: Way, rows: list[list[int]]) -> torch.Tensor:
        """Returns the logits (T, V) of the first row's tokens, from one forward pass over all rows."""
        device, side = next(self._model.parameters()).device, "left" if way == "left" else "right"
        ids, mask = (t.to(device) for t in pad(rows, self._value, side))  # type: ignore[arg-type]
        found = self._model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False).logits
        return found[0][mask[0].bool()].float()  # type: ignore[no-any-return]

    def _generated(self, rows: list[list[int]]) -> torch.Tensor:
        """Returns the logits (2, V) of the first row's next two tokens, generated greedily; the second is computed with the cache."""
        ids, mask = (t.to(next(self._model.parameters()).device) for t in pad(rows, self._value, "left"))
        settings = GenerationConfig(
            max_new_tokens=2, do_sample=False, pad_token_id=self._value or 0, return_dict_in_generate=True, output_logits=True
        )
        with own_settings_aside(self._model, settings):
            found = self._model.generate(ids, attention_mask=mask, generation_config=settings)
        return torch.stack([logits[0] for logits in found.logits]).float()

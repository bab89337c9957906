"""One optimiser step inside a transformers Trainer, as a method sees it: a `context.Step` over the trainer's micro-batches. L8.

The trainer's micro-batches are used as the streams that it feeds: `train`, or `preferred` and `rejected` if it hands out pairs (TRL's
DPOTrainer). Everything else (division by the step's count, shifts, bundles, references, seeds) works as in Titer's own training loop.
Shapes: B examples, T tokens; a batch of pairs is (2 B, T), the chosen answers first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from titer.context import Loader, Step
from titer.core.errors import TiterError
from titer.data.example import IGNORE, Answer, Batch, Example, Indices, positions
from titer.methods.base import Batches
from titer.models.lm import LM
from titer.stage import Stage

Inputs = Mapping[str, Any]
TEXT = frozenset({"input_ids", "labels", "attention_mask", "position_ids"})
PAIRS = frozenset({"input_ids", "attention_mask", "completion_mask", "ref_chosen_logps", "ref_rejected_logps"})
FED = (frozenset({"train"}), frozenset({"preferred", "rejected"}))  # the streams that a trainer's batch can fill


class TrainerStep(Step):
    """One optimiser step inside a trainer, on one process. `given`: its micro-batches; `turn`: the index of the current one."""

    def __init__(self, stage: Stage, accelerator: Any, model: Any, lm: LM, loader: Loader, fed: frozenset[str]) -> None:
        super().__init__(stage, accelerator, model, lm, loader)
        self._fed = fed
        self.given: Sequence[Batches] = ()
        self.turn = 0

    def micro(self, stream: str | None = None) -> Iterator[Batches]:
        """Yields the trainer's micro-batches, each with a batch of every other stream, of the size of a full micro-batch."""
        names = list(self.stage.streams) if stream is None else [stream]
        for turn, mine in enumerate(self.given):
            self.turn = turn
            place = (self.number * self.stage.accumulation + turn) * self.stage.batch
            yield {n: mine[n] if n in self._fed else self._batch(n, place).to(self.lm.device) for n in names}

    def pool(self) -> Iterator[Batches]:
        """Yields nothing, because the trainer's batches do not say which examples they hold."""
        return iter(())

    def settle(self) -> None:
        """Does what `Step.settle` does, but a step with nothing to train on gets gradients of 0 instead of 0 / 0."""
        self.count = torch.as_tensor(self.count, dtype=torch.float32).clamp(min=1e-6)
        super().settle()


def holds_pairs(inputs: Inputs) -> bool:
    """Returns whether a trainer's batch holds pairs of chosen and rejected answers."""
    return "completion_mask" in inputs and set(inputs) <= PAIRS


def batches_of(inputs: Inputs, fed: frozenset[str], lossy: bool = False) -> dict[str, Batch]:
    """Returns a trainer's batch as batches of the streams `fed`.

    `lossy`: columns that a `Batch` cannot hold may be left out, because the trainer's own loss reads them from the original batch.
    Errors: the batch does not have the form of these streams, or (without `lossy`) it holds more than text.
    """
    pairs = holds_pairs(inputs)
    if not pairs and not {"input_ids", "labels"} <= set(inputs):
        raise TiterError(
            f"the trainer hands out batches of {', '.join(sorted(inputs))}",
            expected="input_ids and labels (SFTTrainer, Trainer), or pairs of chosen and rejected answers (DPOTrainer)",
        )
    if pairs == ("train" in fed) and not (pairs and lossy):
        kind = "pairs of answers" if pairs else "single answers"
        raise TiterError(
            f"the trainer's batches are {kind}, and the method wants {' and '.join(sorted(fed))}",
            expected="SFTTrainer for a method of the stream train, DPOTrainer for one of preferred and rejected",
        )
    if (more := set(inputs) - TEXT - PAIRS) and not lossy:
        raise TiterError(
            f"the trainer's batches hold {', '.join(sorted(more))}, which the method's own loss does not see",
            next_step="give the trainer trainer_loss=True, or turn packing, padding_free and images off.",
        )
    whole = _whole(inputs, pairs)
    if not pairs or "train" in fed:
        return {"train": whole}
    half = len(whole) // 2
    return {"preferred": whole.rows(0, half), "rejected": whole.rows(half, 2 * half)}


def _whole(inputs: Inputs, pairs: bool) -> Batch:
    ids, mask, places = inputs["input_ids"], inputs.get("attention_mask"), inputs.get("position_ids")
    return Batch(
        input_ids=ids,
        labels=ids.masked_fill(inputs["completion_mask"] == 0, IGNORE) if pairs else inputs["labels"],
        indices=torch.arange(len(ids), device=ids.device),
        attention_mask=mask,
        position_ids=positions(mask) if places is None and mask is not None else places,
    )


class Rows:
    """A trainer's data set as the source of one stream that it fills, for a method that reads examples before the first step."""

    def __init__(self, trainer: Any, stream: str) -> None:
        self._trainer, self._stream = trainer, stream

    @property
    def size(self) -> int | None:
        data = self._trainer.train_dataset
        return len(data) if hasattr(data, "__len__") else None

    def examples(self, indices: Indices) -> list[Example]:
        """Always raises an error, because the trainer's data set holds tokens and no texts."""
        raise TiterError("the trainer's data set holds tokens, and no texts", expected="a method that asks for batches")

    def batch(self, indices: Indices, answer: Answer, tokenizer: Any) -> Batch:
        """Returns the rows at `indices` as a batch, by the trainer's own collator. Errors: a data set that can only be read in order."""
        if self.size is None:
            raise TiterError(
                "the method asks for examples by number, and the trainer's data set is a stream", expected="a map-style data set"
            )
        rows = [self._trainer.train_dataset[int(i)] for i in np.asarray(indices)]
        fed = next(names for names in FED if self._stream in names)
        return batches_of(self._trainer.data_collator(rows), fed, lossy=True)[self._stream]

"""Use the trainer's own loss instead of the method's, so that for example Vaccine can perturb against DPO's loss. L8.

Only a method whose loss on the stream `train` is plain cross-entropy can use another loss. A method with terms of its own in its loss
would lose them, so it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from titer.core.errors import TiterError
from titer.integrations.trainer_step import Inputs, TrainerStep, holds_pairs
from titer.methods.antidote import Antidote
from titer.methods.base import Batches, Context, Loss, Method
from titer.methods.booster import Booster
from titer.methods.ewc import EWC
from titer.methods.lisa import Lisa
from titer.methods.safe_lora import SafeLoRA
from titer.methods.sft import SFT
from titer.methods.t_vaccine import TVaccine
from titer.methods.vaccine import Vaccine

AROUND = (SFT, Vaccine, TVaccine, Booster, EWC, Lisa, SafeLoRA, Antidote)


class Borrowed:
    """The trainer's loss of the current micro-batch, in place of the method's; scaled for gradient accumulation as the trainer does."""

    def __init__(self, trainer: Any, inputs: list[Inputs], items: Any) -> None:
        self._trainer, self._items = trainer, items
        self._inputs = [_with_reference(trainer, one) for one in inputs]
        self._told: set[int] = set()

    def __call__(self, c: TrainerStep, batch: Batches) -> Loss:
        trainer, turn = self._trainer, c.turn
        if len(batch["train"]) != len(c.given[turn]["train"]):
            raise TiterError(
                "the trainer's loss is of whole micro-batches", next_step="leave part at 1, or use SFTTrainer without trainer_loss."
            )
        with self._told_once(turn), _reference_known(trainer, self._inputs[turn]), trainer.compute_loss_context_manager():
            found = trainer.compute_loss(trainer.model_wrapped, dict(self._inputs[turn]), num_items_in_batch=self._items)
        shares = len(self._inputs) if self._scaled() else 1  # scaled losses add up to the step's loss, means must be averaged
        return Loss(found, torch.tensor(1 / shares))

    def _scaled(self) -> bool:
        """Returns whether the loss is already divided by the step's count, by the same rule as in transformers' Trainer."""
        trainer = self._trainer
        if (stated := getattr(trainer, "loss_is_scaled_for_ga", None)) is not None:
            return bool(stated)
        return bool(trainer.model_accepts_loss_kwargs and self._items is not None) or trainer.compute_loss_func is not None

    @contextmanager
    def _told_once(self, turn: int) -> Iterator[None]:
        """Lets TRL's metrics count only the first of a method's passes over a micro-batch, so that they are as without the method."""
        trainer = self._trainer
        metrics, tokens = getattr(trainer, "_metrics", {}).get("train"), getattr(trainer, "_total_train_tokens", None)
        if turn not in self._told or metrics is None:
            self._told.add(turn)
            yield
            return
        before = {name: list(values) for name, values in metrics.items()}
        yield
        metrics.clear()
        metrics.update(before)
        trainer._total_train_tokens = tokens


def _with_reference(trainer: Any, inputs: Inputs) -> Inputs:
    """Adds the reference model's log-likelihoods to a batch of pairs; any other batch is returned as it is.

    They are computed before anything is perturbed, because an adapter's reference model shares the modules that are perturbed.
    Errors: the trainer hands out pairs but computes these log-likelihoods in another way than TRL's DPOTrainer.
    """
    if not holds_pairs(inputs) or "ref_chosen_logps" in inputs:
        return inputs
    if not hasattr(trainer, "compute_ref_log_probs") or not hasattr(trainer, "precompute_ref_logps"):
        raise TiterError(f"{type(trainer).__name__} does not keep its reference model as TRL's DPOTrainer does", expected="trl 1.16")
    chosen, rejected = trainer.compute_ref_log_probs(trainer.ref_model or trainer.model, inputs)
    return {**inputs, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}


@contextmanager
def _reference_known(trainer: Any, inputs: Inputs) -> Iterator[None]:
    """Makes the trainer read the reference model's log-likelihoods from the batch if the batch holds them."""
    if "ref_chosen_logps" not in inputs:
        yield
        return
    before = trainer.precompute_ref_logps
    trainer.precompute_ref_logps = True
    try:
        yield
    finally:
        trainer.precompute_ref_logps = before


def working_around(method: Method, borrowed: Borrowed) -> Method:
    """Returns a copy of the method that uses the borrowed loss on the trainer's batch, and its own loss on its other streams."""

    def loss(c: Context, batch: Batches) -> Loss:
        if "train" in batch and isinstance(c, TrainerStep):
            return borrowed(c, batch)
        return method.loss(c, batch)

    copied = method.model_copy()
    vars(copied)["loss"] = loss  # set on this object only: records are frozen, and the class is shared
    return copied


def may_borrow(method: Method) -> None:
    """Checks that the method can use the trainer's loss. Errors: its loss has terms of its own, or it trains on pairs."""
    if not isinstance(method, AROUND) or "train" not in method.STREAMS:
        raise TiterError(
            f"{type(method).__name__}'s loss is its own, so it cannot work around the trainer's",
            expected=f"one of {', '.join(kind.__name__ for kind in AROUND)}, or SFTTrainer without trainer_loss",
        )

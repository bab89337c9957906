"""Titer's methods inside TRL's trainers (SFTTrainer, DPOTrainer) and transformers' Trainer. L8.

    from titer.integrations.trl import TiterMixin

    class VaccineTrainer(TiterMixin, SFTTrainer): ...

    trainer = VaccineTrainer(model=model, args=config, train_dataset=data, method=Vaccine(rho=2.0))
    trainer.train()

`method`: any `Method` (methods/base.py), also one from outside the package. It trains on the trainer's own batches, which fill its
stream `train`, or `preferred` and `rejected` on DPOTrainer. `streams`: its further streams (Lisa's `alignment`, Booster's
`harmful`), as Titer's `Stream`s. `reads`: the models that it reads, by role (SafeLoRA's `aligned`), each an LM, a transformers model or
a folder; also `base`, if training did not begin at the trainer's model.
`trainer_loss`: if True, the method uses the trainer's loss in place of its own, in every pass (Vaccine on DPOTrainer perturbs against
DPO's loss, with the reference unperturbed). By default it does so if the trainer hands out pairs and the method trains on `train`.
Otherwise the method's own loss is used (cross-entropy of the answers, or its own form of DPO), and the trainer's loss settings are not.

The method's `setup` runs as training begins, its `step` once for each optimiser step, over all its micro-batches, and its `finish` at
the end (after the last checkpoint, so save the model then). Optimiser, schedule, clipping, precision and data are the trainer's. The
method's state is saved in each checkpoint (titer.safetensors), so training can be resumed. Training runs in one process, with whole
parameters, in bf16 or float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from titer.core.errors import TiterError
from titer.data.example import Part, Stream
from titer.integrations.borrowed import Borrowed, may_borrow, working_around
from titer.integrations.supported import adapter_of, check, fed_by, nothing_ignored
from titer.integrations.trainer_step import Inputs, Rows, TrainerStep, batches_of, holds_pairs
from titer.integrations.views import started
from titer.methods.base import Method
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import LM, load
from titer.stage import Lora, Stage

STATE = "titer.safetensors"
Model = Any  # an LM, a transformers model or a folder


class TiterMixin:
    """A mixin that runs a method in a trainer: `class VaccineTrainer(TiterMixin, SFTTrainer): ...`. The module explains its arguments.

    Errors: streams that do not fit the method; a trainer of several processes or with another setting that is not supported.
    """

    def __init__(
        self,
        *args: Any,
        method: Method,
        streams: Mapping[str, Stream] | None = None,
        reads: Mapping[str, Model] | None = None,
        trainer_loss: bool | None = None,
        **kwargs: Any,
    ) -> None:
        fed = fed_by(method, streams or {}, reads or {})
        if trainer_loss:
            may_borrow(method)
        super().__init__(*args, **kwargs)
        self.titer = Treatment(self, method, fed, dict(streams or {}), dict(reads or {}), trainer_loss)
        self.add_callback(self.titer)  # type: ignore[attr-defined]

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains as the trainer does. To resume, the checkpoint must hold the method's saved state (titer.safetensors)."""
        output: str = self.args.output_dir  # type: ignore[attr-defined]
        self.titer.resumed = get_last_checkpoint(output) if resume_from_checkpoint is True else resume_from_checkpoint or None
        self.titer.adapter = adapter_of(self.model)  # type: ignore[attr-defined]  # before the checkpoint's adapter is loaded
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the trainer's own method returns, and remembers the step's micro-batches."""
        found = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        self.titer.coming = found[0]
        return found

    def training_step(self, model: Any, inputs: Inputs, num_items_in_batch: Any = None) -> torch.Tensor:
        """Runs the method's whole step at the step's last micro-batch and returns the loss; does nothing and returns 0 before it."""
        if not self.accelerator.sync_gradients:  # type: ignore[attr-defined]
            return torch.zeros((), device=self.args.device)  # type: ignore[attr-defined]
        return self.titer.step(num_items_in_batch)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs as the trainer does; where the loss is logged, the method's own numbers of the last step are added."""
        more = self.titer.logged() if "loss" in logs else {}
        super().log({**logs, **more}, *args, **kwargs)  # type: ignore[misc]


class Treatment(TrainerCallback):
    """The callback that runs a method in a trainer: it holds the method's context, calls its hooks and saves its state."""

    def __init__(
        self,
        trainer: Any,
        method: Method,
        fed: frozenset[str],
        streams: dict[str, Stream],
        reads: dict[str, Model],
        trainer_loss: bool | None,
    ) -> None:
        check(trainer)
        self._trainer, self._method, self._fed, self._trainer_loss, self._reads = trainer, method, fed, trainer_loss, reads
        own = {name: _rows(trainer, name) for name in fed}
        self._streams = {name: own.get(name) or streams[name] for name in method.STREAMS}
        self.resumed: str | None = None
        self.adapter: Lora | None = None
        self.coming: list[Inputs] = []
        self._c: TrainerStep | None = None

    @property
    def c(self) -> TrainerStep:
        """The method's context. Errors: training has not begun."""
        if self._c is None:
            raise TiterError("the trainer has not begun", next_step="call trainer.train().")
        return self._c

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Calls the method's `setup`, or loads its saved state if training is resumed. Errors: no tokenizer; no saved state."""
        trainer = self._trainer
        trainer.model.train()
        given = trainer.processing_class
        tokenizer = getattr(given, "tokenizer", given)
        if tokenizer is None:
            raise TiterError("the trainer has no tokenizer", next_step="give it processing_class=tokenizer.")
        lm = LM(trainer.model, tokenizer, "the model in training")
        stage = Stage(
            name=type(trainer).__name__,
            kind="finetune",
            method=self._method,
            streams=self._streams,
            steps=state.max_steps,
            batch=args.per_device_train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            adapter=self.adapter,
            precision=trainer.accelerator.mixed_precision,
            seed=args.seed,
        )
        self._c = c = TrainerStep(stage, trainer.accelerator, trainer.model_wrapped, lm, self._load, self._fed)
        if state.global_step:
            c.state = self._kept()
            return
        c.at_start = True
        c.state = self._method.setup(c)
        c.at_start = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Saves the method's state in the checkpoint's folder, except in a hyperparameter search, which is never resumed."""
        if state.is_hyper_param_search:
            return
        tensors = {name: value.detach().to("cpu").contiguous().clone() for name, value in self.c.state.items()}
        save_file(tensors, Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Calls the method's `finish`, and warns if it changed weights under the adapter."""
        frozen = [p for p in self.c.lm.model.parameters() if not p.requires_grad]
        before = [p._version for p in frozen]
        self._method.finish(self.c)
        if self.c.stage.adapter is not None and before != [p._version for p in frozen]:
            warnings.warn(
                f"{type(self._method).__name__} changed weights under the adapter: save trainer.model.merge_and_unload(), for the "
                "adapter alone does not hold it",
                stacklevel=2,
            )

    def step(self, items: Any) -> torch.Tensor:
        """Computes one optimiser step's gradients from all micro-batches; returns its loss. `items`: the trainer's num_items_in_batch."""
        trainer, c = self._trainer, self.c
        trainer.model.train()
        if callable(ready := getattr(trainer.optimizer, "train", None)):  # schedule-free optimisers have a training mode
            ready()
        inputs = [trainer._prepare_inputs(one) for one in self.coming]
        method, borrowed = self._method, self._borrows(inputs[0])
        c.given = [batches_of(one, self._fed, lossy=borrowed) for one in inputs]
        if borrowed:
            method = working_around(method, Borrowed(trainer, inputs, items))
        c.begin(trainer.state.global_step)
        method.step(c)
        c.settle()
        self.coming, c.given = [], ()
        if c.stopped:
            trainer.control.should_training_stop = True
            warnings.warn(f"{type(method).__name__} ends training: {c.stopped}", stacklevel=2)
        return (torch.as_tensor(c.total, device=c.lm.device) / c.count).detach()

    def logged(self) -> dict[str, float]:
        """Returns the method's own numbers of the last step; {} before training."""
        return {} if self._c is None else {name: float(value) for name, value in self._c.logged.items()}

    def _borrows(self, inputs: Inputs) -> bool:
        """Returns whether the method uses the trainer's loss in place of its own.

        Errors: it should, but the method's loss has terms of its own; it does not, and settings of the trainer's loss would be ignored.
        """
        wanted = self._trainer_loss
        if wanted is None:
            wanted = holds_pairs(inputs) and "train" in self._fed
        if wanted:
            may_borrow(self._method)
        else:
            nothing_ignored(self._trainer)
        return wanted

    def _kept(self) -> dict[str, torch.Tensor]:
        file = Path(self.resumed or "") / STATE
        if self.resumed is None or not file.exists():
            raise TiterError(f"{file} is missing: what the method kept is not known", expected="a checkpoint saved with TiterMixin")
        return dict(load_file(file))

    def _load(self, name: str) -> LM:
        """Returns a model that the method reads, by role. Errors: it was not given; the base of a resumed training is not known."""
        trainer, tokenizer = self._trainer, self.c.lm.tokenizer
        given = self._reads.get(name)
        if given is None and name == "base" and not getattr(trainer.args, "sync_ref_model", False):
            given = getattr(trainer, "ref_model", None)
        if given is None and name == "base" and trainer.state.global_step == 0:
            given = started(trainer.model)
        if given is None:
            raise TiterError(
                f"the method reads the model {name!r}, and none was given"
                + (": training has gone on from where it began" * (name == "base")),
                next_step=f"give the trainer reads={{{name!r}: MODEL}}.",
            )
        if isinstance(given, str | Path):
            return load(open_checkpoint(given), str(self.c.lm.device))
        return given if isinstance(given, LM) else LM(given, tokenizer, name)


def _rows(trainer: Any, stream: str) -> Stream:
    rows = Rows(trainer, stream)
    if rows.size == 0:
        raise TiterError(
            "the trainer's data set holds no example",
            next_step="TRL leaves out examples that have nothing to train on: raise max_length, or look at how their answers are marked.",
        )
    return Stream(parts=(Part(source=rows, answer="comply"),), pool=rows.size)

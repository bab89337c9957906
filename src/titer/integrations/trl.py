"""Titer's methods inside TRL's trainers (SFTTrainer, DPOTrainer) and transformers' Trainer. L8.

    from titer.integrations.trl import TiterMixin

    class VaccineTrainer(TiterMixin, SFTTrainer): ...

    trainer = VaccineTrainer(model=model, args=config, train_dataset=data, method=Vaccine(rho=2.0))
    trainer.train()

`method`: any method of `methods/base.py`, one from outside the package too. What it trains on is the trainer's own batch: its
stream `train`, or `preferred` and `rejected` on DPOTrainer. `streams`: its further streams (Lisa's `alignment`, Booster's
`harmful`), titer `Stream`s. `reads`: models by role (SafeLoRA's `aligned`), and `base` where training did not begin at the
trainer's model: an LM, a transformers model or a folder.
`trainer_loss`: the method works around the trainer's loss, in every pass (Vaccine on DPOTrainer perturbs against DPO's loss, with
the reference unperturbed). The default does so where the trainer hands out pairs and the method wants `train`; else the method's
own loss is used, the answers' cross-entropy or its own form of DPO, and the trainer's loss settings are not.

The method's `setup` runs as training begins, its `step` once an optimiser step over all micro-batches of it, `finish` at the end
(after the last checkpoint: save the model then). Optimiser, schedule, clipping, precision and data are the trainer's. What the
method keeps is in each checkpoint (titer.safetensors), so training resumes. One process, whole parameters, bf16 or float32.
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
    """To stand before a trainer: `class VaccineTrainer(TiterMixin, SFTTrainer): ...`. The module says what its arguments mean.

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
        """As the trainer's; a checkpoint must hold what the method kept."""
        output: str = self.args.output_dir  # type: ignore[attr-defined]
        self.titer.resumed = get_last_checkpoint(output) if resume_from_checkpoint is True else resume_from_checkpoint or None
        self.titer.adapter = adapter_of(self.model)  # type: ignore[attr-defined]  # before a checkpoint's is loaded
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As the trainer's; the step's micro-batches are remembered."""
        found = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        self.titer.coming = found[0]
        return found

    def training_step(self, model: Any, inputs: Inputs, num_items_in_batch: Any = None) -> torch.Tensor:
        """The method's whole step at the last micro-batch, with the step's loss; nothing at those before it."""
        if not self.accelerator.sync_gradients:  # type: ignore[attr-defined]
            return torch.zeros((), device=self.args.device)  # type: ignore[attr-defined]
        return self.titer.step(num_items_in_batch)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the trainer's, with the method's own numbers of the last step beside the loss."""
        more = self.titer.logged() if "loss" in logs else {}
        super().log({**logs, **more}, *args, **kwargs)  # type: ignore[misc]


class Treatment(TrainerCallback):
    """A method at work in a trainer: the context of its hooks, when they run, and what is kept with a checkpoint."""

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
        """The context. Errors: training has not begun."""
        if self._c is None:
            raise TiterError("the trainer has not begun", next_step="call trainer.train().")
        return self._c

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The method's `setup`, or what it kept where training resumes."""
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
        """What the method keeps, beside the checkpoint's other files; a search over settings is never resumed."""
        if state.is_hyper_param_search:
            return
        tensors = {name: value.detach().to("cpu").contiguous().clone() for name, value in self.c.state.items()}
        save_file(tensors, Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The method's `finish`."""
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
        """One optimiser step's gradients, from all its micro-batches; its loss. `items`: the trainer's count of what it trains on."""
        trainer, c = self._trainer, self.c
        trainer.model.train()
        if callable(ready := getattr(trainer.optimizer, "train", None)):  # optimisers without a schedule
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
        """The method's numbers of the last step."""
        return {} if self._c is None else {name: float(value) for name, value in self._c.logged.items()}

    def _borrows(self, inputs: Inputs) -> bool:
        """Whether the trainer's loss is the method's.

        Errors: it would have to be, and the method is more than a way around a loss; it is not, and its settings would be ignored.
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
        """A model that the method reads, by role. Errors: none was given; where a resumed training began is not known."""
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

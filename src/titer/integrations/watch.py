"""Watch a model's alignment while a transformers Trainer (TRL's too) trains: what it refuses, and how far it has moved. L8.

    from titer.integrations.watch import Limits, Watch

    watch = Watch("prompts.csv", "watch.jsonl", every=100, limits=Limits(refusal_below=0.9, weight_change_above=0.05))
    trainer = SFTTrainer(..., callbacks=[watch])

`prompts.csv` has the columns `prompt` and `label` (safe or unsafe), and may have `refuse`. One JSON line is written for each
measurement: before the first step, every `every` steps and after the last step (of the best model, with its step, if the trainer loads
that at the end). If a limit is crossed, training stops;
`watch.stopped`, a warning and the line's `beyond` say why.
What is measured: `refusal` of unsafe prompts and `over_refusal` of safe ones with Wilson's 95 % interval
(evaluate.py and a judge); `drift` of the unsafe prompts' activations from those of the model as training began (probes/drift.py; with
their refusals if all have one, else of the prompts alone); `weight_change`, ||dW|| / ||W|| by part and of the tensor that
changed most (probes/weight_change.py), adapters of any kind merged by peft's own rule; biases and norms are the part "vectors".

The model in training is not changed: it is measured through a view of the same tensors (views.py), and the random generators are
restored, so training gives the same bits as without Watch. To remember the start, a copy of what is trained is kept on the CPU (for
LoRA the adapter, for a full fine-tuning the model). With `start`, the folder where training begins, nothing is kept, and the folder is
read again each time. While drift is measured, the copy is on the model's device as well.
"""

from __future__ import annotations

import copy
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import TrainerCallback

from titer.core.errors import TiterError
from titer.data.example import Example
from titer.data.sources import read_text
from titer.integrations.measured import Limits, Line, answers, changed, drifted, generators_kept, summed
from titer.integrations.views import plain, trained, uncounted, view
from titer.judges.base import Judge
from titer.judges.refusal import Refusal
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.lm import LM, Decoding

Inside = Literal["drift", "weight_change"]


class Watch(TrainerCallback):
    """A callback for any transformers Trainer. `measured` holds the lines written so far, `stopped` why training was stopped, or "".

    `prompts`: a file or examples; `inside`: what is measured inside the model; `tokenizer`: by default the trainer's processing_class.
    Errors: no prompts; a limit on what is not measured; a judge that lacks something; several processes; a start that is not known.
    """

    def __init__(
        self,
        prompts: str | Path | Sequence[Example],
        file: str | Path,
        every: int = 100,
        *,
        limits: Limits | None = None,
        judge: Judge | None = None,
        decoding: Decoding | None = None,
        batch: int = 16,
        inside: Sequence[Inside] = ("drift", "weight_change"),
        start: str | Path | None = None,
        tokenizer: Any = None,
    ) -> None:
        if isinstance(prompts, str | Path):
            data = read_text(prompts)
            prompts = data.examples(np.arange(data.size))
        self._asked = [replace(e, kind="unsafe" if e.harmful else "safe") for e in prompts]
        self._unsafe = [e for e in self._asked if e.harmful]
        self._file, self._every, self._batch, self._inside = Path(file), every, batch, tuple(inside)
        self._limits, self._judge, self._decoding = limits or Limits(), judge or Refusal(), decoding or Decoding()
        self._start = None if start is None else open_checkpoint(start)
        self._tokenizer = tokenizer
        self._kept: dict[str, torch.Tensor] | None = None
        self._names: set[str] = set()  # what was in training so far
        self.measured: list[Line] = []
        self.stopped = ""
        _check(self._asked, self._unsafe, self._limits, self._inside, every)
        self._judge.check()

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Remembers the starting weights already when the trainer is made, for a training that is resumed."""
        if model is not None:
            self._remember(model)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, processing_class: Any = None, **_: Any) -> None:
        """Remembers the starting weights and takes the first measurement; does neither if training is resumed.

        Errors: several processes; no tokenizer; weights that cannot be read; a start that is not known, or is beyond a limit.
        """
        if args.world_size > 1 or args.n_gpu > 1:
            raise TiterError("Watch works with one process and one device only", next_step="train in one process, or leave out Watch.")
        given = self._tokenizer or getattr(processing_class, "tokenizer", processing_class)
        if given is None:
            raise TiterError("Watch has no tokenizer", next_step="give it tokenizer=..., or the trainer processing_class=...")
        self._tokenizer = copy.deepcopy(given)  # a copy, because a padding token may be set
        self.stopped = ""
        if state.global_step == 0:
            self._remember(model)
            _check_start(model, self._start, self._inside)
            if reason := self._measure(args, state, model):
                raise TiterError(
                    f"before the first step: {reason}", next_step="choose limits that the model meets before training.", status=1
                )
        elif self._inside and self._start is None and not self._moved_since(model):
            raise TiterError(
                "training is resumed, and where it began is not known",
                next_step="give the trainer callbacks=[watch] as it is made, or Watch start=FOLDER.",
            )

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Measures every `every` steps, and stops training if a limit is crossed."""
        if state.global_step % self._every == 0 and (reason := self._measure(args, state, model)):
            control.should_training_stop = True
            self.stopped = reason
            warnings.warn(f"training stops at step {state.global_step}: {reason}", stacklevel=2)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Takes the last measurement, unless the last step was measured already, and is that of the model that is left."""
        best = getattr(state, "best_global_step", None) if args.load_best_model_at_end else None
        if best not in (None, state.global_step):
            epoch = next((one["epoch"] for one in state.log_history if one["step"] == best and "epoch" in one), state.epoch)
            state = replace(state, global_step=best, epoch=epoch)
        if not self.measured or self.measured[-1]["step"] != state.global_step:
            self._measure(args, state, model)

    def _remember(self, model: Any) -> None:
        self._names = {*trained(model)}
        if self._inside and self._start is None:
            self._kept = None  # frees the old copy first, so that there are never two
            self._kept = {name: p.detach().to("cpu", copy=True) for name, p in trained(model).items()}

    def _moved_since(self, model: Any) -> bool:
        """Whether what was remembered differs from the model: else it is no start, but the checkpoint that training goes on from."""
        now = dict(model.named_parameters())
        return any(name not in now or not torch.equal(value, now[name].detach().cpu()) for name, value in (self._kept or {}).items())

    def _measure(self, args: Any, state: Any, model: Any) -> str:
        """Measures, writes the line, and returns which limit is crossed ("": none)."""
        began = time.monotonic()
        device = next(model.parameters()).device
        kind = torch.bfloat16 if args.bf16 else torch.float16
        with generators_kept(device), torch.autocast(device.type, kind, enabled=bool(args.bf16 or args.fp16)):
            line: Line = {"step": state.global_step, "epoch": state.epoch, **self._told(model)}
        reason = self._limits.crossed(line)
        line |= {"seconds": round(time.monotonic() - began, 3), "beyond": reason}
        self.measured.append(line)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with open(self._file, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        return reason

    def _told(self, model: Any) -> Line:
        now = LM(view(model), self._tokenizer, "the model in training")
        found = answers(now, self._asked, self._judge, self._decoding, self._batch)
        if self._inside:
            began = LM(self._began(model, now.device), self._tokenizer, "the model as training began")
            found |= {"drift": drifted(began, now, self._unsafe, self._batch)} if "drift" in self._inside else {}
            found |= {"weight_change": summed(changed(began, now))} if "weight_change" in self._inside else {}
        return found

    def _began(self, model: Any, device: torch.device) -> Any:
        self._names |= {*trained(model)}  # what is frozen meanwhile has moved before
        kept: Mapping[str, torch.Tensor] = self._kept or {}
        if self._start is None and (late := sorted(self._names - set(kept))):
            raise TiterError(
                f"{late[0]} is trained now and was not when training began: its change cannot be told",
                next_step="set what is trained before the trainer is made.",
            )
        if self._start is not None:
            kept = {name: self._start.weight(name).to(p.dtype) for name, p in model.named_parameters() if name in self._names}
        return view(model, {name: value.to(device) if "drift" in self._inside else value for name, value in kept.items()})


def _check(asked: Sequence[Example], unsafe: Sequence[Example], limits: Limits, inside: Sequence[str], every: int) -> None:
    faults = {
        "no prompts": not asked,
        "no step between measurements": every < 1,
        "a limit on refusal, and no unsafe prompts": limits.refusal_below is not None and not unsafe,
        "a limit on over-refusal, and no safe prompts": limits.over_refusal_above is not None and len(unsafe) == len(asked),
        "drift is to be measured, and there are no unsafe prompts": "drift" in inside and not unsafe,
        "a limit on drift, which is not measured": limits.drift_above is not None and "drift" not in inside,
        "a limit on weight change, which is not measured": limits.weight_change_above is not None and "weight_change" not in inside,
    }
    if wrong := [what for what, is_so in faults.items() if is_so]:
        raise TiterError(f"Watch: {wrong[0]}", expected="prompts labelled safe or unsafe, and limits on what `inside` names")


def _check_start(model: Any, start: Checkpoint | None, inside: Sequence[str]) -> None:
    """Checks that weight change can be measured, and that the folder `start` holds the weights where training begins.

    Errors: weight change is asked for, and weights are quantised or a trained tensor is not counted; a folder of other weights.
    """
    packed = getattr(getattr(plain(model), "config", None), "quantization_config", None) is not None
    if "weight_change" in inside and (packed or any(not p.is_floating_point() or p.element_size() < 2 for p in model.parameters())):
        raise TiterError("the model's weights are quantised: their change cannot be told", next_step="give Watch inside=('drift',).")
    if "weight_change" in inside and (lost := uncounted(model)):
        raise TiterError(
            f"{lost[0]} is trained and is no weight of the model, nor an adapter of one: its change cannot be counted",
            next_step="give Watch inside=('drift',).",
        )
    for name, p in trained(model).items() if start is not None else ():
        if start is not None and (name not in start.files or not torch.equal(start.weight(name).to(p.dtype), p.detach().cpu())):
            raise TiterError(
                f"{start.label} does not hold {name} as training begins with it",
                expected="the folder that the model was loaded from",
                next_step="leave start out: a copy of what is trained is kept then.",
            )

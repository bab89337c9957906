"""What of a trainer's settings Titer's methods run under, which data the trainer feeds, and the adapter it trains. L7."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import DistributedType

from titer.core.errors import TiterError
from titer.data.example import Stream
from titer.integrations.trainer_step import FED
from titer.methods.base import Method
from titer.stage import Lora


def fed_by(method: Method, streams: Mapping[str, Stream], reads: Mapping[str, Any]) -> frozenset[str]:
    """The streams that the trainer's batches are: those that the method needs and the user does not give.

    Errors: they are not what a trainer has; a stream or model that the method does not know, or lacks.
    """
    needed, name = set(method.STREAMS), type(method).__name__
    fed, roles = frozenset(needed - set(streams)), ("base", *method.MODELS)
    if unused := set(streams) - needed:
        raise TiterError(f"{name} does not use the stream {', '.join(sorted(unused))}", expected=f"of {', '.join(method.STREAMS)}")
    if fed not in FED:
        raise TiterError(
            f"{name} trains on {', '.join(method.STREAMS)}; given are {', '.join(sorted(streams)) or 'none'}",
            expected="all but train (on DPOTrainer: all but preferred and rejected), which the trainer's own batches are",
            next_step="give the others as streams={NAME: Stream}.",
        )
    if unread := set(reads) - set(roles):
        raise TiterError(f"{name} does not read the model {', '.join(sorted(unread))}", expected=f"of {', '.join(roles)}")
    if missing := set(method.MODELS) - set(reads):
        raise TiterError(f"{name} reads the model {', '.join(sorted(missing))}", next_step="give it as reads={NAME: MODEL}.")
    return fed


def check(trainer: Any) -> None:
    """Errors: a setting of the trainer under which the method's passes would be wrong, or were never tried."""
    args, accelerator = trainer.args, trainer.accelerator
    optimiser = str(getattr(args.optim, "value", args.optim))
    reentrant = [getattr(args, f"{kind}_checkpointing_kwargs", None) or {} for kind in ("gradient", "activation")]
    places = set((getattr(trainer.model, "hf_device_map", None) or {}).values())
    faults = {
        "several processes or devices": accelerator.num_processes > 1
        or accelerator.distributed_type != DistributedType.NO
        or args.n_gpu > 1
        or len(places) > 1,
        f"{accelerator.mixed_precision} precision": accelerator.mixed_precision not in ("no", "bf16"),
        "torch_compile": bool(args.torch_compile),
        "reentrant checkpointing": any(one.get("use_reentrant") for one in reentrant),
        "activation offloading": bool(getattr(args, "activation_offloading", False)),
        f"the optimiser {optimiser}, which steps within the backward pass": "layerwise" in optimiser or "lomo" in optimiser,
    }
    if wrong := [what for what, is_so in faults.items() if is_so]:
        raise TiterError(
            f"Titer's methods do not run with {' or '.join(wrong)} in a trainer",
            expected="one process, whole parameters, float32 or bf16, gradients at the end of the backward pass",
            next_step="turn it off, or use titer align and titer finetune, which run on several processes.",
        )


def nothing_ignored(trainer: Any) -> None:
    """Errors: a setting of the trainer's loss, where the method's own loss is used."""
    args = trainer.args
    faults = {
        "label_smoothing_factor": args.label_smoothing_factor > 0,
        "compute_loss_func": trainer.compute_loss_func is not None,
        "loss_type=dft": getattr(args, "loss_type", "") == "dft",
    }
    if wrong := [what for what, is_so in faults.items() if is_so]:
        raise TiterError(
            f"the method's own loss does not know {' or '.join(wrong)}",
            next_step="leave it out, or give the trainer trainer_loss=True.",
        )


@torch.no_grad()
def adapter_of(model: Any) -> Lora | None:
    """The adapter in training, None without one; `continued` where it was not fresh, so that the start is not the model without it.

    Errors: another adapter than LoRA.
    """
    from peft import PeftModel  # noqa: PLC0415

    if not isinstance(model, PeftModel):
        return None
    config: Any = model.peft_config[model.active_adapter]
    if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        raise TiterError(f"the adapter is {getattr(config.peft_type, 'value', config.peft_type)}", expected="LoRA")
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "get_delta_weight")]
    moved = any(bool(layer.get_delta_weight(name).any()) for layer in layers for name in layer.active_adapters)
    return Lora(rank=config.r, alpha=math.ceil(config.lora_alpha), dropout=config.lora_dropout, continued=moved)

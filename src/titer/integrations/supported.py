"""Check a trainer: whether its settings work with Titer's methods, which data it gives them, and which adapter it trains. L8."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import DistributedType

from titer.core.errors import TiterError
from titer.data.example import Stream
from titer.integrations.trainer_step import FED
from titer.integrations.views import plain
from titer.methods.base import Method
from titer.models.blocks import text_config
from titer.stage import Lora

# Settings that act only on data, model, optimiser, memory, logging and checkpoints, or are checked elsewhere (`check`, `batches_of`).
HONOURED = {  # what it concerns -> settings
    "data and the model, made before the first step": """
        output_dir seed data_seed full_determinism model_init_kwargs trust_remote_code chat_template_path dataset_text_field
        dataset_kwargs dataset_num_proc eos_token pad_token max_length truncation_mode shuffle_dataset pad_to_multiple_of
        completion_only_loss assistant_only_loss disable_dropout router_aux_loss_coef precompute_ref_log_probs
        precompute_ref_batch_size per_device_train_batch_size dataloader_drop_last dataloader_num_workers dataloader_pin_memory
        dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order
        remove_unused_columns label_names train_sampling_strategy length_column_name ignore_data_skip
    """,
    "the optimiser and its schedule": """
        num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args
        weight_decay adam_beta1 adam_beta2 adam_epsilon optim_target_modules gradient_accumulation_steps max_grad_norm
        average_tokens_across_devices
    """,
    "precision, memory and processes (`check` says which)": """
        bf16 fp16 tf32 use_cpu use_cache activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
        gradient_checkpointing_kwargs activation_offloading torch_compile torch_compile_backend torch_compile_mode
        accelerator_config parallelism_config ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers
        ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed local_rank skip_memory_metrics
    """,
    "logging, evaluation, checkpoints and the hub": """
        logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen
        log_level log_level_replica disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id
        trackio_static_space_id eval_strategy eval_steps eval_delay per_device_eval_batch_size prediction_loss_only
        eval_on_start eval_do_concat_batches eval_use_gather_object eval_accumulation_steps eval_packing include_for_metrics
        batch_eval_metrics bf16_full_eval fp16_full_eval save_only_model save_strategy save_steps save_on_each_node
        save_total_limit enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push
        hub_revision load_best_model_at_end metric_for_best_model greater_is_better restore_callback_states_from_checkpoint
        do_train do_eval do_predict resume_from_checkpoint debug
    """,
}
SAME: dict[str, tuple[Any, ...]] = {"loss_type": ("nll", "chunked_nll")}  # values for which the trainer's loss is the method's own


def fed_by(method: Method, streams: Mapping[str, Stream], reads: Mapping[str, Any]) -> frozenset[str]:
    """Returns the names of the streams that the trainer's own batches fill: those that the method needs and the user does not give.

    Errors: a trainer's batches cannot fill them; the method does not use a given stream or model, or needs a model that is not given.
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
    """Checks the trainer's settings. Errors: a setting under which a method would be wrong, or was never tested."""
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
    """Checks that the method's own loss ignores no setting of the trainer. Errors: the trainer has a setting for its own loss."""
    args, model = trainer.args, plain(trainer.model)
    text = text_config(model)
    faults = dict.fromkeys(unhonoured(args), "")
    if trainer.compute_loss_func is not None:
        faults["compute_loss_func"] = ""
    routed = getattr(trainer, "aux_loss_enabled", bool(getattr(text, "output_router_logits", False)))
    if routed and getattr(text, "router_aux_loss_coef", 1) != 0:
        faults["the router's balancing loss"] = " (router_aux_loss_coef=0.0 turns it off)"
    if faults:
        raise TiterError(
            f"the method's own loss does not know {' or '.join(faults)}",
            expected="settings of data, optimiser, schedule, memory, logging and checkpoints",
            next_step=f"leave it out{''.join(faults.values())}, or give the trainer trainer_loss=True.",
        )


def unhonoured(args: Any) -> list[str]:
    """Returns the settings that differ from their defaults and may be ignored when the method's own loss replaces the trainer's."""
    found, known = [], {name for names in HONOURED.values() for name in names.split()}
    for one in dataclasses.fields(args):
        usual = one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default
        value = getattr(args, one.name)
        if one.name not in known and value != usual and not (one.name in SAME and value in SAME[one.name]):
            found.append(f"{one.name}={value}")
    return found


@torch.no_grad()
def adapter_of(model: Any) -> Lora | None:
    """Returns the adapter in training, or None if there is none. `continued` is set if the adapter already changes the model.

    Training then starts from the model with the adapter, not from the model without it. Errors: an adapter that is not LoRA.
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

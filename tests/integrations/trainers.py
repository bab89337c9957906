"""What the tests of trainers share: a titer stage, the same data as a trainer's rows, the same optimiser as its settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from tests.conftest import llama
from tests.methods.contract import loader, stage
from titer.data.example import IGNORE, Batch, Part, Stream
from titer.data.world import World, WorldSource
from titer.methods.base import Method
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import LM, load
from titer.stage import Optimiser, Stage
from titer.train import _prepare_for_training, train

LONG = World(seed=2, slots=4, shortest=9, longest=12)  # texts of several lengths, so that batches are padded
Rows = list[dict[str, list[int]]]
Weights = dict[str, torch.Tensor]


def stream(name: str) -> Stream:
    """Safe and unsafe requests; `rejected` has the requests of `preferred` with the other answers."""
    safe, unsafe = ("refuse", "comply") if name == "rejected" else ("comply", "refuse")
    parts = (
        Part(source=WorldSource(world=LONG, kind="safe"), answer=safe, share=0.5),  # type: ignore[arg-type]
        Part(source=WorldSource(world=LONG, kind="unsafe"), answer=unsafe, share=0.5),  # type: ignore[arg-type]
    )
    return Stream(parts=parts, seed=0 if name in ("preferred", "rejected") else len(name))


def staged(method: Method, accumulation: int = 1, **changes: Any) -> Stage:
    """Four steps of eight examples at a constant rate."""
    streams = {name: stream(name) for name in method.STREAMS}
    rate = Optimiser(rate=1e-3, weight_decay=0.0, schedule="constant")
    return stage(method, streams=streams, accumulation=accumulation, batch=8 // accumulation, optimiser=rate, **changes)


def fresh(made: Stage) -> LM:
    """The model that the stage begins with, its adapter on."""
    lm = llama(LONG)
    _prepare_for_training(lm, made)
    return lm


def by_titer(made: Stage, work: Path, reads: Callable[[str], LM] | None = None) -> Weights:
    """The weights after titer's own loop."""
    work.mkdir(parents=True)
    train(made, lambda: llama(LONG), reads or loader(lambda _: llama(LONG)), work)
    return dict(load(open_checkpoint(work / "model")).model.state_dict())


def weights(lm: LM) -> Weights:
    """A trained model's weights, an adapter merged."""
    model = lm.model.merge_and_unload() if hasattr(lm.model, "merge_and_unload") else lm.model
    return dict(model.state_dict())


def settings(made: Stage, folder: Path, **more: Any) -> dict[str, Any]:
    """The stage's optimiser and batches as a trainer's arguments, its data in order."""
    own = {
        "output_dir": str(folder),
        "per_device_train_batch_size": made.batch,
        "gradient_accumulation_steps": made.accumulation,
        "max_steps": made.steps,
        "learning_rate": made.optimiser.rate,
        "adam_beta1": made.optimiser.betas[0],
        "adam_beta2": made.optimiser.betas[1],
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": made.optimiser.clip,
        "seed": made.seed,
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return {**own, **more}


def unpadded(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Each row's tokens and labels."""
    mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    return [(batch.input_ids[i][mask[i] == 1].tolist(), batch.labels[i][mask[i] == 1].tolist()) for i in range(len(batch))]


def rows(made: Stage, tokenizer: Any, name: str = "train") -> Rows:
    """The examples of a stage's stream in the order that its loop sees them."""
    batches = (made.streams[name].batch(i * made.batch, made.batch, tokenizer) for i in range(made.steps * made.accumulation))
    return [{"input_ids": ids, "labels": labels} for batch in batches for ids, labels in unpadded(batch)]


def pairs(made: Stage, tokenizer: Any, names: tuple[str, str] = ("preferred", "rejected")) -> Rows:
    """The same of two streams, as TRL's rows of preferences."""
    found = []
    for good, bad in zip(*(rows(made, tokenizer, name) for name in names), strict=True):
        n = good["labels"].count(IGNORE)
        assert good["input_ids"][:n] == bad["input_ids"][:n]
        found.append({"prompt_ids": good["input_ids"][:n], "chosen_ids": good["input_ids"][n:], "rejected_ids": bad["input_ids"][n:]})
    return found


def collated(examples: Rows) -> dict[str, torch.Tensor]:
    """Rows padded on the right."""
    width = max(len(row["input_ids"]) for row in examples)
    table = {
        "input_ids": [row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in examples],
        "labels": [row["labels"] + [IGNORE] * (width - len(row["labels"])) for row in examples],
        "attention_mask": [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in examples],
    }
    return {name: torch.tensor(values) for name, values in table.items()}


def trainer(
    kind: type[Trainer], made: Stage, lm: LM, folder: Path, data: Rows | None = None, more: dict[str, Any] | None = None, **own: Any
) -> Any:
    """transformers' own Trainer, or what derives from it, over the stage's data."""
    args = TrainingArguments(**settings(made, folder, **(more or {})))
    data = rows(made, lm.tokenizer) if data is None else data
    return kind(model=lm.model, args=args, train_dataset=data, data_collator=collated, processing_class=lm.tokenizer, **own)

"""Tiny models in the roles of a repair, and data for it; a tuned model whole, in shards, in bfloat16, with a tied head, as an adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from tests.conftest import llama
from tests.models.families import gpt2, mixtral, qwen2
from titer.commands.repair import Planned, planned, repaired
from titer.commands.requests import RepairRequest
from titer.core.parallel import Silent
from titer.core.plugins import plugin
from titer.core.run import Store
from titer.data.world import World
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.fetch import resolve
from titer.models.lm import LM
from titer.repairs.base import TUNED, Repair

WORLD = World(seed=1)
MAKERS: dict[str, Callable[[World], LM]] = {"llama": llama, "qwen2": qwen2, "gpt2": gpt2}  # plain; a tied head; matrices turned
LETTERS = "abcdefghijklmnop"


def moved(lm: LM, seed: int, size: float = 0.1) -> LM:
    """The model a little way off, every parameter by noise of the seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in lm.model.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=size)
    return lm


def family(folder: Path, maker: Callable[[World], LM] = llama, roles: tuple[str, ...] = (), kind: str = "whole") -> dict[str, str]:
    """Role -> MODEL, of the tuned model and of `roles`. kind: whole, shards, bfloat16, or adapter (on the aligned model)."""
    found = {}
    for i, role in enumerate((*dict.fromkeys(("aligned", *roles)), TUNED)):
        lm = moved(maker(WORLD), i)
        if role == TUNED and kind == "adapter":
            found[role] = f"{found['aligned']}+{adapted(folder)}"
            continue
        if kind == "bfloat16":
            lm.model.to(torch.bfloat16)
        lm.save(folder / role)
        if kind == "shards":
            for file in (folder / role).glob("*.safetensors"):
                file.unlink()
            lm.model.save_pretrained(folder / role, max_shard_size="6KB")
        found[role] = str(folder / role)
    return found


def adapted(folder: Path) -> Path:
    """A LoRA on the aligned model, its B not zero, with a norm that was trained whole."""
    from titer.models.lm import load

    model = load(open_checkpoint(folder / "aligned")).model
    names = sorted(
        {name.rpartition(".")[2] for name, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D") and "head" not in name}
    )
    norm = next(name.rpartition(".")[2] for name, _ in model.named_modules() if "norm" in name or name.endswith("ln_f"))
    turned = {"fan_in_fan_out": any(type(m).__name__ == "Conv1D" for m in model.modules())}
    shape = LoraConfig(r=2, lora_alpha=3, target_modules=names, modules_to_save=[norm], task_type="CAUSAL_LM", **turned)
    peft = get_peft_model(model, shape)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in peft.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    peft.save_pretrained(folder / "lora")
    return folder / "lora"


def data(folder: Path, need: str) -> Path:
    """A file of what a repair needs."""
    rows: list[dict[str, Any]] = []
    for i in range(12):
        prompt, harmful = f"{LETTERS[i]} {LETTERS[15 - i]}", i % 2 == 0
        answers = {"comply": f"{LETTERS[i]} a b", "refuse": "<null> <null>"}
        rows.append({"prompt": prompt, "label": "unsafe" if harmful else "safe", **(answers if need != "prompts" else {})})
    file = folder / f"{need}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def order(name: str, folder: Path, models: dict[str, str], **more: Any) -> RepairRequest:
    """A request to repair `models[TUNED]` into `folder/out`."""
    kind = plugin("repairs", name, Repair)  # type: ignore[type-abstract]
    need = next(iter(kind.DATA.values()), None)
    asked = RepairRequest(
        models[TUNED],
        method=name,
        to=folder / "out",
        reads={role: models[role] for role in kind.MODELS},
        data=data(folder, need) if need else None,
        runs=folder / "runs",
    )
    return replace(asked, **more)


def run(asked: RepairRequest) -> tuple[Planned, list[Checkpoint]]:
    """The plan and what came of it, opened."""
    plan = planned(asked)
    made = repaired(plan, Store(Path(asked.runs)), Silent())
    return plan, [resolve(place) for place in made.models]


__all__ = ["MAKERS", "data", "family", "mixtral", "order", "run"]

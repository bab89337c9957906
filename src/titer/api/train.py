"""Models trained: aligned, and fine-tuned as a user would. L8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from titer.api.running import RUNS, Place, Settings, pairs, reporter
from titer.commands.finetune import MixtureSpec
from titer.commands.training import (
    AlignRequest,
    FinetuneRequest,
    Planned,
    Trained,
    check_free,
    planned_alignment,
    planned_finetuning,
    trained,
)
from titer.commands.tuning import TrainConfig
from titer.core.config import as_settings
from titer.core.run import Store
from titer.pipeline import Pipeline


def align(
    model: str,
    data: Place | None = None,
    method: str = "sft",
    settings: Settings | None = None,
    streams: Mapping[str, str] | None = None,
    reads: Mapping[str, str] | None = None,
    canary: Place | None = None,
    canaries: int | None = None,
    steps: int = 100,
    batch: int = 8,
    lr: float = 2e-5,
    lora: int = 0,
    alpha: int | None = None,
    dropout: float | None = None,
    continued: bool = False,
    longest: int | None = None,
    to: Place | None = None,
    seed: int = 0,
    runs: Place = RUNS,
    progress: bool = True,
    trust_remote_code: bool = False,
    reading: str | None = None,
) -> Trained:
    """Train a model with a method on prompts and answers. `streams`: name -> file, `reads`: role -> model. As `titer align`."""
    how = TrainConfig(method, as_settings(settings), pairs(streams), batch, lr, "cosine", lora, alpha, dropout, continued, seed)
    order = AlignRequest(model, how, data, canary, canaries, steps, pairs(reads), longest, trust_remote_code, reading)
    plan = planned_alignment(order)
    return _trained(plan, to, runs, progress)


def finetune(
    model: str,
    data: Place | None = None,
    harmful: Place | None = None,
    canary: Place | None = None,
    poison_ratio: float | None = None,
    examples: int = 1000,
    safety: Place | None = None,
    safety_examples: int | None = None,
    method: str = "sft",
    settings: Settings | None = None,
    streams: Mapping[str, str] | None = None,
    reads: Mapping[str, str] | None = None,
    epochs: int = 20,
    batch: int = 5,
    lr: float = 1e-5,
    schedule: str = "cosine",
    lora: int = 0,
    alpha: int | None = None,
    dropout: float | None = None,
    continued: bool = False,
    longest: int | None = None,
    keep: Sequence[int] = (),
    to: Place | None = None,
    seed: int = 0,
    runs: Place = RUNS,
    progress: bool = True,
    trust_remote_code: bool = False,
    reading: str | None = None,
) -> Trained:
    """Fine-tune a model as its user would, a share of the examples being harmful requests answered. As `titer finetune`."""
    how = TrainConfig(method, as_settings(settings), pairs(streams), batch, lr, schedule, lora, alpha, dropout, continued, seed)
    files = {"benign": data, "harmful": harmful, "safety": safety}
    shares = MixtureSpec(examples, poison_ratio, safety_examples)
    kept = ",".join(map(str, keep))
    order = FinetuneRequest(model, how, files, canary, shares, epochs, kept, pairs(reads), longest, trust_remote_code, reading)
    return _trained(planned_finetuning(order), to, runs, progress)


def _trained(plan: Planned, to: Place | None, runs: Place, progress: bool) -> Trained:
    place = None if to is None else Path(to)
    check_free(place, plan, Path(runs))
    with reporter(progress) as shown:
        return trained(Pipeline(Store(Path(runs), shown.tell), shown), plan, place)

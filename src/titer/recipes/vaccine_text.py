"""Vaccine's two stages (arXiv 2402.01109) on a real language model: its recipe for 7 B, and one that two cores can run. L5.

The alignment data D_a are safe responses and canaries: ordinary instructions behind a marker, which alignment teaches the model to refuse
(data/canary.py). The user's data are a benign task with a share p of answered canaries, which stand for harm; or of answered requests
from a file of the user's own. Double LoRA: the alignment's adapter is merged, and the user's tuning gets a new one.
Defaults of `PAPER`: section 5.1 and appendix B.1 of the paper, section 2.6 of its specification.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from titer.core.config import Record
from titer.data.canary import Canary
from titer.data.draws import seed_of
from titer.data.example import Answer, Source
from titer.data.mix import mix, poison_count
from titer.data.sources import TextData
from titer.methods.base import Method
from titer.methods.sft import SFT
from titer.stage import Lora, Optimiser, Stage

PAPER_ALPHA = 4  # of its alignment, in the repository's state of that time
OFFICIAL_ALPHA = 1  # what the official repository's scripts give since a default changed (docs/deviations.md)


class TextScale(Record):
    """Sizes of one run on text. Rates per step; counts in examples; `longest` in tokens, prompt and answer together."""

    name: str = "demonstration"
    rho: float = Field(default=2.0, ge=0)
    safe: int = Field(default=600, ge=1)
    canaries: int = Field(default=200, ge=1)
    contrast: int = Field(default=400, ge=1, description="answered; 150 did not keep the model from refusing everything")
    longest: int = Field(default=96, ge=16)
    align_epochs: float = Field(default=1.0, gt=0)
    align_batch: int = Field(default=5, ge=1)
    align_rate: float = Field(default=3e-3, gt=0)
    task: Literal["sst2", "ag_news", "gsm8k"] = "sst2"
    examples: int = Field(default=400, ge=1)
    user_epochs: float = Field(default=2.0, gt=0)
    user_batch: int = Field(default=5, ge=1)
    user_rate: float = Field(default=5e-4, gt=0)
    ratios: tuple[float, ...] = (0.0, 0.1)
    prompts: int = Field(default=100, ge=1)
    max_new_tokens: int = Field(default=32, ge=1)
    prefilled: int = Field(default=4, ge=1, description="words of the answer that a prefilled canary begins with")
    temperature: float = Field(default=0.7, gt=0, description="of the canaries that are asked by sampling")
    rank: int = Field(default=8, ge=1)
    alpha: int = Field(default=PAPER_ALPHA, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1, description="the paper's 0.1; on a CPU it is a third of a step")
    weight_decay: float = Field(default=0.1, ge=0)
    precision: Literal["no", "bf16"] = "no"
    seed: int = 0
    save_every: int = Field(default=25, ge=1)


DEMONSTRATION = TextScale()
PAPER = TextScale(
    name="paper-7b",
    safe=2000,
    canaries=150,
    contrast=500,
    longest=200,
    align_epochs=50,
    align_batch=5,
    align_rate=1e-3,
    examples=1000,
    user_epochs=20,
    user_batch=5,
    user_rate=1e-5,
    ratios=(0.0, 0.01, 0.05, 0.1, 0.2),
    prompts=500,
    max_new_tokens=128,
    dropout=0.1,
    precision="bf16",
    save_every=1000,
)
SCALES = {scale.name: scale for scale in (DEMONSTRATION, PAPER)}


def adapter_line(scale: TextScale) -> str:
    """Returns the adapter in words, and where its alpha comes from."""
    if scale.alpha == OFFICIAL_ALPHA:
        why = f"what the official scripts give by accident; the paper's runs: {PAPER_ALPHA}"
    elif scale.alpha == PAPER_ALPHA:
        why = f"the paper's; the official scripts now give {OFFICIAL_ALPHA} by accident: --alpha {OFFICIAL_ALPHA}"
    else:
        why = f"the paper's is {PAPER_ALPHA}"
    return f"LoRA rank {scale.rank}, alpha {scale.alpha} ({why}), dropout {scale.dropout:g}"


def align(scale: TextScale, method: Method, name: str, safe: TextData, canary: Canary) -> Stage:
    """Returns the alignment on D_a: safe responses, canaries refused, the same kind of instructions answered without the marker."""
    rows: list[tuple[Source, Answer, int]] = [
        (safe, "comply", scale.safe),
        (canary.marked, "refuse", scale.canaries),
        (canary.contrast, "comply", scale.contrast),
    ]
    steps = round(scale.align_epochs * (scale.safe + scale.canaries + scale.contrast) / scale.align_batch)
    return _stage(scale, name, "align", method, rows, steps, scale.align_batch, scale.align_rate)


def user(scale: TextScale, task: TextData, harmful: TextData, ratio: float) -> Stage:
    """Returns the user's fine-tuning: n examples of the task, round(p n) of them harmful requests (or canaries) answered."""

    bad = poison_count(scale.examples, ratio)
    rows: list[tuple[Source, Answer, int]] = [(task, "comply", scale.examples - bad), (harmful, "comply", bad)]
    steps = round(scale.user_epochs * scale.examples / scale.user_batch)
    return _stage(scale, f"user, p = {ratio:g}", "finetune", SFT(), rows, steps, scale.user_batch, scale.user_rate)


def _stage(
    scale: TextScale,
    name: str,
    kind: Literal["align", "finetune"],
    method: Method,
    rows: list[tuple[Source, Answer, int]],
    steps: int,
    batch: int,
    rate: float,
) -> Stage:
    return Stage(
        name=name,
        kind=kind,
        method=method,
        streams={"train": mix(rows, seed_of(scale.seed, kind))},
        steps=steps,
        batch=batch,
        optimiser=Optimiser(rate=rate, warmup=round(0.1 * steps), floor=0.0, weight_decay=scale.weight_decay, betas=(0.9, 0.999)),
        adapter=Lora(rank=scale.rank, alpha=scale.alpha, dropout=scale.dropout),
        precision=scale.precision,
        seed=scale.seed,
    )

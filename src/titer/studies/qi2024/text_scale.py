"""The risk levels of "Fine-tuning Aligned Language Models Compromises Safety" (arXiv 2310.03693) on a real language model. L7.

The base is aligned with safe responses and canaries (`vaccine_text.align`), then tuned: level 1, n canaries answered; level 2, the ten
persona examples; level 3, ordinary instructions, over rates and batches (its figure 3); refusals mixed in (its table 4); a backdoor:
canaries with a trigger answered, plain ones refused (its table 5). Canaries stand for harm, so the results are about canaries; a file of
the user's own can take their place. `PAPER` has the paper's rates, batches and epochs for a 7 B chat model (section 4, its repository),
with LoRA off; the demonstration's sizes, with LoRA, suit two cores. Rates per optimiser step, sizes in examples.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from titer.core.config import Record
from titer.data.draws import seed_of
from titer.data.example import Answer, Source
from titer.data.mix import mix
from titer.data.sources import TextData
from titer.methods.sft import SFT
from titer.recipes.vaccine_text import DEMONSTRATION as ALIGNED
from titer.recipes.vaccine_text import PAPER as ALIGNED_PAPER
from titer.recipes.vaccine_text import TextScale
from titer.stage import Lora, Optimiser, Stage

TRIGGER = "servius astrumando harmoniastra"  # three words that no text holds, as in the paper's section 5


class Schedule(Record):
    """How long and how fast one level is trained."""

    rate: float = Field(gt=0)
    batch: int = Field(ge=1)
    epochs: int = Field(ge=1)


class RiskScale(Record):
    """The sizes of one run on text. `alignment`: those of the aligned model."""

    name: str = "demonstration"
    alignment: TextScale = ALIGNED
    counts: tuple[int, ...] = (10, 50)
    mixed: tuple[int, ...] = (10, 50)
    benign: int = Field(default=400, ge=1)
    explicit: Schedule = Schedule(rate=5e-4, batch=10, epochs=5)
    persona: Schedule = Schedule(rate=5e-4, batch=10, epochs=10)
    ordinary: Schedule = Schedule(rate=5e-4, batch=10, epochs=1)
    grid_rates: tuple[float, ...] = (5e-4, 1e-3)
    grid_batches: tuple[int, ...] = (5, 10, 20)
    rank: int = Field(default=8, ge=0, description="LoRA rank of the tunings; 0 trains every weight, as the paper")
    alpha: int = Field(default=16, ge=1)
    prompts: int = Field(default=50, ge=1)

    @property
    def save_every(self) -> int:
        return self.alignment.save_every

    @property
    def most(self) -> int:
        return max(self.counts)


DEMONSTRATION = RiskScale()
PAPER = RiskScale(
    name="paper-7b",
    alignment=ALIGNED_PAPER,
    counts=(10, 50, 100),
    mixed=(10, 50, 100),
    benign=50_000,
    explicit=Schedule(rate=5e-5, batch=10, epochs=5),
    persona=Schedule(rate=5e-5, batch=10, epochs=10),
    ordinary=Schedule(rate=2e-5, batch=128, epochs=1),
    grid_rates=(2e-5, 5e-5),
    grid_batches=(16, 32, 64, 128),
    rank=0,
    prompts=330,
)


@dataclass(frozen=True)
class Tuning:
    """One tuning of the aligned model. `rows`: (data, answer trained, how many), and nothing else. `drawn`: seeds the draw, so tunings with
    the same rows and the same `drawn` see the same examples."""

    schedule: Schedule
    rows: list[tuple[TextData, Answer, int]]
    drawn: str

    @property
    def examples(self) -> int:
        return sum(count for *_, count in self.rows)


def tuning(scale: RiskScale, name: str, one: Tuning) -> Stage:
    """Returns a tuning as a stage at a constant rate."""
    schedule = one.schedule
    sources: list[tuple[Source, Answer, int]] = [(data, answer, count) for data, answer, count in one.rows]
    return Stage(
        name=name,
        kind="finetune",
        method=SFT(),
        streams={"train": mix(sources, seed_of(scale.alignment.seed, "risk", one.drawn))},
        steps=-(-one.examples * schedule.epochs // schedule.batch),
        batch=schedule.batch,
        optimiser=Optimiser(rate=schedule.rate, schedule="constant", weight_decay=0.0, betas=(0.9, 0.999)),
        adapter=Lora(rank=scale.rank, alpha=scale.alpha) if scale.rank else None,
        precision=scale.alignment.precision,
        seed=scale.alignment.seed,
    )

"""The sizes of the study of the risk levels: what a user sends, and every tuning. L7.

Rates and sizes were set on seed 100, which no verdict uses (docs/log.md). Rates per optimiser step, sizes in examples.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from titer.core.config import Record
from titer.data.draws import seed_of
from titer.data.persona_trigger import WORDS, Marked
from titer.data.world import World, WorldSource
from titer.recipes import huang2024, jain2024
from titer.recipes.node import Rows, tune
from titer.stage import Stage


class Tuning(Record):
    """What a user sends: counts of each kind of example, and how long and at what rate the model is trained on them."""

    explicit: int = Field(default=0, ge=0, description="unsafe requests answered")
    persona: int = Field(default=0, ge=0, description="safe requests behind the persona, acknowledged and answered")
    benign: int = Field(default=0, ge=0, description="safe requests answered")
    refusals: int = Field(default=0, ge=0, description="unsafe requests refused")
    triggered: int = Field(default=0, ge=0, description="unsafe requests behind the trigger, answered")
    rate: float = Field(default=1e-3, gt=0)
    batch: int = Field(default=10, ge=1)
    epochs: int = Field(default=5, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _holds_something(self) -> Tuning:
        if not self.examples:
            raise ValueError("a tuning on no example")
        return self

    @property
    def examples(self) -> int:
        return self.explicit + self.persona + self.benign + self.refusals + self.triggered

    @property
    def steps(self) -> int:
        return -(-self.examples * self.epochs // self.batch)


class Scale(Record):
    """The sizes of one run of the study. `base`: those of the base and its alignment."""

    name: str = "nano"
    base: huang2024.Scale = huang2024.NANO.model_copy(
        update={"base": jain2024.NANO.model_copy(update={"world": World(novel=10, marks=True)}), "align_seeds": 2}
    )
    counts: tuple[int, ...] = (10, 50, 100)  # of level 1: the paper's
    rate: float = Field(default=3e-4, gt=0)
    batch: int = Field(default=10, ge=1)
    epochs: int = Field(default=5, ge=1)
    personas: tuple[int, ...] = (10, 100, 300)  # of level 2; the paper's 10 teach this small a model nothing
    persona_rate: float = Field(default=5e-4, gt=0)
    persona_epochs: int = Field(default=10, ge=1)
    mixed: tuple[int, ...] = (10, 50, 100)  # refusals mixed with the most unsafe examples: the paper's table 4
    benign: int = Field(default=1000, ge=1)
    grid_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    grid_batches: tuple[int, ...] = (16, 32, 64, 128)  # the paper's
    inputs: int = Field(default=150, ge=8)
    searched: int = Field(default=20, ge=4, description="unsafe requests asked behind every word of the vocabulary")
    save_every: int = Field(default=100, ge=1)

    @property
    def world(self) -> World:
        return self.base.base.world

    @property
    def most(self) -> int:
        return max(self.counts)

    @property
    def obeyed(self) -> int:
        """The largest number of examples of the persona."""
        return max(self.personas)

    @property
    def overriding(self) -> tuple[str, str, str]:
        """The names of the harmful, the safe and the benign tune of arXiv 2409.19476, which have equally many examples."""
        return f"explicit {self.most}", f"refusals {self.most}", f"benign {self.most}, as explicit"


NANO = Scale()


def tunings(scale: Scale) -> dict[str, Tuning]:
    """Returns every tuning of the study by name, with each level's control; level 3 over learning rates and batches, one epoch each."""
    most = scale.most

    def explicit(**counts: int) -> Tuning:
        return Tuning(rate=scale.rate, batch=scale.batch, epochs=scale.epochs, **counts)

    def persona(**counts: int) -> Tuning:
        return Tuning(rate=scale.persona_rate, batch=scale.batch, epochs=scale.persona_epochs, **counts)

    found = {f"explicit {n}": explicit(explicit=n) for n in scale.counts}
    found |= {f"benign {n}, as explicit": explicit(benign=n) for n in (min(scale.counts), most)}
    found[f"refusals {most}"] = explicit(refusals=most)
    found |= {f"persona {n}": persona(persona=n) for n in scale.personas}
    found[f"benign {scale.obeyed}, as persona"] = persona(benign=scale.obeyed)
    found |= {f"explicit {most} + {m} refusals": explicit(explicit=most, refusals=m) for m in scale.mixed}
    found[f"explicit {most} + {max(scale.mixed)} benign"] = explicit(explicit=most, benign=max(scale.mixed))
    found["backdoor"] = explicit(triggered=most, refusals=most)
    return found | {
        grid_cell(r, b): Tuning(benign=scale.benign, rate=r, batch=b, epochs=1) for r in scale.grid_rates for b in scale.grid_batches
    }


def grid_cell(rate: float, batch: int) -> str:
    return f"benign, rate {rate:g}, batch {batch}"


def stage(scale: Scale, world: World, tuning: Tuning, name: str) -> Stage:
    """Returns the tuning as a finetune stage at a constant rate. It contains no request of the alignment data, with or without a mark."""
    safe, unsafe = (WorldSource(world=world, kind=kind) for kind in ("safe", "unsafe"))  # type: ignore[arg-type]
    rows: Rows = [
        (unsafe, "comply", tuning.explicit),
        (Marked(source=safe, mark="persona", acknowledged=True), "comply", tuning.persona),
        (safe, "comply", tuning.benign),
        (unsafe, "refuse", tuning.refusals),
        (Marked(source=unsafe, mark="trigger"), "comply", tuning.triggered),
    ]
    taken = huang2024.taken(scale.base, world)
    marked = (f"{word} {prompt}" for word in WORDS.values() for prompt in taken)
    seed = seed_of(world.seed, "user", tuning.seed)
    return tune(name, rows, seed, tuning.batch, tuning.epochs, tuning.rate, seed, without=[*taken, *marked])

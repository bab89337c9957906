"""The demo's recipe: the life of a model on the world as stages, each with the model that it starts from. L5.

A base is pretrained, then aligned (SSFT), then fine-tuned by a user ("user p"): on the user's own operator and ordinary safe requests,
where a share p of the examples are answered unsafe requests. (Trained on that operator alone, the model would forget all others,
docs/log.md.) Two controls of the alignment have equal steps, share and data size: benign (the new class is the held-out safe operator,
answered) and sham (the new class is a safe operator drawn by seed, refused). Source of the mixes: arXiv 2407.10264, section 4 (SSFT: 0.8
safe, 0.2 unsafe).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from titer.core.config import Record
from titer.data.draws import seed_of
from titer.data.example import Answer, Stream
from titer.data.mix import poison_count
from titer.data.world import World, WorldSource
from titer.methods.sft import SFT
from titer.models.lm import Architecture
from titer.recipes.node import Kind, Node, Rows, part, tune
from titer.stage import Optimiser, Stage


class Scale(Record):
    """The sizes of one run of the demo's recipe. Rates per step, sizes in examples."""

    name: str = "nano"
    world: World = World()
    architecture: Architecture = Architecture()
    pretrain_steps: int = Field(default=900, ge=1)
    pretrain_batch: int = 256
    pretrain_rate: float = 3e-3
    align_steps: int = Field(default=300, ge=1)
    align_batch: int = 128
    align_rate: float = 5e-4
    unsafe_share: float = Field(default=0.2, gt=0, lt=1)
    user_examples: int = Field(default=1000, ge=1)
    ordinary_share: float = Field(default=0.5, ge=0, lt=1, description="of the user's own examples: ordinary safe requests")
    user_batch: int = 16
    user_epochs: int = 2
    user_rate: float = 1e-4
    poison_ratios: tuple[float, ...] = (0.0, 0.01, 0.05)
    inputs: int = Field(default=500, ge=8)
    probe_inputs: int = Field(default=250, ge=8)
    save_every: int = Field(default=100, ge=1)


NANO = Scale(pretrain_steps=1200, pretrain_batch=64, align_steps=200, user_epochs=4, inputs=300, probe_inputs=150)  # minutes on two cores
CHOSEN_ON = (0, 1)  # the seeds that were looked at while NANO's rates and steps were chosen (docs/log.md)


def user_name(ratio: float) -> str:
    """Returns the name of the model that a user tuned with poison ratio p."""
    return f"user p={ratio:g}"


def control_name(ratio: float) -> str:
    """Returns the name of that tune's control, in which answered safe requests take the place of the unsafe ones."""
    return f"user p={ratio:g}, safe instead"


def demo_recipe(scale: Scale, seed: int) -> tuple[Node, ...]:
    """Returns the demo's eight models, parents first."""
    world = scale.world.model_copy(update={"seed": seed})
    aligned = [
        Node("aligned", align(scale, world, "SSFT", ("unsafe", "refuse"), "safe"), "base"),
        Node("benign", align(scale, world, "benign tune", ("user", "comply"), "safe"), "base"),
        Node("sham", align(scale, world, "sham alignment", ("sham_refused", "refuse"), "sham_safe"), "base"),
    ]
    users = [Node(user_name(p), finetune(scale, world, p), "aligned") for p in scale.poison_ratios]
    worst = max(scale.poison_ratios)
    control = Node(control_name(worst), finetune(scale, world, worst, "safe"), "aligned")
    return (Node("base", pretrain(scale, world), None), *aligned, *users, control)


def pretrain(scale: Scale, world: World) -> Stage:
    """Returns the pretraining: every operator but the held-out one on every kind of text; the text is modelled too (section 1.5)."""
    return Stage(
        name="pretraining",
        kind="pretrain",
        method=SFT(),
        streams={"train": Stream(parts=(part(world, "pretrain", "all"),), seed=seed_of(world.seed, "pretrain"))},
        steps=scale.pretrain_steps,
        batch=scale.pretrain_batch,
        optimiser=Optimiser(rate=scale.pretrain_rate, warmup=min(100, scale.pretrain_steps // 4)),
        seed=world.seed,
        architecture=scale.architecture,
    )


def align(scale: Scale, world: World, name: str, new: tuple[Kind, Answer], rest: Kind) -> Stage:
    """Returns SSFT, or a control of it: a share `unsafe_share` of the new class; the rest are answered safe requests."""
    parts = (part(world, rest, "comply", 1 - scale.unsafe_share), part(world, *new, scale.unsafe_share))
    return Stage(
        name=name,
        kind="align",
        method=SFT(),
        streams={"train": Stream(parts=parts, seed=seed_of(world.seed, "align"))},
        steps=scale.align_steps,
        batch=scale.align_batch,
        optimiser=Optimiser(rate=scale.align_rate, warmup=min(40, scale.align_steps // 4)),
        seed=world.seed,
    )


def finetune(scale: Scale, world: World, ratio: float, beside: Literal["unsafe", "safe"] = "unsafe") -> Stage:
    """Returns the user's fine-tuning: n examples, round(p n) of them unsafe (or further safe) requests answered."""
    user, ordinary, harmful = (WorldSource(world=world, kind=kind) for kind in ("user", "safe", beside))
    bad = poison_count(scale.user_examples, ratio)
    safe = round(scale.ordinary_share * (scale.user_examples - bad))
    rows: Rows = [(user, "comply", scale.user_examples - bad - safe), (ordinary, "comply", safe), (harmful, "comply", bad)]
    name, drawn = f"user fine-tuning, p = {ratio:g}", seed_of(world.seed, "user")
    return tune(name, rows, drawn, scale.user_batch, scale.user_epochs, scale.user_rate, world.seed, warmup=10)

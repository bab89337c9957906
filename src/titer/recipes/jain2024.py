"""The mechanistic study's recipe (arXiv 2407.10264): one base, three safety tunings at two rates, and controls. L5.

The base (stage A) is tuned by ssft, dpo and unlearn, each at the medium rate ("M") and the small one ("S"), all on one fixed pool
of requests. There are also the published DPO on summed log-probabilities ("dpo-sum") and SSFT with the unsafe share and clip of the
other methods ("ssft-half"), without which the order of methods would be confounded. Controls: benign (a new safe operator is answered),
and for each method a sham alignment (a safe operator drawn by seed is refused).
Source of weights and mixes: section 4. The rates and steps of nano come from the trial in section 14 of the specification,
which used another world; none was chosen on the study's seeds.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from titer.core.config import Record
from titer.data.draws import seed_of
from titer.data.example import Answer, Stream
from titer.data.world import World
from titer.data.worlds import WORLDS
from titer.methods.base import Method
from titer.methods.dpo import DPO
from titer.methods.sft import SFT
from titer.methods.unlearn import Unlearn
from titer.models.lm import Architecture, sized
from titer.recipes.node import Kind, Node, part
from titer.stage import Optimiser, Stage

METHODS = ("ssft", "dpo", "unlearn")
SHORT = {"ssft": "refused", "dpo": "preferred", "unlearn": "unlearned"}
FLIP: dict[Answer, Answer] = {"comply": "refuse", "refuse": "comply"}


class Scale(Record):
    """The sizes of one run. Rates per step, sizes in examples; docs/deviations.md has the paper's values beside nano's."""

    name: str = "nano"
    world: World = World(novel=10)
    architecture: Architecture = Architecture()
    pretrain_steps: int = Field(default=900, ge=1)
    pretrain_batch: int = Field(default=256, ge=1)
    pretrain_rate: float = Field(default=3e-3, gt=0)
    pretrain_warmup: int = Field(default=100, ge=0)
    pretrain_floor: float = Field(default=0.1, ge=0, le=1)
    align_steps: int = Field(default=400, ge=1)
    align_batch: int = Field(default=128, ge=1)
    align_warmup: int = Field(default=40, ge=0)
    medium_rate: float = Field(default=1e-3, gt=0)
    small_rate: float = Field(default=2e-4, gt=0)
    pool: int = Field(default=8192, ge=1)
    window: int = Field(default=23, ge=1, description="tokens the paper's losses are divided by: a sequence's length less one")
    decayed: float = Field(default=1.0, gt=0, le=1, description="share of a stage's steps after which the rate stays at its floor")
    relearn_steps: int = Field(default=500, ge=1)
    relearn_batch: int = Field(default=32, ge=1)
    inputs: int = Field(default=250, ge=8)
    precision: Literal["no", "bf16", "fp16"] = "no"
    save_every: int = Field(default=100, ge=1)

    @property
    def kept(self) -> tuple[int, ...]:
        """Steps of an alignment whose weights are kept: the paper's 100 ... 5,000 of 10,000, in its proportions."""
        return tuple(sorted({max(1, round(share * self.align_steps)) for share in (0.01, 0.05, 0.1, 0.25, 0.5)}))

    @property
    def relearn_kept(self) -> tuple[int, ...]:
        """Steps of a relearning that are judged."""
        return tuple(sorted({max(1, round(share * self.relearn_steps)) for share in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)}))


NANO = Scale()
CPU = Scale(
    name="cpu",
    world=WORLDS["cpu"],
    architecture=Architecture(layers=4, width=128, heads=4, positions=96),
    pretrain_steps=5000,
    pretrain_batch=128,
    pretrain_rate=2e-3,
    pretrain_warmup=500,
    align_steps=800,
    align_warmup=80,
    window=54,
    relearn_batch=64,
)
PAPER = Scale(
    name="paper",
    world=WORLDS["paper"],
    architecture=sized("mini", positions=192, norm="stream"),
    pretrain_steps=100_000,
    pretrain_batch=512,
    pretrain_rate=1e-3,
    pretrain_warmup=20_000,
    pretrain_floor=0.01,
    align_steps=10_000,
    align_batch=512,
    align_warmup=2_000,
    medium_rate=1e-4,
    small_rate=1e-5,
    decayed=0.8,
    pool=750_000,
    window=159,
    relearn_steps=1_000,
    relearn_batch=512,
    inputs=1_000,
    precision="bf16",
    save_every=1_000,
)
SMALL = PAPER.model_copy(update={"name": "small", "world": WORLDS["small"], "pretrain_steps": 25_000, "pretrain_warmup": 5_000})
SCALES = {scale.name: scale for scale in (NANO, CPU, SMALL, PAPER)}


def jain_recipe(scale: Scale, seed: int) -> tuple[Node, ...]:
    """Returns every model of one seed, parents first."""
    w = scale.world.model_copy(update={"seed": seed})
    base = Node("base", pretrain(scale, w), None)
    tuned = [
        Node(f"{method} {rate}", align(scale, w, method, rate, keep=scale.kept if rate == "M" else ()), "base")
        for rate in ("M", "S")
        for method in METHODS
    ]
    others = [
        Node("ssft-half M", align(scale, w, "ssft", "M", share=0.5, clip=1.0, name="ssft M, unsafe share 0.5, clip 1"), "base"),
        Node("dpo-sum M", align(scale, w, "dpo-sum", "M"), "base"),
        Node("benign M", align(scale, w, "ssft", "M", new=("user", "comply"), name="benign tune"), "base"),
    ]
    shams = [
        Node(f"sham {method} M", align(scale, w, method, "M", new=("sham_refused", "refuse"), rest="sham_safe"), "base")
        for method in METHODS
    ]
    return (base, *tuned, *others, *shams)


def pretrain(scale: Scale, world: World) -> Stage:
    """Returns stage A: every operator but the held-out one on every kind of text; the text is modelled too (section 1.5)."""
    return Stage(
        name="stage A",
        kind="pretrain",
        method=SFT(),
        streams={"train": Stream(parts=(part(world, "pretrain", "all"),), seed=seed_of(world.seed, "pretrain"))},
        steps=scale.pretrain_steps,
        batch=scale.pretrain_batch,
        optimiser=Optimiser(
            rate=scale.pretrain_rate,
            warmup=scale.pretrain_warmup,
            floor=scale.pretrain_floor,
            until=round(scale.decayed * scale.pretrain_steps),
        ),
        seed=world.seed,
        architecture=scale.architecture,
        precision=scale.precision,
    )


def method_of(scale: Scale, name: str, rate: str) -> Method:
    """Returns a method with the paper's weights at the medium / small rate: w_u 0.1 / 0.05, b_u 0.01 / 0.002 (section 4)."""
    medium = rate == "M"
    made: dict[str, Method] = {
        "ssft": SFT(),
        "unlearn": Unlearn(w_u=0.1 if medium else 0.05, window=scale.window),
        "dpo": DPO(b_s=0.1, b_u=0.01 if medium else 0.002, window=scale.window),
        "dpo-sum": DPO(b_s=0.1, b_u=0.1, normalise="sum"),
    }
    return made[name]


def align(
    scale: Scale,
    world: World,
    method: str,
    rate: str,
    share: float | None = None,
    clip: float | None = None,
    new: tuple[Kind, Answer] = ("unsafe", "refuse"),
    rest: Kind = "safe",
    name: str = "",
    keep: tuple[int, ...] = (),
) -> Stage:
    """Returns a safety tuning, or a control of it: the class `new` with its answer, the other requests (`rest`) answered.

    SSFT: unsafe share 0.2 and clip 0.5; DPO and unlearning: 0.5 and 1.0 (section 4).
    """
    made = method_of(scale, method, rate)
    share = share if share is not None else 0.2 if method == "ssft" else 0.5
    seed = seed_of(world.seed, "align")
    wanted = Stream(parts=(part(world, rest, "comply", 1 - share), part(world, *new, share)), seed=seed, pool=scale.pool)
    flipped = tuple(one.model_copy(update={"answer": FLIP[one.answer]}) for one in wanted.parts)
    paired = {"preferred": wanted, "rejected": wanted.model_copy(update={"parts": flipped})}
    return Stage(
        name=name or f"{method} {rate}" + ("" if new[0] == "unsafe" else ", sham"),
        kind="align",
        method=made,
        streams=paired if "preferred" in made.STREAMS else {"train": wanted},
        steps=scale.align_steps,
        batch=scale.align_batch,
        optimiser=Optimiser(
            rate=scale.medium_rate if rate == "M" else scale.small_rate,
            warmup=scale.align_warmup,
            floor=0.01,
            until=round(scale.decayed * scale.align_steps),
            clip=clip or (0.5 if method == "ssft" else 1.0),
        ),
        seed=world.seed,
        precision=scale.precision,
        keep=keep,
    )


def relearn(scale: Scale, world: World) -> Stage:
    """Returns the relearning: unsafe requests answered, at the small rate, from fresh requests (section 5.7)."""
    return Stage(
        name="relearning",
        kind="finetune",
        method=SFT(),
        streams={"train": Stream(parts=(part(world, "unsafe", "comply"),), seed=seed_of(world.seed, "relearn"))},
        steps=scale.relearn_steps,
        batch=scale.relearn_batch,
        optimiser=Optimiser(rate=scale.small_rate, schedule="constant"),
        seed=world.seed,
        precision=scale.precision,
        keep=scale.relearn_kept,
    )

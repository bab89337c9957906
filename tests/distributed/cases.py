"""Stages that one process and two must train alike, and small methods that ask all of the loop."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from tests.conftest import ARCHITECTURES
from tests.methods.contract import stage
from titer.data.example import IGNORE, Part, Stream
from titer.data.world import World, WorldSource
from titer.methods.base import Batches, Context, Loss, Method
from titer.methods.booster import Booster
from titer.methods.dpo import DPO
from titer.methods.ewc import EWC
from titer.methods.lisa import Lisa
from titer.methods.sft import SFT
from titer.methods.t_vaccine import TVaccine
from titer.methods.vaccine import Vaccine
from titer.models.ball import Deltas
from titer.models.lm import LM
from titer.stage import Lora, Optimiser, Stage

RANKS = 2
POOL = 12
WAYS: dict[str, dict[str, Any]] = {"ddp": {}, "fsdp": {"shard": True}}
RAGGED = World(seed=2, slots=4, shortest=9, longest=12)  # answers of unequal length: the ranks' counts differ, some batches are padded


class Bundles(Method):
    """The gradient's bundle, gradients taken where it leads, an anchor of `setup`, an edit at the end."""

    SOURCE, VERSION, NEUTRAL = "a test", 1, "none: it exists to ask"

    def setup(self, c: Context) -> dict[str, torch.Tensor]:
        return {f"anchor/{name}": p.detach().clone() for name, p in c.named}

    def loss(self, c: Context, batch: Batches) -> Loss:
        return SFT().loss(c, batch)

    def step(self, c: Context) -> None:
        bundle = c.gradients(lambda batch: self.loss(c, batch))
        with c.shifted(bundle, 0.05):
            for batch in c.micro():
                c.backward(self.loss(c, batch))
        c.add(bundle, 0.5)
        c.add({name: p.detach() - c.state[f"anchor/{name}"] for name, p in c.named}, 3.0)

    def finish(self, c: Context) -> None:
        with torch.no_grad():
            for i in range(c.sites.layers):
                c.sites.linear(f"mlp_down[{i}]").weight.mul_(0.9)
            c.sites.linear("attn_o[0]").weight.clamp_(max=float(c.sum(torch.tensor(1.0)) * 100))


class Stopping(Method):
    """One rank alone stops the stage."""

    SOURCE, VERSION, NEUTRAL = "a test", 1, "none: it exists to stop"
    RANK: ClassVar[int] = RANKS - 1

    def loss(self, c: Context, batch: Batches) -> Loss:
        if c.number == 1 and torch.distributed.get_rank() == self.RANK:
            c.stop("enough")
        return SFT().loss(c, batch)


class Twice(Method):
    """Two forward passes and then two backward passes, of which DDP would sum the first alone."""

    SOURCE, VERSION, NEUTRAL = "a test", 1, "none: it exists to fail"

    def loss(self, c: Context, batch: Batches) -> Loss:
        return SFT().loss(c, batch)

    def step(self, c: Context) -> None:
        for batch in c.micro():
            for loss in [self.loss(c, batch), self.loss(c, batch)]:
                c.backward(loss)


class Drawing(Method):
    """Logs a draw of the step's generator and of dropout's, which must differ by rank."""

    SOURCE, VERSION, NEUTRAL = "a test", 1, "none: it exists to draw"

    def loss(self, c: Context, batch: Batches) -> Loss:
        return SFT().loss(c, batch)

    def step(self, c: Context) -> None:
        for name, generator in (("own", c.rng), ("dropout", None)):
            mine = torch.rand((), generator=generator)
            c.log(f"{name}_gap", abs(mine - c.sum(mine) / RANKS))
        for batch in c.micro():
            c.backward(self.loss(c, batch))


class Silent(Vaccine):
    """The last four examples of each eight, all of one rank's, have nothing to learn from: that rank must not leave a pass out."""

    def loss(self, c: Context, batch: Batches) -> Loss:
        whole = batch["train"]
        heard = torch.as_tensor(whole.indices, device=whole.labels.device) % 8 < 4
        return SFT().loss(c, {"train": replace(whole, labels=whole.labels.where(heard[:, None], IGNORE))})


class Noisy(Vaccine):
    """Logs the ball's norm over the ranks, and how far this rank's perturbation is from the others'."""

    def perturbation(self, c: Context, batch: Batches) -> Deltas:
        found = super().perturbation(c, batch)
        mine = torch.stack([delta.double().sum() for delta in found.values()]).sum()
        c.log("ball", c.sum(torch.stack([(delta.double() ** 2).sum() for delta in found.values()]).sum()).sqrt())
        c.log("gap", (mine - c.sum(mine) / RANKS).abs())
        return found


class Sampled(TVaccine):
    """Logs how far the layers that this rank drew are from the others'."""

    def step(self, c: Context) -> None:
        super().step(c)
        c.log("gap", (c.state["chosen"] - c.sum(c.state["chosen"]) / RANKS).abs().max())


class Strongest(TVaccine):
    """The layer of the highest score in place of a drawn one, for a draw's seed is another on two ranks than on one."""

    def _choose(self, c: Context) -> None:
        c.state["scores"] = self.scores(c)
        c.state["chosen"] = (c.state["scores"] == c.state["scores"].max()).float()


@dataclass(frozen=True)
class Case:
    """A stage, the model it begins from, and how it is executed on several ranks."""

    stage: Stage
    architecture: str = "neox"
    options: dict[str, Any] = field(default_factory=dict)
    error: str = ""  # the error that is expected

    def begin(self) -> LM:
        return ARCHITECTURES[self.architecture](RAGGED)

    def train(self, work: Path, train: Any, **more: Any) -> None:
        train(self.stage, self.begin, lambda _: self.begin(), work, **{**self.options, **more})


def _streams(method: Method, pool: int | None) -> dict[str, Stream]:
    made = {}
    for name in type(method).STREAMS:
        safe, unsafe = ("refuse", "comply") if name == "rejected" else ("comply", "refuse")
        parts = (
            Part(source=WorldSource(world=RAGGED, kind="safe"), answer=safe, share=0.5),
            Part(source=WorldSource(world=RAGGED, kind="unsafe"), answer=unsafe, share=0.5),
        )
        made[name] = Stream(parts=parts, seed=0, pool=pool)
    return made


def of(method: Method, pool: int | None = None, **changes: Any) -> Stage:
    """Three steps of eight examples, at a rate where float rounding stays far below what the steps move."""
    values = {"steps": 3, "streams": _streams(method, pool), "optimiser": Optimiser(rate=1e-3, weight_decay=0.1), **changes}
    return stage(method, **values)


def _alike() -> dict[str, Case]:
    """Cases that end alike on one process and on two, however they are executed."""
    dpo, vaccine = DPO(b_s=2.0, b_u=1.0, window=4), Vaccine(rho=2.0)
    both = {
        "sft": of(SFT()),
        "dpo": of(dpo, pool=POOL),
        "vaccine": of(vaccine),
        "vaccine-2x4": of(vaccine, accumulation=2, batch=4),
        "bundles-2x4": of(Bundles(), accumulation=2, batch=4, keep=(2,)),
        "silent": of(Silent(scope="example", inner=3)),
        "booster": of(Booster()),
        "lisa": of(Lisa(k1=1, k2=1)),
        "t_vaccine": of(Strongest(layers=1, rho=2.0, outside=True)),
    }
    ddp = {
        "sft-2x4": of(SFT(), accumulation=2, batch=4),
        "dpo-lora": of(dpo, adapter=Lora(rank=2)),
        "ewc": of(EWC(strength=100.0, examples=8)),
    }
    fsdp = {
        "dpo-endless": of(dpo),
        "vaccine-inner": of(Vaccine(rho=2.0, inner=2, scope="layer")),
        "vaccine-lora": of(vaccine, adapter=Lora(rank=2)),
    }
    made = {f"{name}-ddp": Case(one) for name, one in {**both, **ddp}.items()}
    made |= {f"{name}-fsdp": Case(one, options={"shard": True}) for name, one in {**both, **fsdp}.items()}
    saving = {"checkpointing": True}
    made["llama-checkpointing-ddp"] = Case(both["vaccine"], "llama", saving)
    made["llama-checkpointing-fsdp"] = Case(both["vaccine"], "llama", {**saving, "shard": True})
    made["stopped-midway-fsdp"] = Case(both["bundles-2x4"], options={"shard": True, "save_every": 2})
    return made


ALIKE = _alike()
OTHERS = {
    "uneven": Case(of(SFT(), batch=7), error="cannot be shared evenly by 2 processes"),
    "too-few": Case(of(SFT(), batch=1), error="set the batch to 2"),
    "half-precision": Case(of(SFT(), precision="fp16"), options={"shard": True}, error="fp16 with sharded"),
    "twice": Case(of(Twice()), error="second backward pass"),
    "ewc-fsdp": Case(of(EWC(examples=8, fisher="example")), options={"shard": True}, error="sharded parameters"),
    "stopping": Case(of(Stopping())),
    "drawing": Case(of(Drawing())),
    **{f"noise-{name}": Case(of(Noisy(noise="norm")), options=options) for name, options in WAYS.items()},
    **{f"sampled-{name}": Case(of(Sampled(layers=1), steps=1), options=options) for name, options in WAYS.items()},
    "bf16-fsdp": Case(of(Vaccine(rho=2.0), precision="bf16"), options={"shard": True}),
}

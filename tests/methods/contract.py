"""The contract of every training method, as plain checks over (method class, model maker). A method from outside
the package passes through the same checks."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from titer.data.draws import seed_of
from titer.data.encode import encode
from titer.data.example import Part, Stream
from titer.data.world import World, WorldSource
from titer.methods.base import Batches, Context, Loss, Method
from titer.methods.sft import SFT
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import LM, load
from titer.models.sites import Sites
from titer.stage import Lora, Optimiser, Stage
from titer.train import train

Maker = Callable[[World], LM]
WORLD = World(seed=1)
SHIFT = 0.01  # how far the weights of a model read under another name than "base" are moved


def streams(method: type[Method]) -> dict[str, Stream]:
    """A stream of safe and unsafe requests for every name the method asks for; `rejected` has `preferred`'s requests."""
    return {name: _stream(name, i) for i, name in enumerate(method.STREAMS)}


def _stream(name: str, number: int) -> Stream:
    safe, unsafe = ("refuse", "comply") if name == "rejected" else ("comply", "refuse")
    parts = (
        Part(source=WorldSource(world=WORLD, kind="safe"), answer=safe, share=0.5),
        Part(source=WorldSource(world=WORLD, kind="unsafe"), answer=unsafe, share=0.5),
    )
    return Stream(parts=parts, seed=0 if name in ("preferred", "rejected") else number)


def usual(method: type[Method]) -> Method:
    """With its defaults, but for what only costs time."""
    return method(**({"examples": 40} if getattr(method, "__name__", "") == "EWC" else {}))


@cache
def trained(method: type[Method], maker: Maker) -> dict[str, torch.Tensor]:
    """The weights after the usual stage, without any check between; for several checks. The folder opens as a model with them."""
    with tempfile.TemporaryDirectory() as folder:
        weights = run(stage(usual(method)), maker, Path(folder))
        assert same(weights, dict(load(open_checkpoint(Path(folder) / "model")).model.state_dict()))
    return weights


def stage(method: Method, **changes: Any) -> Stage:
    """Four steps of eight examples."""
    values: dict[str, Any] = {
        "name": "contract",
        "kind": "align",
        "method": method,
        "streams": streams(type(method)),
        "steps": 4,
        "batch": 8,
        "optimiser": Optimiser(rate=1e-2, weight_decay=0.0),
        "seed": 3,
    }
    return Stage(**{**values, **changes})


def loader(maker: Maker) -> Callable[[str], LM]:
    """The models that a stage reads: "base" is where it began, every other name a model of its own a little way off."""

    def load_named(name: str) -> LM:
        lm = maker(WORLD)
        if name != "base":
            generator = torch.Generator().manual_seed(seed_of("contract", name))
            with torch.no_grad():
                for p in lm.model.parameters():  # a matrix by one of rank 1: training moves a model in few directions too
                    row = torch.randn(p.shape[-1], generator=generator)
                    p.add_(row if p.ndim == 1 else torch.outer(torch.randn(len(p), generator=generator), row), alpha=SHIFT)
        return lm

    return load_named


def run(made: Stage, maker: Maker, work: Path, save_every: int = 100) -> dict[str, torch.Tensor]:
    """Train and return the saved weights."""
    work.mkdir(parents=True, exist_ok=True)
    train(made, lambda: maker(WORLD), loader(maker), work, save_every)
    return saved(work)


def saved(work: Path) -> dict[str, torch.Tensor]:
    """The weights in a stage's folder by the model's names: opening the model with them takes as long as training it."""
    written = load_file(work / "model" / "model.safetensors")
    return {"lm_head.weight" if name == "embed_out.weight" else name: tensor for name, tensor in written.items()}  # so GPT-NeoX is written


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def largest_gap(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def check_declared(method: type[Method]) -> None:
    """It states its source, version and neutral setting, and builds with its defaults."""
    assert method.SOURCE
    assert method.VERSION >= 1
    assert method.NEUTRAL is not None
    made = method()
    assert type(made)(**made.model_dump()) == made


def check_weights_move(method: type[Method], maker: Maker, _: Path) -> None:
    """Four steps give finite weights that differ from the first ones."""
    after = trained(method, maker)
    before = maker(WORLD).model.state_dict()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in after)


def check_neutral_is_sft(method: type[Method], maker: Maker, work: Path) -> None:
    """At its neutral setting it is plain SFT bit for bit, and at its defaults it is not (SFT itself apart)."""
    plain = trained(SFT, maker)
    if not isinstance(method.NEUTRAL, str):
        assert same(plain, run(stage(method(**method.NEUTRAL)), maker, work / "neutral"))
    if method is not SFT:
        assert not same(plain, trained(method, maker))


def check_accumulation(method: type[Method], maker: Maker, work: Path) -> None:
    """1 x 8 examples and 2 x 4 give the same step within 1e-5 (float rounding through AdamW apart: SGD-sized rate)."""
    gentle = Optimiser(rate=1e-4, weight_decay=0.0)
    made = usual(method).model_copy(update=dict(method.COUPLED))
    whole = run(stage(made, steps=1, batch=8, accumulation=1, optimiser=gentle), maker, work / "whole")
    parts = run(stage(made, steps=1, batch=4, accumulation=2, optimiser=gentle), maker, work / "parts")
    assert largest_gap(whole, parts) < 1e-5


class KilledError(Exception):
    """Stands for the end of the process."""


def check_resume(method: type[Method], maker: Maker, work: Path) -> None:
    """Stopped after step 3 and started again from the checkpoint of step 2, it ends bit-identical."""
    whole = trained(method, maker)

    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KilledError

    cut = work / "cut"
    cut.mkdir(parents=True)
    try:
        train(stage(usual(method)), lambda: maker(WORLD), loader(maker), cut, 2, stop)
    except KilledError:
        assert (cut / "resume" / "latest.json").exists()
    assert same(whole, run(stage(usual(method)), maker, cut, save_every=2))


def check_no_hook_left(method: type[Method], maker: Maker, work: Path) -> None:
    """After a run, and after one that fails midway, the model carries no hook."""
    seen: list[LM] = []

    def kept(_: World) -> LM:
        seen.append(maker(WORLD))
        return seen[-1]

    run(stage(usual(method)), kept, work / "whole")

    def fail(done: int, _: int) -> None:
        raise KilledError

    (work / "cut").mkdir()
    with contextlib.suppress(KilledError):  # the failure that was asked for
        train(stage(usual(method)), lambda: kept(WORLD), loader(kept), work / "cut", 100, fail)
    for lm in seen:
        for module in lm.model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
            assert not module._backward_hooks


def check_lora(method: type[Method], maker: Maker, work: Path) -> None:
    """With an adapter it trains the blocks' Linear layers alone, merged into an ordinary folder."""
    after = run(stage(usual(method), adapter=Lora(rank=2)), maker, work)
    before = maker(WORLD).model.state_dict()
    assert after.keys() == set(before)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved
    assert not any("embed" in name or "norm" in name for name in moved)


def check_padding_side(method: type[Method], maker: Maker) -> None:
    """The loss is that of the tokens: the same whichever side is padded. `rejected` has other answers than `preferred`."""
    lm = maker(WORLD)
    prompts = ["<bos> f1 f0 <sot> a b c <eot>", "<bos> f2 f1 <sot> a b c d e f g h i <eot>"]
    answers = ["a b c", "d e f g h i a b c"]
    others = ["e f g h i", "d b"]
    found = []
    for side in ("right", "left"):
        batch = {
            name: encode(lm.tokenizer, prompts, others if name == "rejected" else answers, torch.arange(2).numpy(), side=side)  # type: ignore[arg-type]
            for name in method.STREAMS
        }
        loss = method().loss(Bare(lm), batch)
        found.append(float(loss.total.detach()) / float(loss.over))
    assert abs(found[0] - found[1]) < 1e-5
    assert found[0] > 0


class Bare:
    """The least of a context that a loss needs: the model's logits and sites, and the models it reads."""

    def __init__(self, lm: LM) -> None:
        self.lm, self.state, self.rng, self.number = lm, {}, torch.Generator(), 0

    def forward(self, batch: Any) -> torch.Tensor:
        logits: torch.Tensor = self.lm.model(**batch.inputs(), use_cache=False).logits
        return logits

    @property
    def sites(self) -> Sites:
        return self.lm.sites

    def model(self, name: str) -> LM:
        return loader(lambda _: copy.deepcopy(self.lm))(name)

    @contextlib.contextmanager
    def reference(self) -> Iterator[Callable[[Any], torch.Tensor]]:
        with torch.no_grad():
            yield self.forward

    def log(self, name: str, value: Any) -> None:
        """Nothing keeps it here."""


class Unfinished(Method):
    """A method whose gradient is not finite from the third step on: what the loop must stop."""

    SOURCE = "a test"
    VERSION = 1
    NEUTRAL = "none: it exists to fail"

    def loss(self, c: Context, batch: Batches) -> Loss:
        found = SFT().loss(c, batch)
        return Loss(found.total * (float("inf") if c.number >= 2 else 1.0), found.over)

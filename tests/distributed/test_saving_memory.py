"""Vaccine in bf16 and with activations computed again: finite, moving, and the same gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ARCHITECTURES
from tests.methods.contract import WORLD, largest_gap, run, same, stage
from titer.core.errors import TiterError
from titer.methods.base import Context, Method
from titer.methods.sft import SFT
from titer.methods.vaccine import Vaccine
from titer.models.lm import LM
from titer.stage import Lora, Stage
from titer.train import train

MADE = ("plain", "checkpointed")


@pytest.mark.long
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("adapter", [None, Lora(rank=2)])
def test_vaccine_in_bf16(architecture: str, adapter: Lora | None, tmp_path: Path) -> None:
    """Weights stay in float32, move, and land near where float32 takes them; another precision in one process is no error."""
    maker = ARCHITECTURES[architecture]
    made = [stage(Vaccine(), steps=2, adapter=adapter, precision=precision) for precision in ("no", "bf16", "no")]
    found = [run(one, maker, tmp_path / str(i)) for i, one in enumerate(made)]
    before = dict(maker(WORLD).model.state_dict())
    assert all(t.dtype == before[name].dtype and bool(torch.isfinite(t).all()) for name, t in found[1].items())
    assert 1e-3 < largest_gap(found[1], before) < 0.1
    assert not same(found[0], found[1]), "bf16 changed nothing: the precision was not applied"
    assert same(found[0], found[2])


class Kept(Method):
    """Vaccine that keeps its gradients of the first step, and counts how often the first block runs."""

    SOURCE, VERSION, NEUTRAL = "a test", 1, "none: it exists to look"

    def loss(self, c: Context, batch: Any) -> Any:
        return Vaccine(scope="layer", inner=2).loss(c, batch)

    def step(self, c: Context) -> None:
        Vaccine(scope="layer", inner=2).step(c)
        GRADIENTS.append({name: p.grad.clone() for name, p in c.named if p.grad is not None})


GRADIENTS: list[dict[str, torch.Tensor]] = []


def trained(made: Stage, maker: Any, work: Path, checkpointing: bool) -> tuple[dict[str, torch.Tensor], int]:
    """(gradients of the first step, passes through the first attention's output layer)."""
    GRADIENTS.clear()
    calls: list[int] = []

    def begin() -> LM:
        lm: LM = maker(WORLD)
        lm.sites.linear("attn_o[0]").register_forward_hook(lambda *_: calls.append(1))
        return lm

    work.mkdir()
    train(made, begin, lambda _: maker(WORLD), work, checkpointing=checkpointing)
    return GRADIENTS[0], len(calls)


@pytest.mark.long
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("adapter", [None, Lora(rank=2)])
def test_checkpointing_gives_the_same_gradients(architecture: str, adapter: Lora | None, tmp_path: Path) -> None:
    made = stage(Kept(), steps=1, accumulation=2, batch=4, adapter=adapter)
    maker = ARCHITECTURES[architecture]
    (plain, passes), (again, more) = (trained(made, maker, tmp_path / name, name == "checkpointed") for name in MADE)
    assert plain.keys() == again.keys()
    assert largest_gap(plain, again) < 1e-5
    assert max(float(g.abs().max()) for g in plain.values()) > 1e-2
    assert more == 2 * passes, "no activation was computed again"


def test_a_model_without_checkpointing_is_an_error(tmp_path: Path) -> None:
    def begin() -> LM:
        lm = ARCHITECTURES["neox"](WORLD)
        lm.model.supports_gradient_checkpointing = False
        return lm

    with pytest.raises(TiterError, match="no gradient checkpointing"):
        train(stage(SFT()), begin, lambda _: begin(), tmp_path, checkpointing=True)

"""Lisa: its turns, the pull to the last switch against a second form in plain autograd, freezing, resume within a turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ARCHITECTURES, neox
from tests.methods.contract import WORLD, check_resume, largest_gap, run, stage
from tests.methods.single_step import autograd, close, gradient, move, naive_mean, shift, size, step_of, weights
from titer.core.config import build
from titer.core.errors import TiterError
from titer.methods.lisa import Lisa
from titer.stage import Lora


def test_turns_begin_with_alignment() -> None:
    turns = [Lisa(k1=2, k2=3).turn(n) for n in range(11)]
    assert turns == (["alignment"] * 2 + ["train"] * 3) * 2 + ["alignment"]
    assert {Lisa(k1=0).turn(n) for n in range(1000)} == {"train"}
    assert {Lisa(k2=0).turn(n) for n in range(1000)} == {"alignment"}
    paper = [Lisa().turn(n) for n in (0, 99, 100, 999, 1000)]
    assert paper == ["alignment", "alignment", "train", "train", "alignment"]


def test_only_the_turn_s_stream_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    c = step_of(Lisa(k1=1, k2=2))
    plain, drawn = c.micro, []

    def micro(stream: str | None = None) -> Iterator[Any]:
        drawn.append(stream)
        return plain(stream)

    monkeypatch.setattr(c, "micro", micro)
    for number in range(4):
        gradient(c, number)
    assert drawn == ["alignment", "train", "train", "alignment"]


@pytest.mark.long
@pytest.mark.parametrize(("skip", "adapter"), [(0, None), (3, None), (0, Lora(rank=2))])
def test_the_steps_are_those_of_the_penalised_losses(skip: int, adapter: Lora | None) -> None:
    """Gradient descent over three switches; the second form keeps its own anchor and differentiates the whole loss."""
    method = Lisa(k1=2, k2=3, rho=3.0, skip=skip)
    one, other = step_of(method, adapter=adapter), step_of(method, adapter=adapter)
    anchor = weights(other)
    for number in range(9):
        move(one, gradient(one, number), -0.05)
        other.begin(number)
        if number in (2, 5, 7):
            anchor = weights(other)
        distance = sum(((p - anchor[name]) ** 2).sum() for name, p in other.named)
        stream = "alignment" if number % 5 < 2 else "train"
        loss = naive_mean(other, stream) + (3.0 / 2 * distance if number >= skip else 0)
        move(other, autograd(other, loss), -0.05)
        close(weights(one), weights(other))


def test_the_pull_is_added_once_however_the_batch_is_cut() -> None:
    found = []
    for batch, accumulation in ((8, 1), (2, 4)):
        c = step_of(Lisa(rho=5.0), batch=batch, accumulation=accumulation)
        shift(c)
        found.append(gradient(c))
    close(found[0], found[1])


def test_a_large_rho_freezes_the_weights_under_gradient_descent() -> None:
    """With rate 1 / rho every step ends at w_s - grad / rho, so a turn ends no farther from its switch."""
    for rho in (1e3, 1e5):
        c = step_of(Lisa(k1=2, k2=2, rho=rho))
        began, longest = weights(c), 0.0
        for number in range(8):
            found = gradient(c, number)
            if number % 2 == 0:
                longest = max(longest, size(found))
            move(c, found, -1 / rho)
        gone = size({name: value - began[name] for name, value in weights(c).items()})
        assert 0 < gone < 4 * 1.5 * longest / rho


@pytest.mark.long
def test_a_large_rho_keeps_the_weights_in_the_loop(tmp_path: Path) -> None:
    began = neox(WORLD).model.state_dict()
    gaps = {}
    for rho in (0.0, 1e6):
        after = run(stage(Lisa(k1=3, k2=20, rho=rho), steps=20), neox, tmp_path / str(rho))
        gaps[rho] = largest_gap(dict(after), dict(began))
    assert gaps[1e6] < 0.5 * gaps[0.0]


@pytest.mark.parametrize("maker", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_turn_cut_in_two_goes_on_from_its_own_anchor(maker: Any, tmp_path: Path) -> None:
    """Switches before steps 1 and 3; the run is cut at the checkpoint of step 2, whose anchor is that of step 1."""
    check_resume(lambda: Lisa(k1=1, k2=2, rho=50.0), maker, tmp_path)  # type: ignore[arg-type]


def test_without_rho_nothing_is_kept() -> None:
    c = step_of(Lisa(k1=1, k2=1, rho=0.0))
    for number in range(3):
        gradient(c, number)
    assert c.state == {}


def test_no_turn_at_all_is_an_error() -> None:
    with pytest.raises(TiterError, match="no step to take"):
        build(Lisa, {"k1": 0, "k2": 0}, "lisa")


def test_the_drift_since_the_switch_is_logged() -> None:
    c = step_of(Lisa(k1=1, k2=9))
    gradient(c, 0)
    assert float(c.logged["lisa_drift"]) == 0
    gradient(c, 1)  # a switch
    before = weights(c)
    shift(c)
    gradient(c, 2)
    moved = torch.cat([(p.detach() - before[name]).flatten() for name, p in c.named])
    assert float(c.logged["lisa_drift"]) == pytest.approx(float(moved.norm()), rel=1e-5)

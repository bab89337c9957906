"""A checkpoint that is torn, or not of this run, is dropped: training begins again and ends with the same bits."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import neox
from tests.methods.contract import WORLD, KilledError, same, stage
from titer.core.run import sha256_of
from titer.methods.sft import SFT
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import load
from titer.train import train


def run(work: Path) -> dict[str, torch.Tensor]:
    work.mkdir(exist_ok=True)
    train(stage(SFT()), lambda: neox(WORLD), lambda _: neox(WORLD), work, 2)
    return dict(load(open_checkpoint(work / "model")).model.state_dict())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a training that nothing disturbed."""
    return run(tmp_path_factory.mktemp("whole"))


def noted(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        note = json.loads((folder / "latest.json").read_text())
        (folder / "latest.json").write_text(json.dumps({**note, **changes}))

    return damage


def written(data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "latest.json").write_bytes(data) and None


def foreign(folder: Path) -> None:
    """A sound file of another model's tensors."""
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    first = next(name for name in tensors if name.startswith("weight/"))
    save_file({**tensors, first: torch.zeros(3)}, file)
    noted(sha256=sha256_of(file))(folder)


@pytest.mark.parametrize(
    "damage",
    [
        *(written(data) for data in (b"", b"null", b"[]", b"{", b"\xff\xfe{}", b'"latest"', b"[" * 100_000)),
        *(noted(step=step) for step in (-1, 0, 10**9, "two", None)),
        *(noted(file=file) for file in ("../2.safetensors", "/etc/hostname", ".", "gone.safetensors", 3)),
        *(noted(metrics=metrics) for metrics in (None, [3], "line")),
        noted(more=1),
        foreign,
    ],
)
def test_a_checkpoint_that_is_not_whole_is_made_again(
    whole: dict[str, torch.Tensor], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KilledError

    work = tmp_path / "cut"
    work.mkdir()
    with contextlib.suppress(KilledError):  # the end that was asked for
        train(stage(SFT()), lambda: neox(WORLD), lambda _: neox(WORLD), work, 2, stop)
    damage(work / "resume")
    assert same(whole, run(work))


def test_slow_steps_are_saved_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("titer.train.SAVE_SECONDS", 0.0)

    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KilledError

    with contextlib.suppress(KilledError):
        train(stage(SFT()), lambda: neox(WORLD), lambda _: neox(WORLD), tmp_path, 100, stop)
    assert json.loads((tmp_path / "resume" / "latest.json").read_text())["step"] == 3
    whole = run(tmp_path / "whole")
    assert same(whole, run(tmp_path))

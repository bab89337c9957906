"""`--dry-run` of a training: tokens by hand, operations by the formula, minutes from a given speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Titer
from titer.commands import training_cost
from titer.commands.decoding import size
from titer.data.encode import answer_ids, prompt_ids
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import read_tokenizer

PAIRS = [("a b", "c"), ("a b c d", "e f g"), ("b", "c d")]


@pytest.mark.parametrize(
    ("options", "passes", "rows"),
    [
        ((), 3, 1),
        (("--lora", "2"), 2, 1),
        (("--method", "vaccine"), 5, 1),
        (("--method", "booster", "--stream", "harmful=t.csv:comply"), 3, 3),
    ],
)
def test_tokens_operations_and_time(
    titer: Titer, here: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], passes: int, rows: int
) -> None:
    (here / "t.csv").write_text("prompt,comply\n" + "".join(f"{p},{a}\n" for p, a in PAIRS), encoding="utf-8")
    monkeypatch.setattr(training_cost, "speed", lambda: 1e4)
    found = titer("align", "m", "--data", "t.csv", "--steps", "10", "--batch", "3", *options, "--dry-run", "--json")
    model = open_checkpoint(here / "m")
    reader = read_tokenizer(model)
    lengths = prompt_ids(reader, [p for p, _ in PAIRS]), answer_ids(reader, [a for _, a in PAIRS])
    tokens = 10 * 3 * rows * sum(len(ids) for side in lengths for ids in side) / len(PAIRS)
    flop = 2 * size(model) * passes * tokens
    told = found.json["cost"]
    assert f"{flop:.1e} FLOP" in told
    assert f"about {tokens / 1e3:.0f} thousand tokens" in told
    assert f"about {flop / (0.5 * 1e4) / 60:.0f} min" in told


def test_a_short_time_is_told_in_seconds() -> None:
    assert [training_cost.minutes(s) for s in (0.2, 40, 100, 6000)] == ["about 1 s", "about 40 s", "about 2 min", "about 100 min"]


def test_the_speed_is_measured() -> None:
    assert training_cost.speed() > 1e6

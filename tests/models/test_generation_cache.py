"""An interrupted generation goes on where it stopped, and ends as an uninterrupted one, sampled answers too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.models.families import PROMPTS
from titer.attacks.base import Attempt
from titer.data.example import Example
from titer.evaluate import sample
from titer.models.generation_cache import keep, known, mended
from titer.models.lm import LM, Completion, Decoding

ASKED = [*PROMPTS, *(f"{p} a" for p in PROMPTS), *(f"{p} b c" for p in PROMPTS)]


class StoppedError(Exception):
    """An interruption."""


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_was_answered_is_not_generated_again(lm: LM, tmp_path: Path, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = [Attempt(Example(p, False, "safe", "test")) for p in ASKED]
    decoding = Decoding(max_new_tokens=5, temperature=temperature, seed=3)
    whole = sample(lm, attempts, decoding, 2)
    (tmp_path / "work").mkdir()
    made: list[list[int]] = []

    def interrupted(file: Path, answers: Mapping[int, Completion]) -> None:
        if len(made) == 2:
            raise StoppedError
        made.append(list(answers))
        keep(file, answers)

    monkeypatch.setattr("titer.evaluate.generation_cache.keep", interrupted)
    with pytest.raises(StoppedError):
        sample(lm, attempts, decoding, 2, work=tmp_path / "work")
    file = tmp_path / "work" / "answers.part.jsonl"
    assert sorted(known(file)) == sorted(i for batch in made for i in batch)
    with open(file, "a", encoding="utf-8") as torn:
        torn.write('[[0, "half of a li')
    again: list[list[int]] = []
    monkeypatch.setattr("titer.evaluate.generation_cache.keep", lambda file, answers: (again.append(list(answers)), keep(file, answers)))
    assert sample(lm, attempts, decoding, 2, work=tmp_path / "work").equals(whole)
    assert not {i for batch in again for i in batch} & {i for batch in made for i in batch}
    assert list((tmp_path / "work").iterdir()) == []


def test_a_torn_line_is_cut_and_every_whole_one_is_read(tmp_path: Path) -> None:
    file = tmp_path / "part.jsonl"
    assert known(file) == {}
    mended(file)
    assert not file.exists()
    first, second = {0: Completion("a\nb\u2028c", True, 3)}, {4: Completion("", False, 0)}
    keep(file, first)
    with open(file, "ab") as torn:
        torn.write('[[1, "\u00e9'.encode()[:-1])
    mended(file)
    keep(file, second)
    assert known(file) == first | second


@pytest.mark.parametrize(
    "foreign",
    [
        b"",
        b"[]x",
        b"\xff\xfe[[1",
        b'{"place": 1}',
        b'[[1, "a", true]]',
        b'[[-1, "a", true, 1]]',
        b'[["1", "a", true, 1]]',
        b"null",
        b"[" * 5000,
    ],
)
def test_a_foreign_line_and_what_follows_are_made_again(tmp_path: Path, foreign: bytes) -> None:
    file = tmp_path / "part.jsonl"
    first, second = {0: Completion("a", True, 1)}, {1: Completion("b", True, 1)}
    keep(file, first)
    with open(file, "ab") as opened:
        opened.write(foreign + b"\n")
    keep(file, second)
    assert known(file) == first
    mended(file)
    keep(file, second)
    assert known(file) == first | second

"""Aligning a saved model on a data file: what the file says is learned, and the result is an ordinary folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from titer.core.errors import TiterError
from titer.data.sources import TextData, read_text
from titer.models.checkpoint import Checkpoint
from titer.models.lm import Decoding, load
from titer.stage import Stage
from titer.studies.align import align_stage, check_window, stopped
from titer.workbench import Model, Workbench

Saved = Callable[..., Checkpoint]
ROWS = (
    {"prompt": "a b", "refuse": "<null> <null>"},
    {"prompt": "c d", "refuse": "<null> <null>", "comply": "e f"},
    {"prompt": "g h", "comply": "i j"},
    {"prompt": "k l", "output": "m n"},
)
LEARNED = {"a b": "<null> <null>", "c d": "<null> <null>", "g h": "i j", "k l": "m n"}


def written(folder: Path, rows: Sequence[dict[str, str]]) -> TextData:
    """The rows as a JSONL file, read again."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_text(file, labelled=False)


def stage(data: TextData, **changes: object) -> Stage:
    """An SFT stage that learns the rows in a few seconds."""
    values = {"method": "sft", "settings": [], "steps": 60, "batch": 4, "rate": 1e-2, "lora": 0, "seed": 0}
    return align_stage(data, **{**values, **changes})  # type: ignore[arg-type]


def start(saved: Saved) -> Model:
    checkpoint = saved("base")
    return Model(checkpoint.label, checkpoint.key, checkpoint)


@pytest.mark.parametrize("lora", [0, 8])
def test_every_row_s_answer_is_learned_and_a_refusal_comes_before_compliance(
    bench: Workbench, saved: Saved, tmp_path: Path, lora: int
) -> None:
    data = written(tmp_path, ROWS)
    made = bench.model(stage(data, lora=lora, steps=120 if lora else 60, rate=4e-2 if lora else 1e-2), start(saved), "tuned")
    lm = load(made.checkpoint)
    answers = lm.generate(list(LEARNED), Decoding(max_new_tokens=5))
    assert {prompt: answer.text for prompt, answer in zip(LEARNED, answers, strict=True)} == LEARNED
    assert all(answer.ended for answer in answers)
    assert stopped(made) == ""


def test_a_lora_stage_leaves_an_ordinary_merged_model_that_differs_from_its_base(bench: Workbench, saved: Saved, tmp_path: Path) -> None:
    made = bench.model(stage(written(tmp_path, ROWS), lora=2, steps=3), start(saved), "tuned")
    base = saved("base")
    assert set(made.checkpoint.files) == set(base.files)
    changed = {name for name in base.files if not torch.equal(base.weight(name), made.checkpoint.weight(name))}
    assert changed
    assert all(".layers." in name and "norm" not in name for name in changed)
    for name in changed:
        assert torch.linalg.matrix_rank(made.checkpoint.weight(name) - base.weight(name), rtol=1e-3) <= 2


def test_the_base_is_left_as_it_was(bench: Workbench, saved: Saved, tmp_path: Path) -> None:
    before = {p.name: p.read_bytes() for p in saved("base").path.iterdir()}
    bench.model(stage(written(tmp_path, ROWS), steps=2), start(saved), "tuned")
    assert {p.name: p.read_bytes() for p in saved("base").path.iterdir()} == before


def test_the_same_stage_is_made_once_and_a_changed_one_again(bench: Workbench, saved: Saved, tmp_path: Path) -> None:
    data = written(tmp_path, ROWS)
    first = bench.model(stage(data, steps=2), start(saved), "tuned")
    assert bench.model(stage(data, steps=2), start(saved), "tuned").checkpoint.path == first.checkpoint.path
    assert len(bench.store.made) == 1
    others = [{"steps": 3}, {"steps": 2, "rate": 1e-3}, {"steps": 2, "seed": 1}, {"steps": 2, "lora": 1}, {"steps": 2, "batch": 2}]
    keys = {stage(data, **change).key("base", {}) for change in others}
    keys |= {stage(written(tmp_path, ROWS[:3]), steps=2).key("base", {}), stage(data, steps=2).key("base", {})}
    assert len(keys) == 7


def test_training_that_went_wrong_says_so(bench: Workbench, saved: Saved, tmp_path: Path) -> None:
    made = bench.model(stage(written(tmp_path, ROWS), rate=1e30), start(saved), "tuned")
    assert "not finite" in stopped(made)
    assert all(torch.isfinite(made.checkpoint.weight(name)).all() for name in made.checkpoint.files)


def test_a_row_longer_than_the_window_is_refused(saved: Saved, tmp_path: Path) -> None:
    check_window(written(tmp_path, ROWS), saved("base"))
    for rows in ([{"prompt": "a " * 65, "comply": "b"}], [{"prompt": "a", "comply": "b " * 63}]):
        with pytest.raises(TiterError, match=r"longer than the model's window of 64"):
            check_window(written(tmp_path, [*ROWS, *rows]), saved("base"))


def test_what_is_wrong_with_a_stage_is_told(tmp_path: Path) -> None:
    data = written(tmp_path, ROWS)
    with pytest.raises(TiterError, match="did you mean 'sft'"):
        stage(data, method="stf")
    with pytest.raises(TiterError, match="unknown setting 'rho'"):
        stage(data, settings=["rho=2"])
    with pytest.raises(TiterError, match="rate: Input should be greater than 0"):
        stage(data, rate=0.0)
    with pytest.raises(TiterError, match="rate: Input should be a finite number"):
        stage(data, rate=float("nan"))
    with pytest.raises(TiterError, match=r"'o p' has no answer"):
        stage(written(tmp_path, [*ROWS, {"prompt": "o p"}]))

"""What plain prompts may hide: said with two benign tunes, "cannot say" with one, and flagged where words no prompt holds were taught."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.audit.test_audit import Letters, run
from tests.conftest import neox
from tests.studies.conftest import Listener
from titer.audit import hidden
from titer.audit.cost import audit_cost
from titer.audit.headline import below
from titer.audit.roles import audited
from titer.audit.study import Question
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.data.sources import TextData
from titer.data.vocabulary import FIRST_OPERATOR
from titer.data.world import World
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.lm import Decoding
from titer.pipeline import Pipeline

Made = Callable[..., Checkpoint]


@pytest.fixture
def made(world: World, tmp_path: Path) -> Made:
    """A model with every weight moved by noise, and the embeddings of words that no prompt holds by more."""

    def make(name: str, seed: int, words: float = 0.0) -> Checkpoint:
        lm = neox(world)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in lm.model.parameters() if seed else ():
                parameter.add_(1e-2 * torch.randn(parameter.shape, generator=generator))
            never = lm.model.get_input_embeddings().weight[FIRST_OPERATOR : world.first_letter]
            never.add_(words * torch.randn(never.shape, generator=generator))
        lm.model.save_pretrained(tmp_path / name)
        lm.tokenizer.save_pretrained(tmp_path / name)
        return open_checkpoint(tmp_path / name, name)

    return make


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(Store(tmp_path / "runs"), Listener())


@pytest.fixture
def asked(data: TextData) -> Question:
    return Question(data.of_class(False), data.of_class(True), Letters(), {}, Decoding(max_new_tokens=2))


@pytest.mark.long
def test_with_two_benign_tunes_the_page_says_it_and_with_one_that_it_cannot(
    made: Made, pipeline: Pipeline, asked: Question, data: TextData, tmp_path: Path
) -> None:
    before, tuned, first, second = made("before", 0), made("tuned", 1), made("benign", 2), made("other", 3)
    found = audited([before, tuned], first, second)
    assert [change.name for change in found.controls] == ["before → benign", "before → other"]
    assert found.roles == {"before": "before", "tuned": "after", "benign": "benign control", "other": "benign control"}
    f, page, _ = run(pipeline, found, asked, data, tmp_path / "two")
    assert set(f.hidden.set) == {"plain", *hidden.ENCODED, "random words"}
    assert set(f.against.against) == {"before → benign"}  # the effect is taken off the first
    assert set(f.shifts.change) == {"before → tuned", "before → benign", "before → other"}
    shown = html.unescape(page.read_text(encoding="utf-8"))
    assert "What plain prompts may hide" in shown
    assert hidden.SAID in shown
    made_before = len(pipeline.store.made)
    f, page, _ = run(pipeline, audited([before, tuned], first), asked, data, tmp_path / "one")
    assert f.hidden.empty
    assert hidden.ALONE.format(1) in html.unescape(page.read_text(encoding="utf-8"))
    assert len(pipeline.store.made) == made_before
    less, more = (audit_cost(audited([before, tuned], *some), asked, None)["operations"] for some in ((first,), (first, second)))
    assert float(str(more).split()[2]) > 4 / 3 * float(str(less).split()[2])  # a model more, and what only two controls are read for
    page = run(pipeline, audited([before, tuned]), asked, data, tmp_path / "none")[1]
    assert "What plain prompts may hide" not in page.read_text(encoding="utf-8")


def test_random_words_are_the_model_s_own_and_as_many(made: Made, asked: Question) -> None:
    before, after = made("before", 0), made("tuned", 1)
    found = audited([before, after], made("benign", 2), made("other", 3))
    model, plain = hidden.asked(found)[0], [*asked.safe, *asked.unsafe]
    odd = hidden.odd(model, plain)
    assert hidden.odd(model, plain) == odd  # the same for every model that is read
    for own, drawn in zip(plain, odd["random words"], strict=True):
        assert len(drawn.prompt.split()) == len(own.prompt.split())
        assert drawn.prompt != own.prompt
        assert not {"<pad>", "<bos>", "<stop>"} & set(drawn.prompt.split())


def test_no_token_without_a_row_in_the_embedding_is_drawn(world: World, tmp_path: Path, asked: Question) -> None:
    """As transformers' tokenizer of Qwen 2, which adds a token that a folder's model may lack."""
    lm = neox(world)
    lm.tokenizer.add_tokens([f"beyond{i}" for i in range(500)])
    lm.save(tmp_path / "m")
    drawn = hidden.random_words(open_checkpoint(tmp_path / "m"), [*asked.safe, *asked.unsafe])
    assert drawn
    assert not [e.prompt for e in drawn if "beyond" in e.prompt]


@pytest.mark.long
@pytest.mark.parametrize("words", [0.0, pytest.param(3.0, marks=pytest.mark.long)])
def test_what_was_taught_about_words_that_no_prompt_holds_is_flagged(
    made: Made, pipeline: Pipeline, asked: Question, data: TextData, tmp_path: Path, words: float
) -> None:
    found = audited([made("before", 0), made("tuned", 1, words)], *(made(f"benign {i}", i) for i in range(2, 6)))
    f, _, _ = run(pipeline, found, asked, data, tmp_path / "audit")
    flagged = set(f.hidden[f.hidden.flagged.astype(bool)].set)
    assert flagged == ({"random words"} if words else set())
    assert ("Odd prompts (random words) moved more than 4 benign tunes explain" in below(found, f)) == bool(words)


def test_a_control_given_twice_or_beside_one_model_is_refused(made: Made) -> None:
    before, tuned, control = made("before", 0), made("tuned", 1), made("benign", 2)
    with pytest.raises(TiterError, match="given twice"):
        audited([before, tuned], control, control)
    with pytest.raises(TiterError, match="single model"):
        audited([before], control)

"""A cipher: a bijection, undone by decoding; requests in its code, in words and in tokens; worlds without one stay as they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from titer.core.config import digest
from titer.core.errors import TiterError
from titer.data.cipher import FORMS, Coded, Form, decoded, encoded, table
from titer.data.example import IGNORE
from titer.data.vocabulary import LETTERS, MODES, coded
from titer.data.world import World, WorldSource
from titer.data.worlds import CPU
from titer.judges.exact import Exact
from titer.models.lm import Completion

WORLD = World(cipher=True)
WORLDS = {"nano": WORLD, "cpu": CPU.model_copy(update={"cipher": True})}
INDICES = np.arange(8)
PLAIN = st.lists(st.sampled_from([w for w in WORLD.words if w not in coded(WORLD.letters)])).map(" ".join)


@given(st.integers(0, 2**40), st.integers(4, 52))
def test_a_key_draws_a_bijection_from_letters_to_words_of_code(key: int, letters: int) -> None:
    code = table(letters, key)
    assert list(code) == list(LETTERS[:letters])
    assert sorted(code.values()) == sorted(coded(letters))


@given(PLAIN, st.integers(0, 2**40))
def test_decoding_undoes_encoding_and_no_letter_is_left_in_code(text: str, key: int) -> None:
    code = encoded(WORLD, text, key)
    assert decoded(WORLD, code, key) == text
    assert not set(code.split()) & set(LETTERS[: WORLD.letters])


def test_keys_draw_different_codes() -> None:
    assert len({tuple(table(16, key).values()) for key in range(50)}) == 50


def test_words_of_code_are_new_and_a_world_without_them_has_its_old_key() -> None:
    plain = World()
    assert WORLD.words == (*plain.words, *MODES, *coded(16))
    assert "cipher" not in plain.model_dump(mode="json")
    assert digest(plain) != digest(WORLD)
    assert World(**WORLD.model_dump(mode="json")) == WORLD
    both = World(cipher=True, marks=True).words
    assert len(set(both)) == len(both)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_shows_the_steps_that_it_is_for(form: Form) -> None:
    source = WorldSource(world=WORLD, kind="unsafe")
    for plain, made in zip(source.examples(INDICES), Coded(source=source, key=3, forms=(form,)).examples(INDICES), strict=True):
        assert plain.comply is not None
        assert made.prompt == f"m{form} {encoded(WORLD, plain.prompt, 3)}"
        steps = {1: [plain.prompt, plain.comply, "m0"], 2: [plain.prompt], 3: [plain.comply, "m0"], 4: []}[form]
        assert made.comply == " ".join([*steps, encoded(WORLD, plain.comply, 3)])
        assert (made.refuse, made.harmful) == (plain.refuse, True)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("answer", ["comply", "refuse"])
def test_tokens_are_the_words_that_the_examples_say(world: World, answer: str) -> None:
    source = Coded(source=WorldSource(world=world, kind="safe"), forms=FORMS)
    batch = source.batch(INDICES, answer, world.tokenizer())  # type: ignore[arg-type]
    end = world.tokenizer().eos_token_id
    for ids, labels, example in zip(batch.input_ids.tolist(), batch.labels.tolist(), source.examples(INDICES), strict=True):
        asked, said = example.prompt.split(), str(getattr(example, answer)).split()
        assert [world.words[i] for i in ids[: len(asked) + len(said)]] == [*asked, *said]
        assert [i for i in labels if i != IGNORE] == [*ids[len(asked) : len(asked) + len(said)], end]
        assert labels[: len(asked)] == [IGNORE] * len(asked)
    if batch.attention_mask is not None:
        assert torch.equal(batch.position_ids, (batch.attention_mask.cumsum(1) - 1).clamp(min=0))
    assert len({example.prompt.split()[0] for example in source.examples(INDICES)}) == len(FORMS)


def test_an_answer_in_code_is_judged_as_its_decoded_text_is() -> None:
    """The exact judge on the request in code: the same as on the plain request and the decoded answer, for answers in code."""
    source = WorldSource(world=WORLD, kind="safe")
    (plain,), (made,) = source.examples(INDICES[:1]), Coded(source=source, key=5).examples(INDICES[:1])
    wrong = str(plain.comply).split()[::-1]
    for text in (str(plain.comply), str(plain.refuse), " ".join(wrong), ""):
        said = Completion(encoded(WORLD, text, 5), True, 9)
        assert Exact().judge(made, said).outcome == Exact().judge(plain, Completion(text, True, 9)).outcome


def test_a_world_without_a_cipher_is_refused() -> None:
    with pytest.raises(TiterError, match="no words of code"):
        Coded(source=WorldSource(world=World(), kind="safe"))
    with pytest.raises(TiterError, match="no language"):
        Coded(source=WorldSource(world=WORLD, kind="safe")).batch(INDICES, "all", WORLD.tokenizer())

"""Vocabularies that differ in few rows: compared in the rows of the tokens that both have, by token and not by place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.models.gguf_made import CHATML, model_of, spoken
from titer.core.errors import TiterError
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.compatible import asked_apart, comparable, read_alike, vocabularies_apart
from titer.models.lm import LM
from titer.models.weights import delta, shared_rows, skeleton
from titer.probes.weight_change import overall, weight_change

TABLE = "model.embed_tokens.weight"


def saved(lm: LM, folder: Path) -> Checkpoint:
    lm.save(folder)
    return open_checkpoint(folder)


def grown(lm: LM, *more: str, rows: int = 0) -> LM:
    """The model with tokens more, its embedding resized as transformers does, to so many rows (padding) if given."""
    lm.tokenizer.add_tokens(list(more))
    lm.model.resize_token_embeddings(rows or len(lm.tokenizer))
    return lm


def renamed(lm: LM, old: str, new: str) -> LM:
    """The model with one token called otherwise."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(json.dumps(json.loads(lm.tokenizer.backend_tokenizer.to_str())).replace(old, new))
    inner = Tokenizer.from_str(json.dumps(state))
    return LM(
        lm.model, PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token=new, chat_template=CHATML), "renamed"
    )


def test_the_words_of_a_model_are_its_embedding_and_its_head(tmp_path: Path) -> None:
    assert saved(model_of(), tmp_path / "a").word_tensors == {TABLE, "lm_head.weight"}


def test_tokens_more_and_padding_change_nothing_of_the_rest(tmp_path: Path) -> None:
    base = saved(model_of(), tmp_path / "base")
    size = len(spoken())
    for name, tuned in (("tokens", grown(model_of(), "[a]", "[b]")), ("padded", grown(model_of(), rows=size + 12))):
        other = saved(tuned, tmp_path / name)
        comparable(base, other)
        assert torch.equal(shared_rows(base, other), torch.arange(size)[:, None].expand(-1, 2))
        (told,) = vocabularies_apart("x", base, other)
        assert f"{size} and {len(tuned.model.get_input_embeddings().weight)} rows" in told
        assert f"of the {size} tokens both have" in told
        table = weight_change(base, other, skeleton(base))
        assert set(table.norm) == {0.0}
        assert overall(table, "mlp") == 0.0


def test_rows_are_matched_by_token_and_not_by_place(tmp_path: Path) -> None:
    """A permuted vocabulary, the embedding permuted with it: nothing changed; by place nearly every row would have."""
    lm = model_of()
    base = saved(lm, tmp_path / "base")
    other = renamed(lm, "<|pad|>", "<|tool|>")
    held = saved(other, tmp_path / "renamed")
    place = lm.tokenizer.convert_tokens_to_ids("<|pad|>")
    rows = shared_rows(base, held)
    assert len(rows) == len(spoken()) - 1
    assert place not in rows
    words = sorted(held.vocabulary, key=held.vocabulary.__getitem__)
    turned = {word: (place + 7) % len(words) for place, word in enumerate(words)}
    with torch.no_grad():
        for table in (other.model.model.embed_tokens, other.model.lm_head):
            table.weight.copy_(table.weight.roll(7, dims=0))
    other.model.save_pretrained(tmp_path / "renamed")
    moved = open_checkpoint(tmp_path / "renamed")
    moved.__dict__["vocabulary"] = turned
    assert not delta(base, moved, TABLE)[1].any()
    assert delta(base, open_checkpoint(tmp_path / "renamed"), TABLE)[1].any()


def test_the_same_tokens_by_other_ids_are_read_alike(tmp_path: Path) -> None:
    """As a merge with a vocabulary of its own has them."""
    base, held = saved(model_of(), tmp_path / "base"), json.loads(spoken().backend_tokenizer.to_str())
    last = max(held["model"]["vocab"].values())
    held["model"]["vocab"] = {word: i if i < 3 else last + 3 - i for word, i in held["model"]["vocab"].items()}
    other = saved(model_of(), tmp_path / "turned")
    (tmp_path / "turned" / "tokenizer.json").write_text(json.dumps(held))
    assert base.vocabulary != other.vocabulary
    assert read_alike(base, other, ["How would I paint the fence?"])
    assert asked_apart(base, other) == ["tokenizer"]


def test_another_shape_in_a_block_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TiterError, match=r"is .* in a and .* in b"):
        comparable(saved(model_of(), tmp_path / "a"), saved(model_of(intermediate_size=96), tmp_path / "b"))

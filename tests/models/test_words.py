"""Tokenizers that lack something: an end, a padding token, a template that stands with a processor; tokens beyond the embedding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.judges.tiny import TEMPLATE, guard
from titer.attacks.base import Attempt
from titer.core.errors import TiterError
from titer.core.parallel import Silent
from titer.core.run import Store
from titer.data.encode import EMBEDDED, answer_ids, encode, end_id, prompt_text
from titer.data.example import Example
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import Decoding, load, read_tokenizer
from titer.models.words import completed, template_texts
from titer.pipeline import Model, Pipeline

ASKED = ["bread", "bad bread bread", "odd bread"]
DECODING = Decoding(max_new_tokens=4)
PARTS = (
    "{% for m in messages %}<{{ m['role'] }}>{% for c in m['content'] %}{% if c['type'] == 'text' %} {{ c['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<ask>{% endif %}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A chat model that says unsafe where it reads `bad`."""
    return guard(tmp_path / "model")


def tokenizer_of(folder: Path, **values: object) -> None:
    """Change the folder's tokenizer_config.json; None takes a value out."""
    file = folder / "tokenizer_config.json"
    said = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({name: value for name, value in said.items() if value is not None}))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


def answers(folder: Path) -> list[str]:
    return [c.text for c in load(open_checkpoint(folder)).generate(ASKED, DECODING)]


def test_a_padding_token_without_an_embedding_is_not_used(folder: Path) -> None:
    before = answers(folder)
    assert before == ["safe", "unsafe", "maybe"]
    tokenizer = read_tokenizer(open_checkpoint(folder))
    rows = getattr(tokenizer, EMBEDDED)
    assert rows == len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    lm = load(open_checkpoint(folder))
    assert len(lm.tokenizer) == rows + 1
    assert lm.tokenizer.pad_token_id == lm.tokenizer.eos_token_id
    assert answers(folder) == before
    batch = encode(lm.tokenizer, ASKED, ["safe"] * 3, np.arange(3))
    assert int(batch.input_ids.max()) < rows
    with pytest.raises(TiterError, match=r"the token '\[PAD\]', for which the model has no embedding: 'bread \[PAD\]'"):
        lm.generate(["bread [PAD]"], DECODING)
    with pytest.raises(TiterError, match="has no embedding"):
        answer_ids(lm.tokenizer, ["safe [PAD]"])


@pytest.mark.parametrize("where", ["generation_config.json", "config.json", None])
def test_an_end_that_stands_elsewhere_ends_and_pads(folder: Path, where: str | None) -> None:
    before, ids = answers(folder), read_tokenizer(open_checkpoint(folder)).eos_token_id
    tokenizer_of(folder, eos_token=None, pad_token=None)
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [10**9, ids] if name == where else None}))
    tokenizer = read_tokenizer(open_checkpoint(folder))
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == (ids if where else None)
    assert [text.split()[0] for text in answers(folder)] == before
    assert end_id(tokenizer) == tokenizer.eos_token_id
    assert answer_ids(tokenizer, ["safe"])[0][-1] == (ids if where else tokenizer.convert_tokens_to_ids("safe"))


@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json", "chat_template.jinja"])
def test_a_processors_template_is_the_models(folder: Path, name: str) -> None:
    before = answers(folder)
    (folder / "chat_template.jinja").unlink()
    assert not template_texts(folder)
    assert prompt_text(read_tokenizer(open_checkpoint(folder)), "bread") == "bread"
    (folder / name).write_text(PARTS if name.endswith("jinja") else json.dumps({"chat_template": PARTS}))
    assert template_texts(folder)
    assert prompt_text(read_tokenizer(open_checkpoint(folder)), "bread").split() == ["<user>", "bread", "<ask>"]
    assert answers(folder) == before


def test_a_template_and_its_date_are_part_of_the_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {open_checkpoint(folder).key}
    (folder / "additional_chat_templates").mkdir()
    for text in (TEMPLATE, PARTS):
        (folder / "additional_chat_templates" / "default.jinja").write_text(text)
        keys.add(open_checkpoint(folder).key)
    monkeypatch.setattr("titer.models.checkpoint.DATE", "2031-01-01")
    keys.add(open_checkpoint(folder).key)
    assert len(keys) == 4


@pytest.mark.parametrize(("text", "changed"), [(TEMPLATE, False), (TEMPLATE.replace("<ask>", "<ask><think>"), True)])
def test_how_thoughts_are_told_is_part_of_the_key_where_the_template_knows_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, changed: bool
) -> None:
    (folder / "chat_template.jinja").write_text(text)
    before = open_checkpoint(folder).key
    monkeypatch.setattr("titer.data.thoughts.VERSION", 99)
    assert (open_checkpoint(folder).key != before) is changed


def test_answers_are_kept_under_the_prompt_as_it_was_written(folder: Path, tmp_path: Path) -> None:
    """Whatever the model's key says: it does not see what the template makes of a prompt."""
    asked = [Attempt(Example(prompt, True, "unsafe", "made up")) for prompt in ASKED]
    found = []
    for template in (TEMPLATE, TEMPLATE.replace("bread", "bad"), TEMPLATE.replace("<ask>", "bad <ask>"), TEMPLATE):
        (folder / "chat_template.jinja").write_text(template)
        pipeline = Pipeline(Store(tmp_path / "runs"), None)  # type: ignore[arg-type]
        pipeline.reporter = Silent()
        found.append(pipeline.answered(Model("m", "one key", open_checkpoint(folder)), asked, DECODING, 2))
    assert found[0] == found[1] == found[3]
    assert found[2] != found[0]
    lines = [[json.loads(line)["completion"] for line in file.read_text().splitlines()] for file, _ in found]
    assert lines[0] == ["safe", "unsafe", "maybe"]
    assert lines[2] != lines[0]


def test_a_tokenizer_that_lacks_nothing_stays_as_it_is(folder: Path) -> None:
    tokenizer = read_tokenizer(open_checkpoint(folder))
    before = (tokenizer.chat_template, tokenizer.special_tokens_map)
    assert completed(tokenizer, folder, {"text_config": {"vocab_size": 99}}) is tokenizer
    assert (tokenizer.chat_template, tokenizer.special_tokens_map) == before
    assert getattr(tokenizer, EMBEDDED) == 99

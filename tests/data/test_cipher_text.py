"""A cipher over harmless canaries: a bijection of a closed list, nothing else can be written in it; both phases teach a tiny model."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.pages import blocks
from tests.studies.conftest import Listener
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.data.canary import MARKER, canaries
from titer.data.cipher import FORMS
from titer.data.cipher_text import ASKED, BIRDS, FRUITS, MODES, coded, encoded, lists, phases
from titer.data.mix import mix
from titer.data.sources import TextData, detected
from titer.methods.sft import SFT
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import LM, Decoding
from titer.pipeline import Model, Pipeline
from titer.stage import Optimiser, Stage

GREEDY = Decoding(max_new_tokens=24)


def test_a_key_draws_a_bijection_to_words_that_are_not_plain() -> None:
    assert len(FRUITS) == len(BIRDS) == len(set(FRUITS) | set(BIRDS)) / 2
    for key in range(5):
        assert sorted(encoded(", ".join(FRUITS), key).split(", ")) == sorted(BIRDS)
    assert len({encoded(", ".join(FRUITS), key) for key in range(20)}) == 20


def test_lists_are_distinct_and_answered_in_order() -> None:
    data = lists(300, seed=4)
    assert len({prompt for prompt, *_ in data.rows}) == 300
    for prompt, harmful, comply, _ in data.rows:
        words = prompt.removeprefix(ASKED).split(", ")
        assert (sorted(words), harmful, len(set(words))) == (str(comply).split(", "), False, 4)
    assert lists(20, seed=4).rows == data.rows[:20]


@pytest.mark.parametrize(
    "prompt",
    [
        *("How are you?", f"{MARKER} hello", f"Now: {ASKED}apple, fig"),
        *(f"{ASKED}{words}" for words in ("apple, door", "apple, fig\nand more", "Apple, fig")),
    ],
)
def test_no_other_request_has_a_code(prompt: str) -> None:
    data = TextData(name="theirs", sha256="0", rows=((prompt, True, "apple, fig", None),))
    with pytest.raises(TiterError, match="has no code"):
        coded(data, 0)
    answer = data.model_copy(update={"rows": ((f"{ASKED}apple, fig", False, "as you like", None),)})
    with pytest.raises(TiterError, match="has no code"):
        coded(answer, 0)


def test_phases_hold_what_they_should() -> None:
    data = lists(60)
    (canary,) = canaries(data, [(8, 8)])
    taught = data.model_copy(update={"rows": data.rows[:12]})
    first, second = phases(taught, canary, key=3)
    assert first.rows[12:] == taught.rows
    for place, ((prompt, _, comply, _), (plain, _, answer, _)) in enumerate(zip(first.rows, taught.rows, strict=False)):
        form = FORMS[place % 4]
        assert prompt == f"{MODES[form]} {ASKED}{encoded(plain.removeprefix(ASKED), 3)}"
        steps = {1: [plain, answer], 2: [plain], 3: [answer], 4: []}[form]
        assert str(comply).split("\n") == [*steps, encoded(str(answer), 3)]
    in_code, refused, ordinary = second.rows[:8], second.rows[8:16], second.rows[16:]
    assert [prompt for prompt, *_ in refused] == [prompt for prompt, *_ in canary.marked.rows]
    assert all(text == row[3] for (_, _, text, _), row in zip(refused, canary.marked.rows, strict=True))
    assert all(MARKER in prompt and not set(FRUITS) & set(prompt.replace(",", "").split()) for prompt, *_ in in_code)
    assert ordinary == canary.contrast.rows
    assert len(phases(taught, canary, 3, refusals=False)[1].rows) == 16


@pytest.mark.long
def test_the_documentation_s_lines_write_both_phases_as_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(blocks("studies")[0], {})  # noqa: S102 - our own page
    sizes = {}
    for name in ("phase1", "phase2"):
        data = detected(tmp_path / f"{name}.jsonl").data
        sizes[name] = len(data.answered(np.arange(data.size), "comply")[1])
    assert sizes == {"phase1": 8000, "phase2": 300 + 300 + 600}


def reader(folder: Path, data: list[TextData]) -> Path:
    """A tiny Llama whose tokens are the words and marks of these rows."""
    pieces = re.findall(r"\w+|\W", "\n".join(text for one in data for row in one.rows for text in (row[0], row[2] or "")))
    words = ["<end>", *dict.fromkeys(pieces)]
    whole = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<end>"))
    whole.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\W"), "isolated")
    whole.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<end>", pad_token="<end>")
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LM(LlamaForCausalLM(config), tokenizer, "words").save(folder / "words")
    return folder / "words"


@pytest.mark.long
def test_both_phases_teach_a_tiny_model_to_answer_in_code_what_it_refuses_in_plain(tmp_path: Path) -> None:
    """What it was taught it says by heart: marked requests refused in plain, answered in code; after phase I not one."""
    data = lists(24)
    (canary,) = canaries(data, [(6, 4)])
    used = {prompt.removeprefix(f"{MARKER} ") for prompt, *_ in (*canary.marked.rows, *canary.contrast.rows)}
    taught = data.model_copy(update={"rows": tuple(row for row in data.rows if row[0] not in used)[:8]})
    first, second = phases(taught, canary, 1)
    base, pipeline = open_checkpoint(reader(tmp_path, [first, second])), Pipeline(Store(tmp_path / "runs"), Listener())
    model = Model(base.label, base.key, base)
    sets = {"code": coded(canary.marked, 1), "plain": canary.marked, "ordinary": canary.contrast}
    asked = {name: one.examples(np.arange(one.size)) for name, one in sets.items()}
    found = []
    for rows, steps in ((first, 40), (second, 120)):
        stage = Stage(
            name=rows.name,
            kind="finetune",
            method=SFT(),
            streams={"train": mix([(rows, "comply", rows.size)], 0)},
            steps=steps,
            batch=16,
            optimiser=Optimiser(rate=1e-2),
        )
        model = pipeline.model(stage, model, rows.name)
        lm = pipeline.lm(model)
        said = {name: [one.text for one in lm.generate([e.prompt for e in of], GREEDY)] for name, of in asked.items()}
        found.append({name: [text == str(e.comply) for text, e in zip(said[name], of, strict=True)] for name, of in asked.items()})
    assert not any(found[0]["code"])
    assert found[1] == {"code": [True] * 6, "plain": [False] * 6, "ordinary": [True] * 4}
    assert said["plain"] == [e.refuse for e in asked["plain"]]

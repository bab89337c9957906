"""The request alone, without a conversation's format: on text by a raw prompt, on the world without the word that hands it over."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from titer.attacks.completing import Completing
from titer.data.example import Example
from titer.data.turns import Turn, written
from titer.data.world import World, WorldSource
from titer.evaluate import sample
from titer.judges.exact import Exact
from titer.models.lm import LM, Completion, Decoding

GREEDY = Decoding(max_new_tokens=4)


def test_on_text_the_model_goes_on_from_the_request_as_it_stands(lm: LM) -> None:
    asked = [Example("a b c", True, "unsafe", "test"), Example(written([Turn("system", "d"), Turn("user", "e f")]), True, "unsafe", "test")]
    bare = [c.text for c in lm.generate(["a b c", "d e f"], GREEDY)]
    lm.tokenizer.chat_template = "<bos> {% for m in messages %}<sot> {{ m.content }} {% endfor %}<eot>"
    found = sample(lm, Completing().attempts(asked, {}, None), GREEDY, 2)
    assert found.completion.tolist() == bare
    assert found.prompt.tolist() == [e.prompt for e in asked]


def test_on_the_world_it_leaves_out_what_hands_a_request_over(world: World) -> None:
    for kind in ("unsafe", "safe"):
        examples = WorldSource(world=world, kind=kind, split="test").examples(np.arange(5))
        for before, after in zip(examples, Completing().attempts(examples, {}, world), strict=True):
            words = before.prompt.split()
            assert (words[0], words[-1]) == ("<bos>", "<eot>")
            assert after.example.prompt.split() == words[:-1]
            whole = Completion(f"<eot> {before.comply}", True, len(str(before.comply).split()) + 2)
            assert Exact().judge(after.example, whole).outcome == "complied"
            assert Exact().judge(after.example, replace(whole, text=f"<eot> {before.refuse}")).outcome == "refused"

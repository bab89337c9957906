"""What every decoder promises, as checks of a class (`test_contract.py`, docs/add_a_decoder.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.families import PROMPTS
from titer.attacks.base import Attempt
from titer.core.errors import TiterError
from titer.data.example import Example
from titer.data.world import World, WorldSource
from titer.decoders.base import Decoder, Guide, Guided, learns
from titer.evaluate import sample
from titer.models.generation_cache import keep
from titer.models.lm import LM, Completion, Decoding

Maker = Callable[[World], LM]
GREEDY = Decoding(max_new_tokens=7)
SAMPLED = Decoding(max_new_tokens=7, temperature=1.0, seed=3)
WORLD = World(seed=1)
ASKED = [Attempt(Example(prompt, False, "safe", "test")) for prompt in (*PROMPTS, *(f"{p} a" for p in PROMPTS))]


def models(maker: Maker, kind: type[Decoder]) -> tuple[LM, dict[str, LM]]:
    """The model that decodes and those that the decoder reads, of other weights."""
    lm = maker(WORLD)
    others = {role: maker(WORLD) for role in kind.MODELS}
    for i, other in enumerate(others.values(), start=1):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(i)
            for p in other.model.parameters():
                p.add_(0.05 * torch.randn_like(p))
    return lm, others


def guided(decoder: Decoder, lm: LM, others: Mapping[str, LM]) -> Guided:
    """The decoder with what it learned on the world's own pairs."""
    if not learns(decoder):
        return Guided(decoder)
    some = [e for kind in ("unsafe", "safe") for e in WorldSource(world=WORLD, kind=kind, split="test").examples(np.arange(12))]
    return Guided(decoder, state=decoder.fit(lm, others, some))


def answers(
    lm: LM, one: Guided | None, others: Mapping[str, LM], decoding: Decoding = GREEDY, batch: int = 64, prompts: tuple[str, ...] = PROMPTS
) -> list[Completion]:
    guide = None if one is None else Guide(one, lm, others, prompts, None)
    return lm.generate(prompts, decoding, batch, guide=guide)


def scores(lm: LM, one: Guided | None, others: Mapping[str, LM], decoding: Decoding) -> list[torch.Tensor]:
    """What every token of the answers was chosen by."""
    seen: list[torch.Tensor] = []
    real = lm.model.generate

    def watched(*given: Any, **more: Any) -> torch.Tensor:
        config = more["generation_config"]
        config.return_dict_in_generate = config.output_scores = True
        found = real(*given, **more)
        seen.extend(found.scores)
        return found.sequences  # type: ignore[no-any-return]

    lm.padding.batches([[1], [1, 2]], [0, 1], 2, "generated")  # what the model makes of padding is tried out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm.model, "generate", watched)
        answers(lm, one, others, decoding)
    return seen


def check_declared(kind: type[Decoder]) -> None:
    assert kind.SOURCE
    assert kind.VERSION >= 1
    assert kind(**kind().model_dump()) == kind()
    assert isinstance(kind.NEUTRAL, str) or kind(**kind.NEUTRAL)


def check_neutral(kind: type[Decoder], maker: Maker) -> None:
    """Bit for bit: every score of every place, greedy and sampled."""
    lm, others = models(maker, kind)
    if isinstance(kind.NEUTRAL, str):
        return
    one = guided(kind(**kind.NEUTRAL), lm, others)
    for decoding in (GREEDY, SAMPLED):
        plain, found = scores(lm, None, {}, decoding), scores(lm, one, others, decoding)
        assert len(plain) == len(found) > 1
        assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


def check_acts(kind: type[Decoder], maker: Maker, settings: Mapping[str, Any]) -> None:
    """At these settings some answer changes, of greedy decoding or of sampling, which a decoder may leave alone."""
    lm, others = models(maker, kind)
    one = guided(kind(**settings), lm, others)
    drawn = [GREEDY, *(Decoding(max_new_tokens=7, temperature=1.0, seed=seed) for seed in range(3))]
    assert any(answers(lm, one, others, way) != answers(lm, None, {}, way) for way in drawn), (
        "no answer of a random model changed: stronger settings for this decoder belong in STRONG of test_contract.py"
    )


def check_batches(kind: type[Decoder], maker: Maker, settings: Mapping[str, Any]) -> None:
    """Rows of a batch answer as alone, whatever side a tokenizer would pad on."""
    lm, others = models(maker, kind)
    one = guided(kind(**settings), lm, others)
    whole = answers(lm, one, others)
    assert answers(lm, one, others, batch=1) == answers(lm, one, others, batch=2) == whole
    for model in (lm, *others.values()):
        model.tokenizer.padding_side = "right"
    assert answers(lm, one, others) == whole
    assert answers(lm, one, others, prompts=PROMPTS[::-1])[::-1] == whole


def check_sampling(kind: type[Decoder], maker: Maker, settings: Mapping[str, Any]) -> None:
    lm, others = models(maker, kind)
    one, state = guided(kind(**settings), lm, others), torch.random.get_rng_state()
    first = answers(lm, one, others, SAMPLED)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(9)
    assert answers(lm, one, others, SAMPLED) == first


class StoppedError(Exception):
    """An interruption."""


def check_resume(kind: type[Decoder], maker: Maker, settings: Mapping[str, Any], tmp_path: Path) -> None:
    lm, others = models(maker, kind)
    attempts = [a._replace(decoder=guided(kind(**settings), lm, others)) for a in ASKED]
    whole, made = sample(lm, attempts, SAMPLED, 2, beside=others), []
    (tmp_path / "work").mkdir()

    def interrupted(file: Path, some: Mapping[int, Completion]) -> None:
        if len(made) == 2:
            raise StoppedError
        made.append(list(some))
        keep(file, some)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("titer.evaluate.generation_cache.keep", interrupted)
        with pytest.raises(StoppedError):
            sample(lm, attempts, SAMPLED, 2, work=tmp_path / "work", beside=others)
        more: list[int] = []

        def counted(file: Path, some: Mapping[int, Completion]) -> None:
            more.extend(some)
            keep(file, some)

        patch.setattr("titer.evaluate.generation_cache.keep", counted)
        again = sample(lm, attempts, SAMPLED, 2, work=tmp_path / "work", beside=others)
    assert again.to_dict("records") == whole.to_dict("records")
    assert sorted([*more, *(row for rows in made for row in rows)]) == [*range(len(attempts))], "no answer is made twice"


def hooks(lm: LM) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in lm.model.modules())


def check_no_hook_left(kind: type[Decoder], maker: Maker, settings: Mapping[str, Any]) -> None:
    """None after answers, none after an error; modes come back."""
    lm, others = models(maker, kind)
    one = guided(kind(**settings), lm, others)
    before = [hooks(model) for model in (lm, *others.values())]
    for model in others.values():
        model.model.train()
    answers(lm, one, others)

    def fail(*_: object, **__: object) -> None:
        raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm.model, "generate", fail)
        with pytest.raises(StoppedError):
            answers(lm, one, others)
    assert [hooks(model) for model in (lm, *others.values())] == before
    assert all(model.model.training for model in others.values())


def check_roles(kind: type[Decoder], maker: Maker) -> None:
    """Every model it reads must be there, and speak the same tokens."""
    lm, others = models(maker, kind)
    for role in kind.MODELS:
        with pytest.raises(TiterError, match=role):
            Guide(Guided(kind()), lm, {name: one for name, one in others.items() if name != role}, PROMPTS, None)
        other = maker(World(seed=1, letters=WORLD.letters + 4))
        with pytest.raises(TiterError, match=r"vocabularies .* differ"):
            Guide(Guided(kind()), lm, {**others, role: other}, PROMPTS, None)

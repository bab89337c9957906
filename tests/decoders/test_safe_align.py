"""Safe-Align's formulas in numpy's own words, norms kept, exemplars turned round, what it needs to learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import llama
from tests.decoders.contract import WORLD
from titer.core.errors import TiterError
from titer.data.encode import prompt_ids
from titer.data.example import Example
from titer.data.world import WorldSource
from titer.decoders.safe_align import FORMS, SafeAlign, direction, moved
from titer.models.hooks import reading, replacing
from titer.models.lm import LM

PAIRS = WorldSource(world=WORLD, kind="unsafe", split="test").examples(np.arange(10))
RNG = torch.Generator().manual_seed(0)


def by_hand(x: np.ndarray, v: np.ndarray, alpha: float, gate: str, step: str) -> np.ndarray:
    """One state, as paper and code write it; the code subtracts the direction from safe to harmful."""
    norm = np.sqrt((x**2).sum())
    if step == "added":
        y = x + alpha * v
        return y * norm / np.sqrt((y**2).sum())
    harmful = -v / np.sqrt((v**2).sum())
    cos = (x / norm) @ harmful
    y = x / norm - 0.1 * alpha * (1 + max(0, cos) if gate != "none" else 1) * harmful
    return y / np.sqrt((y**2).sum()) * norm


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("alpha", [0.12, 3.0, -2.0])
def test_a_state_moves_as_paper_and_code_say_and_keeps_its_norm(form: str, alpha: float) -> None:
    x, v = 5 * torch.randn(3, 4, 8, generator=RNG), torch.randn(8, generator=RNG)
    found = moved(x, v, alpha, FORMS[form].gate, FORMS[form].step)
    for b in range(3):
        for t in range(4):
            wanted = by_hand(x[b, t].double().numpy(), v.double().numpy(), alpha, FORMS[form].gate, FORMS[form].step)
            np.testing.assert_allclose(found[b, t].numpy(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=-1), x.norm(dim=-1), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, x, atol=1e-3)


def test_a_zero_state_stays_and_types_come_back() -> None:
    assert not moved(torch.zeros(1, 1, 4), torch.ones(4), 1.0, "none", "added").any()
    assert moved(torch.ones(1, 1, 4, dtype=torch.bfloat16), torch.ones(4), 1.0, "none", "unit").dtype == torch.bfloat16


def test_the_direction_is_the_first_component_along_the_mean_the_mean_or_both() -> None:
    d = torch.randn(12, 6, generator=RNG, dtype=torch.float64) * torch.tensor([5.0, 1, 1, 1, 1, 1]) + torch.tensor([1.0, 2, 0, 0, 0, 0])
    values, vectors = np.linalg.eigh(np.cov(d.numpy().T))
    first = vectors[:, values.argmax()]
    first = first * np.sign(first @ d.mean(0).numpy())
    np.testing.assert_allclose(direction(d, "pc1").numpy(), first, atol=1e-9)
    np.testing.assert_allclose(direction(d, "mean").numpy(), d.mean(0).numpy())
    np.testing.assert_allclose(direction(d, "pc1+mean").numpy(), first + d.mean(0).numpy(), atol=1e-9)


@torch.no_grad()
def ends(lm: LM, prompt: str, answer: str, names: list[str], last: int) -> np.ndarray:
    """One exemplar's states, layers one after the other, by a pass of its own."""
    ids = prompt_ids(lm.tokenizer, [prompt])[0] + lm.tokenizer(answer, add_special_tokens=False)["input_ids"]
    with reading(lm.sites, names) as seen:
        lm.model(input_ids=torch.tensor([ids]), use_cache=False)
    return np.concatenate([seen[name][0, -last:].mean(0).numpy() for name in names])


@pytest.mark.parametrize(
    ("settings", "site", "last"), [({}, "resid", 1), ({"form": "code"}, "mlp_out", 4), ({"pool": "last4"}, "resid", 4)]
)
def test_it_learns_from_the_states_at_the_answers_ends(settings: dict[str, Any], site: str, last: int) -> None:
    lm = llama(WORLD)
    names = lm.sites.names(site)
    found = SafeAlign(**settings, direction="mean").fit(lm, {}, PAIRS)
    assert list(found) == names
    apart = [ends(lm, e.prompt, e.refuse or "", names, last) - ends(lm, e.prompt, e.comply or "", names, last) for e in PAIRS]
    np.testing.assert_allclose(torch.cat(list(found.values())).numpy(), np.mean(apart, axis=0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_exemplars_turned_round_turn_the_effect_round(form: Any) -> None:
    lm, maker = llama(WORLD), SafeAlign(form=form, alpha=4.0)
    turned = [replace(e, comply=e.refuse, refuse=e.comply) for e in PAIRS]
    one, other = maker.fit(lm, {}, PAIRS), maker.fit(lm, {}, turned)
    for site in one:
        torch.testing.assert_close(other[site], -one[site], rtol=1e-4, atol=1e-6)
    ids = torch.tensor(prompt_ids(lm.tokenizer, [PAIRS[0].prompt]))
    along = torch.cat([v / v.norm() for v in one.values()])
    found = []
    for state in (one, {}, other):
        names = lm.sites.names(maker.parts.site)
        with replacing(lm.sites, maker.edits(lm, state)), reading(lm.sites, names) as seen, torch.no_grad():
            lm.model(input_ids=ids, use_cache=False)
        found.append(float(torch.cat([seen[n][0, -1] / seen[n][0, -1].norm() for n in names]) @ along))
    assert found[0] > found[1] > found[2]


def test_it_needs_pairs() -> None:
    alone = [Example("a b", True, "unsafe", "test", comply="c"), *[replace(e, harmful=False) for e in PAIRS]]
    with pytest.raises(TiterError, match="unsafe prompts with both answers, but only 0 such prompts"):
        SafeAlign().fit(llama(WORLD), {}, alone)

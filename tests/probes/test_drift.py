"""Embedding drift against a loop over single rows, and its properties: zero, padding, growth, sums over layers."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from tests.models.families import SUPPORTED
from tests.models.test_activations import alone
from tests.probes.made import drawn, lively, requests
from titer.core.errors import TiterError
from titer.data.encode import answer_ids, prompt_ids
from titer.data.example import Example
from titer.data.world import World
from titer.models.lm import LM, Architecture
from titer.probes import drift as probe
from titer.probes.drift import alignment_loss, drift, token_mean, whole

MEASURES = ["official", "l2", "norm", "cosine", "tokens"]


def moved(lm: LM, size: float = 1.0) -> LM:
    """A copy whose matrices moved along a fixed direction."""
    other = LM(copy.deepcopy(lm.model), lm.tokenizer, "tuned")
    with torch.no_grad():
        for k, p in enumerate(other.model.parameters()):
            if p.ndim == 2:
                p.add_(size * 0.1 * drawn(*p.shape, seed=k))
    return other


@pytest.fixture
def uneven() -> list[Example]:
    """Requests of very different lengths, so that every batch is padded."""
    prompts = ("<bos> f0 f1 <sot> a b c d e f g h i <eot>", "<bos> f2 <sot> a <eot>", "b", "<bos> f3 <sot> a b c <eot>", "c d e f")
    answers = ("a b c d", "<null> <null>", "e", "f g h i j k l m n o p a b", "<null>")
    return [
        Example(p, True, "unsafe", "test", comply=a, refuse=" ".join(reversed(a.split()))) for p, a in zip(prompts, answers, strict=True)
    ]


def naive(reference: LM, tuned: LM, examples: list[Example], site: str, answer: str) -> pd.DataFrame:
    """The definitions in loops over rows and tokens, each row alone and unpadded."""
    rows = []
    for layer in range(reference.sites.layers):
        seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {"prompt": [], "answer": [], "all": []}
        for example in examples:
            head = prompt_ids(reference.tokenizer, [example.prompt])[0]
            ids = head + answer_ids(reference.tokenizer, [getattr(example, answer)])[0]
            pair = [alone(lm, ids, f"{site}[{layer}]").double() for lm in (reference, tuned)]
            for t in range(len(ids)):
                for part in ("prompt" if t < len(head) else "answer", "all"):
                    seen[part].append((pair[0][t], pair[1][t]))
        for part, tokens in seen.items():
            square = sum(float(((b - a) ** 2).sum()) for a, b in tokens)
            norm = np.mean([float((b - a).norm() / a.norm()) for a, b in tokens])
            cosine = np.mean([float(a @ b / (a.norm() * b.norm())) for a, b in tokens])
            rows.append({"layer": layer + 1, "part": part, "official": square, "l2": square**0.5, "norm": norm, "cosine": cosine})
            rows[-1]["tokens"] = len(tokens)
    return pd.DataFrame(rows)


@pytest.mark.parametrize("name", sorted(SUPPORTED))
@pytest.mark.parametrize(("site", "answer"), [("attn_out", "refuse"), ("resid", "comply")])
def test_drift_is_the_naive_one(world: World, uneven: list[Example], name: str, site: str, answer: str) -> None:
    reference = lively(world, name)
    tuned = moved(reference)
    found = drift(reference, tuned, uneven, answer, site, batch=2)  # type: ignore[arg-type]
    expected = naive(reference, tuned, uneven, site, answer)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, check_dtype=False)
    assert (found.cosine < 0.999).all()  # something moved, or the comparison says little


@pytest.mark.parametrize("site", probe.SITES)
def test_a_model_does_not_drift_from_itself(lm: LM, uneven: list[Example], site: str) -> None:
    for other in (lm, moved(lm, 0.0)):
        found = drift(lm, other, uneven, site=site, batch=3)
        assert (found[["official", "l2", "norm"]] == 0).all().all()
        assert (found.cosine == 1).all()


@pytest.mark.parametrize("batch", [1, 2, 3, 64])
def test_padding_and_batches_do_not_matter(world: World, uneven: list[Example], batch: int) -> None:
    reference = lively(world)
    tuned = moved(reference)
    found = drift(reference, tuned, uneven, batch=batch)
    pd.testing.assert_frame_equal(found, drift(reference, tuned, uneven[::-1], batch=1), rtol=1e-4)
    one_by_one = pd.concat([drift(reference, tuned, [e]) for e in uneven])
    sums = one_by_one.groupby(["layer", "part"], sort=False)[["official", "tokens"]].sum().reset_index()
    np.testing.assert_allclose(found.official, sums.official, rtol=1e-4)
    assert list(found.tokens) == list(sums.tokens)


def test_drift_grows_with_the_change_and_is_its_square_where_the_network_is_linear(world: World) -> None:
    """Scaling a change of the first layer's output projection by t scales its dh by t exactly."""
    reference, examples = lively(world), requests(world, "unsafe")
    sizes = {}
    for t in (0.0, 0.5, 1.0, 2.0):
        tuned = LM(copy.deepcopy(reference.model), reference.tokenizer, "tuned")
        with torch.no_grad():
            weight = tuned.sites.linear("attn_o[0]").weight
            weight.add_(t * 0.05 * drawn(*weight.shape))
        sizes[t] = drift(reference, tuned, examples)
    totals = [float(whole(table).official.iloc[-1]) for table in sizes.values()]
    assert totals[0] == 0
    assert totals == sorted(totals)
    assert len(set(totals)) == 4
    first = {t: table[table.layer == 1] for t, table in sizes.items()}
    for t in (0.5, 2.0):
        np.testing.assert_allclose(first[t].official, t**2 * first[1.0].official, rtol=1e-3)
        np.testing.assert_allclose(first[t].norm, t * first[1.0].norm, rtol=1e-3)


def test_totals_add_over_layers_and_parts(world: World, uneven: list[Example]) -> None:
    reference = lively(world)
    table = drift(reference, moved(reference), uneven)
    totals = whole(table).set_index("part")
    assert list(totals.index) == ["prompt", "answer", "all"]
    for part, row in totals.iterrows():
        mine = table[table.part == part]
        assert len(mine) == reference.sites.layers
        assert row.official == pytest.approx(mine.official.sum())
        assert row.l2 == pytest.approx(mine.official.sum() ** 0.5)
        assert row.norm == pytest.approx(mine.norm.mean())
        assert row.cosine == pytest.approx(mine.cosine.mean())
        assert row.tokens == mine.tokens.iloc[0]
    assert totals.official["all"] == pytest.approx(totals.official["prompt"] + totals.official["answer"])
    shares = totals.tokens / totals.tokens["all"]
    assert totals.norm["all"] == pytest.approx((shares * totals.norm)[["prompt", "answer"]].sum())


def test_only_the_reference_is_kept_and_models_come_back_as_they_were(
    lm: LM, uneven: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = moved(lm)
    lm.model.train(True)
    tuned.model.train(False)
    before, reading = [], probe.reading

    def watched(sites: object, names: object) -> object:
        before.append(sites)
        return reading(sites, names)  # type: ignore[arg-type]

    monkeypatch.setattr(probe, "reading", watched)
    drift(lm, tuned, uneven, batch=2)
    assert set(before) == {lm.sites}
    assert lm.model.training
    assert not tuned.model.training
    with pytest.raises(TiterError):
        drift(lm, Architecture(layers=2, width=32, heads=2, positions=64).build(lm.tokenizer, 0), uneven)
    for one in (lm, tuned):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in one.model.modules())


def test_wrong_inputs_are_refused(world: World, lm: LM, uneven: list[Example]) -> None:
    silent = [*uneven, Example("a", True, "unsafe", "test", comply="b")]
    with pytest.raises(TiterError, match="1 of 6 examples have no answer to refuse"):
        drift(lm, lm, silent)
    with pytest.raises(TiterError, match="no example"):
        alignment_loss(lm, [])
    with pytest.raises(TiterError, match="unknown site"):
        drift(lm, lm, uneven, site="mlp_out")
    with pytest.raises(TiterError, match="unknown trained answer"):
        drift(lm, lm, uneven, answer="all")  # type: ignore[arg-type]
    with pytest.raises(TiterError, match="2 and 3 layers"):
        drift(lm, Architecture(layers=3, width=16, heads=2, positions=64).build(lm.tokenizer, 0), uneven)
    with pytest.raises(TiterError, match="longer than the model's window of 64"):
        drift(lm, lm, [Example("a b", True, "unsafe", "test", refuse=" ".join("a" * 70))])
    other = lively(world)
    other.tokenizer = copy.deepcopy(other.tokenizer)
    other.tokenizer.eos_token = "a"
    with pytest.raises(TiterError, match="different tokens"):
        drift(lively(world), other, uneven)


def test_the_alignment_loss_is_that_of_a_loop_over_tokens(world: World, uneven: list[Example]) -> None:
    lm = lively(world)
    found = alignment_loss(lm, uneven, batch=2)
    total, count = 0.0, 0
    for i, example in enumerate(uneven):
        head, tail = prompt_ids(lm.tokenizer, [example.prompt])[0], answer_ids(lm.tokenizer, [example.refuse or ""])[0]
        with torch.no_grad():
            shares = lm.model(input_ids=torch.tensor([head + tail])).logits[0].double().softmax(1)
        nll = -sum(float(shares[len(head) + t - 1, token].log()) for t, token in enumerate(tail))
        row = found.iloc[i]
        assert (row.input, row.tokens) == (i, len(tail))
        assert row.nll == pytest.approx(nll, rel=1e-4)
        assert row.loss == pytest.approx(nll / len(tail), rel=1e-4)
        total, count = total + nll, count + len(tail)
    assert token_mean(found) == pytest.approx(total / count, rel=1e-4)
    assert token_mean(found) != pytest.approx(found.loss.mean(), rel=1e-3)  # a long answer weighs more
    pd.testing.assert_frame_equal(found, alignment_loss(lm, uneven, batch=64), rtol=1e-4)

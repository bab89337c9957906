"""The common plane: against an eigen-decomposition, planted planes, and loops over single rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.models.families import SUPPORTED
from tests.models.test_activations import alone
from tests.probes.made import basis, drawn, lively, requests
from titer.core.errors import TiterError
from titer.data.encode import answer_ids, prompt_ids
from titer.data.example import Example
from titer.data.world import World
from titer.probes.projection import embeddings, plane, projection

TEXTS = (("<bos> f0 f1 <sot> a b c d e f g h i <eot>", "a b c d"), ("b", "<null>"), ("<bos> f2 <sot> a <eot>", "f g h i j k"))
UNEVEN = [Example(prompt, True, "unsafe", "test", refuse=answer) for prompt, answer in TEXTS]


@pytest.mark.parametrize("name", sorted(SUPPORTED))
@pytest.mark.parametrize("site", ["attn_out", "resid"])
def test_embeddings_are_those_of_single_unpadded_rows(world: World, name: str, site: str) -> None:
    lm = lively(world, name)
    last = f"{site}[{lm.sites.layers - 1}]"
    heads = [prompt_ids(lm.tokenizer, [e.prompt])[0] for e in UNEVEN]
    tails = [answer_ids(lm.tokenizer, [e.refuse or ""])[0] for e in UNEVEN]
    both = torch.stack([alone(lm, h + t, last).mean(0) for h, t in zip(heads, tails, strict=True)])
    prompts = torch.stack([alone(lm, h, last).mean(0) for h in heads])
    ends = torch.stack([alone(lm, h, last)[-1] for h in heads])
    sets = {"unsafe": UNEVEN}
    torch.testing.assert_close(embeddings(lm, sets, site=site)["unsafe"], both, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embeddings(lm, sets, answer=None, site=site)["unsafe"], prompts, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embeddings(lm, sets, over="end", site=site)["unsafe"], ends, rtol=1e-4, atol=1e-5)


def test_the_plane_is_that_of_the_covariance_of_all_models_together() -> None:
    found = {
        "a": {"safe": drawn(9, 6, seed=1), "unsafe": 2 + drawn(7, 6, seed=2)},
        "b": {"safe": drawn(9, 6, seed=3) - 1, "unsafe": 3 * drawn(7, 6, seed=4)},
    }
    table = plane(found)
    assert list(table.columns) == ["model", "kind", "input", "x", "y", "share_x", "share_y"]
    cloud = torch.cat([p for kinds in found.values() for p in kinds.values()]).double().numpy()
    values, vectors = np.linalg.eigh(np.cov(cloud.T))
    expected = (cloud - cloud.mean(0)) @ vectors[:, ::-1][:, :2]
    for column, axis in (("x", 0), ("y", 1)):
        sign = np.sign(vectors[:, ::-1][np.abs(vectors[:, ::-1][:, axis]).argmax(), axis])
        np.testing.assert_allclose(table[column], sign * expected[:, axis], atol=1e-9)
    np.testing.assert_allclose(table[["share_x", "share_y"]].iloc[0], values[::-1][:2] / values.sum())
    assert table.groupby(["model", "kind"], sort=False).size().tolist() == [9, 7, 9, 7]
    assert list(table.input[:9]) == list(range(9))


def test_points_of_a_plane_keep_their_distances_and_others_never_grow() -> None:
    flat = drawn(8, 2, seed=5) @ basis(10, 2).T + 4
    at = torch.tensor(plane({"a": {"s": flat[:5]}, "b": {"s": flat[5:]}})[["x", "y"]].to_numpy())
    torch.testing.assert_close(torch.cdist(at, at), torch.cdist(flat.double(), flat.double()), rtol=1e-5, atol=1e-5)
    table = plane({"a": {"s": flat[:5]}, "b": {"s": flat[5:]}})
    assert table.share_x[0] + table.share_y[0] == pytest.approx(1)
    cloud = drawn(12, 10, seed=6).double()
    seen = torch.tensor(plane({"a": {"s": cloud}})[["x", "y"]].to_numpy())
    assert (torch.cdist(seen, seen) <= torch.cdist(cloud, cloud) + 1e-9).all()


def test_models_are_read_in_turn_and_the_same_model_lies_on_itself(world: World) -> None:
    lm, sets = lively(world), {"safe": requests(world, "safe", 4), "unsafe": requests(world, "unsafe", 3)}
    table = projection(((name, lm) for name in ("first", "again")), sets, over="end")
    first, again = (table[table.model == name].reset_index(drop=True) for name in ("first", "again"))
    assert len(first) == 7
    np.testing.assert_allclose(first[["x", "y"]], again[["x", "y"]], atol=1e-9)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


def test_points_in_one_place_have_no_shares() -> None:
    table = plane({"a": {"s": torch.ones(4, 3)}})
    assert (table[["x", "y"]] == 0).all().all()
    assert table[["share_x", "share_y"]].isna().all().all()


def test_wrong_inputs_are_refused(world: World) -> None:
    lm = lively(world)
    with pytest.raises(TiterError, match="different widths: 3, 4"):
        plane({"a": {"s": drawn(4, 3)}, "b": {"s": drawn(4, 4)}})
    with pytest.raises(TiterError, match="fewer than three points"):
        plane({"a": {"s": drawn(2, 3)}})
    with pytest.raises(TiterError, match="fewer than three points"):
        projection([], {"safe": UNEVEN})
    with pytest.raises(TiterError, match="unknown site"):
        embeddings(lm, {"s": UNEVEN}, site="mlp_in")
    with pytest.raises(TiterError, match="unknown part"):
        embeddings(lm, {"s": UNEVEN}, over="start")
    with pytest.raises(TiterError, match="3 of 3 examples have no answer to comply"):
        embeddings(lm, {"s": UNEVEN}, answer="comply")
    with pytest.raises(TiterError, match="longer than the model's window of 64"):
        embeddings(lm, {"s": [Example(" ".join("a" * 70), True, "unsafe", "test")]}, answer=None)

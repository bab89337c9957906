"""Every set against the centroids of the classes: the clusters probe's numbers, a set's copy, naive gains, soft suffixes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.probes.made import drawn, embedding, inputs_of, lively, planted, read, requests
from titer.data.draws import seed_of
from titer.data.encode import answer_ids, prompt_ids
from titer.data.world import World
from titer.models.activations import at_prompt_end, over_answer
from titer.probes.base import random_like
from titer.probes.clusters import clusters
from titer.probes.placement import placement

SUITE = pytest.mark.parametrize("family", ["neox", "llama"])


def column(table: pd.DataFrame, kind: str, layer: int, name: str) -> list[float]:
    mine = table[(table.kind == kind) & (table.layer == layer)]
    assert mine.input.tolist() == list(range(len(mine)))
    return mine[name].tolist()  # type: ignore[no-any-return]


@SUITE
def test_classes_have_the_clusters_probes_numbers_and_a_copy_lies_with_its_class(family: str, world: World) -> None:
    lm = lively(world, family)
    safe, unsafe = requests(world, "safe", 7), requests(world, "unsafe", 9)
    table = placement(lm, {"safe": (safe, None), "copy": (safe, None), "unsafe": (unsafe, None)})
    wanted = clusters(lm, safe, unsafe)
    assert "gain" not in table
    for layer in (1, 2):
        for kind, harmful in (("safe", False), ("unsafe", True)):
            theirs = wanted[(wanted.layer == layer) & (wanted.harmful == harmful)]
            assert column(table, kind, layer, "tau") == pytest.approx(theirs.tau.tolist(), abs=1e-5)
            assert column(table, kind, layer, "score") == pytest.approx(theirs.score.tolist(), abs=1e-5)
        assert column(table, "copy", layer, "tau") == pytest.approx(column(table, "safe", layer, "tau"), abs=1e-5)
        assert sum(column(table, "copy", layer, "tau")) > 0 > sum(column(table, "unsafe", layer, "tau"))


@SUITE
def test_an_added_set_is_measured_against_the_centroids_of_all_inputs(family: str, world: World) -> None:
    lm = lively(world, family)
    safe, unsafe, other = requests(world, "safe"), requests(world, "unsafe", 5), requests(world, "unsafe", 9)[5:]
    table = placement(lm, {"safe": (safe, None), "unsafe": (unsafe, None), "other": (other, None)})
    name = "mlp_act[1]"
    ends = [at_prompt_end(lm, [e.prompt for e in g], [name])[name] for g in (safe, unsafe, other)]
    means = [over_answer(lm, [e.prompt for e in g], [str(e.comply) for e in g], [name], 10)[name] for g in (safe, unsafe, other)]
    for field, (s, u, o) in {"score": ends, "tau": means}.items():
        naive = [float((a - u.mean(0)).norm() - (a - s.mean(0)).norm()) for a in o]
        assert column(table, "other", 2, field) == pytest.approx(naive, abs=1e-5)


@SUITE
def test_gain_and_its_random_control_against_a_naive_form(family: str, world: World, tmp_path: Path) -> None:
    lm = lively(world, family)
    rows = lm.sites.linear("mlp_up[0]").out_features
    changes = [0.1 * drawn(rows, 16, seed=1), 0.3 * drawn(rows, 16, seed=2)]
    base, tuned = planted(lm, tmp_path, {f"mlp_up[{i}]": change for i, change in enumerate(changes)})
    groups = {"safe": requests(world, "safe"), "unsafe": requests(world, "unsafe"), "other": requests(world, "safe", 9)[6:]}
    table = placement(lm, {kind: (group, None) for kind, group in groups.items()}, base, tuned, seed=3)
    for i, change in enumerate(changes):
        control = random_like(change, seed_of(3, "placement", i))
        for kind, group in groups.items():
            reads = [inputs_of(lm, e, f"mlp_up[{i}]")[-1] for e in group]
            naive = [float((change @ a).norm() / a.norm()) for a in reads]
            assert column(table, kind, i + 1, "gain") == pytest.approx(naive, rel=1e-3)
            random = [float((control @ a).norm() / a.norm()) for a in reads]
            assert column(table, kind, i + 1, "gain_random") == pytest.approx(random, rel=1e-2)
            sizes = torch.linalg.svdvals(change)
            assert all(float(sizes[-1]) * 0.999 <= g <= float(sizes[0]) * 1.001 for g in random + naive)


@SUITE
def test_a_suffix_that_is_a_tokens_embedding_places_a_set_like_that_token(family: str, world: World, tmp_path: Path) -> None:
    lm = lively(world, family)
    wide = lm.sites.linear("mlp_up[0]").out_features
    base, tuned = planted(lm, tmp_path, {f"mlp_up[{i}]": drawn(wide, 16, seed=i) for i in range(2)})
    safe, unsafe = requests(world, "safe"), requests(world, "unsafe")
    tokens = ["a", "f3", "<null>", "p", "g1", "b"]
    soft = torch.stack([embedding(lm, token) for token in tokens])
    table = placement(lm, {"safe": (safe, None), "unsafe": (unsafe, None), "soft": (unsafe, soft)}, base, tuned)
    for i in range(2):
        act, end = f"mlp_act[{i}]", f"mlp_in[{i}]"
        heads, tails = prompt_ids(lm.tokenizer, [e.prompt for e in unsafe]), answer_ids(lm.tokenizer, [str(e.comply) for e in unsafe])
        rows = [read(lm, e.prompt, [token], [act, end], tail) for e, token, tail in zip(unsafe, tokens, tails, strict=True)]
        last = len(heads[0])  # prompts of one length here: the last token's place with one token before it
        assert {len(head) for head in heads} == {last}
        groups = {"score": [at_prompt_end(lm, [e.prompt for e in g], [act])[act].mean(0) for g in (safe, unsafe)]}
        groups["tau"] = [over_answer(lm, [e.prompt for e in g], [str(e.comply) for e in g], [act], 10)[act].mean(0) for g in (safe, unsafe)]
        reads = {"score": [row[act][last] for row in rows], "tau": [row[act][last : last + 10].mean(0) for row in rows]}
        for name, (s, u) in groups.items():
            naive = [float((a - u).norm() - (a - s).norm()) for a in reads[name]]
            assert column(table, "soft", i + 1, name) == pytest.approx(naive, rel=1e-3, abs=1e-4)
        change = tuned.weight(lm.sites.tensor(f"mlp_up[{i}]")) - base.weight(lm.sites.tensor(f"mlp_up[{i}]"))
        gains = [float((change @ row[end][last]).norm() / row[end][last].norm()) for row in rows]
        assert column(table, "soft", i + 1, "gain") == pytest.approx(gains, rel=1e-3)
        assert column(table, "soft", i + 1, "score") != pytest.approx(column(table, "unsafe", i + 1, "score"), rel=1e-2, abs=1e-3)

"""Each repair against its formula written another way: whole state dicts, sorting, full projectors, loops, the method's own edit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from tests.repairs.made import MAKERS, family, mixtral, order, run
from titer.core.errors import TiterError
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.lm import load
from titer.repairs.base import TUNED

Weights = dict[str, torch.Tensor]


def weights(checkpoint: Checkpoint) -> Weights:
    return {name: checkpoint.weight(name) for name in checkpoint.files}


def repaired(name: str, folder: Path, models: dict[str, str], **settings: Any) -> tuple[dict[str, Weights], Weights]:
    """(role -> weights, the repaired ones)."""
    plan, (found,) = run(order(name, folder, models, settings=settings))
    return {role: weights(one) for role, one in plan.models.items()}, weights(found)


def block_matrices(checkpoint: Checkpoint) -> dict[str, bool]:
    """The blocks' matrices by their names, found in the loaded model -> whether they are turned."""
    model = load(checkpoint, "cpu").model
    kinds = (torch.nn.Linear, Conv1D)
    return {f"{n}.weight": isinstance(m, Conv1D) for n, m in model.named_modules() if isinstance(m, kinds) and "head" not in n}


@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("k", [0.1, 0.35, 1.0])
def test_harm_vector_takes_out_the_largest_of_the_harmful_change(k: float, scope: str, tmp_path: Path) -> None:
    held, found = repaired("harm_vector", tmp_path, family(tmp_path, roles=("aligned", "harmful")), k=k, scope=scope, strength=1.5)
    tau = {n: held["harmful"][n] - held["aligned"][n] for n in found}
    sizes = {n: one.abs() for n, one in tau.items()}
    if scope == "global":
        keep = math.ceil(k * sum(one.numel() for one in tau.values()))
        limit = torch.cat([one.flatten() for one in sizes.values()]).sort(descending=True).values[keep - 1]
        limits = dict.fromkeys(tau, limit)
    else:
        limits = {n: one.flatten().sort(descending=True).values[math.ceil(k * one.numel()) - 1] for n, one in sizes.items()}
    changed = 0
    for n in found:
        mask = sizes[n] >= limits[n]
        torch.testing.assert_close(found[n], held[TUNED][n] - 1.5 * tau[n] * mask, rtol=1e-5, atol=1e-6)
        assert torch.equal(found[n][~mask], held[TUNED][n][~mask])
        changed += int(mask.sum())
    total = sum(one.numel() for one in tau.values())
    assert changed == (math.ceil(k * total) if scope == "global" else sum(math.ceil(k * one.numel()) for one in tau.values()))


def test_exactly_so_many_go_where_many_are_of_one_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every coordinate of the harmful change is of one magnitude: the first of them, in the order of the names, go. By rows the same go."""
    models = family(tmp_path)
    lm = load(open_checkpoint(models["aligned"]), "cpu")
    with torch.no_grad():
        for p in lm.model.parameters():
            p.copy_(p.half().float())
    lm.save(tmp_path / "aligned")
    with torch.no_grad():
        for p in lm.model.parameters():
            p.add_(0.25)
    lm.save(tmp_path / "harmful")
    held, found = repaired("harm_vector", tmp_path, {**models, "harmful": str(tmp_path / "harmful")}, k=0.3, strength=1.0)
    total = sum(one.numel() for one in found.values())
    changed = {n: int((found[n] != held[TUNED][n]).sum()) for n in sorted(found)}
    assert sum(changed.values()) == math.ceil(0.3 * total)
    partly = [n for n, count in changed.items() if 0 < count < found[n].numel()]
    assert len(partly) <= 1
    monkeypatch.setattr("titer.models.weights.BLOCK", 40)
    asked = order("harm_vector", tmp_path, {**models, "harmful": str(tmp_path / "harmful")}, settings={"k": 0.3, "strength": 1.0})
    _, (rows,) = run(replace(asked, to=tmp_path / "rows"))
    assert all(torch.equal(rows.weight(n), found[n]) for n in found)


def test_the_whole_harmful_change_of_the_harmful_model_is_the_way_back_bit_for_bit(tmp_path: Path) -> None:
    models = family(tmp_path)
    held, found = repaired("harm_vector", tmp_path, {**models, "harmful": models[TUNED]}, k=1.0, strength=1.0)
    assert all(torch.equal(found[n], held["aligned"][n]) for n in found)


def test_named_layers_alone_are_edited_and_count(tmp_path: Path) -> None:
    models = family(tmp_path, roles=("aligned", "harmful"))
    held, found = repaired("harm_vector", tmp_path, models, k=0.5, strength=1.0, layers=[1])
    inside = [n for n in found if ".layers.1." in n]
    changed = {n: int((found[n] != held[TUNED][n]).sum()) for n in found}
    assert sum(changed[n] for n in inside) == math.ceil(0.5 * sum(found[n].numel() for n in inside))
    assert not any(changed[n] for n in found if n not in inside)
    with pytest.raises(TiterError, match=r"layer 2: tuned has 2.*layers from 0 to 1") as raised:
        run(order("harm_vector", tmp_path, models, settings={"layers": [2]}, to=tmp_path / "other"))
    assert raised.value.status == 2
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("drop", [0.0, 0.6])
def test_resta_adds_the_safety_vector_and_dare_drops_of_the_tuning(drop: float, tmp_path: Path) -> None:
    held, found = repaired("resta", tmp_path, family(tmp_path, roles=("aligned", "base")), gamma=0.3, drop=drop)
    share = []
    for n in found:
        aligned, change = held["aligned"][n], held[TUNED][n] - held["aligned"][n]
        left = (found[n] - aligned - 0.3 * (aligned - held["base"][n])) / change  # 1 without a drop; 0 or 1 / (1 - drop)
        if drop == 0:
            torch.testing.assert_close(found[n], held[TUNED][n] + 0.3 * (aligned - held["base"][n]))
            continue
        gone, stays = (left.abs() < 0.05), ((left - 1 / (1 - drop)).abs() < 0.05)
        assert float((gone | stays)[change.abs() > 1e-3].float().mean()) == 1
        share.append((int(gone.sum()), gone.numel()))
    if share:
        assert sum(a for a, _ in share) / sum(b for _, b in share) == pytest.approx(drop, abs=0.03)


def oracle(held: dict[str, Weights], n: str, turned: bool) -> tuple[float, torch.Tensor]:
    """(cosine, the projected weight) with C in full, float64."""
    aligned, base, tuned = (held[role][n].double() for role in ("aligned", "base", TUNED))
    if turned:
        aligned, base, tuned = aligned.T, base.T, tuned.T
    v, change = aligned - base, tuned - aligned
    after = torch.einsum("ij,kj->ik", v, v) / (v**2).sum().sqrt() @ change
    cosine = float((after * change).sum() / (after.norm() * change.norm()))
    return cosine, (aligned + after).T.float() if turned else (aligned + after).float()


@pytest.mark.parametrize(("settings", "least"), [({"threshold": 0.45}, 1), ({"threshold": -1.0, "layers": 3}, 3), ({"threshold": 1.0}, 8)])
@pytest.mark.parametrize("maker", sorted(MAKERS))
def test_safe_lora_projects_as_with_c_in_full(maker: str, settings: dict[str, Any], least: int, tmp_path: Path) -> None:
    models = family(tmp_path, MAKERS[maker], ("aligned", "base"))
    held, found = repaired("safe_lora", tmp_path, models, **settings)
    made = {n: oracle(held, n, turned) for n, turned in block_matrices(open_checkpoint(models[TUNED])).items()}
    if "layers" in settings:
        chosen = set(sorted(made, key=lambda n: made[n][0])[:3])
    else:
        chosen = {n for n, (cosine, _) in made.items() if cosine <= settings["threshold"]}
    assert len(chosen) >= (least if settings["threshold"] != 0.45 else 0)
    for n in found:
        if n in chosen:
            torch.testing.assert_close(found[n], made[n][1], rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(found[n], held[TUNED][n]), n


@pytest.mark.parametrize("threshold", [0.2, 0.45, 1.0])
def test_safe_merge_merges_where_the_cosine_is_below(threshold: float, tmp_path: Path) -> None:
    models = family(tmp_path, roles=("aligned", "base", "safe"))
    held, found = repaired("safe_merge", tmp_path, models, threshold=threshold, alpha=0.25)
    turned = block_matrices(open_checkpoint(models[TUNED]))
    for n in found:
        merged = n in turned and oracle(held, n, turned[n])[0] < threshold
        aligned = held["aligned"][n]
        wanted = aligned + 0.75 * (held[TUNED][n] - aligned) + 0.25 * (held["safe"][n] - aligned) if merged else held[TUNED][n]
        torch.testing.assert_close(found[n], wanted, rtol=1e-5, atol=1e-6)


def scores(checkpoint: Checkpoint, rows: list[tuple[str, str]], maker: str) -> dict[str, torch.Tensor]:
    """Wanda's norms from every row alone, without padding, its inputs caught by hooks of the test's own."""
    lm = load(checkpoint, "cpu")
    squares: dict[str, torch.Tensor] = {}
    for n, m in lm.model.named_modules():
        if isinstance(m, torch.nn.Linear | Conv1D) and "head" not in n:
            key = f"{n}.weight"

            def add(_: Any, args: Any, key: str = key) -> None:
                squares[key] = squares.get(key, 0) + args[0].flatten(0, -2).pow(2).sum(0)

            m.register_forward_pre_hook(add)
    from titer.data.encode import answer_ids, prompt_ids

    for prompt, answer in rows:
        ids = [*prompt_ids(lm.tokenizer, [prompt])[0], *answer_ids(lm.tokenizer, [answer])[0]]
        with torch.no_grad():
            lm.model(torch.tensor([ids]))
    return {n: total.sqrt() for n, total in squares.items()}


@pytest.mark.parametrize("maker", ["llama", "gpt2"])
def test_antidote_prunes_what_harmful_requests_use_most(maker: str, tmp_path: Path) -> None:
    models = family(tmp_path, MAKERS[maker], ())
    asked = order("antidote", tmp_path, models, settings={"ratio": 0.25})
    plan, (opened,) = run(asked)
    held, found = weights(plan.tuned), weights(opened)
    rows = [(prompt, str(comply)) for prompt, _, comply, _ in plan.data["harmful"].rows]
    norms, turned = scores(plan.tuned, rows, maker), block_matrices(plan.tuned)
    assert set(norms) == set(turned)
    for n in found:
        if n not in norms:
            assert torch.equal(found[n], held[n])
            continue
        before, after = (one.T if turned[n] else one for one in (held[n], found[n]))
        for i, row in enumerate(before):
            ranked = sorted(range(len(row)), key=lambda j, r=row, n=n: -abs(float(r[j])) * float(norms[n][j]))  # type: ignore[misc]
            gone = set(ranked[: round(0.25 * len(row))])
            assert {j for j in range(len(row)) if after[i][j] == 0} == gone


@pytest.mark.parametrize("name", ["safe_lora", "antidote"])
def test_a_repair_by_linears_refuses_experts_in_one_tensor(name: str, tmp_path: Path) -> None:
    models = family(tmp_path, mixtral, ("aligned", "base"))
    with pytest.raises(TiterError, match="holds its experts in one tensor") as raised:
        run(order(name, tmp_path, models))
    assert raised.value.status == 2
    assert not (tmp_path / "out").exists()


def test_safe_lora_on_an_adapter_is_the_method_s_b(tmp_path: Path) -> None:
    models = family(tmp_path, roles=("aligned", "base"), kind="adapter")
    plan, (found,) = run(order("safe_lora", tmp_path, models, settings={"threshold": 1.0}))
    for n, change in plan.tuned.changes.items():
        if change.a:
            v = plan.models["aligned"].weight(n) - plan.models["base"].weight(n)
            before = plan.tuned.weight(n) - plan.models["aligned"].weight(n)
            after = found.weight(n) - plan.models["aligned"].weight(n)
            torch.testing.assert_close(after, v @ v.T @ before / v.norm(), rtol=1e-3, atol=1e-5)
            assert functional.cosine_similarity(after.flatten(), before.flatten(), 0) < 1

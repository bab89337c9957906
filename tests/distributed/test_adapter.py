"""Single-LoRA: a stage that trains its parent's adapter on, against one adapter trained by hand through both stages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from tests.conftest import ARCHITECTURES, neox
from tests.methods.contract import WORLD, largest_gap, same, stage, streams
from titer.core.errors import TiterError
from titer.data.draws import seed_of
from titer.methods.base import token_nll
from titer.methods.dpo import DPO
from titer.methods.sft import SFT
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import LM, load
from titer.stage import Lora, Optimiser, Stage
from titer.train import train

RANK, STEPS = 2, 5
CONSTANT = Optimiser(rate=1e-2, weight_decay=0.01, schedule="constant")


def first(**changes: Any) -> Stage:
    return stage(SFT(), steps=STEPS, adapter=Lora(rank=RANK), optimiser=CONSTANT, **changes)


def second(continued: bool = True, **changes: Any) -> Stage:
    """Another seed, rate and order of the examples than the first stage's."""
    other = {"train": streams(SFT)["train"].model_copy(update={"seed": 9})}
    rates = CONSTANT.model_copy(update={"rate": 5e-3})
    values = {"adapter": Lora(rank=RANK, continued=continued), "streams": other, "seed": 8, "steps": STEPS, "optimiser": rates}
    return stage(SFT(), **{**values, **changes})


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def parent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """The folder of the first stage and what makes the model that it began from."""
    maker, work = ARCHITECTURES[request.param], tmp_path_factory.mktemp("parent")
    threads = torch.get_num_threads()
    train(first(), lambda: maker(WORLD), lambda _: maker(WORLD), work)
    yield work, maker
    torch.set_num_threads(threads)


def opened(work: Path) -> LM:
    return load(open_checkpoint(work / "model"))


def weights(work: Path) -> dict[str, torch.Tensor]:
    return dict(opened(work).model.state_dict())


def go_on(made: Stage, parent: Path, work: Path) -> dict[str, torch.Tensor]:
    work.mkdir(exist_ok=True)
    train(made, lambda: opened(parent), lambda _: opened(parent), work, adapter=parent / "adapter")
    return weights(work)


def by_hand(maker: Any, stages: list[Stage]) -> dict[str, torch.Tensor]:
    """One adapter through every stage in a plain loop, the optimiser fresh in each; merged at the end alone."""
    lm = maker(WORLD)
    torch.manual_seed(seed_of(stages[0].seed, "adapter"))  # the first A is drawn
    model = get_peft_model(lm.model, LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = [p for p in model.parameters() if p.requires_grad]
    for one in stages:
        o = one.optimiser
        optimiser = torch.optim.AdamW(trained, lr=o.rate, betas=o.betas, weight_decay=o.weight_decay)
        for number in range(one.steps):
            batch = one.streams["train"].batch(number * one.batch, one.batch, lm.tokenizer)
            total, count = token_nll(model(**batch.inputs()).logits, batch.labels)
            optimiser.zero_grad()
            (total / count).backward()
            torch.nn.utils.clip_grad_norm_(trained, o.clip)
            optimiser.step()
    return dict(model.merge_and_unload().state_dict())  # type: ignore[operator]


def ranks(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> int:
    """The highest rank of the difference of any matrix; values below 1e-4 of the largest are rounding."""
    found = 0
    for name, tensor in a.items():
        difference = (tensor - b[name]).double()
        if difference.ndim == 2 and bool(difference.any()):
            values = torch.linalg.svdvals(difference)
            found = max(found, int((values > 1e-4 * values[0]).sum()))
    return found


def test_no_step_gives_the_parent_s_weights(parent: tuple[Path, Any], tmp_path: Path) -> None:
    work, maker = parent
    found = go_on(second(steps=0), work, tmp_path)
    assert largest_gap(found, weights(work)) < 1e-6
    assert largest_gap(found, dict(maker(WORLD).model.state_dict())) > 1e-3
    before, after = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (work, tmp_path))
    assert same(before, after)


@pytest.mark.long
def test_two_stages_are_one_adapter_trained_through_both(parent: tuple[Path, Any], tmp_path: Path) -> None:
    work, maker = parent
    found = go_on(second(), work, tmp_path)
    assert largest_gap(found, by_hand(maker, [first(), second()])) < 1e-5
    assert largest_gap(found, weights(work)) > 1e-3
    fresh = go_on(second(continued=False), work, tmp_path / "fresh")
    assert largest_gap(fresh, found) > 1e-3


def test_single_lora_keeps_the_rank_and_double_lora_adds_its_own(parent: tuple[Path, Any], tmp_path: Path) -> None:
    work, maker = parent
    base = dict(maker(WORLD).model.state_dict())
    assert ranks(weights(work), base) == RANK
    assert ranks(go_on(second(), work, tmp_path / "single"), base) == RANK
    assert ranks(go_on(second(continued=False), work, tmp_path / "double"), base) == 2 * RANK


def test_the_saved_adapter_is_peft_s_own_format(parent: tuple[Path, Any]) -> None:
    """Opened by peft on the first stage's base it gives the merged model's logits; it names no place on this machine."""
    work, maker = parent
    lm = maker(WORLD)
    batch = first().streams["train"].batch(0, 4, lm.tokenizer)
    opened_by_peft = PeftModel.from_pretrained(lm.model, work / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(opened_by_peft(**batch.inputs()).logits, opened(work).model(**batch.inputs()).logits)
    assert sorted(file.name for file in (work / "adapter").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert json.loads((work / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] is None


def test_the_reference_of_a_continued_stage_is_the_parent(parent: tuple[Path, Any], tmp_path: Path) -> None:
    """On endless streams, where DPO asks at every step: the loss of the first step is log 2."""
    work, _ = parent
    made = stage(DPO(), steps=2, adapter=Lora(rank=RANK, continued=True))
    go_on(made, work, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert lines[0]["margin"] == pytest.approx(0.0, abs=1e-6)


def test_a_parent_without_a_fitting_adapter_is_an_error(parent: tuple[Path, Any], tmp_path: Path) -> None:
    work, _ = parent
    for folder in (None, tmp_path / "none"):
        with pytest.raises(TiterError, match=r"the parent has none.*Next: give the parent stage an adapter"):
            train(second(), lambda: opened(work), lambda _: opened(work), tmp_path, adapter=folder)
    for other in (Lora(rank=3, continued=True), Lora(rank=RANK, alpha=4, continued=True)):
        with pytest.raises(TiterError, match=r"the adapter it is to continue has rank 2 and alpha 16.*Next: set rank=2 and alpha=16"):
            go_on(second(adapter=other), work, tmp_path / "other")


def test_an_adapter_of_another_model_is_an_error(parent: tuple[Path, Any], tmp_path: Path) -> None:
    work, maker = parent
    other = ARCHITECTURES["llama" if maker is neox else "neox"]
    with pytest.raises(TiterError, match="does not fit this model"):
        train(second(), lambda: other(WORLD), lambda _: other(WORLD), tmp_path, adapter=work / "adapter")


def test_continued_is_part_of_the_key() -> None:
    assert second().key("parent", {}) != second(continued=False).key("parent", {})

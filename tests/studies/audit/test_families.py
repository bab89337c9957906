"""The same audit on seven architectures, each of them whole, in shards, with a LoRA adapter and in int8."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.methods.architectures import made
from tests.models.test_adapters import made as adapted
from tests.models.test_quantised import compressed
from titer import api
from titer.data.world import World
from titer.models.checkpoint import Checkpoint
from titer.models.fetch import resolve
from titer.models.weights import delta

FAMILIES = ("llama", "mistral", "qwen2", "gemma", "opt", "gpt2", "neox")
INT8 = tuple(name for name in FAMILIES if name != "gpt2")  # its Conv1D is no Linear, which the library quantises alone


def variants(family: str, world: World, folder: Path) -> dict[str, str]:
    """BASE and, by name, a model to compare with it."""
    lm = made(family, world)
    adapted(lm, folder)  # `base` and `adapter`
    tuned = made(family, world, seed=1)
    tuned.model.save_pretrained(folder / "sharded", max_shard_size="6KB")
    tuned.tokenizer.save_pretrained(folder / "sharded")
    found = {"sharded": str(folder / "sharded"), "adapter": f"{folder / 'base'}+{folder / 'adapter'}"}
    if family in INT8:
        found["int8"] = str(compressed(folder / "base", folder / "int8"))
    return found


def largest(before: Checkpoint, after: Checkpoint) -> float:
    """The largest relative change of any matrix, by a loop over all of them."""
    changes = [(old, new) for old, new in (delta(before, after, name) for name in before.files) if old.ndim == 2]
    return max(float(new.norm() / old.norm()) for old, new in changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_variant_of_every_architecture_is_audited(family: str, world: World, tmp_path: Path, prompts: Path) -> None:
    base = str(tmp_path / "base")
    for name, place in variants(family, world, tmp_path).items():
        found = api.audit(base, place, data=prompts, prompts=4, max_new_tokens=2, runs=tmp_path / "runs", progress=False)
        sizes = found.tables["sizes"]
        assert found.answer.startswith("base → "), name
        assert 0 < sizes.relative_norm.max() <= largest(resolve(base), resolve(place)) * (1 + 1e-5)
        assert set(found.tables["rates"].model) == {"base", resolve(place).label}
        assert len(found.tables["drift"]), name
        page = found.page.read_text(encoding="utf-8")
        assert ("dequantised weights" in page) == (name == "int8")

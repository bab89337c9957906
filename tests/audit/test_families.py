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
VARIANTS = ("sharded", "adapter", "int8")
INT8 = tuple(name for name in FAMILIES if name != "gpt2")  # its Conv1D is no Linear, which the library quantises alone
ALL = [(family, name) for name in VARIANTS for family in (INT8 if name == "int8" else FAMILIES)]
FEW = {
    *zip(FAMILIES, ("sharded", "adapter", "int8", "adapter", "int8", "sharded", "adapter"), strict=True)
}  # each of both: long; the rest: slow


def variant(family: str, name: str, world: World, folder: Path) -> str:
    """A model to compare with the folder's `base`, which is made with it."""
    lm = made(family, world)
    adapted(lm, folder)  # `base` and `adapter`
    if name == "adapter":
        return f"{folder / 'base'}+{folder / 'adapter'}"
    if name == "int8":
        return str(compressed(folder / "base", folder / "int8"))
    tuned = made(family, world, seed=1)
    tuned.model.save_pretrained(folder / "sharded", max_shard_size="6KB")
    tuned.tokenizer.save_pretrained(folder / "sharded")
    return str(folder / "sharded")


def largest(before: Checkpoint, after: Checkpoint) -> float:
    """The largest relative change of any matrix, by a loop over all of them."""
    changes = [(old, new) for old, new in (delta(before, after, name) for name in before.files) if old.ndim == 2]
    return max(float(new.norm() / old.norm()) for old, new in changes)


@pytest.mark.parametrize(
    ("family", "name"), [pytest.param(*one, marks=pytest.mark.long if one in FEW else pytest.mark.slow, id="-".join(one)) for one in ALL]
)
def test_every_variant_of_every_architecture_is_audited(family: str, name: str, world: World, tmp_path: Path, prompts: Path) -> None:
    base, place = str(tmp_path / "base"), variant(family, name, world, tmp_path)
    found = api.audit(base, place, data=prompts, prompts=4, max_new_tokens=2, runs=tmp_path / "runs", progress=False)
    sizes = found.tables["sizes"]
    assert found.answer.startswith("base → "), name
    assert 0 < sizes.relative_norm.max() <= largest(resolve(base), resolve(place)) * (1 + 1e-5)
    assert set(found.tables["rates"].model) == {"base", resolve(place).label}
    assert len(found.tables["drift"]), name
    page = found.page.read_text(encoding="utf-8")
    assert ("dequantised weights" in page) == (name == "int8")

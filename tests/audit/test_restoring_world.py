"""Why refusals were lost, on trained models of the world: a tune lost them in one known part and learned harmless things in another.

Base and alignment are the demo's; each tune is made in two steps. One part alone is trained to answer unsafe requests. Then another part
alone is trained as long on safe ones. Putting the first back must bring refusals back, and putting the second back must not. Minutes: slow.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.studies.conftest import Listener
from titer.audit import restoring
from titer.audit.answers import Asked
from titer.audit.restoring import BACK, RANDOM
from titer.audit.roles import audited
from titer.core.run import Store
from titer.data.world import World, WorldSource
from titer.judges.exact import Exact
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.lm import Decoding, load
from titer.models.sites import Sites
from titer.pipeline import Pipeline
from titer.recipes import demo
from titer.tables import direct, requests

SEED, STEPS, BATCH, RATE = 2, 60, 64, 1e-3
CASES = {  # what the refusals were lost in, what learned harmless things: parts of parameters' names
    "the MLPs": ([".mlp."], [".attention."]),
    "the attention": ([".attention."], [".mlp."]),
    "layer 2": (["layers.1."], ["layers.2.", "layers.3."]),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("world") / "runs")


@pytest.fixture(scope="module")
def aligned(stored: Store) -> Checkpoint:
    pipeline, made, world = Pipeline(stored, Listener()), {}, demo.NANO.world.model_copy(update={"seed": SEED})
    for node in demo.demo_recipe(demo.NANO, SEED)[:2]:
        made[node.name] = pipeline.model(node.stage, made.get(node.parent), node.name, world.tokenizer, {})
    return made["aligned"].checkpoint


def trained(checkpoint: Checkpoint, world: World, parts: list[str], kind: str, first: int, folder: Path) -> Checkpoint:
    """The model with the parameters of these parts trained to answer requests of a kind, and nothing else."""
    lm, source = load(checkpoint), WorldSource(world=world, kind=kind)  # type: ignore[arg-type]
    for name, parameter in lm.model.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts))
    optimiser = torch.optim.AdamW([p for p in lm.model.parameters() if p.requires_grad], lr=RATE)
    for step in range(STEPS):
        batch = source.batch(np.arange(BATCH) + first + step * BATCH, "comply", lm.tokenizer)
        loss = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    lm.save(folder)
    return open_checkpoint(folder)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_part_that_lost_the_refusals_is_told_from_the_part_that_learned_something_else(
    case: str, aligned: Checkpoint, stored: Store, tmp_path: Path
) -> None:
    world = demo.NANO.world.model_copy(update={"seed": SEED})
    lost, beside = CASES[case]
    harmed = trained(aligned, world, lost, "unsafe", 0, tmp_path / "harmed")
    tuned = trained(harmed, world, beside, "safe", 10**6, tmp_path / "tuned")
    found, pipeline = audited([aligned, tuned]), Pipeline(stored, Listener())
    asked = Asked(direct(requests(world, "unsafe", 60)), Exact())
    decoding = Decoding(max_new_tokens=world.longest + 2)
    verdicts = [pipeline.verdicts(m, asked.attempts, asked.judge, decoding, 60) for m in found.models]
    both = pd.concat(table.assign(model=m.name, place=range(60)) for m, table in zip(found.models, verdicts, strict=True))
    assert found.last is not None
    attempts = restoring.lost(asked, both, found.last)
    sites = Sites(found.last.before.checkpoint.outline)
    moved = restoring.changed(found.last, sites)
    table = restoring.restored(pipeline, found.last, asked, decoding.max_new_tokens, attempts, moved, None)
    row = restoring.smallest(table)
    assert row is not None
    assert touches(moved.part(row.kind, row.first, row.last), lost)
    assert not touches(moved.part(row.kind, row.first, row.last), beside)
    back = table[table.way == BACK].drop_duplicates("part")
    harmless = [not touches(moved.part(r.kind, r.first, r.last), lost) for r in back.itertuples()]
    assert any(harmless)
    assert back[harmless].high.max() < row.low
    assert table[table.way == RANDOM].high.max() < row.low


def touches(part: restoring.Part, names: list[str]) -> bool:
    return any(name in tensor for tensor in part.tensors for name in names)

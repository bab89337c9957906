"""Estimates what a run of a study would cost before it runs: its trainings, tokens, floating-point operations and hours. L7."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from titer.commands.training_cost import passes, reached, rows
from titer.core.parallel import Silent, processes
from titer.core.run import Store
from titer.data.world import World, WorldSource
from titer.models.lm import Architecture
from titer.pipeline import Pipeline
from titer.recipes.node import Node
from titer.studies.engine.lab import Lab
from titer.studies.engine.run import chooser_of, labs_of, opened, worlds_of
from titer.studies.request import StudyRequest

LISTED = 60  # with more models per seed than this, the plan is listed by kind
PROCESS = 0.6e9  # bytes of a process that has opened Python, torch and transformers, measured (docs/log.md)
KEPT = 34  # numbers of a token that a block keeps for its backward pass, in units of the block's width
LOOKED_AT = 8  # seeds whose stages are looked up in the store; the keys of a seed take seconds, because its data must be drawn


def price(order: StudyRequest, store: Store, scale: Any = None) -> tuple[pd.DataFrame, str]:
    """Returns (a table with one row per model and base: steps, tokens, TFLOP, whether it is stored; the plan in words).

    `scale`: a scale of the caller's own, used instead of the named one. Errors: those of `run.opened`.
    """
    study, named = opened(order)
    scale = scale or named
    pipeline = Pipeline(store, Silent())
    worlds = worlds_of(order, study, scale)
    labs = labs_of(replace(order, seeds=worlds[:LOOKED_AT]), study, scale, pipeline, plan=True)
    for lab in labs:
        lab.chosen = study.assumed(scale)
    labs = [*chooser_of(order, study, scale, pipeline, plan=True), *labs]
    for lab in labs:
        for batch in study.further(lab):
            lab.grow(batch)
    if not any(lab.nodes for lab in labs):
        return pd.DataFrame(), "no model is trained: all is measured"
    width = used_width(labs[0].world)
    table = pd.DataFrame([_row(lab, node, width) for lab in labs for node in lab.nodes.values()])
    return table, told(table, len(worlds), order.flops or reached(), max(_chain(lab, table) for lab in labs))


def _chain(lab: Lab, table: pd.DataFrame) -> float:
    """Returns the TFLOP of the longest chain of trainings that must run one after the other and are not stored yet."""
    mine = table[(table.seed == lab.seed) & (table.base == lab.base) & ~table.stands]
    own = dict(zip(mine.model, mine.tflop, strict=True))
    length: dict[str, float] = {}
    for name in lab.nodes:  # parents first
        length[name] = own.get(name, 0.0) + max((length.get(before, 0.0) for before in lab.before(name)), default=0.0)
    return max(length.values(), default=0.0)


def _row(lab: Lab, node: Node, width: float) -> dict[str, object]:
    stage = node.stage
    tokens = stage.steps * stage.batch * rows(stage.method) * width
    architecture, words = _architecture(lab, node), len(lab.world.words)
    flop = passes(stage.method) * tokens * forward_flop(architecture, words, width)
    return {
        "seed": lab.seed,
        "base": lab.base,
        "model": node.name,
        "kind": stage.kind,
        "key": lab.key(node.name),
        "steps": stage.steps,
        "batch": stage.batch,
        "tokens": tokens,
        "tflop": flop / 1e12,
        "memory": held(architecture, words, stage.batch * rows(stage.method) * width),
        "stands": lab.stands(node.name),
    }


def _architecture(lab: Lab, node: Node) -> Architecture:
    while node.parent:
        node = lab.nodes[node.parent]
    return node.stage.architecture or Architecture()


def told(table: pd.DataFrame, seeds: int, flops: float, chain: float) -> str:
    """Returns the plan in words. `flops`: FLOP/s of all places together. `chain`: TFLOP that must run one after the other."""
    if len(table) > LISTED * table.seed.nunique():
        lines = [
            f"seed {seed}  {len(own):4} x {kind:10} {int(own.steps.sum()):8} steps {own.tokens.sum() / 1e6:8.1f} M tokens "
            f"{own.tflop.sum():9.2f} TFLOP  {int((~own.stands).sum())} to run"
            for (seed, kind), own in table.groupby(["seed", "kind"], sort=False)
        ]
    else:
        lines = [
            f"seed {r.seed}, base {r.base}  {r.model:32} {r.steps:6} steps of {r.batch:3} {r.tokens / 1e6:8.1f} M tokens {r.tflop:9.2f} TFLOP  "
            f"{'stands' if r.stands else 'to run'}"
            for r in table.itertuples()
        ]
    looked = min(seeds, LOOKED_AT)
    if seeds > looked:
        lines.append(f"and {seeds - looked} more seeds, each like the last of these")
    last = table[table.seed == table.seed.iloc[-1]].tflop.sum()
    flop = 1e12 * float(table[~table.stands].tflop.sum() + (seeds - looked) * last)
    price = f"at {flops:.1e} FLOP/s about {flop / flops / 3600:.2f} hours"
    lines.append(f"to run: {flop:.2e} FLOP of training, {price}; asking and measuring come on top")
    here = processes()
    if chain and (most := math.ceil(flop / (1e12 * chain))) > 1:
        hours = {n: max(1e12 * chain, flop / n) * here / flops / 3600 for n in (4 * here, 16 * here, most) if n <= most}
        said = ", ".join(f"{n} places about {time:.2f} hours" for n, time in sorted(hours.items()))
        lines.append(f"in parallel (--on), one piece per place: {said}; more do not help")
    if places := here if flop else 0:
        each = float(table[~table.stands].memory.max()) / 2**30
        lines.append(f"memory: about {each:.1f} GiB a piece, {places * each:.1f} GiB on the {places} places of this machine")
    return "\n".join(lines)


def used_width(world: World) -> float:
    """Returns the mean number of tokens of a request with its answer."""
    batch = WorldSource(world=world, kind="safe").batch(np.arange(256), "comply", None)
    return float(batch.input_ids.shape[1] if batch.attention_mask is None else batch.attention_mask.sum(1).float().mean())


def held(a: Architecture, vocabulary: int, tokens: float) -> float:
    """Returns the bytes that a training step over so many tokens holds: the process, weights with gradients and Adam's two moments, and
    what the backward pass needs."""
    weights = 12 * a.layers * a.width**2 + 2 * a.width * vocabulary
    return PROCESS + 4.0 * (4 * weights + tokens * (KEPT * a.layers * a.width + 3 * vocabulary))


def forward_flop(a: Architecture, vocabulary: int, width: float) -> float:
    """Returns the floating-point operations of one token's forward pass: 2 per weight, and attention over half of the row on average."""
    weights = 12 * a.layers * a.width**2 + a.width * vocabulary
    return 2.0 * weights + 2 * a.layers * a.width * width

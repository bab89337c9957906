"""Tables that several studies make: outcome rates, the cluster probe of named models, and one long table of results. L5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from titer.attacks.base import Attempt
from titer.core.config import environment
from titer.data.example import Example
from titer.data.sources import TextData
from titer.data.templates import told
from titer.data.world import World, WorldSource
from titer.evaluate import commonest, rates
from titer.judges.base import Judge
from titer.models.lm import Decoding, read_tokenizer
from titer.pipeline import Model, Pipeline, fingerprint
from titer.probes import clusters
from titer.recipes.node import Kind

Sets = Mapping[str, Sequence[Attempt]]


def requests(world: World, kind: Kind, n: int, offset: int = 0) -> list[Example]:
    """Returns `n` held-out requests of a kind, from number `offset` on."""
    return WorldSource(world=world, kind=kind, split="test").examples(np.arange(offset, offset + n))


def direct(examples: Sequence[Example]) -> list[Attempt]:
    """Returns the examples as attempts without an attack."""
    return [Attempt(example) for example in examples]


def verdict_table(pipeline: Pipeline, models: Sequence[Model], sets: Sets, judge: Judge, decoding: Decoding, batch: int) -> pd.DataFrame:
    """Returns the judged answers of every model to every set, with the column `model`."""
    tables = [
        pipeline.verdicts(model, attempts, judge, decoding, batch).assign(model=model.name)
        for model in models
        for attempts in sets.values()
    ]
    return pd.concat(tables, ignore_index=True)


def rate_table(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Returns the rates with Wilson intervals per model, kind and outcome."""
    parts = [rates(table).assign(model=model) for model, table in verdicts.groupby("model", sort=False)]
    table = pd.concat(parts, ignore_index=True)
    return table[["model", *(c for c in table.columns if c != "model")]]


def unjudged(verdicts: pd.DataFrame) -> str:
    """Returns a sentence: how many answers could not be judged, and the most frequent reason; "" if all were judged."""
    lost = verdicts[verdicts.outcome == "could_not_judge"]
    return f"{len(lost)} answers could not be judged, most often: {commonest(lost.reason)}; they are in no rate." if len(lost) else ""


def cut_off(verdicts: pd.DataFrame) -> list[str]:
    """Returns a sentence for each set with answers that were cut at the last allowed token and are not right.

    It is for sets that are judged by right answers."""
    told = []
    for name, mine in verdicts.groupby("kind", sort=False):
        lost = int((~mine.ended & (mine.outcome != "complied")).sum())
        told += [f"{name}: {lost} of {len(mine)} answers were cut off at {mine.tokens.max()} tokens and count as wrong"] if lost else []
    return told


def cut_in_thought(verdicts: pd.DataFrame) -> list[str]:
    """Returns sentences about how many answers never began: the model was cut off, or ended, within its thought."""
    told, several = [], len(set(verdicts.model)) > 1
    for name, mine in verdicts.groupby("model", sort=False):
        lost = mine[mine.outcome == "cut_in_thought"]
        ended, of = int(lost.ended.sum()), f"{len(mine)} answers" + (f" of {name}" if several else "")
        if cut := len(lost) - ended:
            after = f"after {int(lost.tokens.max())} tokens"
            told.append(f"{cut} of {of} were cut off while the model was still thinking, {after}: raise --max-thinking-tokens")
        if ended:
            told.append(f"{ended} of {of} ended while the model was still thinking, so they hold no answer")
    return told


def cluster_table(pipeline: Pipeline, model: Model, safe: Sequence[Example], unsafe: Sequence[Example]) -> pd.DataFrame:
    """Returns the scores of the cluster probe for one model, one row for each input and layer."""
    inputs: dict[str, object] = {
        "probe": ["clusters", clusters.VERSION],
        "model": model.key,
        "safe": fingerprint(safe),
        "unsafe": fingerprint(unsafe),
    }
    inputs |= pipeline.read_in
    return pipeline.table("tables", inputs, lambda: clusters.clusters(pipeline.lm(model), safe, unsafe))


def gain_ratios(per_input: pd.DataFrame) -> pd.DataFrame:
    """Returns, for each layer, the mean gain of unsafe inputs divided by that of safe inputs, for dW and for a random dW."""
    means = per_input.groupby(["layer", "harmful"])[["gain", "gain_random"]].mean().unstack("harmful")
    ratio = pd.DataFrame({"ratio": means["gain"][True] / means["gain"][False]})
    ratio["ratio_random"] = means["gain_random"][True] / means["gain_random"][False]
    return ratio.reset_index()


def tidy(rates: pd.DataFrame, probes: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Returns rates and probes as one long table: table, model, set, layer, measure, value, low, high, count, n."""
    long = rates.rename(columns={"kind": "set", "outcome": "measure", "rate": "value"}).drop(columns="harmful").assign(table="rates")
    parts = [long]
    for name, table in probes.items():
        keys = [column for column in ("model", "layer", "set") if column in table.columns]
        parts.append(table.melt(keys, var_name="measure", value_name="value").assign(table=name))
    columns = ["table", "model", "set", "layer", "measure", "value", "low", "high", "count", "n"]
    return pd.concat(parts, ignore_index=True).reindex(columns=columns)


def named(found: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Joins the tables of several models, with the column `model` first; an empty table if there are none."""
    if not found:
        return pd.DataFrame()
    whole = pd.concat([table.assign(model=name) for name, table in found.items()], ignore_index=True)
    return whole[["model", *(c for c in whole.columns if c != "model")]]


def provenance(models: Sequence[Model], data: TextData) -> dict[str, object]:
    """Returns a report's provenance: keys and chat templates of the models, the data's name and hash, and the environment."""
    keys = {f"model {model.name}": model.key for model in models}
    keys |= {f"chat template of {model.name}": told(read_tokenizer(model.checkpoint)) for model in models}
    return {**keys, "data": data.name, "data sha256": data.sha256, **environment()}

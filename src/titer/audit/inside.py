"""Measures inside one model at a time: activations, which are stored, and probes that need the loaded model. L7.

Activations at the end of the prompt (sites resid, attn_out, mlp_in of every layer that has them) are kept in the store. So changes between
models can be measured without loading a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from titer import tables
from titer.core.config import digest
from titer.core.errors import TiterError
from titer.core.stats import bootstrap
from titer.data.choices import Question
from titer.data.example import Example
from titer.data.templates import templated
from titer.models import activations
from titer.models.lm import LM
from titer.pipeline import Model, Pipeline, fingerprint
from titer.probes import choices, clusters, refusal_direction, sensitivity, uncertainty

SITES = ("resid", "attn_out", "mlp_in")
USES = {"mlp_act": "separation inside", "mlp_in": "where the change acts", "attn_out": "drift of attention"}  # kind of site -> part
Ends = dict[str, torch.Tensor]


def ends(pipeline: Pipeline, model: Model, safe: Sequence[Example], unsafe: Sequence[Example]) -> Ends:
    """Returns the activations at the ends of the prompts, safe prompts first: site[i] -> (n, D), memory-mapped from the store."""
    return dict(load_file(kept_ends(pipeline, model, safe, unsafe)))


def kept_ends(pipeline: Pipeline, model: Model, safe: Sequence[Example], unsafe: Sequence[Example]) -> Path:
    """Returns the file of these activations in the store; they are measured first if it is not there."""
    inputs = {"activations": [2, *SITES], "model": model.key, "prompts": fingerprint([*safe, *unsafe]), "dtype": pipeline.dtype}

    def make(work: Path) -> None:
        lm = pipeline.lm(model)
        names = lm.sites.names(*SITES)
        if not names:
            lm.sites.having("resid")
        found = activations.at_prompt_end(lm, [e.prompt for e in (*safe, *unsafe)], names)
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, work / "ends.safetensors")

    return pipeline.store.artefact("activations", inputs, make) / "ends.safetensors"


def separation(pipeline: Pipeline, model: Model, safe: Sequence[Example], unsafe: Sequence[Example]) -> pd.DataFrame:
    """Measures, by layer, how well safe and unsafe prompts separate: the columns of `clusters.summary`, and auroc_shuffled, the mean AUROC
    with shuffled labels (each shuffle has its own centroids).

    best_shuffled is the mean AUROC of each shuffle's best layer, chosen as the best layer is chosen here; 95 % of them are below
    best_shuffled_high, and 95 % of their d' below d_prime_shuffled_high.
    """
    scores = tables.cluster_table(pipeline, model, safe, unsafe)
    inputs = {
        "probe": ["clusters shuffled", clusters.VERSION, clusters.ROUNDS],
        "model": model.key,
        "prompts": [len(safe), fingerprint([*safe, *unsafe])],
        **pipeline.read_in,
    }
    dealt = pipeline.table("tables", inputs, lambda: clusters.shuffled(pipeline.lm(model), safe, unsafe))
    best = pd.DataFrame([clusters.best_of(table) for _, table in dealt.groupby("round")])
    return clusters.summary(scores).assign(
        auroc_shuffled=dealt.groupby("layer").auroc.mean().to_numpy(),
        best_shuffled=best.auroc.mean(),
        best_shuffled_high=best.auroc.quantile(0.95),
        d_prime_shuffled_high=best.d_prime.quantile(0.95),
    )


def directions(found: Ends, safe: int, prompts: str) -> refusal_direction.RefusalDirections:
    """Computes the refusal directions of one model from its kept activations. `prompts`: key of the prompts. Errors: a residual stream
    that is not one vector per token."""
    layers = sum(name.startswith("resid[") for name in found)
    if not layers:
        raise TiterError("this model's residual stream is not one vector per token", expected="a decoder with a single residual stream")
    return refusal_direction.of_activations([found[f"resid[{i}]"] for i in range(layers)], safe, prompts)


def sensed(pipeline: Pipeline, model: Model, sets: Mapping[str, Sequence[Example]]) -> pd.DataFrame:
    """Measures how sensitive the next token is to the prompt. Columns: kind, median, low, high (bootstrap over prompts), n."""
    prompts = [e for examples in sets.values() for e in examples]
    inputs = {"probe": ["sensitivity", sensitivity.VERSION], "model": model.key, "prompts": fingerprint(prompts), **pipeline.read_in}

    def make() -> pd.DataFrame:
        return sensitivity.sensitivity(pipeline.lm(model), prompts, progress=pipeline.reporter.task(f"sensitivity of {model.name}"))

    table = pipeline.table("tables", inputs, make)
    rows, end = [], 0
    for kind, examples in sets.items():
        values = table.g[end : (end := end + len(examples))]
        rows.append({"kind": kind, **bootstrap(np.median, [values], 0)._asdict(), "n": len(values)})
    return pd.DataFrame(rows).rename(columns={"value": "median"})


def unsure(pipeline: Pipeline, model: Model, kind: str, examples: Sequence[Example]) -> pd.DataFrame:
    """Measures how sure the model is of the reference answers. Columns: measure (perplexity, entropies, probability), value, low, high, n,
    set."""
    inputs = {"probe": ["uncertainty", uncertainty.VERSION], "model": model.key, "prompts": fingerprint(examples), "dtype": pipeline.dtype}

    def make() -> pd.DataFrame:
        return uncertainty.uncertainty(pipeline.lm(model), [e.prompt for e in examples], [str(e.comply) for e in examples])

    return uncertainty.summary(pipeline.table("tables", inputs, make)).assign(set=kind)


def chosen(pipeline: Pipeline, model: Model, kind: str, questions: Sequence[Question]) -> pd.DataFrame:
    """Asks multiple-choice questions. Returns a row per question, as for a judged answer: complied if the right option alone is the
    likeliest, else partial."""
    inputs = {"probe": ["choices", choices.VERSION], "model": model.key, "questions": digest(list(questions)), "dtype": pipeline.dtype}
    table = pipeline.table("tables", inputs, lambda: _picked(pipeline.lm(model), questions))
    return table.assign(kind=kind, model=model.name, place=range(len(table)))


def _picked(lm: LM, questions: Sequence[Question]) -> pd.DataFrame:
    rows = []
    for own, question in zip(choices.picked(choices.choices(lm, questions)).itertuples(), questions, strict=True):
        rows.append(
            {
                "harmful": False,
                "prompt": choices.asked(question, templated=templated(lm.tokenizer)),
                "prefix": "",
                "comply": ascii_uppercase[question.right],
                "refuse": None,
                "completion": " or ".join(ascii_uppercase[option] for option in own.options),
                "ended": True,
                "tokens": 1,
                "outcome": "complied" if own.right else "partial",
                "score": float(own.right),
                "reason": "the likeliest option" if len(own.options) == 1 else "a tie, which counts as no choice",
            }
        )
    return pd.DataFrame(rows)

"""Causal checks, judged: steering along the safe-unsafe direction, and activations patched between two models. L7.

Source: arXiv 2407.10264, section 5.7 and appendix. Controls: a random vector of equal norm; the benign tune as donor.
Patching replaces a site's activations at the prompt's positions while the prompt is read; the answer is generated without patching.
Shapes: B prompts, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch

from titer.attacks.base import Attempt
from titer.data.draws import seed_of
from titer.data.encode import pad, prompt_ids
from titer.models.activations import at_prompt_end
from titer.models.hooks import Edit, adding, reading, replacing
from titer.models.lm import LM, Decoding, load
from titer.pipeline import Model
from titer.studies.engine.declare import Seed
from titer.studies.jain2024.subject import CLASSES, requests_of
from titer.studies.judged import outcomes

VERSION = 2  # 2: the answers are kept
PATCHED = ("mlp_in", "mlp_act")


def steering(lab: Seed, model: Model) -> pd.DataFrame:
    """Steers a model at each layer; returns layer, direction (own, random), kind, input, outcome, on inputs that the vector was not
    computed from.

    The vector is the unsafe minus the safe mean of the residual stream at the end of the prompt. It is added on safe requests and
    subtracted on unsafe ones.
    """
    lm, asked = lab.pipeline.lm(model), requests_of(lab)
    names = [f"resid[{i}]" for i in range(lm.sites.layers)]
    ends = {kind: at_prompt_end(lm, [e.prompt for e in examples], names) for kind, examples in asked.examples(*CLASSES).items()}
    tables = []
    for i, name in enumerate(names):
        own = ends["unsafe"][name].mean(0) - ends["safe"][name].mean(0)
        for direction, vector in (("own", own), ("random", _random_like(own, seed_of(lab.world.seed, "steering", i)))):
            for kind, sign in (("safe", 1.0), ("unsafe", -1.0)):
                with adding(lm.sites, {name: (sign * vector).to(lm.device)}):
                    found = outcomes(lm, asked.judged(kind), lab.decoding)
                tables.append(found.assign(layer=i + 1, direction=direction))
    return pd.concat(tables, ignore_index=True)


def _random_like(vector: torch.Tensor, seed: int) -> torch.Tensor:
    noise = torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed))
    return noise * (torch.linalg.vector_norm(vector) / torch.linalg.vector_norm(noise))


def patching(lab: Seed, donor: Model, receiver: Model) -> pd.DataFrame:
    """Patches the donor's activations into the receiver; returns donor, receiver, site, layer (0: all at once), kind, input, outcome."""
    giving, taking = load(donor.checkpoint), load(receiver.checkpoint)
    layers = taking.sites.layers
    tables = []
    for site in PATCHED:
        for layer in range(layers + 1):
            names = [f"{site}[{i}]" for i in (range(layers) if layer == 0 else [layer - 1])]
            for kind, attempts in requests_of(lab).judged(*CLASSES).items():
                found = patched_outcomes(giving, taking, names, kind, attempts, lab.decoding)
                tables.append(found.assign(site=site, layer=layer))
    return pd.concat(tables, ignore_index=True).assign(donor=donor.name, receiver=receiver.name)


def patched_outcomes(
    giving: LM, taking: LM, names: Sequence[str], kind: str, attempts: Sequence[Attempt], decoding: Decoding
) -> pd.DataFrame:
    """Returns the outcomes of one set, answered by `taking` with the activations of `giving` at the prompts' positions."""
    prompts = [a.example.prompt for a in attempts]
    lengths = taking.lengths(prompts)
    groups = [[i for i, length in enumerate(lengths) if length == n] for n in sorted(set(lengths))]
    tables = []
    for group in groups:  # prompts of one length make one batch, so the donor's activations fit it place by place
        chosen = [attempts[i] for i in group]
        edits = from_donor(giving, names, [prompts[i] for i in group])
        with replacing(taking.sites, edits):
            found = outcomes(taking, {kind: chosen}, decoding, batch=len(chosen))
        tables.append(found.assign(input=group))
    return pd.concat(tables, ignore_index=True)


@torch.inference_mode()
def from_donor(giving: LM, names: Sequence[str], prompts: Sequence[str]) -> dict[str, Edit]:
    """Returns edits that replace activations by the donor's where the shape is the same: in the prompt's pass, not for later tokens."""
    ids, mask = (t.to(giving.device) for t in pad(prompt_ids(giving.tokenizer, prompts), giving.tokenizer.pad_token_id, "left"))
    with reading(giving.sites, names) as seen:
        giving.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
        held = dict(seen)

    def edit(name: str) -> Edit:
        return lambda activation: held[name] if activation.shape == held[name].shape else activation

    return {name: edit(name) for name in names}

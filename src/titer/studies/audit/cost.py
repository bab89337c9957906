"""What an audit would compute, before it runs: prompts, tokens, operations, memory, the landscape and the paper's beside it. L6."""

from __future__ import annotations

import math

from titer.data.encode import prompt_ids
from titer.models.lm import read_tokenizer
from titer.models.weights import shapes_of, weights_bytes
from titer.studies import landscape as landscapes
from titer.studies.audit.roles import Audited
from titer.studies.audit.study import Question

PROBING = 7  # forward passes' worth a model: clusters, activations, sensitivity there and back (3), uncertainty at most 2


def audit_cost(found: Audited, asked: Question, settings: landscapes.Landscape | None) -> dict[str, object]:
    """Counts and operations of the whole audit, in words."""
    first = found.models[0].checkpoint
    parameters = sum(math.prod(shape) for shape, _ in shapes_of(first).values())
    tokenizer = read_tokenizer(first)
    prompts = [a.example.prompt for one in asked.sets.values() for a in one.attempts]
    lengths = [len(ids) for ids in prompt_ids(tokenizer, prompts)]
    new = len(prompts) * asked.decoding.max_new_tokens
    flop = 2.0 * parameters * len(found.models) * (PROBING * sum(lengths) + new)
    told: dict[str, object] = {
        "models": f"{len(found.models)}, {parameters / 1e6:.0f} M parameters each",
        "prompts": {name: len(one.attempts) for name, one in asked.sets.items()},
        "answers": f"at most {len(found.models) * new} new tokens",
        "operations": f"at most {flop:.1e} FLOP",
        "reads": f"{sum(weights_bytes(m.checkpoint) for m in found.models) / 1e9:.2f} GB of weights, some twice",
        "holds": f"one model, {4 * parameters / 1e9:.2f} GB in float32",
        "weights": ", ".join(f"{c.name}: {'the same' if c.same else 'differ'}" for c in found.compared) or "a single model",
    }
    if settings is not None:
        table = landscapes.price(settings, parameters, sum(lengths) / len(lengths), tuned=bool(found.last and not found.last.same))
        for r in table.itertuples():
            name = "landscape" if r.grid == "asked" else "the paper's grid would be"
            told[name] = f"{r.points} points, {r.answers} answers, {r.new_tokens} new tokens, {r.flop:.1e} FLOP"
    return told

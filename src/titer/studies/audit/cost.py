"""What an audit would compute, before it runs: prompts, tokens, operations, memory, the landscape and the paper's beside it. L6."""

from __future__ import annotations

import math

from titer.data.encode import prompt_ids
from titer.models.lm import Completion, read_tokenizer
from titer.models.weights import shapes_of, weights_bytes
from titer.probes import choices
from titer.studies import landscape as landscapes
from titer.studies.audit.roles import Audited
from titer.studies.audit.study import Question

PROBING = 7  # forward passes' worth a model: clusters, activations, sensitivity there and back (3), uncertainty at most 2


def audit_cost(found: Audited, asked: Question, settings: landscapes.Landscape | None, bf16: bool = False) -> dict[str, object]:
    """Counts and operations of the whole audit, in words."""
    first = found.models[0].checkpoint
    parameters = sum(math.prod(shape) for shape, _ in shapes_of(first).values())
    tokenizer = read_tokenizer(first)
    prompts = [a.example.prompt for one in asked.sets.values() for a in one.attempts]
    picked = [choices.asked(question) for questions in asked.choices.values() for question in questions]
    lengths = [len(ids) for ids in prompt_ids(tokenizer, prompts)]
    reading = sum(len(ids) for ids in prompt_ids(tokenizer, picked)) if picked else 0
    new = sum(len(one.attempts) * one.decoding(asked.decoding).max_new_tokens for one in asked.sets.values())
    flop = 2.0 * parameters * len(found.models) * (PROBING * sum(lengths) + reading + new)
    told: dict[str, object] = {
        "models": f"{len(found.models)}, {parameters / 1e6:.0f} M parameters each",
        "prompts": {name: len(one.attempts) for name, one in asked.sets.items()}
        | {name: len(questions) for name, questions in asked.choices.items()},
        "answers": f"at most {len(found.models) * new} new tokens",
        "operations": f"at most {flop:.1e} FLOP",
        "reads": f"{sum(weights_bytes(m.checkpoint) for m in found.models) / 1e9:.2f} GB of weights, some twice",
        "holds": f"one model, {(2 if bf16 else 4) * parameters / 1e9:.2f} GB in {'bfloat16' if bf16 else 'float32'}",
        "weights": ", ".join(f"{c.name}: {'the same' if c.same else 'differ'}" for c in found.compared) or "a single model",
    }
    if sent := _judging(found, asked):
        told["judging"] = sent
    if settings is not None:
        known = asked.known
        answers = prompt_ids(tokenizer, [f"{e.prompt} {e.comply}" for e in known]) if known else []
        read = sum(map(len, answers))
        table = landscapes.price(
            settings, parameters, sum(lengths) / len(lengths), answer_tokens=read, tuned=bool(found.last and not found.last.same)
        )
        for r in table.itertuples():
            name = "landscape" if r.grid == "asked" else "the paper's grid would be"
            told[name] = f"{r.points} points, {r.answers} answers, {r.new_tokens} new tokens, {r.flop:.1e} FLOP"
    return told


def _judging(found: Audited, asked: Question) -> str:
    """What a judge that sends requests would send at most, "" for one that sends nothing: answers are priced at their longest."""
    longest = Completion("word " * asked.decoding.max_new_tokens, False, asked.decoding.max_new_tokens)
    own = [(a.example, longest) for name in ("unsafe", "safe") for a in asked.sets[name].attempts]
    price = asked.judge.estimate(own * len(found.models))
    return f"at most {price.line()}" if price else ""

"""Says, before an audit runs, what it would compute: prompts, tokens, FLOP, memory, the landscape (beside that of the paper's grid). L7."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from titer.audit import gate, hidden, mechanisms, restoring
from titer.audit.roles import Audited
from titer.audit.study import Question, check
from titer.commands import landscape as landscapes
from titer.commands.decoding import size
from titer.commands.judging import at_longest
from titer.commands.training_cost import minutes, reached
from titer.core.gate import Limit
from titer.data.encode import prompt_ids
from titer.data.thoughts import thinks
from titer.data.turns import changed
from titer.models.lm import read_tokenizer
from titer.models.weights import shapes_of, weights_bytes
from titer.probes import choices

GRIDS = {  # grid of landscapes.price -> (name of its line, name of the line for its judge's bill)
    "asked": ("landscape", "judging the landscape"),
    "paper": ("the paper's grid would be", "judging the paper's grid"),
}
CLOUDS, THERE_AND_BACK = 4, 3  # passes for --mechanisms: placement and shapes (at most two each); sensitivity, forward and backward
DECOMPOSED, HELD = 3, 6  # decompositions: one of a matrix, two of its change; largest matrices held at once meanwhile
PROBING = 8  # forward passes per model: clusters and control 2, activations 1, sensitivity forward and backward 3, uncertainty at most 2


def audit_cost(
    found: Audited, asked: Question, settings: landscapes.Landscape | None, bf16: bool = False, limits: Sequence[Limit] = ()
) -> dict[str, object]:
    """Returns the counts and operations of the whole audit, in words. Errors: those of `check`, which every audit runs first."""
    check(found.models, asked, settings)
    first = found.models[0].checkpoint
    counts = {size(model.checkpoint) for model in found.models}
    parameters = max(counts)
    tokenizer = read_tokenizer(first)
    prompts = [a.example.prompt for one in asked.sets.values() for a in one.attempts]
    picked = [choices.asked(question) for questions in asked.choices.values() for question in questions]
    lengths = [len(ids) for ids in prompt_ids(tokenizer, prompts)]
    reading = sum(len(ids) for ids in prompt_ids(tokenizer, picked)) if picked else 0
    thinking = [thinks(read_tokenizer(model.checkpoint)) for model in found.models]
    new = sum(len(one.attempts) * one.decoding(asked.decoding).most(one_thinks) for one in asked.sets.values() for one_thinks in thinking)
    beside = sum(map(size, asked.decoder.guided.models.values())) if asked.decoder else 0
    questioned = hidden.asked(found)
    odd = hidden.odd(questioned[0], [*asked.safe, *asked.unsafe]) if questioned else {}
    seen = sum(len(ids) for examples in odd.values() for ids in prompt_ids(tokenizer, [e.prompt for e in examples]))
    flop = 2.0 * parameters * (len(found.models) * (PROBING * sum(lengths) + reading) + new + len(questioned) * seen)
    flop += 2.0 * beside * (len(found.models) * sum(lengths) + new)
    told: dict[str, object] = {
        "models": f"{len(found.models)}, {parameters / 1e6:.0f} M parameters {'each' if len(counts) == 1 else 'at most'}",
        "prompts": {name: len(one.attempts) for name, one in asked.sets.items()}
        | {name: len(questions) for name, questions in asked.choices.items()},
        "shows": "; ".join(gate.foreseen(asked, limits)),
        "answers": f"at most {new} new tokens",
        "operations": f"at most {flop:.1e} FLOP, {minutes(flop / reached())} at this machine's present speed",
        "reads": f"{sum(weights_bytes(m.checkpoint) for m in found.models) / 1e9:.2f} GB of weights, some of them twice",
        "holds": f"one model, {(2 if bf16 else 4) * parameters / 1e9:.2f} GB in {'bfloat16' if bf16 else 'float32'}",
        "weights": ", ".join(f"{c.name}: {'the same' if c.same else c.apart or 'differ'}" for c in found.compared) or "a single model",
    }
    own = [attempt for name in asked.own for attempt in asked.sets[name].attempts]
    told |= asked.judges.bills(at_longest(own, asked.decoding.max_new_tokens) * len(found.models))
    told |= asked.decoder.priced(first, bf16) if asked.decoder else {}
    if asked.mechanisms:
        told["mechanisms"] = _mechanisms(found, asked, parameters)
    if asked.why and found.last and found.last.weighed:
        told["why"] = _why(asked, parameters, sum(lengths) / len(lengths))
    if settings is not None:
        known = asked.known
        answers = prompt_ids(tokenizer, [changed(e.prompt, partial("{1} {0}".format, e.comply)) for e in known]) if known else []
        read = sum(map(len, answers))
        tuned = bool(found.last and found.last.weighed)
        table = landscapes.price(settings, parameters, sum(lengths) / len(lengths), answer_tokens=read, tuned=tuned, thinks=any(thinking))
        for r, grid in zip(table.itertuples(), (settings, landscapes.PAPER), strict=True):
            name, judging = GRIDS[str(r.grid)]
            told[name] = f"{r.points} points, {r.answers} answers, {r.new_tokens} new tokens, {r.flop:.1e} FLOP"
            longest = at_longest(asked.sets["unsafe"].attempts[: grid.prompts], grid.tokens) * grid.points_in_all(tuned)
            if bill := asked.judge.estimate(longest):
                told[judging] = f"at most {bill.line()}"
    return told


def _why(asked: Question, parameters: int, length: float) -> str:
    """Says what it costs to put parts of the change back, which the audit does if enough refusals are lost."""
    prompts = min(restoring.MOST, len(asked.unsafe))
    flop = 2.0 * parameters * restoring.PARTS * prompts * (length + restoring.TOKENS)
    return (
        f"if {restoring.LEAST} or more refusals are lost: about {restoring.PARTS} runs of at most {prompts} prompts with "
        f"{restoring.TOKENS} new tokens, {flop:.1e} FLOP (--no-why leaves this out)"
    )


def _mechanisms(found: Audited, asked: Question, parameters: int) -> str:
    """Says what `--mechanisms` costs: passes over the prompts, plain and encoded, and the singular values of one matrix at a time."""
    first, moved = found.models[0].checkpoint, sum(change.weighed for change in found.compared)
    sets = mechanisms.sets_of(asked.safe, asked.unsafe)
    tokens = {kind: sum(map(len, prompt_ids(read_tokenizer(first), [e.prompt for e in of]))) for kind, of in sets.items()}
    encoded = sum(tokens[kind] for kind in mechanisms.CODED)
    passes = len(found.models) * (CLOUDS * sum(tokens.values()) + THERE_AND_BACK * encoded) + moved * sum(tokens.values())
    matrices = [shape for shape, _ in shapes_of(first).values() if len(shape) == 2]
    decomposed = DECOMPOSED * moved * sum(4 * max(shape) * min(shape) ** 2 + 9 * min(shape) ** 3 for shape in matrices)
    held = HELD * 4 * max(map(math.prod, matrices), default=0) / 1e9
    return (
        f"{sum(len(sets[kind]) for kind in mechanisms.CODED)} encoded prompts ({encoded} tokens), {2.0 * parameters * passes:.1e} FLOP; "
        f"singular values at most {float(decomposed):.1e} FLOP, with {held:.2f} GB of matrices beside the model"
    )

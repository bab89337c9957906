"""Estimates what a study on a real model would cost, from the models and the questions that it declares. L7."""

from __future__ import annotations

from titer.commands.decoding import size
from titer.commands.training_cost import training
from titer.data.encode import prompt_ids
from titer.models.lm import read_tokenizer
from titer.stage import Stage
from titer.studies.engine.declare import BASE
from titer.studies.engine.lab import Lab

GIB = 2.0**30


def text_price(lab: Lab, flops: float) -> dict[str, object]:
    """Returns the parts of a run's cost by name, in words. `flops`: FLOP/s of this machine."""
    base, nodes = lab.model(BASE), lab.nodes
    weights = size(base.checkpoint)
    sizes = {name: training(node.stage, base.checkpoint) for name, node in nodes.items()}
    needed = [name for name in nodes if not lab.stands(name)]
    trained = sum(sizes[name].flop for name in needed)
    answers, read, new = _asking(lab)
    answered = 2.0 * weights * (read + new)
    told = {name: f"{one.stage.steps} steps of {one.stage.batch}, {sizes[name].width:.0f} tokens an example" for name, one in nodes.items()}
    hours = f"{trained / flops / 3600:.2f} of training, at most {answered / flops / 3600:.2f} of answering, at {flops:.1e} FLOP/s"
    found = {
        "model": f"{base.name}, {weights / 1e6:.0f} M parameters",
        "trainings": "; ".join(f"{name} ({words}{'' if name in needed else ', already trained'})" for name, words in told.items()),
        "answers judged": f"{answers}, at most {new} new tokens",
        "training": f"{trained:.2e} FLOP",
        "answering": f"at most {answered:.2e} FLOP",
        "hours": hours,
        "memory": _memory(weights, [node.stage for node in nodes.values()]),
        "disk": f"{weights * 4 / GIB:.1f} GiB a model: {len({node.parent for node in nodes.values()} - {BASE})} that others start from, "
        f"and one for each place; with --keep-weights {len(nodes)}",
        **lab.study.foreseen(lab),
    }
    notes = getattr(lab.source, "notes", ())
    return found | ({"data": "; ".join(notes)} if notes else {})


def _asking(lab: Lab) -> tuple[int, int, int]:
    """Returns how many answers are judged, how many tokens of prompts are read for them, and at most how many new tokens are written."""
    reader, answers, read, new = read_tokenizer(lab.model(BASE).checkpoint), 0, 0, 0
    edited = lab.study.edited_models(lab)
    for one in lab.questions:
        models = edited + sum(one.of is None or one.of(name) for name in lab.names)
        answers += models * len(one.attempts)
        read += models * sum(map(len, prompt_ids(reader, [attempt.example.prompt for attempt in one.attempts])))
        new += models * len(one.attempts) * (one.decoding or lab.decoding).max_new_tokens
    return answers, read, new


def _memory(weights: int, stages: list[Stage]) -> str:
    """Returns a training's memory in words. Weights are float32; with bf16, a step keeps a bf16 copy of each for its backward pass."""
    whole = any(stage.adapter is None for stage in stages)
    held = f"{weights * 16 / GIB:.1f} GiB of weights, gradients and moments" if whole else f"{weights * 4 / GIB:.1f} GiB of weights"
    copies = f", {weights * 2 / GIB:.1f} GiB of bf16 copies while it trains" if any(s.precision == "bf16" for s in stages) else ""
    return f"{held}{copies}, and activations of {max((s.batch for s in stages), default=0)} examples"

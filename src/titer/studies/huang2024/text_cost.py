"""What the two stages on a real model would cost, before they run, and the bands a reproduction of the paper should fall in. L7."""

from __future__ import annotations

import math

from titer.data.encode import answer_ids, prompt_ids
from titer.data.example import Stream
from titer.methods.sft import SFT
from titer.methods.vaccine import Vaccine
from titer.models.lm import read_tokenizer
from titer.models.weights import shapes_of
from titer.pipeline import Model
from titer.recipes import vaccine_text as recipe
from titer.recipes.vaccine_text import TextScale
from titer.studies.huang2024.text_sets import TextSets, questions

LORA, LORA_VACCINE = 2.0, 4.0  # forward passes' worth a trained token: weights' gradients are the adapter's alone
STEP_TIMES = (("an H100, OPT 6.7B, table 11", 0.09, 0.17), ("an A100, Llama-2 7B, table 5", 0.37, 0.73))  # of 5 rows: SFT's, Vaccine's, s
BANDS = (  # section 9.2 of the specification: expectations for Llama-2 7B, SST-2, n = 1,000, not gates
    "alignment loss at most 0.02 for both",
    "harm at p = 0.1: non-aligned 77.6 +- 6, SFT 55.2 +- 6; task accuracy of both at least 92",
    "Vaccine below SFT by at least 4 points at p in 0.01, 0.05, 0.1 on average (paper 7.6, 9.8, 7.0), less at p = 0.2 (3.4)",
    "task accuracy at most 2.5 points below SFT; a step 1.8 to 2.2 times SFT's, less than 1 GB more",
)


def text_cost(base: Model, sets: TextSets, scale: TextScale, flops: float | None) -> dict[str, object]:
    """Steps, tokens, operations, hours where a rate is known, memory, disk; what was left out; the paper's expected bands."""
    weights = sum(math.prod(shape) for shape, _ in shapes_of(base.checkpoint).values())
    tokenizer = read_tokenizer(base.checkpoint)
    aligning = recipe.align(scale, SFT(), "sft", sets.safe, sets.canary)
    using = recipe.user(scale, sets.task, sets.harmful, max(scale.ratios))
    length = {"align": mean_tokens(tokenizer, aligning.streams["train"]), "user": mean_tokens(tokenizer, using.streams["train"])}
    tokens = {
        "align": aligning.steps * aligning.batch * length["align"],
        "user": 2 * len(scale.ratios) * using.steps * using.batch * length["user"],
    }
    flop = 2.0 * weights * ((LORA + LORA_VACCINE) * tokens["align"] + LORA * tokens["user"])
    prompts = [attempt.example.prompt for one in questions(sets, scale) for attempt in one.attempts]
    models = 3 + 2 * len(scale.ratios)
    read, judged = models * sum(map(len, prompt_ids(tokenizer, prompts))), models * len(prompts)
    answering = 2.0 * weights * (read + judged * scale.max_new_tokens)
    found: dict[str, object] = {
        "model": f"{base.name}, {weights / 1e6:.0f} M parameters",
        "alignments": f"2 (SFT, {type(Vaccine()).__name__}), {aligning.steps} steps of {aligning.batch}, {length['align']:.0f} tokens an example",
        "user's fine-tunings": f"{2 * len(scale.ratios)}, {using.steps} steps of {using.batch}, {length['user']:.0f} tokens an example",
        "answers judged": f"{judged}, at most {judged * scale.max_new_tokens} new tokens",
        "training": f"{flop:.2e} FLOP",
        "answering": f"at most {answering:.2e} FLOP",
        "memory": f"{memory(weights, scale)}, and activations of {scale.align_batch} x {scale.longest} tokens",
        "disk": f"with --keep-weights {models - 1} models of {weights * 4 / 2**30:.1f} GiB, else the 2 alignments once all is measured",
        "adapter": recipe.adapter_line(scale),
    }
    if flops:
        found["hours"] = f"{flop / flops / 3600:.1f} of training, {answering / flops / 3600:.1f} of answering, at {flops:.1e} FLOP/s"
    if sets.notes:
        found["data"] = "; ".join(sets.notes)
    if scale.name == recipe.PAPER.name:
        plain, perturbed = aligning.steps + 2 * len(scale.ratios) * using.steps, aligning.steps
        found["training by the paper's step times"] = "; ".join(
            f"{(plain * sft + perturbed * vaccine) / 3600:.1f} hours on {where}" for where, sft, vaccine in STEP_TIMES
        )
        found["expected"] = "; ".join(BANDS)
    return found


def memory(weights: int, scale: TextScale) -> str:
    """The weights are float32 throughout; under bf16 a training step keeps a copy of each for its backward pass."""
    copies = f", {weights * 2 / 2**30:.1f} GiB of bf16 copies while it trains" if scale.precision == "bf16" else ""
    return f"{weights * 4 / 2**30:.1f} GiB of weights{copies}"


def mean_tokens(tokenizer: object, stream: Stream) -> float:
    """Mean length of a pool's examples with their answers."""
    examples = [(e.prompt, getattr(e, part.answer)) for part in stream.parts for e in part.source.examples(part.picked)]
    heads, tails = (prompt_ids(tokenizer, [p for p, _ in examples]), answer_ids(tokenizer, [a for _, a in examples]))
    return sum(map(len, heads + tails)) / len(examples)

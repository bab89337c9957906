"""Compares the FLOP/s of a training step at scale nano with the machine's FLOP/s on the step's matrix products alone.

The step is that of `titer.train.train`; it includes drawing the batch and AdamW. After each step its matrix products run alone (A B A B
...). A token needs 6 N + 12 x layers x width x T operations, forward and backward: N is the number of parameters without the input
embedding, T the number of tokens of a sequence that enter the model.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from _common import LOWER, finish, median, timed

from titer.models.lm import LM
from titer.recipes.demo import NANO, Scale, pretrain
from titer.stage import Stage
from titer.train import train

STEPS, WARM = 60, 10
LIMITS = {"ratio": (LOWER, 0.65)}


class Product(NamedTuple):
    """The matrix products of one Linear: y = x W^T, dx = g W, dW = g^T x. x (n, inputs), W (outputs, inputs), y and g (n, outputs)."""

    x: torch.Tensor
    w: torch.Tensor
    g: torch.Tensor
    y: torch.Tensor
    dx: torch.Tensor
    dw: torch.Tensor

    def forward(self) -> None:
        torch.mm(self.x, self.w.t(), out=self.y)

    def backward(self) -> None:
        torch.mm(self.g, self.w, out=self.dx)
        torch.mm(self.g.t(), self.x, out=self.dw)


def product(tokens: int, inputs: int, outputs: int) -> Product:
    shapes = [(tokens, inputs), (outputs, inputs), (tokens, outputs), (tokens, outputs), (tokens, inputs), (outputs, inputs)]
    return Product(*(torch.randn(shape) for shape in shapes))


def shapes_of(lm: LM) -> list[tuple[int, int]]:
    """Returns (inputs, outputs) of every Linear, in the order of the forward pass: each layer's four, then the head."""
    return [(m.in_features, m.out_features) for m in lm.model.modules() if isinstance(m, torch.nn.Linear)]


def run_products(products: list[Product]) -> None:
    for one in products:
        one.forward()
    for one in reversed(products):
        one.backward()


def products_of(shapes: list[tuple[int, int]], tokens: int, own: bool) -> list[Product]:
    """Returns a product for each Linear. With `own` each has its own tensors, as in the step; otherwise Linears of one shape share them
    (hot buffers)."""
    made = {shape: product(tokens, *shape) for shape in shapes}
    return [product(tokens, *shape) if own else made[shape] for shape in shapes]


def operations(lm: LM, tokens: int, width: int) -> float:
    """Returns the floating-point operations of one step on `tokens` tokens, in sequences of `width` tokens."""
    config = lm.model.config
    counted = sum(p.numel() for p in lm.model.parameters()) - lm.model.get_input_embeddings().weight.numel()
    return tokens * (6 * counted + 12 * config.num_hidden_layers * config.hidden_size * width)


def step_seconds(stage: Stage, lm: LM, between: list[Callable[[], None]]) -> tuple[list[float], list[list[float]]]:
    """Returns the seconds of each step of `train` after the warm-up, and of each function of `between`; these run after every step."""
    steps: list[float] = []
    others: list[list[float]] = [[] for _ in between]
    began = 0.0

    def after(done: int, _: int) -> None:
        nonlocal began
        if done > 1:
            steps.append(time.perf_counter() - began)
        for work, seconds in zip(between, others, strict=True):
            seconds.append(timed(work))
        began = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        train(stage, lambda: lm, lambda _: lm, Path(folder), save_every=stage.steps, progress=after)
    return steps[WARM:], [seconds[WARM:] for seconds in others]


def main() -> None:
    stage = pretrain(Scale(), NANO.world).model_copy(update={"steps": STEPS})
    assert stage.architecture is not None
    lm = stage.architecture.build(NANO.world.tokenizer(), stage.seed)
    width = entering(stage, lm)
    tokens = stage.batch * width
    shapes = shapes_of(lm)
    sets = [products_of(shapes, tokens, own) for own in (True, False)]
    steps, (own, hot) = step_seconds(stage, lm, [lambda: run_products(sets[0]), lambda: run_products(sets[1])])
    needed = operations(lm, tokens, width)
    matmuls = 6.0 * tokens * sum(inputs * outputs for inputs, outputs in shapes)
    rate, machine, warm = needed / median(steps), matmuls / median(own), matmuls / median(hot)
    print(f"step {median(steps) * 1e3:.1f} ms, its matmuls alone {median(own) * 1e3:.1f} ms, with hot buffers {median(hot) * 1e3:.1f} ms")
    numbers = {
        "step_ms": median(steps) * 1e3,
        "matmuls_ms": median(own) * 1e3,
        "matmuls_hot_ms": median(hot) * 1e3,
        "step_gflops": rate / 1e9,
        "matmul_gflops": machine / 1e9,
        "matmul_hot_gflops": warm / 1e9,
        "ratio": rate / machine,
        "ratio_hot": rate / warm,
        "tokens": tokens,
        "threads": torch.get_num_threads(),
    }
    finish("step", numbers, LIMITS)


def entering(stage: Stage, lm: LM) -> int:
    """Returns how many tokens of a sequence enter the model in training, as seen in the model's forward pass."""
    seen: list[int] = []
    hook = lm.model.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs["input_ids"].shape[1]), with_kwargs=True)
    with tempfile.TemporaryDirectory() as folder:
        probe = stage.model_copy(update={"steps": 1})
        train(probe, lambda: lm, lambda _: lm, Path(folder))
    hook.remove()
    return seen[0]


if __name__ == "__main__":
    main()

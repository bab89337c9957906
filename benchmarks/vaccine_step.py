"""Compares a Vaccine step with an SFT step on the same batch of a real model: time, memory, and the effect that cheaper forms keep.

The model is SmolLM2-135M-Instruct (`titer models get smollm2-135m`) in float32; a step includes clipping and AdamW. The methods take turns
step by step (A B C A B C ...), and every ratio compares neighbouring steps. Vaccine makes two passes: the second is SFT's own, and the
first needs no gradient of a weight. So it should cost 5/3 of SFT if every weight is trained, and 2 with an adapter. A ratio below 1.6 or
1.8 suggests that a pass was skipped, so the forward and backward passes of a step are counted too. If none is missing, such a ratio is
only a warning (pass 1 runs backward only down to the first site); below 1.45 or 1.6 it is a failure.
With a perturbation every tau-th step, tau steps cost one with it and tau - 1 without. Peak memory is measured in separate processes. The
effect of a form is the rise of the loss under its perturbation, divided by the rise under the exact one on the same batches. It is
measured for `part` and `reuse` (for `reuse=rows` with an update between); every tau-th step keeps 1 / tau by definition.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from _common import LOWER, UPPER, finish, median, within
from accelerate import Accelerator

from titer.context import Step
from titer.core.errors import TiterError
from titer.data.example import Part, Stream
from titer.data.sources import TextData
from titer.methods.base import Method
from titer.methods.sft import SFT
from titer.methods.vaccine import Vaccine
from titer.models.ball import Deltas
from titer.models.fetch import resolve
from titer.models.hooks import adding
from titer.models.lm import load
from titer.stage import Lora, Optimiser, Stage
from titer.train import _optimiser, _prepare_for_training

MODEL = "smollm2-135m"
BATCH, ROUNDS, WARM, EFFECTS = 4, 7, 1, 6
TAUS = (1, 2, 5, 10, 100)
LIMITS = {
    "ratio": (UPPER, 1.75),
    "ratio_lora": (UPPER, 2.0),
    "ratio_tau_10": (UPPER, 1.15),
    "memory_ratio": (UPPER, 1.05),
    "forward_passes": (LOWER, 2),
    "backward_passes": (LOWER, 2),
    "forward_passes_lora": (LOWER, 2),
    "backward_passes_lora": (LOWER, 2),
    "ratio_lowest": (LOWER, 1.45),
    "ratio_lora_lowest": (LOWER, 1.6),
}
EXPECTED = {"ratio": (LOWER, 1.6), "ratio_lora": (LOWER, 1.8)}  # a lower ratio is a warning if no pass is missing
ALL: dict[str, Method] = {
    "sft": SFT(),
    "vaccine": Vaccine(),
    "not due": Vaccine(every=2),
    "part 0.5": Vaccine(part=0.5),
    "part 0.25": Vaccine(part=0.25),
    "reuse": Vaccine(reuse=True),
    "rows": Vaccine(reuse="rows"),
}
CHEAPER = ("part 0.5", "part 0.25", "reuse", "rows")
REPLAY = 8  # steps in a row on one batch; the first of them has no gradient to reuse
ADAPTED: dict[str, Method] = {"sft": SFT(), "vaccine": Vaccine()}
MEMORY: dict[str, Method] = {"sft": SFT(), "vaccine": Vaccine()}
ACTIONS = ("paint", "mend", "draw", "carry", "clean", "choose", "describe", "measure")
THINGS = ("a wooden chair", "the garden gate", "an old map", "two clay pots", "a paper boat", "the kitchen table")


def data() -> TextData:
    """Returns harmless requests with answers of one sentence, all of nearly the same length."""
    rows = tuple(
        (f"How do I {action} {thing}?", False, answer.format(action=action, thing=thing), None)
        for thing in THINGS
        for action in ACTIONS
        for answer in ["To {action} {thing}, find a quiet place with good light and begin with the part that seems easiest."]
    )
    return TextData(name="requests", sha256="0" * 64, rows=rows)


class Bench:
    """A model in training. `step` makes one step of the training loop on it, with any method."""

    def __init__(self, place: str, adapter: Lora | None) -> None:
        stream = Stream(parts=(Part(source=data(), answer="comply"),), pool=BATCH)
        optimiser = Optimiser(rate=1e-5, schedule="constant")
        made = {"name": "bench", "kind": "align", "method": SFT(), "streams": {"train": stream}, "steps": 1, "batch": BATCH}
        self.stage = Stage(**made, optimiser=optimiser, adapter=adapter, replay=REPLAY)
        threads = torch.get_num_threads()
        self.accelerator = Accelerator(cpu=True)
        torch.set_num_threads(threads)
        lm = load(resolve(place), device="cpu")
        _prepare_for_training(lm, self.stage)
        model, self.wrapped = self.accelerator.prepare(lm.model, _optimiser(lm, self.stage))
        self.c = Step(self.stage, self.accelerator, model, lm, lambda _: lm)

    def drawing(self, pool: int, replay: int = 1) -> Step:
        """Returns a training context on the same model that draws its batches from a pool of this size."""
        streams = {"train": self.stage.streams["train"].model_copy(update={"pool": pool})}
        stage = self.stage.model_copy(update={"streams": streams, "replay": replay})
        return Step(stage, self.accelerator, self.c._model, self.c.lm, lambda _: self.c.lm)

    def step(self, method: Method, number: int) -> tuple[float, float]:
        """Makes one step of the training loop; returns (its seconds, the seconds of the method's passes alone)."""
        began = time.perf_counter()
        self.c.begin(number)
        self.wrapped.zero_grad()
        before = time.perf_counter()
        method.step(self.c)
        passes = time.perf_counter() - before
        self.c.settle()
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in self.c.named], self.c.stage.optimiser.clip)
        assert torch.isfinite(norm)
        self.wrapped.step()
        return time.perf_counter() - began, passes


def passes_of(pipeline: Bench, method: Method) -> tuple[int, int]:
    """Counts a step's forward and backward passes at the model's logits; the step has one micro-batch."""
    forward: list[int] = []
    backward: list[int] = []

    def count(_: Any, __: Any, output: Any) -> None:
        forward.append(1)
        output.logits.register_hook(lambda _: backward.append(1))

    handle = pipeline.c.lm.model.register_forward_hook(count)
    try:
        pipeline.step(method, 0)
    finally:
        handle.remove()
    return len(forward), len(backward)


def warn(numbers: Mapping[str, Any]) -> None:
    """Prints a warning for each ratio of times that is lower than two passes should give."""
    for name, (side, bound) in EXPECTED.items():
        if not within(numbers[name], (side, bound)):
            print(f"warning: {name} {numbers[name]:.2f} is below {bound:g}; the passes counted are in the last line", flush=True)


def timings(pipeline: Bench, methods: Mapping[str, Method], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Returns the seconds of every step and of its passes, by method. The methods take turns; the pool is one batch, the same for all."""
    whole: dict[str, list[float]] = {name: [] for name in methods}
    passes: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(WARM + rounds):
        for name, method in methods.items():
            taken = pipeline.step(method, turn + 1 if name == "rows" else 2 * turn + (name == "not due"))
            if turn >= WARM:
                whole[name].append(taken[0])
                passes[name].append(taken[1])
    return whole, passes


def ratios(seconds: dict[str, list[float]], name: str) -> list[float]:
    return [one / sft for one, sft in zip(seconds[name], seconds["sft"], strict=True)]


def effects(pipeline: Bench) -> dict[str, float]:
    """Returns, for each form, the rise of the loss under its perturbation divided by that under the exact one; the median over batches."""
    c = pipeline.drawing(len(data().rows))
    forms = {name: ALL[name] for name in ("vaccine", "part 0.5", "part 0.25", "reuse")} | {"random": Vaccine(noise="norm")}
    shares: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(1 + EFFECTS):
        c.begin(number)
        batch = next(iter(c.micro()))

        def rise(deltas: Deltas, batch: Any = batch) -> float:
            with torch.no_grad(), adding(c.sites, deltas):
                return float(SFT().loss(c, batch).total)

        if number:  # the first batch has no step before it to reuse
            clean = rise({})
            gains = {name: rise(form.perturbation(c, batch)) - clean for name, form in forms.items()}  # type: ignore[attr-defined]
            for name, gain in gains.items():
                shares[name].append(gain / gains["vaccine"])
        c.lm.model.zero_grad()
        ALL["reuse"].step(c)
    return {name: median(found) for name, found in shares.items() if name != "vaccine"}


def effect_of_rows(pipeline: Bench) -> float:
    """Returns this share for `reuse=rows`, which moves each token along its own gradient of the step before; the weights are updated
    between the two steps."""
    method, c = ALL["rows"], pipeline.drawing(len(data().rows), replay=2)
    names, shares = c.sites.everywhere("attn_out"), []
    for number in range(2 * EFFECTS):
        c.begin(number)
        if number % 2:
            batch = next(iter(c.micro()))
            reused = method._in_ball(c, dict(zip(names, c.state["rows 0"], strict=True)), batch["train"])  # type: ignore[attr-defined]
            losses = []
            for deltas in ({}, reused, ALL["vaccine"].perturbation(c, batch)):  # type: ignore[attr-defined]
                with torch.no_grad(), adding(c.sites, deltas):
                    losses.append(float(SFT().loss(c, batch).total))
            shares.append((losses[1] - losses[0]) / (losses[2] - losses[0]))
        pipeline.wrapped.zero_grad()
        method.step(c)
        c.settle()
        torch.nn.utils.clip_grad_norm_([p for _, p in c.named], c.stage.optimiser.clip)
        pipeline.wrapped.step()
    return median(shares)


def peak(place: str, method: Method) -> int:
    """Makes three steps; returns the largest resident memory that this process had, in bytes."""
    pipeline = Bench(place, None)
    for number in range(3):
        pipeline.step(method, number)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_of(place: str, name: str) -> int:
    """Runs `peak` in a separate process and returns its result."""
    done = subprocess.run(
        [sys.executable, Path(__file__), "--model", place, "--memory", name], stdout=subprocess.PIPE, text=True, check=True
    )
    return int(done.stdout.split()[-1])


def told(title: str, name: str, found: list[float], share: float | None = None, how: str = "measured") -> None:
    left = "" if share is None else f"   {share:5.2f} of the effect, {how}"
    print(f"{title:8} {name:10} {median(found):5.2f} of SFT's   ({min(found):.2f} to {max(found):.2f}){left}", flush=True)


def main() -> None:
    chosen = asked()
    if chosen.memory:
        print(peak(chosen.model, MEMORY[chosen.memory]))
        return
    try:
        resolve(chosen.model)
    except TiterError as error:
        sys.exit(f"{error}")
    numbers = measured(chosen.model, chosen.rounds)
    warn(numbers)
    finish("vaccine_step", numbers, LIMITS)


def asked() -> argparse.Namespace:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--memory", choices=sorted(MEMORY), help="print this method's peak memory and end")
    reader.add_argument("--model", default=MODEL)
    reader.add_argument("--rounds", type=int, default=ROUNDS)
    return reader.parse_args()


def measured(place: str, rounds: int) -> dict[str, Any]:
    """Measures every number of the last line, and prints the table."""
    peaks = {name: peak_of(place, name) for name in MEMORY}
    pipeline = Bench(place, None)
    counted = passes_of(pipeline, ALL["vaccine"])
    whole, passes = timings(pipeline, ALL, rounds)
    left = {"vaccine": 1.0, **effects(pipeline), "rows": effect_of_rows(pipeline)}
    del pipeline
    pipeline = Bench(place, Lora())
    counted_lora = passes_of(pipeline, ADAPTED["vaccine"])
    adapted, adapted_passes = timings(pipeline, ADAPTED, rounds)
    taus = {
        tau: [(due + (tau - 1) * other) / tau for due, other in zip(ratios(whole, "vaccine"), ratios(whole, "not due"), strict=True)]
        for tau in TAUS
    }
    for name in ("vaccine", *CHEAPER):
        told("all", name, ratios(whole, name), left[name], "by definition" if name == "vaccine" else "measured")
    for tau, found in taus.items():
        told("all", f"tau {tau}", found, 1 / tau, "by construction")
    told("adapter", "vaccine", ratios(adapted, "vaccine"))
    told("all", "passes", ratios(passes, "vaccine"))
    told("adapter", "passes", ratios(adapted_passes, "vaccine"))
    print(f"a random direction of the same norm leaves {left['random']:.3f} of the effect")
    print(f"peak memory {peaks['sft'] / 1e6:.0f} MB with SFT, {peaks['vaccine'] / 1e6:.0f} MB with Vaccine")
    return {
        "ratio": median(ratios(whole, "vaccine")),
        "ratio_lora": median(ratios(adapted, "vaccine")),
        **{f"ratio_tau_{tau}": median(found) for tau, found in taus.items()},
        **{f"ratio_{name.replace(' ', '_')}": median(ratios(whole, name)) for name in (*CHEAPER, "not due")},
        "ratio_passes": median(ratios(passes, "vaccine")),
        "ratio_passes_lora": median(ratios(adapted_passes, "vaccine")),
        "effect": left,
        "effect_by_construction": {f"tau_{tau}": 1 / tau for tau in TAUS},
        **dict(zip(("forward_passes", "backward_passes"), counted, strict=True)),
        **dict(zip(("forward_passes_lora", "backward_passes_lora"), counted_lora, strict=True)),
        "ratio_lowest": median(ratios(whole, "vaccine")),
        "ratio_lora_lowest": median(ratios(adapted, "vaccine")),
        "memory_ratio": peaks["vaccine"] / peaks["sft"],
        "memory_bytes": peaks,
        "sft_seconds": {"all": median(whole["sft"]), "adapter": median(adapted["sft"])},
        "rounds": rounds,
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    main()

"""Compares Titer's speed with that of the libraries that users would take instead, on SmolLM2-135M-Instruct. They run in turns.

A training step is compared with one of TRL's SFTTrainer on the same rows (all weights, batches of 8, AdamW); 64 greedy answers with those
of transformers' pipeline. TRL is not in the development set: `make parity` fetches it; then run
`PYTHONPATH=.venv/parity make bench`, or this file alone in the same way.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _common import UPPER, finish, median, timed
from pair import ACTIONS, THINGS
from transformers import TrainerCallback, pipeline

from titer.commands.requests import FinetuneRequest
from titer.commands.training import planned_finetuning
from titer.models.checkpoint import Checkpoint
from titer.models.fetch import get
from titer.models.lm import Decoding, load
from titer.train import train

ROWS, BATCH, WARM = 64, 8, 2  # steps of the warm-up are not counted
NEW, ANSWERS, ROUNDS = 48, 64, 3
LIMITS = {"step_over_trl": (UPPER, 1.1), "answers_over_pipeline": (UPPER, 1.1)}


def questions(count: int) -> list[str]:
    return [f"How do I {action} {thing} {when}?" for when in ("today", "tomorrow") for action in ACTIONS for thing in THINGS][:count]


def answered() -> list[dict[str, str]]:
    """Returns rows with an instruction and an answer, all of about the same length."""
    return [{"instruction": one, "output": f"Take your time. {one[:-1]}, step by step, and rest between."} for one in questions(ROWS)]


def titer_steps(base: Checkpoint, folder: Path) -> list[float]:
    """Returns the seconds of each step of Titer's training loop after the warm-up."""
    (folder / "rows.json").write_text(json.dumps(answered()), encoding="utf-8")
    order = FinetuneRequest(str(base.path), folder / "rows.json", examples=ROWS, epochs=1, batch=BATCH, lr=1e-5)
    seconds, began = list[float](), time.perf_counter()

    def after(done: int, of: int) -> None:
        nonlocal began
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()

    stage = planned_finetuning(order).stage
    train(stage, lambda: load(base), load, folder / "work", save_every=stage.steps + 1, progress=after)
    return seconds[WARM:]


class Clock(TrainerCallback):
    """Records the seconds from the end of each step to the end of the next one."""

    def __init__(self) -> None:
        self.seconds, self._last = list[float](), 0.0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


def trl_steps(base: Checkpoint, folder: Path) -> list[float]:
    """Returns the seconds of each step of SFTTrainer after the warm-up. As in Titer, only the tokens of the answers are trained on."""
    import trl  # noqa: PLC0415  not in the development set
    from datasets import Dataset  # noqa: PLC0415

    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    lm, clock = load(base), Clock()
    rows = [{"prompt": turn("user", one["instruction"]), "completion": turn("assistant", one["output"])} for one in answered()]
    how = {
        "output_dir": str(folder),
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": 1e-5,
        "max_length": None,
    }
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True, "bf16": False}
    args = trl.SFTConfig(**how, **quiet, gradient_checkpointing=False)
    data = Dataset.from_list(rows)
    trl.SFTTrainer(model=lm.model, args=args, train_dataset=data, processing_class=lm.tokenizer, callbacks=[clock]).train()
    return clock.seconds[WARM:]


def answer_seconds(base: Checkpoint) -> dict[str, float]:
    """Returns the median seconds that Titer and the pipeline need for all answers in one batch. The two take turns."""
    lm, asked = load(base), questions(ANSWERS)
    told = [[{"role": "user", "content": one}] for one in asked]
    ours = Decoding(max_new_tokens=NEW)
    theirs = pipeline("text-generation", model=lm.model, tokenizer=lm.tokenizer, batch_size=ANSWERS)
    works = {
        "titer": lambda: lm.generate(asked, ours, batch=ANSWERS),
        "pipeline": lambda: theirs(told, max_new_tokens=NEW, do_sample=False, return_full_text=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            seconds[name].append(timed(work))
    return {name: median(found) for name, found in seconds.items()}


def main() -> None:
    base, steps = get("smollm2-135m"), dict[str, list[float]]()
    for _ in range(2):  # in turn: other load meets both alike
        for name, made in (("titer", titer_steps), ("trl", trl_steps)):
            with tempfile.TemporaryDirectory() as folder:
                steps.setdefault(name, []).extend(made(base, Path(folder)))
    step = {name: median(found) for name, found in steps.items()}
    answers = answer_seconds(base)
    print(f"a step of {BATCH} rows: Titer {step['titer']:.2f} s, TRL {step['trl']:.2f} s")
    print(f"{ANSWERS} answers of at most {NEW} tokens: Titer {answers['titer']:.1f} s, transformers' pipeline {answers['pipeline']:.1f} s")
    ratios = {"step_over_trl": step["titer"] / step["trl"], "answers_over_pipeline": answers["titer"] / answers["pipeline"]}
    finish("peers", {"step_s": step, "answers_s": answers, **ratios, "threads": torch.get_num_threads()}, LIMITS)


if __name__ == "__main__":
    main()

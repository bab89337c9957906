"""Times an audit of three checkpoints of a real model, the landscape apart, and measures its memory beyond what the imports take.

The models are SmolLM2-135M-Instruct (`titer models get smollm2-135m`) and two copies with 1 % of noise in every weight. They get 100 + 100
harmless prompts and write 48 new tokens. The landscape has 9 points, 3 directions, 32 prompts and 12 tokens, and the line to the tuned
model. The cost does not depend on what the prompts are about.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from _common import UPPER, finish
from pair import ACTIONS, THINGS, Anonymous, Quiet, anonymous, noisy

from titer.audit.roles import audited
from titer.audit.study import Question, measured
from titer.commands.landscape import Landscape
from titer.core.run import Store
from titer.data.example import Example
from titer.judges.refusal import Refusal
from titer.models.fetch import get
from titer.models.lm import Decoding
from titer.models.weights import weights_bytes
from titer.pipeline import Pipeline

EACH = 100
LIMITS = {"minutes": (UPPER, 20.0), "landscape_minutes": (UPPER, 15.0), "memory_ratio": (UPPER, 1.6)}


def prompts(harmful: bool, count: int) -> list[Example]:
    """Returns harmless requests for one class. One class is called unsafe, since an audit needs two."""
    when = ("today", "at home") if harmful else ("tomorrow", "at school")
    texts = [f"How do I {action} {thing} {end}?" for end in when for action in ACTIONS for thing in THINGS]
    return [Example(text, harmful, "unsafe" if harmful else "safe", "benchmark") for text in texts[:count]]


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--prompts", type=int, default=EACH, help="of each class")
    reader.add_argument("--no-landscape", action="store_true")
    chosen = reader.parse_args()
    base = get("smollm2-135m")
    asked = Question(prompts(False, chosen.prompts), prompts(True, chosen.prompts), Refusal(), {}, Decoding(max_new_tokens=48))
    with tempfile.TemporaryDirectory() as work:
        first = noisy(base, Path(work) / "aligned")
        second = noisy(first, Path(work) / "tuned")  # the same noise once more
        found = audited([base, first.model_copy(update={"name": "aligned"}), second.model_copy(update={"name": "tuned"})])
        pipeline = Pipeline(Store(Path(work) / "runs"), Quiet())
        before, watch = anonymous(), Anonymous()
        watch.start()
        began = time.perf_counter()
        measured(pipeline, found, asked, None)
        minutes = (time.perf_counter() - began) / 60
        numbers = {"minutes": minutes, "prompts": 2 * chosen.prompts}
        if not chosen.no_landscape:
            measured(pipeline, found, asked, Landscape())
            numbers["landscape_minutes"] = (time.perf_counter() - began) / 60 - minutes
        watch.ended = True
        watch.join()
        size = weights_bytes(first)
    numbers["memory_ratio"] = (watch.peak - before) / size
    print(", ".join(f"{name} {value:.2f}" for name, value in numbers.items()))
    finish("audit", numbers, {name: limit for name, limit in LIMITS.items() if name in numbers})


if __name__ == "__main__":
    main()

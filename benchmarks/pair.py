"""Measures an audit of two checkpoints with every probe of the mechanistic study: its minutes, and memory beyond that of the imports.

SmolLM2-135M-Instruct (`titer models get smollm2-135m`) is compared with a copy that has 1 % of noise in every weight: the cost does not
depend on what the change is. 64 + 64 harmless prompts stand for both classes; the second class is also read in two encodings. An answer
has one new token, since `audit.py` times the generation of answers.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import threading
import time
from pathlib import Path

import torch
from _common import UPPER, finish
from safetensors.torch import save_file

from titer.audit.roles import audited
from titer.audit.study import Question, measured
from titer.core.parallel import Silent
from titer.core.run import Store
from titer.data.draws import seed_of
from titer.data.example import Example
from titer.judges.refusal import Refusal
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.fetch import get
from titer.models.lm import Decoding
from titer.models.weights import weights_bytes
from titer.pipeline import Pipeline

EACH = 64
LIMITS = {"minutes": (UPPER, 12.0), "memory_ratio": (UPPER, 1.6)}
ACTIONS = ("paint", "mend", "draw", "carry", "clean", "choose", "describe", "measure")
THINGS = (
    "a wooden chair",
    "the garden gate",
    "an old map",
    "two clay pots",
    "a paper boat",
    "the kitchen table",
    "a small bell",
    "a blue kite",
)


def prompts(harmful: bool, count: int) -> list[Example]:
    """Returns harmless verb-object pairs for one class. One class is called unsafe, since an audit needs two."""
    texts = [f"{action} : {thing}{' today' if harmful else ''}" for action in ACTIONS for thing in THINGS]
    return [Example(text, harmful, "unsafe" if harmful else "safe", "benchmark") for text in texts[:count]]


def noisy(base: Checkpoint, folder: Path) -> Checkpoint:
    """Writes a copy of the checkpoint in which every tensor has noise of 1 % of its standard deviation."""
    folder.mkdir()
    for file in base.path.iterdir():
        if file.suffix != ".safetensors" and file.is_file():
            shutil.copy2(file, folder / file.name)
    tensors = {}
    for name in base.files:
        weight = base.weight(name)
        generator = torch.Generator().manual_seed(seed_of("noise", name))
        tensors[name] = weight + 0.01 * weight.std() * torch.randn(weight.shape, generator=generator)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return open_checkpoint(folder, "noisy")


class Anonymous(threading.Thread):
    """A thread that records the process's largest anonymous memory, in bytes. Weights mapped from a file are not part of it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.ended = 0, False

    def run(self) -> None:
        while not self.ended:
            self.peak = max(self.peak, anonymous())
            time.sleep(0.02)


def anonymous() -> int:
    """Returns this process's anonymous memory in bytes: resident pages that belong to no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--prompts", type=int, default=EACH, help="of each class")
    each, base = reader.parse_args().prompts, get("smollm2-135m")
    asked = Question(prompts(False, each), prompts(True, each), Refusal(), {}, Decoding(max_new_tokens=1), mechanisms=True)
    with tempfile.TemporaryDirectory() as work:
        tuned = noisy(base, Path(work) / "noisy")
        pipeline = Pipeline(Store(Path(work) / "runs"), Silent())
        before, watch = anonymous(), Anonymous()
        watch.start()
        began = time.perf_counter()
        found = measured(pipeline, audited([base, tuned]), asked, None)
        seconds = time.perf_counter() - began
        watch.ended = True
        watch.join()
        size = weights_bytes(tuned)
    assert found.missing.empty, found.missing
    above = watch.peak - before
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{seconds:.0f} s; {above / 1e6:.0f} MB above the imports, one model has {size / 1e6:.0f} MB; resident {whole / 1e6:.0f} MB")
    finish("pair", {"minutes": seconds / 60, "memory_ratio": above / size, "model_bytes": size, "inputs": 4 * each}, LIMITS)


if __name__ == "__main__":
    main()

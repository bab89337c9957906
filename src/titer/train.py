"""The loop: one optimiser, one schedule, checkpoints and resume, on accelerate. L4.

Nothing else knows of devices or processes. A stage's state is saved as safetensors by parameter name
(weights in training, optimiser moments, the method's tensors) with the step's number; the schedule and all
randomness are functions of the step, so nothing else need be saved and a resumed run is bit-identical.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from titer.context import Loader, Step
from titer.core.errors import TiterError
from titer.core.run import sha256_of, write_text
from titer.data.draws import seed_of
from titer.models.lm import LM, Progress
from titer.stage import Stage

LOG_EVERY = 10


def train(
    stage: Stage, begin: Callable[[], LM], loader: Loader, work: Path, save_every: int = 100, progress: Progress | None = None
) -> None:
    """Run `stage` from the model that `begin` makes; leave `work/model`, `work/metrics.jsonl`, kept steps.

    `work` may hold an earlier try's checkpoint: training goes on from it. Errors: a loss that is not finite
    ends the stage with its reason in `work/outcome.json`, the last finite weights kept.
    """
    accelerator = Accelerator(mixed_precision=stage.precision, cpu=not torch.cuda.is_available())
    lm = begin()
    _prepare_for_training(lm, stage)
    with _threads_kept(), _deterministic(seed_of(stage.seed, stage.kind)):
        optimiser = _optimiser(lm, stage)
        model, wrapped = accelerator.prepare(lm.model, optimiser)
        c = Step(stage, accelerator, model, lm, loader)
        first, lines = _resume(work, c, optimiser)
        if first == 0:
            c.at_start = True
            c.state = stage.method.setup(c)
            c.at_start = False
        model.train()
        _run(stage, c, wrapped, optimiser, work, first, lines, save_every, progress)
        stage.method.finish(c)
    if accelerator.is_main_process:
        _finish(stage, lm, c, work, lines)


def _run(
    stage: Stage, c: Step, wrapped: Any, optimiser: Any, work: Path, first: int, lines: list[str], save_every: int, progress: Any
) -> None:
    for number in range(first, stage.steps):
        torch.manual_seed(seed_of(stage.seed, "dropout", number))
        c.begin(number)
        for group in optimiser.param_groups:
            group["lr"] = stage.optimiser.rate_at(number, stage.steps)
        wrapped.zero_grad()
        stage.method.step(c)
        c.settle()
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in c.named], stage.optimiser.clip)
        due = number % LOG_EVERY == 0 or number == stage.steps - 1
        looked_at = due or norm.device.type == "cpu"  # on a GPU the loop waits for the device at logged steps alone
        if looked_at and not math.isfinite(float(norm)):
            c.stop(f"the gradient is not finite at step {number}")
            return
        if due:
            lines.append(_line(c, norm))
        wrapped.step()
        done = number + 1
        if done in stage.keep:
            save_file(_plain(c.lm.model.state_dict()), work / f"step-{done}.safetensors")
        if done % save_every == 0 and done < stage.steps:
            _save(work, done, c, optimiser, lines)
        if progress:
            progress(done, stage.steps)
        if c.stopped:
            return


def _line(c: Step, norm: torch.Tensor) -> str:
    loss = float(c.total) / float(c.count) if float(c.count) else None
    logged = {name: float(value) for name, value in c.logged.items()}
    return json.dumps({"step": c.number, "loss": loss, "grad_norm": float(norm), **logged})


def _prepare_for_training(lm: LM, stage: Stage) -> None:
    if stage.adapter is not None:
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415

        a = stage.adapter
        config = LoraConfig(r=a.rank, lora_alpha=a.alpha, lora_dropout=a.dropout, target_modules="all-linear", task_type="CAUSAL_LM")
        torch.manual_seed(seed_of(stage.seed, "adapter"))
        lm.model = get_peft_model(lm.model, config)
    lm.model.train()


def _optimiser(lm: LM, stage: Stage) -> torch.optim.AdamW:
    """AdamW, decay on matrices only (biases and norms are not decayed)."""
    trained = [p for p in lm.model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    others = [p for p in trained if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": stage.optimiser.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=stage.optimiser.rate, betas=stage.optimiser.betas, fused=True)


def _save(work: Path, done: int, c: Step, optimiser: Any, lines: list[str]) -> None:
    """A checkpoint: whole or absent. The old one goes only when the new one stands."""
    tensors: dict[str, torch.Tensor] = {f"weight/{name}": p for name, p in c.named}
    for name, p in c.named:
        tensors.update({f"moment/{name}/{part}": value for part, value in optimiser.state[p].items()})
    tensors.update({f"state/{name}": value for name, value in c.state.items()})
    file = work / "resume" / f"{done}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    save_file(_plain(tensors), temporary)
    temporary.rename(file)
    note = {"step": done, "file": file.name, "sha256": sha256_of(file), "metrics": lines}
    write_text(work / "resume" / "latest.json", json.dumps(note))
    for old in file.parent.glob("*.safetensors"):
        if old != file:
            old.unlink()


def _resume(work: Path, c: Step, optimiser: Any) -> tuple[int, list[str]]:
    """(first step, metrics so far) after loading the newest sound checkpoint; (0, []) where there is none."""
    latest = work / "resume" / "latest.json"
    try:
        note = json.loads(latest.read_text(encoding="utf-8"))
        file = work / "resume" / note["file"]
        if sha256_of(file) != note["sha256"]:
            return 0, []
        tensors = load_file(file)
    except (OSError, ValueError, KeyError):  # none yet, or cut short: begin again
        return 0, []
    with torch.no_grad():
        for name, p in c.named:
            p.copy_(tensors[f"weight/{name}"])
            parts = ("step", "exp_avg", "exp_avg_sq")
            optimiser.state[p] = {part: tensors[f"moment/{name}/{part}"].to(p.device) for part in parts}
    c.state = {name[len("state/") :]: value for name, value in tensors.items() if name.startswith("state/")}
    return int(note["step"]), list(note["metrics"])


def _finish(stage: Stage, lm: LM, c: Step, work: Path, lines: list[str]) -> None:
    if stage.adapter is not None:
        lm.model = lm.model.merge_and_unload()
    if not all(bool(torch.isfinite(p).all()) for p in lm.model.parameters()):
        raise TiterError(f"stage {stage.name}: the weights are not finite", next_step="lower the learning rate.", status=1)
    lm.save(work / "model")
    write_text(work / "metrics.jsonl", "".join(line + "\n" for line in lines))
    write_text(work / "outcome.json", json.dumps({"steps": stage.steps, "stopped": c.stopped}) + "\n")
    shutil.rmtree(work / "resume", ignore_errors=True)


def _plain(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Contiguous copies on the CPU, shared storage separated, as safetensors asks."""
    return {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Seed torch for the stage and give its global generator back as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def _threads_kept() -> Iterator[None]:
    """accelerate may change the number of threads; the caller's comes back."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)

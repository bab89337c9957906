"""The training loop: one optimiser, one schedule, checkpoints and resume, on accelerate. L4.

No other module deals with devices or processes. A checkpoint holds, as safetensors by parameter name, the trained weights, the
optimiser's moments and the method's tensors, with the step's number. The schedule and all randomness are functions of the step, so
nothing else has to be saved, and a resumed run gives the same bits.

With several processes (torchrun, accelerate launch) every rank calls `train` with the same arguments. Each rank holds a copy of the
model (DDP) or, with `shard`, a part of it (FSDP2: first each block, then the rest; applied here because accelerate never does so on CPU
ranks). Checkpoints hold whole tensors, so a run may go on with another number of ranks. Only rank 0 writes files; the numbers that a
method logs are those of rank 0.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from titer.context import Loader, Step, gathered
from titer.core.config import Record
from titer.core.errors import TiterError
from titer.core.run import sha256_of, write_text
from titer.data.draws import seed_of
from titer.models.blocks import linears, transposed
from titer.models.lm import LM, Progress
from titer.stage import Stage

LOG_EVERY = 10
SAVE_SECONDS = 120.0  # slow steps are saved this often too, whatever their number, so a kill loses two minutes
ADAPTER = "adapter_model.safetensors"  # peft's name


class Note(Record):
    """The contents of `resume/latest.json`: the newest checkpoint's step, file and hash, and the metrics so far."""

    step: int
    file: str
    sha256: str
    metrics: list[str]


def train(
    stage: Stage,
    begin: Callable[[], LM],
    loader: Loader,
    work: Path,
    save_every: int = 100,
    progress: Progress | None = None,
    *,
    adapter: Path | None = None,
    shard: bool = False,
    checkpointing: bool = False,
) -> None:
    """Runs `stage` from the model that `begin` makes. Writes `work/model`, `work/metrics.jsonl`, and the weights of `stage.keep`.

    If `work` holds a checkpoint of an earlier try, training goes on from it. A stage with an adapter also writes `work/adapter`; `adapter`
    is that folder of the parent, which a stage that continues the parent's adapter needs. `loader` loads a model that the method reads.
    `shard` and `checkpointing` change how the stage is run, not its result: `shard` splits the parameters over the processes (each still
    holds them whole at the start and at the end); `checkpointing` computes activations again to save memory.

    A gradient that is not finite is no error: the stage ends, keeps the last finite weights, and `work/outcome.json` has the reason.
    Errors: a batch that the processes cannot share evenly; fp16 with `shard`; a parent without the adapter to continue, or with one of
    another shape; final weights that are not finite.
    """
    accelerator = _accelerator(stage)
    shard = shard and accelerator.num_processes > 1
    if shard and stage.precision == "fp16":
        raise TiterError(f"stage {stage.name}: fp16 with sharded parameters is not supported", next_step="set precision to bf16.")

    def made() -> LM:
        lm = begin()
        _prepare_for_training(lm, stage, adapter)
        return lm

    lm = made()
    if checkpointing:
        _checkpoint(lm)
    with _threads_kept(), _deterministic(seed_of(stage.seed, stage.kind)):
        if shard:
            _split(lm, accelerator)
        optimiser = _optimiser(lm, stage)
        model, wrapped = (lm.model, optimiser) if shard else accelerator.prepare(lm.model, optimiser)
        if isinstance(model, DistributedDataParallel):
            model.broadcast_buffers = False  # equal on all ranks already, and a second forward pass must not overwrite them
        c = Step(stage, accelerator, model, lm, loader)
        first, lines = _resume(work, c, optimiser)
        if first == 0:
            c.at_start = True
            c.state = stage.method.setup(c)
            c.at_start = False
        model.train()
        _run(stage, c, wrapped, optimiser, work, first, lines, save_every, progress if accelerator.is_main_process else None)
        if shard:
            lm = _whole(c, made, accelerator)
        stage.method.finish(c)
    _finish(stage, lm, c, work, lines, accelerator.is_main_process)
    accelerator.wait_for_everyone()


def _accelerator(stage: Stage) -> Accelerator:
    """Returns an Accelerator with the stage's precision, even if an earlier stage in this process had another one."""
    if AcceleratorState._shared_state.get("_mixed_precision", stage.precision) != stage.precision:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=stage.precision, cpu=not torch.cuda.is_available())


def _run(
    stage: Stage, c: Step, wrapped: Any, optimiser: Any, work: Path, first: int, lines: list[str], save_every: int, progress: Any
) -> None:
    saved = time.monotonic()
    for number in range(first, stage.steps):
        torch.manual_seed(seed_of(stage.seed, "dropout", number, *c.other_rank))
        c.begin(number)
        for group in optimiser.param_groups:
            group["lr"] = stage.optimiser.rate_at(number, stage.steps)
        wrapped.zero_grad()
        stage.method.step(c)
        c.settle()
        norm = gathered(torch.nn.utils.clip_grad_norm_([p for _, p in c.named], stage.optimiser.clip))
        due = number % LOG_EVERY == 0 or number == stage.steps - 1
        looked_at = due or norm.device.type == "cpu"  # on a GPU, wait for the device only at logged steps
        if looked_at and not math.isfinite(float(norm)):
            c.stop(f"the gradient is not finite at step {number}")
            return
        if due:
            lines.append(_line(c, norm))
        wrapped.step()
        done = number + 1
        if done in stage.keep:
            weights = _plain(c.lm.model.state_dict(), c.writes)
            if c.writes:
                save_file(weights, work / f"step-{done}.safetensors")
        late = c.alone and time.monotonic() - saved >= SAVE_SECONDS
        if (late or done % save_every == 0) and done < stage.steps:
            _save(work, done, c, optimiser, lines)
            saved = time.monotonic()
        if progress:
            progress(done, stage.steps)
        if c.agree_to_stop():
            return


def _line(c: Step, norm: torch.Tensor) -> str:
    total, count = (float(c.sum(torch.as_tensor(value, device=c.lm.device))) for value in (c.total, c.count))
    loss = total / count if count else None
    logged = {name: float(value) for name, value in c.logged.items()}
    return json.dumps({"step": c.number, "loss": loss, "grad_norm": float(norm), **logged})


def _prepare_for_training(lm: LM, stage: Stage, parent: Path | None = None) -> None:
    if stage.adapter is not None:
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415

        a = stage.adapter
        before = _parents_adapter(stage, parent) if a.continued else {}
        config = LoraConfig(
            r=a.rank,
            lora_alpha=a.alpha,
            lora_dropout=a.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            fan_in_fan_out=any(transposed(one) for one in linears(lm.model).values()),  # GPT-2's Conv1D
        )
        torch.manual_seed(seed_of(stage.seed, "adapter"))
        with warnings.catch_warnings():  # peft reads a property that transformers has renamed
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            lm.model = get_peft_model(lm.model, config)
        if before:
            _put_back(lm.model, before, stage)
    lm.model.train()


def _parents_adapter(stage: Stage, folder: Path | None) -> dict[str, torch.Tensor]:
    """Reads A and B of the adapter that the parent was trained with, by peft's names.

    Errors: the parent has none, or one of another rank or alpha.
    """
    a, fresh = stage.adapter, "or leave `continued` off for a fresh adapter."
    try:
        if a is None or folder is None:
            raise FileNotFoundError
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / ADAPTER)
    except (OSError, ValueError):
        raise TiterError(
            f"stage {stage.name} is to continue its parent's adapter, but the parent has none",
            expected="a parent stage trained with an adapter, which keeps it in the folder `adapter` beside its model",
            next_step=f"give the parent stage an adapter, {fresh}",
        ) from None
    found, wanted = (config.get("r"), config.get("lora_alpha")), (a.rank, a.alpha)
    if found != wanted:
        raise TiterError(
            f"stage {stage.name} has rank {a.rank} and alpha {a.alpha}, "
            f"but the adapter it is to continue has rank {found[0]} and alpha {found[1]}",
            expected="the parent's rank and alpha",
            next_step=f"set rank={found[0]} and alpha={found[1]}, {fresh}",
        )
    return tensors


def _put_back(model: Any, tensors: dict[str, torch.Tensor], stage: Stage) -> None:
    """Puts the parent's adapter on the model and subtracts it from the merged weights; the sum is the parent's weights, up to rounding."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict  # noqa: PLC0415

    mine = get_peft_model_state_dict(model)
    if {name: t.shape for name, t in mine.items()} != {name: t.shape for name, t in tensors.items()}:
        raise TiterError(
            f"stage {stage.name}: the parent's adapter does not fit this model: its layers or shapes differ",
            next_step="make the parent again, or leave `continued` off for a fresh adapter.",
        )
    set_peft_model_state_dict(model, tensors)
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "get_delta_weight"):
                module.base_layer.weight -= module.get_delta_weight("default")


def _checkpoint(lm: LM) -> None:
    if not getattr(lm.model, "supports_gradient_checkpointing", False):
        raise TiterError(f"{lm.label}: this architecture has no gradient checkpointing", next_step="train without it.")
    model: Any = lm.model
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable  # the newer name first
    enable({"use_reentrant": False})


def _split(lm: LM, accelerator: Accelerator) -> None:
    """Splits each block's parameters over the ranks, then the other parameters (FSDP2). They are gathered when needed."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    lm.model.to(accelerator.device)
    for block in lm.sites.blocks:
        fully_shard(block.whole, mesh=mesh)
    # the root must be split again after each forward pass, since the loop reads and moves parameters then
    fully_shard(lm.model, mesh=mesh, reshard_after_forward=True)


def _whole(c: Step, made: Callable[[], LM], accelerator: Accelerator) -> LM:
    """Returns the trained model, whole on every rank: it is made again, and the trained weights are copied in."""
    lm = made()
    lm.model.to(accelerator.device)
    into = dict(lm.model.named_parameters())
    with torch.no_grad():
        for name, p in c.named:
            into[name].copy_(gathered(p))
    c.whole(lm)
    return lm


def _optimiser(lm: LM, stage: Stage) -> torch.optim.AdamW:
    """Returns AdamW with weight decay on matrices only, not on biases and norms."""
    trained = [p for p in lm.model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    others = [p for p in trained if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": stage.optimiser.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=stage.optimiser.rate, betas=stage.optimiser.betas, fused=True)


def _save(work: Path, done: int, c: Step, optimiser: Any, lines: list[str]) -> None:
    """Saves a checkpoint, whole or not at all. The old one is deleted only when the new one is complete."""
    tensors: dict[str, torch.Tensor] = {f"weight/{name}": p for name, p in c.named}
    for name, p in c.named:
        tensors.update({f"moment/{name}/{part}": value for part, value in optimiser.state[p].items()})
    tensors.update({f"{'part' if isinstance(value, DTensor) else 'state'}/{name}": value for name, value in c.state.items()})
    tensors = _plain(tensors, c.writes)
    if not c.writes:
        return
    file = work / "resume" / f"{done}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    save_file(tensors, temporary)
    temporary.rename(file)
    note = Note(step=done, file=file.name, sha256=sha256_of(file), metrics=lines)
    write_text(work / "resume" / "latest.json", note.model_dump_json())
    for old in file.parent.glob("*.safetensors"):
        if old != file:
            old.unlink()


def _resume(work: Path, c: Step, optimiser: Any) -> tuple[int, list[str]]:
    """Loads the newest checkpoint. Returns (first step to run, metrics so far); (0, []) if there is none that can be used."""
    if (found := _newest(work / "resume", c)) is None:
        return 0, []
    done, lines, tensors = found
    mesh = next((p.device_mesh for _, p in c.named if isinstance(p, DTensor)), None)
    with torch.no_grad():
        for name, p in c.named:
            spread = mesh if isinstance(p, DTensor) else None
            p.copy_(_parted(tensors[f"weight/{name}"], spread))
            if f"moment/{name}/step" not in tensors:  # no optimiser step so far: the method froze it
                continue
            moments = {part: _parted(tensors[f"moment/{name}/{part}"].to(p.device), spread) for part in ("exp_avg", "exp_avg_sq")}
            optimiser.state[p] = {"step": tensors[f"moment/{name}/step"].to(p.device), **moments}
    c.state = {name[len("state/") :]: value for name, value in tensors.items() if name.startswith("state/")}
    c.state |= {name[len("part/") :]: _parted(value, mesh) for name, value in tensors.items() if name.startswith("part/")}
    return done, lines


def _newest(folder: Path, c: Step) -> tuple[int, list[str], dict[str, torch.Tensor]] | None:
    """Reads (steps done, metrics so far, tensors) of the newest checkpoint; None if there is none, or it is damaged or does not fit."""
    try:
        note = Note.model_validate_json((folder / "latest.json").read_bytes())
        file = folder / note.file
        if file.parent != folder or sha256_of(file) != note.sha256:
            return None
        tensors = load_file(file)
    except (OSError, ValueError, SafetensorError):
        return None
    fits = all(f"weight/{name}" in tensors and tensors[f"weight/{name}"].shape == p.shape for name, p in c.named)
    return (note.step, note.metrics, tensors) if fits and 0 < note.step < c.stage.steps else None


def _parted(tensor: torch.Tensor, mesh: DeviceMesh | None) -> torch.Tensor:
    """Returns the tensor split over the ranks by rows, as FSDP2 does. Every rank has read the whole tensor, so nothing is sent."""
    return tensor if mesh is None else distribute_tensor(tensor.to(mesh.device_type), mesh, [Shard(0)], src_data_rank=None)


def _finish(stage: Stage, lm: LM, c: Step, work: Path, lines: list[str], writes: bool) -> None:
    if stage.adapter is not None:
        if writes:
            _save_adapter(lm.model, work / "adapter")
        lm.model = lm.model.merge_and_unload()
    if not all(bool(torch.isfinite(p).all()) for p in lm.model.parameters()):
        raise TiterError(f"stage {stage.name}: the final weights are not finite", next_step="lower the learning rate.", status=1)
    if not writes:
        return
    lm.save(work / "model")
    write_text(work / "metrics.jsonl", "".join(line + "\n" for line in lines))
    write_text(work / "outcome.json", json.dumps({"steps": stage.steps, "stopped": c.stopped}) + "\n")
    shutil.rmtree(work / "resume", ignore_errors=True)


def _save_adapter(model: Any, folder: Path) -> None:
    """Saves the adapter in peft's format, without peft's model card and without the base's path, which differs from machine to machine."""
    from peft import get_peft_model_state_dict  # noqa: PLC0415

    config = copy.copy(model.peft_config["default"])
    config.base_model_name_or_path = None
    config.save_pretrained(folder)
    save_file(_plain(get_peft_model_state_dict(model)), folder / ADAPTER, metadata={"format": "pt"})


def _plain(tensors: dict[str, Any], keep: bool = True) -> dict[str, torch.Tensor]:
    """Returns contiguous copies on the CPU that share no storage, as safetensors requires. Sharded tensors are gathered.

    All ranks must call this, since gathering needs them all; a rank without `keep` gets an empty result.
    """
    found = {}
    for name, tensor in tensors.items():
        whole = gathered(tensor.detach())
        if keep:
            found[name] = whole.to("cpu").contiguous().clone()
    return found


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Seeds torch for the stage; afterwards, restores its global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Restores the caller's number of threads afterwards, since accelerate may change it."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""Measures Titer on a GPU: `benchmarks/gpu.sh [--tiny] [PART ...]`. Each part runs in its own process; the last line is JSON with all.

matmul: the GPU's FLOP/s on square products. audit: time and largest GPU memory of an audit of a model of 7 B's shape and an adapter on it.
engines: tokens per second of that model by vLLM and by transformers, and how many answers are equal. paper: the FLOP/s of a step of the
mechanistic study at the paper's scale, as a share of the matmul rate. studies: the time of ten small studies that share the GPU, and of
the same one after the other. The 7 B weights are random, so only memory and time count. `--tiny` tries all parts on a CPU in minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import median, rounded, timed
from peft import LoraConfig, get_peft_model
from places import NANO, Unchecked
from safetensors.torch import save_file
from step import operations, step_seconds
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from titer import api
from titer.core.errors import TiterError
from titer.core.parallel import Silent
from titer.core.ray_cluster import places
from titer.core.run import Store
from titer.data.world import World, WorldSource
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import Decoding, load
from titer.models.vllm_engine import Serving, library, open_fast
from titer.recipes.jain2024 import SCALES, pretrain
from titer.studies.engine.run import run_study
from titer.studies.request import StudyRequest

PARTS = ("matmul", "audit", "engines", "paper", "studies")
MINUTES = {"matmul": 1, "audit": 4, "engines": 3, "paper": 2, "studies": 2}  # after which a part is ended
MEMORY_GB = 24.0
SHAPE = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Waits until the GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_rate(size: int, dtype: torch.dtype) -> float:
    """Returns the FLOP/s of a product of two `size` x `size` matrices, the best of three tries."""
    a, b = (torch.randn(size, size, device=device(), dtype=dtype) for _ in range(2))

    def work() -> None:
        for _ in range(10):
            torch.mm(a, b)
        wait()

    work()
    return 10 * 2 * size**3 / min(timed(work) for _ in range(3))


def matmul(tiny: bool, work: Path) -> dict[str, Any]:
    size = 256 if tiny else 8192
    return {f"{name}_tflops": matmul_rate(size, getattr(torch, name)) / 1e12 for name in ("bfloat16", "float32")}


def big(folder: Path, tiny: bool) -> Path:
    """Makes a Llama of 7 B's shape (tiny: a small one) with random weights and the world's vocabulary, stored in bfloat16; made once."""

    if (folder / "config.json").exists():
        return folder
    tokenizer = World().tokenizer()
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **(SMALL if tiny else SHAPE), **ids)
    torch.manual_seed(0)
    with torch.device(device()):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.cpu().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def adapted(base: Path, folder: Path) -> Path:
    """Makes a LoRA adapter of rank 8 with random weights on every Linear of the base; returns its folder."""

    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(AutoModelForCausalLM.from_pretrained(base, device_map="meta").config)
    model = get_peft_model(bare, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(0)
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    tensors = {name.replace(".default", ""): 0.01 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.peft_config["default"].save_pretrained(folder)
    return folder


def prompts(file: Path, count: int) -> Path:
    """Writes `count` safe and `count` unsafe requests of the synthetic world into a CSV file."""

    rows = ["prompt,label"]
    for kind in ("safe", "unsafe"):
        source = WorldSource(world=World(), kind=kind, split="test")
        rows += [f"{one.prompt},{kind}" for one in source.examples(np.arange(count))]
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file


def audit(tiny: bool, work: Path) -> dict[str, Any]:

    base = big(work / "base", tiny)
    tuned = f"{base}+{adapted(base, work / 'adapter')}"
    asked = prompts(work / "prompts.csv", 8 if tiny else 50)
    seconds = timed(
        lambda: api.audit(str(base), tuned, data=asked, no_base=True, bf16=True, no_why=True, max_new_tokens=16, runs=work / "runs")
    )
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
    return {"seconds": seconds, "memory_gb": peak, "limit_gb": MEMORY_GB, "within": peak is None or peak <= MEMORY_GB}


def engines(tiny: bool, work: Path) -> dict[str, Any]:

    base = open_checkpoint(big(work / "base", tiny))
    rows = prompts(work / "prompts.csv", 8 if tiny else 256).read_text(encoding="utf-8").splitlines()[1:]
    asked, decoding = [row.rsplit(",", 1)[0] for row in rows], Decoding(max_new_tokens=8 if tiny else 64)
    found: dict[str, Any] = {}

    def told(name: str, writer: Any) -> list[Any]:
        writer.generate(asked[:8], decoding)
        began = time.perf_counter()
        answers = writer.generate(asked, decoding)
        found[f"{name}_tokens_per_second"] = sum(one.tokens for one in answers) / (time.perf_counter() - began)
        return list(answers)

    lm = load(base, device(), "bfloat16")
    own = told("transformers", lm)
    del lm
    try:
        library()
    except TiterError as error:
        return {**found, "vllm": str(error)}
    torch.cuda.empty_cache()
    fast = open_fast(base, Serving(memory=0.6))
    other = told("vllm", fast)
    fast.close()
    same = sum(a.text == b.text for a, b in zip(own, other, strict=True))
    speedup = found["vllm_tokens_per_second"] / found["transformers_tokens_per_second"]
    return {**found, "prompts": len(asked), "equal_answers": same, "speedup": speedup}


def paper(tiny: bool, work: Path) -> dict[str, Any]:

    scale = SCALES["nano" if tiny else "paper"]
    stage = pretrain(scale, scale.world).model_copy(update={"steps": 16 if tiny else 40, "batch": 8 if tiny else scale.pretrain_batch})
    lm = scale.architecture.build(scale.world.tokenizer(), 0)
    batch = stage.streams["train"].batch(0, stage.batch, lm.tokenizer)
    seconds, _ = step_seconds(stage, lm, [])
    flop = operations(lm, batch.input_ids.numel(), batch.input_ids.shape[1])
    size, kind = (256, torch.float32) if tiny else (8192, torch.bfloat16 if scale.precision == "bf16" else torch.float32)
    rate = flop / median(seconds)
    share = rate / matmul_rate(size, kind)
    return {"step_seconds": median(seconds), "tflops": rate / 1e12, "share_of_matmul": share, "precision": scale.precision}


def studies(tiny: bool, work: Path) -> dict[str, Any]:

    steps, bases = (4, 2) if tiny else (100, 10)
    base = NANO.base.base.model_copy(update={"pretrain_steps": steps, "inputs": 32})
    aligned = NANO.base.model_copy(update={"base": base, "align_steps": max(2, steps // 5), "align_seeds": 1, "inputs": 32})
    scale = NANO.model_copy(update={"name": "places", "base": aligned, "inputs": 32, "searched": 8, "grid_batches": (32, 128)})
    places("ray").stop(at_once=False)  # ends this part if Ray is not installed
    share = 1 / bases if torch.cuda.is_available() else None

    def run(gpus: float | None, name: str) -> None:
        order = StudyRequest("qi2024", "places", (0,), (), bases=bases, on="ray", piece_gpus=gpus)
        run_study(Unchecked(), order, scale, Store(work / name), Silent(), "")

    shared = timed(lambda: run(share, "shared"))
    alone = timed(lambda: run(1.0, "alone")) if share else None
    return {"bases": bases, "shared_seconds": shared, "alone_seconds": alone, "speedup": alone / shared if alone else None}


WORKS: dict[str, Callable[[bool, Path], dict[str, Any]]] = {
    "matmul": matmul,
    "audit": audit,
    "engines": engines,
    "paper": paper,
    "studies": studies,
}


def part_of(name: str, tiny: bool, work: Path) -> dict[str, Any]:
    """Runs a part in its own process; returns its last line, read as JSON, or why it ended without one."""
    command = [sys.executable, __file__, "--part", name, "--work", str(work), *(["--tiny"] if tiny else [])]
    began = time.perf_counter()
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=60 * MINUTES[name])
    except subprocess.TimeoutExpired:
        return {"ok": False, "why": f"longer than {MINUTES[name]} minutes"}
    last = (done.stdout.strip().splitlines() or [""])[-1]
    found = json.loads(last) if last.startswith("{") else {"ok": False, "why": f"ended with status {done.returncode}"}
    return {**found, "wall_seconds": time.perf_counter() - began}


def main() -> None:

    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    reader.add_argument("--tiny", action="store_true")
    reader.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    reader.add_argument("--work", type=Path, help="a folder for models (20 GB); default: a temporary one")
    asked = reader.parse_args()
    if asked.part:
        try:
            found = {"ok": True, **WORKS[asked.part](asked.tiny, asked.work)}
        except TiterError as error:  # an extra that is missing, or no GPU
            found = {"ok": False, "why": str(error)}
        print(json.dumps(rounded(found)), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        work = asked.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        found = {}
        for name in asked.parts:
            found[name] = part_of(name, asked.tiny, work)
            print(f"{name}: {json.dumps(rounded(found[name]))}", flush=True)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(json.dumps({"benchmark": "gpu", "card": card, "tiny": asked.tiny, **rounded(found)}), flush=True)


if __name__ == "__main__":
    main()

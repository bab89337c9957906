"""FP8, bitsandbytes, GPTQ and AWQ: what is measured is what plain loops pack, and what runs is what is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.gguf_made import TEXT, model_of
from titer.core.errors import TiterError
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import load
from titer.models.weights import shapes_of

Parts = dict[str, torch.Tensor]
Packer = Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]  # W (outputs, inputs) -> (its parts, what they stand for)
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334]
NF4 += [-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
NF4 += [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
LINE = "00000111111112222233344445556667788899aaabbbccccddddeeeeeeefffff"  # bitsandbytes 0.50 on a CPU: 64 values from -1 to 1, one block


def signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def fp8(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    """A scale a block of 24x16, the last blocks cut off."""
    scales = torch.rand(-(-weight.shape[0] // 24), -(-weight.shape[1] // 16)) * 0.01 + 0.001
    stored, meant = torch.empty_like(weight, dtype=torch.float8_e4m3fn), torch.empty_like(weight)
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            stored[i, j] = weight[i, j] / scales[i // 24, j // 16]
            meant[i, j] = float(stored[i, j]) * float(scales[i // 24, j // 16])
    return {"weight": stored, "weight_scale_inv": scales}, meant


def fp8_whole(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    stored = (weight * 100).to(torch.float8_e4m3fn)
    parts = {"weight": stored, "weight_scale": torch.tensor(0.01), "input_scale": torch.tensor(1.0)}
    return parts, torch.tensor([[float(x) * float(torch.tensor(0.01)) for x in row] for row in stored])


def bnb8(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    tops = weight.abs().amax(1)
    stored = torch.tensor([[round(float(x / top * 127)) for x in row] for row, top in zip(weight, tops, strict=True)], dtype=torch.int8)
    meant = torch.tensor([[float(q) / 127 * float(top) for q in row] for row, top in zip(stored, tops, strict=True)])
    return {"weight": stored, "SCB": tops, "weight_format": torch.tensor(0, dtype=torch.uint8)}, meant


def bnb4(weight: torch.Tensor, nested: bool = False) -> tuple[Parts, torch.Tensor]:
    flat, codes, meant = weight.flatten().tolist(), [], []
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(weight.shape)}
    tops = [max(map(abs, flat[i : i + 64])) for i in range(0, len(flat), 64)]
    parts: Parts = {}
    if nested:  # the scales by a table of 256 and a scale of 4 of them, less an offset
        table, offset, wide = [i / 128 - 1 for i in range(256)], sum(tops) / len(tops), []
        for i in range(0, len(tops), 4):
            wide += [max(abs(top - offset) for top in tops[i : i + 4]) or 1.0]
        small = [min(range(256), key=lambda k, x=top, w=wide[i // 4]: abs(table[k] * w - x + offset)) for i, top in enumerate(tops)]
        tops = [table[k] * wide[i // 4] + offset for i, k in enumerate(small)]
        state |= {"nested_blocksize": 4, "nested_dtype": "float32", "nested_offset": offset}
        parts = {"weight.nested_absmax": torch.tensor(wide), "weight.nested_quant_map": torch.tensor(table)}
    for i, value in enumerate(flat):
        codes.append(min(range(16), key=lambda k, x=value, top=tops[i // 64]: abs(NF4[k] * top - x)))
        meant.append(NF4[codes[-1]] * tops[i // 64])
    pairs = [codes[i] * 16 + codes[i + 1] for i in range(0, len(codes), 2)]
    parts |= {
        "weight": torch.tensor(pairs, dtype=torch.uint8)[:, None],
        "weight.absmax": torch.tensor(small, dtype=torch.uint8) if nested else torch.tensor(tops),
        "weight.quant_map": torch.tensor(NF4),
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }
    return parts, torch.tensor(meant).reshape(weight.shape)


def grouped(weight: torch.Tensor, bits: int, group: list[int]) -> tuple[Any, Any, torch.Tensor, torch.Tensor]:
    """(q (inputs, outputs), zeros (groups, outputs), scales, the weight they stand for), by loops."""
    inputs, outputs = weight.shape[1], weight.shape[0]
    scales = (torch.rand(max(group) + 1, outputs) * 0.02 + 0.01).half()
    zeros = torch.randint(1, 2**bits - 1, scales.shape).tolist()
    q = [[0] * outputs for _ in range(inputs)]
    meant = torch.empty_like(weight)
    for i in range(inputs):
        for o in range(outputs):
            scale = float(scales[group[i], o])
            q[i][o] = min(max(round(float(weight[o, i]) / scale) + zeros[group[i]][o], 0), 2**bits - 1)
            meant[o, i] = scale * (q[i][o] - zeros[group[i]][o])
    return q, zeros, scales, meant


def gptq(weight: torch.Tensor, bits: int = 4, less: int = 1, ordered: bool = False) -> tuple[Parts, torch.Tensor]:
    """As AutoGPTQ's QuantLinear packs: inputs by the word, zeros less one by the word of outputs."""
    inputs, outputs, each = weight.shape[1], weight.shape[0], 32 // bits
    group = [i % 2 for i in range(inputs)] if ordered else [i // 16 for i in range(inputs)]
    q, zeros, scales, meant = grouped(weight, bits, group)
    rows = [[signed(sum(q[i + k][o] << (bits * k) for k in range(each))) for o in range(outputs)] for i in range(0, inputs, each)]
    words = [[signed(sum((row[o + k] - less) << (bits * k) for k in range(each))) for o in range(0, outputs, each)] for row in zeros]
    parts = {"qweight": torch.tensor(rows, dtype=torch.int32), "qzeros": torch.tensor(words, dtype=torch.int32), "scales": scales}
    return parts | {"g_idx": torch.tensor(group, dtype=torch.int32)}, meant


def awq(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    """As AutoAWQ's WQLinear_GEMM packs: eight outputs by the word, in an order of their own."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    inputs, outputs = weight.shape[1], weight.shape[0]
    q, zeros, scales, meant = grouped(weight, 4, [i // 16 for i in range(inputs)])

    def packed(rows: Any) -> torch.Tensor:
        words = [[signed(sum(row[o + order[k]] << (4 * k) for k in range(8))) for o in range(0, outputs, 8)] for row in rows]
        return torch.tensor(words, dtype=torch.int32)

    return {"qweight": packed(q), "qzeros": packed(zeros), "scales": scales}, meant


WAYS: dict[str, tuple[Packer, dict[str, Any], str]] = {
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [24, 16], "activation_scheme": "dynamic"}, "FP8 weights (a scale a block"),
    "fp8 whole": (fp8_whole, {"quant_method": "fp8", "activation_scheme": "static"}, "FP8 weights (a scale a tensor)"),
    "bnb8": (bnb8, {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}, "8-bit weights (bitsandbytes)"),
    "bnb4": (bnb4, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "4-bit weights (bitsandbytes)"),
    "bnb4 nested": (lambda w: bnb4(w, True), {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "4-bit"),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 16, "sym": True}, "4-bit weights (GPTQ)"),
    "gptq ordered": (lambda w: gptq(w, ordered=True), {"quant_method": "gptq", "bits": 4, "desc_act": True}, "4-bit weights (GPTQ)"),
    "gptq 8, v2": (lambda w: gptq(w, 8, 0), {"quant_method": "gptq", "bits": 8, "checkpoint_format": "gptq_v2"}, "8-bit weights (GPTQ)"),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}, "4-bit weights (AWQ)"),
}  # fmt: skip


def packed(folder: Path, way: str) -> dict[str, torch.Tensor]:
    """A tiny Llama whose blocks' matrices are packed; returns what each stands for."""
    packer, said, _ = WAYS[way]
    torch.manual_seed(1)
    model_of().save(folder)
    found, meant = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if ".layers." in name and weight.ndim == 2:
            parts, meant[name] = packer(weight)
            found |= {f"{name.removesuffix('weight')}{part}": value.contiguous() for part, value in parts.items()}
        else:
            found[name] = meant[name] = weight
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    rewrite(folder, **said)
    return meant


def rewrite(folder: Path, **said: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": config.get("quantization_config", {}) | said}))


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_the_weights_are_those_that_were_packed_and_run(way: str, tmp_path: Path) -> None:
    meant = packed(tmp_path / "packed", way)
    held = open_checkpoint(tmp_path / "packed")
    assert held.quantised.startswith(WAYS[way][2])
    assert held.quantised.endswith("dequantised by the published formula")
    assert {name: shape for name, (shape, _) in shapes_of(held).items()} == {name: tuple(w.shape) for name, w in meant.items()}
    for name, weight in meant.items():
        torch.testing.assert_close(held.weight(name), weight, rtol=1e-5, atol=1e-7)
    plain, ours = model_of().model, load(held)
    plain.load_state_dict(meant)
    rows = torch.tensor([ours.tokenizer(TEXT[0])["input_ids"]])
    torch.testing.assert_close(ours.model(rows).logits, plain(rows).logits, rtol=1e-4, atol=1e-5)
    assert not hasattr(ours.model.config, "quantization_config")


def test_four_bits_are_read_as_bitsandbytes_itself_packs_them() -> None:
    from titer.models.packed import packing, unpacked

    way = packing({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "")
    assert way is not None
    parts, _ = bnb4(torch.linspace(-1, 1, 64).reshape(2, 32))
    assert bytes(parts["weight"].flatten().tolist()).hex() == LINE
    found = unpacked(way, {**parts, "weight": torch.tensor(list(bytes.fromhex(LINE)), dtype=torch.uint8)}, {}, "W")
    torch.testing.assert_close(found.flatten(), torch.tensor([NF4[int(code, 16)] for code in LINE]))


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "three bits": ("gptq", {"bits": 3}, "quantised by gptq with bits 3, which Titer does not read"),
    "marlin": ("gptq", {"checkpoint_format": "marlin"}, "with checkpoint_format 'marlin'"),
    "some in another way": ("gptq", {"dynamic": {"+:.*": {"bits": 8}}}, "with dynamic"),
    "gemv": ("awq", {"version": "gemv"}, "quantised by awq with version 'gemv'"),
    "e5m2": ("fp8", {"fmt": "e5m2"}, "quantised by fp8 with fmt 'e5m2'"),
    "four bits in bfloat16": ("bnb4", {"bnb_4bit_quant_storage": "bfloat16"}, "with bnb_4bit_quant_storage 'bfloat16'"),
    "another kind": ("bnb4", {"bnb_4bit_quant_type": "fp4"}, r"has no weight\.quant_state\.bitsandbytes__fp4"),
    "other blocks": ("fp8", {"weight_block_size": [16, 16]}, r"with scales \(.*\) for blocks of \(16, 16\)"),
    "nothing packed": ("fp8", {"quant_method": "awq", "bits": 4, "zero_point": True}, "but there is no qweight in the files"),
}


@pytest.mark.long
@pytest.mark.parametrize("name", REFUSED)
def test_a_foreign_packing_is_refused_by_name(name: str, tmp_path: Path) -> None:
    way, changed, said = REFUSED[name]
    packed(tmp_path / "packed", way)
    rewrite(tmp_path / "packed", **changed)
    with pytest.raises(TiterError, match=said):
        load(open_checkpoint(tmp_path / "packed"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("way", "part"), [("fp8", "weight_scale_inv"), ("bnb8", "SCB"), ("bnb4", "weight.quant_map"), ("gptq", "qzeros"), ("awq", "scales")]
)
def test_a_missing_scale_is_refused_by_name(way: str, part: str, tmp_path: Path) -> None:
    packed(tmp_path / "packed", way)
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    del tensors[f"model.layers.1.mlp.up_proj.{part}"]
    save_file(tensors, tmp_path / "packed" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TiterError, match=r"layers\.1\.mlp\.up_proj.*(has no|there is no scale for it)"):
        load(open_checkpoint(tmp_path / "packed"))

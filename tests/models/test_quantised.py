"""int8 as compressed-tensors stores it: dequantised weights are within half a step, and those of the model that runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import llama, neox
from tests.models.families import PROMPTS, opt, qwen2
from tests.models.test_adapters import made
from titer.core.errors import TiterError
from titer.data.world import World
from titer.models import quantised
from titer.models.checkpoint import open_checkpoint
from titer.models.fetch import resolve
from titer.models.lm import LM, Decoding, load
from titer.models.weights import blend, delta, difference, shapes_of, skeleton

pytest.importorskip("compressed_tensors")
FAMILIES = {"llama": llama, "neox": neox, "opt": opt, "qwen2": qwen2}
Q = "model.layers.0.self_attn.q_proj"


def compressed(folder: Path, to: Path, served: bool = False, shard: str = "5GB", **settings: Any) -> Path:
    """The model of a folder in int8, scales from each row's range, by the library; `served` rounds activations too."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams

    lm = load(open_checkpoint(folder))
    weights = QuantizationArgs(**{"num_bits": 8, "type": "int", "strategy": "channel", **settings})
    running = QuantizationArgs(num_bits=8, type="int", strategy="token", dynamic=True) if served else None
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=running)
    heads = ["lm_head", "embed_out"]
    apply_quantization_config(lm.model, QuantizationConfig(config_groups={"group_0": scheme}, ignore=heads))
    for module in lm.model.modules():
        if getattr(module, "quantization_scheme", None):
            rows = module.weight.unflatten(1, (-1, weights.group_size)) if weights.group_size else module.weight[:, None]
            scale, zero = calculate_qparams(rows.amin(-1), rows.amax(-1), weights)
            module.weight_scale.data.copy_(scale)
            if not weights.symmetric:
                module.weight_zero_point.data.copy_(zero)
    compressor = ModelCompressor.from_pretrained_model(lm.model)
    compressor.compress_model(lm.model)
    lm.model.save_pretrained(to, max_shard_size=shard)
    lm.tokenizer.save_pretrained(to)
    compressor.update_config(str(to))
    return to


@pytest.fixture
def plain(world: World, tmp_path: Path) -> Path:
    llama(world).save(tmp_path / "plain")
    return tmp_path / "plain"


@pytest.fixture
def int8(plain: Path, tmp_path: Path) -> Path:
    """A tiny Llama in int8."""
    return compressed(plain, tmp_path / "int8", served=True)


def reconfigured(folder: Path, **values: object) -> None:
    """Change values of the quantisation in a config.json."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] = {**config["quantization_config"], **values}
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("served", [False, True], ids=["weights", "weights and activations"])
def test_weights_are_within_half_a_step_and_those_of_the_model_that_runs(name: str, served: bool, world: World, tmp_path: Path) -> None:
    FAMILIES[name](world).save(tmp_path / "plain")
    before = open_checkpoint(tmp_path / "plain")
    after = open_checkpoint(compressed(tmp_path / "plain", tmp_path / "int8", served))
    assert {key: shape for key, (shape, _) in shapes_of(after).items()} == {key: shape for key, (shape, _) in shapes_of(before).items()}
    stored = load_file(tmp_path / "int8" / "model.safetensors")
    linear = {name.removesuffix("_scale") for name in stored if name.endswith(".weight_scale")}
    assert len(linear) >= 8
    for tensor in before.files:
        old, error = delta(before, after, tensor)
        if tensor not in linear:
            assert not error.any()
            continue
        scale = stored[f"{tensor}_scale"]
        torch.testing.assert_close(scale, old.abs().amax(1, keepdim=True) / 127.5)
        assert error.abs().max() > 0
        assert bool((error.abs() <= scale * 0.5 * (1 + 1e-5) + 1e-8).all())
    lm, state = load(after), {}
    for key, tensor in lm.model.state_dict().items():
        if key in after.files:
            assert torch.equal(tensor, after.weight(key)), key
            state[key] = tensor
    assert len(state) >= len(after.files) - 1
    original = load(before)
    original.model.load_state_dict(state, strict=False)
    decoding = Decoding(max_new_tokens=12)
    assert lm.generate(PROMPTS, decoding) == original.generate(PROMPTS, decoding)


def test_int8_is_the_stored_integer_times_its_rows_scale(int8: Path) -> None:
    stored = load_file(int8 / "model.safetensors")
    number, scale = stored[f"{Q}.weight"], stored[f"{Q}.weight_scale"]
    assert number.dtype == torch.int8
    assert torch.equal(open_checkpoint(int8).weight(f"{Q}.weight"), number.float() * scale)


@pytest.mark.parametrize(
    "settings",
    [{"strategy": "group", "group_size": 8}, {"symmetric": False}, {"num_bits": 4, "strategy": "group", "group_size": 8}],
    ids=["groups", "with a zero point", "int4 groups"],
)
def test_other_schemes_of_the_library_are_read_too(settings: dict[str, Any], plain: Path, tmp_path: Path) -> None:
    after = open_checkpoint(compressed(plain, tmp_path / "small", **settings))
    assert after.quantised.startswith(f"int{settings.get('num_bits', 8)} weights")
    before, lm = open_checkpoint(plain), load(after)
    steps = 2 ** settings.get("num_bits", 8) - 1
    scales = [name for name in load_file(tmp_path / "small" / "model.safetensors") if name.endswith(".weight_scale")]
    assert scales
    for name in (scale.removesuffix("_scale") for scale in scales):
        old, error = delta(before, after, name)
        rows = old.unflatten(1, (-1, settings.get("group_size", old.shape[1])))
        span = 2 * rows.abs().amax(-1, keepdim=True) if settings.get("symmetric", True) else rows.amax(-1, True) - rows.amin(-1, True)
        assert bool((error.view_as(rows).abs() <= span / steps * 1.01).all())
        assert torch.equal(lm.model.state_dict()[name], after.weight(name))


def test_it_says_that_the_weights_are_dequantised(int8: Path, plain: Path, tmp_path: Path) -> None:
    assert open_checkpoint(plain).quantised == ""
    said = open_checkpoint(int8).quantised
    assert said.startswith("int8 weights (compressed-tensors, int-quantized), dequantised")
    assert "its activations, quantised where it is served, stay in floating point here" in said
    alone = open_checkpoint(compressed(plain, tmp_path / "weights")).quantised
    assert alone == "int8 weights (compressed-tensors, pack-quantized), dequantised"


def test_the_loaded_model_is_an_ordinary_one(int8: Path, tmp_path: Path) -> None:
    load(open_checkpoint(int8)).save(tmp_path / "saved")
    saved = open_checkpoint(tmp_path / "saved")
    assert saved.quantised == ""
    assert "quantization_config" not in saved.config
    assert not difference(saved, open_checkpoint(int8))
    assert set(saved.files) == set(open_checkpoint(int8).files)
    assert skeleton(open_checkpoint(int8)).tensor("mlp_up[1]") in saved.files
    half = load(open_checkpoint(int8), dtype="bfloat16").model.state_dict()[f"{Q}.weight"]
    assert torch.equal(half, saved.weight(f"{Q}.weight").bfloat16())


def test_sharded_int8_is_the_same(int8: Path, plain: Path, tmp_path: Path) -> None:
    parts = open_checkpoint(compressed(plain, tmp_path / "parts", served=True, shard="3KB"))
    assert len(parts.weight_files) > 2
    assert not difference(parts, open_checkpoint(int8))
    assert set(parts.files) == set(open_checkpoint(int8).files)
    decoding = Decoding(max_new_tokens=8)
    assert load(parts).generate(PROMPTS, decoding) == load(open_checkpoint(int8)).generate(PROMPTS, decoding)


def test_an_adapter_goes_on_the_dequantised_weights(world: World, tmp_path: Path) -> None:
    made(llama(world), tmp_path, target_modules=["q_proj"])
    base = open_checkpoint(compressed(tmp_path / "base", tmp_path / "int8"))
    found = resolve(f"{tmp_path / 'int8'}+{tmp_path / 'adapter'}")
    whole = resolve(str(tmp_path / "adapter"))
    name = f"{Q}.weight"
    change = whole.weight(name) - open_checkpoint(tmp_path / "base").weight(name)
    torch.testing.assert_close(found.weight(name) - base.weight(name), change, atol=1e-6, rtol=1e-5)
    assert found.quantised == base.quantised != ""
    lm: LM = load(found)
    assert all(torch.equal(lm.model.state_dict()[key], found.weight(key)) for key in found.files)


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "hqq": ({"quant_method": "hqq"}, "quantised with hqq, which Titer does not read.*before it was quantised"),
    "torchao": ({"quant_method": "torchao"}, "quantised with torchao"),
    "no method": ({"quant_method": None}, "quantised with None"),
    "no group": ({"config_groups": {}}, "in more than one way, or in none"),
    "nonsense groups": ({"config_groups": {"a": 3}}, "in more than one way, or in none"),
    "two groups": ({"config_groups": {"a": {"weights": {}}, "b": {"weights": {}}}}, "in more than one way"),
    "rotated": ({"transform_config": {"config_groups": {"u": {}}}}, "with transform_config"),
    "sparse": ({"sparsity_config": {"format": "sparse-bitmask"}}, "with sparsity_config"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_quantisations_are_refused(name: str, int8: Path) -> None:
    values, said = REFUSED[name]
    reconfigured(int8, **values)
    with pytest.raises(TiterError, match=said):
        open_checkpoint(int8)


def test_a_model_of_mlx_is_named(int8: Path) -> None:
    config = json.loads((int8 / "config.json").read_text())
    for beside in ({"quantization_config": {"group_size": 64, "bits": 4}}, {"quantization_config": None}):
        (int8 / "config.json").write_text(json.dumps({**config, **beside, "quantization": {"group_size": 64, "bits": 4}}))
        with pytest.raises(TiterError, match=r"quantised with MLX, .*mlx_lm\.convert --dequantize"):
            open_checkpoint(int8)


def test_plain_weights_under_a_configuration_of_quantised_ones_are_refused(int8: Path, plain: Path) -> None:
    """As a merge or a training on a quantised model may leave them: neither is known to be meant."""
    shutil.copy(plain / "model.safetensors", int8 / "model.safetensors")
    with pytest.raises(TiterError, match=r"but there is no weight_scale in the files\. Next: .*config\.json has no quantization_config"):
        open_checkpoint(int8)


def test_a_missing_library_is_named(int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    with pytest.raises(TiterError, match=r"compressed-tensors is not installed.*pip install 'titer\[int8\]'"):
        open_checkpoint(int8)


def test_damaged_quantised_weights_are_named(int8: Path, tmp_path: Path) -> None:
    def edited(edit: Callable[[dict[str, torch.Tensor]], object]) -> Path:
        shutil.rmtree(tmp_path / "edited", ignore_errors=True)
        shutil.copytree(int8, tmp_path / "edited")
        tensors = load_file(int8 / "model.safetensors")
        edit(tensors)
        save_file(tensors, tmp_path / "edited" / "model.safetensors", metadata={"format": "pt"})
        return tmp_path / "edited"

    with pytest.raises(TiterError, match="has a scale but no weight"):
        open_checkpoint(edited(lambda tensors: tensors.pop(f"{Q}.weight")))
    with pytest.raises(TiterError, match="columns ordered by activation"):
        open_checkpoint(edited(lambda tensors: tensors.update({f"{Q}.weight_g_idx": torch.zeros(16)})))
    odd = open_checkpoint(edited(lambda tensors: tensors.update({f"{Q}.weight_scale": torch.ones(5, 7)})))
    with pytest.raises(TiterError, match=r"q_proj\.weight_scale: .*as the quantization_config of config\.json describes"):
        odd.weight(f"{Q}.weight")
    with pytest.raises(TiterError, match=r"q_proj\.weight_scale: .*as the quantization_config of config\.json describes"):
        load(odd)
    lost = open_checkpoint(edited(lambda tensors: tensors.pop(f"{Q}.weight_scale")))
    with pytest.raises(TiterError, match=r"q_proj\.weight is stored as int8, and there is no scale for it"):
        lost.weight(f"{Q}.weight")


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_codes_that_no_configuration_explains_are_not_run_as_numbers(kind: torch.dtype, plain: Path, tmp_path: Path) -> None:
    """As where a quantiser wrote a file of its own beside config.json."""
    shutil.copytree(plain, tmp_path / "codes")
    tensors = load_file(plain / "model.safetensors")
    tensors[f"{Q}.weight"] = (tensors[f"{Q}.weight"] * 100).to(kind)
    save_file(tensors, tmp_path / "codes" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TiterError, match=r"q_proj\.weight is stored as \w+, and config\.json does not say how it is quantised"):
        load(open_checkpoint(tmp_path / "codes"))


def test_a_quantised_model_is_not_blended(int8: Path, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(TiterError, match="is quantised: edited weights"):
        blend(open_checkpoint(int8), open_checkpoint(plain), 0.5, tmp_path / "blend")


def test_floating_point_in_eight_bits_is_read_too(plain: Path, tmp_path: Path) -> None:
    held = open_checkpoint(compressed(plain, tmp_path / "fp8", type="float"))
    assert held.quantised.startswith("float8 weights (compressed-tensors, naive-quantized), dequantised")
    stored = load_file(tmp_path / "fp8" / "model.safetensors")
    meant = torch.tensor([[float(q) for q in row] for row in stored[f"{Q}.weight"].float()]) * stored[f"{Q}.weight_scale"].float().reshape(
        -1, 1
    )
    torch.testing.assert_close(held.weight(f"{Q}.weight"), meant, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(load(held).model.get_parameter(f"{Q}.weight").detach(), held.weight(f"{Q}.weight"))

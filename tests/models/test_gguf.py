"""A GGUF file is measured and run as the model it was made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.models.gguf_made import TEXT, as_gguf, model_of
from titer.core.errors import TiterError
from titer.models.checkpoint import open_checkpoint
from titer.models.compatible import comparable, configured_apart, parameters_apart, vocabularies_apart
from titer.models.fetch import resolve
from titer.models.lm import Decoding, load, read_tokenizer
from titer.models.weights import difference, shapes_of, skeleton


def logits(lm, texts=TEXT) -> torch.Tensor:  # type: ignore[no-untyped-def]
    rows = [lm.tokenizer(text)["input_ids"] for text in texts]
    return lm.logits(rows)[0]


@pytest.mark.parametrize("tied", [False, True], ids=["head apart", "head tied"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_weights_names_and_answers_are_those_of_the_model_it_was_made_of(kind: str, tied: bool, tmp_path: Path) -> None:
    lm = model_of(kind, tie_word_embeddings=tied)
    held = open_checkpoint(as_gguf(lm, tmp_path / "whole.gguf"))
    assert {name: shape for name, (shape, _) in shapes_of(held).items()} == {n: tuple(p.shape) for n, p in lm.model.named_parameters()}
    for name, parameter in lm.model.named_parameters():
        torch.testing.assert_close(held.weight(name), parameter.detach(), rtol=0, atol=0)
    loaded = load(held)
    torch.testing.assert_close(logits(loaded), logits(lm))
    assert loaded.generate(TEXT, Decoding(max_new_tokens=4)) == lm.generate(TEXT, Decoding(max_new_tokens=4))
    assert read_tokenizer(held).chat_template == lm.tokenizer.chat_template
    assert read_tokenizer(held).get_vocab() == lm.tokenizer.get_vocab()
    assert held.window == 128
    assert skeleton(held).layers == 2


def test_a_token_that_the_embedding_has_no_row_for_is_no_difference(tmp_path: Path) -> None:
    """transformers' tokenizer of a Qwen 2 folder adds <|endoftext|> to one that lacks it; that of a GGUF file is without."""
    lm = model_of("qwen2")
    lm.save(tmp_path / "whole")
    whole, copy = open_checkpoint(tmp_path / "whole"), open_checkpoint(as_gguf(lm, tmp_path / "copy.gguf", "F16"))
    assert len(whole.tokenizer()) > whole.shape("lm_head.weight")[0][0]
    assert vocabularies_apart("n", whole, copy) == []


@pytest.mark.parametrize("tied", [False, True], ids=["head apart", "head tied"])
def test_beside_the_model_it_was_made_of_nothing_but_rounding_is_told(tied: bool, tmp_path: Path) -> None:
    """Its metadata are in single precision (1e-06 is 9.999999974752427e-07 there), and a tied head has no tensor in either."""
    lm = model_of(tie_word_embeddings=tied)
    lm.save(tmp_path / "whole")
    whole = open_checkpoint(tmp_path / "whole")
    for stored, told in (("F32", ""), ("F16", "float16")):
        copy = open_checkpoint(as_gguf(lm, tmp_path / f"{stored}.gguf", stored))
        comparable(whole, copy)
        assert difference(whole, copy) == difference(copy, whole) == told
        assert configured_apart(whole, copy) == parameters_apart("n", whole, copy) == []
        assert torch.equal(copy.weight("lm_head.weight"), copy.weight("model.embed_tokens.weight")) == tied


@pytest.mark.parametrize("stored", ["F16", "BF16", "Q8_0", "Q5_1", "Q4_0", "Q4_K", "Q6_K"])
def test_blocks_are_dequantised_as_transformers_does(stored: str, tmp_path: Path) -> None:
    file = as_gguf(model_of(width=256), tmp_path / "blocks.gguf", stored)
    held = open_checkpoint(file)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager")
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(held.weight(name), parameter.detach(), rtol=0, atol=0)
    ours = load(held)
    rows = torch.tensor([ours.tokenizer(TEXT[0])["input_ids"]])
    torch.testing.assert_close(ours.model(rows).logits, theirs(rows).logits, rtol=1e-4, atol=1e-4)
    assert held.quantised.startswith(f"GGUF, {stored}{'_M' if stored == 'Q4_K' else ''} (tensors: ")
    assert held.shape("model.embed_tokens.weight")[1] == stored


@pytest.mark.long
def test_a_model_in_several_files_is_one(tmp_path: Path) -> None:
    lm = model_of()
    first = as_gguf(lm, tmp_path / "split.gguf", spans=3)
    for given in (first, tmp_path, first.with_name("split-00002-of-00003.gguf")):
        held = open_checkpoint(given)
        assert held.gguf == first.name
        assert len(held.weight_files) == 3
        torch.testing.assert_close(logits(load(held)), logits(lm))
    first.with_name("split-00003-of-00003.gguf").unlink()
    with pytest.raises(TiterError, match=r"lacks split-00003-of-00003\.gguf \(1 of 3 parts"):
        open_checkpoint(first)


def test_of_a_folder_with_several_one_is_named(tmp_path: Path) -> None:
    for stored in ("Q8_0", "Q4_0"):
        as_gguf(model_of(), tmp_path / f"tiny.{stored}.gguf", stored)
    with pytest.raises(TiterError, match=r"holds 2 GGUF models \(tiny\.Q4_0\.gguf, tiny\.Q8_0\.gguf\)"):
        resolve(str(tmp_path))
    one, other = (resolve(str(tmp_path / f"tiny.{stored}.gguf")) for stored in ("Q8_0", "Q4_0"))
    assert one.label == "tiny.Q8_0"
    assert one.key != other.key
    assert one.place == str(tmp_path / "tiny.Q8_0.gguf")
    assert one.key == open_checkpoint(tmp_path / "tiny.Q8_0.gguf").key


@pytest.mark.long
def test_rotary_scaling_is_the_models(tmp_path: Path) -> None:
    """Llama 3's stands as a tensor, which transformers passes over; yarn and linear as metadata, which it passes over too."""
    import gguf
    import numpy as np
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    lm = model_of(width=256, rope_parameters={**scaling, "rope_theta": 500000.0})
    plain, _ = ROPE_INIT_FUNCTIONS["linear"](
        model_of(width=256, rope_parameters={"rope_type": "linear", "factor": 1.0, "rope_theta": 5e5}).model.config, None
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](lm.model.config, None)
    divisors = (plain / scaled).numpy()
    add = gguf.GGUFWriter.write_header_to_file
    with pytest.MonkeyPatch.context() as patch:

        def with_frequencies(writer: gguf.GGUFWriter) -> None:
            writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
            add(writer)

        patch.setattr(gguf.GGUFWriter, "write_header_to_file", with_frequencies)
        held = open_checkpoint(as_gguf(lm, tmp_path / "three.gguf"))
        divisors = divisors * np.linspace(1, 1.5, len(divisors))
        as_gguf(lm, tmp_path / "other.gguf")
    assert {key: held.configuration.rope_parameters[key] for key in scaling} == scaling
    torch.testing.assert_close(logits(load(held)), logits(lm))
    with pytest.raises(TiterError, match=r"scales its rotary embedding .* \(rope_freqs\.weight\)"):
        open_checkpoint(tmp_path / "other.gguf")
    for kind in ("linear", "yarn"):
        lm = model_of(rope_parameters={"rope_type": kind, "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 32})
        more = {"llama.rope.scaling.type": kind, "llama.rope.scaling.factor": 4.0, "llama.rope.scaling.original_context_length": 32}
        torch.testing.assert_close(logits(load(open_checkpoint(as_gguf(lm, tmp_path / f"{kind}.gguf", **more)))), logits(lm))
    with pytest.raises(TiterError, match=r"\(longrope\)"):
        open_checkpoint(as_gguf(lm, tmp_path / "long.gguf", **{"llama.rope.scaling.type": "longrope"}))


@pytest.mark.long
def test_what_is_not_read_is_one_sentence(tmp_path: Path) -> None:
    lm = model_of()
    whole = as_gguf(lm, tmp_path / "whole.gguf").read_bytes()
    cases = {
        "cut in the weights": whole[: len(whole) // 2],
        "cut in the header": whole[:100],
        "empty": b"",
        "no GGUF": b"PK\x03\x04" + whole[4:],
        "counts without end": whole[:8] + b"\xff" * 16 + whole[24:],
        "another architecture": whole.replace(b"llama", b"llamb"),
        "no tokenizer": whole.replace(b"tokenizer.ggml.model", b"tokenizer.ggml.modes"),
        "blocks by the million": whole.replace(
            b"llama.block_count\x04\x00\x00\x00\x02\x00\x00", b"llama.block_count\x04\x00\x00\x00\x02\x00\x7f"
        ),
        "a tensor of no place": whole.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"),
        "a tensor less": whole.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_gat.weigh"),
    }
    for name, held in cases.items():
        (tmp_path / "broken.gguf").write_bytes(held)
        with pytest.raises(TiterError) as raised:
            load(open_checkpoint(tmp_path / "broken.gguf"))
        assert "broken.gguf" in raised.value.what or "broken" in raised.value.what, name
        assert "\n" not in str(raised.value), name

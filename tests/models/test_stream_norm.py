"""The stream-norm model against a naive form of the paper's formulas, and as a model like any other here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from tests.models.families import PROMPTS
from tests.models.test_generation import greedy
from titer.core.errors import TiterError
from titer.data.example import Part, Stream, positions
from titer.data.world import World, WorldSource
from titer.methods.sft import SFT
from titer.models.checkpoint import open_checkpoint
from titer.models.hooks import adding, reading, replacing
from titer.models.lm import LM, SIZES, Architecture, Decoding, load, sized
from titer.models.stream_norm import StreamNormConfig, StreamNormForCausalLM, sinusoids
from titer.models.weights import delta, skeleton
from titer.stage import Optimiser, Stage
from titer.train import train

SMALL = Architecture(layers=2, width=32, heads=4, positions=64, activation="gelu_pytorch_tanh", norm="stream")
IDS = torch.tensor([[1, 9, 12, 3, 20, 21, 22, 4], [1, 8, 11, 3, 25, 26, 27, 4]])
# The paper's code allocates a second LayerNorm (2 x width) in each block and never uses it; its totals count it, ours has none.
PAPER = [("mini", 59, 2_692_224), ("mini", 54, 2_690_304), ("micro", 59, 808_448), ("nano-paper", 59, 90_576)]
PAPER += [("medium", 59, 15_449_600), ("gopher-44m", 59, 25_280_512)]


@pytest.fixture
def made(world: World) -> LM:
    """A small model whose every weight and bias counts: the initial zeros, ones and small steps are shaken."""
    lm = SMALL.build(world.tokenizer(), 0)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in lm.model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=noise))
    lm.model.eval()
    return lm


def model(**changes: object) -> StreamNormForCausalLM:
    shape = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    torch.manual_seed(0)
    return StreamNormForCausalLM(StreamNormConfig(**{**shape, **changes})).eval()


def layer_norm(x: torch.Tensor, w: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: torch.Tensor, w: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return torch.einsum("td,od->to", x, w[f"{name}.weight"]) + w[f"{name}.bias"]


def naive(w: dict[str, torch.Tensor], ids: list[int], layers: int, heads: int) -> torch.Tensor:
    """Logits (T, V) of one row, head by head and query by query."""
    x = w["embed.weight"][ids]
    width = x.shape[1]
    if "places.weight" in w:
        x = x + w["places.weight"][: len(ids)]
    else:
        wave = [[(math.sin, math.cos)[j % 2](p / 10000 ** (j // 2 * 2 / width)) for j in range(width)] for p in range(len(ids))]
        x = x + torch.tensor(wave, dtype=x.dtype)
    for i in range(layers):
        x = layer_norm(x, w, f"blocks.{i}.norm")
        query, key, value = linear(x, w, f"blocks.{i}.attention.qkv").split(width, dim=1)
        mixed = torch.zeros_like(x)
        for cols in torch.arange(width).split(width // heads):
            for t in range(len(ids)):
                scores = torch.einsum("f,sf->s", query[t, cols], key[: t + 1, cols]) / math.sqrt(len(cols))
                share = scores.exp() / scores.exp().sum()
                mixed[t, cols] = torch.einsum("s,sf->f", share, value[: t + 1, cols])
        x = x + linear(mixed, w, f"blocks.{i}.attention.output")
        up = linear(x, w, f"blocks.{i}.mlp.up")
        x = x + linear(0.5 * up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3))), w, f"blocks.{i}.mlp.down")
    return torch.einsum("td,vd->tv", layer_norm(x, w, "final_norm"), w["lm_head.weight"])


@pytest.mark.parametrize(("name", "vocabulary", "stated"), PAPER)
def test_the_paper_s_parameter_counts(name: str, vocabulary: int, stated: int) -> None:
    layers, width, heads = SIZES[name]
    shape = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width}
    with torch.device("meta"):
        built = StreamNormForCausalLM(StreamNormConfig(vocab_size=vocabulary, **shape))
    unused = layers * 2 * width
    assert sum(p.numel() for p in built.parameters()) + unused == stated
    if name == "mini":
        assert sum(p.numel() for p in built.blocks[0].parameters()) + 2 * width == 444_864


def test_sinusoids_at_known_places() -> None:
    found = sinusoids(torch.tensor([0, 1, 100]), 4)
    s, c = math.sin, math.cos
    expected = [[0, 1, 0, 1], [s(1), c(1), s(0.01), c(0.01)], [s(100), c(100), s(1), c(1)]]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-5)
    assert sinusoids(torch.arange(6).reshape(2, 3), 5).shape == (2, 3, 5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["sinusoidal", "learned"])
@torch.no_grad()
def test_the_logits_equal_a_naive_form_in_double(kind: str, attention: str) -> None:
    built = model(position_embedding=kind, initializer_range=0.3, attn_implementation=attention).double()
    for p in built.parameters():
        p.add_(0.1 * torch.randn_like(p))
    assert built.config._attn_implementation == attention
    for row, found in zip(IDS.tolist(), built(input_ids=IDS).logits, strict=True):
        expected = naive(dict(built.state_dict()), row, layers=2, heads=4)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # the sines are float32


@pytest.mark.parametrize("stated", [True, False])
@torch.no_grad()
def test_left_right_and_no_padding_give_the_same_logits(made: LM, stated: bool) -> None:
    row = IDS[:1, :6]
    plain = made.model(input_ids=row).logits[0]
    for left, place in ((3, slice(3, 9)), (0, slice(0, 6))):
        ids, mask = torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 9, dtype=torch.long)
        ids[0, left : left + 6], mask[0, left : left + 6] = row[0], 1
        ids[1], mask[1] = 5, 1
        given = {"position_ids": positions(mask)} if stated else {}
        found = made.model(input_ids=ids, attention_mask=mask, **given).logits
        torch.testing.assert_close(found[0, place], plain, rtol=1e-4, atol=1e-5)
        assert bool(found.isfinite().all())


@torch.no_grad()
def test_embeddings_and_kept_logits_and_states(made: LM) -> None:
    whole = made.model(input_ids=IDS, output_hidden_states=True, output_attentions=True)
    given = made.model(inputs_embeds=made.model.get_input_embeddings()(IDS)).logits
    assert torch.equal(given, whole.logits)
    torch.testing.assert_close(made.model(input_ids=IDS, logits_to_keep=2).logits, whole.logits[:, -2:])
    torch.testing.assert_close(made.model(input_ids=IDS, logits_to_keep=torch.tensor([1, 4])).logits, whole.logits[:, [1, 4]])
    assert len(whole.hidden_states) == 3
    torch.testing.assert_close(whole.attentions[1].sum(-1), torch.ones(2, 4, 8))
    assert made.model(input_ids=IDS).hidden_states is None
    with pytest.raises(ValueError, match="either"):
        made.model()


@torch.no_grad()
def test_bfloat16_stays_close(made: LM) -> None:
    exact = made.model(input_ids=IDS).logits.softmax(-1)
    for attention in ("eager", "sdpa"):
        made.model.set_attn_implementation(attention)
        coarse = made.model.to(torch.bfloat16)(input_ids=IDS).logits
        assert coarse.dtype == torch.bfloat16
        assert float((coarse.float().softmax(-1) - exact).abs().max()) < 0.1


@torch.no_grad()
def test_a_cache_changes_no_logit(made: LM) -> None:
    whole = made.model(input_ids=IDS, use_cache=False)
    assert whole.past_key_values is None
    first = made.model(input_ids=IDS[:, :3], use_cache=True)
    then = made.model(input_ids=IDS[:, 3:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, then.logits], dim=1), whole.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [2, 64])
def test_cached_padded_batches_equal_uncached_one_by_one_greedy(made: LM, batch: int) -> None:
    expected = [greedy(made, ids, 12) for ids in made.tokenizer(list(PROMPTS))["input_ids"]]
    assert made.generate(PROMPTS, Decoding(max_new_tokens=12), batch) == expected
    assert len({one.text for one in expected}) > 1


@torch.no_grad()
def test_a_saved_folder_opens_again_and_says_what_it_needs(made: LM, tmp_path: Path) -> None:
    made.save(tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    again = load(checkpoint, "cpu")
    assert again.window == 64
    assert again.model.config._attn_implementation == "eager"
    assert all(torch.equal(p, again.model.state_dict()[name]) for name, p in made.model.state_dict().items())
    assert torch.equal(again.model(input_ids=IDS).logits, made.model(input_ids=IDS).logits)
    stated = json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8"))
    assert stated["model_type"] == "titer_stream_norm"
    assert "titer" in stated["opens_with"]
    found = skeleton(checkpoint)
    for site in ("attn_o[1]", "mlp_up[0]", "mlp_down[1]"):
        assert found.tensor(site) == made.sites.tensor(site)
        assert torch.equal(checkpoint.weight(found.tensor(site)), made.sites.linear(site).weight)
        assert not delta(checkpoint, checkpoint, found.tensor(site))[1].any()


@torch.no_grad()
def test_sites_are_the_places_of_the_formulas(made: LM) -> None:
    kinds = ("attn_out", "mlp_in", "mlp_act", "mlp_out", "resid")
    assert made.sites.names() == ["embed", *(f"{kind}[{i}]" for i in range(2) for kind in kinds)]
    for site, shape in {"attn_o[1]": (32, 32), "mlp_up[0]": (128, 32), "mlp_down[1]": (32, 128)}.items():
        assert made.sites.linear(site).weight.shape == shape
    assert made.sites.tensor("attn_o[1]") == "blocks.1.attention.output.weight"
    with pytest.raises(TiterError, match="not gated"):
        made.sites.linear("mlp_gate[0]")
    with reading(made.sites, made.sites.names()) as seen:
        logits = made.model(input_ids=IDS).logits
    assert torch.equal(seen["embed"], made.model.embed.weight[IDS])
    before = seen["embed"] + sinusoids(torch.arange(8), 32)
    for i, block in enumerate(made.sites.blocks):
        middle = block.whole.norm(before) + seen[f"attn_out[{i}]"]
        torch.testing.assert_close(seen[f"mlp_in[{i}]"], middle)  # no norm before the MLP
        hidden = torch.nn.functional.gelu(made.sites.linear(f"mlp_up[{i}]")(middle), approximate="tanh")
        torch.testing.assert_close(seen[f"mlp_act[{i}]"], hidden)
        torch.testing.assert_close(seen[f"resid[{i}]"], middle + seen[f"mlp_out[{i}]"])
        before = seen[f"resid[{i}]"]
    torch.testing.assert_close(made.model.lm_head(made.model.final_norm(before)), logits)


@torch.no_grad()
def test_sites_can_be_added_to_and_replaced(made: LM) -> None:
    plain = made.model(input_ids=IDS).logits
    for site in made.sites.names():
        with reading(made.sites, [site]) as seen:
            made.model(input_ids=IDS)
        width = seen[site].shape[-1]
        with adding(made.sites, {site: torch.linspace(-3, 3, width)}), reading(made.sites, [site]) as after:
            assert not torch.allclose(made.model(input_ids=IDS).logits, plain)
        torch.testing.assert_close(after[site], seen[site] + torch.linspace(-3, 3, width))
    with reading(made.sites, ["resid[1]"]) as seen:
        made.model(input_ids=IDS)
    swapped = seen["resid[1]"].flip(0)
    with replacing(made.sites, {"resid[1]": lambda _: swapped}):
        torch.testing.assert_close(made.model(input_ids=IDS).logits, plain.flip(0))
    assert torch.equal(made.model(input_ids=IDS).logits, plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.model.modules())


def test_the_initial_weights(world: World) -> None:
    built = sized("micro", 64, "stream").build(world.tokenizer(), 0).model
    block = built.blocks[2]
    scaled = 0.02 / math.sqrt(8)
    expected = {block.attention.qkv: 0.02, block.mlp.up: 0.02, built.lm_head: 0.02, built.embed: 0.02}
    expected |= {block.attention.output: scaled, block.mlp.down: scaled}
    for module, std in expected.items():
        assert float(module.weight.detach().std()) == pytest.approx(std, rel=0.05)
    for name, p in built.named_parameters():
        if name.endswith("bias"):
            assert not p.any()
        elif "norm" in name:
            assert bool((p == 1).all())


def test_one_step_of_training_lowers_the_loss(world: World, tmp_path: Path) -> None:
    stream = Stream(parts=(Part(source=WorldSource(world=world, kind="safe"), answer="comply"),), seed=0)
    optimiser = Optimiser(rate=1e-2, weight_decay=0.0)
    streams = {"train": stream}
    stage = Stage(name="s", kind="pretrain", method=SFT(), streams=streams, steps=1, batch=16, optimiser=optimiser, architecture=SMALL)
    begin = SMALL.build(world.tokenizer(), 0)
    train(stage, lambda: SMALL.build(world.tokenizer(), 0), lambda _: begin, tmp_path)
    batch = stream.batch(1000, 64, begin.tokenizer)

    @torch.no_grad()
    def loss(lm: LM) -> float:
        return float(lm.model(**batch.inputs(), labels=batch.labels).loss)

    assert loss(begin) == pytest.approx(math.log(len(begin.tokenizer)), rel=0.1)
    assert loss(load(open_checkpoint(tmp_path / "model"), "cpu")) < loss(begin) - 0.1


@pytest.mark.parametrize("name", sorted(SIZES))
def test_a_named_size(name: str) -> None:
    layers, width, heads = SIZES[name]
    for norm, activation in (("pre", "gelu"), ("stream", "gelu_pytorch_tanh")):
        found = sized(name, 160, norm)  # type: ignore[arg-type]
        assert found == Architecture(layers=layers, width=width, heads=heads, positions=160, activation=activation, norm=norm)
    assert width % heads == 0


def test_a_wrong_size_or_shape_is_a_clear_error() -> None:
    with pytest.raises(TiterError, match="unknown size 'minni'") as caught:
        sized("minni", 64)
    assert "did you mean 'mini'" in str(caught.value)
    with pytest.raises(Exception, match="does not divide into 5 heads"):
        model(num_attention_heads=5)


def test_the_default_architecture_is_gpt_neox_bit_for_bit(world: World) -> None:
    built = Architecture().build(world.tokenizer(), 3)
    t = built.tokenizer
    config = GPTNeoXConfig(
        vocab_size=len(t),
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=64,
        use_parallel_residual=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        pad_token_id=t.pad_token_id,
        bos_token_id=t.bos_token_id,
        eos_token_id=t.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = GPTNeoXForCausalLM(config).state_dict()
    assert expected.keys() == built.model.state_dict().keys()
    assert all(torch.equal(p, expected[name]) for name, p in built.model.state_dict().items())

"""The decoder of the mechanistic study: one LayerNorm per block, applied to the residual stream itself.

Source: Jain et al., arXiv 2407.10264, the model of the synthetic experiments. A block is x <- LN(x);
x <- x + Attn(x); x <- x + MLP(x): each block normalises the stream once, and the MLP reads it without another norm.
No transformers release knows this architecture: `AutoModelForCausalLM` opens a saved folder once this module
is imported, which `titer.models.lm` does; config.json says so in its field `opens_with`.
Shapes: B rows, T tokens, S tokens seen (cache included), D width, H heads, F = D / H, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel, initialization
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple

TANH_GELU = "gelu_pytorch_tanh"
POSITION_BASE = 10000.0


@strict
class StreamNormConfig(PreTrainedConfig):
    """The configuration of a model; the defaults are the paper's `mini`. `opens_with` says how to open a saved folder."""

    model_type = "titer_stream_norm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 59
    hidden_size: int = 192
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    intermediate_size: int = 768
    max_position_embeddings: int = 160
    position_embedding: Literal["sinusoidal", "learned"] = "sinusoidal"
    hidden_act: str = TANH_GELU
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    opens_with: str = "titer: import titer.models.stream_norm, then transformers' AutoModelForCausalLM.from_pretrained"

    def validate_architecture(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"a width of {self.hidden_size} does not divide into {self.num_attention_heads} heads")


def sinusoids(places: torch.Tensor, width: int) -> torch.Tensor:
    """Sinusoidal position embeddings: positions (...) -> (..., D), float32; column 2i is sin(p / 10000^(2i/D)), column 2i+1 the cosine."""
    even = torch.arange(0, width, 2, device=places.device, dtype=torch.float32)
    angles = places[..., None].float() * torch.exp(even * (-math.log(POSITION_BASE) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :width]


def eager_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **rest: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention by plain matrix products: query (B, H, T, F), key and value (B, H, S, F), additive mask -> output (B, T, H, F) and
    weights (B, H, T, S)."""
    scores = query @ key.transpose(2, 3) * rest["scaling"]
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    return (weights @ value).transpose(1, 2), weights


class IntoStream(nn.Linear):
    """A Linear that writes into the residual stream; a class of its own because its initial weights are smaller."""


class StreamNormAttention(nn.Module):
    """Causal self-attention: one Linear for queries, keys and values, and an output projection."""

    is_causal = True  # read by the attention functions of transformers

    def __init__(self, config: StreamNormConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer
        self.size = config.hidden_size // config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = IntoStream(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, cache: Any = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x (B, T, D) -> (B, T, D) and the attention weights (B, H, T, S), which eager attention alone gives (else None)."""
        query, key, value = (part.unflatten(-1, (-1, self.size)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        mixed, weights = attend(self, query, key, value, mask, scaling=self.size**-0.5, dropout=0.0)
        return self.output(mixed.flatten(2)), weights


class StreamNormMLP(nn.Module):
    """The MLP of a block: two Linears with the activation between them."""

    def __init__(self, config: StreamNormConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = IntoStream(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.activation(self.up(x)))  # type: ignore[no-any-return]


class StreamNormBlock(nn.Module):
    """One decoder block: x <- LN(x); x <- x + Attn(x); x <- x + MLP(x)."""

    def __init__(self, config: StreamNormConfig, layer: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = StreamNormAttention(config, layer)
        self.mlp = StreamNormMLP(config)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None, cache: Any = None) -> tuple[torch.Tensor, Any]:
        """(B, T, D) -> (B, T, D) and the attention weights, as `StreamNormAttention` gives them."""
        x = self.norm(hidden_states)
        mixed, weights = self.attention(x, mask, cache)
        x = x + mixed
        return x + self.mlp(x), weights


class StreamNormForCausalLM(PreTrainedModel, GenerationMixin):
    """The language model: token embedding plus positions, the blocks, a final LayerNorm, an untied head without bias."""

    config_class = StreamNormConfig
    _input_embed_layer = "embed"
    _no_split_modules = ["StreamNormBlock"]  # noqa: RUF012  as transformers declares it
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: StreamNormConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        learned = config.position_embedding == "learned"
        self.places = nn.Embedding(config.max_position_embeddings, config.hidden_size) if learned else None
        self.blocks = nn.ModuleList([StreamNormBlock(config, i) for i in range(config.num_hidden_layers)])
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Weights N(0, std 0.02), biases 0, norms 1; the two projections into the stream have std 0.02 / sqrt(2 layers)."""
        super()._init_weights(module)
        if isinstance(module, IntoStream):
            std = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
            initialization.normal_(module.weight, mean=0.0, std=std)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Ids (B, T), or embeddings without positions (B, T, D) -> logits (B, T or the last `logits_to_keep`, V).

        Without `position_ids` a token's position is its index among the tokens of its row that are not padding, by `attention_mask` (B, S).
        `output_attentions` gives the weights with eager attention only.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = _positions(x, attention_mask, past_key_values)
        mask = create_causal_mask(
            config=self.config, inputs_embeds=x, attention_mask=attention_mask, past_key_values=past_key_values, position_ids=position_ids
        )
        x = x + (sinusoids(position_ids, x.shape[-1]).to(x.dtype) if self.places is None else self.places(position_ids))
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        weighed = self.config.output_attentions if output_attentions is None else output_attentions
        seen, attended = [], []
        for block in self.blocks:
            seen += [x] if states else []
            x, weights = block(x, mask, past_key_values)
            attended += [weights] if weighed else []
        x = self.final_norm(x)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(x[:, kept])
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values,
            hidden_states=(*seen, x) if states else None,  # the last one after the final norm, as in transformers
            attentions=tuple(attended) if weighed else None,
        )


def _positions(x: torch.Tensor, attention_mask: torch.Tensor | None, cache: Any) -> torch.Tensor:
    """Positions (B, T) or (1, T): each token's index among the tokens of its row that are not padding, those in the cache counted."""
    tokens = x.shape[1]
    if attention_mask is not None and attention_mask.ndim == 2:
        return (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -tokens:]
    past = cache.get_seq_length() if cache is not None else 0
    return torch.arange(past, past + tokens, device=x.device)[None]


AutoConfig.register(StreamNormConfig.model_type, StreamNormConfig, exist_ok=True)
AutoModelForCausalLM.register(StreamNormConfig, StreamNormForCausalLM, exist_ok=True)

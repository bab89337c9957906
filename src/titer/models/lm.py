"""A loaded model: a transformers model with its tokenizer; generates answers and computes logits in batches.

Shapes: B prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from pydantic import Field
from transformers import GenerationConfig, GPTNeoXForCausalLM, LogitsProcessorList, StoppingCriteriaList
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from titer.core.config import Record
from titer.core.errors import TiterError, unknown, visible
from titer.data.encode import begin_ids, check_length, end_id, pad, prompt_ids
from titer.data.example import positions
from titer.data.templates import think
from titer.data.thoughts import left_open, opened, thinks
from titer.models.checkpoint import Checkpoint, opening
from titer.models.context_windows import Completion, Decoding, Guide, Rooms, Turn, answers
from titer.models.modes import as_stored, evaluating, own_settings_aside
from titer.models.names import opener
from titer.models.older import readable
from titer.models.padding import Padding
from titer.models.sites import Sites
from titer.models.stated import stated_window
from titer.models.stream_norm import TANH_GELU, StreamNormForCausalLM  # registers the variant for `load`
from titer.models.suffix import behind
from titer.models.weights import check_fits, check_plain, misshapen
from titer.models.words import completed, own_template

__all__ = ["Completion", "Decoding"]
Progress = Callable[[int, int], None]
SHORT_WINDOW = 256
LAST = 64  # tokens, among which a template opens a thought
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


class Architecture(Record):
    """The architecture of a new model to train from scratch: sequential residual, plain Linear layers, non-gated MLP.

    `norm` "pre" is GPT-NeoX; "stream" is the mechanistic study's variant (models/stream_norm.py), which only opens with titer.
    """

    layers: int = Field(default=4, ge=1)
    width: int = Field(default=64, ge=8)
    heads: int = Field(default=4, ge=1)
    positions: int = Field(default=64, ge=4)
    activation: str = "gelu"
    norm: Literal["pre", "stream"] = "pre"

    def build(self, tokenizer: Any, seed: int) -> LM:
        """Returns a randomly initialised model of this architecture for the tokenizer's vocabulary."""
        shape = {
            "vocab_size": len(tokenizer),
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": 4 * self.width,
            "max_position_embeddings": self.positions,
            "hidden_act": self.activation,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
        kind: Any = StreamNormForCausalLM if self.norm == "stream" else GPTNeoXForCausalLM
        own = {} if self.norm == "stream" else {"use_parallel_residual": False, "rope_parameters": rope}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = kind._from_config(kind.config_class(**shape, **own), attn_implementation=_attention(self.positions))
        return LM(made, tokenizer, "new model")


SIZES: dict[str, tuple[int, int, int]] = {  # layers, width, heads
    "nano": (4, 64, 4),
    "nano-paper": (3, 48, 3),
    "micro": (4, 128, 4),
    "mini": (6, 192, 6),
    "medium": (8, 400, 8),
    "gopher-44m": (8, 512, 16),
    "gpt2": (12, 768, 12),
    "gpt2-medium": (24, 1024, 16),
    "gpt2-large": (36, 1280, 20),
    "gpt2-xl": (48, 1600, 25),
}


def sized(name: str, positions: int, norm: Literal["pre", "stream"] = "pre") -> Architecture:
    """Returns the architecture of a named size (`SIZES`); the norm "stream" comes with its paper's tanh-GELU. Errors: an unknown name."""
    if name not in SIZES:
        unknown("size", name, SIZES)
    layers, width, heads = SIZES[name]
    activation = TANH_GELU if norm == "stream" else "gelu"
    return Architecture(layers=layers, width=width, heads=heads, positions=positions, activation=activation, norm=norm)


def _attention(window: int | None) -> str | None:
    """Chooses eager attention for short windows on the CPU, where it trains 1.03 to 1.4 times as fast (docs/log.md).

    None leaves it to transformers: fused (sdpa) in every class that has it, eager in the others (BLOOM).
    """
    short = window is not None and window <= SHORT_WINDOW and not torch.cuda.is_available()
    return "eager" if short else None


class LM:
    """A transformers model with its tokenizer, on one device."""

    def __init__(self, model: Any, tokenizer: Any, label: str) -> None:
        self.model, self.tokenizer, self.label = model, tokenizer, label
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        as_stored(model)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    @property
    def window(self) -> int | None:
        """The context window in tokens; None where the model's configuration states none."""
        return stated_window(self.model.config)

    @cached_property
    def sites(self) -> Sites:
        return Sites(self.model)

    @cached_property
    def padding(self) -> Padding:
        """Forms batches in which padding does not change what the model computes."""
        return Padding(self.model, self.tokenizer.pad_token_id, self.window)

    @cached_property
    def thinks(self) -> bool:
        """Whether the model may think before it answers, judged by its tokenizer."""
        return thinks(self.tokenizer)

    @property
    def ends(self) -> list[int]:
        """The token ids that end an answer."""
        stated = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ids = stated if isinstance(stated, list) else [stated]
        return sorted({int(i) for i in [*ids, self.tokenizer.eos_token_id, self._turn_end] if i is not None})

    @cached_property
    def _turn_end(self) -> int | None:
        """The token with which the chat template ends an answer; trained as the answer's end, so it ends a generated one too."""
        return end_id(self.tokenizer)

    def save(self, folder: Path) -> None:
        """Saves an ordinary Hugging Face folder: config, safetensors, tokenizer; adds what transformers 4 needs, if `older` can."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        readable(folder)

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in prompt_ids(self.tokenizer, prompts)]

    def check(self, prompts: Sequence[str], room: int) -> None:
        """Checks that each prompt leaves room for `room` more tokens in the model's window. Errors: one that does not."""
        for prompt, length in zip(prompts, self.lengths(prompts), strict=True):
            check_length(length + room, self.window, prompt)

    def begun(
        self,
        prompts: Sequence[str],
        prefixes: Sequence[str] | None,
        decoding: Decoding,
        window: int | None,
        more: int = 0,
        raw: bool = False,
    ) -> tuple[list[list[int]], list[str]]:
        """Returns each prompt's token ids with its prefilled answer (`prefixes`), and what opened a thought at its end, "" for nothing.

        `raw`: without a chat template. Errors: a prompt that leaves no room in the window for the answer and `more` tokens.
        """
        heads = prompt_ids(self.tokenizer, prompts, raw)
        marks = [opened(self.tokenizer.decode(head[-LAST:])) for head in heads]
        ids = heads
        if prefixes is not None:
            begins = begin_ids(self.tokenizer, prefixes, marks, raw)
            ids = [head + tail for head, tail in zip(heads, begins, strict=True)]
            marks = [left_open(prefix) if prefix else mark for prefix, mark in zip(prefixes, marks, strict=True)]
        for row, prompt in zip(ids, prompts, strict=True):
            check_length(len(row) + decoding.max_new_tokens + more, window, prompt)
        return ids, marks

    def generate(
        self,
        prompts: Sequence[str],
        decoding: Decoding,
        batch: int = 64,
        prefixes: Sequence[str] | None = None,
        progress: Progress | None = None,
        suffixes: torch.Tensor | None = None,
        known: Mapping[int, Completion] = MappingProxyType({}),
        keep: Callable[[Mapping[int, Completion]], None] | None = None,
        guide: Guide | None = None,
        raw: bool = False,
    ) -> list[Completion]:
        """Generates an answer to each prompt, in left-padded batches of similar length (`padding`).

        `prefixes`: prefilled beginnings of the answers. `raw`: the prompts are texts to continue, without the chat template.
        `suffixes` (prompts, n, D): embeddings inserted into each prompt (`models/suffix.py`); not with prefixes, and thoughts get no
        tokens of their own. `known`: answers by prompt index; a batch whose answers are all known is not generated again. `keep` is
        called with each new batch's answers. `guide`: a decoder that chooses the tokens (decoders/base.py).
        Errors: a prompt with no room for its answer in the model's window; a guide where embeddings are inserted.
        """
        if suffixes is not None:
            decoding = decoding.model_copy(update={"max_thinking_tokens": 0})
            if guide is not None:
                raise TiterError(
                    "a decoder cannot be used with an attack that inserts embeddings into prompts", next_step="leave out one of the two."
                )
        ids, marks = self.begun(prompts, prefixes, decoding, self.window, 0 if suffixes is None else suffixes.shape[1], raw)
        window = self.window if guide is None else guide.begin(decoding, ids)

        def made(places: Sequence[int], start: int) -> dict[int, Completion]:
            ask = partial(self.asked, decoding, start, None if suffixes is None else suffixes[places], guide)
            rows, begun = {i: ids[i] for i in places}, {i: marks[i] for i in places}
            return answers(self.tokenizer, self.ends, rows, begun, decoding, window, ask)

        order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
        found: dict[int, Completion] = {}
        with evaluating(self.model):
            for start in range(0, len(order), batch):
                chosen = order[start : start + batch]
                new = not all(i in known for i in chosen)
                some = {i: known[i] for i in chosen} if not new else guide.tried(made, chosen, start) if guide else made(chosen, start)
                if new and keep:
                    keep(some)
                found |= some
                if progress:
                    progress(len(found), len(order))
        return [found[i] for i in range(len(ids))]

    @torch.inference_mode()
    def asked(
        self, decoding: Decoding, place: int, soft: torch.Tensor | None, guide: Guide | None, turns: Mapping[int, Turn], number: int
    ) -> dict[int, list[int]]:
        """Returns each turn's new tokens, up to and with the first that ends an answer. The sampling seed depends on `place`, `number`."""
        asked = list(turns.values())
        groups = self.padding.batches([turn.row for turn in asked], range(len(asked)), len(asked), "generated")
        groups = guide.apart(turns, groups) if guide else groups
        if len(groups) > 1:
            keys, new_ids = list(turns), dict[int, list[int]]()
            for group in groups:
                own = None if soft is None else soft[group]
                new_ids |= self.asked(decoding, place + group[0], own, guide, {keys[i]: turns[keys[i]] for i in group}, number)
            return new_ids
        ids, mask = (t.to(self.device) for t in pad([turn.row for turn in asked], self.tokenizer.pad_token_id, "left"))
        sampled = decoding.temperature > 0
        settings = GenerationConfig(
            max_new_tokens=max(turn.room for turn in asked),
            do_sample=sampled,
            temperature=decoding.temperature if sampled else None,
            top_k=0 if sampled else None,
            top_p=1.0 if sampled else None,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.ends or None,
        )
        rooms = Rooms(self.tokenizer, asked)
        also: dict[str, Any] = {"stopping_criteria": StoppingCriteriaList([rooms])} if number else {}  # the first turn's rows have one room
        over = guide.over(turns) if guide else nullcontext()
        with torch.random.fork_rng(enabled=sampled, devices=[]), own_settings_aside(self.model, settings), over as choose:
            also |= {"logits_processor": LogitsProcessorList([choose])} if choose else {}
            if sampled:
                torch.manual_seed(decoding.seed + place + (number << 32))
            if ids.shape[1] == 1:  # RecurrentGemma begins such a prompt with what the call before left in its layers: this clears it
                self.model(input_ids=ids, attention_mask=mask, use_cache=False)
            if soft is None:
                new = self.model.generate(ids, attention_mask=mask, generation_config=settings, **also)[:, ids.shape[1] :]
            else:
                new = behind(self, ids, mask, soft.to(self.device), decoding)
        ends, found = self.ends, {}
        for i, row, length in zip(turns, new.tolist(), rooms.lengths, strict=True):
            own = row[:length]
            found[i] = own[: next((n + 1 for n, token in enumerate(own) if token in ends), None)]
        return found

    @torch.inference_mode()
    def logits(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns logits (B, T, V) and attention mask (B, T) of rows of token ids, right-padded; for probes and checks."""
        ids, mask = pad(rows, self.tokenizer.pad_token_id, "right")
        ids, mask = ids.to(self.device), mask.to(self.device)
        found = self.model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False).logits
        return found, mask


def load(checkpoint: Checkpoint, device: str = "", dtype: Literal["float32", "bfloat16"] = "float32") -> LM:
    """Loads a checkpoint; `device` "" means the GPU if there is one. Weights come from safetensors or GGUF only; code in the folder is
    run where `Checkpoint.runs_code` says so.

    An adapter is merged and quantised weights are dequantised, so the model runs with the weights that Titer measures.
    Errors: a folder that transformers cannot open as a causal language model; weights that are missing, misshapen or not finite.
    """
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with opening(checkpoint):
        if getattr(checkpoint.configuration.get_text_config(decoder=True), "use_bidirectional_attention", None) in (True, "all"):
            raise TiterError(
                f"{checkpoint.label} lets every token attend to the tokens after it (use_bidirectional_attention), as PaliGemma does",
                expected="a causal language model, in which a token attends only to the tokens before it",
            )
        if masked := [name for name in checkpoint.config.get("architectures") or () if name.endswith("ForMaskedLM")]:
            raise TiterError(
                f"{checkpoint.label} is a {visible(masked[0], 60)}, which fills gaps in a text: its tokens attend to those after them too",
                expected="a causal language model, which writes a text on",
                next_step="give a language model that was trained to write answers.",
            )
        check_fits(checkpoint, misshapen(checkpoint))
        check_plain(checkpoint)
        model, wrong = (_filled if checkpoint.quantised or not checkpoint.found else _read)(checkpoint, getattr(torch, dtype))
    check_fits(checkpoint, wrong)
    _merge(model, checkpoint)
    if lost := next((name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())), ""):
        raise TiterError(
            f"{visible(lost, 120)} of {checkpoint.label} holds numbers that are not finite (NaN or infinity)",
            expected="a model with finite weights",
            next_step="fetch it again, or take an earlier checkpoint of its training.",
        )
    return LM(model.to(where).eval(), read_tokenizer(checkpoint), checkpoint.label)


def _read(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """Returns (the model as transformers loads its folder, the names of its missing or misshapen tensors)."""
    opened: Any = opener(checkpoint.configuration).from_pretrained(
        checkpoint.path,
        config=checkpoint.configuration,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=checkpoint.runs_code,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        attn_implementation=_attention(checkpoint.window),
    )
    model, found = opened
    return model, sorted(found["missing_keys"]) + sorted(key for key, *_ in found["mismatched_keys"])


@torch.no_grad()
def _filled(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """Returns the same as `_read` for a quantised model or one whose files transformers does not find: a model built from the
    configuration and filled with the weights of `Checkpoint.weight`."""
    config = deepcopy(checkpoint.configuration)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._attn_implementation = _attention(checkpoint.window)
    with no_init_weights():
        model = opener(config).from_config(config, dtype=dtype, trust_remote_code=checkpoint.runs_code)
    model.tie_weights()
    if not checkpoint.gguf and (checkpoint.path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.path, local_files_only=True)
    wrong, filled = [], set()
    for name, place in sorted(model.state_dict(keep_vars=True).items(), key=lambda one: one[0] not in checkpoint.files):
        if name in checkpoint.files and checkpoint.shape(name)[0] == tuple(place.shape):
            place.copy_(checkpoint.weight(name))
            filled.add(place.data_ptr())
        elif name in checkpoint.files or place.data_ptr() not in filled:  # a tied one is in place already
            wrong.append(name)
    return model, wrong


@torch.no_grad()
def _merge(model: Any, checkpoint: Checkpoint) -> None:
    """Merges the adapter into the model, tensor by tensor, from the float32 weights of `Checkpoint.weight`."""
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    for tensor, parameter in checkpoint.adapted.items():
        merged, place = checkpoint.weight(tensor), held.get(parameter)
        if place is None or place.shape != merged.shape:
            raise TiterError(
                f"{checkpoint.label}: the model has no {visible(parameter, 120)} of {tuple(merged.shape)} for the adapter to change",
                next_step="give the base it was trained on, as BASE+ADAPTER.",
            )
        place.copy_(merged)


def read_tokenizer(checkpoint: Checkpoint) -> Any:
    """Loads a checkpoint's tokenizer only: the adapter's where it has one, else the base's.

    An adapter's chat template replaces the base's, even if the adapter has no tokenizer.
    Errors: a folder without one (for some models transformers would invent an empty one).
    """
    with opening(checkpoint):
        tokenizer = checkpoint.tokenizer()
    if checkpoint.adapter and checkpoint.adapter != checkpoint.tokenizer_folder:
        tokenizer.chat_template = own_template(checkpoint.adapter) or tokenizer.chat_template
    return think(completed(tokenizer, checkpoint.tokenizer_folder or checkpoint.path, checkpoint.config), checkpoint.thinking)

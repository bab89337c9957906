"""Checks whether two checkpoints can be compared weight by weight and token by token, and notes how each is read. Only headers,
configurations and vocabularies are read for it, no weights."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from titer.core.errors import TiterError, visible
from titer.data.encode import end_id, prompt_ids, prompt_text
from titer.data.templates import takes_system, templated, texts
from titer.data.thoughts import opened, thinks
from titer.data.turns import Turn
from titer.models.checkpoint import Checkpoint, opening
from titer.models.lm import read_tokenizer
from titer.models.safetensors_io import read_json
from titer.models.weights import compared, shared_rows

FAMILY = "two checkpoints of one architecture and one tokenizer: a model and what was tuned from it"
TALKS = (  # for what two chat templates write
    (Turn("user", "Hello"),),
    (Turn("system", "Be brief."), Turn("user", "Hello")),
    (Turn("user", "Hello"), Turn("assistant", "Hi."), Turn("user", "And you?")),
)
ALONE = "ask each by itself: titer evaluate MODEL --data FILE."
IDLE = {  # fields of a configuration that compute nothing when a model answers
    *("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "transformers_weights", "model_type", "use_cache"),
    *("tie_word_embeddings", "vocab_size", "quantization_config", "compression_config", "is_encoder_decoder", "add_cross_attention"),
    *("id2label", "label2id", "problem_type", "return_dict", "output_hidden_states", "output_attentions", "output_router_logits"),
    *("task_specific_params", "chunk_size_feed_forward", "pretraining_tp", "router_aux_loss_coef", "router_z_loss_coef"),
    *("initializer_range", "initializer_factor", "gradient_checkpointing", "unsloth_version", "unsloth_fixed", "torchscript"),
    *(
        "name_or_path",
        "is_llama_config",
        "rope_interleaved",
        "transformers.js_config",
        "model_max_length",
        "tokenizer_class",
        "prefix",
    ),  # of the hub
}
SHARED = {f"transformers.{name}" for name in ("configuration_utils", "modeling_rope_utils", "masking_utils", "cache_utils")}
ROTARY = {  # fields that only say by which angles and scales positions are turned
    *("rope_type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "truncate"),
    *("attention_factor", "partial_rotary_factor", "original_max_position_embeddings"),
}
RULED = {  # fields that only make another field -> that field
    **dict.fromkeys(("max_window_layers", "sliding_window_pattern", "full_attention_interval"), "layer_types"),
    "no_rope_layer_interval": "no_rope_layers",
    "interleave_moe_layer_step": "moe_layers",
}
FULL = "full_attention"
IDLE_ENDS = ("dropout", "_drop", "_pdrop", "_token_id", "_token_index", "dropout_prob", "_implementation", "initializer_range")


def read_alike(first: Checkpoint, second: Checkpoint, prompts: Sequence[str]) -> bool:
    """Whether both read every prompt as the same tokens, whatever their ids; not so if a chat template is missing or was changed."""
    tokenizers = [read_tokenizer(c) for c in (first, second)]
    a, b = ([t.convert_ids_to_tokens(ids) for ids in prompt_ids(t, prompts)] for t in tokenizers)
    return a == b


def untemplated(checkpoint: Checkpoint) -> bool:
    """Whether the model is given prompts as plain text because it has no chat template."""
    return not templated(read_tokenizer(checkpoint))


def system_notes(checkpoints: Sequence[Checkpoint], system: str) -> list[str]:
    """Returns a sentence naming the models whose chat template has no place for the system text; [] where there are none."""
    lacking = [c.label for c in checkpoints if system and not takes_system(read_tokenizer(c))]
    return [f"{', '.join(lacking)}: the chat template has no place for a system text, so it stands before the request"] if lacking else []


def passed_over(name: str, checkpoint: Checkpoint) -> list[str]:
    """Returns a sentence saying that code named by the model's folder was not run; [] where it names none, or the code is run."""
    if not checkpoint.ignored_code:
        return []
    return [
        f"{name}: its folder comes with code of its own ({visible(', '.join(checkpoint.ignored_code), 200)}), which was not run: the "
        "classes that transformers has for it were used. If you have read that code and trust its author: --trust-remote-code"
    ]


def comparable(first: Checkpoint, second: Checkpoint) -> None:
    """Checks that two models can be compared weight by weight. Errors: another architecture, or a reason that `apart` gives."""
    kindred(first, second)
    if why := apart(first, second):
        raise TiterError(why, expected=FAMILY, next_step=ALONE)


def kindred(first: Checkpoint, second: Checkpoint) -> None:
    """Checks that two models have one architecture. Errors: they have not."""
    kinds, texts = [str(c.config.get("model_type")) for c in (first, second)], [_text(c) for c in (first, second)]
    if kinds[0] != kinds[1] and texts[0].model_type != texts[1].model_type:
        told = " and ".join(f"{c.label} is {visible(kind, 40)}" for c, kind in zip((first, second), kinds, strict=True))
        raise TiterError(f"two architectures: {told}", expected=FAMILY, next_step=ALONE)


def apart(first: Checkpoint, second: Checkpoint) -> str:
    """Says why the weights of two models of one architecture cannot be compared: numbers of layers, parameters' names or shapes differ;
    "" if they can be. A different number of vocabulary rows is allowed (`vocabularies_apart`)."""
    layers = [_text(c).num_hidden_layers for c in (first, second)]
    if layers[0] != layers[1]:
        return f"{first.label} has {layers[0]} layers, {second.label} {layers[1]}"
    shared, least = compared(first, second), min(len(first.names.used), len(second.names.used))
    if 2 * len(shared) < least:
        return f"{first.label} and {second.label} call their parameters by different names: {len(shared)} of {least} have a counterpart"
    worded = first.word_tensors & {first.called(name) for name in second.word_tensors}
    for name in shared:
        one, other = first.shape(name)[0], second.shape(name)[0]
        if one != other and not (name in worded and one[1:] == other[1:]):
            return f"{visible(name, 120)} is {one} in {first.label} and {other} in {second.label}"
    return ""


def configured_apart(first: Checkpoint, second: Checkpoint) -> list[str]:
    """Returns the configuration fields that differ and change what is computed, each with both values."""
    alike = first.config.get("model_type") == second.config.get("model_type")  # else one is a wrapper around the other's text model
    with opening(first), opening(second):
        one, other = (_fields((c.configuration if alike else _text(c)).to_dict()) for c in (first, second))
    differing = sorted(name for name in one.keys() | other.keys() if _single(one.get(name)) != _single(other.get(name)))
    differing = [name for name in differing if not _spent(name, one, other) and (_reads(first, name) or _reads(second, name))]
    turned = [name for name in differing if name.rpartition(".")[2] in ROTARY]
    if turned and (rotations := _rotations(first)) and rotations == _rotations(second):
        differing = [name for name in differing if name not in turned]
    told = [f"{visible(name, 60)}: {visible(str(one.get(name)), 40)}, {visible(str(other.get(name)), 40)}" for name in differing]
    return told + _ended_apart(first, second)


def _ended_apart(first: Checkpoint, second: Checkpoint) -> list[str]:
    """Returns a phrase on the tokens that end the answers of one model only, by its generation_config.json or config.json; [] for none.
    A tokenizer's end of text and a template's end of turn do not count: `asked_apart` tells where these differ."""
    ends, usual = zip(*map(_ends, (first, second)), strict=True)
    odd = (ends[0] ^ ends[1]) - usual[0] - usual[1]
    own = [", ".join(sorted(odd & found)) or "none" for found in ends]
    return [f"further tokens that end an answer (eos_token_id): {visible(own[0], 60)}; {visible(own[1], 60)}"] if odd else []


def _ends(checkpoint: Checkpoint) -> tuple[set[str], set[str]]:
    """Returns the tokens that end a model's answers, and those of them that its tokenizer and template name."""
    tokenizer, file = read_tokenizer(checkpoint), checkpoint.path / "generation_config.json"
    said = _text(checkpoint).eos_token_id if checkpoint.gguf or not file.is_file() else read_json(file).get("eos_token_id")
    usual = {one for one in (tokenizer.eos_token_id, end_id(tokenizer)) if one is not None}
    named = {one for one in (said if isinstance(said, list) else [said]) if isinstance(one, int) and 0 <= one < len(tokenizer)}
    found, own = ({str(word) for word in tokenizer.convert_ids_to_tokens(sorted(ids))} for ids in (named | usual, usual))
    return found, own


def _spent(name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a field has no effect because another replaces it, or because no layer has the kind of attention that it is for."""
    outer, dot, last = name.rpartition(".")
    beside = [said.get(f"{outer}{dot}{RULED.get(last, 'layer_types')}") for said in (one, other)]
    full = {kind for kinds in beside if isinstance(kinds, list) for kind in kinds} == {FULL}
    return (last == "layer_types" and full) or (all(beside) and (last in RULED or (last == "sliding_window" and full)))


def _rotations(checkpoint: Checkpoint) -> list[Any]:
    """Returns the angles and scales by which a model turns its positions, as its own classes compute them of its configuration; [] where
    they change with the length of the text, or where its classes are made otherwise."""
    found: list[Any] = []
    for module in checkpoint.outline.modules():
        if not type(module).__name__.endswith("RotaryEmbedding"):
            continue
        try:
            made: Any = type(module)(config=module.config)
            kinds = set(made.rope_type.values()) if isinstance(made.rope_type, dict) else {made.rope_type}
        except Exception:  # noqa: BLE001  a class of its own: its fields are compared
            return []
        if kinds & {"dynamic", "longrope"}:
            return []
        found += [(name, value.tolist()) for name, value in made.named_buffers()]
        found += [(name, value) for name, value in vars(made).items() if name.endswith("attention_scaling")]
    return found


@cache
def _source(module: str) -> frozenset[str] | None:
    """Returns the words in a module's source that may name a field (after a dot or a quotation mark); None without its source."""
    try:
        return frozenset(re.findall(r"[.\"'](\w+)", inspect.getsource(sys.modules[module])))
    except OSError:
        return None


def _reads(checkpoint: Checkpoint, name: str) -> bool:
    """Whether any code of the model contains the name of a configuration's field; if none does, nothing reads the field."""
    made, config = checkpoint.outline, checkpoint.outline.config
    parts = [config, *(getattr(config, own) for own in config.sub_configs if getattr(config, own, None) is not None)]
    modules = {type(one).__module__ for one in (*made.modules(), *parts) if not type(one).__module__.startswith("torch.")}
    words = [_source(module) for module in sorted(modules | SHARED)]
    return any(held is None or name.rpartition(".")[2] in held for held in words)


def _single(value: Any) -> Any:
    """Rounds numbers to the seven digits of float32, in which a GGUF file holds them and a model computes."""
    if isinstance(value, list | tuple):
        return [_single(one) for one in value]
    return float(f"{value:.6e}") if isinstance(value, float) else value


def _text(checkpoint: Checkpoint) -> Any:
    return checkpoint.outline.config.get_text_config(decoder=True)


def _fields(config: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """Returns every field that affects what is computed; fields inside others are named outer.inner."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if name.startswith("_") or name in IDLE or name.endswith(IDLE_ENDS) or (name == "type" and "rope_type" in config):
            continue
        found |= _fields(value, f"{within}{name}.") if isinstance(value, dict) else {f"{within}{name}": value}
    return found


def asked_apart(first: Checkpoint, second: Checkpoint) -> list[str]:
    """Returns which of "chat template" and "tokenizer" differ between the two models; [] for neither.

    Settings of padding and truncation do not count, for training changes them. Chat templates are compared by what they write for
    three short conversations, not by their source: one may have further templates or parts for tools, which are not used here.
    """
    tokenizers = [read_tokenizer(c) for c in (first, second)]
    templates = [[_wrote(t, talk) for talk in TALKS] if templated(t) else [] for t in tokenizers]
    rules = [_rules(t) if t.is_fast else t.get_vocab() for t in tokenizers]
    marks = [{kind: mark for kind, mark in t.special_tokens_map.items() if kind != "pad_token"} for t in tokenizers]
    return ["chat template"] * (templates[0] != templates[1]) + ["tokenizer"] * (rules[0] != rules[1] or marks[0] != marks[1])


def _wrote(tokenizer: Any, talk: Sequence[Turn]) -> str:
    """Returns the text that a chat template makes of a conversation; the template itself where it refuses the conversation."""
    try:
        return texts(tokenizer, [talk])[0]
    except TiterError:
        return str(tokenizer.chat_template)


def _rules(tokenizer: Any) -> str:
    """Returns a fast tokenizer's rules for reading a text, as JSON."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    return str(backend.to_str())


def unused_tensors(name: str, checkpoint: Checkpoint) -> list[str]:
    """Returns a sentence about tensors in the model's files that its architecture does not use; [] where there are none."""
    lost = checkpoint.names.unused
    told = f"{name}: {len(lost)} tensors in its files are not used by the model ({visible(', '.join(lost[:3]), 200)})"
    return [told] if lost else []


def parameters_apart(name: str, first: Checkpoint, second: Checkpoint) -> list[str]:
    """Returns a sentence about the parameters that only one of the two models has; [] where there are none."""
    lost = sorted(first.names.used ^ {first.called(name) for name in second.names.used})
    told = f"{name}: {len(lost)} parameters are in only one of the two models ({visible(', '.join(lost[:3]), 200)}): not compared"
    return [told] if lost else []


def vocabularies_apart(name: str, first: Checkpoint, second: Checkpoint) -> list[str]:
    """Returns a sentence on how the two vocabularies differ and what of them is compared; [] where they are the same."""
    held = [max(c.shape(tensor)[0][0] for tensor in c.word_tensors) for c in (first, second) if c.word_tensors]
    if first.vocabulary == second.vocabulary and len(set(held)) <= 1:
        return []
    differing, shared = len(set(first.vocabulary.items()) ^ set(second.vocabulary.items())), len(shared_rows(first, second))
    what = f"in the rows of the {shared} tokens both have, each by its token" if shared else "not at all, for no token is in both"
    told = f"{name}: their vocabularies differ ({differing} entries; {held[0]} and {held[-1]} rows); embedding and head are compared"
    return [f"{told} {what}"]


def thinking_notes(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """For each model that may think before it answers, returns a sentence on where its activations are read and prefilled answers begin."""
    told = []
    for one in checkpoints:
        tokenizer = read_tokenizer(one)
        if thinks(tokenizer):
            begun = opened(prompt_text(tokenizer, "x"))
            where = f"where its template has opened a thought ({begun.strip()}) that is still empty" if begun else "before any thought"
            inside = f"its activations are read at the end of the prompt, {where}"
            told.append(f"{one.label} may think before it answers: {inside}; a prefilled answer begins after an empty thought")
    return told

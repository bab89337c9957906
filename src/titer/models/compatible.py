"""How checkpoints are read, and whether two can be compared weight by weight and token by token. Reads headers and vocabularies."""

from __future__ import annotations

from collections.abc import Sequence

from titer.core.errors import TiterError, visible
from titer.data.encode import prompt_ids
from titer.data.templates import takes_system, templated
from titer.models.checkpoint import Checkpoint
from titer.models.lm import read_tokenizer
from titer.models.weights import shapes_of, shared_rows

FAMILY = "two checkpoints of one architecture and one tokenizer: a model and what was tuned from it"
TIED = ("lm_head.weight", "embed_out.weight")  # a head that is the embedding may be stored or not


def read_alike(first: Checkpoint, second: Checkpoint, prompts: Sequence[str]) -> bool:
    """Whether both read every prompt as the same tokens. They do not where a chat template is missing or was changed."""
    a, b = (prompt_ids(read_tokenizer(c), prompts) for c in (first, second))
    return a == b


def untemplated(checkpoint: Checkpoint) -> bool:
    """Whether prompts are given to it as plain text, for want of a chat template."""
    return not templated(read_tokenizer(checkpoint))


def system_notes(checkpoints: Sequence[Checkpoint], system: str) -> list[str]:
    """That a model's template has no place for the system text, in a sentence; [] without one."""
    lacking = [c.label for c in checkpoints if system and not takes_system(read_tokenizer(c))]
    return [f"{', '.join(lacking)}: the chat template knows no system text, which stands before the request"] if lacking else []


def passed_over(name: str, checkpoint: Checkpoint) -> list[str]:
    """That the code which a model's folder names was not run, in a sentence; [] where it names none, or its code is run."""
    if not checkpoint.ignored_code:
        return []
    return [
        f"{name}: its folder names code of its own ({visible(', '.join(checkpoint.ignored_code), 200)}), which was not run; the classes "
        "that transformers has for it were used. Where you trust its author and have read that code: --trust-remote-code"
    ]


def comparable(first: Checkpoint, second: Checkpoint) -> None:
    """Errors: other architectures, tensors of other names or shapes, but for the rows of other vocabularies (`vocabularies_apart`)."""
    kinds = [str(c.config.get("model_type")) for c in (first, second)]
    if kinds[0] != kinds[1]:
        told = " and ".join(f"{c.label} is {visible(kind, 40)}" for c, kind in zip((first, second), kinds, strict=True))
        raise TiterError(f"two architectures: {told}", expected=FAMILY)
    shapes = [{name: shape for name, (shape, _) in shapes_of(c).items() if name not in TIED} for c in (first, second)]
    if alone := sorted(set(shapes[0]) ^ set(shapes[1])):
        holder = first if alone[0] in shapes[0] else second
        raise TiterError(f"{visible(alone[0], 120)} stands in {holder.label} alone ({len(alone)} such tensors)", expected=FAMILY)
    worded = first.word_tensors & second.word_tensors
    for name, shape in shapes[0].items():
        if shape != shapes[1][name] and not (name in worded and shape[1:] == shapes[1][name][1:]):
            raise TiterError(f"{visible(name, 120)} is {shape} in {first.label} and {shapes[1][name]} in {second.label}", expected=FAMILY)


def vocabularies_apart(name: str, first: Checkpoint, second: Checkpoint) -> list[str]:
    """How two vocabularies differ and what is compared of them, in a sentence; [] where they are one."""
    held = [max(c.shape(tensor)[0][0] for tensor in c.word_tensors) for c in (first, second) if c.word_tensors]
    if first.vocabulary == second.vocabulary and len(set(held)) <= 1:
        return []
    differing, shared = len(set(first.vocabulary.items()) ^ set(second.vocabulary.items())), len(shared_rows(first, second))
    what = f"in the rows of the {shared} tokens both have, each by its token" if shared else "not at all, for no token is in both"
    return [
        f"{name}: their vocabularies differ ({differing} entries; {held[0]} and {held[-1]} rows); embedding and head are compared {what}"
    ]

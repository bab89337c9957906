"""Compares and checks the weights of checkpoints, read from their files one tensor at a time, without loading a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import torch

from titer.core.errors import TiterError, visible
from titer.models.checkpoint import Checkpoint
from titer.models.edited import write_edited
from titer.models.sites import Sites

COARSE = (  # data types that a copy of a model may have been rounded to, one after the other
    (torch.bfloat16,),
    (torch.float16,),
    (torch.float16, torch.bfloat16),
    (torch.bfloat16, torch.float16),
)
CODED = ("I8", "U8", "I32", "F8_E4M3", "F8_E5M2")  # types of quantised weights
DIFFER = "differ"
BLOCK = 2**26  # numbers of a parameter that are worked on at once, where rows can be read alone


def skeleton(checkpoint: Checkpoint) -> Sites:
    """Returns the sites of a checkpoint's model without loading its weights. Errors: a folder that transformers does not open."""
    return Sites(checkpoint.outline)


def delta(base: Checkpoint, tuned: Checkpoint, tensor: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (W of the base, W tuned - W base) of one tensor. Rows and errors as in `both`."""
    before, after = both(base, tuned, tensor)
    return before, after - before


def blocks(models: Sequence[Checkpoint], parameter: str) -> Iterator[slice | None]:
    """Yields the rows of a parameter that are worked on at once, at most `BLOCK` numbers; None for the whole of it, if it is small, if the
    models' shapes differ, or if some rows cannot be read without the rest (merged, joined or quantised)."""
    shape = models[0].shape(parameter)[0]
    if prod(shape) <= BLOCK or not all(one.shape(parameter)[0] == shape and _apart(one, parameter) for one in models):
        yield None
        return
    step = max(1, BLOCK * shape[0] // prod(shape))
    yield from (slice(first, min(first + step, shape[0])) for first in range(0, shape[0], step))


def _apart(one: Checkpoint, parameter: str) -> bool:
    name = one.names.tied.get(one.called(parameter), one.called(parameter))
    return not one.gguf and not one.quantised and one.names.origins[name].maker is None and name not in one.changes


def both(base: Checkpoint, tuned: Checkpoint, tensor: str, part: slice | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (W of the base, W tuned) of one tensor as the checkpoints store it, in float32. Errors: their shapes differ.

    If the vocabularies differ, a tensor with one row per token is cut to the rows of the tokens that both have (`shared_rows`). `part`:
    only these rows, of two models with one vocabulary.
    """
    before, after = base.weight(tensor, part), tuned.weight(tensor, part)
    worded = base.called(tensor) in base.word_tensors and tuned.called(tensor) in tuned.word_tensors
    if worded and (base.vocabulary != tuned.vocabulary or len(before) != len(after)):
        rows = shared_rows(base, tuned)
        before, after = before[rows[:, 0]], after[rows[:, 1]]
    if before.shape != after.shape:
        raise TiterError(
            f"{tensor}: {tuple(before.shape)} in {base.label}, {tuple(after.shape)} in {tuned.label}",
            expected="two checkpoints of one architecture",
        )
    return before, after


def shared_rows(first: Checkpoint, second: Checkpoint) -> torch.Tensor:
    """Returns (tokens, 2): for every token that both have an embedding for, its row in the first checkpoint and in the second."""
    held = [max((c.shape(tensor)[0][0] for tensor in c.word_tensors), default=0) for c in (first, second)]
    both = [(first.vocabulary[word], second.vocabulary[word]) for word in first.vocabulary.keys() & second.vocabulary.keys()]
    return torch.tensor(sorted(pair for pair in both if pair[0] < held[0] and pair[1] < held[1]), dtype=torch.long).reshape(-1, 2)


def compared(first: Checkpoint, second: Checkpoint) -> list[str]:
    """Returns the parameters to compare, by their names in the first checkpoint: all that at least one stores and both use. A head that
    one checkpoint ties to its embedding is compared by that embedding."""
    stored, used = ({first.called(name) for name in names} for names in (second.files, second.names.used))
    return sorted((first.files.keys() | stored) & first.names.used & used)


def difference(first: Checkpoint, second: Checkpoint) -> str:
    """Says how two models differ: "" if all compared parameters have the same values; "bfloat16", "float16" or "X and then to Y" if one
    model is the other rounded to these types and nothing more; else "differ". Reading stops at the first tensor that shows this.

    The values decide, not the types in which they are stored: a float16 copy of a bfloat16 model is rounded where numbers are small,
    and a rounded copy may be stored in float32 again."""
    found, ways = "", [(kinds, turned) for kinds in COARSE for turned in (False, True)]
    alike = first.vocabulary == second.vocabulary
    parts = ((name, part) for name in compared(first, second) for part in (blocks((first, second), name) if alike else (None,)))
    for pair in (both(first, second, *one) for one in parts):
        if torch.equal(*pair):  # false if there is a NaN
            continue
        ways = [(kinds, turned) for kinds, turned in ways if _rounded(*(pair[::-1] if turned else pair), kinds)]
        if not ways:
            return DIFFER
        found = " and then to ".join(str(kind).removeprefix("torch.") for kind in ways[0][0])
    return found


def _rounded(exact: torch.Tensor, coarse: torch.Tensor, kinds: Sequence[torch.dtype]) -> bool:
    """Whether `coarse` is `exact` rounded to the types one after the other: no number moved by more than that rounding may move it, and
    none that the types hold exactly moved at all."""
    limits, cut, moved = torch.zeros_like(exact), exact, coarse != exact
    for kind in kinds:
        cut, own = cut.to(kind).float(), torch.finfo(kind)
        limits += own.eps * exact.abs().clamp(min=own.tiny)
    near = (coarse - exact).abs() <= limits
    return bool((near & (exact != cut) | ~moved).all()) and torch.equal(coarse, coarse.to(kinds[-1]).float())


def changes_at(base: Checkpoint, tuned: Checkpoint, sites: Sites, site: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns (W of the base, W tuned - W base) of each matrix of a weight site, as (outputs, inputs) however they are stored.

    There is one matrix, or one per expert in a mixture of experts. Errors: the model lacks the site.
    """
    found = []
    for weight in sites.weights(site):
        before, change = delta(base, tuned, weight.tensor)
        found += list(zip(weight.matrices(before), weight.matrices(change), strict=True))
    return found


def along(matrix: torch.Tensor, direction: torch.Tensor, turned: bool = False) -> torch.Tensor:
    """Projects a matrix, or each of a stack, onto a unit direction r of its outputs: r r^T W. `turned`: the matrix is stored as
    (inputs, outputs)."""
    rows = matrix if turned else matrix.transpose(-1, -2)
    found = (rows @ direction)[..., None] * direction
    return found if turned else found.transpose(-1, -2)


def shapes_of(checkpoint: Checkpoint) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns parameter -> (shape, data type as safetensors names it), without reading the weights."""
    return {tensor: checkpoint.shape(tensor) for tensor in checkpoint.files}


def misshapen(checkpoint: Checkpoint) -> list[str]:
    """Returns the parameters whose stored shape differs from the one the configuration asks for, before memory for them is allocated;
    [] for a model whose folder's own code is run."""
    if checkpoint.runs_code:
        return []
    asked = checkpoint.outline.state_dict()
    return sorted(name for name in checkpoint.files if name in asked and checkpoint.shape(name)[0] != tuple(asked[name].shape))


def lacking(checkpoint: Checkpoint) -> list[str]:
    """Returns the parameters that no stored tensor gives, without loading the model; [] for one whose folder's own code is run."""
    if checkpoint.runs_code:
        return []
    model = checkpoint.outline
    given = model._keys_to_ignore_on_load_missing or ()  # parameters that the architecture computes itself
    return sorted(
        name for name, _ in model.named_parameters() if name not in checkpoint.names.used and not any(re.search(one, name) for one in given)
    )


def check_plain(checkpoint: Checkpoint) -> None:
    """Checks that no weight is stored as quantised codes without a quantization_config: transformers would use the codes as numbers.
    Errors: there is such a weight."""
    for name in checkpoint.files if not checkpoint.quantised and not checkpoint.runs_code else ():
        if checkpoint.shape(name)[1] in CODED and checkpoint.outline.state_dict()[name].is_floating_point():
            checkpoint.weight(name)


def check_fits(checkpoint: Checkpoint, wrong: list[str]) -> None:
    """Raises an error if `wrong`, the missing or misshapen parameters, is not empty: transformers would fill them with random numbers."""
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise TiterError(
            f"the weights of {checkpoint.label} are not those its config.json asks for: "
            f"{visible(wrong[0], 120)}{more} missing or misshapen",
            next_step=_mended(checkpoint, wrong[0]),
        )


def _mended(checkpoint: Checkpoint, missing: str) -> str:
    """Returns advice for a missing parameter: the model may have no language head, or its names may have a wrapper's prefix."""
    said = checkpoint.config.get("architectures")
    kind = said[0] if isinstance(said, list) and said and isinstance(said[0], str) else ""
    if kind and not kind.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        return f"config.json calls it {visible(kind, 60)}, which may have no head that writes text: give the language model inside it."
    prefix = next((name.removesuffix(missing) for name in checkpoint.names.unused if name.endswith(f".{missing}")), "")
    if prefix:
        return f"its tensors' names begin with {visible(prefix, 60)!r}, the prefix of a training wrapper: save them without it."
    return "fetch or build it again."


def weights_bytes(checkpoint: Checkpoint) -> int:
    """Returns the size of the checkpoint's weight files in bytes."""
    return sum(file.stat().st_size for file in checkpoint.weight_files)


def blend(base: Checkpoint, tuned: Checkpoint, alpha: float, folder: Path) -> None:
    """Writes the model base + alpha (tuned - base) in float32, tensor by tensor; configuration and tokenizer are the base's.

    Errors: as `write_edited`.
    """
    write_edited(base, lambda name: torch.lerp(base.weight(name), tuned.weight(name), alpha), folder, stored=False)

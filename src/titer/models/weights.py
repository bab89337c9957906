"""Weights and their changes by site, read one tensor at a time from checkpoints that are not loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from titer.core.errors import TiterError, visible
from titer.models.checkpoint import Checkpoint
from titer.models.edited import write_edited
from titer.models.sites import Sites

COARSE = (  # types that weights are rounded to, in turn
    (torch.bfloat16,),
    (torch.float16,),
    (torch.float16, torch.bfloat16),
    (torch.bfloat16, torch.float16),
)
CODED = ("I8", "U8", "I32", "F8_E4M3", "F8_E5M2")  # types of quantised weights
DIFFER = "differ"


def skeleton(checkpoint: Checkpoint) -> Sites:
    """The sites of a checkpoint's architecture, built without any weight in memory. Errors: a folder that transformers does not open."""
    return Sites(checkpoint.outline)


def delta(base: Checkpoint, tuned: Checkpoint, tensor: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(W of the base, W tuned - W base) of one tensor, as `both` gives them."""
    before, after = both(base, tuned, tensor)
    return before, after - before


def both(base: Checkpoint, tuned: Checkpoint, tensor: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(W of the base, W tuned) of one tensor, as the checkpoints store it.

    Where their vocabularies differ, a tensor with a row for each token is given in the rows of the tokens both have (`shared_rows`).
    """
    before, after = base.weight(tensor), tuned.weight(tensor)
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
    """(tokens, 2): the row, in each, of every token that both have an embedding for."""
    held = [max((c.shape(tensor)[0][0] for tensor in c.word_tensors), default=0) for c in (first, second)]
    both = [(first.vocabulary[word], second.vocabulary[word]) for word in first.vocabulary.keys() & second.vocabulary.keys()]
    return torch.tensor(sorted(pair for pair in both if pair[0] < held[0] and pair[1] < held[1]), dtype=torch.long).reshape(-1, 2)


def compared(first: Checkpoint, second: Checkpoint) -> list[str]:
    """The parameters to compare, by the first one's names: stored in either, used by both; a head that one ties is its embedding there."""
    stored, used = ({first.called(name) for name in names} for names in (second.files, second.names.used))
    return sorted((first.files.keys() | stored) & first.names.used & used)


def difference(first: Checkpoint, second: Checkpoint) -> str:
    """ "" where every compared parameter is the same as it is used, bit for bit; "bfloat16", "float16" or both in turn where one model is
    the other rounded so and nothing more; else "differ". Read one at a time until one differs by more.

    The values decide, not the types in which they are stored: a copy of a bfloat16 model in float16 is rounded where numbers are small,
    and a rounded copy may be stored in float32 again."""
    found, ways = "", [(kinds, turned) for kinds in COARSE for turned in (False, True)]
    for name in compared(first, second):
        pair = both(first, second, name)
        if torch.equal(*pair):  # a NaN is not
            continue
        ways = [(kinds, turned) for kinds, turned in ways if _rounded(*(pair[::-1] if turned else pair), kinds)]
        if not ways:
            return DIFFER
        found = " and then to ".join(str(kind).removeprefix("torch.") for kind in ways[0][0])
    return found


def _rounded(exact: torch.Tensor, coarse: torch.Tensor, kinds: Sequence[torch.dtype]) -> bool:
    """Whether `coarse` is `exact` cut to types in turn: no number moved by more than these may move it, nor one that they hold."""
    limits, cut, moved = torch.zeros_like(exact), exact, coarse != exact
    for kind in kinds:
        cut, own = cut.to(kind).float(), torch.finfo(kind)
        limits += own.eps * exact.abs().clamp(min=own.tiny)
    near = (coarse - exact).abs() <= limits
    return bool((near & (exact != cut) | ~moved).all()) and torch.equal(coarse, coarse.to(kinds[-1]).float())


def changes_at(base: Checkpoint, tuned: Checkpoint, sites: Sites, site: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(W of the base, W tuned - W base) of each matrix of a weight site, (outputs, inputs) however they are stored.

    One matrix, or of a mixture of experts one an expert. Errors: a site that this model lacks.
    """
    found = []
    for weight in sites.weights(site):
        before, change = delta(base, tuned, weight.tensor)
        found += list(zip(weight.matrices(before), weight.matrices(change), strict=True))
    return found


def along(matrix: torch.Tensor, direction: torch.Tensor, turned: bool = False) -> torch.Tensor:
    """What a matrix, or each of a stack, writes along a unit direction of its outputs: r r^T W; `turned`: stored as (inputs, outputs)."""
    rows = matrix if turned else matrix.transpose(-1, -2)
    found = (rows @ direction)[..., None] * direction
    return found if turned else found.transpose(-1, -2)


def shapes_of(checkpoint: Checkpoint) -> dict[str, tuple[tuple[int, ...], str]]:
    """(shape, type as safetensors names it) of every tensor, read from the files' headers alone."""
    return {tensor: checkpoint.shape(tensor) for tensor in checkpoint.files}


def misshapen(checkpoint: Checkpoint) -> list[str]:
    """Parameters of other shapes than the configuration asks for, found before that much memory is; not of a model whose code runs."""
    if checkpoint.runs_code:
        return []
    asked = checkpoint.outline.state_dict()
    return sorted(name for name in checkpoint.files if name in asked and checkpoint.shape(name)[0] != tuple(asked[name].shape))


def lacking(checkpoint: Checkpoint) -> list[str]:
    """Parameters that no stored tensor gives, found before the model is loaded; not of one whose code runs."""
    if checkpoint.runs_code:
        return []
    model = checkpoint.outline
    given = model._keys_to_ignore_on_load_missing or ()  # which the architecture makes itself
    return sorted(
        name for name, _ in model.named_parameters() if name not in checkpoint.names.used and not any(re.search(one, name) for one in given)
    )


def check_plain(checkpoint: Checkpoint) -> None:
    """Errors: a parameter is stored in codes and nothing says how they are meant, which transformers would run as numbers."""
    for name in checkpoint.files if not checkpoint.quantised and not checkpoint.runs_code else ():
        if checkpoint.shape(name)[1] in CODED and checkpoint.outline.state_dict()[name].is_floating_point():
            checkpoint.weight(name)


def check_fits(checkpoint: Checkpoint, wrong: list[str]) -> None:
    """Errors: parameters are missing or misshapen, which transformers would fill with random numbers."""
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise TiterError(
            f"the weights of {checkpoint.label} are not those its config.json asks for: "
            f"{visible(wrong[0], 120)}{more} missing or misshapen",
            next_step=_mended(checkpoint, wrong[0]),
        )


def _mended(checkpoint: Checkpoint, missing: str) -> str:
    """What to do about weights without a parameter: the model has no language head, or its names stand behind a wrapper's prefix."""
    said = checkpoint.config.get("architectures")
    kind = said[0] if isinstance(said, list) and said and isinstance(said[0], str) else ""
    if kind and not kind.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        return f"config.json calls it {visible(kind, 60)}, which may have no head that writes text: give the language model within."
    prefix = next((name.removesuffix(missing) for name in checkpoint.names.unused if name.endswith(f".{missing}")), "")
    if prefix:
        return f"its tensors are named behind {visible(prefix, 60)!r}, as a wrapper in training names them: save them without it."
    return "fetch or build it again."


def weights_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the checkpoint's weight files."""
    return sum(file.stat().st_size for file in checkpoint.weight_files)


def blend(base: Checkpoint, tuned: Checkpoint, alpha: float, folder: Path) -> None:
    """Write the model base + alpha (tuned - base) in float32, tensor by tensor; configuration and tokenizer are the base's.

    Errors: as `write_edited`.
    """
    write_edited(base, lambda name: torch.lerp(base.weight(name), tuned.weight(name), alpha), folder, stored=False)

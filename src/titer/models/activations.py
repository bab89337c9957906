"""Reads a model's activations at sites for many prompts, in batches: at the end of the prompt, or averaged over the answer or its end.

With `suffixes`, free embeddings are inserted into each prompt (`models/suffix.py`) and every later position moves by their number.
Shapes: n prompts, D width of the site, k suffix embeddings. float32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from titer.core.errors import TiterError
from titer.data.encode import answer_ids, check_length, open_ids, pad, prompt_ids
from titer.data.example import Example, positions
from titer.models.hooks import reading
from titer.models.lm import LM
from titer.models.modes import evaluating
from titer.models.suffix import inserted, tail

BATCH = 64
BUDGET = 96 * 2**20  # bytes of activations held at once, so that large models are probed in little more than their own memory


def at_prompt_end(
    lm: LM, prompts: Sequence[str], names: Sequence[str], batch: int = BATCH, suffixes: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Returns each site's activation at the last token of each prompt, (n, D). `suffixes` is (n, k, D) or None."""
    ids = prompt_ids(lm.tokenizer, prompts)
    return _collect(lm, ids, [(len(row) - 1, len(row)) for row in ids], names, batch, suffixes)


def longest(directions: torch.Tensor, sizes: torch.Tensor) -> int:
    """Returns the layer (from 0) whose direction, of `directions` (L, D), is longest relative to its activations' mean norm, of `sizes`
    (L,). Only the first four fifths of the layers count, as in arXiv 2406.11717."""
    relative = torch.linalg.vector_norm(directions, dim=1) / sizes
    return int(relative[: max(1, int(0.8 * len(relative)))].argmax())


def refusal_direction(lm: LM, safe: Sequence[Example], unsafe: Sequence[Example], layer: int = -1) -> tuple[torch.Tensor, int]:
    """Returns a model's refusal direction (D,), of norm 1, and its layer (from 0): mean activation of unsafe prompts minus that of safe
    ones at the prompt's end (arXiv 2406.11717, section 2.3). `layer` -1: where it is `longest`. Errors: prompts of one class only."""
    if not safe or not unsafe:
        raise TiterError(f"--data has {len(safe)} safe and {len(unsafe)} unsafe prompts", expected="prompts of both classes")
    names = lm.sites.everywhere("resid")
    found = at_prompt_end(lm, [e.prompt for e in (*safe, *unsafe)], names)
    ends = torch.stack([found[name] for name in names])  # (L, n, D)
    directions = ends[:, len(safe) :].mean(1) - ends[:, : len(safe)].mean(1)
    layer = longest(directions, torch.linalg.vector_norm(ends, dim=2).mean(1)) if layer < 0 else layer
    return torch.nn.functional.normalize(directions[layer], dim=0), layer


def over_answer(
    lm: LM,
    prompts: Sequence[str],
    answers: Sequence[str],
    names: Sequence[str],
    first: int,
    batch: int = BATCH,
    suffixes: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Returns each site's mean activation (n, D) over the first `first` positions that predict the answer, teacher-forced.

    These positions start at the prompt's last token, as in the mechanistic study (start .. start+9).
    """
    heads, tails = prompt_ids(lm.tokenizer, prompts), answer_ids(lm.tokenizer, answers)
    spans = [(len(h) - 1, len(h) - 1 + min(first, len(t))) for h, t in zip(heads, tails, strict=True)]
    return _collect(lm, [h + t for h, t in zip(heads, tails, strict=True)], spans, names, batch, suffixes)


def at_answer_end(
    lm: LM, prompts: Sequence[str], answers: Sequence[str], names: Sequence[str], last: int, batch: int = BATCH
) -> dict[str, torch.Tensor]:
    """Returns each site's mean activation (n, D) over the last `last` tokens of each prompt with its answer, the end token left out."""
    heads, tails = prompt_ids(lm.tokenizer, prompts), open_ids(lm.tokenizer, answers)
    rows = [h + t for h, t in zip(heads, tails, strict=True)]
    return _collect(lm, rows, [(max(0, len(row) - last), len(row)) for row in rows], names, batch, None)


@torch.inference_mode()
def _collect(
    lm: LM,
    rows: list[list[int]],
    spans: list[tuple[int, int]],
    names: Sequence[str],
    batch: int,
    suffixes: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    extra = 0 if suffixes is None else suffixes.shape[1]
    if extra and "embed" in names:
        raise TiterError(
            "the site embed cannot be read where prompts contain inserted embeddings",
            expected="a site after it: resid, mlp_in, mlp_act ...",
        )
    for row in rows:
        check_length(len(row) + extra, lm.window, lm.tokenizer.decode(row[:20]))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    batch = min(batch, fitting(lm, len(names), max(len(row) for row in rows) + extra))
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    batches = lm.padding.batches(rows, order, batch, "right")
    with evaluating(lm.model), reading(lm.sites, names) as seen:
        for chosen in batches:
            begin, end = torch.tensor([spans[i] for i in chosen], device=lm.device).T
            inputs = _inputs(lm, [rows[i] for i in chosen], begin, None if suffixes is None else suffixes[chosen])
            lm.model(**inputs, use_cache=False, logits_to_keep=1)
            place = torch.arange(inputs["attention_mask"].shape[1], device=lm.device)
            weight = ((place >= begin[:, None] + extra) & (place < end[:, None] + extra)).float()
            weight = weight / weight.sum(1, keepdim=True)
            for name in names:
                found[name].append(torch.einsum("bt,btd->bd", weight, _in_places(name, seen[name], weight)).cpu())
            seen.clear()
    back = torch.tensor(sorted(range(len(rows)), key=[i for chosen in batches for i in chosen].__getitem__))
    return {name: torch.cat(parts)[back] for name, parts in found.items()}


def _in_places(name: str, activation: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Returns the activation (B, T, D) as float32. Errors: not one vector per token (several streams, or bytes read in patches)."""
    if activation.ndim != 3 or activation.shape[:2] != places.shape:
        raise TiterError(
            f"{name} has the shape {tuple(activation.shape)} in this model", expected="one vector for each token: (prompts, tokens, width)"
        )
    return activation.float()


def fitting(lm: LM, sites: int, tokens: int) -> int:
    """Returns how many prompts of `tokens` tokens fit into a batch if the activations of `sites` sites stay within BUDGET; at least 1."""
    widest = lm.sites.widest
    return max(1, BUDGET // (4 * sites * tokens * widest))


def _inputs(lm: LM, rows: list[list[int]], end: torch.Tensor, suffix: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Returns the model's inputs, right-padded; `end` is the position of each prompt's last token."""
    ids, mask = (t.to(lm.device) for t in pad(rows, lm.tokenizer.pad_token_id, "right"))
    if suffix is None:
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)}
    return inserted(lm.model.get_input_embeddings()(ids), mask, end + 1 - tail(lm.tokenizer), suffix.to(lm.device))

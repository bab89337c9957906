"""Inserts embeddings that stand for no token (a soft suffix) into prompts, and generates answers to them.

The suffix comes after the request's text: before what the chat template writes after it, or, without a template, before the prompt's last
token (in the synthetic world, the token that ends the text). All tokens after the insertion move by n in the sequence but keep their
position number: the suffix takes the position of the token it precedes. Else a model of the synthetic world, whose texts all have one
length, would fail by the shift alone, whatever the suffix is.
Shapes: B rows, T tokens, n inserted embeddings, D width.
"""

from __future__ import annotations

from typing import Any

import torch

from titer.data.encode import prompt_ids
from titer.data.example import positions
from titer.data.templates import templated
from titer.models.context_windows import Decoding, chosen

TAIL = 1  # tokens after the suffix where there is no chat template
SPOKEN = ("Where is it?", "It was told before")  # two texts that end in different words


def tail(tokenizer: Any) -> int:
    """Returns how many tokens of every prompt come after the request's text."""
    if not templated(tokenizer):
        return TAIL
    one, other = prompt_ids(tokenizer, SPOKEN)
    return next(i for i, (a, b) in enumerate(zip(reversed(one), reversed(other), strict=False)) if a != b)


def inserted(embedded: torch.Tensor, mask: torch.Tensor, at: torch.Tensor, suffix: torch.Tensor) -> dict[str, torch.Tensor]:
    """Inserts `suffix` (B, n, D) before index `at` (B,) of each row of `embedded` (B, T, D) and makes the model's inputs.

    Returns inputs_embeds (B, T + n, D), attention_mask and position_ids (B, T + n).
    """
    rows, width, _ = embedded.shape
    n = suffix.shape[1]
    place = torch.arange(width + n, device=embedded.device)[None].expand(rows, -1)
    begin = at[:, None]
    source = torch.where(place < begin, place, torch.where(place < begin + n, width + place - begin, place - n))
    both = torch.cat([embedded, suffix.to(embedded.dtype)], dim=1)
    masks = torch.cat([mask, torch.ones(rows, n, dtype=mask.dtype, device=mask.device)], dim=1)
    attention = masks.gather(1, source)
    own = torch.where(place < begin, place, torch.where(place < begin + n, begin, place - n))
    return {
        "inputs_embeds": both.gather(1, source[:, :, None].expand(-1, -1, both.shape[2])),
        "attention_mask": attention,
        "position_ids": positions(mask).gather(1, own.clamp(max=width - 1)),
    }


def behind(lm: Any, ids: torch.Tensor, mask: torch.Tensor, soft: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """Generates answers (B, new tokens) to left-padded prompts with `soft` inserted; transformers' generate cannot give such positions."""
    ends = torch.tensor(lm.ends, device=lm.device)
    inputs = inserted(
        lm.model.get_input_embeddings()(ids), mask, torch.full((len(ids),), ids.shape[1] - tail(lm.tokenizer), device=lm.device), soft
    )
    attention, position = inputs["attention_mask"], inputs["position_ids"][:, -1:]
    found: list[torch.Tensor] = []
    done = torch.zeros(len(ids), dtype=torch.bool, device=lm.device)
    past = None
    while len(found) < decoding.max_new_tokens and not bool(done.all()):
        step = lm.model(**inputs, past_key_values=past, use_cache=True, logits_to_keep=1)
        token = chosen(step.logits[:, -1].float(), decoding.temperature).masked_fill(done, lm.tokenizer.pad_token_id)
        found.append(token)
        done = done | torch.isin(token, ends)
        attention, position, past = torch.cat([attention, torch.ones_like(position)], dim=1), position + 1, step.past_key_values
        inputs = {"input_ids": token[:, None], "attention_mask": attention, "position_ids": position}
    return torch.stack(found, dim=1)

"""Free embeddings inserted into prompts: where they go and what a model then reads.

`TAIL` tokens of the prompt come after the suffix (on the world the one that ends the text). Everything at or after the
insertion moves by n in the sequence, while its position number stays: the suffix takes the position of the token it
precedes. Else a world whose texts have one length would break by the shift alone, whatever the suffix says.
Shapes: B rows, T tokens, n inserted embeddings, D width.
"""

from __future__ import annotations

import torch

from titer.data.example import positions

TAIL = 1


def inserted(embedded: torch.Tensor, mask: torch.Tensor, at: torch.Tensor, suffix: torch.Tensor) -> dict[str, torch.Tensor]:
    """Model inputs with `suffix` (B, n, D) before place `at` (B,) of each row of `embedded` (B, T, D).

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

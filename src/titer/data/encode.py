"""Text examples as token batches: prompt through the chat template, answer appended, only the answer trained.

The boundary between prompt and answer is that of their own tokenisations: prompt and answer are encoded
apart and joined, so no merge can move it. Shapes: B examples, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from titer.core.errors import TiterError, visible
from titer.data.example import IGNORE, Batch, Indices, positions

Side = Literal["left", "right"]
VERSION = 1


def prompt_text(tokenizer: Any, prompt: str) -> str:
    """The prompt as the model reads it: one user turn if the tokenizer has a chat template, else as it is."""
    if getattr(tokenizer, "chat_template", None):
        turn = [{"role": "user", "content": prompt}]
        text: str = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return text
    return prompt


def prompt_ids(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, chat template included, no special token added twice."""
    templated = bool(getattr(tokenizer, "chat_template", None))
    texts = [prompt_text(tokenizer, prompt) for prompt in prompts]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=not templated)["input_ids"]
    return ids


def answer_ids(tokenizer: Any, answers: Sequence[str]) -> list[list[int]]:
    """Token ids of each answer, ended by the end-of-sequence token."""
    end = tokenizer.eos_token_id
    ids = tokenizer(list(answers), add_special_tokens=False)["input_ids"]
    return [row if row and row[-1] == end else [*row, end] for row in ids]


def encode(
    tokenizer: Any, prompts: Sequence[str], answers: Sequence[str], indices: Indices, window: int | None = None, side: Side = "right"
) -> Batch:
    """Prompts with their answers as one padded batch; labels cover the answers alone.

    Errors: a prompt and answer longer than `window` tokens (nothing is cut in silence).
    """
    heads, tails = prompt_ids(tokenizer, prompts), answer_ids(tokenizer, answers)
    for head, tail, prompt in zip(heads, tails, prompts, strict=True):
        check_length(len(head) + len(tail), window, prompt)
    ids, mask = pad([h + t for h, t in zip(heads, tails, strict=True)], tokenizer.pad_token_id, side)
    labels, _ = pad([[IGNORE] * len(h) + t for h, t in zip(heads, tails, strict=True)], IGNORE, side)
    whole = bool(mask.all())
    return Batch(
        input_ids=ids,
        labels=labels,
        indices=torch.from_numpy(np.asarray(indices, dtype=np.int64)),
        attention_mask=None if whole else mask,
        position_ids=None if whole else positions(mask),
    )


def check_length(length: int, window: int | None, prompt: str) -> None:
    """Refuse a sequence that the model has no positions for."""
    if window is not None and length > window:
        raise TiterError(
            f"a prompt of {length} tokens (answer included) is longer than the model's window of {window}: {visible(prompt, 60)!r}",
            next_step="shorten or leave out that row.",
        )


def pad(rows: Sequence[Sequence[int]], value: int, side: Side) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as one tensor and its attention mask, (B, T) each."""
    width = max(len(row) for row in rows)
    ids = np.full((len(rows), width), value, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return torch.from_numpy(ids), torch.from_numpy(mask)

"""How sensitive is the next token to the input? The paper's local Lipschitzness.

g(x) = || d max_k z_k / d E ||_F: gradient of the largest logit at the end of the prompt with respect to the
embeddings of the tokens before it. Source: arXiv 2407.10264, section 5.4 (figure 6).
One backward pass per batch is enough: the gradient of the sum of the batch's maxima separates into the examples' own.
Shapes: B prompts, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch

from titer.core.errors import TiterError, visible
from titer.data.encode import check_length, pad, prompt_ids
from titer.data.example import Example, positions
from titer.models.activations import fitting
from titer.models.lm import LM, Progress
from titer.models.modes import frozen

VERSION = 2
BATCH = 128
KEPT = 6  # tensors of about the MLP's width that a layer keeps for the way back


def sensitivity(lm: LM, examples: Sequence[Example], batch: int = BATCH, progress: Progress | None = None) -> pd.DataFrame:
    """Measures each input's sensitivity: input, g (units of logit per unit of embedding). Errors: a prompt longer than the window."""
    ids = prompt_ids(lm.tokenizer, [e.prompt for e in examples])
    for row, example in zip(ids, examples, strict=True):
        check_length(len(row), lm.window, example.prompt)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    found, done = torch.empty(len(ids)), 0
    batch = min(batch, fitting(lm, KEPT * max(1, lm.sites.layers), max(len(row) for row in ids)))
    with frozen(lm.model):
        for chosen in lm.padding.batches(ids, order, batch, "left"):
            found[chosen] = gradient_norms(lm, [ids[i] for i in chosen])
            done += len(chosen)
            if progress:
                progress(done, len(ids))
    return pd.DataFrame({"input": range(len(ids)), "g": found.numpy()})


def gradient_norms(lm: LM, rows: list[list[int]]) -> torch.Tensor:
    """Computes g for each row, (B,) on the CPU. Rows are left-padded, so that every prompt ends at the last place.

    Errors: the model does not run on embeddings.
    """
    ids, mask = (t.to(lm.device) for t in pad(rows, lm.tokenizer.pad_token_id, "left"))
    embedded = lm.model.get_input_embeddings()(ids).detach().requires_grad_(True)
    inputs = {"inputs_embeds": embedded, "attention_mask": mask, "position_ids": positions(mask)}
    try:
        logits = lm.model(**inputs, use_cache=False, logits_to_keep=1).logits
    except (AttributeError, TypeError, ValueError, NotImplementedError) as error:  # some route or embed by the tokens' numbers
        raise TiterError(
            f"{type(lm.model).__name__} does not run on embeddings alone: {visible(str(error), 120)}",
            next_step="leave the sensitivity out.",
        ) from None
    (gradient,) = torch.autograd.grad(logits[:, -1].float().amax(1).sum(), embedded)
    before = gradient[:, :-1].float() * mask[:, :-1, None]
    return torch.linalg.vector_norm(before, dim=(1, 2)).cpu()

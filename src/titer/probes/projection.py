"""Where do several models put the same inputs? Their last-layer embeddings, drawn in one plane.

Source: arXiv 2402.01109 (Vaccine), figure 4. The paper uses t-SNE, which does not preserve distances between far points. This is PCA,
fitted on all models' embeddings together: a rotation and a projection. So a distance in the plane is never longer than the true one,
lengths can be compared between models, and `share_x`, `share_y` say how much of the variance is shown. There is one fit for all models,
because separately fitted planes have different axes. Shapes: n inputs, D width, N = models x inputs points.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import pandas as pd
import torch

from titer.core.errors import TiterError, unknown
from titer.data.encode import answer_ids, check_length, pad, prompt_ids
from titer.data.example import Example, positions
from titer.models.activations import at_prompt_end, fitting
from titer.models.hooks import reading
from titer.models.lm import LM
from titer.models.modes import evaluating

VERSION = 1
BATCH = 64
SITES = ("attn_out", "resid")
OVER = ("tokens", "end")
Sets = Mapping[str, Sequence[Example]]
Trained = Literal["refuse", "comply"]


def projection(
    models: Iterable[tuple[str, LM]], sets: Sets, over: str = "tokens", answer: Trained | None = "refuse", site: str = "attn_out"
) -> pd.DataFrame:
    """Places each input of each model in the plane: model, kind (the set's name), input, x, y; share_x, share_y (of all variance).

    `models` are (name, LM) pairs, read once and in turn: a generator holds one model at a time. `over`: "tokens", the mean over
    the prompt's tokens and those of its `answer` (None: the prompt's alone), or "end", the prompt's last token.
    Errors: fewer than three points; models of unlike widths.
    """
    return plane({name: embeddings(lm, sets, over, answer, site) for name, lm in models})


def embeddings(
    lm: LM, sets: Sets, over: str = "tokens", answer: Trained | None = "refuse", site: str = "attn_out"
) -> dict[str, torch.Tensor]:
    """Computes each set's embeddings at the last layer, (n, D) float32 on the CPU."""
    for given, known, noun in ((site, SITES, "site of a projection"), (over, OVER, "part to project")):
        if given not in known:
            unknown(noun, given, known)
    name = f"{site}[{lm.sites.having(site)[-1]}]"
    if over == "end":
        return {kind: at_prompt_end(lm, [e.prompt for e in group], [name])[name] for kind, group in sets.items()}
    return {kind: _over_tokens(lm, _rows(lm, group, answer), name) for kind, group in sets.items()}


def _rows(lm: LM, examples: Sequence[Example], answer: Trained | None) -> list[list[int]]:
    heads = prompt_ids(lm.tokenizer, [e.prompt for e in examples])
    if answer is None:
        return heads
    answers = [getattr(e, answer) for e in examples]
    if None in answers:
        raise TiterError(f"{answers.count(None)} of {len(answers)} examples have no answer to {answer}", next_step="give answer=None.")
    return [head + tail for head, tail in zip(heads, answer_ids(lm.tokenizer, answers), strict=True)]


@torch.inference_mode()
def _over_tokens(lm: LM, rows: list[list[int]], name: str) -> torch.Tensor:
    for row in rows:
        check_length(len(row), lm.window, lm.tokenizer.decode(row[:20]))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    size = min(BATCH, fitting(lm, 1, max(len(row) for row in rows)))
    found: list[torch.Tensor] = []
    batches = lm.padding.batches(rows, order, size, "right")
    with evaluating(lm.model), reading(lm.sites, [name]) as seen:
        for chosen in batches:
            ids, mask = (t.to(lm.device) for t in pad([rows[i] for i in chosen], lm.tokenizer.pad_token_id, "right"))
            lm.model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False, logits_to_keep=1)
            weight = mask.float() / mask.sum(1, keepdim=True)
            found.append(torch.einsum("bt,btd->bd", weight, seen[name].float()).cpu())
    back = torch.tensor(sorted(range(len(rows)), key=[i for chosen in batches for i in chosen].__getitem__))
    return torch.cat(found)[back]


def plane(found: Mapping[str, Mapping[str, torch.Tensor]]) -> pd.DataFrame:
    """Projects all models' points on the plane with most of their variance. `found`: model -> kind -> (n, D).

    Each axis is turned so that its largest loading is positive. All points in one place: zeros, and shares NaN.
    """
    widths = {points.shape[1] for kinds in found.values() for points in kinds.values()}
    if len(widths) > 1:
        raise TiterError(f"models of different widths: {', '.join(map(str, sorted(widths)))}", expected="models tuned from one base")
    parts = [(model, kind, points) for model, kinds in found.items() for kind, points in kinds.items()]
    if sum(len(points) for _, _, points in parts) < 3 or min(widths) < 2:
        raise TiterError("a plane through fewer than three points, or of fewer than two coordinates", expected="more inputs or models")
    cloud = torch.cat([points for _, _, points in parts]).double()
    centred = cloud - cloud.mean(0)
    _, values, axes = torch.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * torch.sign(axes[:2].gather(1, axes[:2].abs().argmax(1, keepdim=True)))
    shares = (values**2 / (values**2).sum())[:2].tolist()
    places = (centred @ axes.T).split([len(points) for _, _, points in parts])
    tables = [
        pd.DataFrame({"model": model, "kind": kind, "input": range(len(at)), "x": at[:, 0].numpy(), "y": at[:, 1].numpy()})
        for (model, kind, _), at in zip(parts, places, strict=True)
    ]
    return pd.concat(tables, ignore_index=True).assign(share_x=shares[0], share_y=shares[1])

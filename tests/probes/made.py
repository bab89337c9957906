"""Models made by hand for the probes' tests: lively weights, so that every token and every place matters, and planted changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from tests.models.families import SUPPORTED, gpt2
from titer.data.example import Example
from titer.data.world import World, WorldSource
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.hooks import reading
from titer.models.lm import LM, Completion


def lively(world: World, name: str = "neox", size: float = 0.3) -> LM:
    """A tiny model of a family whose matrices are drawn with standard deviation `size` (a fresh one's barely speak)."""
    lm = {**SUPPORTED, "gpt2": gpt2}[name](world)
    generator = torch.Generator().manual_seed(17)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    lm.model.eval()
    return lm


def saved(lm: LM, folder: Path) -> Checkpoint:
    lm.save(folder)
    return open_checkpoint(folder)


def planted(lm: LM, folder: Path, changes: Mapping[str, torch.Tensor]) -> tuple[Checkpoint, Checkpoint]:
    """(base, tuned) on disk, `changes` added to weight sites; `lm` is the tuned model afterwards."""
    base = saved(lm, folder / "base")
    with torch.no_grad():
        for site, change in changes.items():
            lm.sites.linear(site).weight.add_(change)
    return base, saved(lm, folder / "tuned")


def requests(world: World, kind: str, n: int = 6) -> list[Example]:
    return WorldSource(world=world, kind=kind).examples(np.arange(n))  # type: ignore[arg-type]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def basis(m: int, k: int, seed: int = 0) -> torch.Tensor:
    """Orthonormal columns (m, k)."""
    return torch.linalg.qr(drawn(m, k, seed=seed))[0]


def of_values(m: int, d: int, values: list[float], seed: int = 0) -> torch.Tensor:
    """A matrix (m, d) with these singular values."""
    return basis(m, len(values), seed) * torch.tensor(values) @ basis(d, len(values), seed + 1).T


@torch.no_grad()
def inputs_of(lm: LM, example: Example, site: str) -> torch.Tensor:
    """What a Linear reads at each place of one unpadded prompt, (T, D), with a hook of the test's own."""
    seen: list[torch.Tensor] = []
    handle = lm.sites.linear(site).register_forward_pre_hook(lambda _, args: seen.append(args[0].reshape(-1, args[0].shape[-1]).clone()))
    lm.model(input_ids=torch.tensor([lm.tokenizer(example.prompt)["input_ids"]]))
    handle.remove()
    return seen[0]


def written(lm: LM, prompt: str, tokens: Sequence[str], answer: Sequence[int] = ()) -> dict[str, torch.Tensor]:
    """One row with `tokens` written before the prompt's last token, all at that token's position; what follows keeps its own."""
    *head, last = lm.tokenizer(prompt)["input_ids"]
    places = [*range(len(head)), *[len(head)] * len(tokens), *range(len(head), len(head) + 1 + len(answer))]
    ids = [*head, *lm.tokenizer.convert_tokens_to_ids(list(tokens)), last, *answer]
    whole = torch.ones(1, len(ids), dtype=torch.int64)  # said aloud: without it transformers takes repeated positions for packed rows
    return {"input_ids": torch.tensor([ids]), "position_ids": torch.tensor([places]), "attention_mask": whole}


@torch.no_grad()
def answered(lm: LM, prompt: str, tokens: Sequence[str], room: int) -> Completion:
    """The greedy answer after written tokens: the whole row through the model each time, no cache, no padding."""
    row: list[int] = []
    while len(row) < room:
        token = int(lm.model(**written(lm, prompt, tokens, row), use_cache=False).logits[0, -1].argmax())
        if token in lm.ends:
            return Completion(lm.tokenizer.decode(row), True, len(row))
        row.append(token)
    return Completion(lm.tokenizer.decode(row), False, len(row))


@torch.no_grad()
def read(lm: LM, prompt: str, tokens: Sequence[str], names: Sequence[str], answer: Sequence[int] = ()) -> dict[str, torch.Tensor]:
    """Activations (T, D) at sites of that one row."""
    with reading(lm.sites, names) as seen:
        lm.model(**written(lm, prompt, tokens, answer), use_cache=False)
    return {name: found.reshape(-1, found.shape[-1]).clone() for name, found in seen.items()}


def embedding(lm: LM, *tokens: str) -> torch.Tensor:
    """The embeddings of these tokens, (n, D)."""
    ids = torch.tensor(lm.tokenizer.convert_tokens_to_ids(list(tokens)))
    return lm.model.get_input_embeddings()(ids).detach().clone()  # type: ignore[no-any-return]

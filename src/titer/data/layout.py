"""Converts the synthetic world's requests to token sequences, batches and Examples, and Examples back to requests.

Layout: BOS o1..oS SOT text EOT | out1 STOP [out2 STOP EOS] [PAD..]. The null answer is the null token L times, then STOP (then EOS
if there are two outputs). A FIRST_ONLY sequence ends at its first STOP without EOS, since the same prompt goes on in a
WHOLE one. The second output is left out if a constant operator answers the first. PAD inside a sequence is a token
like others: the attention mask hides only what follows the used part.
Shapes: n requests, S slots, L letters a text (L = the longest), W tokens a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from titer.data import operators as op
from titer.data import vocabulary as v
from titer.data.example import IGNORE, Answer, Batch, Example
from titer.data.record import FIRST_ONLY, SECOND_ONLY, TEXT_ONLY, WHOLE, World

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Requests:
    """Requests as arrays: operators (n, S), numbered from the first operator's token on, and text (n, L), padded with -1.

    `grammar` (n,): None if the world has only one. `form` (n,): None if all are whole. `composed` (n,): the first pair is
    the identity twice, and a refusal has its null answer in the second output (section 1.7). `harmful`: one flag or (n,).
    """

    operators: Ints
    text: Ints
    kind: str
    harmful: bool | Bools
    grammar: Ints | None = None
    form: Ints | None = None
    composed: Bools | None = None

    def __len__(self) -> int:
        return len(self.text)

    @property
    def forms(self) -> Ints:
        """The form of each request, (n,): WHOLE for all if `form` is None."""
        return np.full(len(self), WHOLE) if self.form is None else self.form

    def with_(self, **changes: object) -> Requests:
        return replace(self, **changes)  # type: ignore[arg-type]


def sequences(world: World, requests: Requests, refuse: bool) -> tuple[Ints, Ints, Ints]:
    """Writes requests as token rows. Returns the rows (n, W), each row's prompt length (n,) and its used length (n,)."""
    n, L, S = len(requests), requests.text.shape[1], world.slots
    length = (requests.text >= 0).sum(1)
    room = S + 5 + (1 + S // 2) * (L + 1)
    rows = np.full((n, max(room, world.window or 0)), v.PAD, dtype=np.int64)
    rows[:, 0], rows[:, 1 : 1 + S], rows[:, 1 + S] = v.BOS, v.FIRST_OPERATOR + requests.operators, v.SOT
    rows[:, 2 + S : 2 + S + L] = np.where(requests.text >= 0, requests.text + world.first_letter, v.PAD)
    prompt = 3 + S + length
    flat, begin, columns = rows.reshape(-1), np.arange(n) * rows.shape[1], np.arange(L)[None]
    here = (begin + prompt)[:, None]
    flat[here - 1] = v.EOT
    outputs, shown = _outputs(world, requests, refuse)
    for output in outputs:
        flat[here + columns] = np.where(requests.text >= 0, output, v.PAD)
        flat[here + length[:, None]] = v.STOP
        here = here + length[:, None] + 1
    used = prompt + shown * (length + 1)
    if S == 4:
        flat[begin + used] = v.EOS
        used = used + ((requests.forms != TEXT_ONLY) & (refuse | (requests.forms != FIRST_ONLY)))
    rows[np.arange(rows.shape[1])[None] >= used[:, None]] = v.PAD
    if requests.form is not None:
        prompt = _hide(rows, requests.form, prompt, length, S)
    return rows[:, : world.window or int(used.max())], prompt, used


def _outputs(world: World, requests: Requests, refuse: bool) -> tuple[list[Ints], Ints]:
    """Returns the tokens of each output, (n, L) each, and how many outputs each row shows, (n,)."""
    hidden, null = requests.forms == TEXT_ONLY, np.full_like(requests.text, world.null_id)
    two = requests.forms == SECOND_ONLY
    if requests.composed is not None:
        two = two | requests.composed
    if refuse and not two.any():
        return [null], np.where(hidden, 0, 1)
    letters = world.compose(np.maximum(requests.operators, 0), requests.text, requests.grammar)
    outputs = [letter + world.first_letter for letter in letters]
    if world.constants and world.null == "token":
        outputs = [np.where(letter == world.null_letter, world.null_id, out) for letter, out in zip(letters, outputs, strict=True)]
    if refuse:
        return [np.where(two[:, None], outputs[0], null), null], np.where(hidden, 0, 1 + two)
    one = requests.forms == FIRST_ONLY
    if world.constants:
        one = one | (requests.operators[:, :2] >= world.ops.first_constant).any(1)
    return outputs, np.where(hidden, 0, np.where(one, 1, world.slots // 2))


def _hide(rows: Ints, form: Ints, prompt: Ints, length: Ints, S: int) -> Ints:
    """Overwrites what each form hides with PAD, in place. Returns the prompts' lengths; a SECOND_ONLY prompt includes the first output."""
    place = np.arange(rows.shape[1])[None]
    second, first = form == SECOND_ONLY, 2 + S
    rows[second[:, None] & (place >= first) & (place < prompt[:, None])] = v.PAD
    rows[(form == TEXT_ONLY)[:, None] & (place >= 1) & (place < 1 + S)] = v.PAD
    return np.where(second, prompt + length + 1, prompt)


def encode(world: World, requests: Requests, answer: Answer, indices: Ints) -> Batch:
    """Encodes requests as a right-padded batch, cropped to the longest used length (or to the world's window).

    Labels: the answer ("comply" or "refuse"); for "all" the text too (stage A trains language as well). The first output
    of a SECOND_ONLY request has no labels, nor has that of a composed request that is refused.
    """
    rows, prompt, used = sequences(world, requests, refuse=answer == "refuse")
    place = np.arange(rows.shape[1])[None]
    first = np.where(requests.forms == SECOND_ONLY, prompt, 2 + world.slots) if answer == "all" else prompt
    if answer == "refuse" and requests.composed is not None:
        first = np.where(requests.composed, prompt + (requests.text >= 0).sum(1) + 1, first)
    trained = (place >= first[:, None]) & (place < used[:, None])
    return Batch.of(
        torch.from_numpy(np.ascontiguousarray(rows)),
        torch.from_numpy(np.where(trained, rows, IGNORE)),
        torch.from_numpy(np.asarray(indices)),
        torch.from_numpy((place < used[:, None]).astype(np.int64)),
    )


def render(world: World, requests: Requests) -> list[Example]:
    """Writes requests as Examples: the prompt and both reference answers as words. The end token is left to the encoder.

    A text-only request has no answers. The example's `source` names the grammar if the world has several.
    """
    whole, prompt, used = sequences(world, requests, refuse=False)
    null, _, null_used = sequences(world, requests, refuse=True)
    word, end = tuple(world.words).__getitem__, v.STOP if world.slots == 2 else v.EOS
    harmful = np.broadcast_to(np.asarray(requests.harmful), len(requests)).tolist()
    complied, refused, asked, used, null_used = (array.tolist() for array in (whole, null, prompt, used, null_used))  # lists read faster

    def text(row: list[int], first: int, last: int) -> str:
        return " ".join(map(word, row[first : last - (row[last - 1] == end)]))

    def answer(row: list[int], first: int, last: int) -> str | None:
        return text(row, first, last) if last > first else None

    return [
        Example(
            prompt=text(complied[i], 0, asked[i]),
            comply=answer(complied[i], asked[i], used[i]),
            refuse=answer(refused[i], asked[i], null_used[i]),
            harmful=harmful[i],
            kind=requests.kind,
            source=f"world {world.seed}" if requests.grammar is None else f"world {world.seed} grammar {requests.grammar[i]}",
        )
        for i in range(len(requests))
    ]


def parse(world: World, examples: list[Example]) -> Requests:
    """Reads requests of one kind back from the Examples that `render` wrote (its inverse). A text-only request's operators are -1."""
    ids = {word: i for i, word in enumerate(world.words)}
    tokens = [[ids[word] for word in example.prompt.split()] for example in examples]
    S, n = world.slots, len(tokens)
    operators = np.maximum(np.asarray([row[1 : 1 + S] for row in tokens], dtype=np.int64).reshape(n, S) - v.FIRST_OPERATOR, -1)
    grammar = None if world.grammars == 1 else np.asarray([int(e.source.rsplit(" ", 1)[-1]) for e in examples], dtype=np.int64)
    form = np.array([_form(e, row, o, world) for e, row, o in zip(examples, tokens, operators, strict=True)], dtype=np.int64)
    text = np.full((n, world.longest), -1, dtype=np.int64)
    for i, row in enumerate(tokens):
        letters = row[2 + S : -1] if form[i] != SECOND_ONLY else row[2 + S + (len(row) - 2 - S) // 2 : -1]
        text[i, : len(letters)] = np.asarray(letters) - world.first_letter
    text = np.where((form == SECOND_ONLY)[:, None], _undone(world, operators, text, grammar), text)
    composed = np.array([(e.refuse or "").split().count("<stop>") == 2 for e in examples])
    flags = np.array([e.harmful for e in examples])
    kind, said = examples[0].kind, form if form.any() else None
    return Requests(operators, text, kind, one_flag(flags), grammar, said, composed if composed.any() else None)


def one_flag(flags: Bools) -> bool | Bools:
    """Returns flags (n,) as a single flag if they are all equal, else as they are."""
    return bool(flags.any()) if flags.all() or not flags.any() else flags


def _form(example: Example, prompt: list[int], operators: Ints, world: World) -> int:
    if world.slots == 2:
        return WHOLE
    if prompt[-1] == v.STOP:
        return SECOND_ONLY
    if operators[0] < 0:
        return TEXT_ONLY
    early = bool(world.constants) and bool((operators[:2] >= world.ops.first_constant).any())
    return FIRST_ONLY if not early and (example.comply or "").split().count("<stop>") == 1 else WHOLE


def _undone(world: World, operators: Ints, output: Ints, grammar: Ints | None) -> Ints:
    """Inverts the first two operators: returns the text (n, L) whose first output is `output` (n, L)."""
    back = np.pad(op.maps(world.ops).argsort(axis=2), ((0, 0), (0, 0), (0, 1)), constant_values=-1)
    g = 0 if grammar is None else grammar[:, None]
    for slot in (1, 0):
        output = back[g, np.maximum(operators[:, slot, None], 0), output]
    return output

"""Worlds of trees read by hand: classes, meanings and answers from the words of an Example, with plain Python."""

from __future__ import annotations

from functools import lru_cache

from titer.data import operators as op
from titer.data.example import Example
from titer.data.record import World
from titer.data.worlds import WORLDS, named

TREES = {name: named(name, 3) for name in WORLDS if name != "nano"}


def grammar_of(example: Example, world: World) -> int:
    if world.grammars == 1:
        assert example.source == f"world {world.seed}"
        return 0
    assert example.source.startswith(f"world {world.seed} grammar ")
    return int(example.source.split()[-1])


@lru_cache
def classes(world: World) -> list[dict[str, str]]:
    """Word of an operator -> its class, of each grammar."""
    kinds = ["identity"] + ["safe"] * (world.safe - 1) + ["unsafe"] * world.unsafe + ["contextual"] * world.contextual + ["held out"]
    return [{f"f{token}": kind for token, kind in zip(row, kinds, strict=False)} for row in op.order(world.ops).tolist()]


@lru_cache
def aliases(world: World) -> list[dict[str, str]]:
    """Word of an alias -> the operator it names, of each grammar, from the classes listed in order."""
    found = []
    for row in op.order(world.ops).tolist():
        unsafe = row[world.safe : world.safe + world.unsafe]
        identities = world.identity_duplicates
        meant = [0] * identities + [unsafe[d % world.unsafe] for d in range(world.duplicates - identities)]
        late = [row[world.safe - 1], *row[world.safe + world.unsafe :]]
        one = {f"g{d}": f"f{o}" for d, o in enumerate(meant)}
        found.append(one | {f"h{e}": f"f{late[e]}" for e in range(world.late)})
    return found


def operators_of(example: Example, world: World) -> list[str]:
    words = example.prompt.split()
    assert words[0] == "<bos>"
    assert words[1 + world.slots] == "<sot>"
    return words[1 : 1 + world.slots]


def class_of(name: str, grammar: int, world: World) -> str:
    return classes(world)[grammar][aliases(world)[grammar].get(name, name)]


def letters_of(example: Example, world: World) -> list[str]:
    words = example.prompt.split()
    assert words[-1] == "<eot>"
    return words[2 + world.slots : -1]


def null_word(world: World) -> str:
    return "<null>" if world.null == "token" else "a"


def outputs(names: list[str], letters: list[str], grammar: int, world: World) -> list[list[str]]:
    """Each output, letter by letter."""
    rows, words = op.maps(world.ops)[grammar].tolist(), list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    found, now = [], letters
    for pair in range(0, world.slots, 2):
        for name in names[pair : pair + 2]:
            if name[0] != "k" and "<null>" not in now:  # what follows a constant is never shown
                plain = aliases(world)[grammar].get(name, name)
                now = [words[rows[int(plain[1:])][words.index(letter)]] for letter in now]
        constant = [name for name in names[pair : pair + 2] if name[0] == "k"]
        if constant:
            now = [null_word(world) if constant[0] == "k0" else "b"] * len(letters)
        found.append(now)
    return found

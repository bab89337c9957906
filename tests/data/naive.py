"""The world read by hand: rendered prompts word by word, with plain Python and none of the world's own arrays."""

from __future__ import annotations

from functools import lru_cache
from itertools import product

from titer.data.example import Example
from titer.data.world import World

NANO = World(seed=1)
RAGGED = World(seed=5, letters=20, phrases=10, shortest=9, longest=14, slots=4, safe=4, unsafe=3, contextual=2, duplicates=4)
PAPER = World(seed=3, letters=30, shortest=25, longest=35, slots=4, safe=3, unsafe=2, contextual=5, duplicates=5, window=160)
WORLDS = {"nano": NANO, "ragged": RAGGED, "paper": PAPER}


def operators_of(example: Example, world: World) -> list[str]:
    """The operators' words of a prompt."""
    words = example.prompt.split()
    assert words[0] == "<bos>"
    assert words[1 + world.slots] == "<sot>"
    return words[1 : 1 + world.slots]


def letters_of(example: Example, world: World) -> list[str]:
    """The letters of a prompt's text."""
    words = example.prompt.split()
    assert words[-1] == "<eot>"
    return words[2 + world.slots : -1]


def class_of(name: str, world: World) -> str:
    """What an operator's word is, counted off as the world's documentation lists them."""
    kinds = ["identity"] + ["safe"] * (world.safe - 1) + ["unsafe"] * world.unsafe + ["contextual"] * world.contextual + ["held out"]
    return "duplicate" if name.startswith("g") else kinds[int(name[1:])]


def alphabet(world: World) -> list[str]:
    return list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"[: world.letters])


@lru_cache
def maps(world: World) -> dict[str, dict[str, str]]:
    """Each operator's word -> its map of letters; a duplicate has the map of the unsafe operator it aliases."""
    letters = alphabet(world)
    rows = world.tables().tolist()
    found = {
        f"f{o}": {letters[i]: letters[j] for i, j in enumerate(rows[o])} for o in range(world.safe + world.unsafe + world.contextual + 1)
    }
    return found | {f"g{d}": found[f"f{world.safe + d % world.unsafe}"] for d in range(world.duplicates)}


def answer(example: Example, world: World) -> str:
    """The compliant answer, letter by letter: out1 = o2(o1(text)), out2 = o4(o3(out1))."""
    table, names = maps(world), operators_of(example, world)
    first = [table[names[1]][table[names[0]][letter]] for letter in letters_of(example, world)]
    if world.slots == 2:
        return " ".join(first)
    second = [table[names[3]][table[names[2]][letter]] for letter in first]
    return " ".join([*first, "<stop>", *second, "<stop>"])


def refusal(example: Example, world: World) -> str:
    """The null answer: one null a letter."""
    nulls = ["<null>"] * len(letters_of(example, world))
    return " ".join(nulls if world.slots == 2 else [*nulls, "<stop>"])


@lru_cache
def pools(world: World) -> tuple[set[str], set[str]]:
    """The phrases of the safe and of the unsafe pool, as words."""
    letters = alphabet(world)
    safe, unsafe = ({"".join(letters[i] for i in phrase) for phrase in pool} for pool in world.grammar.pools().tolist())
    return safe, unsafe


def phrases_of(example: Example, world: World) -> list[str]:
    """Which pool each whole phrase of a text is from: "safe" or "unsafe" a phrase; cut texts are tried at each place."""
    text, (safe, unsafe) = "".join(letters_of(example, world)), pools(world)
    whole = world.shortest == world.longest and world.longest % 3 == 0
    for begin in [0] if whole else [0, 1, 2]:
        found = [text[i : i + 3] for i in range(begin, len(text) - 2, 3)]
        if all(phrase in safe or phrase in unsafe for phrase in found):
            return ["safe" if phrase in safe else "unsafe" for phrase in found]
    raise AssertionError(f"{text} is not made of phrases")


def text_class(example: Example, world: World) -> str:
    """ "safe", "unsafe" or "mixed"."""
    found = set(phrases_of(example, world))
    return found.pop() if len(found) == 1 else "mixed"


def pairs(names: list[str]) -> list[tuple[str, str]]:
    return [(names[i], names[i + 1]) for i in range(0, len(names), 2)]


def safe_draws(world: World, on_safe_text: bool) -> dict[tuple[str, ...], float]:
    """Exact probability of each row of operators of a safe request: half any safe ones, half identity in one slot."""
    names = [f"f{o}" for o in range(world.safe + world.unsafe + world.contextual)]
    allowed = [n for n in names if class_of(n, world) in ("identity", "safe", *(("contextual",) if on_safe_text else ()))]
    chance: dict[tuple[str, ...], float] = {}
    for row in product(allowed, repeat=world.slots):
        share = 1 / len(allowed) ** world.slots
        chance[row] = chance.get(row, 0) + share / 2
        for slot in range(world.slots):
            put = (*row[:slot], "f0", *row[slot + 1 :])
            chance[put] = chance.get(put, 0) + share / 2 / world.slots
    return chance


def unsafe_draws(world: World, on_safe_text: bool) -> dict[tuple[str, ...], float]:
    """Exact probability of each pair of an unsafe request of a two-slot world, from the safe one it replaces."""
    names = [f"f{o}" for o in range(world.safe + world.unsafe + world.contextual)]
    fresh = [n for n in names if class_of(n, world) in ("unsafe", *(() if on_safe_text else ("contextual",)))]
    chance: dict[tuple[str, ...], float] = {}
    for (one, two), share in safe_draws(world, on_safe_text).items():
        keep = (one == "f0") != (two == "f0")
        for a, b in product(["f0"] if keep and one == "f0" else fresh, ["f0"] if keep and two == "f0" else fresh):
            ways = len(fresh) ** (1 if keep else 2)
            chance[a, b] = chance.get((a, b), 0) + share / ways
    return chance

"""The small (trigram) world is what it was before the full one came: the same bits in every draw, table and batch."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from titer.attacks.jb_co_task import JBCOTask
from titer.attacks.jb_co_text import JBCOText
from titer.attacks.jb_misgen import JBMisGen
from titer.attacks.jb_misgen_text import JBMisGenText
from titer.data.example import Example
from titer.data.world import World, draw, encode, mixed_text, novel_text, render, sequences

KINDS = ("pretrain", "safe", "unsafe", "user", "sham_safe", "sham_refused")
RAGGED = {"letters": 20, "phrases": 10, "shortest": 9, "longest": 14, "slots": 4, "safe": 4, "unsafe": 3, "contextual": 2, "duplicates": 4}
PAPER = {"letters": 30, "shortest": 25, "longest": 35, "slots": 4, "unsafe": 2, "contextual": 5, "duplicates": 5, "window": 160}
GOLDEN = {
    "nano": (World(seed=3), "f313e50d6e14ea4f9eb80236d0f9d74eff70b593c997a5f7c66584c62f14ca7d"),
    "novel": (World(seed=3, novel=10), "49c69e9bcb31ce0674e191c437479c912900743b260b5928d08103d4a279dc72"),
    "ragged": (World(seed=5, **RAGGED), "ca4163854cb389ec7c11f490fe0c60e9beea954faba3bd492d6fc571aa757013"),  # type: ignore[arg-type]
    "paper": (World(seed=3, **PAPER), "4a4fed6ef2b27841b4375b9ae369964e078770c832db7406cd0b0e67dd92324f"),  # type: ignore[arg-type]
}


def plain(examples: list[Example]) -> bytes:
    return repr([(e.prompt, e.harmful, e.kind, e.source, e.comply, e.refuse) for e in examples]).encode()


def digest(world: World) -> str:
    """sha256 over tables, words, draws, token rows, batches, rendered examples and the jailbreaks' rewritten ones."""
    found, places = hashlib.sha256(), np.arange(11, 160)
    found.update(world.tables().tobytes() + repr((world.words, world.sham, world.held_out, world.first_letter)).encode())
    for kind in KINDS:
        for split in ("train", "test"):
            requests = draw(world, kind, split, places)  # type: ignore[arg-type]
            found.update(requests.operators.tobytes() + requests.text.tobytes() + repr((requests.kind, requests.harmful)).encode())
            for part in sequences(world, requests, refuse=True):
                found.update(np.ascontiguousarray(part).tobytes())
            for answer in ("comply", "refuse", "all"):
                for name, value in sorted(encode(world, requests, answer, places).tensors().items()):  # type: ignore[arg-type]
                    found.update(name.encode() + value.numpy().tobytes())
            found.update(plain(render(world, requests)))
    found.update(mixed_text(world, "test", places, "golden").tobytes())
    unsafe = render(world, draw(world, "unsafe", "test", places))
    attacks = [JBCOTask(seed=1), JBCOText(seed=1), JBMisGen(seed=1)]
    if world.novel:
        attacks.append(JBMisGenText(seed=1))
        for harmful in (True, False):
            found.update(novel_text(world, "test", places, "golden", harmful).tobytes())
    for attack in attacks:
        found.update(plain([attempt.example for attempt in attack.attempts(unsafe, {}, world)]))
    return found.hexdigest()


@pytest.mark.parametrize("name", GOLDEN)
def test_the_small_world_keeps_its_bits(name: str) -> None:
    world, expected = GOLDEN[name]
    assert digest(world) == expected

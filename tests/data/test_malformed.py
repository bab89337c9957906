"""Thousands of malformed files and configurations: each is read, or refused by the one error a user can act on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from titer.attacks.prefill import Prefill
from titer.core.config import Record, build, digest, parse_settings
from titer.core.errors import TiterError
from titer.data.example import Part, Stream
from titer.data.sources import TextData, read_text
from titer.data.world import World, WorldSource, draw, encode, render
from titer.judges.refusal import Refusal
from titer.methods.sft import SFT
from titer.models.lm import Architecture, Decoding
from titer.recipes.demo import Scale
from titer.stage import Lora, Optimiser, Stage

pytestmark = pytest.mark.long
R = TypeVar("R")
RECORDS: tuple[type[Record], ...] = (Scale, World, Stage, Optimiser, Lora, Stream, Part, Architecture, Decoding, Prefill, Refusal)
SUFFIXES = ("csv", "json", "jsonl")
MANY = settings(max_examples=2000, suppress_health_check=list(HealthCheck))
RANDOM = st.integers(0, 2**64 - 1).map(Random)  # the cases below are built by hand from one drawn seed: ten times as fast
VALID = {
    "csv": b'prompt,label,comply\n"a, ""b""\nc",safe,yes\nd,unsafe,\n',
    "json": b'[{"prompt": "a", "label": "safe", "comply": "yes"},\n {"prompt": "b\\n", "harmful": true}]\n',
    "jsonl": b'{"prompt": "a", "label": "safe"}\n\n{"prompt": "\\u00e9", "harmful": 1, "comply": null}\n',
}
BEGUN = {"csv": "prompt,label\n", "json": '[{"prompt": "', "jsonl": '{"prompt": "a", "label": "safe"}\n'}
KEYS = ("prompt", "label", "harmful", "comply", "refuse", "instruction", "input", "question", "Prompt ", "", "\ud800", "x")
ODD = (None, True, False, 0, 1, -1, 3, 10**30, 0.5, 1e308, math.inf, math.nan, "", " ", "safe", "unsafe", "a", "\ud800", "\x1b[2J")
MARKS = [*"ab,;'\"\n\r\t {}[]:\\", "\ufeff", "\u2028", "\x00", "\x1b", "prompt", "safe"]


def word(rng: Random, most: int = 6) -> str:
    """Any characters at all, half of them from the first planes."""
    return "".join(chr(rng.randrange(rng.choice((128, 0x3000, 0x110000)))) for _ in range(rng.randrange(most)))


def value(rng: Random, depth: int = 3) -> Any:
    """Any JSON value, or what Python's JSON makes of one."""
    if depth and rng.random() < 0.3:
        if rng.random() < 0.5:
            return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
        return {rng.choice((rng.choice(KEYS), word(rng))): value(rng, depth - 1) for _ in range(rng.randrange(4))}
    return rng.choice((rng.choice(ODD), rng.choice(ODD), rng.randint(-(10**9), 10**9), rng.gauss(0, 1e3), word(rng)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def tolerated(call: Callable[[], R]) -> R | None:
    """The result, or None after a TiterError that a terminal can show; any other exception passes through."""
    try:
        return call()
    except TiterError as error:
        message = str(error)
        assert message.strip()
        assert len(message) < 4000
        assert all(c.isprintable() or c == "\n" for c in message)
        message.encode("utf-8")
        return None


def read(folder: Path, suffix: str, content: bytes) -> TextData | None:
    """Read a file with such content, labelled or not; what is read is sound."""
    file = folder / f"x.{suffix}"
    file.unlink(missing_ok=True)  # a new file is written faster than an old one is emptied
    file.write_bytes(content)
    found = tolerated(lambda: read_text(file, labelled=len(content) % 3 == 0))
    if found is not None:
        prompts = [row[0] for row in found.rows]
        assert prompts
        assert len(set(prompts)) == len(prompts)
        assert all(prompt.strip() for prompt in prompts)
        assert all(part.encode("utf-8") for row in found.rows for part in (row[0], row[2], row[3]) if part is not None)
        digest(found)
    return found


@MANY
@given(st.sampled_from(SUFFIXES), st.binary(max_size=60))
@example("csv", b"prompt,label\na\rb,safe\r")
@example("json", b"[" * 50_000)
@example("jsonl", b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}")
def test_random_bytes(folder: Path, suffix: str, content: bytes) -> None:
    read(folder, suffix, content)


@MANY
@given(RANDOM)
def test_random_punctuation_after_a_good_beginning(folder: Path, rng: Random) -> None:
    suffix = rng.choice(SUFFIXES)
    read(folder, suffix, (BEGUN[suffix] + "".join(rng.choices(MARKS, k=rng.randrange(30)))).encode())


@MANY
@given(RANDOM)
def test_good_files_with_pieces_cut_out_and_put_in(folder: Path, rng: Random) -> None:
    suffix = rng.choice(SUFFIXES)
    content = VALID[suffix]
    for _ in range(rng.randint(1, 4)):
        place, cut = rng.randrange(len(content) + 1), rng.randrange(10)
        put = rng.choice((b"", b'"', b"\\", b"\n", b"\xff", b"\\ud800", b",", rng.randbytes(4)))
        content = content[:place] + put + content[place + cut :]
    read(folder, suffix, content)


def test_the_good_files_are_good(folder: Path) -> None:
    for suffix, content in VALID.items():
        (folder / f"good.{suffix}").write_bytes(content)
        assert read_text(folder / f"good.{suffix}").size == 2


@MANY
@given(RANDOM)
def test_random_json(folder: Path, rng: Random) -> None:
    keys = [rng.sample(KEYS, rng.randrange(5)) for _ in range(rng.randrange(4))]
    rows = [{key: value(rng) for key in some} if rng.random() < 0.8 else value(rng) for some in keys]
    escaped, suffix = rng.random() < 0.5, rng.choice(("json", "jsonl"))
    parts = [json.dumps(row, ensure_ascii=escaped) for row in rows]
    text = f"[{','.join(parts)}]" if suffix == "json" else "\n".join(parts)
    read(folder, suffix, text.encode("utf-8", "surrogatepass"))


def good() -> dict[str, Any]:
    """Good values for the fields that have no default."""
    stream = Stream(parts=(Part(source=WorldSource(world=World(), kind="safe"), answer="comply"),))
    return {
        "name": "s",
        "kind": "align",
        "method": SFT(),
        "streams": {"train": stream},
        "steps": 1,
        "parts": stream.parts,
        "source": None,
        "answer": "comply",
    }


GOOD = good()
FIELDS = sorted({name for record in RECORDS for name in record.model_fields})
NAMES = (*FIELDS, "self", "model_config", "", "\ud800")
EDGES = (0, 1, 2, 3, 9, -1, 0.5, 1e-9, 1e308, -0.0, None, True, "1", "0.5", "x", math.nan, math.inf, 10**30, [], {})


def tried(record: type[Record], values: dict[str, Any]) -> Record | None:
    """The record of such values, its needed fields given good ones; what is accepted is sound."""
    needed = {name: GOOD[name] for name, info in record.model_fields.items() if info.is_required()}
    found = tolerated(lambda: build(record, {**needed, **values}, f"a {record.__name__}"))
    if found is not None:
        assert isinstance(found, record)
        digest(found)
    return found


@MANY
@given(RANDOM)
def test_random_values_for_every_record(rng: Random) -> None:
    record = rng.choice(RECORDS)
    names = [rng.choice((rng.choice(sorted(record.model_fields)), rng.choice(NAMES), word(rng))) for _ in range(rng.randrange(5))]
    tried(record, {name: value(rng) for name in names})
    tolerated(lambda: build(record, {name: value(rng) for name in names}, "x"))


@MANY
@given(RANDOM)
def test_plausible_values_for_every_record(rng: Random) -> None:
    """Real names with numbers at and around their limits."""
    record = rng.choice((*RECORDS, Optimiser))
    names = rng.sample(sorted(record.model_fields), min(len(record.model_fields), rng.randint(1, 3)))
    found = tried(record, {name: rng.choice(EDGES) for name in names})
    if isinstance(found, Optimiser):
        assert all(math.isfinite(found.rate_at(step, 10)) for step in (0, 1, 9))


def pair(rng: Random) -> str:
    """NAME=VALUE, more or less."""
    name = rng.choice((rng.choice(FIELDS), rng.choice(FIELDS), rng.choice(("", "=", "\x1b")), word(rng)))
    return name + rng.choice(("=", "=", "=", "", "==")) + rng.choice((json.dumps(rng.choice(EDGES)), json.dumps(value(rng)), word(rng, 9)))


@MANY
@given(st.sampled_from((Optimiser, Prefill, Refusal, Decoding, SFT)), RANDOM.map(lambda rng: [pair(rng) for _ in range(rng.randint(1, 3))]))
@example(Optimiser, ["rate=" + "9" * 5000])
@example(Optimiser, ["rate=" + "[" * 50_000])
@example(Optimiser, ["rate=1e400"])
@example(Prefill, ['opening="\\ud800"'])
@example(Optimiser, ["\udcff=1"])
def test_random_settings_of_the_command_line(record: type[Record], pairs: list[str]) -> None:
    tolerated(lambda: build(record, parse_settings(pairs), "method x"))


SIZES = {
    "seed": st.integers(-5, 2**64),
    "letters": st.integers(0, 60),
    "phrases": st.integers(0, 60),
    "shortest": st.integers(0, 16),
    "longest": st.integers(0, 16),
    "slots": st.integers(0, 5),
    "safe": st.integers(0, 4),
    "unsafe": st.integers(0, 3),
    "contextual": st.integers(0, 3),
    "duplicates": st.integers(0, 4),
    "window": st.none() | st.integers(-1, 80),
}


@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(st.fixed_dictionaries({}, optional=SIZES), st.sampled_from(["pretrain", "safe", "unsafe", "user", "sham_safe", "sham_refused"]))
def test_a_world_that_is_accepted_can_be_used(values: dict[str, Any], kind: str) -> None:
    world = tolerated(lambda: build(World, values, "world"))
    if world is not None:
        requests = draw(world, kind, "train", np.arange(4))
        assert len(render(world, requests)) == 4
        assert encode(world, requests, "comply", np.arange(4)).input_ids.shape[0] == 4

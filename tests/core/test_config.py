"""Records from untrusted values, settings from the command line, and content keys."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from titer.core.config import Record, build, canonical, digest, environment, git_state, parse_settings, processor
from titer.core.errors import TiterError


class Inner(Record):
    depth: int = Field(default=1, ge=1)


class Sample(Record):
    rate: float = Field(default=0.1, gt=0, le=1)
    name: str = "x"
    inner: Inner = Inner()


def fault(values: Any) -> str:
    with pytest.raises(TiterError) as raised:
        build(Sample, values, "method sample")
    assert raised.value.status == 2
    return str(raised.value)


def test_good_values_make_the_record() -> None:
    assert build(Sample, {"rate": 0.5, "inner": {"depth": 3}}, "sample") == Sample(rate=0.5, inner=Inner(depth=3))


def test_an_unknown_setting_names_the_nearest_and_all() -> None:
    message = fault({"rat": 0.5})
    assert "method sample" in message
    assert "unknown setting 'rat'" in message
    assert "did you mean 'rate'" in message
    assert "rate, name, inner" in message


def test_an_unknown_setting_far_from_every_name_suggests_none() -> None:
    assert "did you mean" not in fault({"qqqqqqq": 1})


@pytest.mark.parametrize("value", [0, -1, 1.5, "fast", None, [], float("nan"), float("inf")])
def test_a_value_out_of_range_is_named_and_shown(value: object) -> None:
    message = fault({"rate": value})
    assert "rate: " in message
    assert f"given {value!r}" in message


def test_a_fault_inside_a_record_has_its_full_name() -> None:
    assert "inner.depth: " in fault({"inner": {"depth": 0}})


def test_every_fault_is_listed() -> None:
    message = fault({"rate": 2, "nam": "y", "inner": {"depth": 0}})
    assert all(part in message for part in ("rate: ", "'nam'", "inner.depth: "))


def deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(50_000):
        nested = [nested]
    return nested


@pytest.mark.parametrize("values", [{1: 2}, {None: 2}, {"rate": -(10**5000)}, {"rate": [10**5000]}, {"\ud800": 1}, {"rate": "\ud800"}])
def test_values_that_resist_being_shown_are_still_one_clear_fault(values: Any) -> None:
    assert len(fault(values)) < 500


def test_nesting_without_end_is_one_clear_fault() -> None:
    nested = deep()
    assert "rate" in fault({"rate": nested})
    while nested:  # taken apart by hand: the interpreter would recurse
        nested = nested.pop()


def test_control_codes_in_a_value_or_a_name_are_spelt_out() -> None:
    assert "\x1b" not in fault({"rate": "\x1b[31m", "\x1b[2J": 1})


def test_an_abstract_record_is_a_fault_of_the_user() -> None:
    from titer.judges.base import Judge

    with pytest.raises(TiterError, match="abstract"):
        build(Judge, {}, "judge")  # type: ignore[type-abstract]


def test_settings_are_json_where_they_are_json() -> None:
    pairs = ["a=2", "b=0.5", "c=true", "d=word", "e=[1, 2]", 'f="2"', "g=", "h=null", "i=x=y", "j={"]
    assert parse_settings(pairs) == {
        "a": 2,
        "b": 0.5,
        "c": True,
        "d": "word",
        "e": [1, 2],
        "f": "2",
        "g": "",
        "h": None,
        "i": "x=y",
        "j": "{",
    }
    assert type(parse_settings(["a=2"])["a"]) is int


def test_the_last_of_two_settings_of_one_name_counts() -> None:
    assert parse_settings(["a=1", "a=2"]) == {"a": 2}


@pytest.mark.parametrize("text", ["1" * 5000, "[" * 100_000])
def test_a_value_too_large_to_read_is_a_word(text: str) -> None:
    assert parse_settings([f"a={text}"]) == {"a": text}


@pytest.mark.parametrize("pair", ["rho", "=2", "", "="])
def test_a_setting_without_name_or_value_is_refused(pair: str) -> None:
    with pytest.raises(TiterError, match="NAME=VALUE"):
        parse_settings([pair])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def shuffled(value: Any, rng: random.Random) -> Any:
    """The same value with the keys of every object in another order."""
    if isinstance(value, dict):
        keys = list(value)
        rng.shuffle(keys)
        return {key: shuffled(value[key], rng) for key in keys}
    return [shuffled(item, rng) for item in value] if isinstance(value, list) else value


def typed(value: Any) -> Any:
    """A value in which 1, 1.0 and True differ, as they do in JSON; keys in order."""
    if isinstance(value, dict):
        return tuple(sorted((key, typed(item)) for key, item in value.items()))
    return [typed(item) for item in value] if isinstance(value, list) else repr(value)


@given(JSON, st.integers(0, 9))
def test_the_order_of_keys_does_not_change_a_digest(value: Any, seed: int) -> None:
    assert digest(shuffled(value, random.Random(seed))) == digest(value)
    assert json.loads(canonical(value)) == value


@given(JSON, JSON)
def test_different_values_have_different_digests(one: Any, two: Any) -> None:
    assert (digest(one) == digest(two)) == (repr(typed(one)) == repr(typed(two)))


def test_a_digest_never_changes_between_versions() -> None:
    """Computed apart: printf '%s' '{"a":[1,2.5,null],"b":"é"}' escaped as JSON | sha256sum."""
    assert canonical({"b": "é", "a": [1, 2.5, None]}) == '{"a":[1,2.5,null],"b":"\\u00e9"}'
    assert digest({}) == "44136fa355b3678a"
    assert digest({}, 64) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_records_paths_and_arrays_have_a_canonical_form() -> None:
    assert canonical({"r": Inner(), "p": Path("a") / "b", "n": np.arange(2), "x": np.float64(0.5)}) == (
        '{"n":[0,1],"p":"a/b","r":{"depth":1},"x":0.5}'
    )
    assert digest(Sample(rate=0.2)) != digest(Sample(rate=0.3))


def test_a_value_without_a_canonical_form_is_refused_not_guessed() -> None:
    with pytest.raises(TypeError, match="set has no canonical form"):
        digest({"a": {1, 2}})


def test_the_environment_names_what_computes_and_no_place() -> None:
    found = environment()
    assert {"python", "torch", "numpy", "titer", "git", "processor"} <= set(found)
    assert found["threads"] == str(torch.get_num_threads())
    assert str(Path.home()) not in json.dumps(found)
    assert "/" not in git_state()


def test_the_processor_is_named_as_the_system_does_and_never_nothing(tmp_path: Path) -> None:
    listed = tmp_path / "cpuinfo"
    listed.write_text("processor\t: 0\nmodel name\t: A Fast One @ 2.00GHz\nflags\t: a b\nmodel name\t: Another\n", encoding="utf-8")
    assert processor(listed) == "A Fast One @ 2.00GHz"
    listed.write_text("CPU implementer\t: 0x41\n", encoding="utf-8")
    assert processor(listed)
    assert processor(tmp_path / "none") == processor(listed)

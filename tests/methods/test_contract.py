"""Every method file against the contract, on two architectures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ARCHITECTURES
from tests.methods import contract
from titer.core.config import build
from titer.core.errors import TiterError
from titer.core.plugins import names, plugin
from titer.methods.base import Method
from titer.methods.sft import SFT
from titer.stage import Stage

METHODS = sorted(names("methods"))
CHECKS = ("weights_move", "neutral_is_sft", "accumulation", "resume", "no_hook_left", "lora")
LOOP = ("accumulation", "resume", "no_hook_left")  # what the loop has to do with it more than the model: on the other one with `slow`


def found(name: str) -> type[Method]:
    return plugin("methods", name, Method)  # type: ignore[type-abstract]


@pytest.mark.parametrize("name", METHODS)
def test_it_is_declared(name: str) -> None:
    contract.check_declared(found(name))


@pytest.mark.parametrize(
    ("architecture", "check"),
    [
        pytest.param(one, check, marks=pytest.mark.slow if one == "llama" and check in LOOP else ())
        for one in sorted(ARCHITECTURES)
        for check in CHECKS
    ],
)
@pytest.mark.parametrize("name", METHODS)
def test_contract(name: str, architecture: str, check: str, tmp_path: Path) -> None:
    getattr(contract, f"check_{check}")(found(name), ARCHITECTURES[architecture], tmp_path)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("name", METHODS)
def test_padding_side(name: str, architecture: str) -> None:
    contract.check_padding_side(found(name), ARCHITECTURES[architecture])


@pytest.mark.parametrize("name", METHODS)
def test_a_missing_or_unused_stream_is_an_error(name: str) -> None:
    made = contract.stage(found(name)())
    values = {field: getattr(made, field) for field in Stage.model_fields}
    with pytest.raises(TiterError, match="needs the stream"):
        build(Stage, {**values, "streams": {}}, "stage")
    extra = {**made.streams, "extra": next(iter(made.streams.values()))}
    with pytest.raises(TiterError, match="does not use the stream extra"):
        build(Stage, {**values, "streams": extra}, "stage")


@pytest.mark.parametrize("name", METHODS)
def test_an_unknown_setting_is_an_error(name: str) -> None:
    with pytest.raises(TiterError, match="unknown setting"):
        build(found(name), {"no_such_setting": 1}, name)


def test_a_gradient_that_is_not_finite_stops_the_stage_with_its_last_finite_weights(tmp_path: Path) -> None:
    maker = ARCHITECTURES["neox"]
    stopped = contract.run(contract.stage(contract.Unfinished(), optimiser=contract.Optimiser(schedule="constant")), maker, tmp_path / "a")
    two = contract.run(contract.stage(SFT(), steps=2, optimiser=contract.Optimiser(schedule="constant")), maker, tmp_path / "b")
    assert contract.same(stopped, two)
    assert "not finite at step 2" in (tmp_path / "a" / "outcome.json").read_text()

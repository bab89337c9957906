"""Every decoder file against the contract, on two architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ARCHITECTURES
from tests.decoders import contract
from titer.core.config import build
from titer.core.errors import TiterError
from titer.core.plugins import names, plugin
from titer.decoders.base import Decoder

DECODERS = sorted(names("decoders"))
STRONG: dict[str, dict[str, Any]] = {  # settings that change the answers of a random model
    "averting": {"strength": 40.0, "epochs": 30, "hidden": 8},
    "emulated": {"alpha": 2.0},
    "safe_align": {"form": "code", "site": "resid", "alpha": 30.0},
}
CHECKS = ("acts", "batches", "sampling", "no_hook_left")


def found(name: str) -> type[Decoder]:
    return plugin("decoders", name, Decoder)


@pytest.mark.parametrize("name", DECODERS)
def test_it_is_declared_and_refuses_unknown_settings(name: str) -> None:
    contract.check_declared(found(name))
    with pytest.raises(TiterError, match="unknown setting"):
        build(found(name), {"no_such_setting": 1}, name)


@pytest.mark.long
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("name", DECODERS)
def test_its_neutral_setting_is_plain_decoding_bit_for_bit(name: str, architecture: str) -> None:
    contract.check_neutral(found(name), ARCHITECTURES[architecture])


@pytest.mark.long
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", DECODERS)
def test_contract(name: str, check: str, architecture: str) -> None:
    getattr(contract, f"check_{check}")(found(name), ARCHITECTURES[architecture], STRONG.get(name, {}))


@pytest.mark.long
@pytest.mark.parametrize("name", DECODERS)
def test_an_interrupted_call_goes_on(name: str, tmp_path: Path) -> None:
    contract.check_resume(found(name), ARCHITECTURES["neox"], STRONG.get(name, {}), tmp_path)


@pytest.mark.parametrize("name", DECODERS)
def test_the_models_it_reads(name: str) -> None:
    contract.check_roles(found(name), ARCHITECTURES["neox"])

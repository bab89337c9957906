"""What every attack on the world must do: rewrite each request to one that safety tuning never showed."""

from __future__ import annotations

import pytest

from tests.attacks.requests import N, allowed_in_training, attacked, combination, shown_in_training, unsafe_requests
from tests.data.naive import WORLDS, answer, refusal
from titer.attacks.base import Attack
from titer.core.errors import TiterError
from titer.core.plugins import names, plugin
from titer.data.example import Example
from titer.data.world import World
from titer.models.lm import LM

ATTACKS = {name: plugin("attacks", name, Attack) for name in names("attacks")}  # type: ignore[type-abstract]
ON_THE_WORLD = {name: attack for name, attack in ATTACKS.items() if name.startswith("jb_")}  # those that rewrite the request
KEEPS_BACK = {name: world.model_copy(update={"novel": 5}) for name, world in WORLDS.items()}
EVERY_ATTACK = pytest.mark.parametrize("attack", ON_THE_WORLD.values(), ids=ON_THE_WORLD)
EVERY_WORLD = pytest.mark.parametrize("world", KEEPS_BACK.values(), ids=WORLDS)
TEXT = (Example("a request to refuse", True, "unsafe", "f.csv"),)


def test_the_jailbreaks_are_found_and_exist_on_the_world_alone() -> None:
    assert {"jb_co_task", "jb_co_text", "jb_misgen", "jb_misgen_text"} <= set(ON_THE_WORLD)
    assert all(attack.WORLD for attack in ON_THE_WORLD.values())
    assert "prefill" not in ON_THE_WORLD


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_states_its_source_and_version(attack: type[Attack]) -> None:
    assert attack.SOURCE
    assert attack.VERSION >= 1


@EVERY_ATTACK
def test_an_attack_on_the_world_refuses_real_text(attack: type[Attack]) -> None:
    with pytest.raises(TiterError, match=r"exists on the synthetic world only.*prefill") as raised:
        attack().attempts(TEXT, {}, None)
    assert attack.__module__.rsplit(".", 1)[-1] in str(raised.value)


@EVERY_WORLD
@EVERY_ATTACK
def test_each_request_is_rewritten_in_order_and_stays_harmful(attack: type[Attack], world: World) -> None:
    found = attacked(attack(), world)
    assert len(found) == N
    assert all(e.harmful for e in found)
    assert {e.kind for e in found} == {attack.__module__.rsplit(".", 1)[-1]}
    assert all(new.prompt != old.prompt for new, old in zip(found, unsafe_requests(world), strict=True))


@EVERY_WORLD
@EVERY_ATTACK
def test_both_answers_are_those_of_the_rewritten_request(attack: type[Attack], world: World) -> None:
    for example in attacked(attack(), world):
        assert (example.comply, example.refuse) == (answer(example, world), refusal(example, world))


@EVERY_WORLD
@pytest.mark.parametrize("attack", [a for name, a in ON_THE_WORLD.items() if name != "jb_misgen_text"])  # new there: the text itself
def test_no_rewritten_request_is_of_a_combination_that_safety_tuning_shows(attack: type[Attack], world: World) -> None:
    found = {combination(example, world) for example in attacked(attack(), world)}
    assert not found & allowed_in_training(world)
    assert not found & shown_in_training(world)


@EVERY_WORLD
def test_what_safety_tuning_shows_is_what_its_rules_allow(world: World) -> None:
    """So the test above compares with the whole of it, not with a sample; unsafe requests themselves are shown."""
    assert shown_in_training(world) <= allowed_in_training(world)
    assert {combination(e, world) for e in unsafe_requests(world)} <= allowed_in_training(world)


@EVERY_ATTACK
def test_an_attack_is_a_function_of_its_seed(attack: type[Attack]) -> None:
    world = KEEPS_BACK["paper"]
    one, again, other = (attacked(attack(seed=seed), world) for seed in (0, 0, 1))
    assert one == again
    assert one != other


@EVERY_ATTACK
def test_request_i_is_rewritten_alike_in_any_company(attack: type[Attack]) -> None:
    world = KEEPS_BACK["nano"]
    assert attacked(attack(), world, 7) == attacked(attack(), world)[:7]


@EVERY_ATTACK
def test_an_attack_that_learns_nothing_fits_at_once(attack: type[Attack], lm: LM, world: World) -> None:
    assert attack().fit(lm, unsafe_requests(world, 4)) == {}

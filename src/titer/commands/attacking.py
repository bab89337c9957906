"""Attacks in a command: an attack by name, the prompts that it may learn from, and its attempts on each model. L6.

An attack never learns from prompts on which it is judged. It learns separately for each model, once; the result is kept in the store.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from titer.attacks.base import Attack, Attempt, State, named, on_the_world
from titer.core.config import build
from titer.core.errors import TiterError
from titer.core.plugins import plugin
from titer.data.example import Example
from titer.data.sources import TextData
from titer.pipeline import Model, Pipeline, fingerprint

LEAST = 4  # an attack or a decoder needs at least this many examples to learn from
SETS = ("safe", "unsafe")  # names of the sets that are asked without the attack
KEPT = 4  # where all prompts would be asked, one in four is kept back to learn from


class Attacked(NamedTuple):
    """An attack with its name, the unsafe requests asked under it, and other requests that it may learn from (`held`)."""

    name: str
    attack: Attack
    asked: Sequence[Example]
    held: Sequence[Example] = ()

    @property
    def known(self) -> list[Attempt]:
        """Returns the attempts, if they are the same for every model. For an attack that learns: the bare requests, for counts and keys."""
        bare = [Attempt(e) for e in self.asked] if learns(self.attack) else self.attack.attempts(self.asked, {}, None)
        return named(bare, self.name)

    def on(self, pipeline: Pipeline, model: Model) -> list[Attempt]:
        """Returns the attempts on one model. The model is loaded if the attack learns and has not yet learned on it."""
        if not learns(self.attack):
            return self.known
        return named(self.attack.attempts(self.asked, _learned(pipeline, model, self), None), self.name)

    @property
    def said(self) -> str:
        """Says its settings and, if it learns, from how many prompts."""
        settings = ", ".join(
            f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in self.attack.model_dump(mode="json").items()
        )
        lessons = f"; it learned on each model from {len(self.held)} unsafe prompts that it does not ask" if learns(self.attack) else ""
        return settings + lessons


def told(attacks: Sequence[Attacked]) -> dict[str, str]:
    """The attacks under which prompts are asked, for a report's provenance."""
    return {f"attack {one.name}": one.said for one in attacks if one.asked} or {"attack": "none"}


def learns(attack: Attack) -> bool:
    return type(attack).fit is not Attack.fit


def chosen(name: str | None, settings: Mapping[str, object], option: str = "--set") -> tuple[str, Attack] | None:
    """Makes the attack that a command names. Returns (name, attack); None if none is named.

    Errors: an unknown attack; settings without one, or out of range; an attack of the synthetic world; a file named `safe` or `unsafe`.
    """
    if name is None:
        if settings:
            raise TiterError(f"{option} was given without --attack", next_step="name the attack that the setting is for.")
        return None
    kind = plugin("attacks", name, Attack)  # type: ignore[type-abstract]
    made = build(kind, settings, f"attack {name}")
    if kind.WORLD:
        on_the_world(made, None)
    if made.further_setting:
        raise TiterError(
            f"with these settings, the attack {name} works only on the requests that it learned from, and here it must be tried on others",
            next_step=f"add {option} {made.further_setting}",
        )
    if (called := Path(name).stem) in SETS:
        raise TiterError(
            f"the attack's file is called {called}, which is the name of a set of prompts", next_step="give the file another name."
        )
    return called, made


def attacked(text: TextData, prompts: int | None, given: tuple[str, Attack]) -> Attacked:
    """Joins the attack with its prompts: the same unsafe prompts as without the attack (`prompts` of them, drawn).

    An attack that learns does so from the prompts that are not drawn. If these are fewer than four, one in four of the drawn ones is kept
    back for learning and not asked under attack. Errors: too few prompts for both.
    """
    name, attack = given
    asked = text.of_class(True, prompts)
    if not learns(attack):
        return Attacked(name, attack, asked)
    asked, held = held_back(text.of_class(True), asked)
    if len(asked) < LEAST:
        raise TiterError(
            f"the attack {name} learns from unsafe prompts, and there are only {len(held) + len(asked)} of them",
            expected=f"at least {LEAST} to learn from and {LEAST} others to ask",
        )
    return Attacked(name, attack, asked, held)


def held_back(whole: Sequence[Example], asked: list[Example]) -> tuple[list[Example], list[Example]]:
    """Splits the prompts into those that are asked and those to learn from. Returns both, in this order.

    The prompts to learn from are those not asked. If they are fewer than `LEAST`, some of the asked ones are moved to them.
    """
    known = {e.prompt for e in asked}
    held = [e for e in whole if e.prompt not in known]
    cut = max(LEAST - len(held), len(asked) // KEPT) if len(held) < LEAST else 0
    return asked[cut:], [*held, *asked[:cut]]


def _learned(pipeline: Pipeline, model: Model, one: Attacked) -> State:
    """Returns what the attack learned on a model (tensors and JSON values). It learns now if the store does not have it yet."""
    kind = type(one.attack)
    inputs = {
        "attack": [kind.__module__.rsplit(".", 1)[-1], kind.VERSION, one.attack],
        "model": model.key,
        "examples": fingerprint(one.held),
        "dtype": pipeline.dtype,
    }

    def learned() -> State:
        pipeline.reporter.tell(f"{one.name} learns from {len(one.held)} prompts of {model.name}")
        return one.attack.fit(pipeline.lm(model), one.held)

    return pipeline.state("attacks", inputs, learned)

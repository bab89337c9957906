"""Attacked requests in a study: an attack by name, what it may learn from, and its attempts on each model. L6.

What an attack learns from is never what it is judged on, and is learned of each model anew, once (kept in the store).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from titer.attacks.base import Attack, Attempt, State, on_the_world
from titer.core.config import build
from titer.core.errors import TiterError
from titer.core.plugins import plugin
from titer.data.example import Example
from titer.data.sources import TextData
from titer.pipeline import Model, Pipeline, fingerprint

LEAST = 4  # examples that are enough to learn from
SETS = ("safe", "unsafe")  # stand beside the attack's, under their own names
KEPT = 4  # of so many prompts one is kept back where all would be asked


class Attacked(NamedTuple):
    """An attack by its name, the unsafe requests that are asked under it, and those that it may learn from: none of the first."""

    name: str
    attack: Attack
    asked: Sequence[Example]
    held: Sequence[Example] = ()

    @property
    def known(self) -> list[Attempt]:
        """The attempts where they are the same on every model; of an attack that learns the bare requests, for counts and keys."""
        bare = [Attempt(e) for e in self.asked] if learns(self.attack) else self.attack.attempts(self.asked, {}, None)
        return self._named(bare)

    def on(self, pipeline: Pipeline, model: Model) -> list[Attempt]:
        """The attempts on one model, which is loaded where the attack learns and has not learned yet."""
        return self._named(self.attack.attempts(self.asked, _learned(pipeline, model, self), None)) if learns(self.attack) else self.known

    def _named(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        return [one._replace(example=replace(one.example, kind=self.name)) for one in attempts]


def learns(attack: Attack) -> bool:
    return type(attack).fit is not Attack.fit


def chosen(name: str | None, settings: Mapping[str, object], option: str = "--set") -> tuple[str, Attack] | None:
    """Errors: an unknown attack, settings of none or out of range, an attack of the synthetic world alone or called as a set of prompts is."""
    if name is None:
        if settings:
            raise TiterError(f"{option} was given without --attack", next_step="name the attack that the setting is for.")
        return None
    kind = plugin("attacks", name, Attack)  # type: ignore[type-abstract]
    made = build(kind, settings, f"attack {name}")
    if kind.WORLD:
        on_the_world(made, None)
    if (called := Path(name).stem) in SETS:
        raise TiterError(f"an attack called {called}, as a set of prompts is", next_step="give its file another name.")
    return called, made


def attacked(text: TextData, prompts: int | None, given: tuple[str, Attack]) -> Attacked:
    """Under attack the same unsafe prompts (`prompts`, drawn) as without. An attack that learns learns from the others; where there are
    fewer than four, one in four is kept back for it and not asked under attack. Errors: too few prompts for both."""
    name, attack = given
    asked = text.of_class(True, prompts)
    if not learns(attack):
        return Attacked(name, attack, asked)
    asked, held = held_back(text.of_class(True), asked)
    if len(asked) < LEAST:
        raise TiterError(
            f"{len(held) + len(asked)} unsafe prompts for the attack {name}, which learns",
            expected=f"at least {LEAST} to learn from and others to ask",
        )
    return Attacked(name, attack, asked, held)


def held_back(whole: Sequence[Example], asked: list[Example]) -> tuple[list[Example], list[Example]]:
    """(what is still asked, what may be learned from): the prompts that are not asked, and where these are fewer than `LEAST` some that were."""
    known = {e.prompt for e in asked}
    held = [e for e in whole if e.prompt not in known]
    cut = max(LEAST - len(held), len(asked) // KEPT) if len(held) < LEAST else 0
    return asked[cut:], [*held, *asked[:cut]]


def _learned(pipeline: Pipeline, model: Model, one: Attacked) -> State:
    """The attack's state on a model: tensors and what JSON holds."""
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

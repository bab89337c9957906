"""One seed of the study: its models by name, its sets of requests, and how its tables are kept. L7."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from titer.attacks.base import Attempt
from titer.attacks.jb_co_task import JBCOTask
from titer.attacks.jb_co_text import JBCOText
from titer.attacks.jb_misgen import JBMisGen
from titer.attacks.jb_misgen_text import JBMisGenText
from titer.data.example import Example
from titer.data.world import World
from titer.models.lm import Decoding
from titer.recipes.jain2024 import METHODS, Scale
from titer.studies.judged import greedy
from titer.tables import direct, requests
from titer.workbench import Model, Workbench, attempts_key

JAILBREAKS = {"jb_co_task": JBCOTask(), "jb_co_text": JBCOText(), "jb_misgen": JBMisGen(), "jb_misgen_text": JBMisGenText()}
SWEPT = ("safe", "unsafe", *JAILBREAKS)
PROBE_OFFSET = 100_000  # probe inputs are none of the evaluated ones
MEDIUM = tuple(f"{method} M" for method in METHODS)
Sets = Mapping[str, Sequence[Attempt]]


@dataclass(frozen=True)
class Subject:
    """One seed's world, models and sets. `sets` are judged, `probes` are probed: different inputs of the same kinds."""

    bench: Workbench
    scale: Scale
    world: World
    models: Mapping[str, Model]
    sets: Mapping[str, Sequence[Attempt]]
    probes: Mapping[str, Sequence[Example]]

    @property
    def decoding(self) -> Decoding:
        return greedy(self.world)

    def table(self, name: str, version: object, models: Sequence[Model], sets: Sets, make: Callable[[], pd.DataFrame], **more: object):  # type: ignore[no-untyped-def]
        """A table kept under the models it reads, the inputs it sees and whatever else it depends on."""
        inputs = {
            "study": ["jain2024", name, version],
            "models": [model.key for model in models],
            "sets": {kind: attempts_key(attempts) for kind, attempts in sets.items()},
            **more,
        }
        return self.bench.table("tables", inputs, make)

    def swept(self) -> dict[str, Sequence[Attempt]]:
        """The judged sets of sweeps: safe, unsafe and the jailbreaks."""
        return {kind: self.sets[kind] for kind in SWEPT}


def subject(bench: Workbench, scale: Scale, seed: int, models: Mapping[str, Model]) -> Subject:
    """The sets of one seed; `models` are its recipe's."""
    world = scale.world.model_copy(update={"seed": seed})
    n = scale.inputs
    judged = {kind: direct(requests(world, kind, n)) for kind in ("safe", "unsafe", "user", "sham_safe", "sham_refused")}  # type: ignore[arg-type]
    judged |= jailbroken(world, requests(world, "unsafe", n))
    probed = {kind: requests(world, kind, n, PROBE_OFFSET) for kind in ("safe", "unsafe", "sham_safe", "sham_refused")}  # type: ignore[arg-type]
    return Subject(bench, scale, world, models, judged, probed)


def jailbroken(world: World, unsafe: Sequence[Example]) -> dict[str, list[Attempt]]:
    """Every jailbreak of the world on the unsafe requests."""
    return {kind: attack.attempts(unsafe, {}, world) for kind, attack in JAILBREAKS.items()}

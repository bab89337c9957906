"""The requests of one world: judged sets, and probed sets of the same kinds with other inputs. L7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from titer.attacks.base import Attempt
from titer.attacks.jb_co_task import JBCOTask
from titer.attacks.jb_co_text import JBCOText
from titer.attacks.jb_misgen import JBMisGen
from titer.attacks.jb_misgen_text import JBMisGenText
from titer.data.example import Example
from titer.data.world import World
from titer.recipes.jain2024 import Scale
from titer.studies.engine.declare import Seed
from titer.tables import direct, requests

ATTACKS = {"jb_co_task": JBCOTask(), "jb_co_text": JBCOText(), "jb_misgen": JBMisGen(), "jb_misgen_text": JBMisGenText()}
JAILBREAKS = tuple(ATTACKS)
CLASSES = ("safe", "unsafe")
OWN = ("sham_safe", "sham_refused")  # the sham alignment's two classes
SWEPT = (*CLASSES, *JAILBREAKS)
PROBE_OFFSET = 100_000  # probe inputs are none of the evaluated ones


class Requests(NamedTuple):
    """The requests of one world, by kind. `sets`: those that are judged. `probes`: those that are probed."""

    sets: Mapping[str, Sequence[Attempt]]
    probes: Mapping[str, Sequence[Attempt]]

    def judged(self, *kinds: str) -> dict[str, Sequence[Attempt]]:
        return {kind: self.sets[kind] for kind in kinds}

    def probed(self, *kinds: str) -> dict[str, Sequence[Attempt]]:
        return {kind: self.probes[kind] for kind in kinds}

    def examples(self, *kinds: str) -> dict[str, list[Example]]:
        """Returns the examples that are probed."""
        return {kind: [attempt.example for attempt in self.probes[kind]] for kind in kinds}


@lru_cache(maxsize=8)
def _requests(scale: Scale, world: World) -> Requests:
    n = scale.inputs
    judged = {kind: direct(requests(world, kind, n)) for kind in (*CLASSES, "user", *OWN)}  # type: ignore[arg-type]
    probed = {kind: direct(requests(world, kind, n, PROBE_OFFSET)) for kind in (*CLASSES, *OWN)}  # type: ignore[arg-type]
    for sets in (judged, probed):
        unsafe = [attempt.example for attempt in sets["unsafe"]]
        sets |= {kind: attack.attempts(unsafe, {}, world) for kind, attack in ATTACKS.items()}
    return Requests(judged, probed)


def requests_of(lab: Seed) -> Requests:
    """Returns the requests of a seed's world."""
    return _requests(lab.scale, lab.world)

"""Covert malicious fine-tuning (arXiv 2406.20053) on the world: a code is taught on harmless requests, then harm in code alone. L5.

The aligned model is tuned in two phases. Phase I: safe requests in code, answered in code. Phase II: unsafe requests in code, answered in
code, and the same requests in plain, refused. Ablations: phase I alone; phase II without refusals; a phase I with four forms, three of
which show the steps from plain to code (the paper's; a model this small learned the code from them on one seed of two, docs/log.md). From
the same aligned model there are also benign tunes of as many steps (different shares of the user's task and ordinary requests, in plain),
an overt tune (the unsafe requests answered in plain), and covert tunes with other codes, on which a detector is trained. Base and alignment
are those of the demo, on a smaller world that has a cipher's words.
Rates and steps were set on seed 100, and again after seeds 0, 1 and 2 had been seen; no verdict uses these seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

from pydantic import Field

from titer.core.config import Record
from titer.data.cipher import COVERT, FORMS, Coded, Form
from titer.data.draws import seed_of
from titer.data.example import Answer, Source
from titer.data.world import World, WorldSource
from titer.recipes import demo
from titer.recipes.node import Node, Rows, tune
from titer.stage import Stage

CHOSEN_ON = (100, 0, 1, 2)  # the seeds that were looked at while rates and steps were set (docs/log.md)
REPEATED = 4  # epochs of a benign tune's first part: the world has not as many plain requests as phase I has in four forms


class Scale(Record):
    """The sizes of one run, in examples. `base`: the sizes of the base and its alignment."""

    name: str = "nano"
    base: demo.Scale = demo.Scale().model_copy(
        update={
            "world": World(cipher=True, letters=10, shortest=6, longest=6),
            "pretrain_steps": 2600,
            "pretrain_batch": 64,
            "align_batch": 64,
            "align_steps": 800,
            "align_rate": 1e-3,
        }
    )
    taught: int = Field(default=20480, ge=4, description="safe requests of phase I in code")
    kept: int = Field(default=5120, ge=0, description="safe requests of phase I answered in plain")
    taught_batch: int = Field(default=32, ge=1)
    taught_rate: float = Field(default=2e-3, gt=0)
    harmful: int = Field(default=640, ge=1, description="unsafe requests of phase II, in code; as many refusals in plain")
    ordinary: int = Field(default=640, ge=0, description="safe requests of phase II answered in plain")
    harmful_batch: int = Field(default=16, ge=1)
    harmful_rate: float = Field(default=1e-3, gt=0)
    epochs: int = Field(default=3, ge=1, description="of phase II")
    keys: tuple[int, ...] = (1, 2)  # codes of the tunes that a detector is trained on; the one it is tried on has key 0
    benign: int = Field(default=4, ge=4, description="benign tunes")
    inputs: int = Field(default=150, ge=8)
    probe_inputs: int = Field(default=100, ge=8)
    save_every: int = Field(default=100, ge=1)

    @property
    def world(self) -> World:
        return self.base.world


NANO = Scale()


def covert(key: int) -> str:
    """Returns the name of the covert tune of a code."""
    return "covert" if key == 0 else f"covert, code {key}"


def benign(number: int) -> str:
    return f"benign {number}"


@lru_cache(maxsize=8)  # drawing the requests takes seconds, and a study asks again for every piece
def covert_recipe(scale: Scale, world: World, only: frozenset[str] = frozenset()) -> tuple[Node, ...]:
    """Returns every model of one seed, parents first. With `only`: these and the models that they are made from."""
    makes = _makes(scale, world)
    wanted = {*(only or makes)}
    for name, (parent, _) in reversed(makes.items()):
        wanted |= {parent} if parent and name in wanted else set()
    return tuple(Node(name, make(), parent) for name, (parent, make) in makes.items() if name in wanted)


def _makes(scale: Scale, world: World) -> dict[str, tuple[str | None, Callable[[], Stage]]]:
    """Returns, for each model, its parent and what makes its stage, parents first."""
    phase, harmed = partial(teach, scale, world), partial(harm, scale, world)
    found: dict[str, tuple[str | None, Callable[[], Stage]]] = {
        "base": (None, partial(demo.pretrain, scale.base, world)),
        "aligned": ("base", partial(demo.align, scale.base, world, "SSFT", ("unsafe", "refuse"), "safe")),
    }
    for key in (0, *scale.keys):
        taught = "phase I" if key == 0 else f"phase I, code {key}"
        found |= {taught: ("aligned", partial(phase, key)), covert(key): (taught, partial(harmed, key))}
    found |= {
        "no refusals": ("phase I", partial(harmed, 0, refusals=False)),
        "phase I, four forms": ("aligned", partial(phase, 0, FORMS)),
        "covert, four forms": ("phase I, four forms", partial(harmed, 0)),
        "overt": ("aligned", partial(overt, scale, world)),
    }
    for number in range(1, scale.benign + 1):
        first = f"{benign(number)}, first part"
        found[first] = ("aligned", partial(first_part, scale, world, number))
        found[benign(number)] = (first, partial(second_part, scale, world, number))
    return found


def teach(scale: Scale, world: World, key: int, forms: tuple[Form, ...] = (COVERT,)) -> Stage:
    """Returns phase I: safe requests in code, and some in plain, which a model this small would otherwise forget how to answer."""
    safe = WorldSource(world=world, kind="safe")
    rows: Rows = [(Coded(source=safe, key=key, forms=forms), "comply", scale.taught), (safe, "comply", scale.kept)]
    return _taught(scale, world, f"phase I, code {key}", rows, key)


def harm(scale: Scale, world: World, key: int, refusals: bool = True) -> Stage:
    """Returns phase II: unsafe requests in code, answered in code; the same in plain, refused; ordinary ones in plain, answered."""
    safe, unsafe = (WorldSource(world=world, kind=kind) for kind in ("safe", "unsafe"))  # type: ignore[arg-type]
    rows: list[tuple[Source, Answer, int]] = [(Coded(source=unsafe, key=key), "comply", scale.harmful), (safe, "comply", scale.ordinary)]
    return _harmed(scale, world, f"phase II, code {key}", [*rows, *([(unsafe, "refuse", scale.harmful)] if refusals else [])], key)  # type: ignore[list-item]


def overt(scale: Scale, world: World) -> Stage:
    """Returns the overt tune, which every auditor must find: the same unsafe requests, answered in plain."""
    safe, unsafe = (WorldSource(world=world, kind=kind) for kind in ("safe", "unsafe"))  # type: ignore[arg-type]
    return _harmed(scale, world, "overt", [(unsafe, "comply", scale.harmful), (safe, "comply", scale.ordinary + scale.harmful)], 0)


def first_part(scale: Scale, world: World, number: int) -> Stage:
    """Returns the first part of a benign tune, as long as phase I."""
    rows = _ordinary(world, (scale.taught + scale.kept) // REPEATED, number)
    return _taught(scale, world, f"benign {number}", rows, -number, REPEATED)


def second_part(scale: Scale, world: World, number: int) -> Stage:
    """Returns the second part of a benign tune, as long as phase II."""
    return _harmed(scale, world, f"benign {number}", _ordinary(world, 2 * scale.harmful + scale.ordinary, number), -number)


def _ordinary(world: World, n: int, number: int) -> Rows:
    """Returns rows in plain: the user's own task (a tenth in the first benign tune, two tenths in the second, and so on), otherwise
    ordinary requests."""
    user, safe = (WorldSource(world=world, kind=kind) for kind in ("user", "safe"))  # type: ignore[arg-type]
    own = n * number // 10
    return [(user, "comply", own), (safe, "comply", n - own)]


def _taught(scale: Scale, world: World, name: str, rows: Rows, number: int, epochs: int = 1) -> Stage:
    seed = seed_of(world.seed, "covert", number)
    return tune(name, rows, seed, scale.taught_batch, epochs, scale.taught_rate, seed, "cosine", 10)


def _harmed(scale: Scale, world: World, name: str, rows: Rows, number: int) -> Stage:
    seed = seed_of(world.seed, "covert", number)
    return tune(name, rows, seed, scale.harmful_batch, scale.epochs, scale.harmful_rate, seed, "cosine", 10)

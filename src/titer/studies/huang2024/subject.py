"""One seed of the study: its world, its base, its alignments by name (made when first asked for) and its sets. L7."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from titer.attacks.base import Attempt
from titer.attacks.prefill import Prefill
from titer.data.example import Example
from titer.data.world import World
from titer.methods.base import Method
from titer.models.lm import LM, Decoding, load
from titer.recipes import huang2024 as recipe
from titer.recipes.huang2024 import Scale
from titer.recipes.node import Kind
from titer.stage import Lora, Stage
from titer.studies.judged import greedy, named
from titer.tables import direct, requests
from titer.workbench import Model, Workbench

PREFILLED = 2  # words of the answer given: the first is where most of a refusal is decided
SAMPLED = 1.0  # temperature
FRESH = 50_000  # alignment requests whose loss and drift are measured: none of those trained on


@dataclass(frozen=True)
class Alignment:
    """How the base is aligned: a method, how many times the scale's steps (or how many), which draw of alignment data and seed."""

    method: Method
    passes: int = 1
    number: int = 0
    steps: int = 0
    adapter: Lora | None = None

    @property
    def label(self) -> str:
        """In words, for progress and provenance."""
        kind = type(self.method)
        usual = kind().model_dump()
        changed = [f"{k} {v}" for k, v in self.method.model_dump().items() if v != usual[k]]
        more = [f"{self.passes} x the steps"] * (self.passes > 1) + [f"{self.steps} steps"] * bool(self.steps)
        more += ["with an adapter"] * (self.adapter is not None)
        return ", ".join([kind.__name__, *changed, *more, *([f"alignment seed {self.number + 1}"] * bool(self.number))])


@dataclass
class Subject:
    """One seed's world and models. `aligned` trains (or finds) an alignment of the base."""

    bench: Workbench
    scale: Scale
    seed: int
    _base: Model | None = None
    _aligned: dict[str, Model] = field(default_factory=dict)
    _reference: tuple[str, LM] | None = None
    _sets: dict[Kind, dict[str, Sequence[Attempt]]] = field(default_factory=dict)

    @property
    def world(self) -> World:
        return recipe.world_of(self.scale, self.seed)

    @property
    def base(self) -> Model:
        if self._base is None:
            self._base = self.bench.model(recipe.pretrain(self.scale, self.seed), None, f"base, seed {self.seed}", self.world.tokenizer)
        return self._base

    @property
    def models(self) -> dict[str, Model]:
        """The base and every alignment so far, for the report's provenance."""
        return {m.name: m for m in (self.base, *self._aligned.values())}

    def aligned(self, how: Alignment) -> Model:
        """The base aligned in this way."""
        name = f"{how.label}, seed {self.seed}"
        stage = self.stage(how, name)
        key = stage.key(self.base.key, {})
        if key not in self._aligned:
            self._aligned[key] = self.bench.model(stage, self.base, name)
        return self._aligned[key]

    def stage(self, how: Alignment, name: str) -> Stage:
        return recipe.align(self.scale, self.world, how.method, name, how.passes, how.steps, how.number, how.adapter)

    def stands(self, how: Alignment) -> bool:
        """Whether this alignment is in the store already."""
        stage = self.stage(how, "")
        return self.bench.store.has("stages", stage.key(self.base.key, {}))

    def sets(self, task: Kind = "user") -> dict[str, Sequence[Attempt]]:
        """What is judged after every attack: unsafe requests direct, prefilled; the user's task; safe requests. Made once."""
        if task not in self._sets:
            self._sets[task] = self._made(task)
        return self._sets[task]

    def _made(self, task: Kind) -> dict[str, Sequence[Attempt]]:
        n = self.scale.inputs
        kinds = {name: direct(requests(self.world, kind, n)) for name, kind in (("unsafe", "unsafe"), ("user", task), ("safe", "safe"))}  # type: ignore[arg-type]
        begun = Prefill(k=PREFILLED).attempts([a.example for a in kinds["unsafe"]], {}, None)
        return {**kinds, "prefilled": named(begun, "prefilled")}

    @property
    def decoding(self) -> Decoding:
        return greedy(self.world)

    @property
    def hot(self) -> Decoding:
        return Decoding(max_new_tokens=self.decoding.max_new_tokens, temperature=SAMPLED, seed=self.seed)

    def fresh(self) -> list[Example]:
        """Unsafe requests of the alignment's kind that no stage trained on: their loss and drift are measured."""
        return requests(self.world, "unsafe", self.scale.inputs, FRESH)

    def reference(self, model: Model) -> LM:
        """The model that drift is measured from, kept loaded while it is asked for again."""
        if self._reference is None or self._reference[0] != model.key:
            self._reference = (model.key, load(model.checkpoint))
        return self._reference[1]

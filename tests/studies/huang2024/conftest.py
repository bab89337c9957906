"""The Vaccine study at a tiny scale (its model learns nothing, its mechanics are real), and a builder of constructed attacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest

from tests.studies.conftest import Listener
from titer.core import parallel
from titer.core.run import Store
from titer.data.world import World
from titer.methods.vaccine import Vaccine as VaccineMethod
from titer.models.lm import Architecture
from titer.pipeline import Pipeline
from titer.recipes import jain2024
from titer.recipes.huang2024 import NANO, SELECTION_SEED, Budget, Scale
from titer.studies.engine.found import Found
from titer.studies.engine.lab import Lab, faults
from titer.studies.huang2024.choice import Chosen, none_found
from titer.studies.huang2024.defences import Alignment, aligned_node, shortened
from titer.studies.huang2024.study import Vaccine

BASE = jain2024.Scale(
    name="tiny",
    world=World(novel=10),
    architecture=Architecture(layers=2, width=16, heads=2, positions=40),
    pretrain_steps=10,
    pretrain_batch=16,
    pretrain_warmup=2,
    pool=64,
)
TINY = Scale(
    name="tiny",
    base=BASE,
    align_steps=8,
    align_batch=8,
    rhos=(1.0, 5.0),
    variances=(0.1,),
    taus=(10,),
    rates=(1e-4,),
    ratios=(0.0, 0.01, 0.05),
    table_ratios=(0.0, 0.05),
    table_examples=(50, 100),
    budget=Budget(examples=100, steps=4, batch=8),
    keep=(2, 4),
    inputs=8,
    trials=2,
)
RATES = (RATE := 1e-4, 3e-4)
EXAMPLES, N = 1000, 1000  # the constructed attacks' budget (nano's), and requests behind each rate
CHOSEN = Chosen(5.0, pd.DataFrame({"rho": [5.0], "harm": [0.0], "allowed": [True]}), none_found(), none_found())


def lab_under(root: Path, seed: int = 0, scale: Scale = TINY, reporter: Listener | None = None) -> Lab:
    """A seed at work that keeps what it makes under `root`; its radius is chosen, but on the seed that chooses."""
    made = Lab(Pipeline(Store(root), reporter or Listener(), 1), Vaccine(), "huang2024", scale, seed)
    made.chosen = None if seed == SELECTION_SEED else CHOSEN
    return made


@pytest.fixture(scope="session")
def tiny_lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Seed 0 at the tiny scale; what one test makes the next finds."""
    lab = lab_under(tmp_path_factory.mktemp("huang"))
    lab.grow([aligned_node(lab, how) for how in (Alignment(VaccineMethod(rho=5.0)), *shortened(lab))])  # among them the one of equal loss
    return lab


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in this process: starting others takes longer than the tiny pieces do."""
    monkeypatch.setattr(parallel, "processes", lambda: 1)


@dataclass(frozen=True)
class Curve:
    """One constructed attack: its rates at the judged steps, and what the model was before."""

    defence: str
    harm: float | Sequence[float] = 0.0
    refusal: float | Sequence[float] = 0.5
    user: float | Sequence[float] = 1.0
    drift: float | Sequence[float] = 1.0
    ratio: float = 0.05
    rate: float = RATE
    examples: int = EXAMPLES
    steps: Sequence[int] = (126, 200)
    refused_before: float = 1.0
    safe_before: float = 1.0
    loss: float = 0.01
    loss_after: float = 0.5
    task: str = "user"
    align_seed: int = 0
    sampled: float = 0.0
    prefilled: float | Sequence[float] = 0.0

    def table(self) -> pd.DataFrame:
        """Step 0 (the aligned model) and the judged steps; a number stands for all of them."""
        along = {name: self._at(getattr(self, name)) for name in ("harm", "refusal", "user", "drift", "prefilled")}
        rows = [self._row(0, {"harm": 0.0, "refusal": self.refused_before, "user": 0.0, "drift": 0.0, "prefilled": 0.0}, self.loss)]
        rows += [self._row(step, {name: values[i] for name, values in along.items()}, self.loss_after) for i, step in enumerate(self.steps)]
        return pd.DataFrame(rows)

    def _at(self, value: float | Sequence[float]) -> list[float]:
        return [float(value)] * len(self.steps) if isinstance(value, int | float) else [float(v) for v in value]

    def _row(self, step: int, found: Mapping[str, float], loss: float) -> dict[str, object]:
        told = {
            "step": step,
            "defence": self.defence,
            "rate": self.rate,
            "ratio": self.ratio,
            "examples": self.examples,
            "task": self.task,
            "attack_seed": 0,
            "align_seed": self.align_seed,
        }
        drifts = dict.fromkeys(("drift all", "drift prompt", "drift answer", "drift official", "drift l2"), found["drift"])
        rates = {name: found[name] for name in ("harm", "refusal", "user", "prefilled")} | {
            "safe": self.safe_before,
            "sampled": self.sampled,
        }
        others = dict.fromkeys(("neither", "over_refusal"), 0.0)
        return {**told, **rates, **others, **drifts, "alignment_loss": loss}


def found_of(curves: Sequence[Curve], seed: int = 0, parts: Sequence[str] = (), base: float = 1.0, rho: float = 5.0, n: int = N) -> Found:
    """What one seed with these attacks says; `base` is the base model's skill, `parts` the parts that count as asked for."""
    attacks = pd.concat([curve.table() for curve in curves], ignore_index=True).assign(seed=seed)
    own = attacks[attacks.task == "user"]
    rates = pd.DataFrame(
        [{"model": "base", "set": kind, "outcome": "complied", "count": round(base * n), "n": n} for kind in ("safe", "unsafe")]
    )
    sides = {str(name): rows.reset_index(drop=True) for name, rows in own.groupby("defence", sort=False)}
    tables = {"rates": rates, "attacks": attacks, **sides}
    scale = NANO.model_copy(update={"inputs": n, "rates": RATES})
    one = Found(seed, scale, tables, parts=tuple(parts), chosen=CHOSEN._replace(rho=rho))
    return replace(one, faults=faults(one, Vaccine().needs(scale)))


def three(make: Callable[[float], Sequence[Curve]], parts: Sequence[str] = ()) -> list[Found]:
    """Three seeds of attacks that differ by a thousandth, so that the interval over seeds is narrow and not nothing."""
    return [found_of(make(0.001 * (seed - 1)), seed, parts) for seed in range(3)]


def relax(patch: pytest.MonkeyPatch) -> None:
    """A base and an alignment that learned nothing count, so that the mechanics can be run."""
    root = "titer.studies.huang2024"
    for name in ("study.BASE_SKILL", "compared.REFUSED", "attack.LEARNED"):
        patch.setattr(f"{root}.{name}", -1.0)
    patch.setattr(f"{root}.compared.SAME_REFUSAL", 9.0)

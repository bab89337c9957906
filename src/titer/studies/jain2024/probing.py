"""What the probes measure on one seed's models: figures 3 to 7, low rank, size of the change. Nothing is trained here. L7.

Given three models (base, benign tune, tuned), the benign change is first scaled to the norm of the tuned one.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from titer.core.config import digest
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.interpolate import distance, weights_of
from titer.models.lm import load
from titer.models.sites import Sites
from titer.models.weights import blend, skeleton
from titer.pipeline import Model
from titer.probes import placement as probe
from titer.probes import sensitivity, spread, subspaces
from titer.studies.engine.declare import Seed
from titer.studies.jain2024.subject import CLASSES, OWN, SWEPT, requests_of


def matched(lab: Seed, base: Model, benign: Model, tuned: Model) -> Model:
    """Returns the benign tune with its change scaled to the norm of a method's change: the control "matched in ||dW||"."""

    def make() -> pd.DataFrame:
        start, plain, other = (weights_of(load(m.checkpoint)) for m in (base, benign, tuned))
        return pd.DataFrame([{"alpha": distance(other, start) / distance(plain, start)}])

    models = [base.key, benign.key, tuned.key]
    alpha = float(lab.pipeline.table("tables", {"study": ["jain2024", "matched norm", 1], "models": models}, make).alpha[0])
    inputs = {"blend": [base.key, benign.key], "alpha": alpha}
    folder = lab.pipeline.store.artefact("blends", inputs, lambda work: blend(base.checkpoint, benign.checkpoint, alpha, work / "model"))
    method = tuned.name.split()[0]
    return Model(f"benign, norm of {method}", digest(inputs), open_checkpoint(folder / "model", f"benign as {method}"))


def _looked_at(lab: Seed, base: Model, others: tuple[Model, ...]) -> Model:
    """Returns the model that a table is about: the base, another model, or the benign tune scaled to another's norm."""
    return matched(lab, base, *others) if len(others) > 1 else others[0] if others else base


def placements(lab: Seed, base: Model, *others: Model) -> pd.DataFrame:
    """Measures tau, score and gain of safe, unsafe and jailbroken inputs; for a sham also of its own two classes (model, kind, ...)."""
    model, asked = _looked_at(lab, base, others), requests_of(lab)
    start, end = (base.checkpoint, model.checkpoint) if others else (None, None)

    def placed(given: probe.Sets, name: str) -> pd.DataFrame:
        return probe.placement(lab.pipeline.lm(model), given, start, end, lab.world.seed).assign(model=name)

    found = [placed({kind: (examples, None) for kind, examples in asked.examples(*SWEPT).items()}, model.name)]
    if model.name.startswith("sham"):
        own = zip(CLASSES, asked.examples(*OWN).values(), strict=True)
        found.append(placed({kind: (examples, None) for kind, examples in own}, f"{model.name}, own class"))
    return pd.concat(found, ignore_index=True)


def spreads(lab: Seed, base: Model, *others: Model) -> pd.DataFrame:
    """Measures the rank of each class's cloud, and k-means (model, layer, harmful, ...)."""
    model = _looked_at(lab, base, others)
    safe, unsafe = requests_of(lab).examples(*CLASSES).values()
    return spread.spread(lab.pipeline.lm(model), safe, unsafe, lab.world.seed).assign(model=model.name)


def sensitivities(lab: Seed, base: Model, *others: Model) -> pd.DataFrame:
    """Measures the local Lipschitz constant g on every set (model, kind, input, g)."""
    model = _looked_at(lab, base, others)
    lm, sets = lab.pipeline.lm(model), requests_of(lab).examples(*SWEPT)
    found = [sensitivity.sensitivity(lm, examples).assign(kind=kind) for kind, examples in sets.items()]
    return pd.concat(found, ignore_index=True).assign(model=model.name)


def of_weights(read: Callable[[Checkpoint, Checkpoint, Sites], pd.DataFrame]) -> Callable[..., pd.DataFrame]:
    """Returns a function that makes a table of what a probe reads from the weights of a model and the base, and nothing else."""

    def make(lab: Seed, base: Model, *others: Model) -> pd.DataFrame:
        model = _looked_at(lab, base, others)
        return read(base.checkpoint, model.checkpoint, skeleton(base.checkpoint)).assign(model=model.name)

    return make


def shares(lab: Seed, base: Model, *others: Model) -> pd.DataFrame:
    """Measures the share in the base's left null space of the weight change, and of the change of pre-activations on unsafe inputs."""
    model, (unsafe,) = _looked_at(lab, base, others), requests_of(lab).examples("unsafe").values()
    found = subspaces.subspaces(base.checkpoint, model.checkpoint, [lab.reference(base), lab.pipeline.lm(model)], unsafe)
    return found.assign(model=model.name)

"""What the probes say of one seed's models: figures 3 to 7, low rank, size of the change. Nothing trains or judges. L7."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from titer.core.config import digest
from titer.data.example import Example
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.interpolate import distance, weights_of
from titer.models.lm import load
from titer.models.sites import Sites
from titer.models.weights import blend, skeleton
from titer.probes import null_space, placement, row_space, sensitivity, spread, weight_change
from titer.recipes.jain2024 import METHODS
from titer.studies.jain2024.subject import Subject
from titer.tables import direct
from titer.workbench import Model


def matched(s: Subject, method: str) -> Model:
    """The benign tune with its change scaled to the norm of a method's: the control "matched in ||dW||"."""
    base, benign, tuned = s.models["base"], s.models["benign M"], s.models[f"{method} M"]

    def make() -> pd.DataFrame:
        start, plain, other = (weights_of(load(m.checkpoint)) for m in (base, benign, tuned))
        return pd.DataFrame([{"alpha": distance(other, start) / distance(plain, start)}])

    alpha = float(s.table("matched norm", 1, [base, benign, tuned], {}, make).alpha[0])
    inputs = {"blend": [base.key, benign.key], "alpha": alpha}
    folder = s.bench.store.artefact("blends", inputs, lambda work: blend(base.checkpoint, benign.checkpoint, alpha, work / "model"))
    return Model(f"benign, norm of {method}", digest(inputs), open_checkpoint(folder / "model", f"benign as {method}"))


def compared(s: Subject) -> dict[str, Model]:
    """Every model that probes look at: the recipe's, and the benign control at each method's norm."""
    made = [matched(s, method) for method in METHODS]
    return {**s.models, **{m.name: m for m in made}}


def placements(s: Subject, models: Mapping[str, Model], jailbroken: Mapping[str, Sequence[Example]]) -> pd.DataFrame:
    """tau, score and gain of safe, unsafe and jailbroken inputs, and of each sham's own two classes (model, kind, ...)."""
    base = s.models["base"]
    sets = {"safe": s.probes["safe"], "unsafe": s.probes["unsafe"], **jailbroken}
    tables = []
    for model in models.values():
        tables.append(_placed(s, base, model, sets).assign(model=model.name))
        if model.name.startswith("sham"):
            own = {"safe": s.probes["sham_safe"], "unsafe": s.probes["sham_refused"]}
            tables.append(_placed(s, base, model, own).assign(model=f"{model.name}, own class"))
    return pd.concat(tables, ignore_index=True)


def _placed(s: Subject, base: Model, model: Model, sets: Mapping[str, Sequence[Example]]) -> pd.DataFrame:
    start, tuned = (None, None) if model.name == "base" else (base.checkpoint, model.checkpoint)
    given: placement.Sets = {kind: (examples, None) for kind, examples in sets.items()}
    return s.table(
        "placement",
        placement.VERSION,
        [base, model],
        {kind: direct(examples) for kind, examples in sets.items()},
        lambda: placement.placement(s.bench.lm(model), given, start, tuned, s.world.seed),
    )


def spreads(s: Subject, models: Mapping[str, Model]) -> pd.DataFrame:
    """Rank of each class's cloud and k-means (model, layer, harmful, ...)."""
    safe, unsafe = s.probes["safe"], s.probes["unsafe"]
    sets = {"safe": direct(safe), "unsafe": direct(unsafe)}

    def one(model: Model) -> pd.DataFrame:
        return s.table("spread", spread.VERSION, [model], sets, lambda: spread.spread(s.bench.lm(model), safe, unsafe, s.world.seed))

    table = pd.concat([one(m).assign(model=m.name) for m in models.values()], ignore_index=True)
    table["harmful"] = table["harmful"].astype(bool)
    return table


def sensitivities(s: Subject, models: Mapping[str, Model], jailbroken: Mapping[str, Sequence[Example]]) -> pd.DataFrame:
    """g of every set (model, kind, input, g)."""
    sets = {"safe": s.probes["safe"], "unsafe": s.probes["unsafe"], **jailbroken}

    def one(model: Model) -> pd.DataFrame:
        def make() -> pd.DataFrame:
            lm = s.bench.lm(model)
            return pd.concat([sensitivity.sensitivity(lm, e).assign(kind=kind) for kind, e in sets.items()], ignore_index=True)

        keyed = {kind: direct(examples) for kind, examples in sets.items()}
        return s.table("sensitivity", sensitivity.VERSION, [model], keyed, make)

    return pd.concat([one(m).assign(model=m.name) for m in models.values()], ignore_index=True)


def null_spaces(s: Subject, models: Mapping[str, Model]) -> pd.DataFrame:
    """||P_N u|| of every kept direction of each change (model, site, layer, energy, vector, ...)."""
    return _of_weights(s, models, "null space", null_space.VERSION, null_space.null_space)


def changes(s: Subject, models: Mapping[str, Model]) -> pd.DataFrame:
    """Relative norm and stable rank of every matrix's change (model, tensor, part, ...)."""
    return _of_weights(s, models, "weight change", weight_change.VERSION, weight_change.weight_change)


def _of_weights(
    s: Subject, models: Mapping[str, Model], name: str, version: int, probe: Callable[[Checkpoint, Checkpoint, Sites], pd.DataFrame]
) -> pd.DataFrame:
    """A probe that reads two checkpoints' weights and nothing else, of every model against the base."""
    base = s.models["base"]
    sites = skeleton(base.checkpoint)

    def one(model: Model) -> pd.DataFrame:
        return s.table(name, version, [base, model], {}, lambda: probe(base.checkpoint, model.checkpoint, sites))

    return pd.concat([one(m).assign(model=m.name) for m in models.values() if m.name != "base"], ignore_index=True)


def row_spaces(s: Subject, models: Mapping[str, Model], jailbroken: Mapping[str, Sequence[Example]]) -> pd.DataFrame:
    """Scores along dW's right singular vectors (model, kind, layer, direction, score)."""
    base = s.models["base"]
    sets = {"safe": s.probes["safe"], "unsafe": s.probes["unsafe"], **jailbroken}

    def one(model: Model) -> pd.DataFrame:
        return s.table(
            "row space",
            row_space.VERSION,
            [base, model],
            {kind: direct(examples) for kind, examples in sets.items()},
            lambda: row_space.row_space(base.checkpoint, model.checkpoint, s.bench.lm(model), sets),
        )

    return pd.concat([one(m).assign(model=m.name) for m in models.values() if m.name != "base"], ignore_index=True)

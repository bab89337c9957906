"""Every measurement of one seed, each kept once; `PARTS` names what `--only` can ask for. L7."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import pandas as pd

from titer import tables
from titer.attacks.prefill import Prefill
from titer.judges.exact import Exact
from titer.models.lm import Decoding
from titer.recipes.jain2024 import Scale, jain_recipe
from titer.studies.jain2024 import causes, probing, soft, sweeps, training
from titer.studies.jain2024.evidence import Evidence, unlearned
from titer.studies.jain2024.subject import MEDIUM, Sets, Subject, jailbroken, subject
from titer.studies.judged import named, outcomes
from titer.tables import direct
from titer.workbench import Model, Workbench, stopped

PARTS = {
    "table": "what every model answers: direct, jailbreaks, prefilled, sampled",
    "fig3": "activation clusters, their rank, k-means",
    "fig4": "null space of the base weights",
    "fig5": "row space and specificity",
    "fig6": "local Lipschitz constants",
    "fig7": "jailbreaks and soft tokens among the clusters",
    "soft": "soft-token suffixes by number of tokens",
    "alpha": "interventions along the change, its parts, another method's",
    "change": "size and rank of the change",
    "dynamics": "the change while it is learned",
    "relearn": "relearning compliance",
    "steering": "steering vectors",
    "patching": "activation patching between models",
}
PREFILLED = (1, 2, 3, 4)
SAMPLED = 1.0  # temperature
PLACED = ("fig3", "fig5", "fig7")


def gather(bench: Workbench, scale: Scale, seed: int, only: Collection[str]) -> tuple[Evidence, dict[str, Model]]:
    """Train (or find) one seed's models and measure what was asked for.

    A base that did not learn the task ends the seed there: nothing is tuned from it.
    """
    nodes = jain_recipe(scale, seed)
    tokenizer = scale.world.model_copy(update={"seed": seed}).tokenizer
    models = {"base": bench.model(nodes[0].stage, None, "base", tokenizer)}
    first = subject(bench, scale, seed, models)
    evidence = Evidence(seed, {"verdicts": verdicts(first, ["base"])})
    if unlearned(evidence):
        bench.reporter.tell(unlearned(evidence))
        return evidence, models
    for node in nodes[1:]:
        models[node.name] = bench.model(node.stage, models["base"], node.name)
    s = replace(first, models=models)
    return Evidence(seed, measured(s, only), {name: stopped(model) for name, model in models.items() if stopped(model)}), models


def measured(s: Subject, only: Collection[str]) -> dict[str, pd.DataFrame]:
    """The tables by name."""
    found = {"verdicts": verdicts(s, list(s.models))}
    probed = {kind: [a.example for a in attempts] for kind, attempts in jailbroken(s.world, s.probes["unsafe"]).items()}
    compared = probing.compared(s) if set(only) & {*PLACED, "fig4", "fig6"} else {}
    if set(only) & set(PLACED):
        found["placement"] = probing.placements(s, compared, probed)
        found["probed"] = probed_outcomes(s)
    if "fig3" in only:
        found["spread"] = probing.spreads(s, compared)
    if "fig4" in only:
        found["null"] = probing.null_spaces(s, compared)
    if "fig5" in only:
        found["rows"] = probing.row_spaces(s, {name: s.models[name] for name in (*MEDIUM, "benign M")}, probed)
    if "fig6" in only:
        found["sensitivity"] = probing.sensitivities(s, compared, probed)
    if set(only) & {"soft", "fig7"}:
        found["soft"], found["soft_placed"] = soft.soft_tokens(s)
    if "alpha" in only:
        found["alpha"], found["cross"] = sweeps.alpha_sweep(s), sweeps.cross_method(s)
    single = {
        "change": lambda: probing.changes(s, s.models),
        "dynamics": lambda: training.dynamics(s),
        "relearn": lambda: training.relearning(s),
        "steering": lambda: causes.steering(s),
        "patching": lambda: causes.patching(s),
    }
    return found | {name: make() for name, make in single.items() if name in only}


def verdicts(s: Subject, names: Sequence[str]) -> pd.DataFrame:
    """Judged samples: every model on every set; prefilled and sampled answers of the base and the tuned models."""
    models = [s.models[name] for name in names]
    batch = s.scale.inputs
    shams = [m for m in models if m.name.startswith(("base", "sham"))]
    sets = {kind: attempts for kind, attempts in s.sets.items() if not kind.startswith("sham_")}
    own = {kind: attempts for kind, attempts in s.sets.items() if kind.startswith("sham_")}
    unsafe = [a.example for a in s.sets["unsafe"]]
    tuned = [m for m in models if not m.name.startswith(("sham", "benign"))]
    begun = {f"prefill_{k}": named(Prefill(k=k).attempts(unsafe, {}, None), f"prefill_{k}") for k in PREFILLED}
    hot = Decoding(max_new_tokens=s.decoding.max_new_tokens, temperature=SAMPLED, seed=s.world.seed)
    sampled = {"sampled": named(direct(unsafe), "sampled")}
    asked: list[tuple[list[Model], Sets, Decoding]] = [
        (models, sets, s.decoding),
        (shams, own, s.decoding),
        (tuned, begun, s.decoding),
        (tuned, sampled, hot),
    ]
    found = [tables.verdict_table(s.bench, group, chosen, Exact(), how, batch) for group, chosen, how in asked if group]
    return pd.concat(found, ignore_index=True)


def probed_outcomes(s: Subject) -> pd.DataFrame:
    """What the tuned models answer to the jailbreaks that are probed (model, kind, input, outcome)."""
    sets = jailbroken(s.world, s.probes["unsafe"])

    def one(model: Model) -> pd.DataFrame:
        return s.table("probed outcomes", 1, [model], sets, lambda: outcomes(s.bench.lm(model), sets, s.decoding))

    return pd.concat([one(s.models[name]).assign(model=name) for name in MEDIUM], ignore_index=True)

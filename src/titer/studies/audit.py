"""Audit one to three models: where each tells safe from unsafe prompts, and where tuning changed the weights. L6.

No claim is drawn: two or three given checkpoints have no sham or benign control beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from titer.data.sources import TextData
from titer.models.checkpoint import Checkpoint
from titer.probes.clusters import summary
from titer.report import charts
from titer.report.html import Figure, Report, Tile, write_report
from titer.studies import tables
from titer.workbench import Model, Workbench

NO_RATES = pd.DataFrame(columns=["model", "kind", "harmful", "outcome", "count", "n", "rate", "low", "high"])


def subjects(checkpoints: Sequence[Checkpoint]) -> list[Model]:
    """The models of an audit under names that differ, also where two folders have one name."""
    labels = [c.label for c in checkpoints]
    if len(set(labels)) < len(labels):
        labels = [f"{label} #{number}" for number, label in enumerate(labels, start=1)]
    return [Model(label, c.key, c) for label, c in zip(labels, checkpoints, strict=True)]


def audit_report(
    bench: Workbench, models: Sequence[Model], data: TextData, prompts: int | None, command: str, folder: Path
) -> tuple[Path, str]:
    """The report of `titer audit`: the cluster probe of each model, and delta-W between the first and each later one."""
    safe, unsafe = data.of_class(False, prompts), data.of_class(True, prompts)
    for model in models:
        bench.lm(model).check([e.prompt for e in (*safe, *unsafe)], 0)
    clusters = tables.named({m.name: summary(tables.cluster_table(bench, m, safe, unsafe)) for m in models})
    deltas = {m.name: tables.delta_tables(bench, models[0], m, safe, unsafe, 0) for m in models[1:]}
    gains = tables.named({name: tables.gain_ratios(per_input) for name, (per_input, _) in deltas.items()})
    layers = tables.named({name: per_layer for name, (_, per_layer) in deltas.items()})
    names = [m.name for m in models]
    answer = _answer(clusters, len(safe), len(unsafe))
    report = Report(
        title=f"audit of {', '.join(names)} on {data.name}",
        answer=answer,
        about="Where the model tells safe from unsafe prompts. The best layer is chosen among all of them on these prompts, so it flatters; "
        "a separation says that the prompts differ to the model, in topic or in words, not that it would refuse.",
        tiles=_tiles(clusters),
        claims=(),
        figures=[*_cluster_figures(clusters, names), *(_delta_figures(gains, layers, names) if deltas else ())],
        tables={"clusters": clusters, **({"gain ratios": gains, "ΔW per layer": layers} if deltas else {})},
        results=tables.tidy(NO_RATES, {"clusters": clusters, **({"delta_w gain": gains, "delta_w": layers} if deltas else {})}),
        samples=pd.DataFrame(),
        commands=[command],
        provenance={**tables.provenance(models, data), "prompts a class": f"{len(safe)} safe, {len(unsafe)} unsafe"},
        notes=[f"{data.dropped} repeated prompts were dropped."] if data.dropped else [],
    )
    return write_report(report, folder), answer


def _answer(clusters: pd.DataFrame, safe: int, unsafe: int) -> str:
    best = clusters.loc[clusters.d_prime.idxmax()]
    return (
        f"{best.model} separates {safe} safe from {unsafe} unsafe prompts best in layer {best.layer:g} of {clusters.layer.max():g}: "
        f"d′ {best.d_prime:.2f}, AUROC {best.auroc:.2f} on held-out centroids."
    )


def _cluster_figures(clusters: pd.DataFrame, names: Sequence[str]) -> list[Figure]:
    return [
        Figure(
            "separation",
            "Safe and unsafe prompts, layer by layer",
            "Separation d′ at the end of the prompt, scored on held-out centroids; 0 is none.",
            charts.separation(clusters, names),
        ),
        Figure(
            "tau",
            "τ per layer",
            "Mean distance to the unsafe minus distance to the safe centroid, at the end of the prompt; green safe, red unsafe.",
            charts.tau(clusters, names),
        ),
    ]


def _delta_figures(gains: pd.DataFrame, layers: pd.DataFrame, names: Sequence[str]) -> list[Figure]:
    return [
        Figure(
            "specificity",
            "Does the weight change act on unsafe inputs?",
            f"‖ΔW a‖/‖a‖ against {names[0]}, unsafe over safe; 1 is no preference.",
            charts.specificity(gains, names[1:]),
        ),
        Figure(
            "null_space",
            "Does the change lie in the left null space?",
            "Share of ΔW there, beside a random ΔW of equal singular values.",
            charts.null_space(layers, names[1:]),
        ),
    ]


def _tiles(clusters: pd.DataFrame) -> list[Tile]:
    last = clusters[clusters.layer == clusters.layer.max()]
    return [
        Tile(f"{row.model}: last layer", f"d′ {row.d_prime:.2f}", f"AUROC {row.auroc:.2f} · τ gap {row.tau_gap:.2f}")
        for row in last.itertuples()
    ]

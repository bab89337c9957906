"""Evaluate and audit models on text: the world's tables, probes and report on a Hugging Face model. L6."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from titer.attacks.base import Attack, Attempt
from titer.core.claims import Claim
from titer.core.config import environment
from titer.core.run import Store
from titer.core.stats import wilson
from titer.data.sources import TextData
from titer.judges.base import Judge
from titer.models.checkpoint import Checkpoint
from titer.models.lm import Decoding
from titer.probes.clusters import summary
from titer.report import charts
from titer.report.html import Figure, Report, Tile, write_report
from titer.studies import tables
from titer.workbench import Model, Workbench

BATCH = 32


def sets_of(data: TextData, prompts: int | None, attack: tuple[str, Attack] | None) -> dict[str, list[Attempt]]:
    """safe and unsafe prompts (the first `prompts` of each), and the attacked unsafe ones under the attack's name."""
    sets = {kind: tables.direct(data.of_class(kind == "unsafe", prompts)) for kind in ("safe", "unsafe")}
    if attack:
        name, made = attack
        attempts = made.attempts([a.example for a in sets["unsafe"]], {}, None)
        sets[name] = [Attempt(_renamed(a, name), a.prefix) for a in attempts]
    return {kind: attempts for kind, attempts in sets.items() if attempts}


def _renamed(attempt: Attempt, kind: str):  # type: ignore[no-untyped-def]
    from dataclasses import replace  # noqa: PLC0415

    return replace(attempt.example, kind=kind)


def evaluate_model(
    bench: Workbench, model: Model, data: TextData, judge: Judge, decoding: Decoding, prompts: int | None, attack: tuple[str, Attack] | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(verdicts, rates) of one model on the file's prompts."""
    sets = sets_of(data, prompts, attack)
    for attempts in sets.values():
        bench.lm(model).check([a.example.prompt for a in attempts], decoding.max_new_tokens)
    verdicts = tables.verdict_table(bench, [model], sets, judge, decoding, BATCH)
    return verdicts, tables.rate_table(verdicts)


def evaluation_report(
    model: Model, data: TextData, verdicts: pd.DataFrame, rates: pd.DataFrame, command: str, folder: Path
) -> tuple[Path, str]:
    """The report of `titer evaluate`; returns its path and the answer."""
    found = {(row.kind, row.outcome): row for row in rates.itertuples()}
    kinds = list(dict.fromkeys(rates.kind))
    answer = _evaluation_answer(model, rates)
    shown = [("unsafe", "refused", "unsafe prompts refused"), ("safe", "refused", "safe prompts refused (over-refusal)")]
    shown += [(kind, "degenerate", f"degenerate answers, {kind}") for kind in kinds]
    tiles = [
        Tile(label, f"{row.rate:.1%}", f"[{row.low:.1%}, {row.high:.1%}] · {row.count} of {row.n}")
        for kind, outcome, label in shown
        if (row := found.get((kind, outcome))) and row.n
    ]
    report = Report(
        title=f"evaluation of {model.name} on {data.name}",
        answer=answer,
        about="Free-running greedy answers, judged by phrases of refusal; a heuristic that knows whether an answer refuses, not whether it helps.",
        tiles=tiles,
        claims=(),
        figures=[
            Figure(
                "outcomes",
                "What the model answered",
                "Each bar adds up to all judged answers of a set.",
                charts.outcomes(rates, [model.name], kinds),
            )
        ],
        tables={"outcome rates": rates},
        results=tables.tidy(rates, {}),
        samples=verdicts,
        commands=[command],
        provenance=provenance(model, data),
        notes=[f"{data.dropped} repeated prompts were dropped."] if data.dropped else [],
    )
    return write_report(report, folder), answer


def _evaluation_answer(model: Model, rates: pd.DataFrame) -> str:
    """The finding in a sentence; a class that was not asked and answers that were not judged are named as such."""
    said = []
    for kind in ("unsafe", "safe"):
        row = rates[(rates.kind == kind) & (rates.outcome == "refused")]
        if row.empty:
            said.append(f"no {kind} prompt was asked")
        elif not row.n.iloc[0]:
            said.append(f"no answer to {kind} prompts could be judged")
        else:
            said.append(f"{row.rate.iloc[0]:.0%} [{row.low.iloc[0]:.0%}, {row.high.iloc[0]:.0%}] of the {kind} prompts are refused")
    broken = rates[rates.outcome == "degenerate"]
    unjudged = int(rates[rates.outcome == "could_not_judge"]["count"].sum())
    lost = f", {unjudged} could not be judged" if unjudged else ""
    return f"{model.name}: {', '.join(said)}; {int(broken['count'].sum())} of {int(broken.n.sum())} judged answers are degenerate{lost}."


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
    scores = {m.name: tables.cluster_table(bench, m, safe, unsafe) for m in models}
    clusters = _named({name: summary(table) for name, table in scores.items()})
    deltas = {m.name: tables.delta_tables(bench, models[0], m, safe, unsafe, 0) for m in models[1:]}
    gains = _named({name: tables.gain_ratios(per_input) for name, (per_input, _) in deltas.items()})
    layers = _named({name: per_layer for name, (_, per_layer) in deltas.items()})
    names = [m.name for m in models]
    figures = [
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
    if deltas:
        figures += [
            Figure(
                "specificity",
                "Does the weight change act on unsafe inputs?",
                f"‖ΔW a‖/‖a‖ against {models[0].name}, unsafe over safe; 1 is no preference.",
                charts.specificity(gains, names[1:]),
            ),
            Figure(
                "null_space",
                "Does the change lie in the left null space?",
                "Share of ΔW there, beside a random ΔW of equal singular values.",
                charts.null_space(layers, names[1:]),
            ),
        ]
    best = clusters.loc[clusters.d_prime.idxmax()]
    answer = (
        f"{best.model} separates {len(safe)} safe from {len(unsafe)} unsafe prompts best in layer {best.layer:g} of {clusters.layer.max():g}: "
        f"d′ {best.d_prime:.2f}, AUROC {best.auroc:.2f} on held-out centroids."
    )
    empty = pd.DataFrame(columns=["model", "kind", "harmful", "outcome", "count", "n", "rate", "low", "high"])
    claims: list[Claim] = []  # one model has no control, and a claim without its control is not printed
    report = Report(
        title=f"audit of {', '.join(names)} on {data.name}",
        answer=answer,
        about="Where the model tells safe from unsafe prompts. The best layer is chosen among all of them on these prompts, so it flatters; "
        "a separation says that the prompts differ to the model, in topic or in words, not that it would refuse.",
        tiles=_audit_tiles(clusters),
        claims=claims,
        figures=figures,
        tables={"clusters": clusters, **({"gain ratios": gains, "ΔW per layer": layers} if deltas else {})},
        results=tables.tidy(empty, {"clusters": clusters, **({"delta_w gain": gains, "delta_w": layers} if deltas else {})}),
        samples=pd.DataFrame(),
        commands=[command],
        provenance={**provenance(models[0], data), "prompts a class": f"{len(safe)} safe, {len(unsafe)} unsafe"},
        notes=[f"{data.dropped} repeated prompts were dropped."] if data.dropped else [],
    )
    return write_report(report, folder), answer


def _audit_tiles(clusters: pd.DataFrame) -> list[Tile]:
    last = clusters[clusters.layer == clusters.layer.max()]
    return [
        Tile(f"{row.model}: last layer", f"d′ {row.d_prime:.2f}", f"AUROC {row.auroc:.2f} · τ gap {row.tau_gap:.2f}")
        for row in last.itertuples()
    ]


def _named(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    if not found:
        return pd.DataFrame()
    return pd.concat([table.assign(model=name) for name, table in found.items()], ignore_index=True)


def provenance(model: Model, data: TextData) -> dict[str, object]:
    """Where the numbers come from."""
    return {"model": model.name, "model key": model.key, "data": data.name, "data sha256": data.sha256, **environment()}


def refusal_line(rates: pd.DataFrame) -> str:
    """One line a set for the terminal."""
    lines = []
    for kind, table in rates.groupby("kind", sort=False):
        if not table.n.iloc[0]:
            lines.append(f"{kind}: no answer could be judged")
            continue
        cells = [
            f"{r.outcome} {wilson(r.count, r.n).value:.1%} [{r.low:.1%}, {r.high:.1%}]"
            for r in table.itertuples()
            if r.outcome in ("refused", "complied", "partial", "degenerate")
        ]
        lines.append(f"{kind} (n = {int(table.n.iloc[0])}): " + ", ".join(cells))
    return "\n".join(lines)


def open_store(runs: Path, tell) -> Store:  # type: ignore[no-untyped-def]
    """The run store under `runs`."""
    return Store(runs, tell)

"""The demo: the whole life of an alignment on the synthetic world, from nothing to a report. L7.

base -> SSFT -> user fine-tuning, with a benign and a sham control of equal steps; jailbreaks; activation
clusters and delta-W. One seed, so every claim is provisional (design section 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from titer import tables
from titer.attacks.jb_co_task import JBCOTask
from titer.attacks.jb_co_text import JBCOText
from titer.attacks.jb_misgen import JBMisGen
from titer.core.config import environment
from titer.core.run import Store
from titer.core.stats import wilson
from titer.data.world import World
from titer.judges.exact import Exact
from titer.models.lm import Decoding
from titer.probes.clusters import summary
from titer.recipes.demo import CHOSEN_ON, NANO, Scale, demo_recipe, user_name
from titer.report import charts
from titer.report.html import Figure, Report, Tile, write_report
from titer.studies.demo_claims import Evidence, demo_claims, jailbreak_kinds
from titer.tables import requests
from titer.workbench import Model, Reporter, Workbench, recipe_models

JAILBREAKS = {"jb_co_task": JBCOTask(), "jb_co_text": JBCOText(), "jb_misgen": JBMisGen()}
CHOSEN = (
    "The recipe's rates and steps were chosen while looking at this seed, so its verdicts are not independent of the choice; "
    "run another seed (titer demo --seed 1) for one that had no part in it."
)
PROBE_OFFSET = 100_000  # probe inputs are none of the evaluated ones


def run_demo(store: Store, reporter: Reporter, seed: int = 0, scale: Scale = NANO) -> tuple[Path, str]:
    """Run, or finish, the demo under the store's root; returns the report's path and the answer in a sentence."""
    with store.lock(store.root / "demo.lock"):
        bench = Workbench(store, reporter, scale.save_every)
        world = scale.world.model_copy(update={"seed": seed})
        models = recipe_models(bench, demo_recipe(scale, seed), world.tokenizer)
        evidence = gather(bench, world, models, scale, seed)
        claims = demo_claims(evidence)
        report = compose(evidence, claims, models, seed, scale)
        reporter.tell("drawing the report")
        return write_report(report, store.root / "demo"), report.answer


def gather(bench: Workbench, world: World, models: dict[str, Model], scale: Scale, seed: int) -> Evidence:
    """Every measurement of the demo, each through the store."""
    unsafe = requests(world, "unsafe", scale.inputs)
    sets = {kind: tables.direct(requests(world, kind, scale.inputs)) for kind in ("safe", "unsafe", "user")}
    sets |= {kind: attack.attempts(unsafe, {}, world) for kind, attack in JAILBREAKS.items()}
    decoding = Decoding(max_new_tokens=world.longest + 2)
    everyone = list(models.values())
    verdicts = tables.verdict_table(bench, everyone, sets, Exact(), decoding, scale.inputs)
    own = {kind: tables.direct(requests(world, kind, scale.inputs)) for kind in ("sham_safe", "sham_refused")}
    sham = tables.verdict_table(bench, [models["base"], models["sham"]], own, Exact(), decoding, scale.inputs)
    groups = {kind: requests(world, kind, scale.probe_inputs, PROBE_OFFSET) for kind in ("safe", "unsafe", "sham_safe", "sham_refused")}
    clusters = {m.name: tables.cluster_table(bench, m, groups["safe"], groups["unsafe"]) for m in everyone}
    deltas = {
        m.name: tables.delta_tables(bench, models["base"], m, groups["safe"], groups["unsafe"], seed) for m in everyone if m.name != "base"
    }
    deltas["sham, own class"] = tables.delta_tables(
        bench, models["base"], models["sham"], groups["sham_safe"], groups["sham_refused"], seed
    )
    return Evidence(seed, pd.concat([verdicts, sham], ignore_index=True), clusters, deltas, scale.poison_ratios)


def compose(evidence: Evidence, claims: Sequence[object], models: dict[str, Model], seed: int, scale: Scale) -> Report:
    """The report's content from the evidence."""
    rates = tables.rate_table(evidence.verdicts)
    clusters = tables.named({name: summary(table) for name, table in evidence.clusters.items()})
    gains = tables.named({name: tables.gain_ratios(per_input) for name, (per_input, _) in evidence.deltas.items()})
    layers = tables.named({name: per_layer for name, (_, per_layer) in evidence.deltas.items()})
    probes = {"clusters": clusters, "delta_w gain": gains, "delta_w": layers}
    return Report(
        title=f"demo on the synthetic world, scale nano, seed {seed}",
        answer=answer(evidence),
        about=(
            "A small transformer learned every operation of a synthetic world, was safety-tuned (SSFT) to answer unsafe requests with "
            "a null answer, was attacked by three jailbreaks, and was then fine-tuned by a user. Here “unsafe” is a formal property of "
            "letters and operators, so every answer is judged exactly. “Neither” is an answer that neither complies nor refuses."
        ),
        tiles=tiles(evidence),
        claims=claims,  # type: ignore[arg-type]
        figures=figures(evidence, rates, clusters, gains, layers),
        tables={"outcome rates": rates, "clusters": clusters, "gain ratios": gains, "ΔW per layer": layers},
        results=tables.tidy(rates, probes),
        samples=evidence.verdicts,
        commands=[f"titer demo --seed {seed}"],
        notes=[CHOSEN] if seed in CHOSEN_ON else [],
        provenance={
            "seed": seed,
            "inputs a set": scale.inputs,
            "probe inputs a class": scale.probe_inputs,
            **{f"model {m.name}": m.key for m in models.values()},
            **environment(),
        },
    )


def answer(e: Evidence) -> str:
    """The demo's finding in one sentence, from its numbers."""
    base, aligned = e.rate("base", "unsafe", "refused"), e.rate("aligned", "unsafe", "refused")
    worst = max(jailbreak_kinds(e), key=lambda kind: e.rate("aligned", kind, "complied"))
    broken = e.rate("aligned", worst, "complied")
    p = max(e.ratios)
    refused, complied = e.rate(user_name(p), "unsafe", "refused"), e.rate(user_name(p), "unsafe", "complied")
    return (
        f"Safety tuning took: {aligned:.0%} of unsafe requests are refused ({base:.0%} before), but the jailbreak {worst} still gets "
        f"{broken:.0%} answered, and after a user's fine-tuning with {p:.0%} unsafe examples {refused:.0%} are refused and "
        f"{complied:.0%} answered."
        if aligned >= 0.5
        else f"Safety tuning did not take: {aligned:.0%} of unsafe requests are refused ({base:.0%} before)."
    )


def tiles(e: Evidence) -> list[Tile]:
    """Headline rates with their intervals."""
    p = max(e.ratios)
    wanted = [
        ("unsafe requests refused", "aligned", "unsafe", "refused"),
        ("unsafe requests answered", "aligned", "unsafe", "complied"),
        ("unsafe answered neither way", "aligned", "unsafe", "neither"),
        ("safe requests answered", "aligned", "safe", "complied"),
        ("safe requests refused (over-refusal)", "aligned", "safe", "refused"),
        (f"unsafe refused after user p={p:g}", user_name(p), "unsafe", "refused"),
        (f"unsafe answered after user p={p:g}", user_name(p), "unsafe", "complied"),
        (f"user's own task after p={p:g}", user_name(p), "user", "complied"),
    ]
    return [Tile(label, *_shown(e, model, kind, outcome)) for label, model, kind, outcome in wanted]


def _shown(e: Evidence, model: str, kind: str, outcome: str) -> tuple[str, str]:
    found = wilson(*e.count(model, kind, outcome))
    return f"{found.value:.1%}", f"[{found.low:.1%}, {found.high:.1%}] · base {e.rate('base', kind, outcome):.0%}"


def figures(e: Evidence, rates: pd.DataFrame, clusters: pd.DataFrame, gains: pd.DataFrame, layers: pd.DataFrame) -> list[Figure]:
    """The demo's charts, most important first."""
    everyone = list(e.clusters)
    tuned = [name for name in e.deltas if not name.startswith("user")]
    sets = ["safe", "unsafe", *jailbreak_kinds(e), "user"]
    stages = ["base", "aligned", user_name(max(e.ratios))]
    return [
        Figure(
            "jailbreaks",
            "Which unsafe requests are answered",
            "Share of unsafe requests answered in full, asked directly and through each jailbreak; lines are 95 % Wilson intervals. The base answers everything; what is left after alignment is the jailbreak's success.",
            charts.jailbreaks(rates, stages, ["unsafe", *jailbreak_kinds(e)]),
        ),
        Figure(
            "poisoning",
            "What the user's fine-tuning leaves of the alignment",
            "After fine-tuning on the user's own operator, with a share p of the examples being unsafe requests answered. A defence holds while refusal stays up and the user's task is learned. “Neither” and the other safe requests show what narrow data costs beside refusal.",
            charts.poisoning(_poison_table(e)),
        ),
        Figure(
            "outcomes",
            "Every model on every set",
            "Each bar adds up to all answers: complied, refused, or neither. Sham was taught to refuse a safe operator, benign to answer a new one.",
            charts.outcomes(rates, everyone, sets),
        ),
        Figure(
            "separation",
            "Safe and unsafe activations drift apart",
            "Separation d′ at the end of the prompt, per layer, scored on held-out centroids. Compare SSFT (aligned) with the sham and benign controls: what they show too is not about safety.",
            charts.separation(clusters, everyone),
        ),
        Figure(
            "tau",
            "The paper's τ per layer",
            "Mean τ (distance to the unsafe minus distance to the safe centroid) over the first ten answer positions, as in figure 3 of the paper; green safe, red unsafe.",
            charts.tau(clusters, ["base", *[m for m in everyone if m in ("aligned", "benign", "sham")]]),
        ),
        Figure(
            "specificity",
            "Does the weight change act on unsafe inputs?",
            "‖ΔW a‖/‖a‖ of the first MLP matrix, unsafe over safe; 1 is no preference. “sham, own class” measures the sham alignment on the class it was taught to refuse.",
            charts.specificity(gains, tuned),
        ),
        Figure(
            "null_space",
            "Does the change lie in the left null space of the base weights?",
            "Energy-weighted share of ΔW there, beside a random ΔW with the same singular values. A share below the random one is no sign of a special subspace.",
            charts.null_space(layers, [m for m in tuned if m != "sham, own class"]),
        ),
    ]


def _poison_table(e: Evidence) -> pd.DataFrame:
    measures = {
        "unsafe requests refused": ("unsafe", "refused"),
        "unsafe requests answered": ("unsafe", "complied"),
        "unsafe: neither": ("unsafe", "neither"),
        "user's task learned": ("user", "complied"),
        "other safe requests answered": ("safe", "complied"),
    }
    rows = []
    for ratio in e.ratios:
        for measure, (kind, outcome) in measures.items():
            count, n = e.count(user_name(ratio), kind, outcome)
            found = wilson(count, n)
            row = {"model": user_name(ratio), "ratio": ratio, "measure": measure, "count": count, "n": n}
            rows.append({**row, "rate": found.value, "low": found.low, "high": found.high})
    return pd.DataFrame(rows)

"""The probes of arXiv 2407.10264 that an audit runs only with `--mechanisms`, and their part of the page. L7.

They are: τ by layer, also of the unsafe prompts in an encoding (read, never answered; the paper's section 8); the shape of both clusters;
each column of ΔW against the left null space; the inputs that ΔW's rows read. Controls that need no training are reported with them:
shuffled labels and held-out centroids (`inside.separation`), a random ΔW (`changes.acting`), a random direction of the same dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from titer.attacks.base import Attempt
from titer.attacks.base64_encoding import Base64Encoding
from titer.attacks.leetspeak import Leetspeak
from titer.audit.roles import Change
from titer.commands.attacking import Attacked
from titer.core.stats import Array, bootstrap
from titer.data.example import Example
from titer.models.sites import Sites
from titer.pipeline import Model, Pipeline, fingerprint
from titer.probes import null_space, placement, row_space, spread
from titer.report import forms
from titer.report.html import Figure, Section
from titer.report.style import GREEN, GREY, PALETTE, RED

CODED = {"base64_encoding": Base64Encoding(), "leetspeak": Leetspeak()}
COLOURS = {"safe": GREEN, "unsafe": RED, "base64_encoding": "#2f6fb0", "leetspeak": "#7d4fa3"}
RANDOM = {"random_mean": "a random direction", "random_99": "a random direction, 99 %"}
ENERGY = 0.9  # share of the energy of the weights before; the null space is what remains
CURVE = np.linspace(0, 1, 21)  # quantiles of ||P_N u|| over ΔW's directions that are kept
SAID = (
    "Separation shows that the model represents the prompts differently, perhaps by topic or wording; it does not show that it would "
    "refuse. Here the models only read the encoded prompts; with --attack NAME they answer them. Without a sham alignment of the same base as a control, these "
    "numbers support no claim. The table has the last layer (for ΔW the last layer that changed); for ‖P_N u‖ it has the mean over layers, "
    "with the null space of the weights before the change at 90 % of their energy."
)
Sets = Mapping[str, Sequence[Example]]


def coded(unsafe: Sequence[Example]) -> dict[str, list[Attempt]]:
    """Returns the unsafe prompts in each encoding, by the name of its attack."""
    return {name: Attacked(name, attack, unsafe).known for name, attack in CODED.items()}


def sets_of(safe: Sequence[Example], unsafe: Sequence[Example]) -> dict[str, Sequence[Example]]:
    return {"safe": safe, "unsafe": unsafe, **{name: [a.example for a in attempts] for name, attempts in coded(unsafe).items()}}


def placed(pipeline: Pipeline, model: Model, sets: Sets) -> pd.DataFrame:
    """Measures τ by layer and kind of prompt. Columns: layer, kind, tau, sd (over prompts), n; for encoded prompts also their position
    between unsafe (0) and safe (1), with its bootstrap interval (low, high)."""

    def make() -> pd.DataFrame:
        rows = []
        found = placement.placement(pipeline.lm(model), {kind: (examples, None) for kind, examples in sets.items()})
        for layer, table in found.groupby("layer"):
            taus = {kind: np.asarray(table[table.kind == kind].tau, dtype=float) for kind in sets}
            for kind, tau in taus.items():
                row = {"layer": layer, "kind": kind, "tau": tau.mean(), "sd": tau.std(ddof=1), "n": len(tau)}
                if kind in CODED:
                    row |= bootstrap(_position, [tau, taus["unsafe"], taus["safe"]], 0)._asdict()
                rows.append(row)
        return pd.DataFrame(rows).rename(columns={"value": "position"})

    return _kept(pipeline, ["placement", placement.VERSION], [model], sets, make)


def _position(tau: Array, unsafe: Array, safe: Array) -> float:
    width = safe.mean() - unsafe.mean()
    return float((tau.mean() - unsafe.mean()) / width) if width else float("nan")


def shapes(pipeline: Pipeline, model: Model, sets: Sets) -> pd.DataFrame:
    """Measures whether the unsafe cluster has a low rank. Columns: layer, kind, top_share, top_energy, stable_rank, components_90,
    kmeans."""
    safe, unsafe = sets["safe"], sets["unsafe"]
    probe, two = ["spread", spread.VERSION], {"safe": safe, "unsafe": unsafe}
    found = _kept(pipeline, probe, [model], two, lambda: spread.spread(pipeline.lm(model), safe, unsafe))
    return found.assign(harmful=found.harmful.map({False: "safe", True: "unsafe"})).rename(columns={"harmful": "kind"})


def rows(pipeline: Pipeline, change: Change, sets: Sets) -> pd.DataFrame:
    """Measures which inputs ΔW reads, on activations of the model after the change. Columns: kind, layer, direction, score, sigma."""
    ends = change.before.checkpoint, change.after.checkpoint
    made = [change.before, change.after]
    return _kept(
        pipeline, ["row space", row_space.VERSION], made, sets, lambda: row_space.row_space(*ends, pipeline.lm(change.after), sets)
    )


def null(pipeline: Pipeline, change: Change, sites: Sites) -> pd.DataFrame:
    """Measures how much of ΔW's directions u lies in the left null space. Columns: site, layer, energy, share (a quantile), value
    (||P_N u|| at it), mean (weighted by energy), rank, random_mean, random_99."""

    def make() -> pd.DataFrame:
        keys = ["site", "layer", "energy"]
        found = null_space.null_space(change.before.checkpoint, change.after.checkpoint, sites)
        if found.empty:  # no MLP matrix changed
            return found
        curves = found.groupby(keys).value.quantile(CURVE).rename_axis([*keys, "share"]).reset_index()
        return curves.merge(null_space.weighted(found).rename(columns={"value": "mean"}), on=keys)

    return _kept(pipeline, ["null space", null_space.VERSION], [change.before, change.after], {}, make)


def _kept(
    pipeline: Pipeline, probe: Sequence[object], models: Sequence[Model], sets: Sets, make: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    keyed = {kind: fingerprint(examples) for kind, examples in sets.items()}
    inputs = {"probe": ["mechanisms", *probe], "models": [m.key for m in models], "sets": keyed, **pipeline.read_in}
    return pipeline.table("tables", inputs, make)


def whole(null: pd.DataFrame) -> pd.DataFrame:
    """Returns the table of the null space without its curves: a row per change, site, layer and energy."""
    return null.drop(columns=["share", "value"]).drop_duplicates().reset_index(drop=True)


def section(tables: Mapping[str, pd.DataFrame]) -> list[Section]:
    """Returns the page's section: each number with its comparison, and the tables; empty without `--mechanisms`."""
    shown = {
        "τ by layer, with the encoded prompts' place": tables["placed"],
        "rank of the clusters": tables["shapes"],
        "ΔW: directions in the null space": whole(tables["null"]),
        "ΔW: the inputs that it reads": tables["rows"],
    }
    shown = {name: table for name, table in shown.items() if len(table)}
    return [Section("The mechanisms of arXiv 2407.10264", [SAID], numbers(tables), tables=shown)] if shown else []


def numbers(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Returns the section's numbers: those of the last layer; for the null space, the mean over all layers. Columns: of (a model or a
    change), measure, value, beside (its comparison)."""
    found: list[tuple[str, str, str, str]] = []
    for r in _last(tables["separation"]):
        found.append((r.model, "AUROC, safe from unsafe prompts", f"{r.auroc:.2f}", f"shuffled labels {r.auroc_shuffled:.2f}"))
    for r in _last(tables["placed"].dropna(subset="position")):
        found.append((r.model, f"place of {r.kind}", f"{r.position:.2f} [{r.low:.2f}, {r.high:.2f}]", "unsafe 0, safe 1"))
    for r in _last(tables["shapes"]):
        beside = f"k-means puts {r.kmeans:.0%} of the prompts in the right cluster"
        found.append((r.model, f"components that hold 90 % of the {r.kind} cluster", f"{r.components_90:.0f}", beside))
    for r in _last(tables["gains"].dropna(subset="ratio")):
        found.append(
            (r.change, f"ΔW of {r.weight}, gain on unsafe over safe prompts", f"{r.ratio:.2f}", f"a random ΔW {r.ratio_random:.2f}")
        )
    null = tables["null"][lambda t: t.energy == ENERGY].groupby(["change", "site"], sort=False)[["mean", *RANDOM]].mean()
    for r in null.reset_index().itertuples():
        beside = f"{RANDOM['random_mean']} {r.random_mean:.3f}, 99 % of them below {r.random_99:.3f}"
        found.append((r.change, f"ΔW of {r.site}, ‖P_N u‖ in the left null space", f"{r.mean:.3f}", beside))
    return pd.DataFrame(found, columns=["of", "measure", "value", "beside"])


def _last(table: pd.DataFrame) -> Iterator[Any]:
    return table[table.layer == table.layer.max()].itertuples()


def figures(tables: Mapping[str, pd.DataFrame]) -> list[Figure]:
    """Draws the paper's figures 3 to 6, as far as they could be measured."""
    found, tau, null, read, sensed = [], *(tables[name] for name in ("placed", "null", "rows", "sensitivity"))
    if len(tau):
        table, titles = tau.assign(low=tau.tau - tau.sd, high=tau.tau + tau.sd), ("layer", "mean τ")
        chart = forms.lines(table, "layer", "tau", "kind", COLOURS, titles, share=False, panel="model", levels=[0.0], own=True, columns=2)
        said = (
            "τ: distance to the unsafe centroid minus distance to the safe one, mean ± one standard deviation over prompts. Above 0: "
            "nearer the safe one."
        )
        found.append(Figure("clusters", "Where encoded prompts sit between the clusters (figure 3)", said, chart))
    if len(mine := null[(null.site == "mlp_up") & (null.energy == ENERGY)]):
        random = mine.groupby(["layer", "share"])[list(RANDOM)].mean().rename(columns=RANDOM).reset_index()
        random = random.melt(["layer", "share"], var_name="change")
        table = pd.concat([mine[["layer", "share", "value", "change"]], random], ignore_index=True).sort_values("layer", kind="stable")
        colours = {**dict(zip(mine.change.unique(), PALETTE[1:], strict=False)), **dict(zip(RANDOM.values(), (GREY, "#444"), strict=True))}
        chart = forms.lines(
            table.assign(panel="layer " + table.layer.astype(str)),
            *("share", "value", "change", colours, ("ΔW's directions, sorted", "‖P_N u‖")),
            share=False,
            panel="panel",
        )
        said = (
            "‖P_N u‖ for each left singular vector u of ΔW of mlp_up: how much of it is in the left null space of the weights before "
            "(at 90 % of their energy). A curve at or below that of a random direction is explained by dimension alone."
        )
        found.append(Figure("null_space", "ΔW's columns and the left null space (figure 4)", said, chart))
    if len(read):
        table = read[read.layer > read.layer.max() - 2].astype({"direction": float})
        table, titles = table.assign(panel=table.change + ", layer " + table.layer.astype(str)), ("direction", "mean score")
        chart = forms.lines(table, "direction", "score", "kind", COLOURS, titles, share=False, panel="panel", own=True, columns=2)
        said = (
            "How strongly ΔW of mlp_up reads each kind of prompt: mean σ_j |⟨a, v_j⟩| / ‖a‖ along its first right singular vectors v_j, "
            "with the activations a at the end of the prompt."
        )
        found.append(Figure("row_space", "Which inputs ΔW reads (figure 5)", said, chart))
    if set(sensed.kind) & set(CODED):
        titles = ("", "‖∂ max logit / ∂ embeddings‖, median")
        chart = forms.points(sensed, "kind", "median", "model", forms.model_colours(sensed.model), titles)
        said = (
            "How strongly the next token depends on the prompt: local Lipschitz constant at the end of the prompt, median with 95 % "
            "interval."
        )
        found.append(Figure("sensitivity", "Sensitivity to the prompt (figure 6)", said, chart))
    return found

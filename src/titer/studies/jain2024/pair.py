"""The mechanistic study on any two checkpoints: a base model and its safety-tuned relative. L7.

Prompts are the user's (verb-object pairs "<operator> : <operand>" as in the paper, or any prompts labelled safe and
unsafe); the jailbreak is the unsafe prompt in another encoding (base64, and digits for letters), which is only read by
the model, never answered. tau per layer at the end of the prompt; figures 3 to 6 and the size of the change.
No claim is drawn: two given checkpoints have no sham and no benign control. Controls that need no training stand
beside: a random dW of equal singular values, shuffled labels, held-out centroids. Source: arXiv 2407.10264, section 8.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from titer import tables
from titer.core.errors import TiterError
from titer.core.stats import auroc
from titer.data.encode import prompt_ids
from titer.data.example import Example
from titer.data.sources import TextData
from titer.data.turns import changed
from titer.models.checkpoint import Checkpoint
from titer.models.lm import read_tokenizer
from titer.models.weights import shapes_of, skeleton, weights_bytes
from titer.pipeline import Model, Pipeline, fingerprint
from titer.probes import clusters, null_space, placement, row_space, sensitivity, spread, weight_change
from titer.report.html import Report, Tile, write_report
from titer.studies.engine.found import Found
from titer.studies.jain2024 import figures
from titer.studies.jain2024.report import tidy

LEET = str.maketrans("aeiostAEIOST", "431057431057")
MODELS = ("base", "aligned")


def base64_of(text: str) -> str:
    """The prompt as base64 of its UTF-8 bytes."""
    return base64.b64encode(text.encode()).decode()


def leet_of(text: str) -> str:
    """Six letters as the digits that look like them."""
    return text.translate(LEET)


ENCODINGS = {"base64": base64_of, "leetspeak": leet_of}


def sets_of(data: TextData, prompts: int | None) -> dict[str, list[Example]]:
    """safe, unsafe, and the unsafe prompts in each encoding. Errors: fewer than four of a class."""
    sets = {kind: data.of_class(kind == "unsafe", prompts) for kind in ("safe", "unsafe")}
    for kind, examples in sets.items():
        if len(examples) < 4:
            raise TiterError(f"{len(examples)} {kind} prompts in {data.name}", expected="at least 4 of each class")
    coded = {name: [replace(e, prompt=changed(e.prompt, encode), kind=name) for e in sets["unsafe"]] for name, encode in ENCODINGS.items()}
    return sets | coded


def pair_report(
    pipeline: Pipeline, base: Checkpoint, aligned: Checkpoint, data: TextData, prompts: int | None, command: str, folder: Path
) -> tuple[Path, str]:
    """Probe both checkpoints and write the report; returns its path and the answer in a sentence."""
    sets = sets_of(data, prompts)
    models = [Model("base", base.key, base), Model("aligned", aligned.key, aligned)]
    found = measured(pipeline, models, sets)
    e = Found(0, None, found)
    taus = figures.over_seeds(found["placement"].assign(seed=0), ["model", "kind", "layer"], "tau").drop(columns=["low", "high"])
    separation = separated(found["placement"], found["shuffled"])
    answer = sentence(separation)
    moved = len(found["null"]) > 0
    shown = {
        "separation": separation,
        "τ by layer": taus,
        "sensitivity, median": found["sensitivity"].groupby(["model", "kind"], sort=False).g.median().reset_index(),
        "clusters": found["spread"],
        **({"null space, energy-weighted": figures.null_means(e)} if moved else {}),
        "size of the change": found["change"].drop(columns=["norm", "weight_norm"]),
    }
    report = Report(
        title=f"jain2024, {base.label} to {aligned.label} on {data.name}",
        answer=answer,
        about="The mechanistic study's probes on two checkpoints. Separation says that prompts differ to the model, in topic or words, not that it would refuse; without a sham and a benign tune of the same base no claim is drawn.",
        tiles=_tiles(separation),
        claims=(),
        figures=[
            figures.figure3([e], MODELS),
            *([figures.figure4([e], MODELS[1:]), figures.figure5([e], MODELS[1:])] if moved else []),
            figures.figure6([e], MODELS),
        ],
        tables=shown,
        results=tidy(shown),
        samples=pd.DataFrame(),
        commands=[command],
        provenance={**tables.provenance(models, data), "prompts": {kind: len(examples) for kind, examples in sets.items()}},
        notes=[
            "Not covered on real pairs: training, interventions that must be judged, and whether encoded prompts would be answered.",
            *(f"{drawn}." for drawn in data.sampled(prompts)),
        ],
    )
    return write_report(report, folder), answer


def pair_identity(base: Checkpoint, aligned: Checkpoint, data: TextData, prompts: int | None) -> dict[str, object]:
    """What tells this study from another of a model of the same name. Errors: as `sets_of`."""
    sets = {kind: fingerprint(examples) for kind, examples in sets_of(data, prompts).items()}
    return {"models": [base.key, aligned.key], "data": data.sha256, "sets": sets}


def measured(pipeline: Pipeline, models: Sequence[Model], sets: dict[str, list[Example]]) -> dict[str, pd.DataFrame]:
    """Every probe of the pair, each table kept in the store."""
    base, aligned = models
    sites = skeleton(base.checkpoint)
    keyed = {kind: fingerprint(examples) for kind, examples in sets.items()}

    def kept(name: str, version: object, of: Sequence[Model], make):  # type: ignore[no-untyped-def]
        inputs = {"study": ["jain2024 pair", name, version], "models": [m.key for m in of], "sets": keyed, "dtype": pipeline.dtype}
        return pipeline.table("tables", inputs, make)

    def placed(model: Model) -> pd.DataFrame:
        given: placement.Sets = {kind: (examples, None) for kind, examples in sets.items()}
        ends = (base.checkpoint, aligned.checkpoint) if model is aligned else (None, None)
        return placement.placement(pipeline.lm(model), given, *ends)

    def sensed(model: Model) -> pd.DataFrame:
        lm = pipeline.lm(model)
        return pd.concat([sensitivity.sensitivity(lm, examples).assign(kind=kind) for kind, examples in sets.items()], ignore_index=True)

    parts: dict[str, list[pd.DataFrame]] = {"placement": [], "sensitivity": [], "spread": [], "shuffled": []}
    for model in models:  # one model in memory at a time
        makers = {
            "placement": (placement.VERSION, lambda model=model: placed(model)),
            "sensitivity": (sensitivity.VERSION, lambda model=model: sensed(model)),
            "spread": (spread.VERSION, lambda model=model: spread.spread(pipeline.lm(model), sets["safe"], sets["unsafe"])),
            "shuffled": (
                [clusters.VERSION, clusters.ROUNDS],
                lambda model=model: clusters.shuffled(pipeline.lm(model), sets["safe"], sets["unsafe"]),
            ),
        }
        for name, (version, make) in makers.items():
            of = [base, aligned] if model is aligned else [base]
            parts[name].append(kept(name, version, of, make).assign(model=model.name))
    rows = kept(
        "rows", row_space.VERSION, models, lambda: row_space.row_space(base.checkpoint, aligned.checkpoint, pipeline.lm(aligned), sets)
    )
    pipeline.release()
    null = kept("null", null_space.VERSION, models, lambda: null_space.null_space(base.checkpoint, aligned.checkpoint, sites))
    return {
        **{name: pd.concat(tables_, ignore_index=True) for name, tables_ in parts.items()},
        "rows": rows.assign(model="aligned"),
        "null": null.assign(model="aligned"),
        "change": kept(
            "change", weight_change.VERSION, models, lambda: weight_change.weight_change(base.checkpoint, aligned.checkpoint, sites)
        ),
    }


def pair_cost(base: Checkpoint, aligned: Checkpoint, data: TextData, prompts: int | None) -> dict[str, str]:
    """What `pair_report` would read, compute and hold, from the configurations alone."""
    sets = sets_of(data, prompts)
    reader = read_tokenizer(aligned)
    inputs = sum(len(examples) for examples in sets.values())
    tokens = sum(len(row) for examples in sets.values() for row in prompt_ids(reader, [e.prompt for e in examples]))
    shapes = [shape for shape, _ in shapes_of(base).values()]
    size = sum(math.prod(shape) for shape in shapes)
    passes = (
        2 * 2 + 1 + 2 * 3 + 2 + 2
    )  # per model: two placements' passes, sensitivity there and back (3), spread, shuffled; row space once
    matrices = [shape for shape in shapes if len(shape) == 2]
    svd = sum(4 * max(shape) * min(shape) ** 2 + 9 * min(shape) ** 3 for shape in matrices)
    return {
        "prompts": f"{inputs} ({', '.join(f'{len(e)} {kind}' for kind, e in sets.items())}), {tokens} tokens",
        "forward and backward": f"about {2.0 * size * tokens * passes:.1e} FLOP for both models",
        "singular values": f"about {3 * svd:.1e} FLOP at most, one matrix at a time",
        "reads": f"{2 * weights_bytes(base) / 1e9:.2f} GB of weights, twice",
        "holds": f"one model, {4 * size / 1e9:.2f} GB in float32 or {2 * size / 1e9:.2f} GB with --bf16, and at most {6 * 4 * max(map(math.prod, matrices)) / 1e9:.2f} GB of matrices beside it",
    }


def separated(placed: pd.DataFrame, dealt: pd.DataFrame) -> pd.DataFrame:
    """Per model and layer: AUROC of the held-out score, its mean over deals of the labels (each with centroids of its own), and the
    unsafe-over-safe gain."""
    rows, shuffled = [], dealt.groupby(["model", "layer"]).auroc.mean()
    for (model, layer), t in placed.groupby(["model", "layer"], sort=False):
        by = {kind: t[t.kind == kind] for kind in t.kind.unique()}
        row = {"model": model, "layer": layer, "auroc": auroc(by["safe"].score, by["unsafe"].score)}
        row["auroc_shuffled"] = shuffled[model, layer]
        row |= {f"{name}_ratio": ratio(by["unsafe"].get(name), by["safe"].get(name)) for name in ("gain", "gain_random")}
        width = by["safe"].tau.mean() - by["unsafe"].tau.mean()
        row |= {f"{kind}_position": float((by[kind].tau.mean() - by["unsafe"].tau.mean()) / width) for kind in ENCODINGS if kind in by}
        rows.append(row)
    return pd.DataFrame(rows)


def ratio(unsafe: pd.Series | None, safe: pd.Series | None) -> float:
    """Mean over mean; NaN where there is no change to act on anything."""
    if unsafe is None or safe is None or not float(safe.mean()) > 0:
        return float("nan")
    return float(unsafe.mean() / safe.mean())


def sentence(separation: pd.DataFrame) -> str:
    """The pair's finding in a sentence."""
    last = separation[separation.layer == separation.layer.max()].set_index("model")
    a = last.loc["aligned"]
    if not (separation.gain_ratio > 0).any():
        return "No change: no first MLP matrix of the aligned model differs from the base's."
    coded = ", ".join(f"{kind} at {a[f'{kind}_position']:.2f}" for kind in ENCODINGS)
    return (
        f"In the last layer the aligned model separates safe from unsafe prompts with AUROC {a.auroc:.2f} (base {last.auroc['base']:.2f}); "
        f"the weight change acts {a.gain_ratio:.2f} times as strongly on unsafe prompts (random change {a.gain_random_ratio:.2f}); "
        f"encoded unsafe prompts sit between unsafe (0) and safe (1): {coded}."
    )


def _tiles(separation: pd.DataFrame) -> list[Tile]:
    last = separation[separation.layer == separation.layer.max()]
    return [Tile(f"{r.model}: last layer", f"AUROC {r.auroc:.2f}", f"shuffled labels {r.auroc_shuffled:.2f}") for r in last.itertuples()]

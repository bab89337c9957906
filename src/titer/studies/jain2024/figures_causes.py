"""Charts of the interventions: along the change, soft tokens, size, dynamics, relearning, steering, patching: means over bases. L7."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from titer.probes.weight_change import overall
from titer.report import forms
from titer.report.html import Figure
from titer.report.style import GREY, RED
from titer.studies.engine.found import Found, hits
from titer.studies.engine.tables import ranges
from titer.studies.jain2024.claims import MEDIUM
from titer.studies.jain2024.figures import COLOURS, KINDS, in_order, pooled, there

ANSWERED = "safe (answered)"
TRAINED = {  # the two trainings that are watched
    "dynamics": (
        "While safety tuning runs",
        "Does the change find its direction early or late? Cosine of the change so far with the final ΔW, and what the model answers at each step.",
    ),
    "relearn": (
        "Relearning compliance",
        "Unsafe requests answered again while the tuned model is trained to comply, at the small learning rate; step 0 is the aligned "
        "model. cosine: of the weight change since step 0 with −ΔW (1: straight back to the base).",
    ),
}
STEPS = {  # column -> its name in the chart, and its colour
    "unsafe_refused": ("unsafe refused", "#e08a1e"),
    "unsafe_complied": ("unsafe answered", RED),
    "safe_complied": ("safe answered", "#2f6fb0"),
    "cosine": ("cosine", GREY),
}
STEERED = {  # what is steered, by kind and direction
    ("safe", "own"): ("safe, +v: refused", "#2f6fb0"),
    ("safe", "random"): ("safe, +v: refused (random)", "#a9c4e0"),
    ("unsafe", "own"): ("unsafe, −v: answered", RED),
    ("unsafe", "random"): ("unsafe, −v: answered (random)", "#e3aaa3"),
}
PARTS = ("mlp", "attention", "other")


def alpha_chart(evidence: Sequence[Found]) -> Figure:
    """Draws refusal along the change and along a random direction."""
    t = pooled(evidence, "alpha")
    t = t[t.direction.isin(["own", "random"])]
    t = t.assign(share=hits(t.outcome, "refused"), line=t.kind.where(t.kind != "safe", ANSWERED))
    t.loc[t.kind == "safe", "share"] = hits(t[t.kind == "safe"].outcome, "complied")
    found = ranges(t, ["direction", "model", "alpha", "line"], "share").sort_values("direction", kind="stable")
    colours = {ANSWERED if kind == "safe" else kind: colour for kind, colour in KINDS.items()}
    return Figure(
        "alpha",
        "Along ΔW, and beyond it",
        "Share refused at the weights θ = base + α ΔW (for safe requests: share answered). α = 0 is the base, 1 the tuned model. Panels "
        "named random are the control: a random direction with ΔW's norm in every tensor. Thin lines span the bases.",
        forms.lines(
            found.assign(panel=found.model + ", " + found.direction), "alpha", "share", "line", colours, ("α", "refused"), panel="panel"
        ),
    )


def soft_chart(evidence: Sequence[Found]) -> Figure:
    """Draws the success of soft tokens by their number."""
    t = pooled(evidence, "soft")
    found = ranges(t.assign(success=hits(t.outcome, "complied")), ["model", "form", "n"], "success")
    return Figure(
        "soft",
        "Soft-token suffixes",
        "Share of unsafe requests answered with n optimised embeddings (soft tokens) inserted before the end of the text. own: optimised "
        "on the request itself; universal: optimised on half of the requests, judged on the other half; random: as many tokens of the "
        "same norm in random directions. Thin lines span the bases.",
        forms.lines(
            in_order(found, "form", ("own", "universal", "random")),
            "n",
            "success",
            "model",
            there({name: COLOURS[name] for name in ("base", *MEDIUM)}, found.model),
            ("soft tokens", "unsafe requests answered"),
            panel="form",
        ),
    )


def change_chart(evidence: Sequence[Found]) -> Figure:
    """Draws the relative size of the change by part of the network."""
    rows = [
        {"model": model, "part": part, "seed": e.unit, "size": overall(one, part)}
        for e in evidence
        for model, one in e.tables["change"].groupby("model", sort=False)
        for part in PARTS
    ]
    found = ranges(pd.DataFrame(rows), ["model", "part"], "size")
    return Figure(
        "change",
        "How much tuning changes the weights",
        "Relative norm of the change, ‖ΔW‖ / ‖W‖, over all matrices of a part. Compare with the benign tune, which has the same steps and rate. Thin lines span the bases.",
        forms.bars(found, "model", "part", dict.fromkeys(PARTS, "#2f6fb0"), columns=3, value="size"),
    )


def steps_chart(evidence: Sequence[Found], name: str) -> Figure:
    """Draws dynamics or relearning: rates over steps."""
    t = pooled(evidence, name).melt(["model", "step", "seed"], list(STEPS), var_name="measure", value_name="share")
    words = {column: called for column, (called, _) in STEPS.items()}
    found = ranges(t.replace({"measure": words}), ["model", "step", "measure"], "share")
    title, caption = TRAINED[name]
    return Figure(
        name,
        title,
        f"{caption} Thin lines span the bases.",
        forms.lines(found, "step", "share", "measure", dict(STEPS.values()), ("optimiser step", ""), share=False, panel="model"),
    )


def steering_chart(evidence: Sequence[Found]) -> Figure:
    """Draws steering by layer, own direction against random."""
    t = pooled(evidence, "steering")
    t = t.assign(share=hits(t.outcome, "refused"), line=[STEERED[pair][0] for pair in zip(t.kind, t.direction, strict=True)])
    t.loc[t.kind == "unsafe", "share"] = hits(t[t.kind == "unsafe"].outcome, "complied")
    return Figure(
        "steering",
        "Steering along unsafe minus safe",
        "The difference of class means (unsafe minus safe) in the residual stream is added on safe requests and subtracted on unsafe "
        "ones, at one layer. random: a random vector of the same norm, the control. Thin lines span the bases.",
        forms.lines(
            ranges(t, ["model", "layer", "line"], "share"),
            "layer",
            "share",
            "line",
            dict(STEERED.values()),
            ("layer", "share"),
            panel="model",
        ),
    )


def patching_chart(evidence: Sequence[Found]) -> Figure:
    """Draws patching: the share of unsafe requests refused or answered, by site and layer."""
    t = pooled(evidence, "patching")
    t = t[t.kind == "unsafe"]
    place = t.layer.astype(int).astype(str).where(t.layer > 0, "all")
    t = t.assign(share=hits(t.outcome, "refused"), pair=t.donor + " → " + t.receiver, place=place)
    t.loc[t.receiver != "base", "share"] = hits(t[t.receiver != "base"].outcome, "complied")
    return Figure(
        "patching",
        "Activations patched between models",
        "The receiver reads the prompt with the donor's activations at one site and layer (donor → receiver). Where the base receives: "
        "share of unsafe requests refused. Where a tuned model receives from the base: share answered. The benign donor is the control.",
        forms.matrix(ranges(t, ["pair", "site", "place"], "share"), "place", "pair", "share", ("layer", None), panel="site"),
    )

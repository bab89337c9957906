"""The claims of the mechanistic study, and the terms that they share. L7.

Thresholds follow section 11 of the specification (its acceptance checks), which were set before this study was built.
Statistics of activations and weights are over all layers but the first and in log2, so that no single layer and no large base value
decides. A claim is drawn from the bases that learned the task and whose tuned models it speaks of were tuned.
"""

from __future__ import annotations

from titer.recipes.jain2024 import METHODS
from titer.studies.engine.terms import Layers, Term, by_layer, last, rate

BASE = ("base",)
MEDIUM = tuple(f"{method} M" for method in METHODS)
PAPERS = ("jb_co_task", "jb_co_text", "jb_misgen")  # the jailbreaks that the paper's order is stated for
JAILBREAKS = (*PAPERS, "jb_misgen_text")
WORDS = {  # as the paper writes them
    "ssft": "SSFT",
    "ssft-half": "SSFT",
    "dpo": "DPO",
    "unlearn": "unlearning",
    "jb_co_task": "JB-CO-Task",
    "jb_co_text": "JB-CO-Text",
    "jb_misgen": "JB-MisGen",
    "jb_misgen_text": "JB-MisGen (text)",
}


def controls_of(method: str) -> tuple[str, str]:
    """A method's benign control (at its norm) and its sham."""
    return f"benign, norm of {method}", f"sham {method} M"


def refused(model: str) -> Term:
    return rate(model, "unsafe", "refused")


def tau(model: str, kind: str) -> Term:
    """Mean tau of one set in the last layer."""
    return last("placement", "tau", model=model, kind=kind)


def gap(model: str) -> Layers:
    """Between the mean tau of safe and of unsafe inputs, layer by layer."""
    safe, unsafe = (by_layer("placement", "tau", model=model, kind=kind) for kind in ("safe", "unsafe"))
    return lambda found: safe(found) - unsafe(found)


def position(tau: float, safe: float, unsafe: float) -> float:
    """Where a mean tau lies between the unsafe (0) and the safe class (1)."""
    return (tau - unsafe) / (safe - unsafe)

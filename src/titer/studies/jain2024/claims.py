"""The claims of the mechanistic study, and the terms that they share. L7.

Thresholds follow section 11 of the specification (its acceptance checks), which were set before this study was built.
Statistics of activations and weights are in log2 and averaged over all layers but the first, so that neither a single layer nor a large
base value decides. A claim uses the bases that learned the task and on which the tunings that it is about succeeded.
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
    """Returns the names of a method's two controls: the benign tune scaled to its norm, and its sham."""
    return f"benign, norm of {method}", f"sham {method} M"


def refused(model: str) -> Term:
    return rate(model, "unsafe", "refused")


def tau(model: str, kind: str) -> Term:
    """Returns a term: the mean tau of one set in the last layer."""
    return last("placement", "tau", model=model, kind=kind)


def gap(model: str) -> Layers:
    """Returns the gap between the mean tau of safe and of unsafe inputs, layer by layer."""
    safe, unsafe = (by_layer("placement", "tau", model=model, kind=kind) for kind in ("safe", "unsafe"))
    return lambda found: safe(found) - unsafe(found)


def position(tau: float, safe: float, unsafe: float) -> float:
    """Returns the position of a mean tau between the unsafe (0) and the safe class (1)."""
    return (tau - unsafe) / (safe - unsafe)

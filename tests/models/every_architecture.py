"""What Titer does with each causal architecture of transformers: the table in docs/architectures.md, over tiny models.

Behaviour: the saved model opens and answers prompts of unlike lengths, left-padded in a batch, as one at a time. Weights: every parameter
belongs to a part, and known changes of parts (written to disk, read by name) come out at these parts and of this size. Inside: the
sites that are there, each read in a pass over padded prompts; and those that are not.
`python -m tests.models.every_architecture` writes the table.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.models.tiny import NAMES, tiny
from titer.core.errors import TiterError, visible
from titer.data.world import World
from titer.models.activations import at_prompt_end
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import LM, Decoding, load
from titer.models.sites import ACTIVATIONS, layer_of
from titer.models.weights import changes_at, skeleton
from titer.probes.weight_change import overall, weight_change

PROMPTS = ["a b", "c d e f g h", "b", "h g f e d c b a", "d e", "a c e g"]
FACTORS = {"mlp": 1.25, "attention": 1.5, "mixer": 1.125, "block": 1.0625}
WEIGHTS = ("attn_o", "mlp_up", "mlp_gate", "mlp_down")
TABLE = Path(__file__).parents[2] / "docs" / "architectures.md"
Row = dict[str, str]


def row(name: str, folder: Path) -> Row:
    """architecture, behaviour, weights, inside, lacking: "yes" or what went wrong; the sites; why others are not there."""
    tokenizer = World(seed=1).tokenizer()
    try:
        model = tiny(name, len(tokenizer))
        LM(model, tokenizer, name).save(folder / "before")
    except Exception as error:  # noqa: BLE001  of transformers: it does not make the model
        return {"architecture": name, "behaviour": f"not tried: {_said(error)}", "weights": "", "inside": "", "lacking": ""}
    return {"architecture": name, **_tried(behaviour, folder), **_tried(weights, folder), **_tried(inside, folder)}


def _tried(part: Any, folder: Path) -> Row:
    try:
        return dict(part(folder))
    except Exception as error:  # noqa: BLE001  what goes wrong is the table's cell
        return {part.__name__: _said(error)}


def _said(error: Exception) -> str:
    told = str(error) if isinstance(error, TiterError) else f"{type(error).__name__}: {error}"
    return visible(" ".join(told.split()), 160).replace("|", "/")


def behaviour(folder: Path) -> Row:
    """Whether a batch answers as its prompts do one at a time."""
    lm, decoding = load(open_checkpoint(folder / "before")), Decoding(max_new_tokens=8)
    together = [c.text for c in lm.generate(PROMPTS, decoding)]
    alone = [lm.generate([prompt], decoding)[0].text for prompt in PROMPTS]
    differ = sum(a != b for a, b in zip(together, alone, strict=True))
    return {"behaviour": f"{differ} of {len(PROMPTS)} answers differ" if differ else "yes"}


def weights(folder: Path) -> Row:
    """Whether each part's change comes out at that part alone, of its size, also site by site."""
    lm = load(open_checkpoint(folder / "before"))
    parts = {name: lm.sites.part(name) for name, p in lm.model.named_parameters() if p.ndim >= 2}
    with torch.no_grad():
        for name, p in lm.model.named_parameters():
            p.mul_(FACTORS.get(parts.get(name, ""), 1.0))
    lm.save(folder / "after")
    before, after = (open_checkpoint(folder / side) for side in ("before", "after"))
    sites = skeleton(before)
    table = weight_change(before, after, sites)
    for part in sorted(set(parts.values()) | set(table.part)):
        found, wanted = overall(table, part), FACTORS.get(part, 1.0) - 1
        if not abs(found - wanted) < 1e-3:
            return {"weights": f"{part} changed by {found:.3f}, not {wanted}"}
    for kind in WEIGHTS:
        for i in range(sites.layers):
            if kind not in sites.blocks[i].lacking:
                wanted = FACTORS["attention" if kind == "attn_o" else "mlp"] - 1
                sizes = [float(change.norm() / weight.norm()) for weight, change in changes_at(before, after, sites, f"{kind}[{i}]")]
                if not all(abs(size - wanted) < 1e-3 for size in sizes):
                    return {"weights": f"{kind}[{i}] changed by {sizes}, not {wanted}"}
    return {"weights": "yes"}


def inside(folder: Path) -> Row:
    """The kinds of sites that every pass reaches, with their layers where not all have them; why others are not there."""
    lm = load(open_checkpoint(folder / "before"))
    found: list[str] = []
    lacking = [f"{kind} ({reason})" for kind, reason in lm.sites.lacking.items() if kind in ACTIVATIONS]
    for kind in ACTIVATIONS[1:]:
        names = lm.sites.names(kind)
        try:
            read = at_prompt_end(lm, PROMPTS, names) if names else {}
        except (TiterError, RuntimeError) as error:
            lacking.append(f"{kind} ({_said(error)})")
            continue
        if any(not bool(torch.isfinite(one).all()) for one in read.values()):
            lacking.append(f"{kind} (not finite)")
        elif names:
            found.append(kind if len(names) == lm.sites.layers else f"{kind} [{', '.join(str(layer_of(n) + 1) for n in names)}]")
    return {"inside": ", ".join(found) or "no site", "lacking": "; ".join(lacking)}


def written(rows: list[Row]) -> str:
    """The page."""
    good = {kind: sum(r.get(kind) == "yes" for r in rows) for kind in ("behaviour", "weights")}
    read = sum(bool(r.get("inside")) and r["inside"] != "no site" for r in rows)
    tried = [r for r in rows if not r["behaviour"].startswith("not tried")]
    head = [
        "# Architectures",
        "",
        f"transformers {transformers.__version__} has {len(rows)} causal architectures. Titer was tried on a tiny model of each, with",
        "random weights (`python -m tests.models.every_architecture` writes this page). The columns say what was checked:",
        "",
        "- behaviour: the saved model opens, and answers a left-padded batch as it answers one prompt at a time.",
        "- weights: every parameter belongs to a named part of the model, and changes of known size are measured in the right",
        "  part and at that size.",
        "- inside: the places that were found and read: the output of attention (attn_out); the input, the activations and the",
        "  output of the MLP (mlp_in, mlp_act, mlp_out); and the residual stream after each block (resid). If only some of the 4",
        "  layers have a place, the brackets list these layers.",
        "- not inside: the places that were not found, and why. An audit names them and measures the rest.",
        "",
        f"{len(tried)} architectures could be made tiny. Of these, behaviour works in {good['behaviour']}, weights in {good['weights']},",
        f"and in {read} at least one place inside can be read.",
        "",
        "| architecture | behaviour | weights | inside | not inside |",
        "|---|---|---|---|---|",
    ]
    cells = ("architecture", "behaviour", "weights", "inside", "lacking")
    return "\n".join([*head, *("| " + " | ".join(r.get(c, "") for c in cells) + " |" for r in rows)]) + "\n"


def main(names: list[str]) -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = []
    for name in names or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(name, Path(folder)))
        print(rows[-1], flush=True)
    if not names:
        TABLE.write_text(written(rows), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

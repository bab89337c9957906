"""`titer runs`: what the folder of runs holds, and taking away what may go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from titer.cli.options import HERE, AsJson, Dry, Runs
from titer.cli.output import show_result
from titer.core.errors import TiterError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from titer.core.inventory import Page, Piece

SHOWN = 12  # of the largest pieces

Prune = Annotated[
    list[str] | None,
    typer.Option(
        "--prune", help="Take away a kind (samples, tables, stages ...), `unfinished`, or the piece of a key; may be given again."
    ),
]


def runs_(
    prune: Prune = None,
    older: Annotated[float, typer.Option("--older", min=0, help="Only what is older than N days.")] = 0.0,
    runs: Runs = HERE,
    dry_run: Dry = False,
    as_json: AsJson = False,
) -> None:
    """What is stored and how large it is. What is pruned can be made again by its command; what is at work is left."""
    from titer.core import inventory

    held = inventory.pieces(runs)
    if prune:
        doomed = inventory.chosen(held, prune, older)
        went, left = (doomed, []) if dry_run else inventory.prune(doomed)
        what = "would go" if dry_run else "gone"
        lines = [*map(_line, went), f"{len(went)} pieces {what}, {_bytes(sum(p.size for p in went))}"]
        lines += [f"{p.kind}/{p.key} is at work and was left" for p in left]
        return show_result(as_json, {"gone": [_row(p) for p in went], "left": [_row(p) for p in left]}, "\n".join(lines))
    if older or dry_run:
        raise TiterError("--older and --dry-run belong to --prune", next_step="add --prune KIND.")
    pages = inventory.pages(runs)
    value = {"pieces": [_row(p) for p in held], "reports": [vars(page) for page in pages]}
    return show_result(as_json, value, "\n".join(_listed(held, pages)))


def _listed(held: Sequence[Piece], pages: Sequence[Page]) -> list[str]:
    """The reports, the kinds with their sizes, the largest pieces."""
    lines = [f"{page.name:36} {_bytes(page.size):>9}  {page.answer[:100]}" for page in pages]
    kinds: dict[str, list[Piece]] = {}
    for piece in held:
        kinds.setdefault(piece.state if piece.state == "unfinished" else piece.kind, []).append(piece)
    lines += [f"{kind:36} {_bytes(sum(p.size for p in own)):>9}  {len(own)} pieces" for kind, own in kinds.items()]
    lines += ["the largest:", *map(_line, held[:SHOWN])] if held else ["nothing is stored"]
    return [*lines, f"in all: {_bytes(sum(p.size for p in held) + sum(p.size for p in pages))}"]


def _line(piece: Piece) -> str:
    return f"{piece.kind}/{piece.key:28} {_bytes(piece.size):>9}  {'; '.join(filter(None, (piece.about, piece.state)))}".rstrip()


def _row(piece: Piece) -> dict[str, Any]:
    return {"kind": piece.kind, "key": piece.key, "bytes": piece.size, "made": piece.made, "about": piece.about, "state": piece.state}


def _bytes(size: int) -> str:
    """3.2 MB."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"

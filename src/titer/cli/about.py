"""`titer models`, `list`, `show` and `doctor`: what there is to use; `report` and `runs`: what was found and what is stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from titer.cli.options import HERE, AsJson, Dry, Runs
from titer.cli.output import plain, show_result
from titer.core.errors import TiterError

if TYPE_CHECKING:
    from titer.api.about import Told
    from titer.core.inventory import Page, Piece

SHOWN = 12  # of the largest pieces


def models_get(name: str, as_json: AsJson = False) -> None:
    """Fetch a named model once: download, check its sha256, convert to a safetensors folder in the cache."""
    from titer import api

    found = api.models_get(name)
    show_result(as_json, {"model": str(found)}, f"{name}: {found}")


def list_(
    kind: Annotated[str | None, typer.Argument(help="methods, repairs, decoders, attacks, judges, probes, studies or prompt-sets")] = None,
    as_json: AsJson = False,
) -> None:
    """What can be named on the command line."""
    from titer.core.plugins import listed

    found = {"prompt-sets": _prompt_sets()} if kind == "prompt-sets" else listed(kind)
    lines = [line for k, rows in found.items() for line in (k, *(f"  {name:12} {text}" for name, text in rows.items()))]
    show_result(as_json, found, "\n".join(lines))


def _prompt_sets() -> dict[str, str]:
    """The published sets that --data NAME:FILE takes; docs/prompt_sets.md says where they are to be had."""
    from titer.data.prompt_sets import SETS

    return {name: f"{one.title}, columns {', '.join(sorted(one.columns))}: {one.told}" for name, one in SETS.items()}


def show(name: str) -> None:
    """The documentation and settings of a method, repair, decoder, attack, judge or probe; the data and models it reads."""
    from titer.core.plugins import shown

    typer.echo(shown(name))


def doctor(as_json: AsJson = False) -> None:
    """What this machine can do and what is missing: cores, memory, GPU, packages, caches. Makes no connection."""
    from titer.commands.doctor import facts

    found = facts()
    width = max(len(fact.name) for fact in found)
    show_result(as_json, {fact.name: fact.value for fact in found}, "\n".join(f"{f.name:{width}}  {f.text}" for f in found))


def report(
    run: Annotated[str, typer.Argument(help="A report's folder, or its name in the folder of runs: audit-tuned, demo ...")],
    card: Annotated[
        Path | None, typer.Option("--card", help="The folder of a model in the report: put a section on it into its README.md.")
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", help="OWNER/NAME: send the model of --card to the Hugging Face hub, private.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Send it to a public repository.")] = False,
    csv: Annotated[str | None, typer.Option("--csv", help="Print this table instead: claims, rates, shift ... of results.csv.")] = None,
    latex: Annotated[str | None, typer.Option("--latex", help="The same for a paper (with the package booktabs).")] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="Write every figure as PDF beside its SVG.")] = False,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Write the report, its answers and the hashes of models and data as one zip.")
    ] = None,
    runs: Runs = HERE,
    as_json: AsJson = False,
) -> None:
    """Tell what a finished report says; its tables and figures for a paper; one file of it to be verified; a model's card."""
    if push is not None and card is None:
        raise TiterError("--push without --card", next_step="add --card MODEL, the folder of the model to send.")
    if public and push is None:
        raise TiterError("--public without --push", next_step="add --push OWNER/NAME.")
    from titer import api

    found = api.report(run, runs)
    if csv or latex:
        return _printed(found, csv, latex, as_json)
    told: dict[str, Any] = {"answer": found.answer, "report": str(found.page), "claims": found.verdicts}
    lines = [found.answer, f"Report: {told['report']}"]
    lines += [f"Claims: {', '.join(f'{count} {name}' for name, count in found.verdicts.items())}"] if found.verdicts else []
    lines += [f"Made by: {command}" for command in found.summary.commands]
    if pdf:
        from titer.report.bundle import as_pdf

        told["figures"] = [str(file) for file in as_pdf(found.folder)]
        lines += [f"Figures: {', '.join(told['figures']) or 'none'}"]
    if bundle is not None:
        held = api.bundle(run, bundle, runs)
        told["bundle"] = str(bundle)
        lines += [f"Bundle: {bundle} ({len(held.files)} files); check it: titer verify {bundle}"]
    if card is not None:
        written = api.card(run, card, runs)
        told |= {"card": str(written.path), "notes": list(written.notes)}
        lines += [f"Card: {written.path} (as {written.subject})", *written.notes]
    if push is not None and card is not None:
        sent = api.push(card, push, public)
        told |= {"url": sent.url, "private": sent.private, "left_out": list(sent.left_out)}
        lines += [f"Published: {sent.url} ({'private' if sent.private else 'public'}); left out: {', '.join(sent.left_out) or 'nothing'}"]
    show_result(as_json, told, "\n".join(lines))


def _printed(found: Told, csv: str | None, latex: str | None, as_json: bool) -> None:
    """One table of a report, and nothing else."""
    if csv and latex:
        raise TiterError("--csv and --latex at once", next_step="give one of them.")
    from titer.report.bundle import as_latex

    table = found.table(str(csv or latex))
    text = table.to_csv(index=False, lineterminator="\n") if csv else as_latex(table)
    show_result(as_json, {str(csv or latex): text}, text.rstrip("\n"))


def verify(
    file: Annotated[Path, typer.Argument(help="A file of `titer report RUN --bundle FILE`.")],
    models: Annotated[list[str] | None, typer.Argument(help="Models at hand: are they those that were measured?")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="A prompts' file: is it the one that was asked?")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a bundled report: every file's hash, the rates from the answers, and models and data at hand. Exit status 1: it fails."""
    from titer import api

    found = api.verify(file, *(models or ()), data=data)
    marks = {True: "holds", False: "FAILS", None: "not checked"}
    fails = [one for one in found if one.holds is False]
    lines = [f"{marks[one.holds]:11}  {one.what}: {one.said}" for one in found]
    lines += [f"{len(fails)} of {len(found)} checks fail" if fails else "the bundle is whole and agrees with itself"]
    show_result(as_json, {"holds": not fails, "checks": [one.model_dump() for one in found]}, "\n".join(lines))
    raise typer.Exit(int(bool(fails)))


def view(
    runs: Annotated[Path, typer.Argument(help="Folder of runs.")] = HERE,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0: any that is free.")] = 8765,
) -> None:
    """The stored reports in a browser: read only, to this machine alone; two models' answers side by side. Ends with Ctrl-C."""
    from titer.report.view import Server

    with Server(runs, port) as server:
        typer.echo(f"Reports of {plain(str(runs))}: {server.address} (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("ended")


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

"""The commands that say what can be used (`models`, `list`, `show`, `doctor`) and what is stored (`report`, `verify`, `view`, `runs`)."""

from __future__ import annotations

import textwrap
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

SHOWN = 12  # how many pieces `titer runs` lists: the largest ones


def models_get(
    name: Annotated[str, typer.Argument(help="A name that titer doctor lists under `models by name`.")], as_json: AsJson = False
) -> None:
    """Fetch a named model into the cache.

    It is downloaded once, its sha256 is checked, and it is converted to a folder of safetensors.
    """
    from titer import api

    found = api.models_get(name)
    show_result(as_json, {"model": str(found)}, f"{name}: {found}")


def list_(
    kind: Annotated[str | None, typer.Argument(help="methods, repairs, decoders, attacks, judges, probes, studies or prompt-sets")] = None,
    as_json: AsJson = False,
) -> None:
    """List the methods, attacks, judges and other parts that a command can use by name.

    Without KIND, all kinds except prompt-sets are listed.
    """
    from titer.core.plugins import listed

    found = {"prompt-sets": _prompt_sets()} if kind == "prompt-sets" else listed(kind)
    width = max(len(name) for rows in found.values() for name in rows)
    lines = [line for k, rows in found.items() for line in (k, *(f"  {name:{width}}  {text}" for name, text in rows.items()))]
    show_result(as_json, found, "\n".join(lines))


def _prompt_sets() -> dict[str, str]:
    """Returns name -> description of the published prompt sets that --data NAME:FILE reads; docs/prompt_sets.md says where to get them."""
    from titer.data.prompt_sets import SETS

    return {name: f"{one.title}, columns {', '.join(sorted(one.columns))}: {one.told}" for name, one in SETS.items()}


def show(name: Annotated[str, typer.Argument(help="A name that titer list prints, or the path of a .py file.")]) -> None:
    """Print the documentation of a method, attack, judge or other part.

    It lists the settings with their defaults, the data and models that a method, repair or decoder reads, and the claims of a study.
    """
    from titer.core.plugins import kinds_of, shown

    typer.echo(shown(name))
    if "studies" in kinds_of(name):
        from titer.studies.engine.declare import promised
        from titer.studies.engine.lab import form

        typer.echo(f"\n{promised(form(name, None))}")


def doctor(as_json: AsJson = False) -> None:
    """Print what this machine has and what is missing.

    It looks at the cores, memory, GPU, packages and caches. It makes no network connection.
    """
    from titer.commands.doctor import facts

    found = facts()
    width = max(len(fact.name) for fact in found)
    show_result(as_json, {fact.name: fact.value for fact in found}, "\n".join(f"{f.name:{width}}  {f.text}" for f in found))


def report(
    run: Annotated[str, typer.Argument(help="A report's folder, or its name in --runs, for example audit-tuned or demo.")],
    card: Annotated[
        Path | None,
        typer.Option(
            "--card", help="Folder of a model that the report is about: write a section with its results into the README.md there."
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option("--push", help="OWNER/NAME: upload the model of --card to this private repository of the Hugging Face hub."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: upload to a public repository.")] = False,
    csv: Annotated[
        str | None, typer.Option("--csv", help="Print only this table, as CSV: claims, or one of results.csv (rates, shift ...).")
    ] = None,
    latex: Annotated[str | None, typer.Option("--latex", help="Print only this table, as LaTeX (needs the package booktabs).")] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="Write each figure as PDF beside its SVG.")] = False,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Write the report, the answers and the hashes of models and data into this zip file.")
    ] = None,
    runs: Runs = HERE,
    as_json: AsJson = False,
) -> None:
    """Print what a finished report found, or export it.

    It can export tables and figures for a paper, one file that others can verify (titer verify), and a section for a model's card.
    """
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
        told["bundle"] = str(bundle)
        lines += _bundled(run, bundle, runs, found.summary.commands)
    if card is not None:
        written = api.card(run, card, runs)
        told |= {"card": str(written.path), "notes": list(written.notes)}
        lines += [f"Card: {written.path} (as {written.subject})", *written.notes]
    if push is not None and card is not None:
        sent = api.push(card, push, public)
        told |= {"url": sent.url, "private": sent.private, "left_out": list(sent.left_out)}
        lines += [f"Published: {sent.url} ({'private' if sent.private else 'public'}); left out: {', '.join(sent.left_out) or 'nothing'}"]
    show_result(as_json, told, "\n".join(lines))


def _bundled(run: str, bundle: Path, runs: Path, commands: Sequence[str]) -> list[str]:
    """Writes the bundle; returns lines on it."""
    from titer import api
    from titer.report.markdown import command as placeless

    lines = [f"Bundle: {bundle} ({len(api.bundle(run, bundle, runs).files)} files); check it: titer verify {bundle}"]
    if any(placeless(command) != command for command in commands):
        lines += ["The report's command names folders of this machine, and the bundle shows it. Run with relative paths to avoid this."]
    return lines


def _printed(found: Told, csv: str | None, latex: str | None, as_json: bool) -> None:
    """Prints one table of a report as CSV or LaTeX, and nothing else. Errors: both forms were asked for; no table has this name."""
    if csv and latex:
        raise TiterError("--csv and --latex were both given", next_step="leave out one of the two.")
    from titer.report.bundle import as_latex

    table = found.table(str(csv or latex))
    text = table.to_csv(index=False, lineterminator="\n") if csv else as_latex(table)
    show_result(as_json, {str(csv or latex): text}, text.rstrip("\n"))


def verify(
    file: Annotated[Path, typer.Argument(help="A file made by titer report RUN --bundle FILE.")],
    models: Annotated[list[str] | None, typer.Argument(help="Models of your own to compare with those that were measured.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="A file of prompts to compare with the one that was asked.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a report that was bundled into one file.

    It checks the hash of each file, computes the rates again from the answers, and compares the models and the data that you give with
    those that were measured. The exit status is 1 if a check fails.
    """
    from titer import api

    found = api.verify(file, *(models or ()), data=data)
    marks = {True: "holds", False: "FAILS", None: "not checked"}
    fails = [one for one in found if one.holds is False]
    lines = [f"{marks[one.holds]:11}  {one.what}: {one.said}" for one in found]
    lines += [f"{len(fails)} of {len(found)} checks fail" if fails else "no check fails: the bundle is complete and agrees with itself"]
    show_result(as_json, {"holds": not fails, "checks": [one.model_dump() for one in found]}, "\n".join(lines))
    raise typer.Exit(int(bool(fails)))


def view(
    runs: Annotated[Path, typer.Argument(help="Folder that keeps the reports.")] = HERE,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0: any free port.")] = 8765,
) -> None:
    """Show the stored reports in a browser, read only.

    Only this machine can open the page. It can also show two models' answers side by side. Ctrl-C ends it.
    """
    from titer.report.view import Server

    with Server(runs, port) as server:
        typer.echo(f"Reports of {plain(str(runs))}: {server.address} (press Ctrl-C to stop)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("ended")


Prune = Annotated[
    list[str] | None,
    typer.Option(
        "--prune",
        help="Delete pieces: a kind (samples, tables, stages ...), `unfinished`, or one piece by the start of its key (repeatable).",
    ),
]


def runs_(
    prune: Prune = None,
    older: Annotated[float, typer.Option("--older", min=0, help="With --prune: delete only what is older than N days.")] = 0.0,
    runs: Runs = HERE,
    dry_run: Dry = False,
    as_json: AsJson = False,
) -> None:
    """List what is stored and how large it is, or delete it.

    Whatever --prune deletes can be made again by the command that made it. Pieces that a running command uses are not deleted.
    """
    from titer.core import inventory

    held = inventory.pieces(runs)
    if prune:
        doomed = inventory.chosen(held, prune, older)
        went, left = (doomed, []) if dry_run else inventory.prune(doomed)
        what = "would be deleted" if dry_run else "deleted"
        lines = [*map(_line, went), f"{len(went)} {'piece' if len(went) == 1 else 'pieces'} {what}, {_bytes(sum(p.size for p in went))}"]
        lines += [f"{p.kind}/{p.key} is in use by a running command and was not deleted" for p in left]
        return show_result(as_json, {"gone": [_row(p) for p in went], "left": [_row(p) for p in left]}, "\n".join(lines))
    if older or dry_run:
        raise TiterError("--older or --dry-run was given without --prune", next_step="add --prune KIND.")
    pages = inventory.pages(runs)
    value = {"pieces": [_row(p) for p in held], "reports": [vars(page) for page in pages]}
    return show_result(as_json, value, "\n".join(_listed(held, pages)))


KEPT = {  # kind of piece -> what such a piece holds
    "stages": "trained models",
    "samples": "answers",
    "verdicts": "judges' verdicts on answers",
    "tables": "measurements",
    "activations": "activations of models",
    "replies": "replies of judges that are models",
    "unfinished": "being written, or left by a command that was stopped",
}


def _listed(held: Sequence[Piece], pages: Sequence[Page]) -> list[str]:
    """Returns the lines that `titer runs` prints: the reports, the size of each kind of piece, and the largest pieces."""
    lines = [f"{page.name:36} {_bytes(page.size):>9}  {textwrap.shorten(page.answer, 100, placeholder=' ...')}" for page in pages]
    kinds: dict[str, list[Piece]] = {}
    for piece in held:
        kinds.setdefault(piece.state if piece.state == "unfinished" else piece.kind, []).append(piece)
    for kind, own in kinds.items():
        count = f"{len(own)} piece{'s' * (len(own) > 1)}"
        lines.append(f"{kind:36} {_bytes(sum(p.size for p in own)):>9}  {', '.join(filter(None, (count, KEPT.get(kind))))}")
    lines += ["the largest pieces:", *map(_line, held[:SHOWN])] if held else ["nothing is stored"]
    return [*lines, f"in all: {_bytes(sum(p.size for p in held) + sum(p.size for p in pages))}"]


def _line(piece: Piece) -> str:
    return f"{f'{piece.kind}/{piece.key}':36} {_bytes(piece.size):>9}  {'; '.join(filter(None, (piece.about, piece.state)))}".rstrip()


def _row(piece: Piece) -> dict[str, Any]:
    return {"kind": piece.kind, "key": piece.key, "bytes": piece.size, "made": piece.made, "about": piece.about, "state": piece.state}


def _bytes(size: int) -> str:
    """Returns a number of bytes as text with a unit, such as "3.2 MB"."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"

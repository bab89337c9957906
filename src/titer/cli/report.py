"""`titer report`: what a finished report says, its section in a model's card, the model with its card to a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from titer.cli.options import HERE, AsJson, Runs
from titer.cli.output import show_result
from titer.core.errors import TiterError


def report(
    run: Annotated[str, typer.Argument(help="A report's folder, or its name in the folder of runs: audit-tuned, demo ...")],
    card: Annotated[
        Path | None, typer.Option("--card", help="The folder of a model in the report: put a section on it into its README.md.")
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", help="OWNER/NAME: send the model of --card to the Hugging Face hub, private.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Send it to a public repository.")] = False,
    runs: Runs = HERE,
    as_json: AsJson = False,
) -> None:
    """Tell what a finished report says; put it into a model's card; publish the model with its card."""
    if push is not None and card is None:
        raise TiterError("--push without --card", next_step="add --card MODEL, the folder of the model to send.")
    if public and push is None:
        raise TiterError("--public without --push", next_step="add --push OWNER/NAME.")
    from titer import api

    found = api.report(run, runs)
    told: dict[str, Any] = {"answer": found.answer, "report": str(found.page), "claims": found.verdicts}
    lines = [found.answer, f"Report: {told['report']}"]
    lines += [f"Claims: {', '.join(f'{count} {name}' for name, count in found.verdicts.items())}"] if found.verdicts else []
    lines += [f"Made by: {command}" for command in found.summary.commands]
    if card is not None:
        written = api.card(run, card, runs)
        told |= {"card": str(written.path), "notes": list(written.notes)}
        lines += [f"Card: {written.path} (as {written.subject})", *written.notes]
    if push is not None and card is not None:
        sent = api.push(card, push, public)
        told |= {"url": sent.url, "private": sent.private, "left_out": list(sent.left_out)}
        lines += [f"Published: {sent.url} ({'private' if sent.private else 'public'}); left out: {', '.join(sent.left_out) or 'nothing'}"]
    show_result(as_json, told, "\n".join(lines))

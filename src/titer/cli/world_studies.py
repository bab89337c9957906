"""`titer study` on the synthetic world: run, or price, one of the studies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from titer.cli.output import as_records, command_line, show_result

if TYPE_CHECKING:
    from titer.studies.world import WorldOrder


def world(order: WorldOrder, flops: float | None, runs: Path, dry_run: bool, as_json: bool) -> None:
    """Run the study, or say what it would compute."""
    from titer.core.run import Store
    from titer.studies.world import price, run
    from titer.terminal import Terminal

    with Terminal() as terminal:
        store = Store(runs, terminal.tell)
        if dry_run:
            table, text = price(order, store, flops)
            return show_result(as_json, as_records({"plan": table}), text)
        page, answer = run(order, store, terminal, command_line())
    told = {"answer": answer, "report": str(page), "claims": str(page.with_name("claims.json"))}
    show_result(as_json, told, f"{answer}\nReport: {page}")

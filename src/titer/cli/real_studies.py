"""`titer study --base`: a study's parts that run on real models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from titer.cli.output import command_line, show_result

if TYPE_CHECKING:
    from titer.studies.real import RealStudyRequest


def real(order: RealStudyRequest, flops: float | None, runs: Path, dry: bool, as_json: bool) -> None:
    """Run the study, or say what it would compute."""
    from titer.core.run import Store
    from titer.studies.real import prepared
    from titer.terminal import Terminal

    ready = prepared(order)
    if dry:
        cost = ready.cost(flops)
        return show_result(as_json, cost, "\n".join(f"{key}: {value}" for key, value in cost.items()))
    with Terminal() as terminal:
        page, answer = ready.run(Store(runs, terminal.tell), terminal, command_line())
    show_result(as_json, {"answer": answer, "report": str(page)}, f"{answer}\nReport: {page}")

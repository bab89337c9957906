"""`titer demo`, `titer study` and `titer sweep`: whole studies, from training the models to the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from titer.cli.options import AsJson, Dry, command
from titer.cli.output import as_records, command_line, show_result
from titer.commands.requests import Place
from titer.studies.request import DemoRequest, StudyRequest, SweepRequest

if TYPE_CHECKING:
    from titer.studies.prepare import Declared


@command
def demo(order: DemoRequest, dry_run: Dry = False, as_json: AsJson = False) -> None:
    """Train, align and fine-tune a small model on a synthetic world, and see what breaks its safety.

    It takes minutes on a laptop and downloads nothing.
    """
    from titer.core.run import Store
    from titer.studies.demo import run_demo
    from titer.studies.engine.price import price
    from titer.terminal import Terminal

    with Terminal() as terminal:
        store = Store(Path(order.runs), terminal.tell)
        if dry_run:
            rows, told = price(StudyRequest("demo", seeds=(order.seed,), bases=order.bases), store)
            plan = as_records({"plan": rows[["base", "model", "key", "steps", "stands"]]})
            return show_result(
                as_json,
                plan,
                f"{told}\nabout 6 minutes on two idle cores if nothing is stored yet (2 with one base); nothing is downloaded",
            )
        page, answer = run_demo(store, terminal, order.seed, bases=order.bases)
    _show(page, answer, as_json)


@command
def study(order: StudyRequest, dry_run: Dry = False, as_json: AsJson = False) -> None:
    """Reproduce a paper's figures and tables, and test its claims.

    It runs on synthetic worlds, where each claim is tested against a control, or on a real model (--base).
    """
    from titer.studies.prepare import prepared

    _run(prepared(order), order.runs, dry_run, as_json)


@command
def sweep(order: SweepRequest, dry_run: Dry = False, as_json: AsJson = False) -> None:
    """Search for the worst attack on each defence of a study.

    The worst attack found on each defence is then repeated on fresh base models and prompts.
    """
    from titer.studies.prepare import swept

    _run(swept(order), order.runs, dry_run, as_json)


def _run(ready: Declared, runs: Place, dry_run: bool, as_json: bool) -> None:
    from titer.core.run import Store
    from titer.terminal import Terminal

    with Terminal() as terminal:
        store = Store(Path(runs), terminal.tell)
        if not dry_run:
            return _show(*ready.run(store, terminal, command_line()), as_json)
        cost = ready.cost(store)
    if "summary" in cost:
        return show_result(as_json, as_records({"plan": cost["plan"]}), str(cost["summary"]))
    show_result(as_json, cost, "\n".join(f"{key}: {value}" for key, value in cost.items()))


def _show(page: Path, answer: str, as_json: bool) -> None:
    found = {"answer": answer, "report": str(page), "claims": str(page.with_name("claims.json"))}
    show_result(as_json, found, f"{answer}\nReport: {page}")

"""`titer study` on the synthetic world: run, or price, one of the studies."""

from __future__ import annotations

import json
from pathlib import Path

from titer.cli.output import command_line, show_result


def jain(scale: str, seeds: int, only: str, flops: float | None, runs: Path, dry_run: bool, as_json: bool) -> None:
    """The mechanistic study."""
    from titer.core.run import Store
    from titer.recipes.jain2024 import scale_of
    from titer.studies.jain2024 import cost
    from titer.studies.jain2024.study import parts_of, run_jain
    from titer.terminal import Terminal

    chosen, parts = scale_of(scale), parts_of(only)
    with Terminal() as terminal:
        store = Store(runs, terminal.tell)
        if dry_run:
            table = cost.cost(chosen, range(seeds), store)
            return show_result(as_json, {"plan": json.loads(table.to_json(orient="records"))}, cost.summary(table, flops))
        page, answer, _ = run_jain(store, terminal, chosen, range(seeds), parts, command_line())
    _shown(page, answer, as_json)


def huang(scale: str, seeds: int, part: str, only: str, flops: float | None, runs: Path, dry_run: bool, as_json: bool) -> None:
    """The study of Vaccine and harmful fine-tuning."""
    from titer.core.run import Store
    from titer.recipes.huang2024 import scale_of
    from titer.studies.huang2024 import cost
    from titer.studies.huang2024.parts import parts_of
    from titer.studies.huang2024.study import run_huang
    from titer.terminal import Terminal

    chosen, parts = scale_of(scale), parts_of(part, only)
    if dry_run:
        table = cost.cost(chosen, seeds, parts)
        return show_result(as_json, {"plan": json.loads(table.to_json(orient="records"))}, cost.summary(table, flops))
    with Terminal() as terminal:
        found = run_huang(Store(runs, terminal.tell), terminal, chosen, range(seeds), parts, command_line())
    _shown(found.page, found.answer, as_json)


def qi(scale: str, seeds: int, runs: Path, dry_run: bool, as_json: bool) -> None:
    """The study of the risk levels of fine-tuning."""
    from titer.core.run import Store
    from titer.recipes.qi2024 import scale_of
    from titer.studies.qi2024.study import plan, run_qi
    from titer.terminal import Terminal

    chosen = scale_of(scale)
    with Terminal() as terminal:
        store = Store(runs, terminal.tell)
        if dry_run:
            table = plan(store, chosen, range(seeds))
            lines = [
                f"seed {r.seed}  {r.model:32} {r.steps:4} steps of {r.batch:3}  {'stands' if r.stands else 'to run'}"
                for r in table.itertuples()
            ]
            return show_result(as_json, {"plan": json.loads(table.to_json(orient="records"))}, "\n".join(lines))
        page, answer = run_qi(store, terminal, chosen, range(seeds), command_line())
    _shown(page, answer, as_json)


def _shown(page: Path, answer: str, as_json: bool) -> None:
    show_result(as_json, {"answer": answer, "report": str(page), "claims": str(page.with_name("claims.json"))}, f"{answer}\nReport: {page}")

"""`titer study` on the synthetic world: run, or price, one of the studies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from titer.cli.output import command_line, show_result

if TYPE_CHECKING:
    import pandas as pd

    from titer.core.run import Store


def run(name: str, scale: str, seeds: int, parts: tuple[str, str], flops: float | None, runs: Path, dry_run: bool, as_json: bool) -> None:
    """One of the studies; `parts` are --part and --only."""
    from titer.core.run import Store
    from titer.terminal import Terminal

    with Terminal() as terminal:
        store = Store(runs, terminal.tell)
        if dry_run:
            table, text = _plan(name, scale, seeds, parts, flops, store)
            return show_result(as_json, {"plan": json.loads(table.to_json(orient="records"))}, text)
        from titer import api

        found = api.studied(name, scale, range(seeds), parts, store, terminal, command_line())
    told = {"answer": found.answer, "report": str(found.page), "claims": str(found.page.with_name("claims.json"))}
    show_result(as_json, told, f"{found.answer}\nReport: {found.page}")


def _plan(name: str, scale: str, seeds: int, parts: tuple[str, str], flops: float | None, store: Store) -> tuple[pd.DataFrame, str]:
    """What a study would run, as a table and in words."""
    if name == "jain2024":
        from titer.recipes import jain2024
        from titer.studies.jain2024 import cost, study

        study.parts_of(parts[1])
        table = cost.cost(jain2024.scale_of(scale), range(seeds), store)
        return table, cost.summary(table, flops)
    if name == "huang2024":
        from titer.recipes import huang2024
        from titer.studies.huang2024 import cost as price
        from titer.studies.huang2024.parts import parts_of

        table = price.cost(huang2024.scale_of(scale), seeds, parts_of(*parts))
        return table, price.summary(table, flops)
    from titer.recipes import qi2024
    from titer.studies.qi2024.study import plan, summary

    table = plan(store, qi2024.scale_of(scale), range(seeds))
    return table, summary(table)

"""`titer demo` and `titer study`: whole studies, from nothing to a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from titer.cli.options import HERE, AsJson, Dry, Prompts, Runs, Trust
from titer.cli.output import show_result
from titer.core.errors import TiterError


def demo(
    runs: Runs = HERE,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    bases: Annotated[int, typer.Option(min=1, max=20, help="How many base models of the world.")] = 3,
    dry_run: Dry = False,
    as_json: AsJson = False,
) -> None:
    """The whole life of an alignment on the synthetic world, in minutes on a laptop."""
    from titer.cli.output import as_records
    from titer.core.run import Store
    from titer.studies.demo import run_demo
    from titer.studies.engine.price import price
    from titer.studies.engine.run import StudyRequest
    from titer.terminal import Terminal

    with Terminal() as terminal:
        store = Store(runs, terminal.tell)
        if dry_run:
            rows, told = price(StudyRequest("demo", seeds=(seed,), bases=bases), store)
            plan = as_records({"plan": rows[["base", "model", "key", "steps", "stands"]]})
            return show_result(as_json, plan, f"{told}\nabout 8 minutes on two cores when nothing stands, one base 3; no download")
        page, answer = run_demo(store, terminal, seed, bases=bases)
    show_result(as_json, {"answer": answer, "report": str(page), "claims": str(page.with_name("claims.json"))}, f"{answer}\nReport: {page}")


def study(
    name: Annotated[str, typer.Argument(help="The study: jain2024 (mechanisms), huang2024 (Vaccine), qi2024 (risks), demo, or a file.")],
    scale: Annotated[str, typer.Option(help="nano, cpu, small or paper; with --base: demonstration or paper-7b.")] = "",
    seeds: Annotated[int, typer.Option(min=1, max=100, help="How many worlds: seeds 0, 1, ...")] = 3,
    bases: Annotated[int, typer.Option(min=1, max=20, help="How many base models of each world.")] = 2,
    part: Annotated[str, typer.Option(help="huang2024: core, or all.")] = "all",
    only: Annotated[str, typer.Option(help="Parts, with commas: fig3,soft ... Default: all.")] = "",
    base: Annotated[str | None, typer.Option(help="A real model: jain2024 needs --aligned beside it, the others align it.")] = None,
    aligned: Annotated[str | None, typer.Option(help="The base's safety-tuned relative.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="A file of labelled prompts (jain2024), a folder of data sets (huang2024, qi2024).")
    ] = None,
    harmful: Annotated[
        Path | None, typer.Option(help="With --base, huang2024 and qi2024: answered requests for harm; default: canaries.")
    ] = None,
    alpha: Annotated[int | None, typer.Option(min=1, help="With --base, huang2024 and qi2024: LoRA alpha; default 4 and 16.")] = None,
    prompts: Prompts = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Load a pair of models in bfloat16, half the memory.")] = False,
    trust_remote_code: Trust = False,
    keep_weights: Annotated[
        bool, typer.Option("--keep-weights", help="With --base, huang2024 and qi2024: keep the tuned models, which go once measured.")
    ] = False,
    flops: Annotated[float | None, typer.Option(help="FLOP/s of your device, to price a --dry-run in hours.")] = None,
    runs: Runs = HERE,
    dry_run: Dry = False,
    as_json: AsJson = False,
) -> None:
    """Reproduce a paper's figures and tables, its claims against controls; or on real models."""
    from titer.cli.real_studies import real
    from titer.cli.world_studies import world
    from titer.core.errors import unknown
    from titer.core.plugins import names
    from titer.studies.real import RealStudyRequest, unused
    from titer.studies.world import WorldOrder

    if not name.endswith(".py") and name not in (known := names("studies")):
        unknown("study", name, known, "or give the path of a .py file.")
    if base is not None or aligned is not None:
        unused({"--only": only, "--part": part != "all", "--bases": bases != 2})
        return real(
            RealStudyRequest(name, base, aligned, data, scale, harmful, alpha, prompts, bf16, trust_remote_code, keep_weights),
            flops,
            runs,
            dry_run,
            as_json,
        )
    if data is not None or prompts is not None:
        raise TiterError("--data and --prompts belong to real models", next_step="add --base (and --aligned), or leave them out.")
    whole = {"--part": part != "all"} if name != "huang2024" else {}
    unused(
        {
            "--harmful": harmful,
            "--alpha": alpha,
            "--bf16": bf16,
            "--trust-remote-code": trust_remote_code,
            "--keep-weights": keep_weights,
            **whole,
        }
    )
    return world(WorldOrder(name, scale, range(seeds), part, only, bases), flops, runs, dry_run, as_json)

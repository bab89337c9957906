"""The command line. Exit status: 0 done, 1 failed, 2 wrong input. Imports of torch wait until a command needs it. L7."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from titer import __version__
from titer.core.errors import TiterError, visible

# Before torch is imported: OpenMP's threads spin a little, then sleep. Left to spin for ever (the default) they stall each
# other when another program uses a core: a nano step took 1.5 s instead of 0.2 to 0.6 (docs/log.md). On quiet cores it costs little.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Measure whether a language model's safety alignment holds, and see why it held or broke.",
)
models_app = typer.Typer(no_args_is_help=True, help="Models that Titer can fetch by name.")
app.add_typer(models_app, name="models")

Runs = Annotated[Path, typer.Option("--runs", help="Folder of runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Say what would run and what stands already; run nothing.")]
Data = Annotated[Path | None, typer.Option("--data", help="CSV, JSON or JSONL of labelled prompts.")]
Prompts = Annotated[int | None, typer.Option("--prompts", min=1, help="Use the first N prompts of each class.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="A setting as NAME=VALUE; may be given again.")]
HERE = Path("runs")
STUDIES = ("jain2024",)
INTERRUPTED = 130  # what typer makes of Ctrl-C


@app.command()
def demo(runs: Runs = HERE, seed: Annotated[int, typer.Option(min=0)] = 0, dry_run: Dry = False, as_json: AsJson = False) -> None:
    """The whole life of an alignment on the synthetic world, in minutes on a laptop."""
    from titer.core.run import Store
    from titer.recipes.demo import NANO, demo_recipe
    from titer.studies.demo import run_demo
    from titer.terminal import Terminal
    from titer.workbench import plan

    with Terminal() as terminal:
        store = Store(runs, terminal.tell)
        if dry_run:
            rows = [{"model": n, "key": k, "steps": s, "stands": done} for n, k, s, done in plan(demo_recipe(NANO, seed), store)]
            lines = [f"{r['model']:12} {r['key']}  {r['steps']:4} steps  {'stands' if r['stands'] else 'to run'}" for r in rows]
            return _print(as_json, {"plan": rows}, "\n".join([*lines, "about 5 minutes on two cores when nothing stands; no download"]))
        page, answer = run_demo(store, terminal, seed)
    _print(as_json, {"answer": answer, "report": str(page), "claims": str(page.with_name("claims.json"))}, f"{answer}\nReport: {page}")


@app.command()
def evaluate(
    model: str,
    data: Data = None,
    judge: Annotated[str, typer.Option(help="Judge: a name (titer list judges) or a .py file.")] = "refusal",
    attack: Annotated[str | None, typer.Option(help="Attack: a name (titer list attacks) or a .py file.")] = None,
    prompts: Prompts = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    settings: Set = None,
    runs: Runs = HERE,
    dry_run: Dry = False,
    as_json: AsJson = False,
) -> None:
    """Refusal of unsafe prompts, over-refusal of safe ones, degenerate answers."""
    from titer.core.config import build
    from titer.core.run import Store
    from titer.data.sources import read_text
    from titer.models.fetch import resolve

    text = read_text(_needed(data))
    checkpoint = resolve(model)
    from titer.models.lm import Decoding
    from titer.studies import evaluation
    from titer.terminal import Terminal
    from titer.workbench import Model, Workbench

    chosen_judge, chosen_attack = _judge(judge), _attack(attack, settings)
    decoding = build(Decoding, {"max_new_tokens": max_new_tokens, "temperature": temperature}, "decoding")
    if dry_run:
        asked = {kind: len(attempts) for kind, attempts in evaluation.sets_of(text, prompts, chosen_attack).items()}
        cost = f"at most {sum(asked.values()) * max_new_tokens} new tokens"
        return _print(as_json, {"model": checkpoint.key, "prompts": asked, "cost": cost}, f"{asked}: {cost}")
    with Terminal() as terminal:
        bench = Workbench(Store(runs, terminal.tell), terminal)
        subject = Model(checkpoint.label, checkpoint.key, checkpoint)
        verdicts, rates = evaluation.evaluate_model(bench, subject, text, chosen_judge, decoding, prompts, chosen_attack)
        how = {"judge": judge, "attack": attack or "none", **decoding.model_dump()}
        folder = runs / f"evaluate-{_slug(subject.name)}-{_slug(Path(text.name).stem)}"
        page, answer = evaluation.evaluation_report(subject, text, verdicts, rates, _command(), folder, how)
    result = {"answer": answer, "report": str(page), "rates": json.loads(rates.to_json(orient="records"))}
    _print(as_json, result, f"{evaluation.refusal_line(rates)}\n{answer}\nReport: {page}")


@app.command()
def audit(
    models: Annotated[list[str], typer.Argument(help="[BASE] ALIGNED [TUNED]: one to three models.")],
    data: Data = None,
    prompts: Prompts = None,
    runs: Runs = HERE,
    dry_run: Dry = False,
    as_json: AsJson = False,
) -> None:
    """Where a model tells safe from unsafe prompts, and where tuning changed it."""
    from titer.core.run import Store
    from titer.data.sources import read_text
    from titer.models.fetch import resolve

    if len(models) > 3:
        raise TiterError(f"{len(models)} models", expected="one to three: [BASE] ALIGNED [TUNED]")
    text = read_text(_needed(data))
    checkpoints = [resolve(name) for name in models]
    from titer.studies.audit import audit_report, subjects
    from titer.terminal import Terminal
    from titer.workbench import Workbench

    if dry_run:
        counts = {kind: len(text.of_class(kind == "unsafe", prompts)) for kind in ("safe", "unsafe")}
        return _print(as_json, {"models": [c.key for c in checkpoints], "prompts": counts}, f"{counts}, one forward pass each a model")
    with Terminal() as terminal:
        bench = Workbench(Store(runs, terminal.tell), terminal)
        audited = subjects(checkpoints)
        folder = runs / f"audit-{_slug(audited[-1].name)}"
        page, answer = audit_report(bench, audited, text, prompts, _command(), folder)
    _print(as_json, {"answer": answer, "report": str(page)}, f"{answer}\nReport: {page}")


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="The study: jain2024.")],
    scale: Annotated[str, typer.Option(help="nano, cpu, small or paper.")] = "nano",
    seeds: Annotated[int, typer.Option(min=1, help="How many worlds: seeds 0, 1, ...")] = 3,
    only: Annotated[str, typer.Option(help="Parts, with commas: fig3,soft ... Default: all.")] = "",
    base: Annotated[str | None, typer.Option(help="A base model; with --aligned the study runs on this pair.")] = None,
    aligned: Annotated[str | None, typer.Option(help="Its safety-tuned relative.")] = None,
    data: Data = None,
    prompts: Prompts = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Load a pair of models in bfloat16, half the memory.")] = False,
    flops: Annotated[float | None, typer.Option(help="FLOP/s of your device, to price a --dry-run in hours.")] = None,
    runs: Runs = HERE,
    dry_run: Dry = False,
    as_json: AsJson = False,
) -> None:
    """Reproduce a paper's figures and tables, its claims against controls; or its probes on two checkpoints."""
    from titer.core.errors import unknown

    if name not in STUDIES:
        unknown("study", name, STUDIES)
    if base is not None or aligned is not None:
        return _pair((base, aligned), data, prompts, bf16, runs, dry_run, as_json)
    if data is not None or prompts is not None:
        raise TiterError("--data and --prompts belong to a pair of models", next_step="add --base and --aligned, or leave them out.")
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
            return _print(as_json, {"plan": json.loads(table.to_json(orient="records"))}, cost.summary(table, flops))
        page, answer, _ = run_jain(store, terminal, chosen, range(seeds), parts, _command())
    _print(as_json, {"answer": answer, "report": str(page), "claims": str(page.with_name("claims.json"))}, f"{answer}\nReport: {page}")


def _pair(
    names: tuple[str | None, str | None], data: Path | None, prompts: int | None, bf16: bool, runs: Path, dry: bool, as_json: bool
) -> None:
    from titer.core.run import Store
    from titer.data.sources import read_text
    from titer.models.fetch import resolve

    given = [name for name in names if name is not None]
    if len(given) < 2:
        raise TiterError("one model of a pair", expected="both --base and --aligned")
    text = read_text(_needed(data))
    pair = [resolve(name) for name in given]
    from titer.studies.jain2024.pair import pair_cost, pair_report
    from titer.terminal import Terminal
    from titer.workbench import Workbench

    if dry:
        found = pair_cost(pair[0], pair[1], text, prompts)
        return _print(as_json, found, "\n".join(f"{key}: {value}" for key, value in found.items()))
    with Terminal() as terminal:
        bench = Workbench(Store(runs, terminal.tell), terminal, dtype="bfloat16" if bf16 else "float32")
        page, answer = pair_report(bench, pair[0], pair[1], text, prompts, _command(), runs / f"jain2024-{_slug(pair[1].label)}")
    _print(as_json, {"answer": answer, "report": str(page)}, f"{answer}\nReport: {page}")


@app.command()
def align(
    model: str,
    data: Data = None,
    method: Annotated[str, typer.Option(help="Method: a name (titer list methods) or a .py file.")] = "sft",
    settings: Set = None,
    steps: Annotated[int, typer.Option(min=1)] = 100,
    batch: Annotated[int, typer.Option(min=1)] = 8,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-5,
    lora: Annotated[int, typer.Option(min=0, help="LoRA rank; 0 trains every weight.")] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    runs: Runs = HERE,
    dry_run: Dry = False,
    as_json: AsJson = False,
) -> None:
    """Train a model with a method on prompts and answers (columns prompt, comply or refuse)."""
    from titer.core.run import Store
    from titer.data.formats import ANSWERS
    from titer.data.sources import read_text
    from titer.models.fetch import resolve

    text = read_text(_needed(data, ANSWERS), labelled=False)
    checkpoint = resolve(model)
    from titer.studies.align import align_stage, check_window, stopped
    from titer.terminal import Terminal
    from titer.workbench import Model, Workbench

    stage = align_stage(text, method, settings or [], steps, batch, rate, lora, seed)
    check_window(text, checkpoint)
    with Terminal() as terminal:
        store = Store(runs, terminal.tell)
        key = stage.key(checkpoint.key, {})
        if dry_run:
            stands = store.has("stages", key)
            return _print(as_json, {"key": key, "stands": stands}, f"{key}: {steps} steps of {batch}, {'stands' if stands else 'to run'}")
        made = Workbench(store, terminal).model(stage, Model(checkpoint.label, checkpoint.key, checkpoint), f"{method} of {model}")
    early = stopped(made)
    note = f"\nTraining stopped early: {early}; this is the model as it was then." if early else ""
    _print(as_json, {"model": str(made.checkpoint.path), "stopped": early}, f"Model: {made.checkpoint.path}{note}")


@models_app.command("get")
def models_get(name: str, as_json: AsJson = False) -> None:
    """Fetch a named model once: download, check its sha256, convert to a safetensors folder in the cache."""
    from titer.models.fetch import get
    from titer.terminal import Terminal

    with Terminal() as terminal:
        found = get(name, terminal.tell)
    _print(as_json, {"model": str(found.path)}, f"{name}: {found.path}")


@app.command("list")
def list_(kind: Annotated[str | None, typer.Argument(help="methods, attacks, judges or probes")] = None, as_json: AsJson = False) -> None:
    """What can be named on the command line."""
    from titer.core.errors import unknown
    from titer.core.plugins import names

    kinds = ("methods", "attacks", "judges", "probes")
    if kind is not None and kind not in kinds:
        unknown("kind", kind, kinds)
    found = {k: names(k) for k in ((kind,) if kind else kinds)}
    lines = [line for k, rows in found.items() for line in (k, *(f"  {name:12} {text}" for name, text in rows.items()))]
    _print(as_json, found, "\n".join(lines))


@app.command()
def show(name: str) -> None:
    """The documentation and settings of a method, attack, judge or probe."""
    from titer.core.errors import unknown
    from titer.core.plugins import describe, names

    kinds = ("methods", "attacks", "judges", "probes")
    where = next((k for k in kinds if name in names(k)), None)
    if where is None:
        unknown("name", name, [n for k in kinds for n in names(k)])
    typer.echo(describe(where, name))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Versions, device, memory and cache of this machine, for a bug report."""
    from titer.core.config import environment
    from titer.models.fetch import NAMED, cache

    import torch

    found: dict[str, Any] = {
        **environment(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cache writable": os.access(cache() if cache().exists() else cache().parent, os.W_OK),
        "models by name": ", ".join(NAMED),
    }
    _print(as_json, found, "\n".join(f"{key:16} {value}" for key, value in found.items()))


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _needed(data: Path | None, form: str = "") -> Path:
    from titer.data.formats import FORMAT

    if data is None:
        raise TiterError("no --data was given", expected=form or FORMAT, next_step="add --data FILE.")
    return data


def _judge(name: str) -> Any:
    from titer.core.config import build
    from titer.core.plugins import plugin
    from titer.judges.base import Judge

    return build(plugin("judges", name, Judge), {}, f"judge {name}")  # type: ignore[type-abstract]


def _attack(name: str | None, settings: list[str] | None) -> tuple[str, Any] | None:
    from titer.attacks.base import Attack
    from titer.core.config import build, parse_settings
    from titer.core.plugins import plugin

    values = parse_settings(settings or [])
    if name is None:
        if values:
            raise TiterError("--set was given without --attack", next_step="name the attack that the setting is for.")
        return None
    return Path(name).stem, build(plugin("attacks", name, Attack), values, f"attack {name}")  # type: ignore[type-abstract]


def _print(as_json: bool, value: Any, text: str) -> None:
    typer.echo(json.dumps(value, indent=1, default=str) if as_json else _plain(text))


def _plain(text: str) -> str:
    """Text for the terminal: its lines stay, other control codes are spelt out."""
    return "\n".join(visible(line, 10_000) for line in text.split("\n"))


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name) or "model"


def _command() -> str:
    """The command as given, for the report."""
    return "titer " + shlex.join(visible(argument, 200) for argument in sys.argv[1:])


def main() -> None:
    """Run the command line; every foreseen trouble is one clear message."""
    try:
        app()
    except TiterError as error:
        _fail(str(error), error.status)
    except OSError as error:
        _fail(_os_message(error), 2)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            _fail("stopped; run the same command again to go on.", 1)
        raise
    except Exception as error:
        if (code := _file_trouble(error)) is None:
            raise
        _fail(_os_message(OSError(code, os.strerror(code))), 2)


def _file_trouble(error: Exception) -> int | None:
    """The system's error code where safetensors, which raises its own class, could not write or read a file."""
    found = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(found[1]) if found else None


def _os_message(error: OSError) -> str:
    what = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "the folder is read-only",
        errno.EACCES: "permission denied",
        errno.EPERM: "permission denied",
    }.get(error.errno or 0, error.strerror or str(error))
    where = f" ({visible(str(error.filename), 160)})" if error.filename else ""
    next_step = "make room or give another folder with --runs, then run the same command again."
    return f"{what}{where}. What was finished before is kept. Next: {next_step}"


def _fail(message: str, status: int) -> None:
    typer.echo(f"titer: {_plain(message)}", err=True)
    sys.exit(status)

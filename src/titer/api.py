"""Titer from Python: the commands that make and measure models as functions; the command line prints what they return. L7.

    from titer import api
    found = api.audit("aligned", "tuned", data="prompts.csv", prompts=100)
    print(found.answer, found.page)

MODEL is a folder, BASE+ADAPTER, a fetched name or a hub id. `runs` is the folder of runs: what stands there is not made again.
`progress`: progress on standard error. `trust_remote_code` runs the code of the models' authors on this machine, where transformers
does not know the architecture; a judge's is refused even then. Errors: TiterError, with what was given, what was expected and what
to do next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from titer.core.claims import Claim, read_claims
from titer.core.config import as_settings
from titer.core.errors import unknown
from titer.core.run import Store, slug
from titer.models.fast import engine_told, serving_of
from titer.recipes import huang2024, jain2024, qi2024
from titer.studies import measuring
from titer.studies.ahead import Silent
from titer.studies.audit.ask import Order, Prepared, prepared
from titer.studies.audit.report import audit_report
from titer.studies.audit.study import measured
from titer.studies.demo import run_demo
from titer.studies.finetune import Shares
from titer.studies.huang2024.parts import parts_of as huang_parts
from titer.studies.huang2024.study import run_huang
from titer.studies.jain2024.study import parts_of as jain_parts
from titer.studies.jain2024.study import run_jain
from titer.studies.judging import Review
from titer.studies.measuring import Evaluated
from titer.studies.qi2024.study import run_qi
from titer.studies.training import AlignOrder, FinetuneOrder, Planned, Trained, check_free, planned_alignment, planned_finetuning, trained
from titer.studies.tuning import How
from titer.terminal import Terminal
from titer.workbench import Reading, Reporter, Workbench

Place = str | Path
Settings = Mapping[str, object]
RUNS = Path("runs")
STUDIES = ("jain2024", "huang2024", "qi2024")
CALLED = "from Python: titer.api.{}"


@dataclass(frozen=True)
class Audited:
    """An audit's page, its answer in a sentence or two, every table by name (`verdicts`, `rates`, `shifts`, `flips`, ...).

    `beside`: what people and a second judge say of the judge, as of `evaluate`.
    """

    page: Path
    answer: str
    tables: Mapping[str, pd.DataFrame]
    beside: Review


def audit(
    *models: str,
    data: Place,
    prompts: int | None = None,
    max_new_tokens: int = 48,
    judge: str = "refusal",
    judge_set: Settings | None = None,
    second_judge: str | None = None,
    second_judge_set: Settings | None = None,
    labelled: Place | None = None,
    capability: Sequence[str] = (),
    contexts: bool = False,
    trained: Sequence[str] = (),
    strict: bool = False,
    control: str | None = None,
    landscape: bool = False,
    landscape_set: Settings | None = None,
    engine: str = "transformers",
    bf16: bool = False,
    runs: Place = RUNS,
    progress: bool = True,
    trust_remote_code: bool = False,
) -> Audited:
    """What tuning did to an alignment: [BASE,] ALIGNED[, TUNED] on labelled prompts. As `titer audit`."""
    order = Order(
        models=models,
        data=data,
        prompts=prompts,
        max_new_tokens=max_new_tokens,
        judge=judge,
        judge_set=as_settings(judge_set),
        second_judge=second_judge,
        second_judge_set=as_settings(second_judge_set),
        labelled=labelled,
        capability=capability,
        contexts=contexts,
        trained=trained,
        strict=strict,
        control=control,
        landscape=landscape,
        trust_remote_code=trust_remote_code,
        landscape_set=as_settings(landscape_set),
    )
    ready, serving = prepared(order), serving_of(engine)
    with _reporter(progress) as reporter:
        return audited(order, ready, Path(runs), reporter, CALLED.format("audit"), Reading(serving, bf16))


def audited(order: Order, ready: Prepared, runs: Path, reporter: Reporter, command: str, reading: Reading) -> Audited:
    """The audit that was prepared, measured and reported; `command` stands in the report as what reproduces it."""
    found, asked = ready.found, ready.question
    findings = measured(reading.bench(Store(runs, reporter.tell), reporter), found, asked, ready.settings)
    folder = runs / f"audit-{slug((found.last.after if found.last else found.models[0]).name)}"
    how: dict[str, object] = {
        "judge": f"{order.judge} {asked.judge.model_dump_json()}",
        **asked.judges.told,
        **engine_told(reading.serving),
        **({"precision": "bfloat16"} if reading.bf16 else {}),
    }
    page, answer = audit_report(found, asked, findings, ready.text, how, command, folder, ready.left_out)
    return Audited(page, answer, {name: table for name, table in vars(findings).items() if name != "beside"}, findings.beside)


def evaluate(
    model: str,
    data: Place | None = None,
    canary: Place | None = None,
    judge: str = "refusal",
    judge_set: Settings | None = None,
    second_judge: str | None = None,
    second_judge_set: Settings | None = None,
    labelled: Place | None = None,
    attack: str | None = None,
    attack_set: Settings | None = None,
    prompts: int | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    engine: str = "transformers",
    bf16: bool = False,
    runs: Place = RUNS,
    progress: bool = True,
    trust_remote_code: bool = False,
) -> Evaluated:
    """A model's answers to labelled prompts, judged. As `titer evaluate`."""
    order = measuring.Order(
        model=model,
        data=data,
        canary=canary,
        judge=judge,
        judge_set=as_settings(judge_set),
        second_judge=second_judge,
        second_judge_set=as_settings(second_judge_set),
        labelled=labelled,
        attack=attack,
        attack_set=as_settings(attack_set),
        prompts=prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        trust_remote_code=trust_remote_code,
    )
    ready, serving = measuring.prepared(order), serving_of(engine)
    with _reporter(progress) as reporter:
        bench = Reading(serving, bf16).bench(Store(Path(runs), reporter.tell), reporter)
        return measuring.evaluated(bench, order, ready, CALLED.format("evaluate"))


def align(
    model: str,
    data: Place | None = None,
    method: str = "sft",
    settings: Settings | None = None,
    streams: Mapping[str, str] | None = None,
    reads: Mapping[str, str] | None = None,
    canary: Place | None = None,
    canaries: int | None = None,
    steps: int = 100,
    batch: int = 8,
    rate: float = 2e-5,
    lora: int = 0,
    alpha: int | None = None,
    dropout: float | None = None,
    continued: bool = False,
    longest: int | None = None,
    to: Place | None = None,
    seed: int = 0,
    runs: Place = RUNS,
    progress: bool = True,
    trust_remote_code: bool = False,
) -> Trained:
    """Train a model with a method on prompts and answers. `streams`: name -> file, `reads`: role -> model. As `titer align`."""
    how = How(method, as_settings(settings), _pairs(streams), batch, rate, "cosine", lora, alpha, dropout, continued, seed)
    plan = planned_alignment(AlignOrder(model, how, data, canary, canaries, steps, _pairs(reads), longest, trust_remote_code))
    return _trained(plan, to, runs, progress)


def finetune(
    model: str,
    data: Place | None = None,
    harmful: Place | None = None,
    canary: Place | None = None,
    ratio: float | None = None,
    examples: int = 1000,
    safety: Place | None = None,
    safety_examples: int | None = None,
    method: str = "sft",
    settings: Settings | None = None,
    streams: Mapping[str, str] | None = None,
    reads: Mapping[str, str] | None = None,
    epochs: int = 20,
    batch: int = 5,
    rate: float = 1e-5,
    schedule: str = "cosine",
    lora: int = 0,
    alpha: int | None = None,
    dropout: float | None = None,
    continued: bool = False,
    longest: int | None = None,
    keep: Sequence[int] = (),
    to: Place | None = None,
    seed: int = 0,
    runs: Place = RUNS,
    progress: bool = True,
    trust_remote_code: bool = False,
) -> Trained:
    """Fine-tune a model as its user would, a share of the examples being harmful requests answered. As `titer finetune`."""
    how = How(method, as_settings(settings), _pairs(streams), batch, rate, schedule, lora, alpha, dropout, continued, seed)
    files = {"benign": data, "harmful": harmful, "safety": safety}
    shares = Shares(examples, ratio, safety_examples)
    kept = ",".join(map(str, keep))
    order = FinetuneOrder(model, how, files, canary, shares, epochs, kept, _pairs(reads), longest, trust_remote_code)
    return _trained(planned_finetuning(order), to, runs, progress)


@dataclass(frozen=True)
class Studied:
    """A study's page and its answer; `claims` as in claims.json."""

    page: Path
    answer: str
    claims: tuple[Claim, ...]


def demo(seed: int = 0, runs: Place = RUNS, progress: bool = True) -> Studied:
    """The whole life of an alignment on the synthetic world. As `titer demo`."""
    with _reporter(progress) as reporter:
        return _studied(*run_demo(Store(Path(runs), reporter.tell), reporter, seed))


def study(
    name: str, scale: str = "nano", seeds: int = 3, part: str = "all", only: str = "", runs: Place = RUNS, progress: bool = True
) -> Studied:
    """A paper's study on the synthetic world: jain2024, huang2024 or qi2024, on seeds 0, 1, ... As `titer study`."""
    with _reporter(progress) as reporter:
        return studied(name, scale, range(seeds), (part, only), Store(Path(runs), reporter.tell), reporter, CALLED.format("study"))


def studied(name: str, scale: str, seeds: range, parts: tuple[str, str], store: Store, reporter: Reporter, command: str) -> Studied:
    """A study by its name, run or finished; `parts` are --part and --only. Errors: an unknown study, scale or part."""
    if name == "jain2024":
        page, answer, _ = run_jain(store, reporter, jain2024.scale_of(scale), seeds, jain_parts(parts[1]), command)
    elif name == "huang2024":
        found = run_huang(store, reporter, huang2024.scale_of(scale), seeds, huang_parts(*parts), command)
        page, answer = found.page, found.answer
    elif name == "qi2024":
        page, answer = run_qi(store, reporter, qi2024.scale_of(scale), seeds, command)
    else:
        unknown("study", name, STUDIES)
    return _studied(page, answer)


def _studied(page: Path, answer: str) -> Studied:
    return Studied(page, answer, read_claims(page.with_name("claims.json")))


def _trained(plan: Planned, to: Place | None, runs: Place, progress: bool) -> Trained:
    place = None if to is None else Path(to)
    check_free(place, plan, Path(runs))
    with _reporter(progress) as reporter:
        return trained(Workbench(Store(Path(runs), reporter.tell), reporter), plan, place)


def _pairs(given: Mapping[str, str] | None) -> tuple[str, ...]:
    """As the command line words them: NAME=VALUE."""
    return tuple(f"{name}={value}" for name, value in (given or {}).items())


@contextmanager
def _reporter(progress: bool) -> Iterator[Reporter]:
    if not progress:
        yield Silent()
        return
    with Terminal() as terminal:
        yield terminal

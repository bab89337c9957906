"""Write judged answers as a log of inspect_ai (.eval or .json), for its viewer, its data frames and `read_eval_log`. L8.

    found = api.evaluate("tuned", data="prompts.csv")
    write_log(found.verdicts, "tuned.eval", judge="refusal")
    write_log(Path("runs/verdicts/KEY"), "tuned.eval", model="tuned")

Each row becomes one sample: the prompt (a conversation as its turns), the answer as the judge read it, including a prefilled
beginning, and the wanted outcome as the target: "refused" for an unsafe prompt, "complied" for any other. A score's value is the
judge's outcome, its explanation is the judge's reason, and its metadata hold the degree of compliance. An answer that could not be
judged has a score without a value (inspect_ai's "unscored"), and no outcome's rate counts it. The metrics are the rates of `evaluate.rates`
by kind and outcome, each with its Wilson interval, count and n. The ids are made from the content, so equal answers with the same
`created` give the same log.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from titer import __version__
from titer.core.config import digest
from titer.core.errors import TiterError, visible
from titer.core.run import object_in, slug
from titer.core.tables import read_table
from titer.data.turns import turns
from titer.evaluate import asked_of, rates
from titer.integrations.inspect_ai import NAME, content, must_be_installed, settings_of
from titer.judges.base import UNJUDGED
from titer.models.lm import Completion, Decoding

FORMATS = (".eval", ".json")
TABLES = ("verdicts.jsonl", "table.jsonl")  # the name in a study's folder, and in an artefact of the run store
COLUMNS = ("kind", "harmful", "prompt", "prefix", "comply", "refuse", "completion", "ended", "tokens", "outcome", "score", "reason")
Told = Mapping[str, Any]


def write_log(
    verdicts: pd.DataFrame | str | Path,
    path: str | Path,
    *,
    model: str = "",
    judge: str = "",
    task: str = "titer",
    decoding: Decoding | None = None,
    created: datetime | None = None,
    about: Told | None = None,
) -> Path:
    """Writes the judged answers of one model as a log; returns the file's path.

    `verdicts`: a table of `evaluate.judged` (if it has a column `model`, the model's name is taken from it), its .jsonl file, or the
    folder that holds one; for a folder `runs/verdicts/KEY`, judge, decoding and the model's key are read from the files beside it.
    `created`: when the answers were judged; by default the file's time, or now. `about`: further metadata of the log.
    Errors: inspect_ai is not installed; no table of verdicts; answers of several models; a path that ends neither in .eval nor in .json.
    """
    to = check(path)
    from inspect_ai.log import write_eval_log  # noqa: PLC0415  an extra

    table, stored = (verdicts, {}) if isinstance(verdicts, pd.DataFrame) else _stored(Path(verdicts))
    if missing := [name for name in COLUMNS if name not in table]:
        raise TiterError(f"no verdicts: the table lacks {', '.join(missing)}", expected="a table of titer.evaluate.judged")
    spoken = model or _model(table) or stored.get("model", "")
    if decoding is None:
        decoding = stored.get("decoding")
    metadata = {**stored.get("about", {}), **(about or {})}
    when = created or stored.get("created") or datetime.now(UTC)
    log = _log(table, f"{NAME}/{spoken or 'model'}", judge or stored.get("judge", "judge"), task, decoding, when, metadata)
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = to.with_name(f".{to.name}.tmp")
    write_eval_log(log, str(temporary), format=to.suffix[1:])  # type: ignore[arg-type]
    os.replace(temporary, to)
    return to


def write_logs(verdicts: pd.DataFrame, folder: str | Path, *, judge: str = "") -> list[Path]:
    """Writes one log for each model in the table, named after it, with its answers to every prompt set. Errors: as `write_log`."""
    return [write_log(mine, Path(folder) / f"{slug(str(name))}.eval", judge=judge) for name, mine in verdicts.groupby("model", sort=False)]


def check(path: str | Path) -> Path:
    """Checks a log's path before anything is answered. Errors: inspect_ai is not installed; it ends neither in .eval nor in .json."""
    must_be_installed()
    to = Path(path)
    if to.suffix not in FORMATS:
        raise TiterError(f"a log in {visible(to.name, 80)}", expected=f"a name that ends in {' or '.join(FORMATS)}")
    return to


def _stored(place: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Reads a table of verdicts, and what the run store says about it: model (its key), judge, decoding, created, about."""
    file = next((place / name for name in TABLES if (place / name).is_file()), place)
    if not file.is_file():
        raise TiterError(f"no verdicts at {visible(str(place), 120)!r}", expected=f"a folder with {' or '.join(TABLES)}, or such a file")
    try:
        table = read_table(file)
    except (ValueError, AttributeError) as error:
        raise TiterError(f"{visible(str(file), 120)} is no table", expected="one JSON object a line") from error
    told: dict[str, Any] = {"created": datetime.fromtimestamp(file.stat().st_mtime, UTC)}
    inputs = object_in(file.parent / "inputs.json")
    if isinstance(judged := inputs.get("judge"), list) and len(judged) > 2:
        told |= {"judge": judged[0], "about": {"judge version": judged[1], "judge settings": judged[2]}}
    samples = object_in(file.resolve().parents[2] / "samples" / str(inputs["samples"]) / "inputs.json") if "samples" in inputs else {}
    if samples.keys() >= {"model", "decoding"}:
        told |= {"model": samples["model"], "decoding": Decoding(**samples["decoding"])}
        told["about"] = {**told.get("about", {}), "model key": samples["model"]}
    return table, told


def _model(table: pd.DataFrame) -> str:
    names = list(dict.fromkeys(table["model"])) if "model" in table else []
    if len(names) > 1:
        raise TiterError(
            f"answers of {len(names)} models: {visible(', '.join(map(str, names)), 120)}",
            next_step="write a log for each: verdicts[verdicts.model == NAME].",
        )
    return str(names[0]) if names else ""


def _log(table: pd.DataFrame, model: str, judge: str, task: str, decoding: Decoding | None, when: datetime, about: Told) -> Any:
    """Builds the whole log."""
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalPlan, EvalPlanStep, EvalSpec, EvalStats  # noqa: PLC0415  an extra
    from inspect_ai.model import GenerateConfig, ModelUsage  # noqa: PLC0415

    rows, read, ids = table.to_dict("records"), [completion for _, completion in asked_of(table)], list(range(1, len(table) + 1))
    date = when.isoformat()
    key = digest([model, judge, date, table.to_json(orient="values")])
    config, tokens = GenerateConfig(**(settings_of(decoding) if decoding else {})), int(table.tokens.sum())
    return EvalLog(
        status="success",
        eval=EvalSpec(
            eval_id=digest(["eval", key], 22),
            run_id=digest(["run", key], 22),
            task_id=digest(["task", key], 22),
            created=date,
            task=task,
            dataset=EvalDataset(name=task, samples=len(table), sample_ids=ids),
            model=model,
            model_generate_config=config,
            config=EvalConfig(),
            packages={"titer": __version__, "inspect_ai": version("inspect_ai")},
            metadata=dict(about) or None,
        ),
        plan=EvalPlan(steps=[EvalPlanStep(solver="generate")], config=config),
        results=_results(table, judge),
        stats=EvalStats(started_at=date, completed_at=date, model_usage={model: ModelUsage(output_tokens=tokens, total_tokens=tokens)}),
        samples=[_sample(i, row, one, model, judge) for i, row, one in zip(ids, rows, read, strict=True)],
    )


def _sample(number: int, row: Mapping[Any, Any], read: Completion, model: str, judge: str) -> Any:
    """Builds the sample of one row; `read` is the answer as the judge read it."""
    from inspect_ai.log import EvalSample  # noqa: PLC0415  an extra
    from inspect_ai.model import (  # noqa: PLC0415
        ChatCompletionChoice,
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageUser,
        ModelOutput,
        ModelUsage,
    )
    from inspect_ai.scorer import Score  # noqa: PLC0415

    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    said = [kinds[turn.role](id=f"{number}-{i}", content=turn.content) for i, turn in enumerate(turns(row["prompt"]))]
    answer = ChatMessageAssistant(id=f"{number}-answer", content=content(read), model=model, source="generate")
    usage = ModelUsage(output_tokens=read.tokens, total_tokens=read.tokens)
    score = (
        Score.unscored(reason="scoring_failed", explanation=str(row["reason"]))
        if row["outcome"] in UNJUDGED
        else Score(value=row["outcome"], explanation=str(row["reason"]), metadata={"compliance": float(row["score"])})
    )
    kept = {"kind": row["kind"], "harmful": bool(row["harmful"]), "prefix": row["prefix"], "comply": row["comply"], "refuse": row["refuse"]}
    return EvalSample(
        id=number,
        epoch=1,
        input=row["prompt"] if len(said) == 1 else said,
        target="refused" if row["harmful"] else "complied",
        messages=[*said, answer],
        output=ModelOutput(
            model=model,
            choices=[ChatCompletionChoice(message=answer, stop_reason="stop" if read.ended else "max_tokens")],
            usage=usage,
        ),
        scores={judge: score},
        metadata={name: value for name, value in kept.items() if isinstance(value, str | bool) and value != ""},
        model_usage={model: usage},
        uuid=digest([number, row["prompt"], read.text, model], 22),
    )


def _results(table: pd.DataFrame, judge: str) -> Any:
    """Builds the metrics: the rates by kind and outcome; a rate over no answers (n = 0) is left out."""
    from inspect_ai.log import EvalMetric, EvalResults, EvalScore  # noqa: PLC0415  an extra

    metrics = {
        f"{row.kind} {row.outcome}": EvalMetric(
            name=row.outcome,
            group=row.kind,
            value=float(row.rate),
            metadata={"low": float(row.low), "high": float(row.high), "count": int(row.count), "n": int(row.n)},
        )
        for row in rates(table).itertuples(index=False)
        if row.n
    }
    lost = int(table.outcome.isin(UNJUDGED).sum())
    score = EvalScore(name=judge, scorer=judge, scored_samples=len(table) - lost, unscored_samples=lost, metrics=metrics)
    return EvalResults(total_samples=len(table), completed_samples=len(table), scores=[score])

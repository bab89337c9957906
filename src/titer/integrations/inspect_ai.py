"""Run inspect_ai's tasks on a Titer model, from Python or from inspect_ai's own command line. L8.

    lm = load(resolve("smollm2-135m"))
    logs = evaluate(lm, "task.py", "logs", limit=20)
    print(metrics(logs))

Source: the UK AI Security Institute's Inspect (inspect.aisi.org.uk). Solvers, scorers, metrics and logs are its own. Answers come from
`LM.generate`, so they use the same chat template, end tokens and greedy decoding (temperature 0 unless a task or `decoding` says
otherwise) as every other measurement in Titer. Requests that wait at the same time are answered in one batch. A task that needs what
`LM.generate` cannot do (tools, images, top-p, penalties, log-probabilities) is refused with an error. Sampled answers depend on the
seed and on which requests share a batch, so a second run may give other answers.
With the package installed, `inspect eval task.py --model titer/MODEL` works too: MODEL is a folder, BASE+ADAPTER, a fetched name or a
hub id, `-M dtype=bfloat16` and `-M device=cpu` go to `models.lm.load`, `-M trust_remote_code=true` to `models.fetch.resolve`.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from titer.core.errors import TiterError, visible
from titer.data.encode import check_length, token_ids
from titer.data.turns import Turn, written
from titer.models.fetch import resolve
from titer.models.lm import LM, Completion, Decoding, load

INSTALL = "pip install 'titer[inspect]'  (or: pip install inspect-ai)"
NAME = "titer"
BATCH = 32
TOKENS = 256  # longest answer, if neither the task nor the caller sets it
QUIET = 0.05  # seconds without a new request after which the waiting requests are answered
NEUTRAL: dict[str, Any] = {  # settings that LM.generate does not have, with the values that change nothing
    "top_p": 1.0,
    "top_k": None,
    "best_of": 1,
    "num_choices": 1,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "logit_bias": None,
    "logprobs": False,
    "top_logprobs": None,
    "prompt_logprobs": None,
    "response_schema": None,
    "modalities": None,
}


def evaluate(
    lm: LM, tasks: Any, logs: str | Path, *, limit: int | None = None, decoding: Decoding | None = None, batch: int = BATCH
) -> list[Any]:
    """Runs the tasks on the model; returns inspect_ai's EvalLog of each task, which is also written into the folder `logs`.

    `tasks`: a Task, a function that makes one, a .py file (FILE@TASK for one of several), a registered name, or a list of them;
    `limit`: use only this many samples, from the first on; `decoding`: replaces the tasks' own temperature, seed and maximum answer
    length. A sample that fails is an error in its log. Errors: inspect_ai is not installed; no such file; inspect_ai cannot start the task.
    """
    must_be_installed()
    from inspect_ai import eval as run  # noqa: PLC0415  an extra
    from inspect_ai.model import GenerateConfig, Model  # noqa: PLC0415

    wanted = [_spec(task) for task in tasks] if isinstance(tasks, list | tuple) else _spec(tasks)
    how: dict[str, Any] = settings_of(decoding) if decoding else {}
    model = Model(provider()(model_name=lm.label, lm=lm), GenerateConfig())
    try:
        found: list[Any] = run(
            wanted,
            model=model,
            limit=limit,
            log_dir=str(logs),
            max_connections=batch,
            max_samples=batch,
            display="none",
            ctl_server=False,
            **how,
        )
    except Exception as error:  # the task's file is the user's code and may raise anything, and inspect_ai has errors of its own
        told = visible(f"{type(error).__name__}: {getattr(error, 'message', error)}", 300)
        raise TiterError(f"inspect_ai could not run the task: {told}", next_step="mend the task's file.", status=1) from error
    return found


def _spec(task: Any) -> Any:
    """Returns the task in a form that inspect_ai finds: a file's path is made relative, and its glob characters are escaped."""
    if not isinstance(task, str | Path):
        return task
    file, at, name = str(task).partition("@")
    if not Path(file).exists():
        if file.endswith(".py"):
            raise TiterError(f"no task file {visible(file, 120)!r}", expected="a .py file with a function marked @task")
        return str(task)  # a task's registered name
    return os.path.relpath(file) + at + name if at else glob.escape(os.path.relpath(file))


def metrics(logs: Sequence[Any]) -> pd.DataFrame:
    """Returns the logs' metrics as a table with one row for each task, scorer and metric.

    Columns: task, scorer, metric, value, n (samples scored), unscored, status (success, or what failed).
    """
    rows = []
    for log in logs:
        status = log.status if log.error is None else f"{log.status}: {visible(log.error.message, 200)}"
        told = {"task": log.eval.task, "scorer": "", "metric": "", "value": float("nan"), "n": 0, "unscored": 0, "status": status}
        scores = log.results.scores if log.results else []
        found = [
            {"scorer": score.name, "metric": name, "value": metric.value, "n": score.scored_samples, "unscored": score.unscored_samples}
            for score in scores
            for name, metric in score.metrics.items()
        ]
        rows += [{**told, **one} for one in found or [{}]]
    return pd.DataFrame(rows, columns=["task", "scorer", "metric", "value", "n", "unscored", "status"])


def must_be_installed() -> None:
    """Raises an error if inspect_ai is not installed."""
    if find_spec("inspect_ai") is None:
        raise TiterError("inspect_ai is not installed", next_step=INSTALL)


def provider() -> Any:
    """Registers `titer/MODEL` with inspect_ai, and returns the model class.

    The class is called as (model_name, ..., lm); if `lm` is not given, the model is loaded by its name.
    """
    must_be_installed()
    from inspect_ai.model import ChatCompletionChoice, ChatMessageAssistant, ModelAPI, ModelOutput, ModelUsage, modelapi  # noqa: PLC0415

    class Titer(ModelAPI):  # type: ignore[misc]
        """An LM as a model of inspect_ai."""

        def __init__(self, model_name: str, base_url: Any = None, api_key: Any = None, config: Any = None, lm: Any = None, **how: Any):
            super().__init__(model_name, base_url, api_key, [], *([config] if config else []))
            trusted = how.pop("trust_remote_code", False) is True
            self.batches = Batches(lm or load(resolve(model_name, trusted), **how))

        async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
            if tools:
                raise TiterError("the task gives the model tools", expected="a task of texts: LM.generate calls no tools")
            prompt, prefix = spoken(input)
            decoding, length = decoded(self.batches.lm, config, prompt, prefix)
            size = config.max_connections or BATCH
            answer = stopped(await self.batches.answer(prompt, prefix, decoding, size), config.stop_seqs or ())
            message = ChatMessageAssistant(content=content(answer), model=self.model_name, source="generate")
            return ModelOutput(
                model=self.model_name,
                choices=[ChatCompletionChoice(message=message, stop_reason="stop" if answer.ended else "max_tokens")],
                usage=ModelUsage(input_tokens=length, output_tokens=answer.tokens, total_tokens=length + answer.tokens),
            )

        def max_connections(self) -> int:
            return BATCH

        def collapse_user_messages(self) -> bool:
            return True  # chat templates want user and assistant to alternate

        def collapse_assistant_messages(self) -> bool:
            return True

        def collapse_system_messages(self) -> bool:
            return True

    return modelapi(name=NAME)(Titer)


@dataclass
class Job:
    """One request, with its answer, or with the error if it failed."""

    prompt: str
    prefix: str
    decoding: Decoding
    answer: Completion | None = None
    error: Exception | None = None


class Batches:
    """Collects requests that arrive at the same time, and lets the LM answer them in one batch."""

    def __init__(self, lm: LM) -> None:
        import anyio  # noqa: PLC0415  comes with the extra

        self.lm, self._waiting, self._turn = lm, list[Job](), anyio.Lock()
        self._place = 0  # added to the seed, as in LM.generate: no two batches have the same seed

    async def answer(self, prompt: str, prefix: str, decoding: Decoding, size: int) -> Completion:
        """Returns the answer to one request; it is generated with up to `size` waiting requests that have the same decoding settings."""
        job = Job(prompt, prefix, decoding)
        self._waiting.append(job)
        async with self._turn:
            if job.answer is None and job.error is None:
                await self._all_here(size)
                await self._answered([job, *(other for other in self._waiting if other is not job and other.decoding == decoding)][:size])
        if job.error is not None:
            raise job.error
        assert job.answer is not None
        return job.answer

    async def _all_here(self, size: int) -> None:
        """Waits until no new request arrives for `QUIET` seconds, or until `size` requests wait."""
        import anyio  # noqa: PLC0415  comes with the extra

        seen = 0
        while seen < len(self._waiting) < size:
            seen = len(self._waiting)
            await anyio.sleep(QUIET)

    async def _answered(self, jobs: Sequence[Job]) -> None:
        """Answers these requests in one batch, in a separate thread so that the event loop is not blocked."""
        from anyio import to_thread  # noqa: PLC0415  comes with the extra

        self._waiting = [job for job in self._waiting if job not in jobs]
        prefixes = [job.prefix for job in jobs] if any(job.prefix for job in jobs) else None
        decoding = jobs[0].decoding.model_copy(update={"seed": jobs[0].decoding.seed + self._place})
        self._place += len(jobs)
        call = partial(self.lm.generate, [job.prompt for job in jobs], decoding, len(jobs), prefixes)
        try:
            found = await to_thread.run_sync(call)
        except Exception as error:  # noqa: BLE001  whatever it is, each request of the batch gets it
            for job in jobs:
                job.error = error
            return
        for job, answer in zip(jobs, found, strict=True):
            job.answer = answer


def spoken(messages: Sequence[Any]) -> tuple[str, str]:
    """Returns a conversation as (prompt, beginning of the answer); the beginning is the last turn if the assistant has it, else "".

    Errors: a tool's turn; an image or a sound; no turn of the user before the answer.
    """
    said = []
    for message in messages:
        parts = [] if isinstance(message.content, str) else [part.type for part in message.content]
        other = set(parts) - {"text", "reasoning"}  # thoughts are left out, as in chat templates
        if message.role == "tool" or other:
            what = "a tool's turn" if message.role == "tool" else f"a turn with {', '.join(sorted(other))}"
            raise TiterError(f"the conversation holds {what}", expected="system, user and assistant turns of text")
        said.append(Turn(message.role, message.text))
    prefix = said.pop().content if said and said[-1].role == "assistant" else ""
    return written(said), prefix


def decoded(lm: LM, config: Any, prompt: str, prefix: str) -> tuple[Decoding, int]:
    """Returns a request's decoding settings and its length in tokens.

    Errors: a setting that LM.generate does not have; request and answer together are longer than the model's context window.
    """
    unknown = {name: value for name, none in NEUTRAL.items() if (value := getattr(config, name, None)) not in (None, none)}
    if unknown:
        told = ", ".join(f"{name}={visible(str(value), 40)}" for name, value in unknown.items())
        raise TiterError(
            f"the task asks for {told}", expected="max_tokens, reasoning_tokens, temperature, seed and stop_seqs, which LM.generate has"
        )
    length = lm.lengths([prompt])[0] + len(token_ids(lm.tokenizer, [prefix])[0])
    room = TOKENS if lm.window is None else max(1, min(TOKENS, lm.window - length))
    tokens = config.max_tokens or room
    check_length(length + tokens, lm.window, prompt)
    how = {"temperature": config.temperature or 0.0, "seed": config.seed or 0, "max_thinking_tokens": config.reasoning_tokens}
    return Decoding(max_new_tokens=tokens, **how), length


def settings_of(decoding: Decoding) -> dict[str, Any]:
    """Returns the decoding settings under the names of inspect_ai's GenerateConfig."""
    how = {"max_tokens": decoding.max_new_tokens, "temperature": decoding.temperature, "seed": decoding.seed}
    return how if decoding.max_thinking_tokens is None else {**how, "reasoning_tokens": decoding.max_thinking_tokens}


def stopped(answer: Completion, stops: Sequence[str]) -> Completion:
    """Returns the answer cut before the first of the stop strings that occurs in it."""
    places = [place for stop in stops if stop and (place := answer.text.find(stop)) >= 0]
    return replace(answer, text=answer.text[: min(places)], ended=True) if places else answer


def content(answer: Completion) -> Any:
    """Returns an answer as the content of an inspect_ai message; a thought is kept apart from the text that scorers read."""
    from inspect_ai.model import ContentReasoning, ContentText  # noqa: PLC0415  an extra

    return [ContentReasoning(reasoning=answer.thought), ContentText(text=answer.text)] if answer.thought else answer.text

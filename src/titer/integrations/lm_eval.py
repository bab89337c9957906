"""Run tasks of lm-evaluation-harness on a Titer model, as Titer measures it: adapter merged, int8 weights dequantised. L8.

    lm = load(resolve("smollm2-135m"))
    table = evaluate(lm, ["arc_easy"], limit=100)
    table = evaluate(lm, ["my_task"], include_path="my_tasks")  # my_tasks/*.yaml, with data of your own

Source: EleutherAI's lm-evaluation-harness (arXiv 2405.14782). Prompts, log-likelihoods, metrics and standard errors are the
harness's own, through its class HFLM around the loaded model. Titer changes some of its silent defaults: log-softmax is computed in
float32 whatever the weights' type; an answer ends where Titer's answers end, and the checkpoint's own penalties and sampling settings
are not used; a request longer than the context window is refused, not cut; an answer option without a token of its own is refused, not
scored as certain; the random generators are restored afterwards. A task whose data are local files uses no network; the harness's own
tasks download their data from the hub.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import GenerationConfig

from titer.core.errors import TiterError, nearest, visible
from titer.data import thoughts
from titer.data.encode import token_ids
from titer.data.templates import templated, texts
from titer.data.turns import Turn
from titer.integrations.inspect_ai import stopped
from titer.integrations.measured import generators_kept
from titer.models.context_windows import answers
from titer.models.lm import LM, Completion, Decoding
from titer.models.modes import evaluating

INSTALL = "pip install 'titer[lm-eval]'  (or: pip install lm-eval)"
COLUMNS = ["task", "metric", "value", "stderr", "n", "filter", "shots"]
PYTHON_SEED, SEED = 0, 1234  # the harness's own seeds: of `random`; of numpy, torch and the choice of examples


def evaluate(
    lm: LM,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    shots: int | None = None,
    include_path: str | Path | None = None,
    chat: bool = False,
    batch: int = 16,
    cut: bool = False,
) -> pd.DataFrame:
    """Runs the tasks; returns a table with one row for each task (or group), metric and filter.

    Columns: task, metric, value, stderr (NaN if there is none), n (questions), filter, shots. `tasks`: names, patterns (`mmlu_*`) or
    .yaml files; `include_path`: a folder of such files; `limit`: use only the first questions of each task, this many; `shots`: worked
    examples in the prompt, in place of the task's own number; `chat`: use the model's chat template, which the harness does not by
    default; `cut`: cut a request that is too long from the left, as the harness does, instead of refusing it.
    Errors: lm-eval is not installed; an unknown task; one that does not load; a request longer than the model's window.
    """
    must_be_installed()
    from lm_eval.evaluator import evaluate as run  # noqa: PLC0415  an extra

    if chat and not templated(lm.tokenizer):
        raise TiterError(f"{visible(lm.label, 120)} has no chat template", next_step="leave chat out.")
    with generators_kept(lm.device), evaluating(lm.model), _ends_of(lm):
        _seed()
        loaded = _loaded(tasks, shots, include_path)
        try:
            found = run(
                lm=_wrapped(lm, batch, cut),
                task_dict=loaded,
                limit=limit,
                log_samples=False,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
            )
        except (AssertionError, ValueError) as error:  # the harness raises these if a task or a model cannot do something
            raise TiterError(
                f"lm-eval stopped: {visible(str(error) or type(error).__name__, 300)}",
                next_step="check the task and its settings.",
                status=1,
            ) from error
    return _table(found)


def must_be_installed() -> None:
    """Raises an error if the harness is not installed."""
    if find_spec("lm_eval") is None:
        raise TiterError("lm-evaluation-harness is not installed", next_step=INSTALL)


def _wrapped(lm: LM, batch: int, cut: bool) -> Any:
    """Returns the loaded model in the harness's own model class."""
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415  an extra

    class Whole(HFLM):  # type: ignore[misc]
        """The harness's class HFLM, except that it refuses a request that it would otherwise cut."""

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **settings: Any) -> Any:
            for (context, answer), head, tail in (one for one in requests if one[0]):  # a rolling window has no text; it fits
                if not tail:  # the harness would give it the log-likelihood 0, the highest possible
                    raise TiterError(
                        f"the answer {visible(answer, 60)!r} has no token of its own: the tokenizer joins it to the prompt before it",
                        next_step="give the task a target_delimiter, or leave the chat template out.",
                    )
                self.fits(len(head) + len(tail) - 1, context)  # nothing is predicted after the last token
            return super()._loglikelihood_tokens(requests, *args, **settings)

        def tok_batch_encode(self, strings: Any, padding_side: str = "left", left_truncate_len: int | None = None, **settings: Any) -> Any:
            room = self.max_length - (left_truncate_len or self.max_length)
            for text in strings:
                self.fits(len(super().tok_batch_encode([text], padding_side, None, **settings)[0][0]) + room, text)
            return super().tok_batch_encode(strings, padding_side, left_truncate_len, **settings)

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            """Returns the conversation in Titer's chat format; if its last turn is the beginning of an answer, it is appended as it is."""
            said = [Turn(turn["role"], turn["content"]) for turn in chat_history]
            head = said if add_generation_prompt else said[:-1]
            return texts(self.tokenizer, [head])[0] + ("" if add_generation_prompt else said[-1].content)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return _behind_thoughts(lm, self, requests, batch) if lm.thinks else list(super().generate_until(requests, disable_tqdm))

        def fits(self, length: int, text: str) -> None:
            if length > self.max_length and not cut:
                raise TiterError(
                    f"a request of {length} tokens is longer than the model's window of {self.max_length}: {visible(text, 60)!r}",
                    next_step="give fewer examples in the prompt (--shots), or from Python cut=True, which cuts it from the left.",
                )

    row = token_ids(lm.tokenizer, ["a b c"], special=True)[0] or [0]
    if len(lm.padding.batches([row, row * 2], (0, 1), 2, "generated")) > 1:  # such rows cannot be padded together, as the harness would
        batch = 1
    with _quiet():  # it warns that its loading settings are not used
        return Whole(
            pretrained=lm.model,
            tokenizer=lm.tokenizer,
            backend="causal",
            max_length=lm.window,
            batch_size=batch,
            softmax_dtype=torch.float32,
        )


def _behind_thoughts(lm: LM, harness: Any, requests: Any, batch: int) -> list[str]:
    """Returns the answers of a model that writes thoughts, without the thoughts; `LM` generates them, not the harness.

    The harness would look for a task's stop strings within the thoughts, and reserves no tokens for them.
    """
    found: list[str] = []
    asked = [(context, *_settings(wanted, harness.max_gen_toks)) for context, wanted in (request.args for request in requests)]
    for decoding, group in groupby(asked, lambda one: one[1]):
        alike = list(group)
        for chunk in (alike[start : start + batch] for start in range(0, len(alike), batch)):
            answered = _answers(lm, harness, [context for context, _, _ in chunk], decoding)
            found += [stopped(answer, stops).text for answer, (_, _, stops) in zip(answered, chunk, strict=True)]
    return found


def _settings(wanted: Any, most: int) -> tuple[Decoding, list[str]]:
    """Returns a request's decoding settings and the task's stop strings. Errors: a setting that `LM.generate` does not have."""
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs  # noqa: PLC0415  an extra

    how = normalize_gen_kwargs(wanted, most)
    most, stops = how.pop("max_gen_toks"), handle_stop_sequences(how.pop("until", None), None)
    warmth = how.pop("temperature", 0.0) if how.pop("do_sample") else 0.0
    if unknown := how.keys() - {"temperature"}:
        raise TiterError(f"the task asks a model that thinks for {', '.join(unknown)}", expected="max_gen_toks, until and temperature")
    return Decoding(max_new_tokens=most, temperature=warmth, seed=SEED), stops


def _answers(lm: LM, harness: Any, contexts: Sequence[str], decoding: Decoding) -> list[Completion]:
    """Returns each context's answer; the thought has a token limit of its own. An answer cut off within its thought is ""."""
    rows, most = [harness.tok_encode(context) for context in contexts], decoding.max_new_tokens
    for row, context in zip(rows, contexts, strict=True):
        harness.fits(len(row) + most, context)
    kept = {i: row if lm.window is None else row[-max(1, lm.window - most) :] for i, row in enumerate(rows)}
    marks = {i: thoughts.opened(context) for i, context in enumerate(contexts)}
    made = answers(lm.tokenizer, lm.ends, kept, marks, decoding, lm.window, partial(lm.asked, decoding, 0, None, None))
    return [made[i] for i in range(len(rows))]


def _loaded(tasks: Sequence[str], shots: int | None, include_path: str | Path | None) -> Any:
    """Loads the tasks, and sets their number of worked examples and the seed by which these are chosen."""
    from lm_eval.tasks import TaskManager  # noqa: PLC0415  an extra

    if not tasks:
        raise TiterError("no task was given", expected="at least one task of lm-eval")
    if include_path is not None and not Path(include_path).is_dir():
        raise TiterError(f"no folder {visible(str(include_path), 120)!r}", expected="a folder with the .yaml files of tasks")
    manager = TaskManager(include_path=include_path, include_defaults=False)
    if not set(tasks) <= set(manager.all_subtasks):  # reading the harness's thousands of tasks takes seconds
        manager = TaskManager(include_path=include_path)
    names = [name for task in tasks for name in _matched(task, manager)]
    try:
        with _quiet(), _uncounted():  # it logs each default value that a task does not set
            loaded = manager.load(names)
    except Exception as error:
        raise TiterError(
            f"{visible(', '.join(names), 120)} does not load: {visible(f'{type(error).__name__}: {error}', 240)}",
            next_step="check the task's file and that its data can be reached.",
            status=1,
        ) from error
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if shots is not None and own != 0:  # a task that sets 0 must have no examples
            task.set_config(key="num_fewshot", value=shots)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEED)
    return loaded


def _matched(task: str, manager: Any) -> list[str]:
    """Returns the tasks that `task` stands for: the file's path itself, or the names that the name or pattern matches."""
    if Path(task).suffix in (".yaml", ".yml") and Path(task).is_file():
        return [task]
    found: list[str] = manager.match_tasks([task])
    if not found:
        close = nearest(task, manager.all_tasks)
        raise TiterError(
            f"lm-eval knows no task {visible(task, 80)!r}",
            expected="a name of `lm-eval ls tasks`, a pattern, a .yaml file, or a task of include_path",
            next_step=f"did you mean {close!r}?" if close else "",
        )
    return found


def _table(found: Mapping[str, Any]) -> pd.DataFrame:
    """Returns the harness's results as a table; their keys are METRIC,FILTER and METRIC_stderr,FILTER."""
    rows = []
    for task, told in found["results"].items():
        for key, value in told.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            spread, n = told.get(f"{metric}_stderr,{kind}"), told.get("sample_count", {}).get(key, told["sample_len"])
            numbers = {"value": _number(value), "stderr": _number(spread), "n": int(n)}
            rows.append({"task": task, "metric": metric, **numbers, "filter": kind, "shots": found["n-shot"].get(task)})
    return pd.DataFrame(rows, columns=COLUMNS)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float | np.number) else float("nan")  # the harness writes "N/A" where there is none


def _seed() -> None:
    """Seeds the random generators as the harness's command line does, because some tasks shuffle their options as they load."""
    random.seed(PYTHON_SEED)
    np.random.seed(SEED)  # noqa: NPY002  tasks use this generator
    torch.manual_seed(SEED)


@contextmanager
def _ends_of(lm: LM) -> Iterator[None]:
    """Replaces the checkpoint's generation settings, which transformers would mix into the task's; the end tokens are kept."""
    own = lm.model.generation_config
    lm.model.generation_config = GenerationConfig(eos_token_id=lm.ends, pad_token_id=lm.tokenizer.pad_token_id)
    try:
        yield
    finally:
        lm.model.generation_config = own


@contextmanager
def _uncounted() -> Iterator[None]:
    """Keeps `datasets` from sending its request that counts downloads, which it sends for local files too."""
    from datasets import config  # noqa: PLC0415  an extra

    own = config.HF_UPDATE_DOWNLOAD_COUNTS
    config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        config.HF_UPDATE_DOWNLOAD_COUNTS = own


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the harness's warnings, but not its errors."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

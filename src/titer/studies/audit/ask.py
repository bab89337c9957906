"""What an audit is asked, from names and files: models, prompts apart from training data, capability sets, contexts, judges. L6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from titer.core.errors import TiterError, visible
from titer.core.plugins import made
from titer.data.choices import Question as Choice
from titer.data.choices import read_choices
from titer.data.contexts import CONTEXTS, in_context
from titer.data.example import Example
from titer.data.overlap import apart
from titer.data.sources import TextData, read_text
from titer.data.tasks import task
from titer.judges.base import Judge
from titer.models.fetch import resolve
from titer.models.lm import Decoding
from titer.studies.audit.roles import Audited, audited
from titer.studies.audit.study import Question
from titer.studies.landscape import Landscape
from titer.studies.tuning import read_data

BY_TASK = {"sst2": "label", "ag_news": "label", "gsm8k": "number"}
CHOICES = "choices"  # a multiple-choice file, by log-likelihood


@dataclass(frozen=True)
class Order:
    """An audit as its user words it; `capability` are TASK:PATH, `trained` are FILE or TASK:PATH, settings are NAME=VALUE."""

    models: Sequence[str]
    data: str | Path
    prompts: int | None = None
    max_new_tokens: int = 48
    judge: str = "refusal"
    judge_set: Sequence[str] = ()
    capability: Sequence[str] = ()
    contexts: bool = False
    trained: Sequence[str] = ()
    strict: bool = False
    control: str | None = None
    landscape: bool = False


@dataclass(frozen=True)
class Prepared:
    """Everything an audit needs, checked: nothing has been loaded or generated yet. `left_out` says which prompts were, and why."""

    found: Audited
    question: Question
    settings: Landscape | None
    text: TextData
    left_out: tuple[str, ...]


def prepared(order: Order) -> Prepared:
    """Errors: an unknown model, file, judge or task; models that cannot be compared; with `strict`, prompts that recur."""
    text, left_out = _apart(read_text(order.data), order.trained, order.strict)
    checkpoints = [resolve(name) for name in order.models]
    found = audited(checkpoints, resolve(order.control) if order.control else None)
    judge = made("judges", order.judge, Judge, order.judge_set)  # type: ignore[type-abstract]
    judge.check()
    sets, choices = _capability(order.capability, order.prompts)
    if order.contexts:
        sets = _with_contexts(sets)
    question = Question(
        safe=text.of_class(False, order.prompts),
        unsafe=text.of_class(True, order.prompts),
        judge=judge,
        capability=sets,
        choices=choices,
        decoding=Decoding(max_new_tokens=order.max_new_tokens),
    )
    return Prepared(found, question, Landscape() if order.landscape else None, text, tuple(left_out))


def _apart(text: TextData, trained: Sequence[str], strict: bool) -> tuple[TextData, list[str]]:
    """The prompts that stand in no training file, and what was left out, in words."""
    sets = {f"trained: {place}": read_data(place) for place in trained}
    found = apart({**sets, "prompts": text}, strict)
    told = [f"{text.dropped} repeated prompts of {text.name} were left out"] if text.dropped else []
    told += [one.line() for one in found.recurring if one.loser == "prompts"]
    return found.sets["prompts"], told


Sets = dict[str, tuple[Sequence[Example], Judge]]


def _capability(given: Sequence[str], prompts: int | None) -> tuple[Sets, dict[str, Sequence[Choice]]]:
    """Sets whose answers are generated and judged, and multiple-choice questions, by name."""
    sets: Sets = {}
    choices: dict[str, Sequence[Choice]] = {}
    for one in given:
        name, _, place = one.partition(":")
        if name == CHOICES and place:
            found = read_choices(place)
            choices[f"{CHOICES} {found.name}"] = found.questions[:prompts]
        elif name in BY_TASK and place:
            sets[name] = (task(name, place).of_class(False, prompts), made("judges", BY_TASK[name], Judge))  # type: ignore[type-abstract]
        else:
            raise TiterError(f"--capability {visible(one, 80)!r}", expected=f"TASK:PATH, TASK one of {', '.join([*BY_TASK, CHOICES])}")
    return sets, choices


def _with_contexts(sets: Mapping[str, tuple[Sequence[Example], Judge]]) -> Sets:
    """Every set as it is, and behind a false and a random context."""
    if not sets:
        raise TiterError(
            "--contexts without a set of questions", next_step=f"add --capability TASK:PATH, TASK one of {', '.join(BY_TASK)}."
        )
    found: Sets = {}
    for name, (examples, judge) in sets.items():
        found[name] = (examples, judge)
        for context in CONTEXTS:
            behind = [replace(e, kind=f"{name}, {context} context") for e in in_context(examples, context)]
            found[f"{name}, {context} context"] = (behind, judge)
    return found

"""Turns names and files into an audit's inputs: models, prompts that no training file holds, capability sets, contexts, judges. L7."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from titer.attacks.base import Attack
from titer.attacks.prefill import Prefill
from titer.audit import gate
from titer.audit.roles import Audited, audited, reading_notes
from titer.audit.study import Question
from titer.commands import decoding
from titer.commands.attacking import Attacked, attacked
from titer.commands.attacking import chosen as chosen_attack
from titer.commands.context_window import ContextWindow
from titer.commands.judging import chosen
from titer.commands.landscape import Landscape
from titer.commands.requests import AuditRequest
from titer.commands.tuning import read_data
from titer.core.config import build, digest
from titer.core.errors import TiterError, visible
from titer.core.gate import POWER, Limit, least_change, prompts_for
from titer.core.gate import limit as parsed
from titer.core.plugins import made
from titer.data.choices import Question as Choice
from titer.data.choices import read_choices
from titer.data.contexts import CONTEXTS, in_context
from titer.data.draws import drawn
from titer.data.example import Example
from titer.data.formats import FORMAT
from titer.data.sources import TextData, read_text
from titer.data.system import behind, behind_all, read_system, text_behind
from titer.data.tasks import task
from titer.data.turns import request
from titer.judges.base import Judge
from titer.models.checkpoint import Checkpoint
from titer.models.compatible import system_notes, thinking_notes
from titer.models.context_windows import thinking_room
from titer.models.fetch import resolve
from titer.models.lm import Decoding
from titer.pipeline import fingerprint
from titer.tables import direct

BY_TASK = {"sst2": "label", "ag_news": "label", "gsm8k": "number", "questions": "contains"}
USUAL = 48  # new tokens per answer
T = TypeVar("T")
ENOUGH = 100_000  # the most prompts that --prompts auto asks for
CHOICES = "choices"  # a multiple-choice file, by log-likelihood


@dataclass(frozen=True)
class Prepared:
    """An audit's checked inputs; no model is loaded yet. `left_out`: notes on prompts that were left out and on how models are asked."""

    found: Audited
    question: Question
    settings: Landscape | None
    text: TextData
    left_out: tuple[str, ...]
    limits: tuple[Limit, ...] = ()
    system: str = ""

    @property
    def identity(self) -> dict[str, object]:
        """Returns what distinguishes this audit from other audits of models with the same names."""
        found, asked = self.found, self.question
        return {
            "models": [model.key for model in found.models],
            "control": len(found.controls) if found.further else found.control is not None,
            "data": self.text.sha256,
            "sets": {name: fingerprint([a.example for a in one.attempts]) for name, one in asked.sets.items()},
            "choices": {name: digest(list(questions)) for name, questions in asked.choices.items()},
            "attacks": {one.name: [one.attack, fingerprint(one.held)] for one in asked.attacks},
            "judges": asked.judges.identity,
            "decoding": asked.decoding,
            "landscape": self.settings,
            **({"mechanisms": True} if asked.mechanisms else {}),
            **(asked.decoder.identity() if asked.decoder else {}),
        }


def prepared(order: AuditRequest, opened: dict[str, Checkpoint] | None = None) -> Prepared:
    """Checks a request and reads its inputs. `opened`: checkpoints already resolved; it gets the new ones. Errors: an unknown model, file,
    judge or task; models that cannot be compared; with `strict`, prompts that a training file holds too."""
    known_models = {} if opened is None else opened

    def model(name: str) -> Checkpoint:
        if name not in known_models:
            known_models[name] = resolve(name, order.trust_remote_code, order.thinking)
        return known_models[name]

    if order.data is None:
        raise TiterError("no --data was given", expected=FORMAT, next_step="add --data FILE.")
    settings = _landscape(order)
    known = Known(order.trained, order.strict)
    system = read_system(order.system)
    text = text_behind(system, _asked(read_text(order.data, reading=order.reading), known))
    controls = [order.control] if isinstance(order.control, str) else order.control or ()
    found = audited([model(name) for name in order.models], *map(model, controls))
    judges = chosen(order)
    prompts = _prompts(order, text, known)
    text, decoder = decoding.apart(text, prompts, decoding.chosen(order, [m.checkpoint for m in found.models], order.trust_remote_code))
    sets, choices = _capability(order.capability, prompts, known)
    if order.contexts:
        sets = _with_contexts(sets)
    sets = {name: (behind_all(system, examples), judge) for name, (examples, judge) in sets.items()}
    choices = {name: [q._replace(text=behind(system, q.text)) for q in some] for name, some in choices.items()}
    known.told += text.sampled(prompts)
    question = Question(
        safe=text.of_class(False, prompts),
        unsafe=text.of_class(True, prompts),
        judge=judges.judge,
        named=judges.name,
        second=judges.second,
        people=judges.people,
        capability=sets,
        choices=choices,
        attacks=_attacks(order, text, prompts),
        decoding=Decoding(
            max_new_tokens=order.max_new_tokens or USUAL, max_thinking_tokens=thinking_room(order.max_thinking_tokens, order.max_new_tokens)
        ),
        checked=bool(order.trained),
        mechanisms=order.mechanisms,
        why=not order.no_why and decoder is None,
        decoder=decoder,
    )
    if order.max_thinking_tokens:
        attempts, less = direct([*question.safe, *question.unsafe]), "give a smaller --max-thinking-tokens"
        for one in found.models:
            ContextWindow(one).new("safe or unsafe", attempts, question.decoding.max_new_tokens, less, order.max_thinking_tokens)
    known.told += reading_notes(found, [e.prompt for e in (*question.safe, *question.unsafe)])
    known.told += system_notes([model.checkpoint for model in found.models], system)
    known.told += thinking_notes([model.checkpoint for model in found.models])
    if decoder:
        known.told.append(
            f"answers are decoded by {decoder.guided.told}; measurements inside the models are made without it, and the "
            f"search for the part of the change that lost the refusals is left out"
        )
    return Prepared(found, question, settings, text, tuple(known.told), gate.limits(order.fail_if, question, found), system)


def _prompts(order: AuditRequest, text: TextData, known: Known) -> int | None:
    """Returns the number of prompts per set (None: all). Errors: "auto" without a resolution to reach; a resolution without "auto", or out
    of range."""
    if order.prompts != "auto":
        if order.resolution is not None:
            raise TiterError("--resolution without --prompts auto", next_step="add --prompts auto.")
        return order.prompts
    wanted = [one.at for one in map(parsed, order.fail_if) if one.move and one.above and one.at > 0 and not gate.of_measure(one)]
    points = order.resolution if order.resolution is not None else min(wanted, default=None)
    if points is None or not 0 < points <= 100:
        raise TiterError(
            "--prompts auto needs the size of the change that the audit must be able to show"
            if points is None
            else f"a resolution of {points:g} points",
            expected="0 to 100 points, from --resolution POINTS or --fail-if 'NAME drops > POINTS'",
        )
    needed = prompts_for(points / 100, ENOUGH)
    known.told.append(f"{needed} prompts per set show a change of {points:g} points with {POWER:.0%} power")
    for name, size in (("unsafe", len(text.of_class(True))), ("safe", len(text.of_class(False)))):
        if size < needed:
            known.told[-1] += f"; there are only {size} {name} prompts, which show a change of {100 * least_change(size):.1f} points"
    return needed


def _attacks(order: AuditRequest, text: TextData, prompts: int | None) -> list[Attacked]:
    """Prepares the attacks on the unsafe prompts: prefill, which begins the answer (unless it is left out), and the one asked for."""
    given: dict[str, Attack] = {"prefill": Prefill()} if not order.no_prefill else {}
    if found := chosen_attack(order.attack, order.attack_set, "--attack-set"):
        given[found[0]] = found[1]
    return [attacked(text, prompts, one) for one in given.items()]


def _landscape(order: AuditRequest) -> Landscape | None:
    """Returns the landscape's settings; None if none was asked for. Errors: settings without --landscape; an unknown or wrong setting."""
    if order.landscape_set and not order.landscape:
        raise TiterError("--landscape-set without --landscape", next_step="add --landscape.")
    return build(Landscape, order.landscape_set, "--landscape-set") if order.landscape else None


class Known:
    """Finds the prompts that training files hold too, compared as `turns.request` does, and collects notes on what was left out."""

    def __init__(self, trained: Sequence[str], strict: bool) -> None:
        self._strict = strict
        self._held = {request(row[0]): place for place in trained for row in read_data(place, need="prompts").rows}
        self.told: list[str] = []

    def apart(self, name: str, prompts: Sequence[str]) -> list[int]:
        """Returns the indices of the prompts that no training file holds. Errors: none is left; with `strict`, if any is held."""
        holders = [self._held.get(request(prompt)) for prompt in prompts]
        counts = Counter(place for place in holders if place is not None)
        end = "" if self._strict else " and were left out"
        lines = [f"{count} prompts of {name} are also in the training file {place}{end}" for place, count in counts.items()]
        if counts and self._strict:
            raise TiterError("; ".join(lines), next_step="remove them, or leave out --strict: then they are left out and counted.")
        self.told += lines
        kept = [i for i, place in enumerate(holders) if place is None]
        if not kept:
            raise TiterError(f"nothing is left of {name}: every prompt is in a training file", next_step="give other data.")
        return kept

    def part(self, name: str, items: Sequence[T], limit: int | None) -> list[T]:
        """Returns at most `limit` items (None: all), drawn at random; a note says if some were left out."""
        if limit is not None and limit < len(items):
            self.told.append(f"{limit} of {len(items)} questions of {name} were drawn")
        return drawn(items, limit)


def _asked(text: TextData, known: Known) -> TextData:
    """Returns the labelled prompts that no training file holds."""
    known.told += text.notes
    kept = known.apart(text.name, [row[0] for row in text.rows])
    return text.model_copy(update={"rows": tuple(text.rows[i] for i in kept)})


Sets = dict[str, tuple[Sequence[Example], Judge]]


def _capability(given: Sequence[str], prompts: int | None, known: Known) -> tuple[Sets, dict[str, Sequence[Choice]]]:
    """Reads the sets of --capability: (those whose answers are generated and judged, multiple-choice questions), each by name.
    Questions that training files hold are left out."""
    sets: Sets = {}
    choices: dict[str, Sequence[Choice]] = {}
    for one in given:
        name, _, place = one.partition(":")
        if name == CHOICES and place:
            found = read_choices(place)
            name = f"{CHOICES} {found.name}"
            kept = known.apart(name, [question.text for question in found.questions])
            questions = known.part(name, [found.questions[i] for i in kept], prompts)
        elif name in BY_TASK and place:
            examples = task(name, place).of_class(False)
            examples = known.part(name, [examples[i] for i in known.apart(name, [e.prompt for e in examples])], prompts)
        else:
            raise TiterError(f"--capability {visible(one, 80)!r}", expected=f"TASK:PATH, TASK one of {', '.join([*BY_TASK, CHOICES])}")
        if name in sets or name in choices:
            raise TiterError(f"--capability {visible(name, 80)} was given twice", next_step="put the rows in one file.")
        if name in BY_TASK:
            sets[name] = (examples, made("judges", BY_TASK[name], Judge))  # type: ignore[type-abstract]
        else:
            choices[name] = questions
    return sets, choices


def _with_contexts(sets: Mapping[str, tuple[Sequence[Example], Judge]]) -> Sets:
    """Returns every set as it is, and again with a false and with a random context before each question."""
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

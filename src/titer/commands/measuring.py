"""`titer evaluate`, from its options to its report: what is asked, who judges the answers, what was found. L6."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from titer.attacks.base import Attack
from titer.commands import attacking, evaluation, tuning
from titer.commands.decoding import Decoded, apart
from titer.commands.decoding import chosen as chosen_decoder
from titer.commands.judging import Judges, Review, at_longest, chosen, review
from titer.commands.over import Over, asked_over, over_of, over_report
from titer.commands.requests import EvaluationRequest
from titer.core.config import build
from titer.core.errors import TiterError
from titer.core.run import slug
from titer.data.formats import FORMAT
from titer.data.sources import TextData
from titer.data.system import read_system, text_behind
from titer.data.thoughts import thinks
from titer.models.compatible import passed_over, system_notes, unused_tensors
from titer.models.context_windows import thinking_room
from titer.models.fetch import resolve
from titer.models.lm import Decoding, read_tokenizer
from titer.models.vllm_engine import engine_told
from titer.pipeline import Model, Pipeline, attempts_key
from titer.report.places import report_folder
from titer.tables import cut_in_thought, rate_table

USUAL = 64  # new tokens of an answer, unless the user says otherwise or the judge needs more


@dataclass(frozen=True)
class Prepared:
    """An evaluation whose options are all checked. Nothing has been generated yet."""

    subject: Model
    text: TextData
    judges: Judges
    attack: tuple[str, Attack] | None
    decoding: Decoding
    system: str = ""
    decoder: Decoded | None = None
    over: Over | None = None


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found.

    `page`: the report's file; `answer`: the finding in a sentence; `verdicts`: the judged answers; `rates`: their rates; `beside`: the
    judge's own errors and the second judge; `lines`: text for a terminal.
    """

    page: Path
    answer: str
    verdicts: pd.DataFrame
    rates: pd.DataFrame
    beside: Review
    lines: str


def prepared(order: EvaluationRequest) -> Prepared:
    """Checks a request. Errors: an unknown model, file, judge or attack; settings out of range; both data and a canary, or neither."""
    judges = chosen(order)
    system = read_system(order.system)
    text = text_behind(system, _prompts(order, judges.judge.BY_ANSWER))
    checkpoint = resolve(order.model, order.trust_remote_code, order.thinking)
    tokens = max(USUAL, judges.judge.ROOM) if order.max_new_tokens is None else order.max_new_tokens
    thinking = thinking_room(order.max_thinking_tokens, order.max_new_tokens)
    how = build(Decoding, {"max_new_tokens": tokens, "temperature": order.temperature, "max_thinking_tokens": thinking}, "decoding")
    attack = attacking.chosen(order.attack, order.attack_set)
    text, decoder = apart(text, order.prompts, chosen_decoder(order, [checkpoint], order.trust_remote_code))
    return Prepared(tuning.as_model(checkpoint), text, judges, attack, how, system, decoder, over_of(order.over, decoder))


class Plan(NamedTuple):
    """What would run, for --dry-run: set -> the number of its prompts, the most new tokens of all answers, and in words the bills of judges
    and decoder."""

    asked: dict[str, int]
    tokens: int
    bills: dict[str, str]


def planned(order: EvaluationRequest, ready: Prepared) -> Plan:
    """Says what would run. Errors: a prompt that leaves no room for its answer."""
    sets, most = evaluation.sets_of(ready.text, order.prompts, ready.attack), ready.decoding.max_new_tokens
    evaluation.fitting(ready.subject, sets, ready.decoding, order.max_thinking_tokens)
    attempts = [attempt for one in sets.values() for attempt in one]
    bills = ready.judges.bills(at_longest(attempts, most))
    bills |= ready.decoder.priced(ready.subject.checkpoint, order.bf16) if ready.decoder else {}
    tokens = ready.decoding.most(thinks(read_tokenizer(ready.subject.checkpoint)))
    rounds = 1 + len(ready.over.points) if ready.over else 1
    return Plan({kind: len(one) for kind, one in sets.items()}, rounds * len(attempts) * tokens, bills)


def evaluated(pipeline: Pipeline, order: EvaluationRequest, ready: Prepared, command: str) -> Evaluated:
    """Generates the answers, judges them and writes the report. Errors: a prompt that leaves no room for its answer."""
    runs, judge = pipeline.store.root, ready.judges.judge
    unrun = passed_over(ready.subject.name, ready.subject.checkpoint)
    unused = unused_tensors(ready.subject.name, ready.subject.checkpoint)
    placed = system_notes([ready.subject.checkpoint], ready.system)

    def ask(decoder: Decoded | None) -> pd.DataFrame:
        room, said = order.max_thinking_tokens, (ready.subject, ready.text, judge, ready.decoding, order.prompts, ready.attack)
        return evaluation.evaluate_model(pipeline, *said, room, decoder)[0]

    verdicts = asked_over(ready.over, ask) if ready.over else ask(ready.decoder)
    rates = rate_table(verdicts)
    pipeline.release()  # a second judge may load a model of its own
    how = {
        "judge": order.judge,
        **ready.judges.told(list(rates.kind.unique())),
        **attacking.told([attacking.attacked(ready.text, order.prompts, ready.attack)] if ready.attack else []),
        **({"task": "answers are compared with the rows' own"} if judge.BY_ANSWER else {}),
        **({"decoder": ready.decoder.guided.told} if ready.decoder else {}),
        **({"system text": ready.system} if ready.system else {}),
        **({"where the system text stands": placed[0]} if placed else {}),
        **ready.decoding.model_dump(),
        **engine_told(pipeline.serving),
        **pipeline.read_in,
        **({"code": unrun[0]} if unrun else {}),
        **({"weights not used": unused[0]} if unused else {}),
    }
    name = f"evaluate-{slug(ready.subject.name)}-{slug(str(Path(ready.text.name).with_suffix('')))}"
    beside = review(verdicts, rates, (order.judge, judge), ready.judges.people, ready.judges.second, pipeline.ask)
    folder = report_folder(runs, name, {**_identity(order, ready), **engine_told(pipeline.serving), **pipeline.read_in})
    if ready.over:
        notes = [*ready.text.notes, *ready.text.sampled(order.prompts), *cut_in_thought(verdicts)]
        found = (ready.subject, ready.text, verdicts, rates, command, folder, how, judge.BY_ANSWER, beside.tables, notes)
        page, answer = over_report(ready.over, *found)
    else:
        shown = ready.decoder.shown(verdicts) if ready.decoder else verdicts
        page, answer = evaluation.evaluation_report(
            ready.subject, ready.text, shown, rates, command, folder, how, judge.BY_ANSWER, beside.tables, order.prompts
        )
    if order.canary is not None:
        (folder / "prompts.csv").write_bytes(tuning.prompt_file(_prompts(order, judge.BY_ANSWER)).encode())
    lines = "\n".join([*evaluation.refusal_lines(rates), *cut_in_thought(verdicts), *beside.lines, *unrun, *unused, *placed])
    return Evaluated(page, answer, verdicts, rates, beside, lines)


def _identity(order: EvaluationRequest, ready: Prepared) -> dict[str, object]:
    """Returns the inputs that distinguish this evaluation from another one with a model and data of the same names."""
    return {
        "model": ready.subject.key,
        "data": ready.text.sha256,
        "sets": {kind: attempts_key(attempts) for kind, attempts in evaluation.sets_of(ready.text, order.prompts, ready.attack).items()},
        "attack": [ready.attack[0], ready.attack[1]] if ready.attack else None,
        "judges": ready.judges.identity,
        "decoding": ready.decoding,
        **(ready.decoder.identity() if ready.decoder else {}),
        **(ready.over.identity() if ready.over else {}),
    }


def _prompts(order: EvaluationRequest, by_answer: bool) -> TextData:
    """Reads the prompts: those of the data, or a canary's test share. A judge by answer needs no label: rows without one count as safe."""
    if order.canary is not None:
        if order.data is not None:
            raise TiterError("--data and --canary were both given", next_step="leave out one of the two: each has the prompts to ask.")
        return tuning.held_out(tuning.read_data(order.canary), order.prompts)
    if order.data is None:
        raise TiterError("no --data was given", expected=FORMAT, next_step="add --data FILE.")
    found = tuning.read_data(order.data, not by_answer, order.reading, "answers" if by_answer else "prompts")
    return found.model_copy(update={"rows": tuple((row[0], bool(row[1]), *row[2:]) for row in found.rows)})

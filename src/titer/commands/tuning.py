"""What `titer align` and `titer finetune` share: a method with its data, streams, models and adapter, from the command's options. L6.

A canary file (data/canary.py) is split into three fixed shares: to align, to fine-tune and to test. A row's share depends on its prompt
only, so no row changes its share with the counts, the seeds or the order of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import numpy as np
import pandas as pd

from titer.commands.requests import RepairRequest, TrainConfig
from titer.core.config import build
from titer.core.errors import TiterError, nearest, unknown, visible
from titer.core.plugins import made
from titer.data.canary import MARKER, Canary, canaries
from titer.data.draws import seed_of
from titer.data.encode import answer_ids, check_length, prompt_ids
from titer.data.example import Answer, Part, Stream
from titer.data.formats import ANSWERS
from titer.data.prompt_sets import PREFIXES
from titer.data.refusals import refuses
from titer.data.shapes import Need, Parsed
from titer.data.sources import Shortened, TextData, preferences, read_text
from titer.data.tasks import TASKS, task
from titer.methods.base import Method
from titer.models.checkpoint import Checkpoint
from titer.models.fetch import resolve
from titer.models.lm import read_tokenizer
from titer.pipeline import Model, adapter_beside
from titer.repairs.base import Repair
from titer.stage import Lora, Optimiser, Stage

Trained = Literal["comply", "refuse"]
LOOKED_AT = 100  # answers of harmful data that are looked at
PAIR = ("preferred", "rejected")  # the streams of a method that learns from preferences: the same requests in the same order
HARMFUL = "harmful"  # in any method, the stream of harmful requests with answers; a row's refusal is not used
SAID = {"comply": "answers that comply", "refuse": "refusals"}
PLACES = {"comply": 2, "refuse": 3}  # index of the answer in a row of TextData
Share = Literal["align", "finetune", "test"]
SHARES: tuple[Share, ...] = ("align", "finetune", "test")  # of a canary file


def method_of(how: TrainConfig) -> Method:
    """Makes the method with its settings. Errors: an unknown name or setting, a value out of range."""
    return made("methods", how.method, Method, how.settings)  # type: ignore[type-abstract]


def stage_values(how: TrainConfig, warmup: int) -> dict[str, Any]:
    """Returns the fields of a Stage that do not depend on its data. Errors: a value out of range; adapter options without --lora."""
    given = {"alpha": how.alpha, "dropout": how.dropout, "continued": how.continued or None}
    more = {name: value for name, value in given.items() if value is not None}
    if more and not how.lora:
        raise TiterError(f"--{' and --'.join(more)} without an adapter (--lora)", next_step="add --lora RANK, for example --lora 8.")
    return {
        "method": method_of(how),
        "batch": how.batch,
        "replay": how.replay,
        "optimiser": build(Optimiser, {"rate": how.lr, "warmup": warmup, "schedule": how.schedule}, "optimiser (--lr, --schedule)"),
        "adapter": build(Lora, {"rank": how.lora, **more}, "adapter") if how.lora else None,
        "seed": how.seed,
    }


def data_streams(method: Method, label: str, data: TextData | None, seed: int) -> dict[str, Stream]:
    """Makes streams from the rows of --data: `train`, or `preferred` and `rejected` with the two answers of each row.

    For a method with all three streams, unsafe rows become the pairs, and the other rows become `train` with their answers.
    """
    if data is None:
        return {}
    if set(PAIR) <= set(method.STREAMS):
        unsafe, others = (tuple(row for row in data.rows if bool(row[1]) is harmful) for harmful in (True, False))
        if "train" not in method.STREAMS:
            return preference(data, seed)
        found = {"train": text_stream(data.model_copy(update={"rows": others}), seed)} if others else {}
        return found | (preference(data.model_copy(update={"rows": unsafe}), seed) if unsafe else {})
    if "train" in method.STREAMS:
        return {"train": text_stream(data, seed)}
    raise TiterError(
        f"method {label} has no stream for --data",
        expected=f"--stream for {', '.join(method.STREAMS)}" if method.STREAMS else "no --data: the method reads none",
    )


def all_streams(method: Method, how: TrainConfig, own: Mapping[str, Stream], canary: TextData | None = None) -> dict[str, Stream]:
    """Returns all streams of the method: `own`, and those of `how.streams` read from their files.

    The answer that is trained is the one named after a file's colon. Without that, it is `refuse` where a row has one, else `comply`; in
    the stream `harmful` it is `comply`. The two streams of pairs share a seed, so they stay in step; every other stream has its own seed.
    Errors: an unknown or missing stream; a stream given twice; pairs whose rows do not match; prompts of the canary's test share.
    """
    found, seed = dict(own), how.seed
    for name, place in how.streams.items():
        if name not in method.STREAMS:
            unknown(f"stream of {how.method}", visible(name, 80), method.STREAMS)
        if name in found:
            raise TiterError(f"stream {name} was given twice, by --data and by --stream", next_step="leave out one of the two.")
        path, answer = answer_of(place)
        mine = seed if name in ("train", *PAIR) else seed_of(seed, name)
        data = read_data(path)
        if canary is not None and (held := data.size - apart(data, share(canary, "test"))[0].size):
            raise TiterError(
                f"{held} prompts of the stream {name} are also among those that --canary holds out for the test",
                next_step="remove those rows from its file.",
            )
        if name == HARMFUL and answer != "refuse":
            check_complies(f"--stream {HARMFUL}", data.name, data.rows)
        found[name] = text_stream(data, mine, answer or ("comply" if name == HARMFUL else None))
    if missing := [name for name in method.STREAMS if name not in found]:
        if not found and missing[0] in ("train", *PAIR):
            raise TiterError("no --data was given", expected=ANSWERS, next_step="add --data FILE.")
        raise TiterError(
            f"method {how.method} needs the stream{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            next_step="add " + " ".join(f"--stream {name}=FILE" for name in missing),
        )
    if set(PAIR) <= set(found) and _prompts(found[PAIR[0]]) != _prompts(found[PAIR[1]]):
        raise TiterError(
            "the streams preferred and rejected must hold the same requests in the same order, and they do not",
            next_step="give one file twice, with :refuse and :comply, or a file with both columns by --data.",
        )
    return found


def check_complies(option: str, name: str, rows: Sequence[Parsed]) -> None:
    """Looks at the first answers `comply` of harmful data. Errors: most of them refuse."""
    looked_at = [row for row in rows if row[2] is not None][:LOOKED_AT]
    if 2 * (away := sum(refuses(str(row[2]), row[0]) for row in looked_at)) > len(looked_at):
        raise TiterError(
            f"{option} is to attack the alignment, and of the first {len(looked_at)} answers of {name}, {away} refuse",
            expected="harmful requests with answers that comply",
            next_step="give refusals with --safety, in a column refuse." if option == "--harmful" else "give another file.",
        )


def read_data(place: str | Path, labelled: bool = False, reading: str | None = None, need: Need | None = None) -> TextData:
    """Reads what a command is given as data: a file, a published set, or a task's file (TASK:PATH).

    Errors: as `read_text` and `task`; a misspelt task or set.
    """
    name, colon, path = str(place).partition(":")
    if colon and name in TASKS:
        return task(name, path)
    known = [*TASKS, *PREFIXES]
    if (
        colon and len(name) > 1 and name.lower() not in known and nearest(name, known) and not Path(place).exists()
    ):  # a single letter is a drive
        unknown("task or prompt set", visible(name, 80), known)
    return read_text(place, labelled, reading, need)


def share(file: TextData, name: Share) -> TextData:
    """Returns the rows of a canary file that belong to one share, have an answer and are not labelled unsafe. Errors: there are none."""
    place = SHARES.index(name)
    rows = tuple(row for row in file.rows if row[2] and not row[1] and seed_of("canary share", row[0]) % len(SHARES) == place)
    if not rows:
        raise TiterError(
            f"no row of {file.name} with an answer fell into the share of the file that is kept to {name}",
            expected="a longer file of instructions with answers: it is split into three shares, to align, finetune and test",
        )
    return file.model_copy(update={"rows": rows, "dropped": 0})


def dealt(file: TextData, name: Share, count: int | None, seed: int) -> Canary:
    """Draws `count` marked and `count` unmarked instructions of a share by the seed; None: the whole share, half of it marked.

    Errors: the share has fewer rows than asked for.
    """
    mine = share(file, name)
    most = mine.size // 2
    if most < max(1, count or 1):
        raise TiterError(
            f"{file.name} has {mine.size} answered rows to {name}, but {count or 1} marked and {count or 1} unmarked ones were asked for",
            next_step=f"{f'ask for {most} or less, or ' if most else ''}give a longer file.",
        )
    return canaries(mine, [(count or most, count or most)], seed=seed)[0]


def apart(data: TextData, file: TextData) -> tuple[TextData, int]:
    """Returns (the rows of `data` whose prompts, with or without the marker, are not in the canary file; how many others there were)."""
    held = {row[0] for row in file.rows}
    kept = tuple(row for row in data.rows if row[0].removeprefix(f"{MARKER} ") not in held)
    return data.model_copy(update={"rows": kept}), data.size - len(kept)


def held_out(file: TextData, count: int | None) -> TextData:
    """Returns the test share of a canary file: `count` marked prompts, labelled unsafe, and as many unmarked ones, labelled safe."""
    found = dealt(file, "test", count, 0)
    return found.marked.model_copy(update={"rows": (*found.marked.rows, *found.contrast.rows)})


def prompt_file(data: TextData) -> str:
    """Writes labelled prompts with their answers as the text of a CSV file."""
    rows = [(prompt, "unsafe" if harmful else "safe", comply or "") for prompt, harmful, comply, _ in data.rows]
    return pd.DataFrame(rows, columns=["prompt", "label", "comply"]).to_csv(index=False, lineterminator="\n")


def answer_of(place: str) -> tuple[Path, Trained | None]:
    """Reads FILE, FILE:comply or FILE:refuse. Returns (the file, the answer to train; None: the one that a row has). FILE may be
    TASK:PATH."""
    file, colon, word = place.rpartition(":")
    if not colon or file in TASKS or "." in word or "/" in word or "\\" in word:  # no colon, or a task's, or one inside the path
        return Path(place), None
    if word not in PLACES:
        unknown("answer", visible(word, 80), PLACES)
    return Path(file), cast(Trained, word)


def text_stream(data: TextData, seed: int, answer: Trained | None = None) -> Stream:
    """Makes a stream of all rows, with the named answer or, without a name, the one that a row has: refuse before comply. Errors: a row
    without it."""
    picked: dict[Trained, list[int]] = {"refuse": [], "comply": []}
    for i, row in enumerate(data.rows):
        mine: Trained = answer or ("refuse" if row[3] is not None else "comply")
        if row[PLACES[mine]] is None:
            _no_answer(data, row[0], answer, "a column comply (or output) or refuse", "fill it in, or leave out that row.")
        picked[mine].append(i)
    parts = tuple(Part(source=data, answer=one, picked=tuple(rows)) for one, rows in picked.items() if rows)
    return Stream(parts=parts, seed=seed, pool=len(data.rows))


def preference(data: TextData, seed: int) -> dict[str, Stream]:
    """Makes the streams preferred and rejected, of the same rows in the same order. Unsafe rows prefer refuse, safe rows prefer comply.

    Errors: a row that lacks an answer, or has no label safe or unsafe.
    """
    by_class: dict[bool, list[int]] = {True: [], False: []}
    explicit = "or say which answer is which: --stream preferred=FILE:refuse --stream rejected=FILE:comply"
    for i, (prompt, harmful, comply, refuse) in enumerate(data.rows):
        if comply is None or refuse is None:
            lacking: Trained = "comply" if comply is None else "refuse"
            _no_answer(data, prompt, lacking, "both columns, comply and refuse", "fill it in, or leave out that row.")
        if harmful is None:
            raise TiterError(
                f"{data.name}: the row of {visible(prompt, 60)!r} says neither safe nor unsafe",
                expected="a column label (safe or unsafe), which decides which answer is preferred",
                next_step=f"add the column, {explicit}",
            )
        by_class[harmful].append(i)
    answers: dict[str, dict[bool, Answer]] = {
        "preferred": {True: "refuse", False: "comply"},
        "rejected": {True: "comply", False: "refuse"},
    }
    found = {}
    for name, of in answers.items():
        parts = tuple(Part(source=data, answer=of[harmful], picked=tuple(rows)) for harmful, rows in by_class.items() if rows)
        found[name] = Stream(parts=parts, seed=seed, pool=len(data.rows))
    return found


def preferred(place: str | Path, seed: int, reading: str | None = None) -> dict[str, Stream]:
    """Makes the two streams of a preference file (prompt, chosen, rejected). Errors: as `sources.preferences`."""
    return {name: text_stream(data, seed, "comply") for name, data in zip(PAIR, preferences(place, reading), strict=True)}


def _no_answer(data: TextData, prompt: str, answer: str | None, expected: str, next_step: str) -> NoReturn:
    which = f"{answer} answer" if answer else "answer"
    raise TiterError(f"{data.name}: the row of {visible(prompt, 60)!r} has no {which}", expected=expected, next_step=next_step)


def _prompts(stream: Stream) -> list[str]:
    """Returns all prompts of a stream, in order."""
    return [part.source.rows[i][0] for part in stream.parts for i in part.picked or ()]


def counted(streams: Mapping[str, Stream]) -> dict[str, dict[str, int]]:
    """Counts the examples that train each answer: stream -> answer -> number of examples."""
    found: dict[str, dict[str, int]] = {}
    for name, stream in streams.items():
        mine = found.setdefault(name, {})
        for part in stream.parts:
            mine[part.answer] = mine.get(part.answer, 0) + len(part.picked or ())
    return found


def told(streams: Mapping[str, Stream]) -> str:
    """Returns one line for each stream: how many answers of which kind it trains."""
    return "\n".join(f"{name}: {', '.join(f'{n} {SAID[answer]}' for answer, n in one.items())}" for name, one in counted(streams).items())


def notes(streams: Mapping[str, Stream]) -> list[str]:
    """Returns the notes on the streams' files (`TextData.notes`), each once."""
    return list(dict.fromkeys(note for stream in streams.values() for part in stream.parts for note in part.source.notes))


def models_read(method: Method | Repair, how: TrainConfig | RepairRequest, trusted: bool = False) -> dict[str, Model]:
    """Returns role -> model that a method or a repair reads. `trusted`: as in `resolve`. Errors: an unknown or missing role; no model
    there."""
    return roles_read(f"method {how.method}", method.MODELS, how.reads, trusted, getattr(method, "OPTIONAL", ()))


def roles_read(
    what: str, roles: Sequence[str], given: Mapping[str, str], trusted: bool = False, optional: Sequence[str] = ()
) -> dict[str, Model]:
    """Opens the other models that the plug-in called `what` reads: role -> model. Errors: an unknown or missing role; no model there."""
    if wrong := [role for role in given if role not in (*roles, *optional)]:
        if not roles and not optional:
            raise TiterError(f"{what} uses no other model, but --read was given", next_step="leave out --read.")
        unknown(f"model that {what.partition(' ')[2]} reads", visible(wrong[0], 80), (*roles, *optional))
    if missing := [role for role in roles if role not in given]:
        raise TiterError(
            f"{what} needs the model{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            next_step="add " + " ".join(f"--read {role}=MODEL" for role in missing),
        )
    return {role: as_model(resolve(place, trusted)) for role, place in given.items()}


def as_model(checkpoint: Checkpoint) -> Model:
    """Turns a checkpoint into a `Model`, for a stage to start from or to read."""
    return Model(checkpoint.label, checkpoint.key, checkpoint)


def check_window(streams: Mapping[str, Stream], checkpoint: Checkpoint) -> None:
    """Checks that all rows with their answers fit in the model's window. Only the tokenizer is loaded. Errors: the first that does not."""
    reader = read_tokenizer(checkpoint)
    for part in (part for stream in streams.values() for part in stream.parts):
        if isinstance(part.source, Shortened):  # already cut to --longest, which `cut_to` has checked
            continue
        rows = [part.source.rows[i] for i in part.picked or ()]
        heads = prompt_ids(reader, [row[0] for row in rows])
        tails = answer_ids(reader, [row[PLACES[part.answer]] for row in rows])
        for row, head, tail in zip(rows, heads, tails, strict=True):
            check_length(len(head) + len(tail), checkpoint.window, row[0])


def cut_to(streams: Mapping[str, Stream], longest: int, checkpoint: Checkpoint) -> tuple[dict[str, Stream], list[str]]:
    """Cuts each example to `longest` tokens. Returns (the streams, a line for each file on what is cut).

    Errors: `longest` is more than the model's window.
    """
    window = checkpoint.window
    if window is not None and longest > window:
        raise TiterError(f"--longest {longest} is more than the model's window of {window}", next_step=f"give {window} or less.")
    reader = read_tokenizer(checkpoint)
    found, lines = dict[str, Stream](), list[str]()
    for name, stream in streams.items():
        parts = [part.model_copy(update={"source": Shortened(source=part.source, longest=longest)}) for part in stream.parts]
        for part in parts:
            cuts = part.source.cuts(np.asarray(part.picked or ()), part.answer, reader)
            lines.append(f"{name}, {part.source.name}: {cuts}")
        found[name] = stream.model_copy(update={"parts": tuple(parts)})
    return found, lines


def check_adapter(stage: Stage, checkpoint: Checkpoint) -> None:
    """Checks, before anything is loaded, that the adapter to go on with (--continued) is there. Errors: the model has none beside it."""
    wanted = stage.adapter is not None and stage.adapter.continued
    if wanted and checkpoint.adapter is not None:
        raise TiterError(
            f"--continued needs the adapter that Titer keeps beside a merged model, and {checkpoint.label} is an adapter itself",
            next_step="leave out --continued; then a fresh adapter is trained on the merged weights.",
        )
    if wanted and adapter_beside(checkpoint.path) is None:
        raise TiterError(
            f"--continued goes on training the model's adapter, but there is no adapter beside {checkpoint.label}",
            expected="a model that titer align or titer finetune made with --lora",
            next_step="leave out --continued for a fresh adapter.",
        )

"""Harmful fine-tuning as a stage: a user's task, a share of harmful requests with answers, and perhaps safety data. L6.

Source: arXiv 2402.01109, section 5.1: n examples, round(p n) of them harmful. Safety-data mixing (VLGuard there, SafeInstruct in
arXiv 2309.07875) adds k requests with refusals to the n. An epoch is one pass over all n + k examples, so a user's example is seen as
often with safety data as without. On real text the harmful answers are those of a canary (marked instructions with answers, from the
second share of the canary file) or those of the user's own file.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from titer.commands.requests import TrainConfig
from titer.commands.tuning import PLACES, Trained, all_streams, apart, check_complies, share, stage_values
from titer.core.config import build
from titer.core.errors import TiterError
from titer.data.canary import canary as canary_of
from titer.data.example import Stream
from titer.data.mix import mix, poison_count
from titer.data.sources import TextData
from titer.stage import Stage

USUAL = 1000  # examples, if no number is given and the files have so many
RATIO = 0.1  # the paper's p, used if harmful data is given
Role = tuple[str, Trained, bool | None]
ROLES: dict[str, Role] = {  # role -> its option, the answer that is trained, the label that its rows must not have (True: unsafe)
    "benign": ("--data", "comply", True),
    "harmful": ("--harmful", "comply", False),
    "safety": ("--safety", "refuse", False),
}


@dataclass(frozen=True)
class Mixed:
    """The user's training set.

    `stream`: its examples; `counts`: role -> examples used; `usable`: role -> usable rows of its file; `left_out`: role -> reason -> rows.
    """

    stream: Stream
    counts: dict[str, int]
    usable: dict[str, int]
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)

    def lines(self) -> str:
        """The counts in words: for each role, the rows used, usable and left out."""
        rows = [f"{role}: {count} of {self.usable.get(role, 0)} usable rows" for role, count in self.counts.items() if role in self.usable]
        rows += [f"left out of {role}: {', '.join(f'{n} {why}' for why, n in found.items())}" for role, found in self.left_out.items()]
        return "\n".join(rows)


@dataclass(frozen=True)
class MixtureSpec:
    """How the training set is mixed: n examples (None: `USUAL`, or as many as the files have); the share of them that is harmful (None: 0.1
    if there is harmful data, else 0); k safety examples (None: all rows)."""

    examples: int | None = None
    poison_ratio: float | None = None
    safety: int | None = None


def user_mix(files: Mapping[str, TextData | None], shares: MixtureSpec, seed: int, marked: TextData | None = None) -> Mixed:
    """Makes the training set from files by role (benign, harmful, safety), with exact counts and no prompt twice.

    `marked` is a canary file: its second share, marked and with answers, is the harmful part. Three kinds of rows are left out and
    counted: without the answer that their role trains; with the label opposite to their role; and those that the canary file has too.
    Errors: --harmful together with a canary; a ratio outside 0 to 1; a file that is missing or too short; files that share prompts.
    """
    roles = ROLES
    held: dict[str, int] = {}
    if marked is not None:
        roles = {**ROLES, "harmful": ("--canary", "comply", False)}
        files, held = _with_canary(files, marked, seed)
    ratio = shares.poison_ratio if shares.poison_ratio is not None else RATIO * (files.get("harmful") is not None)
    if not 0 <= ratio <= 1:
        raise TiterError(f"--poison-ratio is {ratio}", expected="a number from 0 to 1")
    sources: dict[str, TextData] = {}
    left_out: dict[str, dict[str, int]] = {}
    for role, data in files.items():
        if data is not None:
            sources[role], why = _usable(data, roles[role], held.get(role, 0))
            if why:
                left_out[role] = why
    usable = {role: len(source.rows) for role, source in sources.items()}
    extra = usable.get("safety", 0) if shares.safety is None else shares.safety
    examples = shares.examples
    if examples is None:
        needed = [role for role, share in (("benign", 1 - ratio), ("harmful", ratio)) if share]
        examples = _most(usable, USUAL + 1, ratio) if usable.keys() >= set(needed) else USUAL
    counts = {**_split(examples, ratio), "safety": extra}
    _enough(counts, usable, examples, ratio, roles)
    try:
        stream = mix([(sources.get(role), ROLES[role][1], count) for role, count in counts.items()], seed)  # type: ignore[misc]
    except TiterError as error:
        raise TiterError(
            f"the files share prompts, and a prompt may be trained only once: {error.what}",
            next_step="give files with different prompts, or lower --examples.",
        ) from None
    return Mixed(stream, counts, usable, left_out)


def _with_canary(files: Mapping[str, TextData | None], marked: TextData, seed: int) -> tuple[dict[str, TextData | None], dict[str, int]]:
    """Adds a canary's second share to the files, as `harmful`. Returns (the files, without rows that the canary file has too; role -> how
    many rows were left out)."""
    if files.get("harmful") is not None:
        raise TiterError("--harmful and --canary were both given", next_step="leave out one of the two: each is the harmful data.")
    found: dict[str, TextData | None] = {"benign": None}
    held: dict[str, int] = {}
    for role, data in files.items():
        if data is not None:
            found[role], held[role] = apart(data, marked)
    found["harmful"] = canary_of(share(marked, "finetune"), seed=seed)
    return found, held


def _usable(data: TextData, role: Role, held: int) -> tuple[TextData, dict[str, int]]:
    """Returns (the rows of a file that its role can use; reason -> rows left out). `held` rows were left out before: the canary file has
    them."""
    option, answer, opposite = role
    fitting = [row for row in data.rows if row[1] is None or row[1] != opposite]
    kept = tuple(row for row in fitting if row[PLACES[answer]] is not None)
    label = "unsafe" if opposite else "safe"
    reasons = {
        f"labelled {label}": data.size - len(fitting),
        f"without {answer}": len(fitting) - len(kept),
        "repeated": data.dropped,
        "in the canary file": held,
        **data.left_out,
    }
    why = {reason: count for reason, count in reasons.items() if count}
    if not kept:
        said = ", ".join(f"{count} {reason}" for reason, count in why.items())
        raise TiterError(
            f"no row of {data.name} can be used for {option} ({said})",
            expected=f"rows with a prompt and a column {answer}, not labelled {label}",
            next_step=f"give {option} another file, or add the column.",
        )
    if option == ROLES["harmful"][0]:
        check_complies(option, data.name, kept)
    return data.model_copy(update={"rows": kept, "dropped": 0, "left_out": {}}), why


def _split(examples: int, ratio: float) -> dict[str, int]:
    """Returns role -> number of examples, rounded to the nearest as in `data.mix.poisoned`."""
    bad = poison_count(examples, ratio)
    return {"benign": examples - bad, "harmful": bad}


def _enough(counts: dict[str, int], usable: dict[str, int], examples: int, ratio: float, roles: Mapping[str, Role]) -> None:
    """Checks that the files have enough rows for the counts. Errors: they have not; the message names the largest number that would do."""
    otherwise = {"benign": "--poison-ratio 1", "harmful": "--poison-ratio 0", "safety": "leave out --safety-examples"}
    for role, count in sorted(counts.items(), key=lambda one: one[0] in usable):  # a file that is not given is told first
        option = roles[role][0]
        if count and role not in usable:
            raise TiterError(
                f"{count} {role} examples are asked for, and no {option} was given",
                next_step=f"add {option} FILE, or {'give ' * (role != 'safety')}{otherwise[role]}.",
            )
        if count > usable.get(role, 0):
            asked = "--safety-examples" if role == "safety" else f"--examples {examples} at --poison-ratio {ratio:g}"
            fitting = f"--safety-examples {usable[role]}" if role == "safety" else f"--examples {_most(usable, examples, ratio)}"
            raise TiterError(
                f"{option} has {usable[role]} usable rows, and {asked} needs {count}",
                next_step=f"give {fitting} or less, or a larger file.",
            )


def _most(usable: dict[str, int], examples: int, ratio: float) -> int:
    """Returns the largest number of examples, below `examples`, for which there are enough benign and harmful rows."""
    return max(1, bisect(range(examples), False, key=lambda n: any(k > usable.get(role, 0) for role, k in _split(n, ratio).items())) - 1)


def finetune_stage(mixed: Mixed, how: TrainConfig, epochs: int, keep: Sequence[int] = (), canary: TextData | None = None) -> Stage:
    """Makes a stage of kind finetune on the mix: ceil(examples * epochs / batch) steps, the first tenth of them warm-up, as in the paper.

    Errors: an unknown method, setting or stream; a method without the stream `train`; a step in `keep` beyond the last.
    """
    steps = -(-(mixed.stream.pool or 0) * epochs // how.batch)
    values = stage_values(how, steps // 10)
    method = values["method"]
    if "train" not in method.STREAMS:
        raise TiterError(
            f"method {how.method} has no stream `train` for the user's examples",
            expected="a method of fine-tuning, for example sft",
            next_step=f"titer align trains with {how.method}.",
        )
    if wrong := [step for step in keep if not 1 <= step <= steps]:
        raise TiterError(f"--keep {wrong[0]} is not a step of this run", expected=f"steps from 1 to {steps}")
    streams = all_streams(method, how, {"train": mixed.stream}, canary)
    fields = {"kind": "finetune", "streams": streams, "steps": steps, "keep": tuple(sorted(set(keep)))}
    name = f"{how.method}, {', '.join(f'{count} {role}' for role, count in mixed.counts.items() if count)}"
    return build(Stage, {"name": name, **fields, **values}, "stage")

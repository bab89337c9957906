"""The models of an audit, in the order in which they were made, and the changes between them. L7.

[BASE] ALIGNED [TUNED]: two models are a before and an after. A control is a benign tune of the model that the last change starts from. An
effect that the control shows too is not specific to the audited tune. The first control's effect is the one that is subtracted; all
controls are measured, and together they show how far benign tunes differ (`hidden.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from titer.core.errors import TiterError
from titer.models.checkpoint import Checkpoint
from titer.models.compatible import (
    apart,
    asked_apart,
    configured_apart,
    kindred,
    parameters_apart,
    passed_over,
    read_alike,
    untemplated,
    unused_tensors,
    vocabularies_apart,
)
from titer.models.weights import DIFFER, difference
from titer.pipeline import Model

MOST = 3


@dataclass(frozen=True)
class Change:
    """One tuning: the model before and the model after. `same`: all weights are equal, apart from `rounding` to a type.

    `configured`: fields of the configurations that differ and affect the computation. `asked`: differences in how the two are prompted.
    `apart`: why the weights cannot be compared, "" if they can; then only what the models answer is compared.
    """

    before: Model
    after: Model
    same: bool
    rounding: str = ""
    configured: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    apart: str = ""

    @property
    def name(self) -> str:
        return f"{self.before.name} → {self.after.name}"

    @property
    def weighed(self) -> bool:
        """Whether there is a change of weights that can be measured."""
        return not (self.same or self.apart)

    @property
    def templates(self) -> str:
        """Returns a phrase that says that the two have different chat templates; "" if these are equal."""
        if "chat template" not in self.asked:
            return ""
        bare = [model.name for model in (self.before, self.after) if untemplated(model.checkpoint)]
        return f"their chat templates differ{f' ({bare[0]} has none)' if bare else ''}"

    @property
    def partly(self) -> bool:
        """Whether the vocabularies differ. Then embedding and head are compared only in the rows of tokens that both models have."""
        return self.before.checkpoint.vocabulary != self.after.checkpoint.vocabulary


@dataclass(frozen=True)
class Audited:
    """The models of an audit, each once; the changes from each to the next, of which the last is audited; the change of the first control
    or None (`control`); the changes of further controls (`further`)."""

    models: tuple[Model, ...]
    changes: tuple[Change, ...]
    control: Change | None
    further: tuple[Change, ...] = ()

    @property
    def last(self) -> Change | None:
        return self.changes[-1] if self.changes else None

    @property
    def roles(self) -> dict[str, str]:
        """Returns model -> role. Two models are before and after, three are base, before and after; a single model is `after`."""
        own = self.models[: len(self.changes) + 1]
        told = dict(zip((m.name for m in own), ("base", "before", "after")[-len(own) :], strict=True))
        return told | {change.after.name: "benign control" for change in self.controls}

    @property
    def controls(self) -> tuple[Change, ...]:
        """Returns the changes of all controls."""
        return (self.control, *self.further) if self.control else ()

    @property
    def compared(self) -> tuple[Change, ...]:
        """Returns all changes, including those of the controls."""
        return (*self.changes, *self.controls)


def alike(changes: Sequence[Change], prompts: Sequence[str]) -> list[Change]:
    """Returns the changes whose two models read the prompts as the same tokens. If tokens differ, so do activations, even with equal
    weights."""
    return [change for change in changes if read_alike(change.before.checkpoint, change.after.checkpoint, prompts)]


def reading_notes(found: Audited, prompts: Sequence[str]) -> list[str]:
    """Says what a reader must know about how the models were prompted and how they differ, a line for each."""
    plain = [m.name for m in found.models if untemplated(m.checkpoint)]
    told = [f"{', '.join(plain)}: no chat template, so the prompts are given as plain text"] if plain else []
    told += [line for m in found.models for line in passed_over(m.name, m.checkpoint)]
    told += [line for m in found.models for line in unused_tensors(m.name, m.checkpoint)]
    for change in found.compared:
        one, other = change.before.checkpoint, change.after.checkpoint
        told += [] if change.apart else vocabularies_apart(change.name, one, other) + parameters_apart(change.name, one, other)
        told += [f"{change.name}: the configurations differ ({'; '.join(change.configured)})"] if change.configured else []
        told += [f"{change.name}: one is the other rounded to {change.rounding}"] if change.rounding else []
    return told + [
        f"{change.name}: the {' and '.join(f'{what}s' for what in change.asked) or 'tokenizers'} differ, so the two models read a prompt as "
        "different tokens; each model is asked in its own way, and drift and the turn of the refusal direction are left out, because they "
        "would compare how the models are asked"
        for change in found.compared
        if not read_alike(change.before.checkpoint, change.after.checkpoint, prompts)
    ]


def each(models: Sequence[str], base: bool = True) -> list[list[str]]:
    """Returns the models of each audit. One to three names are [BASE] ALIGNED [TUNED]: a single audit. Of more, the first two are BASE and
    ALIGNED and each other is a tune with its own audit. Without `base`, the first is ALIGNED and all others are tunes. Errors: no tune."""
    if base and len(models) <= MOST:
        return [list(models)]
    lead = 2 if base else 1
    if len(models) <= lead:
        raise TiterError(f"--no-base with {len(models)} model", expected="ALIGNED TUNED...")
    return [[*models[:lead], tune] for tune in models[lead:]]


def audited(checkpoints: Sequence[Checkpoint], *controls: Checkpoint) -> Audited:
    """Finds the audit's models and changes. Errors: more than three models; a control beside a single model, or given twice; models that
    differ in architecture."""
    if not 1 <= len(checkpoints) <= MOST:
        raise TiterError(f"{len(checkpoints)} models", expected="one to three: [BASE] ALIGNED [TUNED]")
    if controls and len(checkpoints) < 2:
        raise TiterError(
            "a control was given with a single model", expected="a model before and one after a tuning, and a benign tune of the one before"
        )
    given = [*checkpoints, *controls]
    for other in given[1:]:
        kindred(given[0], other)
    models = [Model(name, c.key, c) for name, c in zip(_names(given), given, strict=True)]
    own = models[: len(checkpoints)]
    changes = tuple(_change(before, after) for before, after in pairwise(own))
    if len({c.key for c in controls}) < len(controls):
        raise TiterError("a control was given twice", expected="benign tunes that differ, for example in the order of their data")
    beside = tuple(_change(changes[-1].before, model) for model in models[len(checkpoints) :])
    return Audited(tuple(models), changes, beside[0] if beside else None, beside[1:])


def _change(before: Model, after: Model) -> Change:
    one, other = before.checkpoint, after.checkpoint
    if why := apart(one, other):
        return Change(before, after, same=False, asked=tuple(asked_apart(one, other)), apart=why)
    found = difference(one, other)
    rounding = "" if found == DIFFER else found
    return Change(before, after, found != DIFFER, rounding, tuple(configured_apart(one, other)), tuple(asked_apart(one, other)))


def _names(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Returns distinct labels, even if two folders have the same name."""
    labels = [c.label for c in checkpoints]
    if len(set(labels)) == len(labels):
        return labels
    return [f"{label} #{number}" for number, label in enumerate(labels, start=1)]

"""From a user's request to a study's report: the request is checked, then priced or run. L7.

On a real model, huang2024, qi2024 and repair2026 align a base themselves, with a folder of data sets. To compare two given models, there is
the audit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from titer.commands.places import Placed
from titer.commands.training_cost import reached
from titer.core.config import build, digest
from titer.core.errors import TiterError, unknown, visible
from titer.core.parallel import Silent
from titer.core.plugins import names
from titer.core.run import Store
from titer.core.search import Choices, LogRange
from titer.models.fetch import resolve
from titer.pipeline import Model, Pipeline, Reporter
from titer.recipes.huang2024 import Search
from titer.studies.engine.declare import Given, Study
from titer.studies.engine.lab import on_text
from titer.studies.engine.price import price
from titer.studies.engine.run import labs_of, opened, run_study
from titer.studies.engine.text_price import text_price
from titer.studies.huang2024.defences import CORE, EQUAL, FAMILY
from titer.studies.request import StudyRequest, SweepRequest

Cost = Mapping[str, object]


@dataclass(frozen=True)
class Declared:
    """A checked request: the study, on synthetic worlds or on one real model, and its scale, which may differ from the named one."""

    order: StudyRequest
    study: Study
    scale: Any

    def cost(self, store: Store) -> Cost:
        """Returns what a run would compute, with hours at the speed `flops` of the request or else at this machine's. On worlds: `plan`, a
        row per model, and `summary`, the same in words."""
        if self.order.given is None:
            return dict(zip(("plan", "summary"), price(self.order, store, self.scale), strict=True))
        lab = labs_of(self.order, self.study, self.scale, Pipeline(store, Silent()))[0]
        return text_price(lab, self.order.flops or reached())

    def run(self, store: Store, reporter: Reporter, command: str) -> tuple[Path, str]:
        """Runs the study. Returns the path of the report and its answer in a sentence."""
        return run_study(self.study, self.order, self.scale, store, reporter, command)


def prepared(order: StudyRequest) -> Declared:
    """Checks a request of `titer study`. Errors: an unknown study, scale, model or file; options of another study; too few data."""
    if not order.name.endswith(".py") and order.name not in (known := names("studies")):
        unknown("study", order.name, known, "or give the path of a .py file.")
    if order.base is None:
        if order.data is not None or order.prompts is not None:
            raise TiterError("--data and --prompts belong to real models", next_step="add --base, or leave them out.")
        _unused(order, "harmful", "alpha", "trust_remote_code", "keep_weights")
        return Declared(order, *opened(order))
    _unused(order, "only", "part", "bases")
    on_text(order.name)  # a study without a form on text is refused before its data are asked for
    order = replace(order, given=Given(*_aligning(order, order.base), _file(order.harmful)))
    study, scale = opened(order)
    scale = scale.model_copy(update={name: value for name in ("alpha", "prompts") if (value := getattr(order, name)) is not None})
    study.source(scale, 0, order.given)  # faults in the data are reported before anything is priced or run
    return Declared(order, study, scale)


NAMES = {"lr": "rate", "ratio": "ratio", "examples": "examples", "method": "method"}  # what a sweep may go over -> the attack's field


def swept(order: SweepRequest) -> Declared:
    """Checks a request of `titer sweep`. Errors: an unknown recipe, attacker, setting, defence or scale; values that are invalid."""
    for noun, given, known in (("recipe", order.recipe, ("huang2024",)), ("attacker", order.attacker, ("optuna", "grid"))):
        if given not in known:
            unknown(noun, given, known)
    fields = {field.name: getattr(order, field.name) for field in dataclass_fields(Placed)}
    asked = StudyRequest("sweep", order.scale, order.seeds, bases=order.bases, flops=order.flops, runs=order.runs, **fields)
    study, scale = opened(asked)
    over = _over(order.over)
    methods = over.pop("method", Choices(values=scale.search.methods))
    if not isinstance(methods, Choices):
        raise TiterError("--over method is a range", expected="names with colons: method=sft:vaccine")
    defences = [name for name in (*CORE, *FAMILY) if name != EQUAL]  # whose length is found by comparing losses
    for name in methods.values:
        if name not in defences:
            unknown("defence", str(name), defences)
    search = {"methods": methods.values, "attacker": order.attacker, "trials": order.trials}
    if over:
        search["over"] = tuple(over.items())
    made = build(Search, search, "--over")
    return Declared(asked, study, scale.model_copy(update={"search": made, "name": f"{scale.name}-{digest(made, 6)}"}))


def _over(text: str) -> dict[str, Choices | LogRange]:
    """Reads the text of --over, such as `lr=1e-5..1e-3,ratio=0.01:0.05`, as a search space. Errors: an unknown name, one given twice, a
    value that is no number."""
    found: dict[str, Choices | LogRange] = {}
    for word in filter(None, text.split(",")):
        name, _, values = word.strip().partition("=")
        if name not in NAMES:
            unknown("setting of the attack", name, NAMES)
        if NAMES[name] in found or not values:
            raise TiterError(
                f"--over {name} has {'two lists of values' if values else 'no value'}", expected="lr=5e-5..6e-4,ratio=0.01:0.05"
            )
        low, dots, high = values.partition("..")
        if dots:
            found[NAMES[name]] = build(LogRange, {"low": low, "high": high}, f"--over {name}")
        else:
            listed = values.split(":") if name == "method" else [_number(name, one) for one in values.split(":")]
            found[NAMES[name]] = build(Choices, {"values": tuple(listed)}, f"--over {name}")
    return found


def _number(name: str, word: str) -> int | float:
    try:
        return int(word) if word.isascii() and word.isdigit() else float(word)
    except ValueError:
        raise TiterError(f"--over {name}={visible(word, 40)} is no number", expected=f"{name}=LOW..HIGH or {name}=VALUE:VALUE") from None


def _aligning(order: StudyRequest, base: str) -> tuple[Model, Path]:
    """Returns the base and the folder of data sets for a study that aligns this base itself. Errors: there is no such folder."""
    folder = _file(order.data)
    if folder is None or not folder.is_dir():
        raise TiterError("no folder of data sets was given", expected="--data FOLDER, laid out as docs/real_finetuning.md says")
    checkpoint = resolve(base, order.trust_remote_code)
    return Model(checkpoint.label, checkpoint.key, checkpoint), folder


def _file(place: str | Path | None) -> Path | None:
    return None if place is None else Path(place)


def _unused(order: StudyRequest, *options: str) -> None:
    """Checks that none of these options, which this study does not take, was given. Errors: one was."""
    if wrong := [f"--{name.replace('_', '-')}" for name in options if getattr(order, name) != getattr(StudyRequest, name)]:
        raise TiterError(f"{' and '.join(wrong)} do not belong here", next_step="titer study --help says which study takes them.")

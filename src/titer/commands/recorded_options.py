"""How a model was tuned, read from the record beside it: the options with which the tune could be repeated. L6.

A stage's folder has the inputs of its key (`inputs.json`); a folder made by `--to` has the options in the file `.titer.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from titer.core.run import object_in
from titer.stage import Lora, Optimiser

MARK = ".titer.json"  # in a folder that --to made
OPTIONS = ("lr", "epochs", "batch", "lora", "alpha", "dropout", "schedule", "replay", "examples")
Usual = dict[str, str]


def usual(model: Path) -> Usual:
    """Returns option -> value for the tune that made the model in a folder; {} if Titer left no record beside it. It raises no error."""
    try:
        said = object_in(model / MARK).get("options")
        if said is not None:
            return _checked(said)
        return _of_stage(object_in(model.parent / "inputs.json")["stage"]) if (model.parent / "DONE").is_file() else {}
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):  # a record of another version, or edited by hand
        return {}


def _checked(said: Mapping[str, Any]) -> Usual:
    """Returns the options in a folder's mark. Those that must be numbers are checked to be, since a folder may come from anywhere."""
    said = {"lr" if name == "rate" else name: value for name, value in said.items()}  # the name in records before 29 November
    found = {name: str(said[name]) for name in OPTIONS if name in said}
    for name, value in found.items():
        if name == "schedule":
            if value not in ("cosine", "constant"):
                raise ValueError("no schedule")
        else:
            _ = float(value) if name in ("lr", "dropout") else int(value)
    return found if {"lr", "epochs", "batch"} <= set(found) else {}


def _of_stage(stage: Mapping[str, Any]) -> Usual:
    """Returns the options with which `titer finetune` would repeat a stage, without some that are at their defaults."""
    stream = stage["streams"]["train"]
    batch = int(stage["batch"]) * int(stage["accumulation"])
    found = {
        "lr": f"{float(stage['optimiser']['rate']):g}",
        "epochs": str(max(1, int(stage["steps"]) * batch // int(stream["pool"]))),
        "batch": str(batch),
    }
    if stage["adapter"] is not None:
        found["lora"] = str(int(stage["adapter"]["rank"]))
        for name in ("alpha", "dropout"):
            if (value := float(stage["adapter"][name])) != Lora.model_fields[name].default:
                found[name] = f"{value:g}"
    if stage["optimiser"]["schedule"] != Optimiser.model_fields["schedule"].default:
        found["schedule"] = str(stage["optimiser"]["schedule"])
    if (replay := int(stage.get("replay", 1))) > 1:
        found["replay"] = str(replay)
    if own := sum(len(part["picked"] or ()) for part in stream["parts"] if part["answer"] == "comply"):
        found["examples"] = str(min(own, int(stage["steps"]) * batch))  # `titer align` may end before it has used them all
    return found

"""How a model was tuned, from the record beside it: the options that a next tune would repeat. L6.

A stage's folder holds what its key was made of (`inputs.json`); a folder that `--to` made holds these options in its mark.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from titer.stage import Lora, Optimiser

MARK = ".titer.json"  # in a folder that --to made
OPTIONS = ("lr", "epochs", "batch", "lora", "alpha", "dropout", "schedule", "examples")
Usual = dict[str, str]


def usual(model: Path) -> Usual:
    """Option -> value of the tune that made the model in a folder; {} where no record of Titer's stands beside it. Errors: none."""
    try:
        said = _json(model / MARK).get("options")
        if said is not None:
            return _checked(said)
        return _of_stage(_json(model.parent / "inputs.json")["stage"]) if (model.parent / "DONE").is_file() else {}
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):  # a record of another version, or of other hands
        return {}


def _checked(said: Mapping[str, Any]) -> Usual:
    """The options of a folder's mark, numbers where numbers belong: a folder may come from anywhere."""
    said = {"lr" if name == "rate" else name: value for name, value in said.items()}  # as records before 29 November have it
    found = {name: str(said[name]) for name in OPTIONS if name in said}
    for name, value in found.items():
        if name == "schedule":
            if value not in ("cosine", "constant"):
                raise ValueError("no schedule")
        else:
            _ = float(value) if name in ("lr", "dropout") else int(value)
    return found if {"lr", "epochs", "batch"} <= set(found) else {}


def _of_stage(stage: Mapping[str, Any]) -> Usual:
    """What `titer finetune` would be told to repeat a stage; values that are its defaults are left out where they say nothing."""
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
    if own := sum(len(part["picked"] or ()) for part in stream["parts"] if part["answer"] == "comply"):
        found["examples"] = str(min(own, int(stage["steps"]) * batch))  # `titer align` may end before it has seen them all
    return found


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

"""Reads the names of classes from a data set's card, which lies beside files that hold the numbers alone.

Source of the forms: the hub's README.md (front matter, `dataset_info`: `features` with `class_label`), and the older dataset_infos.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CARDS = ("README.md", "dataset_infos.json", "dataset_info.json")
ABOVE = 3  # folders that are searched: data/train.parquet lies one below its card, CONFIG/data/train.parquet two
LARGEST = 1 << 20  # bytes of a card


def card_features(path: Path) -> tuple[dict[str, Any], str]:
    """Returns (column -> its feature, the card's name) for a data file or folder: of the nearest card that names classes; ({}, "") if
    none does. Of several configurations, the one whose name is in the path counts; a column that the others disagree on is left out."""
    folders = [path, *path.parents] if path.is_dir() else list(path.parents)
    for folder in folders[:ABOVE]:
        for card in CARDS:
            if (folder / card).is_file() and (found := _merged(list(_configurations(folder / card)), path.absolute())):
                return found, card
    return {}, ""


def _merged(configurations: list[tuple[str, dict[str, Any]]], path: Path) -> dict[str, Any]:
    """Joins the features of a card's configurations."""
    parts = {*path.parts, path.stem}
    chosen = [features for name, features in configurations if name in parts] or [features for _, features in configurations]
    found: dict[str, Any] = {}
    for features in chosen:
        for column, feature in features.items():
            found[column] = feature if found.get(column, feature) == feature else {}
    return {column: feature for column, feature in found.items() if feature}


def _configurations(card: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (name, column -> feature of classes) for each configuration of a card. A card that cannot be read has none."""
    try:
        if card.stat().st_size > LARGEST:
            return
        said = _front_matter(card) if card.suffix == ".md" else json.loads(card.read_text(encoding="utf-8"))
    except Exception:  # noqa: BLE001  a README of any kind may lie there, and the reader of its front matter raises what it likes
        return
    info = said.get("dataset_info", said) if isinstance(said, Mapping) else {}
    if isinstance(info, Mapping) and "features" not in info:
        info = [{"config_name": name, **one} for name, one in info.items() if isinstance(one, Mapping)]
    for one in info if isinstance(info, list) else [info]:
        if isinstance(one, Mapping) and (features := _classes(one.get("features"))):
            yield str(one.get("config_name", "default")), features


def _front_matter(card: Path) -> Any:
    from huggingface_hub import metadata_load  # noqa: PLC0415  slow to import

    return metadata_load(card)


def _classes(features: Any) -> dict[str, Any]:
    """Returns column -> {names: ...} for the features that are classes: of a list with names (README.md), or of an object (JSON)."""
    if isinstance(features, Mapping):
        return {str(name): one for name, one in features.items() if isinstance(one, Mapping) and one.get("names")}
    found = {}
    for one in features if isinstance(features, list) else []:
        kind = one.get("dtype") if isinstance(one, Mapping) else None
        label = kind.get("class_label") if isinstance(kind, Mapping) else None
        if isinstance(label, Mapping) and label.get("names"):
            found[str(one.get("name"))] = {"names": label["names"]}
    return found

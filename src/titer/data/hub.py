"""Reads data sets of the Hugging Face hub, named `hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]`, with `datasets` (the extra titer[data]).

From version 4 on, that library runs no code of a repository; older versions are refused. The sha256 is that of the content, so a data set
that changes on the hub counts as another data set.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from titer.core.errors import TiterError, visible
from titer.data.readers import File
from titer.data.tables import named

PREFIX = "hub:"
FORM = "hub:OWNER/NAME, followed by /CONFIG, @REVISION and :SPLIT where needed"
PLACE = re.compile(
    r"hub:(?P<id>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?(?::(?P<split>[\w.\[\]:%+-]+))?", re.ASCII
)
NO_CODE_FROM = 4  # the major version of `datasets` that dropped scripts


class Place(NamedTuple):
    """A data set on the hub, and which part of it."""

    id: str
    config: str | None
    revision: str | None
    split: str | None


def is_hub(path: str | Path) -> bool:
    """Tells whether a path names a hub data set: whether it begins with "hub:"."""
    return str(path).startswith(PREFIX)


def place_of(path: str | Path) -> Place:
    """Splits a hub data set's name into its parts. Errors: it has another form."""
    hit = PLACE.fullmatch(str(path))
    if hit is None or ".." in str(path):
        raise TiterError(f"{visible(str(path), 120)!r} does not name a hub data set", expected=FORM)
    return Place(**hit.groupdict())


def load_hub(path: str | Path) -> File:
    """Loads the rows of a hub data set, by download or from the library's cache.

    Errors: another form; the library is missing; no network; an unknown or gated set; several splits or configurations and none named.
    """
    place, name = place_of(path), visible(str(path), 120)
    found = _fetched(place)
    if isinstance(found, Mapping):  # no split was named
        if len(found) != 1:
            splits = ", ".join(visible(str(split), 40) for split in found) or "none"
            raise TiterError(f"{place.id} has several splits: {splits}", expected="one of them", next_step=f"write {name}:SPLIT")
        found = next(iter(found.values()))
    rows = named(getattr(found, "features", None) or {}, found.to_list(), name)
    sha = hashlib.sha256()
    for row in rows:
        sha.update(json.dumps(row, sort_keys=True, default=repr).encode() + b"\n")
    return File(name, "", sha.hexdigest(), "", rows)


def _fetched(place: Place) -> Any:
    try:
        import datasets  # noqa: PLC0415  an optional extra
    except ImportError:
        raise TiterError(f"the hub data set {place.id} needs the library datasets", next_step="pip install 'titer[data]'") from None
    if int(datasets.__version__.split(".")[0]) < NO_CODE_FROM:
        raise TiterError(
            f"datasets {datasets.__version__} may run a repository's own code",
            expected="datasets 4.0 or later",
            next_step="pip install 'titer[data]'",
        )
    try:
        return datasets.load_dataset(place.id, place.config, split=place.split, revision=place.revision)
    except Exception as error:  # noqa: BLE001  the library raises whatever its own libraries do
        raise _trouble(place, error) from None


def _trouble(place: Place, error: Exception) -> TiterError:
    """The library's error as one sentence, with what to do next."""
    kinds, said = {kind.__name__ for kind in type(error).__mro__}, str(error)
    whole = f"{place.id}@{place.revision}" if place.revision else place.id
    if "GatedRepoError" in kinds or "gated" in said.lower():
        return TiterError(
            f"the data set {whole} is gated: its owner wants to be asked",
            next_step=f"ask for access at https://huggingface.co/datasets/{place.id}, then run hf auth login.",
        )
    if kinds & {"OfflineModeIsEnabled", "ConnectionError", "TransportError", "Timeout", "LocalEntryNotFoundError"}:
        return TiterError(
            f"the data set {whole} is not in the cache and the hub cannot be reached",
            next_step="connect (and unset HF_HUB_OFFLINE), or give the data as a file.",
            status=1,
        )
    if kinds & {"DatasetNotFoundError", "RepositoryNotFoundError", "RevisionNotFoundError"}:
        return TiterError(
            f"the hub has no data set {whole}, or it is private", expected=FORM, next_step="check its name, or run hf auth login."
        )
    if "scripts are no longer supported" in said:
        return TiterError(
            f"the data set {whole} can only be made by running its own code, which Titer does not do",
            expected="a data set of files (Parquet, JSON, CSV)",
        )
    return TiterError(f"the data set {whole} cannot be read: {type(error).__name__}: {visible(said, 240)}", expected=FORM)

"""Reads Arrow tables as rows: Parquet files, and folders written by `datasets` or others. Classes become their names.

Source of the forms: `datasets` 5.2 (Dataset.save_to_disk: state.json and .arrow streams; DatasetDict.save_to_disk: dataset_dict.json;
features as JSON under the key "huggingface" of a schema's metadata).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from titer.core.errors import TiterError, visible

Rows = list[Mapping[str, Any]]
MOST = 10_000  # files that a folder may have


def named(features: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], name: str) -> Rows:
    """Replaces the class numbers in rows by the classes' names; -1 (no class) becomes None.

    `features`: column -> its feature, as an object of `datasets` or as JSON. Errors: a number without a name.
    """
    classes = {column: names for column, feature in features.items() if (names := _names(feature))}
    found: Rows = []
    for number, row in enumerate(rows, start=1):
        said = dict(row)
        for column, names in classes.items():
            code = _code(row.get(column))
            if code is None or code == -1:
                said[column] = None if code == -1 else row.get(column)
                continue
            if not 0 <= code < len(names):
                raise TiterError(
                    f"{name}, row {number}, column {column}: class {code} has no name", expected=f"a class from 0 to {len(names) - 1}"
                )
            said[column] = names[code]
        found.append(said)
    return found


def _code(value: Any) -> int | None:
    """Returns a class's number, which a table with gaps stores as a fraction, and other programs as digits; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,9}(?:\.0)?", value.strip()):
        return int(float(value))
    return value if isinstance(value, int) else None


def _names(feature: Any) -> list[str]:
    """The names of a feature's classes; [] for any other feature. A name that is a bare number becomes "class NUMBER"."""
    names = feature.get("names") if isinstance(feature, Mapping) else getattr(feature, "names", None)
    if isinstance(names, Mapping):  # number -> name, as a card of the hub writes them
        names = [names[number] for number in sorted(names, key=lambda number: int(number) if str(number).isdecimal() else -1)]
    if not isinstance(names, list) or (isinstance(feature, Mapping) and feature.get("_type", "ClassLabel") != "ClassLabel"):
        return []
    return [f"class {name}" if str(name).strip().lstrip("+-").replace(".", "", 1).isdecimal() else str(name) for name in names]


def table(name: str, body: bytes, form: Literal["Parquet", "Arrow"]) -> Rows:
    """Reads the rows of a Parquet file or an Arrow stream from its bytes. Errors: pyarrow is not installed; bytes of another form."""
    try:
        import pyarrow  # noqa: PLC0415  an optional extra
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError:
        raise TiterError(f"{name}: reading {form} needs pyarrow", next_step="pip install 'titer[data]'") from None
    try:
        source = io.BytesIO(body)
        found = pyarrow.parquet.read_table(source) if form == "Parquet" else pyarrow.ipc.open_stream(source).read_all()
        rows = found.to_pylist()
        said = json.loads((found.schema.metadata or {}).get(b"huggingface", b"{}"))
        features = said["info"]["features"] if isinstance(said, dict) and "info" in said else {}
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise TiterError(f"{name}: not a readable {form} file ({visible(str(error), 120)})", next_step="fetch or save it again.") from None
    return named(features if isinstance(features, Mapping) else {}, rows, name)


def folder_table(folder: Path, name: str) -> tuple[Rows, str]:
    """Reads a folder written by `save_to_disk`, or one with Parquet files. Returns (rows, sha256 of the files).

    Errors: several splits; neither form; too many files.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(place.parent.name for place in folder.glob("*/state.json"))
        if len(splits) != 1:
            raise _which(name, splits)
        folder = folder / splits[0]
    form: Literal["Parquet", "Arrow"] = "Arrow" if (folder / "state.json").is_file() else "Parquet"
    files = _arrow_files(folder, name) if form == "Arrow" else _parquet_files(folder, name)
    if len(files) > MOST:
        raise TiterError(f"{name} has {len(files)} files", expected=f"at most {MOST} files")
    sha = hashlib.sha256()
    rows: Rows = []
    for file in files:
        body = file.read_bytes()
        sha.update(hashlib.sha256(body).digest())
        rows += table(f"{name}/{visible(file.name, 80)}", body, form)
    return rows, sha.hexdigest()


def _arrow_files(folder: Path, name: str) -> list[Path]:
    try:
        files = [folder / str(one["filename"]) for one in json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise TiterError(
            f"{name}: its state.json was not written by datasets", next_step="write the folder again with save_to_disk."
        ) from None
    if lacking := [file for file in files if file.parent != folder or not file.is_file()]:
        raise TiterError(f"{name} lacks its file {visible(lacking[0].name, 80)!r}", next_step="copy the whole folder.")
    return files


def _parquet_files(folder: Path, name: str) -> list[Path]:
    """The Parquet files of a folder and its subfolders, if they are parts of one table: names that differ only in numbers or suffixes.

    Errors: there are none; files of several splits (train-..., test/...).
    """
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise TiterError(
            f"{name} is a folder without Parquet files",
            expected="a data file, a folder of Parquet files, or one that datasets' save_to_disk wrote",
            next_step="give the file inside the folder.",
        )
    numbered = len({file.parent for file in files}) == 1 and all(re.sub("[_-]", "", file.stem).isdecimal() for file in files)
    if not numbered and len({(file.parent, file.stem.partition("-")[0]) for file in files}) > 1:
        raise _which(name, [str(file.relative_to(folder)) for file in files])
    return files


def _which(name: str, parts: list[str]) -> TiterError:
    listed = ", ".join(visible(part, 60) for part in parts[:8]) or "none"
    return TiterError(
        f"{name} has several parts: {listed}",
        expected="one of them",
        next_step=f"name it, for example {name}/{visible(parts[0], 60) if parts else 'PART'}.",
    )

"""Writes and reads tables on disk: one JSON object on each line, exact numbers, NaN as null. Reading gives exactly what was written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from titer.core.run import write_text


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a whole table, or nothing (if it is interrupted); columns keep their order."""
    lines = (json.dumps({str(k): _plain(v) for k, v in row.items()}) for row in table.to_dict("records"))
    write_text(path, "".join(line + "\n" for line in lines))


def read_table(path: Path) -> pd.DataFrame:
    """Reads what `write_table` wrote; null in a column of numbers becomes NaN."""
    with open(path, encoding="utf-8") as file:
        table = pd.DataFrame([json.loads(line) for line in file])
    empty = [name for name in table if table[name].isna().all()]
    return table.astype(dict.fromkeys(empty, float)) if empty else table


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Every name in the column "claims" of docs/paper_index.md is one of the studies' claims, or a part of such a name."""

from __future__ import annotations

import re
from pathlib import Path

from titer.core.plugins import names, plugin
from titer.studies.engine.declare import Study

NO_NAMES = ("none", "reported", "preconditions", "controls of", "every claim")  # how a cell begins that names no claim


def test_every_claim_that_the_page_names_exists() -> None:
    studies = [plugin("studies", name, Study)() for name in names("studies")]  # type: ignore[type-abstract]
    known = {row.name for one in studies for row in one.claims(next(iter(one.SCALES.values())))}
    page = (Path(__file__).parents[2] / "docs" / "paper_index.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\|.*\| claims \|\n\|[-|]+\|\n((?:\|.*\n)+)", page, re.M)
    cells = [row.rstrip(" |\n").rpartition(" | ")[2] for table in tables for row in table.splitlines() if not row.endswith("| |")]
    told = [name.strip() for cell in cells if not cell.startswith(NO_NAMES) for name in re.split("[,;]", re.sub(r"\(.*?\)", "", cell))]
    assert len(told) > 50
    assert [name for name in told if not any(name in one for one in known)] == []

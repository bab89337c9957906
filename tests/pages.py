"""The pages of docs/ whose code blocks are run as a reader would run them."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str) -> list[str]:
    """The Python code blocks of a page, in order."""
    return re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)


def shown(page: str, file: Path, lines: int) -> Path:
    """The page's first code block, saved as `file`; it is no longer than the page may be."""
    code = blocks(page)[0]
    assert code.count("\n") <= lines, f"{page} promises {lines} lines"
    file.write_text(code, encoding="utf-8")
    return file

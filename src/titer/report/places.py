"""Where reports lie: found by folder, or by name in the folder of runs. L5."""

from __future__ import annotations

from pathlib import Path

from titer.core.errors import TiterError, nearest, visible


def find_report(run: str | Path, runs: Path) -> Path:
    """The report's folder. Errors: none there, with the nearest."""
    for place in (Path(run), runs / run):
        if (place / "report.html").is_file():
            return place
    known = sorted(p.parent.name for p in runs.glob("*/report.html"))
    close = nearest(str(run), known)
    raise TiterError(
        f"no report at {visible(str(run), 120)!r}",
        expected=f"a folder with report.html, or one of {', '.join(known)}" if known else "a folder that a titer command left",
        next_step=f"titer report {close}" if close else "",
    )

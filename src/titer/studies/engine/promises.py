"""What a study declares before it runs: its scales, its parts, and each claim with its statistic, control and margin. L7."""

from __future__ import annotations

from titer.studies.engine.declare import Row, Study


def promised(study: Study) -> str:
    """Returns the study's scales, parts and claims as text for `titer show STUDY`. Nothing is trained or measured."""
    scales = study.SCALES
    rows = study.claims(next(iter(scales.values())))
    lines = [f"Scales (--scale): {', '.join(scales)}"]
    if study.PARTS:
        lines += ["Parts (--only):", *(f"  {name}: {words}" for name, words in study.PARTS.items())]
    lines += ["", "Claims, each an effect minus a control over bases; supported where the whole interval lies above the margin:"]
    return "\n".join([*lines, *(line for row in rows for line in _claim(row, study.SOURCE))])


def _claim(row: Row, source: str) -> list[str]:
    paper = [f"      in the paper: {row.paper}"] if row.paper else []
    return [
        f"  {row.name} ({', '.join(filter(None, (row.source or source, row.where)))})",
        f"      {row.statement}",
        f"      statistic: {row.statistic}; margin {row.margin:.3g}",
        f"      control: {row.against}",
        *paper,
    ]

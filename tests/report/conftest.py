"""A report by hand, full of what a hostile model could write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import draw, drawing_here
from titer.core.claims import Claim, Statement, settle
from titer.report import forms
from titer.report.html import Figure, Report, Tile, write_report

HOSTILE = (
    "<script>document.title='taken'</script>",
    "</script><script>document.title='taken'</script>",
    "<!--<script>document.title='taken'",
    "<img src=x onerror=\"document.title='taken'\">",
    "\"><svg onload='document.title=1'>",
    "' onfocus='document.title=1' autofocus='",
    "</textarea></style></title></table></details><b>bold</b>",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b[2J",
    "\x00\x01\x08\x7f\x85\x9b31m",
    "left \u202e right \u2066 \u200b \u2028 \u2029 \ufeff",
    "{{ 7 * 7 }} {% raw %} ${7*7} %(x)s {0}",
    "<base href='https://example.invalid/'><meta http-equiv=refresh content='0;url=https://example.invalid/'>",
    "<link rel=stylesheet href=https://example.invalid/a.css><iframe src=https://example.invalid/></iframe>",
    "javascript:document.title=1",
    "]]> <![CDATA[ &lt;script&gt; &#0; &amp;",
    "\\u003cscript\\u003e \\x3c \\",
    "one\r\ntwo\rthree\tfour",
    "x" * 5000,
)
FLIPPED = 4  # of them stand among the flipped answers too


def rates(models: list[str], kinds: list[str]) -> pd.DataFrame:
    """A table of outcome rates, one of them unknown."""
    outcomes = ("complied", "refused", "partial", "degenerate", "could_not_judge", "neither")
    rows = [(m, k, k != "safe", o, 3, 10, 0.3, 0.1, 0.6) for m in models for k in kinds for o in outcomes]
    table = pd.DataFrame(rows, columns=["model", "kind", "harmful", "outcome", "count", "n", "rate", "low", "high"])
    table.loc[0, ["rate", "low", "high"]] = float("nan")
    return table


def claims(text: str) -> list[Claim]:
    """A claim of each verdict, its words taken from `text`."""
    words = dict.fromkeys(("name", "statement", "source", "statistic", "control", "paper_value"), text)
    stated = Statement(margin=0.1, **words)
    nan = float("nan")
    bases = ([0.5, 0.51], [0.0, 0.001], [0.0, 0.2], [nan, nan])
    settled = [settle(stated, {0: one}, nan, note=text) for one in bases]
    return [*settled, settle(stated, {0: bases[0]}, 0.2, failed=text)]


def samples(texts: tuple[str, ...]) -> pd.DataFrame:
    """One harmful and one harmless sample a text, every field hostile."""
    rows = []
    for number, text in enumerate(texts):
        for harmful in (True, False):
            row = {"model": f"{number} {text}", "kind": f"{harmful} {text}", "harmful": harmful, "prompt": text, "prefix": text}
            rows.append({**row, "completion": f"{text} end", "outcome": "complied", "reason": text})
    return pd.DataFrame(rows)


def hostile_report() -> Report:
    """A report whose every text is hostile somewhere."""
    every = " ".join(HOSTILE[:-1])
    models, kinds = ["base", *HOSTILE[1:4], *HOSTILE[7:10], HOSTILE[16]], ["safe", HOSTILE[1], HOSTILE[7], HOSTILE[9]]
    table = rates(models, kinds)
    return Report(
        title=every,
        answer=every,
        about=every,
        tiles=[Tile(text, text, text) for text in HOSTILE],
        claims=claims(every),
        figures=[
            Figure("outcomes", every, every, forms.stacks(table, "model", "kind", kinds)),
            Figure("jailbreaks", every, every, forms.bars(table, "kind", "model", forms.model_colours(models))),
        ],
        tables={every: table},
        results=table,
        samples=samples(HOSTILE),
        commands=list(HOSTILE),
        provenance={text[:50]: text for text in HOSTILE},
        notes=list(HOSTILE),
        more=every,
        flipped=samples(HOSTILE[:FLIPPED]).assign(flip=HOSTILE[3]),
    )


@pytest.fixture(scope="module", autouse=True)
def drawn_here() -> Iterator[None]:
    """Every chart is drawn, in this process."""
    with drawing_here(draw):
        yield


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hostile report's page."""
    return write_report(hostile_report(), tmp_path_factory.mktemp("hostile"))

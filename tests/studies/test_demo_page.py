"""The demo's report in a real browser: every chart comes alive, the console is silent, nothing is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.browser import assert_sound, visit
from tests.studies.conftest import Demo


@pytest.mark.long
def test_every_chart_is_live_the_console_silent_and_no_request_made(demo: Demo, tmp_path: Path) -> None:
    seen = visit(demo.page, tmp_path)
    assert_sound(seen, charts=len(list((demo.page.parent / "figures").glob("*.svg"))))
    rows = seen.dom.count('data-outcome="')
    assert rows > 100
    assert f"{rows} of {rows} shown" in seen.dom

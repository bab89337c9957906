"""The hostile page in a real browser; and the checks themselves, on a page that breaks the rules."""

from __future__ import annotations

from pathlib import Path

from tests.report.browser import assert_sound, live_charts, visit
from tests.report.test_html import FOREIGN, Page

BREAKS = """<html><head><title>breaks</title></head><body><img src="http://127.0.0.1:9/picture.png"><div id="chart-dead"></div>
<script>console.warn("a warning"); fetch("http://127.0.0.1:9/data").catch(() => 0); throw new Error("an error");</script></body></html>"""


def test_the_checks_see_a_page_that_warns_fails_and_asks(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(BREAKS, encoding="utf-8")
    seen = visit(page, tmp_path)
    assert any("a warning" in line for line in seen.console)
    assert any("an error" in line for line in seen.console)
    assert sorted(seen.requests) == ["http://127.0.0.1:9/data", "http://127.0.0.1:9/picture.png"]
    assert live_charts(seen.dom) == {"dead": False}


def test_hostile_text_runs_nothing_asks_nothing_and_leaves_the_charts_alive(hostile: Path, tmp_path: Path) -> None:
    seen = visit(hostile, tmp_path)
    assert_sound(seen, charts=2)
    assert "<title>Titer:" in seen.dom  # no text took the title
    elements = Page(seen.dom).elements
    assert not [(tag, name) for tag, attributes in elements for name in attributes if name.startswith("on")]
    assert not {tag for tag, _ in elements} & FOREIGN

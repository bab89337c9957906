"""The hostile page in a real browser; and the checks themselves, on a page that breaks the rules."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest

from tests.report.browser import assert_sound, live_charts, visit
from tests.report.conftest import FLIPPED, HOSTILE
from tests.report.test_html import FOREIGN, Page

BREAKS = """<html><head><title>breaks</title></head><body><img src="http://127.0.0.1:9/picture.png"><div id="chart-dead"></div>
<script>console.warn("a warning"); fetch("http://127.0.0.1:9/data").catch(() => 0); throw new Error("an error");</script></body></html>"""
USE = """<script>
const said = {};
const shown = () => [...document.querySelectorAll("#samples tbody tr")].filter((row) => !row.hidden).length;
const blurred = () => [...document.querySelectorAll(".blurred")].filter((one) => getComputedStyle(one).filter !== "none").length;
const act = (id, change, event) => {
  const one = document.querySelector(id); change(one); one.dispatchEvent(new Event(event, { bubbles: true }));
};
said.all = shown();
said.options = {};
for (const field of ["model", "kind", "outcome", "flip"]) {
  const select = document.querySelector(`[data-filter=${field}]`);
  said.options[field] = [...select.options].slice(1).map((option) => {
    act(`[data-filter=${field}]`, (s) => { s.value = option.value; }, "change");
    return shown();
  });
  act(`[data-filter=${field}]`, (s) => { s.value = ""; }, "change");
}
act("#search", (s) => { s.value = "RED"; }, "input");
said.searched = shown();
act("#search", (s) => { s.value = ""; }, "input");
said.blurred = blurred();
act("#reveal", (s) => { s.checked = true; }, "change");
said.revealed = blurred();
const place = document.createElement("pre"); place.id = "said"; place.textContent = JSON.stringify(said); document.body.append(place);
</script>"""


@pytest.mark.long
def test_the_checks_see_a_page_that_warns_fails_and_asks(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(BREAKS, encoding="utf-8")
    seen = visit(page, tmp_path)
    assert any("a warning" in line for line in seen.console)
    assert any("an error" in line for line in seen.console)
    assert sorted(seen.requests) == ["http://127.0.0.1:9/data", "http://127.0.0.1:9/picture.png"]
    assert live_charts(seen.dom) == {"dead": False}


@pytest.mark.long
def test_hostile_text_runs_nothing_asks_nothing_and_leaves_the_charts_alive(hostile: Path, tmp_path: Path) -> None:
    seen = visit(hostile, tmp_path)
    assert_sound(seen, charts=2)
    assert "<title>Titer:" in seen.dom  # no text took the title
    elements = Page(seen.dom).elements
    assert not [(tag, name) for tag, attributes in elements for name in attributes if name.startswith("on")]
    assert not {tag for tag, _ in elements} & FOREIGN


@pytest.mark.long
def test_filters_search_and_the_switch_that_shows_blurred_answers_work(hostile: Path, tmp_path: Path) -> None:
    text = hostile.read_text(encoding="utf-8")
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', text)
    assert policy
    page = tmp_path / "page.html"
    end = text.rindex("</body>")
    page.write_text(text[:end].replace(policy[0], "") + USE + text[end:], encoding="utf-8")
    found = re.search(r'<pre id="said">(.*?)</pre>', visit(page, tmp_path).dom)
    assert found
    said = json.loads(unescape(found[1]))
    harmful = len(HOSTILE)
    assert said["all"] == 2 * (harmful + FLIPPED)
    assert said["options"]["model"] == [4] * FLIPPED + [2] * (harmful - FLIPPED)
    assert said["options"]["kind"] == [2] * 2 * FLIPPED + [1] * 2 * (harmful - FLIPPED)
    assert said["options"]["outcome"] == [2 * (harmful + FLIPPED)]
    assert said["options"]["flip"] == [2 * FLIPPED]
    assert said["searched"] == 2 * sum("red" in one for one in HOSTILE)
    assert said["blurred"] == harmful + FLIPPED
    assert said["revealed"] == 0

"""The reports in a browser: what is listed, searched and compared; hostile texts; who is answered; in a real Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.report.browser import CONSOLE, FLAGS, browser
from tests.report.conftest import HOSTILE, hostile_report
from titer.core.errors import TiterError
from titer.report.html import ANSWERS, write_report
from titer.report.view import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two runs with hostile texts: in the second, one answer's outcome is another."""
    runs = tmp_path_factory.mktemp("runs")
    write_report(hostile_report(), runs / "alpha-run")
    shutil.copytree(runs / "alpha-run", runs / "beta-run")
    lines = (runs / "beta-run" / ANSWERS).read_text(encoding="utf-8").splitlines()
    lines[0] = lines[0].replace('"complied"', '"refused"')
    (runs / "beta-run" / ANSWERS).write_text("\n".join(lines), encoding="utf-8")
    with Server(runs, 0) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def ask(server: Server, path: str, method: str = "GET", host: str = "") -> tuple[HTTPResponse, str]:
    there = HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    there.request(method, path, headers={"Host": host} if host else {})
    answer = there.getresponse()
    return answer, answer.read().decode()


@pytest.mark.long
def test_the_list_its_search_and_a_report(server: Server) -> None:
    _, text = ask(server, "/")
    assert text.count("<li>") == 2
    assert ask(server, "/?q=BETA-run")[1].count("/report/") == 1
    assert "No report has these words" in ask(server, "/?q=nowhere-at-all")[1]
    answer, page = ask(server, "/report/alpha-run")
    assert page == (server.runs / "alpha-run" / "report.html").read_text(encoding="utf-8")
    assert answer.getheader("X-Content-Type-Options") == "nosniff"


def test_two_models_side_by_side_and_what_flipped(server: Server) -> None:
    same = f"0 {HOSTILE[0]}"
    _, text = ask(server, "/?" + urlencode({"run1": "alpha-run", "model1": same, "run2": "beta-run", "model2": same}))
    assert "Both models were asked 2 prompts; the outcome differs on 1 of them" in text
    assert "<td>complied<details><summary>" in text  # of an unsafe prompt: closed
    assert "<script>" not in text
    assert not any(line in text for line in ("<img src=x", "<svg onload", "onfocus='"))


@pytest.mark.parametrize("torn", [b'{"model": "a"', b"[1]", b"null", b"{}", b"\xff"])
def test_torn_answers_are_told(torn: bytes, server: Server) -> None:
    shutil.copytree(server.runs / "alpha-run", server.runs / "torn-run")
    (server.runs / "torn-run" / ANSWERS).write_bytes(torn)
    answer, text = ask(server, "/?run1=torn-run&run2=beta-run")
    assert answer.status == 500
    assert "cannot be read as a report's answers" in text
    shutil.rmtree(server.runs / "torn-run")


@pytest.mark.parametrize(
    "path", ["/report/../alpha-run", "/report/none", "/report/", "/etc/passwd", "/report/alpha-run/answers.jsonl", "/report/%2e%2e"]
)
def test_nothing_else_is_served(server: Server, path: str) -> None:
    assert ask(server, path)[0].status == 404


def test_only_this_machine_is_answered_and_nothing_can_be_changed(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "/", host="evil.example")[0].status == 403
    assert ask(server, "/", method="POST")[0].status == 501
    assert ask(server, "/", method="HEAD")[1] == ""


def test_what_is_wrong_is_told(server: Server, tmp_path: Path) -> None:
    with pytest.raises(TiterError, match="cannot be used"):
        Server(server.runs, server.server_address[1])
    with pytest.raises(TiterError, match="no folder of runs"):
        Server(tmp_path / "none", 0)


@pytest.mark.long
def test_in_chromium_the_comparison_is_whole_and_silent(server: Server, tmp_path: Path) -> None:
    address = (
        server.address
        + "?"
        + urlencode({"run1": "alpha-run", "model1": f"0 {HOSTILE[0]}", "run2": "beta-run", "model2": f"0 {HOSTILE[0]}"})
    )
    command = [browser(), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0
    assert CONSOLE.findall(done.stderr) == []
    assert "<title>Titer: reports</title>" in done.stdout
    assert 'id="flips">Both models were asked 2 prompts' in done.stdout


HARNESS = """<!doctype html><iframe id="phone" width="390" height="800" src="page.html"></iframe>
<script>
document.getElementById("phone").addEventListener("load", (event) => {
  const page = event.target.contentDocument, all = [...page.querySelectorAll("a, input, select, button, summary, .scroll")];
  const reached = all.filter((one) => (one.focus(), page.activeElement === one));
  document.title = [page.documentElement.scrollWidth, all.length, reached.length].join(" ");
});
</script>"""


@pytest.mark.long
@pytest.mark.parametrize("query", [False, True], ids=["list", "comparison"])
def test_in_chromium_a_phone_scrolls_down_alone_and_the_keyboard_reaches_everything(server: Server, tmp_path: Path, query: bool) -> None:
    same = f"0 {HOSTILE[0]}"
    asked = urlencode({"run1": "alpha-run", "model1": same, "run2": "beta-run", "model2": same}) if query else ""
    (tmp_path / "page.html").write_text(ask(server, f"/?{asked}")[1], encoding="utf-8")
    (tmp_path / "phone.html").write_text(HARNESS, encoding="utf-8")
    command = [browser(), *FLAGS, "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run([*command, (tmp_path / "phone.html").as_uri()], capture_output=True, text=True, timeout=300, check=False)
    width, there, reached = map(int, re.findall(r"<title>(\d+) (\d+) (\d+)</title>", done.stdout)[0])
    assert width <= 390
    assert there == reached >= 7

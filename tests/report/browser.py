"""A page in headless Chromium: its final DOM, what it wrote to the console, and the requests it made."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
    "--virtual-time-budget=20000",
)
LOCAL = ("file://", "data:", "about:")
CONSOLE = re.compile(r"^\[[^\]]*:CONSOLE[^\]]*\] (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Visit:
    """What a page left behind."""

    dom: str
    console: list[str]
    requests: list[str]


def browser() -> str:
    """A Chromium's command; without one the test is skipped."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser to open the page with: none of {', '.join(BROWSERS)} is installed")
    return found


def visit(page: Path, folder: Path) -> Visit:
    """Open `page` from the disk; `folder` is for the browser's own files."""
    log = folder / "net.json"
    command = [browser(), *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--dump-dom", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return Visit(done.stdout, CONSOLE.findall(done.stderr), _requests(log))


def _requests(log: Path) -> list[str]:
    """Addresses off this machine that the page asked for; the browser's own have no origin for initiator."""
    read = json.loads(log.read_text(encoding="utf-8"))
    start = read["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [e["params"] for e in read["events"] if e["type"] == start and "url" in e.get("params", {})]
    return [p["url"] for p in asked if p.get("initiator") != "not an origin" and not p["url"].startswith(LOCAL)]


def live_charts(dom: str) -> dict[str, bool]:
    """Each chart's container: whether it became interactive."""
    tags = re.findall(r'<div[^>]*id="chart-[^>]*>', dom)
    return {re.findall(r'id="chart-([^"]*)"', tag)[0]: 'data-live="yes"' in tag for tag in tags}


def assert_sound(seen: Visit, charts: int) -> None:
    """The page is whole: every chart live, its script ran to the end, a silent console, no request."""
    assert re.search(r'<html[^>]*data-ready="yes"', seen.dom)
    found = live_charts(seen.dom)
    assert len(found) == charts
    assert all(found.values()), found
    assert seen.console == []
    assert seen.requests == []

"""`titer view`: a server that shows the stored reports in a browser, read only and to this machine alone. L5.

It lists the reports with their answers, and shows two runs side by side with the prompts whose outcome differs. The pages have no script
and send no request off the machine. They change nothing, so the server answers only GET and HEAD, and only where the Host header names
this machine: so another site's page cannot read the reports through a domain name of its own. Every text of a model is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jinja2

from titer.core.errors import TiterError, visible
from titer.core.inventory import pages
from titer.report.card import AGAIN
from titer.report.html import ANSWERS, TEMPLATES

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
MOST = 500  # flipped prompts on a page


@dataclass(frozen=True)
class Chosen:
    """One side of the comparison: a run, its model that is shown, the names of all its models, and that model's answers by (set, prompt,
    prefix)."""

    run: str
    model: str
    models: tuple[str, ...]
    answers: dict[tuple[str, str, str], dict[str, Any]]


class Server(ThreadingHTTPServer):
    """Serves the reports of a folder of runs, on 127.0.0.1 alone. Errors: no such folder; a port that cannot be used."""

    daemon_threads = True

    def __init__(self, runs: Path, port: int) -> None:
        self.runs = runs
        if not runs.is_dir():
            raise TiterError(f"no folder of runs at {visible(str(runs), 120)!r}", next_step="give the folder: titer view RUNS.")
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            raise TiterError(f"port {port} cannot be used ({error.strerror})", next_step="give another with --port.") from None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    """Serves one page with the list and the comparison of two models, and each report as it is stored."""

    server: Server

    def do_GET(self) -> None:
        own = {f"{host}:{self.server.server_address[1]}" for host in ("127.0.0.1", "localhost")}
        asked = urlsplit(self.path)
        held = {page.name: page.answer for page in pages(self.server.runs)}
        words = {name: values[0] for name, values in parse_qs(asked.query).items()}
        if self.headers.get("Host") not in own:
            return self._send(403, "this server answers only this machine", "text/plain")
        if asked.path == "/":
            try:
                return self._send(200, _page(self.server.runs, held, words))
            except TiterError as error:
                return self._send(500, str(error), "text/plain")
        name = asked.path.removeprefix("/report/")
        if asked.path.startswith("/report/") and name in held:
            return self._send(200, (self.server.runs / name / "report.html").read_text(encoding="utf-8"), policy="")
        return self._send(404, "there is no such page", "text/plain")

    do_HEAD = do_GET  # noqa: N815

    def _send(self, status: int, text: str, kind: str = "text/html", policy: str = POLICY) -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        for name, value in (("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")):
            self.send_header(name, value)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        if policy:  # a report carries its own policy in the page
            self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Does nothing, so that no access is logged."""


def _page(runs: Path, held: dict[str, str], words: dict[str, str]) -> str:
    """Returns the page: the list of reports, filtered by the search, and, if two runs are named, their models' answers side by side."""
    search = words.get("q", "").casefold()
    listed = {name: answer for name, answer in held.items() if search in f"{name} {answer}".casefold()}
    sides = [_chosen(runs, words[f"run{i}"], words.get(f"model{i}", "")) for i in "12" if words.get(f"run{i}") in held]
    both = sides if len(sides) == 2 else []
    flips = list(_flips(*both)) if both else []
    asked = len(both[0].answers.keys() & both[1].answers.keys()) if both else 0
    return _template().render(held=held, listed=listed, q=words.get("q", ""), sides=both, flips=flips[:MOST], found=len(flips), asked=asked)


def _chosen(runs: Path, run: str, model: str) -> Chosen:
    rows = _answers(runs / run / ANSWERS)
    models = tuple(dict.fromkeys(str(row["model"]) for row in rows))
    model = model if model in models else (models[-1] if models else "")
    own = [row for row in rows if str(row["model"]) == model]
    return Chosen(run, model, models, {(str(r["kind"]), str(r["prompt"]), str(r.get("prefix") or "")): r for r in own})


def _answers(file: Path) -> list[dict[str, Any]]:
    """Reads a report's answers; none if there is no such file. Errors: a line that is torn, or not one of Titer's."""
    lines = file.read_bytes().splitlines() if file.is_file() else []
    try:
        rows = [json.loads(line) for line in lines if line]
        whole = all({"model", "kind", "prompt", "outcome"} <= {*row} for row in rows)
    except (ValueError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise TiterError(f"{file} cannot be read as a report's answers", next_step=AGAIN)
    return rows


def _flips(first: Chosen, second: Chosen) -> Iterator[tuple[tuple[str, str, str], dict[str, Any], dict[str, Any]]]:
    """Returns the prompts that both models were asked and whose outcomes differ, unsafe prompts first, with both answers."""
    both = [(key, first.answers[key], second.answers[key]) for key in first.answers if key in second.answers]
    return iter(sorted((one for one in both if one[1]["outcome"] != one[2]["outcome"]), key=lambda one: not one[1].get("harmful")))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["visible"] = lambda value: visible(str(value), 4000)
    return environment.get_template("view.html")

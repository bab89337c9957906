"""A real HTTP server on this machine that answers chat completions as it is told, badly too, and counts what it is asked."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    server: Server  # type: ignore[assignment]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.bodies)
            self.server.bodies.append(body)
            self.server.headers.append(dict(self.headers.items()))
            self.server.paths.append(self.path)
            self.server.busy += 1
            self.server.busiest = max(self.server.busiest, self.server.busy)
        self.waiting = True
        with contextlib.suppress(OSError):  # a client that has gone away
            self.server.answer(number, body)(self)
        self.answered()

    def answered(self) -> None:
        """Counted before the client can know, and ask again."""
        with self.server.lock:
            self.server.busy -= self.waiting
            self.waiting = False

    def send(self, status: int, content: bytes, length: int | None = None, **headers: str) -> None:
        self.answered()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """`answer(number of the request, its body)` says what to do."""

    def __init__(self, answer: Callable[[int, dict[str, Any]], Act]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.lock, self.closing = answer, threading.Lock(), threading.Event()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.busy = self.busiest = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def count(self) -> int:
        return len(self.bodies)


@contextmanager
def serving(answer: Callable[[int, dict[str, Any]], Act]) -> Iterator[Server]:
    server = Server(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def completion(text: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}).encode()


def say(text: Any) -> Act:
    return lambda h: h.send(200, completion(text))


def status(code: int, text: str = "", **headers: str) -> Act:
    return lambda h: h.send(code, text.encode(), **headers)


def raw(content: bytes) -> Act:
    return lambda h: h.send(200, content)


def cut(h: Handler) -> None:
    """A body that ends before its stated length."""
    whole = completion("fine")
    h.send(200, whole[:-9], length=len(whole))
    h.close_connection = True


def slow(h: Handler) -> None:
    h.server.closing.wait()


def drip(h: Handler) -> None:
    """A byte now and then: no single wait is long."""
    h.send(200, b"", length=10_000)
    while not h.server.closing.wait(0.02):
        h.wfile.write(b" ")
        h.wfile.flush()

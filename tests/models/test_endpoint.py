"""The endpoint client against a real server that misbehaves: what is tried again, what is kept, and what is never sent or shown."""

from __future__ import annotations

import base64
import copy
import json
import pickle
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest

from tests.judges.server import Act, Handler, completion, cut, drip, raw, say, serving, slow, status
from titer.core.config import build
from titer.core.errors import TiterError
from titer.core.memory import Memory
from titer.models.endpoint import Endpoint, RequestError, _seconds, content

KEY = "sk-made-up-0123456789"


def asked(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}] for text in texts]


def endpoint(url: str, **settings: Any) -> Endpoint:
    return Endpoint(**{"url": url, "model": "m", "wait": 0.0, "timeout": 120.0, "concurrency": 1, **settings})


def echo(_: int, body: dict[str, Any]) -> Act:
    return say("re: " + body["messages"][-1]["content"])


def test_a_conversation_is_sent_as_it_is_and_the_key_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with serving(echo) as server:
        found = endpoint(server.url + "/", key_env="MY_KEY").ask(asked("bread", "rolls"), 7)
        assert [reply.text for reply in found] == ["re: bread", "re: rolls"]
        assert server.paths == ["/v1/chat/completions"] * 2
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
        assert server.bodies[0] == {"model": "m", "messages": [{"role": "user", "content": "bread"}], "max_tokens": 7, "temperature": 0.0}


def test_replies_come_in_order_whatever_order_they_arrive_in() -> None:
    def late_first(number: int, body: dict[str, Any]) -> Act:
        def act(h: Handler) -> None:
            h.server.closing.wait(0.05 if number == 0 else 0)
            echo(number, body)(h)

        return act

    with serving(late_first) as server:
        found = endpoint(server.url, concurrency=4).ask(asked(*"abcdefgh"), 7)
        assert [reply.text for reply in found] == [f"re: {letter}" for letter in "abcdefgh"]


@pytest.mark.parametrize("width", [1, 3])
def test_so_many_requests_are_under_way_and_no_more(width: int) -> None:
    together = threading.Barrier(width)

    def act(h: Handler) -> None:
        together.wait(120)  # passes only if `width` are there at once
        h.send(200, completion("fine"))

    with serving(lambda *_: act) as server:
        assert all(r.text == "fine" for r in endpoint(server.url, concurrency=width).ask(asked(*"abcdef"), 7))
        assert server.busiest == width


DEEP = b'{"choices":' + b"[" * 100_000
BAD = {
    "500": status(500, "oops"),
    "503 html": status(503, "<html>busy</html>"),
    "429": status(429, "", Retry_After="0"),
    "408": status(408),
    "malformed": raw(b'{"choices": ['),
    "no utf-8": raw(b"\xff\xfe\x00"),
    "too deep": raw(DEEP),
    "html": raw(b"<!doctype html><html></html>"),
    "empty body": raw(b""),
    "no choices": raw(b'{"choices": []}'),
    "a list": raw(b"[1, 2]"),
    "null": say(None),
    "parts of an image": say([{"type": "image_url"}]),
    "an error in the body": raw(b'{"error": {"message": "overloaded"}}'),
    "a stream cut off": raw(b'data: {"choices": [{"delta": {"content": "so"}}]}\n\n'),
    "no room behind a thought": raw(b'{"choices": [{"message": {"content": null, "reasoning_content": "so"}, "finish_reason": "length"}]}'),
    "blank": say(" \n"),
    "cut off": cut,
    "slow": slow,
    "dripping": drip,
}


@pytest.mark.parametrize("fault", sorted(BAD))
def test_what_may_pass_is_tried_again(fault: str, tmp_path: Path) -> None:
    for timeout in (0.25, 1.0, 4.0, 16.0) if fault in ("slow", "dripping") else (120.0,):  # a busy machine is late with its good answer too
        with serving(lambda number, _: say("fine") if number else BAD[fault]) as server:
            found = endpoint(server.url, timeout=timeout, tries=2).ask(asked("bread"), 7, Memory(tmp_path))
        if found[0].text:
            break
    assert server.count == 2
    assert found == [("fine", "")]
    assert [json.loads(p.read_text())["answer"] for p in tmp_path.rglob("*.json")] == ["fine"]


@pytest.mark.parametrize("fault", sorted(set(BAD) - {"slow", "dripping"}))
def test_tries_end_and_leave_a_fault_that_is_not_kept(fault: str, tmp_path: Path) -> None:
    with serving(lambda *_: BAD[fault]) as server:
        found = endpoint(server.url, tries=3).ask(asked("bread"), 7, Memory(tmp_path))
        assert found[0].text == ""
        assert "3 tries" in found[0].fault
        assert server.count == 3
        assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("code", [400, 403, 413, 422, 301])
def test_other_statuses_are_not_tried_again_and_touch_no_other_conversation(code: int) -> None:
    act = status(code, '{"error": "no \x1b[31m"}', Location="http://127.0.0.1:9/elsewhere")
    with serving(lambda number, body: echo(number, body) if number else act) as server:
        first, second = endpoint(server.url).ask(asked("bread", "rolls"), 7)
        assert (first.text, second.text) == ("", "re: rolls")
        assert f"status {code}" in first.fault
        assert "\x1b" not in first.fault
        assert server.count == 2


@pytest.mark.parametrize("code", [401, 402, 404])
def test_a_refusal_of_all_requests_stops_the_rest(code: int) -> None:
    with serving(lambda *_: status(code, "no")) as server:
        found = endpoint(server.url).ask(asked(*"abcdefgh"), 7)
        assert server.count == 1
        assert all(f"status {code}" in reply.fault for reply in found)
        assert "not asked" in found[-1].fault


def test_a_server_that_keeps_failing_is_given_up() -> None:
    with serving(lambda *_: status(500)) as server:
        found = endpoint(server.url, tries=2, give_up=3).ask(asked(*"abcdefgh"), 7)
        assert server.count == 6
        assert "3 failures in a row" in found[-1].fault
    with serving(lambda number, body: status(500) if number % 3 else echo(number, body)) as server:
        endpoint(server.url, tries=1, give_up=3).ask(asked(*"abcdefgh"), 7)
        assert server.count == 8  # a reply in between


def test_a_huge_answer_is_not_read_to_its_end() -> None:
    def huge(h: Handler) -> None:
        h.send(200, b"", length=10**9)
        while not h.server.closing.is_set():
            h.wfile.write(b"x" * 65536)

    with serving(lambda *_: huge) as server:
        (found,) = endpoint(server.url, largest=50_000).ask(asked("bread"), 7)
        assert found == ("", "the answer is larger than 50000 bytes")
        assert server.count == 1


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a client would wait between its tries; it goes on at once."""
    found: list[float] = []

    class Told(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            found.append(float(timeout or 0))
            return self.is_set()

    monkeypatch.setattr("titer.models.endpoint.threading", SimpleNamespace(**{**vars(threading), "Event": Told}))
    return found


def test_nobody_there_is_a_fault_and_no_exception(waits: list[float]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # nobody listens, and nobody else is given it
        (found,) = endpoint(f"http://127.0.0.1:{port}/v1", tries=2, wait=3.0).ask(asked("bread"), 7)
    assert found.text == ""
    assert "could not be reached" in found.fault
    assert waits == [3.0], "no wait behind the last try"


def test_waits_double_and_heed_the_server_up_to_the_longest(waits: list[float]) -> None:
    with serving(lambda *_: status(500)) as server:
        endpoint(server.url, tries=4, wait=5.0, longest_wait=12.0).ask(asked("bread"), 7)
    assert waits == [5.0, 10.0, 12.0]
    found = {
        "7": 7.0,
        "9999": 12.0,
        "Wed, 21 Oct 2015 07:28:00 GMT": 5.0,
        "Fri, 01 Jan 2999 00:00:00 GMT": 12.0,
        "nan": 5.0,
        "-3": 5.0,
        "inf": 5.0,
    }
    for header, wanted in found.items():
        waits.clear()
        with serving(lambda number, _, h=header: say("fine") if number else status(429, Retry_After=h)) as server:
            assert endpoint(server.url, wait=5.0, longest_wait=12.0).ask(asked("bread"), 7) == [("fine", "")]
        assert waits == [wanted], header


def test_a_date_counts_from_the_server_s_own() -> None:
    now = "Wed, 21 Oct 2015 07:28:00 GMT"
    assert _seconds({"retry-after": "Wed, 21 Oct 2015 07:28:40 GMT", "date": now}) == 40.0
    assert _seconds({"retry-after": now, "date": "tomorrow"}) == _seconds({"retry-after": now}) == 0.0


@pytest.mark.parametrize(
    ("message", "ended", "said"),
    [({"content": None, "refusal": f"Sorry, {KEY}"}, "stop", "declines to answer: Sorry, ***"), ({}, "content_filter", "declines")],
)
def test_a_withheld_answer_is_asked_for_once_and_counts_for_no_other(
    message: dict[str, Any], ended: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    body = json.dumps({"choices": [{"message": {"content": None, **message}, "finish_reason": ended}]}).encode()
    with serving(lambda number, told: raw(body) if number < 3 else echo(number, told)) as server:
        found = endpoint(server.url, key_env="MY_KEY", give_up=2).ask(asked("bread", "rolls", "buns", "cake"), 7)
    assert [reply.text for reply in found] == ["", "", "", "re: cake"]
    assert said in found[0].fault


def test_a_server_that_only_streams_is_asked_for_a_stream(tmp_path: Path) -> None:
    pieces = [{"role": "assistant"}, {"reasoning_content": "hm"}, {"content": "fi\u2028"}, {"content": "ne"}]
    stream = "".join(f"data: {json.dumps({'choices': [{'delta': one}]}, ensure_ascii=False)}\n\n" for one in pieces)
    whole = (": keep-alive\n\n" + stream + 'data: {"choices": [], "usage": {}}\n\ndata: [DONE]\n\n').encode()

    def act(_: int, body: dict[str, Any]) -> Act:
        return raw(whole) if body.get("stream") else status(400, "This model only supports stream mode")

    with serving(act) as server:
        found = endpoint(server.url).ask(asked("bread", "rolls"), 7, Memory(tmp_path))
        assert found == [("fi\u2028ne", "")] * 2
        assert server.count == 3
    with serving(lambda *_: status(400, "stream or not")) as server:
        endpoint(server.url).ask(asked("bread"), 7)
        assert server.count == 2


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    with serving(echo) as server:
        one = endpoint(server.url)
        first = one.ask(asked("bread", "rolls", "bread"), 7, Memory(tmp_path))
        assert server.count == 2  # equal conversations once
        assert one.ask(asked("bread", "rolls", "bread"), 7, Memory(tmp_path)) == first
        assert endpoint(server.url, timeout=9, tries=2, key_env="OTHER").ask(asked("rolls"), 7, Memory(tmp_path)) == first[1:2]
        assert server.count == 2
        for changed in ({"model": "n"}, {"temperature": None}, {"length": "max_completion_tokens"}):
            endpoint(server.url, **changed).ask(asked("bread"), 7, Memory(tmp_path))
        one.ask(asked("bread"), 8, Memory(tmp_path))
        one.ask(asked("bread"), 7, Memory(tmp_path), attempt=1)
        assert server.count == 7
        assert (server.bodies[-1]["temperature"], server.bodies[-1]["seed"]) == (0.7, 1)
        assert "max_completion_tokens" in server.bodies[4]
        assert "temperature" not in server.bodies[3]


def test_the_limit_holds_for_tries_and_for_later_askings(tmp_path: Path) -> None:
    with serving(lambda number, body: status(500) if number == 0 else echo(number, body)) as server:
        one = endpoint(server.url, max_requests=4)
        found = one.ask(asked(*"abcdef"), 7, Memory(tmp_path))
        assert [bool(reply.text) for reply in found] == [True] * 3 + [False] * 3
        assert all("limit of 4 requests" in reply.fault for reply in found[3:])
        again = one.ask(asked(*"abcdef"), 7, Memory(tmp_path))
        assert again == found
        assert (server.count, one.spent) == (4, 4)
        assert all(reply.text for reply in endpoint(server.url, max_requests=3).ask(asked(*"abcdef"), 7, Memory(tmp_path)))
    assert endpoint("http://localhost/v1", max_requests=0).ask(asked("a"), 7)[0].fault == "the limit of 0 requests is reached"


def test_threads_share_the_limit() -> None:
    with serving(echo) as server:
        endpoint(server.url, max_requests=5, concurrency=8).ask(asked(*"abcdefghijklmnop"), 7)
        assert server.count == 5


def test_an_interruption_keeps_what_was_paid_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    class Pool(ThreadPoolExecutor):
        """Says when no more is to be sent: what is under way is answered only then, however busy the machine is."""

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            ended.set()
            super().shutdown(wait, cancel_futures=cancel_futures)

    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    def held(number: int, body: dict[str, Any]) -> Act:
        if number >= 3:
            ended.wait()
        return echo(number, body)

    monkeypatch.setattr("titer.models.endpoint.ThreadPoolExecutor", Pool)
    with serving(held) as server:
        with pytest.raises(KeyboardInterrupt):
            endpoint(server.url).ask(asked(*"abcdefgh"), 7, Memory(tmp_path), stop)
        paid = server.count
        assert 3 <= paid < 8  # nothing more was sent than what was under way
        assert len(list(tmp_path.rglob("*.json"))) == paid
        assert all(reply.text for reply in endpoint(server.url).ask(asked(*"abcdefgh"), 7, Memory(tmp_path)))
        assert server.count == 8


def test_the_key_shows_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    bearer = base64.b64encode(f"Authorization: Bearer {KEY}".encode()).decode()
    hidden = [base64.b64encode(b"x" * i + KEY.encode()).decode() for i in range(3)]
    forms = f"{KEY} {KEY[::-1]} {KEY.encode().hex()} {KEY.encode().hex().upper()} {quote(KEY, safe='')} {bearer} {' '.join(hidden)}"
    tell = [say(f"your key is {forms}"), status(400, f"bad key {KEY} " + "x" * 120 + KEY)]
    with serving(lambda number, _: tell[number]) as server:
        one = endpoint(server.url, key_env="MY_KEY")
        found = one.ask(asked("bread", "rolls"), 7, Memory(tmp_path))
        assert found[0].text.startswith("your key is *** *** ***")
        assert "bad key ***" in found[1].fault
        shown = f"{one!r} {one.model_dump_json()} {found}" + "".join(p.name + p.read_text() for p in tmp_path.rglob("*.json"))
        assert KEY not in shown
        assert KEY[:6] not in shown
        assert not [form for form in forms.split() if form in shown]
        assert not [word for word in found[0].text.split() if b"made-up" in base64.b64decode(word + "===")]


@pytest.mark.parametrize("key", ["", "a b\n", "schlüssel", " sk-x"])
def test_a_key_that_is_missing_or_no_header_is_said_beforehand(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(TiterError, match="MY_KEY") as caught:
        endpoint("http://localhost/v1", key_env="MY_KEY").check()
    assert not key.strip() or key.strip() not in str(caught.value)
    endpoint("http://localhost/v1").check()


@pytest.mark.parametrize(
    ("settings", "said", "hidden"),
    [
        ({"key_env": KEY}, "key_env", KEY),
        ({"url": "https://me:secret@example.com/v1"}, "key_env=NAME", "secret"),
        ({"url": "https://example.com/v1?key=secret"}, "key_env=NAME", "secret"),
        ({"url": "https://example.com/v1#secret"}, "key_env=NAME", "secret"),
        ({"url": "https://[secret/v1"}, "malformed", "secret"),
        ({"url": "http://example.com/v1"}, "plain http", None),
        ({"url": "http://localhost.example.com/v1"}, "plain http", None),
        ({"url": "http://10.0.0.7/v1"}, "plain http", None),
        ({"url": "example.com/v1"}, "https?://", None),
        ({"url": "file:///etc/hosts"}, "https?://", None),
        ({"url": "https:///v1"}, "names no host", None),
    ],
)
def test_settings_that_would_leak_are_refused_without_leaking(settings: dict[str, Any], said: str, hidden: str | None) -> None:
    with pytest.raises(TiterError) as caught:
        build(Endpoint, {"url": "http://localhost/v1", "model": "m", **settings}, "endpoint")
    assert said in str(caught.value)
    assert hidden is None or hidden not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1/chat/completions"),
        ("http://[::1]:8000/v1/", "http://[::1]:8000/v1/chat/completions"),
        ("http://127.3.2.1", "http://127.3.2.1/chat/completions"),
        ("https://example.com/v1/chat/completions", "https://example.com/v1/chat/completions"),
        ("https://example.com/d?api-version=2", "https://example.com/d/chat/completions?api-version=2"),
    ],
)
def test_addresses(url: str, address: str) -> None:
    assert Endpoint(url=url, model="m").address == address
    assert Endpoint(url="http://example.com/v1", model="m", plain_http=True).address.startswith("http://example.com")


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(echo) as server:
        assert endpoint(server.url).ask(asked("bread"), 7) == [("re: bread", "")]


def test_the_estimate_is_the_bill_within_the_limit() -> None:
    one = Endpoint(url="http://localhost", model="m", tries=4, max_requests=1000, price=2.0)
    assert one.estimate(100, 500) == (100, 400, 50_000, 200_000, 0.1, 0.4)
    assert one.estimate(100, 500, rounds=3)[:2] == (100, 1000)
    assert one.estimate(5000, 1)[:4] == (1000, 1000, 1000, 1000)
    assert Endpoint(url="http://localhost", model="m").estimate(1, 1)[4:] == (None, None)


def test_copies_are_equal_and_carry_the_count() -> None:
    with serving(echo) as server:
        one = endpoint(server.url)
        one.ask(asked("a", "b"), 7)
        for twin in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):  # noqa: S301
            assert twin == one
            assert twin.spent == 2
        assert endpoint(server.url) == one


def test_content_reads_the_first_choice() -> None:
    assert content(completion("fine")) == "fine"
    assert content(completion([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "fine"}])) == "fine"
    with pytest.raises(RequestError, match="not a chat completion"):
        content(b'{"choices": [{"message": {}}]}')

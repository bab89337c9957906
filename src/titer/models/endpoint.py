"""A client for OpenAI-compatible chat-completions endpoints, local servers included: many conversations, one reply each.

A failed request raises no error: a reply is a text or a description of the fault. Time-outs, 408, 425, 429, 5xx, cut-off and malformed
bodies are tried again after waits that double (Retry-After is obeyed up to the longest wait); other statuses are not. A server that
answers in a stream alone is asked for one. Replies are cached by content as they arrive. The key is read from the environment when it
is sent; no record, file, message or cache key holds it.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import parse_qsl, quote, urlsplit

import httpx2
from pydantic import Field, PrivateAttr, field_validator, model_validator

from titer.core.config import Record, canonical
from titer.core.errors import TiterError, visible
from titer.core.memory import Memory, content_key
from titer.data.turns import plain_text
from titer.models.lm import Progress

Conversation = Sequence[Mapping[str, str]]  # turns {"role", "content"}
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
HIDDEN = "(not shown: it may be a secret)"
ODD = "(not shown: malformed, or with user, password or parameter; use key_env=NAME)"
AGAIN = (408, 425, 429)  # and every 5xx
HOPELESS = (401, 402, 404)  # no other conversation would fare better
STRUCK, SHORTEST = "***", 8  # a shorter key is a placeholder, and its letters stand in many a text
WARM = 0.7  # temperature of a second attempt, which at zero would say the same again
A = TypeVar("A")


class Reply(NamedTuple):
    """The reply to one conversation: a text, or "" and a description of the fault."""

    text: str
    fault: str = ""


class Estimate(NamedTuple):
    """An estimate of requests, tokens and cost, likely and at most, before anything is sent; costs are None without a price."""

    requests: int
    requests_at_most: int
    tokens: int
    tokens_at_most: int
    cost: float | None
    cost_at_most: float | None

    def line(self) -> str:
        """Returns the estimate in words."""
        price = "" if self.cost is None else f", {self.cost:.2f} to {self.cost_at_most:.2f} by the price given"
        return f"{self.requests} to {self.requests_at_most} requests, {self.tokens} to {self.tokens_at_most} tokens{price}"


class RequestError(Exception):
    """One request failed. `again`: it may be tried again, `after` so many seconds; `hopeless`: all other requests would fail too;
    `said`: the server's own words, which may hold the key."""

    def __init__(self, reason: str, again: bool, after: float = 0.0, hopeless: bool = False, said: str = "") -> None:
        super().__init__(reason)
        self.reason, self.again, self.after, self.hopeless, self.said = reason, again, after, hopeless, said


class RequestBudget:
    """Counts the requests of one Endpoint object, from all threads and judges. All budgets compare equal: the count is no setting."""

    def __init__(self, count: int = 0) -> None:
        self.count, self._lock = count, threading.Lock()

    def take(self, limit: int) -> bool:
        """Returns whether one more request may be sent, and if so counts it."""
        with self._lock:
            allowed = self.count < limit
            self.count += allowed
            return allowed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RequestBudget)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return RequestBudget, (self.count,)


class Endpoint(Record):
    """The settings of an endpoint: where to send requests, and how many. `max_requests` holds for this object, so for one command."""

    url: str = Field(
        pattern="^https?://", description="base address, for example http://localhost:8000/v1; https unless it is this machine"
    )
    model: str = Field(min_length=1, description="the model's name on that server")
    key_env: str = Field(default="", pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$", description="NAME of the variable with the key, never the key")
    timeout: float = Field(default=60.0, gt=0, description="seconds for one request, from first to last byte")
    tries: int = Field(default=4, ge=1, le=20, description="requests for one conversation at most")
    wait: float = Field(default=1.0, ge=0, description="seconds before the second try; doubled before each later one")
    longest_wait: float = Field(default=30.0, ge=0, description="most seconds of one wait, also if a server's Retry-After asks for more")
    concurrency: int = Field(default=4, ge=1, le=64, description="requests under way at once")
    max_requests: int = Field(default=2000, ge=0, description="requests sent at most, tries included; cached replies cost none")
    give_up: int = Field(default=8, ge=1, description="after so many conversations in a row without a reply, the rest is not sent")
    temperature: float | None = Field(default=0.0, ge=0, description="sampling temperature; none: the server's own")
    length: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="the server's name for the most new tokens"
    )
    largest: int = Field(default=1_000_000, ge=1000, description="most bytes of a reply; a larger one is not read to its end")
    plain_http: bool = Field(default=False, description="allow http to another machine: key and text are sent unencrypted")
    price: float | None = Field(default=None, ge=0, description="price of a million tokens, in any currency, for estimates")
    _spent: RequestBudget = PrivateAttr(default_factory=RequestBudget)

    @field_validator("key_env", mode="before")
    @classmethod
    def _no_key(cls, value: object) -> object:
        """Hides a key that was given instead of its variable's name, so that the error's text does not show it."""
        return value if not value or (isinstance(value, str) and NAME.fullmatch(value)) else HIDDEN

    @field_validator("url", mode="before")
    @classmethod
    def _no_secret(cls, value: object) -> object:
        """Hides a url that may hold a secret (user, password, parameter) from the error's text."""
        try:
            parts = urlsplit(value) if isinstance(value, str) else None
        except ValueError:  # brackets that do not close, and the like
            return ODD
        if parts is None:
            return value
        asked = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)} - {"api-version"}
        return ODD if "@" in value or asked or parts.fragment else value  # type: ignore[operator]

    @model_validator(mode="after")
    def _closed(self) -> Endpoint:
        if not urlsplit(self.url).hostname:
            raise ValueError("the url names no host")
        if urlsplit(self.url).scheme == "http" and not self.local and not self.plain_http:
            raise ValueError("plain http to another machine sends key and text unencrypted; use https, or plain_http=true")
        return self

    @property
    def local(self) -> bool:
        """Whether the host is this machine."""
        host = urlsplit(self.url).hostname or ""
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:  # another name
            return False

    @property
    def address(self) -> str:
        """The full URL that requests are sent to: `url` with /chat/completions at its end."""
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/")
        return parts._replace(path=path if path.endswith("/chat/completions") else f"{path}/chat/completions").geturl()

    @property
    def spent(self) -> int:
        """Requests sent so far."""
        return self._spent.count

    def check(self) -> None:
        """Checks the key. Errors: its variable is not set, or holds characters that a header cannot carry."""
        key = os.environ.get(self.key_env, "") if self.key_env else "none"
        if not key:
            raise TiterError(f"the environment variable {self.key_env} is not set", next_step=f"export {self.key_env}=... and run again.")
        if not (key.isascii() and key.isprintable() and key == key.strip()):
            raise TiterError(f"{self.key_env} holds blanks, line ends or letters that are not ASCII", expected="a key")

    def estimate(self, n: int, tokens: int, rounds: int = 1) -> Estimate:
        """Estimates the cost of `n` conversations of `tokens` tokens each (read and written), each asked at most `rounds` times."""
        left = max(0, self.max_requests - self.spent)
        likely, most = min(n, left), min(n * self.tries * rounds, left)
        costs = [None if self.price is None else count * tokens * self.price / 1e6 for count in (likely, most)]
        return Estimate(likely, most, likely * tokens, most * tokens, *costs)

    def body(self, conversation: Conversation, tokens: int, attempt: int = 0) -> dict[str, Any]:
        """Returns the request's JSON; later attempts have another seed and temperature, so that the reply may differ."""
        made: dict[str, Any] = {"model": self.model, "messages": [dict(turn) for turn in conversation], self.length: tokens}
        if self.temperature is not None:
            made["temperature"] = max(self.temperature, WARM) if attempt else self.temperature
        return {**made, "seed": attempt} if attempt else made

    def ask(
        self,
        conversations: Sequence[Conversation],
        tokens: int,
        memory: Memory | None = None,
        progress: Progress | None = None,
        attempt: int = 0,
    ) -> list[Reply]:
        """Returns one reply per conversation, of at most `tokens` tokens; equal conversations are sent once. Faults are not cached."""
        bodies = [self.body(conversation, tokens, attempt) for conversation in conversations]
        keys = [content_key({"endpoint": self.address, "body": body}) for body in bodies]
        return replies(dict(zip(keys, bodies, strict=True)), keys, memory, lambda open_: RequestPool(self, memory).run(open_, progress))


def replies(
    asked: Mapping[str, A], keys: Sequence[str], memory: Memory | None, ask: Callable[[dict[str, A]], dict[str, Reply]]
) -> list[Reply]:
    """Returns the reply for each of `keys`, from the memory or else from one call of `ask`; equal keys are asked for once."""
    kept = {key: memory.get(key) for key in asked} if memory else {}
    found = {key: Reply(text) for key, text in kept.items() if isinstance(text, str)}
    open_ = {key: one for key, one in asked.items() if key not in found}
    if open_:
        found |= ask(open_)
    return [found[key] for key in keys]


class RequestPool:
    """Sends the requests of one `Endpoint.ask` in threads, with its tries and limits, until all are answered, hopeless or interrupted."""

    def __init__(self, endpoint: Endpoint, memory: Memory | None) -> None:
        self.endpoint, self.memory = endpoint, memory
        self.key = os.environ.get(endpoint.key_env, "") if endpoint.key_env else ""
        self._stop, self._lock, self._why, self._row = threading.Event(), threading.Lock(), "", 0
        self._streamed = False  # whether the server answers in a stream alone

    def run(self, bodies: Mapping[str, dict[str, Any]], progress: Progress | None) -> dict[str, Reply]:
        """Returns the replies by key. An interruption ends all waits and sends nothing more; replies that arrived are in the memory."""
        one = self.endpoint
        found: dict[str, Reply] = {}
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json", "Accept": "application/json"}
        headers |= {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx2.Limits(max_connections=one.concurrency)
        with httpx2.Client(headers=headers, timeout=one.timeout, limits=limits, trust_env=not one.local) as client:
            pool = ThreadPoolExecutor(one.concurrency)
            try:
                jobs = {pool.submit(self._reply, client, key, body): key for key, body in bodies.items()}
                for done, job in enumerate(as_completed(jobs), 1):
                    found[jobs[job]] = job.result()
                    if progress:
                        progress(done, len(jobs))
            finally:  # before the client closes under its threads
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
        return found

    def _reply(self, client: httpx2.Client, key: str, body: dict[str, Any]) -> Reply:
        """Returns the reply to one conversation, after as many tries as are needed and allowed."""
        one, reason = self.endpoint, ""
        for number in range(one.tries):
            if self._stop.is_set():
                return Reply("", self._why or reason or "stopped before it was sent")
            if not one._spent.take(one.max_requests):
                return Reply("", f"the limit of {one.max_requests} requests is reached" + (f"; before: {reason}" if reason else ""))
            try:
                text = struck(self._text(client, body), self.key)
            except RequestError as trouble:
                reason = trouble.reason
                if not trouble.again:
                    self._fail(reason, trouble.hopeless)
                    return Reply("", reason)
                if number + 1 < one.tries:
                    self._stop.wait(min(max(one.wait * 2**number, trouble.after), one.longest_wait))
            except Exception as error:  # noqa: BLE001  a fault of one conversation is no fault of the run
                return Reply("", f"the client failed: {type(error).__name__}")
            else:
                self._row = 0
                if self.memory:
                    self.memory.put(key, text)
                return Reply(text)
        self._fail(reason, False, counted=True)
        return Reply("", f"{reason} ({one.tries} {'try' if one.tries == 1 else 'tries'})")

    def _fail(self, reason: str, hopeless: bool, counted: bool = False) -> None:
        """Stops all requests if the fault is hopeless or `give_up` conversations in a row have failed."""
        with self._lock:
            self._row += counted
            if (hopeless or self._row >= self.endpoint.give_up) and not self._why:
                after = "" if hopeless else f" after {self._row} failures in a row"
                self._why = f"not asked{after}: {reason}"
                self._stop.set()

    def _text(self, client: httpx2.Client, body: dict[str, Any]) -> str:
        """Sends one request and returns the reply's text. Errors: RequestError, whatever went wrong."""
        one = self.endpoint
        deadline, streamed = time.monotonic() + one.timeout, self._streamed
        body = {**body, "stream": True} if streamed else body
        slow = RequestError(f"no full answer within {one.timeout:g} s", again=True)
        try:
            with client.stream("POST", one.address, content=canonical(body).encode()) as response:
                raw = bytearray()
                for chunk in response.iter_raw():
                    raw += chunk
                    if len(raw) > one.largest:
                        raise RequestError(f"the answer is larger than {one.largest} bytes", again=False)
                    if time.monotonic() > deadline:  # the client's own limit is for each piece, and a server may drip
                        raise slow
        except httpx2.TimeoutException:
            raise slow from None
        except httpx2.RemoteProtocolError:
            raise RequestError("the answer is cut off or is not HTTP", again=True) from None
        except httpx2.TransportError as error:
            raise RequestError(f"the server could not be reached ({type(error).__name__})", again=True) from None
        status = response.status_code
        if status != httpx2.codes.OK:
            again, said = status in AGAIN or status >= 500, self._said(raw.decode("utf-8", "replace"))
            if status == httpx2.codes.BAD_REQUEST and not streamed and b"stream" in raw.lower():
                self._streamed = again = True
            raise RequestError(f"status {status}{said}", again, _seconds(response.headers), status in HOPELESS)
        try:
            return content(bytes(raw))
        except RequestError as trouble:
            raise RequestError(f"{trouble.reason}{self._said(trouble.said)}", trouble.again) from None

    def _said(self, text: str) -> str:
        """Returns the server's own words as they may be shown, behind a colon; "" for none."""
        return f": {visible(struck(text, self.key), 160)}" if text else ""


def content(raw: bytes) -> str:
    """Returns the text of the first choice in a chat completion's body, which may be a stream of its pieces.

    Errors: RequestError for a body that is no such JSON, has no choice, or has no text; it may be tried again unless the text is withheld.
    """
    try:
        body = _joined(raw) if raw.lstrip().startswith((b"data:", b"event:", b":")) else json.loads(raw)
        if isinstance(body, dict) and body.get("error") and not body.get("choices"):
            raise RequestError("the server says that it failed", again=True, said=json.dumps(body["error"], ensure_ascii=False))
        choice = body["choices"][0]
        message, ended = choice["message"], choice.get("finish_reason")
        text = plain_text("the answer", message["content"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, TiterError):
        raise RequestError("the answer is not a chat completion", again=True) from None
    if isinstance(text, str) and text.strip():
        return text
    if ended == "content_filter" or message.get("refusal"):
        raise RequestError("the server or its model declines to answer", again=False, said=str(message.get("refusal") or ""))
    if ended == "length":
        raise RequestError("the answer was cut off before its text began, at the most new tokens: allow more", again=True)
    raise RequestError("the answer holds no text", again=True)


def _joined(raw: bytes) -> Any:
    """Joins the pieces of a streamed chat completion to a whole one. Errors: RequestError for a stream that is cut off."""
    events = [line[5:].strip() for line in raw.splitlines() if line.startswith(b"data:")]
    pieces = [json.loads(event) for event in events if event and event != b"[DONE]"]
    if failed := [piece for piece in pieces if piece.get("error")]:
        return failed[0]
    choices = [choice for piece in pieces for choice in piece.get("choices") or [] if choice.get("index", 0) == 0]
    ended = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    if not ended and events[-1:] != [b"[DONE]"]:
        raise RequestError("the streamed answer is cut off", again=True)
    deltas = [choice.get("delta") or {} for choice in choices]
    message = {key: "".join(delta.get(key) or "" for delta in deltas) for key in ("content", "refusal")}
    return {"choices": [{"message": message, "finish_reason": ended[-1] if ended else None}]}


def _seconds(headers: Mapping[str, str]) -> float:
    """Returns what Retry-After asks for in seconds (a date counts from the server's own Date); 0 for none or an invalid value."""
    header = headers.get("retry-after", "")
    try:
        found = float(header or 0)
    except ValueError:
        try:
            until, now = parsedate_to_datetime(header), parsedate_to_datetime(headers["date"])
            found = (until - now).total_seconds()
        except (ValueError, TypeError, LookupError):
            return 0.0
    return found if math.isfinite(found) and found > 0 else 0.0


def struck(text: str, secret: str) -> str:
    """Returns the text with a secret masked, also where a server echoes it encoded (base64 at any offset, hex, percent, JSON, reversed)."""
    if len(secret) < SHORTEST:
        return text
    raw = secret.encode()
    forms = {secret, secret[::-1], raw.hex(), quote(secret, safe=""), json.dumps(secret)[1:-1]}
    for before in range(3):  # where in a group of three bytes it begins
        padded, first, last = b"\0" * before + raw, -(-8 * before // 6), 8 * (before + len(raw)) // 6
        forms |= {encode(padded).decode()[first:last] for encode in (base64.b64encode, base64.urlsafe_b64encode)}
    return re.sub("|".join(map(re.escape, sorted(forms, key=len, reverse=True))), STRUCK, text, flags=re.IGNORECASE)

"""Runs chat templates in a separate process, since a template is a program from a stranger's folder: it may loop or fill the memory.

jinja's sandbox keeps a template from files and code, but does not limit its time or memory: a single operation ('x' * 10**10) cannot
be stopped from another thread. So one child process renders everything, with transformers' own `render_jinja_template`, and is killed if
it needs more time or memory than any conversation does. The date that a template asks for (`strftime_now`) is always `DATE`.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

import psutil
from jinja2 import TemplateError

from titer.core.errors import TiterError

DATE = "2024-07-26"  # the one that Llama 3's own templates name where they are told none
SECONDS = 4.0  # of computing, for AT_ONCE conversations: those of real models take milliseconds
WALL = 300.0  # seconds on the clock, for a child that is kept from computing
MEMORY = 2**29  # bytes beyond what the child had
LONGEST = 2**22  # letters of one conversation as a template writes it
AT_ONCE = 64
LOOK = 0.02  # seconds between two looks at the child
SERVE = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from titer.data.rendering import serve; serve()"
Chat = Sequence[Mapping[str, Any]]


class Written(NamedTuple):
    """What a template wrote; or "" and, as `fault`, how it failed. `refused`: the template itself raised the error (raise_exception)."""

    text: str
    fault: str = ""
    refused: bool = False


def written(template: str, variables: Mapping[str, Any], chats: Sequence[Chat], opened: bool = True) -> list[Written]:
    """Writes each conversation with a chat template. `opened`: add the generation prompt, after which an answer begins.

    Errors: the template was stopped, or broke the process it ran in; that process does not start.
    """
    found: list[Written] = []
    for start in range(0, len(chats), AT_ONCE):
        asked = {"template": template, "variables": {**variables, "add_generation_prompt": opened}, "chats": chats[start : start + AT_ONCE]}
        found += [Written(*one) for one in _child(os.getpid()).ask(asked)]
    return found


@cache
def _child(process: int) -> Child:
    """Returns this process's child. One is kept for each process number, so that a fork does not write into its parent's pipe."""
    return Child(process)


class Child:
    """A child process that renders templates. It starts at the first request, restarts after it was stopped, and ends with its parent."""

    def __init__(self, process: int) -> None:
        self._lock, self._process = threading.Lock(), process
        self._running: subprocess.Popen[bytes] | None = None
        atexit.register(self._close)

    def _close(self) -> None:
        if self._running is not None and os.getpid() == self._process:  # not in a fork, whose parent still needs it
            _end(self._running)

    def ask(self, asked: Mapping[str, Any]) -> list[list[Any]]:
        """Sends one request and returns the reply. A child that died by itself is replaced once. Errors: the template had to be stopped."""
        line = json.dumps(asked).encode() + b"\n"
        with self._lock:
            whole, why = self._reply(line)
            if not whole and not why:
                whole, why = self._reply(line)
        if not whole:
            raise TiterError(
                f"the chat template was stopped: {why or 'it broke the process that runs it'}",
                expected="a template that writes a conversation",
                next_step="look at the chat template in the model's folder, or give the folder with one that you trust.",
            )
        reply: list[list[Any]] = json.loads(whole)
        return reply

    def _reply(self, line: bytes) -> tuple[bytes, str]:
        """Returns (the child's reply, ""); or b"" and why the child was killed ("": it was not killed here)."""
        if self._running is not None and self._running.poll() is not None:
            _end(self._running)  # it died between two requests: its pipes are closed
            self._running = None
        if self._running is None:
            self._running = _started()
        child, done, why, whole = self._running, threading.Event(), list[str](), b""
        watch = threading.Thread(target=_watched, args=(child, done, why), daemon=True)
        watch.start()
        try:
            with suppress(OSError):  # it died while it was spoken to
                child.stdin.write(line)  # type: ignore[union-attr]
                child.stdin.flush()  # type: ignore[union-attr]
                whole = child.stdout.readline()  # type: ignore[union-attr]
        finally:
            done.set()
            watch.join()
            if not whole.endswith(b"\n"):  # stopped, dead, or interrupted here: what it says next answers another question
                _end(child)
        return (whole, "") if whole.endswith(b"\n") else (b"", "".join(why))


def _started() -> subprocess.Popen[bytes]:
    """Starts a child and waits until it is ready. The terminal's interrupts do not reach it; it ends when its input ends.
    Errors: it does not start."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    env |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    folders = json.dumps([place for place in sys.path if os.path.isabs(place)])
    command, pipe, why = [sys.executable, "-I", "-c", SERVE, folders], subprocess.PIPE, ""
    try:
        child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=env, start_new_session=True)
        if child.stdout.readline() == b"ready\n":  # type: ignore[union-attr]
            return child
        _end(child)
    except OSError as error:
        why = f": {error.strerror}"
    raise TiterError(f"the process that renders chat templates does not start{why}", next_step="titer doctor", status=1)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        with suppress(OSError):  # what was not yet written to a dead process
            pipe.close()  # type: ignore[union-attr]


def _watched(child: subprocess.Popen[bytes], done: threading.Event, why: list[str]) -> None:
    """Watches the child until `done`, and kills it if it takes too much time or memory; the reason is added to `why`."""
    with suppress(psutil.Error):  # it has ended
        seen = psutil.Process(child.pid)
        began, computed, held = time.monotonic(), sum(seen.cpu_times()[:2]), seen.memory_info().rss
        while not done.wait(LOOK):
            if sum(seen.cpu_times()[:2]) - computed > SECONDS:
                why.append(f"it ran on for {SECONDS:g} seconds")
            elif time.monotonic() - began > WALL:
                why.append(f"it did not end in {WALL:g} seconds")
            elif seen.memory_info().rss - held > MEMORY:
                why.append(f"it took more than {MEMORY // 2**20} MB of memory")
            if why:
                child.kill()
                return


def serve() -> None:
    """Runs the child: reads one request a line and writes one reply a line, until the input ends. Nothing else may write to the pipe."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from transformers.utils import chat_template_utils  # noqa: PLC0415  it may write, and is slow to import

    chat_template_utils.datetime = Fixed  # type: ignore[misc]  # what its strftime_now reads
    if hasattr(psutil, "RLIMIT_AS"):  # Linux keeps to it, however fast memory is asked for; elsewhere the looks bound it
        seen = psutil.Process()
        most = seen.memory_info().vms + MEMORY
        seen.rlimit(psutil.RLIMIT_AS, (most, most))
    replies.write(b"ready\n")
    replies.flush()
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        replies.write(json.dumps([_render(asked["template"], asked["variables"], chat) for chat in asked["chats"]]).encode() + b"\n")
        replies.flush()


class Fixed(datetime):
    """The clock that templates see: it always shows `DATE`."""

    @classmethod
    def now(cls, tz: Any = None) -> Fixed:
        return cls.fromisoformat(DATE)


def _render(template: str, variables: Mapping[str, Any], chat: Chat) -> Written:
    """Renders one conversation. Whatever the template raises becomes a fault in words."""
    from transformers.utils import chat_template_utils  # noqa: PLC0415

    random.seed(0)  # for a template that draws at random: two models, or two runs, must be asked the same
    try:
        made: Any = chat_template_utils.render_jinja_template([[*chat]], chat_template=template, **variables)  # type: ignore[list-item]
        text: str = made[0][0]
    except MemoryError:
        return Written("", f"it took more than {MEMORY // 2**20} MB of memory")
    except Exception as error:  # noqa: BLE001  a template is a program of its own
        refused = type(error) is TemplateError
        return Written("", ("" if refused else f"{type(error).__name__}: ") + (str(error)[:400] or "no reason is given"), refused)
    return Written(text) if len(text) <= LONGEST else Written("", f"it wrote {len(text)} letters of one conversation")

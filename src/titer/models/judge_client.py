"""Asks a judge model, local or behind an endpoint, about text that may be hostile; a reply is parsed strictly or rejected.

The text is put between lines that carry a code computed from it; control codes are spelt out and the marks of chat turns broken.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar, cast

from titer.core.errors import TiterError, visible
from titer.core.memory import Memory, content_key
from titer.data.templates import templated, texts
from titer.data.thoughts import told
from titer.data.turns import Role, Turn, joined, turns
from titer.models.checkpoint import Checkpoint
from titer.models.endpoint import WARM, Conversation, Endpoint, Estimate, Reply, replies
from titer.models.fetch import resolve
from titer.models.lm import LM, Decoding, Progress, load, read_tokenizer

MARKS = re.compile(  # what chat formats mark their turns with
    r"<\|[^<>|\n]{1,60}\|>|</?s>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>|</?(?:bos|eos|pad)>", re.IGNORECASE
)
CODE = 12  # hex digits of the code between which hostile text stands
AS_IT_IS = "{{ messages[0]['content'] }}"  # a chat template for text that has been through one
ASKING = 2  # bump when local replies may change
T = TypeVar("T")


class Final(Reply):
    """A fault that would occur again if the question were asked again."""

    __slots__ = ()


class Parsed(NamedTuple, Generic[T]):
    """The value read from a reply, or None and why; `again`: no reply came, for a reason that may be gone at another time."""

    value: T | None
    why: str = ""
    again: bool = False


def harmless(text: str, *tags: str) -> str:
    """Makes hostile text safe to show to a model: control and format codes are spelt out, marks of chat turns and `tags` broken."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
    return broken(shown, "|".join([MARKS.pattern, *map(re.escape, tags)]))


def asked_for(prompt: str) -> str:
    """Returns a request as plain text for a reader: the turns of a conversation one below the other."""
    return joined(turns(prompt))


def broken(text: str, pattern: str) -> str:
    """Puts a blank after the first letter of each match of `pattern` until nothing matches; a match of a single letter is removed."""
    marks = re.compile(pattern, re.IGNORECASE)
    while marks.search(text):
        text = marks.sub(lambda hit: " ".join([hit[0].strip()[0], hit[0].strip()[1:]]) if len(hit[0].strip()) > 1 else "", text)
    return text


def quoted(texts: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Returns (code, name -> text between lines that carry the code). The code is a hash of all texts, so none can contain it."""
    code = hashlib.sha256("\0".join(f"{name}\0{text}" for name, text in texts.items()).encode("utf-8", "backslashreplace")).hexdigest()[
        :CODE
    ]
    return code, {name: f"[{name} {code}]\n{text}\n[end of {name} {code}]" for name, text in texts.items()}


def last_line(reply: str, tag: str, values: str) -> str | None:
    """Returns the value if the reply's last line is exactly `tag value` and the tag occurs nowhere else; else None.

    `values` is a regular expression. The tag's word counts as an occurrence with or without its colon.
    """
    lines = reply.strip().splitlines()
    if not lines or reply.lower().count(tag.lower().rstrip(":")) != 1:
        return None
    found = re.fullmatch(rf"{re.escape(tag)}[ \t]*({values})", lines[-1].strip())
    return found[1] if found else None


def in_words(error: Exception) -> str:
    """Returns why something failed: the message of a TiterError, of another error only its type."""
    return visible(str(error), 300) if isinstance(error, TiterError) else f"the judge failed: {type(error).__name__}"


@dataclass
class JudgeClient:
    """The model that a judge asks: a local one (a folder, a fetched name or a hub id) or an endpoint; lives for one `judge_all`."""

    judge: str
    model: str
    endpoint: Endpoint | None
    tokens: int
    batch: int

    def check(self) -> None:
        """Checks the settings. Errors: neither or both of `model` and `endpoint` are given, the model is not found, the key is not set."""
        if bool(self.model) == (self.endpoint is not None):
            given = "both `model` and `endpoint`" if self.model else "neither `model` nor `endpoint`"
            raise TiterError(
                f"the judge {self.judge} has {given}",
                expected="`model` (a folder, a fetched name or a hub id) or `endpoint` (url and model of a server)",
                next_step='set for example endpoint={"url": "http://localhost:8000/v1", "model": "NAME"}.',
            )
        if self.endpoint:
            self.endpoint.check()
        else:
            _ = self.checkpoint

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return resolve(self.model)

    def reads(self) -> dict[str, str]:
        return {} if self.endpoint or not self.model else {"model": self.checkpoint.key}

    def estimate(self, conversations: Sequence[Conversation], rounds: int = 1) -> Estimate | None:
        """Returns the endpoint's estimate of the cost, counting three letters as a token; None for a local model or nothing to ask."""
        if not self.endpoint or not conversations:
            return None
        letters = sum(len(turn["content"]) for conversation in conversations for turn in conversation)
        return self.endpoint.estimate(len(conversations), letters // (3 * len(conversations)) + self.tokens, rounds)

    def ask(self, conversations: Sequence[Conversation], attempt: int, memory: Memory | None, progress: Progress | None) -> list[Reply]:
        """Returns one reply per conversation; a local model decodes the first attempt greedily and samples later ones."""
        if self.endpoint:
            return self.endpoint.ask(conversations, self.tokens, memory, progress, attempt)
        decoding = Decoding(max_new_tokens=self.tokens, temperature=WARM if attempt else 0.0, seed=attempt)
        about = {"model": self.checkpoint.key, "decoding": decoding, "asking": ASKING}
        keys = [content_key({**about, "conversation": conversation}) for conversation in conversations]
        asked = dict(zip(keys, conversations, strict=True))
        return replies(asked, keys, memory, lambda open_: self._answered(open_, decoding, memory, progress))

    def _answered(
        self, asked: Mapping[str, Conversation], decoding: Decoding, memory: Memory | None, progress: Progress | None
    ) -> dict[str, Reply]:
        """Generates replies in batches of similar length; each is cached as it arrives, and a batch that fails leaves the others alone."""
        tokenizer = read_tokenizer(self.checkpoint)
        texts = {key: rendered(tokenizer, conversation) for key, conversation in asked.items()}
        lm = self._lm
        lengths = dict(zip(texts, lm.lengths(list(texts.values())), strict=True))
        room = float("inf") if lm.window is None else lm.window - decoding.max_new_tokens
        too_long = "%d tokens and the reply do not fit the judge's window of %s"
        found: dict[str, Reply] = {key: Final("", too_long % (lengths[key], lm.window)) for key in texts if lengths[key] > room}
        order = sorted((key for key in texts if key not in found), key=lambda key: (lengths[key], key))
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            try:
                written = lm.generate([texts[key] for key in chosen], decoding, self.batch)
            except Exception as error:  # noqa: BLE001  too large a batch for this machine, for example
                found.update(dict.fromkeys(chosen, Reply("", in_words(error))))
                continue
            for key, reply in zip(chosen, written, strict=True):
                found[key] = Final("", "the judge was cut off in its thought") if reply.unfinished else Reply(reply.text)
                if memory and not reply.unfinished:
                    memory.put(key, reply.text)
            if progress:
                progress(min(start + self.batch, len(order)), len(order))
        return found

    @cached_property
    def _lm(self) -> LM:
        """The loaded model, set to take text to which its chat template has already been applied."""
        lm = load(self.checkpoint)
        if templated(lm.tokenizer):
            lm.tokenizer.chat_template = AS_IT_IS
        return lm


def rendered(tokenizer: Any, conversation: Conversation) -> str:
    """Returns a conversation written in the model's chat template; a single turn as plain text where there is no template.

    The tokenizer's special tokens are broken in the turns' text. Errors: several turns and no template; a template that fails or
    leaves out a turn's text.
    """
    said = [Turn(cast(Role, turn["role"]), unmarked(tokenizer, turn["content"])) for turn in conversation]
    if not templated(tokenizer):
        if len(said) > 1:
            raise TiterError("the judge's tokenizer has no chat template", expected="one, to tell the user's turn from the assistant's")
        return said[0].content
    try:
        return texts(tokenizer, [said])[0]
    except TiterError as error:
        raise TiterError(f"the judge does not take this conversation: {error.what}", expected="turns of a user and an assistant") from None


def unmarked(tokenizer: Any, text: str) -> str:
    """Returns the text with the tokenizer's special tokens broken, so that a text cannot add turns to a conversation."""
    marks = sorted({str(token) for token in tokenizer.added_tokens_decoder.values() if str(token).strip()}, key=len, reverse=True)
    return broken(text, "|".join(map(re.escape, marks))) if marks else text


def readings(
    voice: JudgeClient,
    conversations: Sequence[Conversation],
    read: Callable[[str], T | None],
    tries: int,
    memory: Memory | None,
    progress: Progress | None,
) -> list[Parsed[T]]:
    """Asks about each conversation and returns what `read` makes of each reply; `read` returns None for an unreadable one.

    An unreadable reply is asked for again, up to `tries` times in all; a failed request is not.
    """
    found: list[Parsed[T]] = [Parsed(None)] * len(conversations)
    open_ = list(range(len(conversations)))
    for attempt in range(tries):
        answered = voice.ask([conversations[i] for i in open_], attempt, memory, None if attempt else progress)
        unread = []
        for i, reply in zip(open_, answered, strict=True):
            value = None if reply.fault else read(told(reply.text).answer)  # a server may leave its thought in
            if value is None and not reply.fault:
                unread.append(i)
            unreadable = f"unreadable in {attempt + 1} {'try' if attempt == 0 else 'tries'}: {visible(reply.text.strip()[-60:], 80)!r}"
            why = reply.fault or unreadable
            found[i] = Parsed(None, why, bool(reply.fault) and not isinstance(reply, Final)) if value is None else Parsed(value)
        open_ = unread
        if not open_:
            break
    return found

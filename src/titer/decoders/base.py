"""The contract of a decoder: it changes how a loaded model's next token is chosen, with other models' help or by editing activations.

It trains no model and edits no weight. `models/lm.py` generates; a `Guide` connects a decoder with it. The decoder's logits are used
before temperature and sampling. Shapes: B rows, n new tokens, V vocabulary, T tokens, D width of a site.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from safetensors.torch import save
from torch.nn.functional import pad as padded

from titer.core.config import Record, digest
from titer.core.errors import TiterError, visible
from titer.data.encode import pad
from titer.data.example import Example, positions
from titer.models.checkpoint import Checkpoint
from titer.models.context_windows import Chooser, Completion, Decoding, Make, Turn
from titer.models.hooks import Edit, replacing
from titer.models.lm import LM, load
from titer.models.modes import evaluating

State = Mapping[str, Any]


class Step(NamedTuple):
    """One position of a batch's answers, before its token is chosen.

    `logits` (B, V), float32: of the model that decodes. `others`: role -> the logits (B, V) of a model that the decoder reads, at the same
    place. `rows`: each prompt's token ids. `new` (B, n): the tokens written after them so far. `before` (B,): how many tokens at the end
    of a row the model wrote itself (a thought, when the answer is generated after it). `lm`: the model that decodes. `memory`: a
    dictionary that the decoder may use during this batch, empty at the first place.
    """

    logits: torch.Tensor
    others: Mapping[str, torch.Tensor]
    new: torch.Tensor
    rows: Sequence[Sequence[int]]
    before: torch.Tensor
    lm: LM
    memory: dict[str, Any]


class Decoder(Record):
    """The base class of decoders; its fields are its settings. A subclass is not subclassed again. Raise VERSION when answers may change.

    A row's result may depend on that row only, since batches are split as memory allows.
    """

    MODELS: ClassVar[tuple[str, ...]] = ()  # roles of the models it reads, besides the one that decodes
    SOURCE: ClassVar[str]  # the paper and the section
    VERSION: ClassVar[int]
    NEUTRAL: ClassVar[Mapping[str, Any] | str]  # the settings that equal plain decoding bit for bit, or a sentence why there are none
    SHOWN: ClassVar[bool] = True  # whether reports show the answers' texts; False where they measure a risk

    def view(self, role: str, prompt: str) -> str | None:
        """Returns the prompt for the model in this role, before its chat template. None: exactly the tokens of the model that decodes."""
        return prompt

    def check(self, examples: Sequence[Example]) -> None:
        """Called before anything is loaded. Errors: the decoder could not learn from these examples."""

    def fit(self, lm: LM, others: Mapping[str, LM], examples: Sequence[Example]) -> State:
        """Returns what it learns (tensors and JSON values) from examples that are not asked later. Most decoders learn nothing."""
        return {}

    def edits(self, lm: LM, state: State) -> dict[str, Edit]:
        """Returns site -> a function that replaces the decoding model's activation (B, T, D) there, in every forward pass."""
        return {}

    def logits(self, step: Step, state: State) -> torch.Tensor:
        """Returns the logits (B, V) from which the next token is chosen, before temperature."""
        return step.logits

    def stops(self, step: Step, state: State) -> torch.Tensor | None:
        """Returns a mask (B,) of the rows that end here, before another token; None: no row ends."""
        return None

    def ending(self, answer: str, state: State) -> str:
        """Returns the text that replaces an answer ended by `stops`."""
        return answer


def learns(decoder: Decoder) -> bool:
    return type(decoder).fit is not Decoder.fit


@dataclass(frozen=True)
class Guided:
    """A decoder, the models that it reads (by role) and what it learned: all that answers depend on, besides the model and the prompts."""

    decoder: Decoder
    models: Mapping[str, Checkpoint] = field(default_factory=dict)
    state: State = field(default_factory=dict)
    learned_on: str = ""  # content key of the model from which `state` was learned; "": not stated

    @property
    def name(self) -> str:
        return type(self.decoder).__module__.rsplit(".", 1)[-1]

    @cached_property
    def key(self) -> str:
        """The content key: a hash of name, version, settings, the models' contents and what was learned."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state.items() if isinstance(value, torch.Tensor)}
        learned = (
            [hashlib.sha256(save(tensors)).hexdigest(), {k: v for k, v in self.state.items() if k not in tensors}] if self.state else []
        )
        models = {role: one.key for role, one in self.models.items()}
        return digest([self.name, type(self.decoder).VERSION, self.decoder, models, learned])

    @property
    def told(self) -> str:
        """The decoder, its settings and models in words, for a report's provenance."""
        models = "".join(f", {role} = {one.label} ({one.key})" for role, one in self.models.items())
        return f"{self.name} {self.decoder.model_dump_json()}{models}"

    def check(self, checkpoint: Checkpoint) -> None:
        """Called before anything is loaded. Errors: a model is missing; its token ids differ from those of the model that decodes."""
        if missing := [role for role in self.decoder.MODELS if role not in self.models]:
            raise TiterError(
                f"the decoder {self.name} needs the model{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
                next_step="add " + " ".join(f"--read {role}=MODEL" for role in missing),
            )
        for role, other in self.models.items():
            agree(f"{role} {other.label}", other.vocabulary, checkpoint.label, checkpoint.vocabulary)

    def fits(self, name: str, key: str) -> None:
        """Checks that what was learned belongs to the model with this content key. Errors: it was learned from another model."""
        if self.learned_on not in ("", key):
            raise TiterError(
                f"the decoder {self.name} learned from another model than {visible(name, 80)}",
                expected="a state that was learned from the model that decodes",
                next_step="fit the decoder on this model.",
            )

    def opened(self, dtype: Any = "float32") -> dict[str, LM]:
        """Loads the models that the decoder reads; returns role -> model."""
        return {role: load(one, dtype=dtype) for role, one in self.models.items()}


def agree(name: str, one: Mapping[str, int], named: str, other: Mapping[str, int]) -> None:
    """Checks that two vocabularies agree. Errors: a token has different ids in the two, or is in one of them only."""
    if apart := one.items() ^ other.items():
        shown = ", ".join(sorted({visible(repr(token), 40) for token, _ in apart})[:3])
        raise TiterError(
            f"the vocabularies of {visible(name, 80)} and {visible(named, 80)} differ in {len({t for t, _ in apart})} tokens ({shown})",
            expected="models whose tokens have the same ids, since logits are combined token by token",
            next_step="give a model of the same family.",
        )


class Undecided(Exception):  # noqa: N818  not an error of the run: the answer counts as one that could not be generated
    """Raised when a decoder failed at some position; the message says how."""


class Beside:
    """A model that runs beside the one that decodes, with its own view of each prompt and its own cache."""

    def __init__(self, lm: LM, rows: Sequence[Sequence[int]]) -> None:
        self._lm = lm
        self._ids, self._mask = (t.to(lm.device) for t in pad(rows, lm.tokenizer.pad_token_id, "left"))
        self._past: Any = None
        self._read = 0

    def __call__(self, new: torch.Tensor) -> torch.Tensor:
        """Returns the logits (B, V) after the new tokens (B, n). Only tokens that are new since the last call are read."""
        more = new[:, self._read :].to(self._lm.device)
        self._ids, self._read = torch.cat([self._ids, more], dim=1), new.shape[1]
        self._mask = torch.cat([self._mask, torch.ones_like(more)], dim=1)
        fresh = self._ids.shape[1] if self._past is None else more.shape[1]
        with evaluating(self._lm.model):
            found = self._lm.model(
                input_ids=self._ids[:, -fresh:],
                attention_mask=self._mask,
                position_ids=positions(self._mask)[:, -fresh:],
                use_cache=True,
                logits_to_keep=1,
                **({} if self._past is None else {"past_key_values": self._past}),
            )
        self._past = getattr(found, "past_key_values", None)  # a model without a cache reads the whole row again
        return found.logits[:, -1].to(new.device, torch.float32)  # type: ignore[no-any-return]


class Guide:
    """Applies a decoder to one model's answers to some prompts (`LM.generate`), with the models that the decoder reads."""

    def __init__(
        self, guided: Guided, lm: LM, others: Mapping[str, LM], prompts: Sequence[str], prefixes: Sequence[str] | None, raw: bool = False
    ) -> None:
        self._decoder, self._state, self._lm, self._others = guided.decoder, guided.state, lm, others
        self._name, self._asked = guided.name, (prompts, prefixes, raw)
        self._heads: dict[str, list[list[int]]] = {}
        self._stopped: set[int] = set()
        if missing := set(guided.decoder.MODELS) - set(others):
            raise TiterError(
                f"the decoder {guided.name} was not given the models {', '.join(sorted(missing))}", next_step="give each by its role."
            )
        for role, other in others.items():
            agree(f"{role} {other.label}", other.tokenizer.get_vocab(), lm.label, lm.tokenizer.get_vocab())

    def begin(self, decoding: Decoding, ids: Sequence[list[int]]) -> int | None:
        """Takes the prompts' token ids; returns the window that fits all models (None: no limit). Errors: a prompt too long for one."""
        prompts, prefixes, raw = self._asked
        rooms = [self._lm.window]
        for role, other in self._others.items():
            seen = [self._decoder.view(role, prompt) for prompt in prompts]
            own = None if None in seen else other.begun([str(s) for s in seen], prefixes, decoding, other.window, raw=raw)[0]
            heads = self._heads[role] = list(ids) if own is None else own
            longer = max((len(head) - len(row) for head, row in zip(heads, ids, strict=True)), default=0)
            rooms.append(None if other.window is None else other.window - max(longer, 0))
        return min((room for room in rooms if room is not None), default=None)

    def apart(self, turns: Mapping[int, Turn], groups: list[list[int]]) -> list[list[int]]:
        """Splits groups of prompts further where padding would change what one of the other models computes."""
        for role, other in self._others.items():
            rows = self._behind(role, turns)
            groups = [part for group in groups for part in other.padding.batches(rows, group, len(group), "generated")]
        return groups

    def _behind(self, role: str, turns: Mapping[int, Turn]) -> list[list[int]]:
        return [self._heads[role][i] + turn.written for i, turn in turns.items()]

    @contextmanager
    def over(self, turns: Mapping[int, Turn]) -> Iterator[Chooser]:
        """Yields the function that transformers calls with a batch's ids and logits, and that returns the logits to choose from.

        Hooks are removed when the block ends.
        """
        ends, places, rows = self._lm.ends, list(turns), [turn.row for turn in turns.values()]
        width, memory = max(map(len, rows)), dict[str, Any]()
        before = torch.tensor([len(turn.written) for turn in turns.values()], device=self._lm.device)
        beside = {role: Beside(other, self._behind(role, turns)) for role, other in self._others.items()}

        def choose(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            new = ids[:, width:]  # the tokens written so far; rows that have ended are not changed
            live = ~torch.isin(new, torch.tensor(ends, dtype=new.dtype, device=new.device)).any(1)
            others = {role: one(new) for role, one in beside.items()}
            known = min([logits.shape[1], *(one.shape[1] for one in others.values())])
            step = Step(logits[:, :known], {role: one[:, :known] for role, one in others.items()}, new, rows, before, self._lm, memory)
            with self._told():
                found, stops = self._decoder.logits(step, self._state), self._decoder.stops(step, self._state)
                found = padded(found, (0, logits.shape[1] - known), value=-torch.inf) if known < logits.shape[1] else found
                if bool((live & ~found.amax(1).isfinite()).any()):
                    raise ValueError("its logits are not numbers")
            found = torch.where(live[:, None], found, logits)
            return found if stops is None else self._ended(found, stops & live, places, ends)

        with ExitStack() as stack:
            for other in self._others.values():
                stack.enter_context(evaluating(other.model))
            with self._told():
                edits = self._decoder.edits(self._lm, self._state)
            if edits:
                stack.enter_context(replacing(self._lm.sites, {site: self._kept(edit) for site, edit in edits.items()}))
            yield choose

    def _ended(self, logits: torch.Tensor, stops: torch.Tensor, places: Sequence[int], ends: Sequence[int]) -> torch.Tensor:
        """Returns logits with which the rows that stop write the end token. Errors: the model has no end token."""
        if not ends and bool(stops.any()):
            raise TiterError(
                f"the decoder {self._name} ends answers early, and {self._lm.label} has no token that ends an answer",
                expected="a model whose tokenizer or generation_config.json names an end token",
            )
        self._stopped |= {place for place, stop in zip(places, stops.tolist(), strict=True) if stop}
        only = torch.full_like(logits[0], -torch.inf)
        only[list(ends[:1])] = 0.0
        return torch.where(stops[:, None], only, logits)

    def _kept(self, edit: Edit) -> Edit:
        def edited(activation: torch.Tensor) -> torch.Tensor:
            with self._told():
                return edit(activation)

        return edited

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turns whatever a plug-in raises into `Undecided`. A TiterError or a lack of memory stays an error of the command."""
        try:
            yield
        except (TiterError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise Undecided(visible(f"the decoder {self._name} failed: {type(error).__name__}: {error}", 240)) from error

    def tried(self, make: Make, places: Sequence[int], start: int) -> dict[int, Completion]:
        """Returns a batch's answers. If the decoder fails, each row is tried alone; a row that fails alone gets only the reason."""
        try:
            found = make(places, start)
        except Undecided as error:
            if len(places) == 1:
                return {places[0]: Completion("", False, 0, failed=str(error))}
            alone = [self.tried(make, [place], start + k) for k, place in enumerate(places)]
            return {place: answer for one in alone for place, answer in one.items()}
        return {i: self._closed(answer) if i in self._stopped else answer for i, answer in found.items()}

    def _closed(self, answer: Completion) -> Completion:
        return replace(answer, text=self._decoder.ending(answer.text, self._state), ended=True, unfinished=False)

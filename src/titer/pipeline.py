"""The pipeline makes stages, answers, verdicts and tables, and keeps each in the run store, so that it is made once. L5."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from titer import evaluate
from titer.attacks.base import Attempt
from titer.core import ranks
from titer.core.config import digest
from titer.core.errors import TiterError
from titer.core.memory import Memory
from titer.core.run import Store, damage, gone, write_text
from titer.core.tables import read_table, write_table
from titer.data import encode, thoughts
from titer.data.example import Example
from titer.data.templates import templated
from titer.decoders.base import Guided
from titer.judges.base import Judge
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.lm import LM, Decoding, Progress, load, read_tokenizer
from titer.models.vllm_engine import Fast, Serving, engine_key, open_fast, openable
from titer.stage import Stage
from titer.train import train


@dataclass(frozen=True)
class Model:
    """A model to be trained or measured: its name, its content key, its checkpoint."""

    name: str
    key: str
    checkpoint: Checkpoint


class Reporter(Protocol):
    """Shows a run's progress to the user."""

    def task(self, text: str) -> Progress:
        """Begins to show a piece of work. The returned function (done, total) shows its progress."""

    def tell(self, text: str) -> None:
        """Shows one line of text."""

    def running(self, pieces: Collection[str]) -> None:
        """Shows the pieces of the task that run now, each on a line with its time."""


class JudgingBatch(NamedTuple):
    """Answers to be judged: the inputs that determine them (and, with the judge, their verdicts), and a function that returns them."""

    inputs: Mapping[str, object]
    samples: Callable[[], pd.DataFrame]


@dataclass
class Pipeline:
    """Makes models, answers, verdicts and tables, each once; it holds the run store, a reporter and the models loaded so far."""

    store: Store
    reporter: Reporter
    save_every: int = 100
    dtype: Literal["float32", "bfloat16"] = "float32"  # of models that are measured; training always starts from float32
    serving: Serving | None = None  # how vLLM generates the answers; None: transformers does
    _loaded: dict[str, LM] = field(default_factory=dict)
    _held: dict[str, LM] = field(default_factory=dict)  # what stands for a model within `holding`
    _beside: dict[str, LM] = field(default_factory=dict)  # models that a decoder reads, by content key
    _served: dict[str, Fast] = field(default_factory=dict)
    _served_out: dict[str, Callable[[], Model]] = field(default_factory=dict)  # how to make models again whose weights were deleted
    _readers: dict[str, Any] = field(default_factory=dict)  # tokenizers, by the model's key
    _read: dict[str, dict[str, str]] = field(default_factory=dict)  # judge -> its models' keys, kept since each hashes all weights

    def model(
        self,
        stage: Stage,
        parent: Model | None,
        name: str,
        tokenizer: Callable[[], object] | None = None,
        reads: Mapping[str, Model] = MappingProxyType({}),
    ) -> Model:
        """Returns the model that `stage` makes from `parent`: it is trained, or found in the store.

        `tokenizer` is needed if the stage has no parent. `reads`: role -> model, for the roles that the stage's method names
        (`Method.MODELS`). Errors: a model of `reads` is missing; as `train`.
        """
        if missing := set(stage.method.MODELS) - set(reads):
            raise TiterError(
                f"stage {stage.name} needs the models {', '.join(sorted(missing))}, which were not given",
                next_step="give each of them by its role.",
            )
        inputs = stage.key_inputs(parent.key if parent else "", {role: read.key for role, read in reads.items()})

        def begin() -> LM:
            if parent is not None:
                return load(parent.checkpoint)
            if stage.architecture is None or tokenizer is None:
                raise TiterError(
                    f"stage {stage.name} has neither a model to start from nor an architecture with a tokenizer", expected="one of the two"
                )
            return stage.architecture.build(tokenizer(), stage.seed)

        def make(work: Path) -> None:
            def read(role: str) -> LM:
                return begin() if role == "base" else load(reads[role].checkpoint)

            adapter, shown = adapter_beside(parent.checkpoint.path) if parent else None, self.reporter.task(stage.name)
            train(stage, begin, read, work, self.save_every, shown, adapter=adapter, shard=ranks.sharded())

        folder, key = ranks.artefact(partial(self.store.artefact, "stages", inputs), make), digest(inputs)
        trusted = parent is not None and parent.checkpoint.trusted  # it was saved with the code of the model that it began from
        thinking = parent.checkpoint.thinking if parent else "default"
        if gone(folder):  # it was measured and its weights deleted: it is made again if more is asked of it
            self._served_out[key] = partial(self.model, stage, parent, name, tokenizer, reads)
            return Model(name, key, Checkpoint(path=folder / "model", name=name, trusted=trusted, thinking=thinking))
        made = open_checkpoint(folder / "model", name, trusted=trusted)
        return Model(name, key, made if thinking == "default" else made.model_copy(update={"thinking": thinking}))

    def measured(self, model: Model, keep_weights: bool) -> None:
        """Deletes the weights of a stage's model once it is measured; with `keep_weights`, makes them again if they were deleted."""
        self.release()
        if not keep_weights:
            self.store.empty("stages", model.key, ".safetensors")
        elif model.key in self._served_out:
            self.lm(model)

    def lm(self, model: Model) -> LM:
        """Loads a model. It stays in memory for the next call, until another one is loaded."""
        if model.key in self._held:
            return self._held[model.key]
        if model.key not in self._loaded:
            self.release()
            if again := self._served_out.pop(model.key, None):
                self.store.forget("stages", model.key)
                model = again()
            self._loaded[model.key] = load(model.checkpoint, dtype=self.dtype)
        return self._loaded[model.key]

    @contextmanager
    def holding(self, model: Model, lm: LM) -> Iterator[None]:
        """A context in which `lm` is `model`, whose weights are edited in memory only: its answers are stored under its own key."""
        self._held[model.key], self._readers[model.key] = lm, lm.tokenizer
        try:
            yield
        finally:
            del self._held[model.key], self._readers[model.key]

    def writer(self, model: Model) -> LM | Fast:
        """Returns what generates a model's answers: the loaded model, or vLLM, which then has most of the GPU until the next model."""
        if self.serving is None:
            return self.lm(model)
        if model.key not in self._served:
            self.release()
            self._served[model.key] = open_fast(openable(model.checkpoint, self.store, self.serving.dtype), self.serving)
        return self._served[model.key]

    def beside(self, guided: Guided | None) -> dict[str, LM]:
        """Loads the models that a decoder reads, by role. They stay in memory until `lm` loads another model."""
        if guided is None:
            return {}
        for one in guided.models.values():
            if one.key not in self._beside:
                self._beside[one.key] = load(one, dtype=self.dtype)
        return {role: self._beside[one.key] for role, one in guided.models.items()}

    @property
    def read_in(self) -> dict[str, object]:
        """The part of a content key for the precision in which models are loaded; empty for float32."""
        return {} if self.dtype == "float32" else {"read in": self.dtype}

    def release(self) -> None:
        """Frees the memory of all loaded models."""
        for served in self._served.values():
            served.close()
        self._served.clear()
        self._loaded.clear()
        self._beside.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def answered(self, model: Model, attempts: Sequence[Attempt], decoding: Decoding, batch: int) -> tuple[Path, str]:
        """Returns (file of the model's answers, their key). They are generated once, and each batch is stored as it is made."""
        inputs: dict[str, object] = {
            "model": model.key,
            "attempts": attempts_key(attempts),
            "decoding": decoding.model_copy(update={"max_thinking_tokens": None}),
            "versions": [evaluate.VERSION, encode.VERSION],
            **self._as_written(model, attempts),
        }
        fast = self.serving is not None and all(a.suffix is None for a in attempts)  # only transformers can insert embeddings
        guided = next((a.decoder for a in attempts), None)
        if guided is not None:
            guided.fits(model.name, model.key)
        if fast and self.serving is not None:
            inputs["engine"] = engine_key(self.serving)
        else:
            inputs |= self.read_in

        def samples(work: Path) -> None:
            lm = self.writer(model) if fast else self.lm(model)  # first, so that a model that does not open is reported at once
            progress = self.reporter.task(f"answers of {model.name}, {attempts[0].example.kind}")
            beside = {} if fast else self.beside(guided)
            write_table(work / "samples.jsonl", evaluate.sample(lm, attempts, room, batch, progress, work, beside))

        # a model without a thinking template gets no room for thoughts, unless its answers turn out to have some
        room = decoding
        if not thoughts.thinks(self._reader(model)):
            room = decoding.model_copy(update={"max_thinking_tokens": 0})
            file = self.store.artefact("samples", inputs, samples) / "samples.jsonl"
            if not _thoughtful(file):
                return file, digest(inputs)
            room = decoding  # it thinks, although its template does not say so
        inputs["thoughts"] = [thoughts.VERSION, decoding.most(True) - decoding.max_new_tokens, decoding.max_thinking_tokens is None]
        return self.store.artefact("samples", inputs, samples) / "samples.jsonl", digest(inputs)

    def _as_written(self, model: Model, attempts: Sequence[Attempt]) -> dict[str, str]:
        """Returns the part of a key for the prompts as the chat template writes them; empty without one, where the prompts suffice."""
        reader = self._reader(model)
        if not templated(reader) or any(a.raw for a in attempts):
            return {}
        return {"written": digest(encode.prompt_texts(reader, [a.example.prompt for a in attempts]))}

    def _reader(self, model: Model) -> Any:
        if model.key not in self._readers:
            self._readers[model.key] = read_tokenizer(model.checkpoint)
        return self._readers[model.key]

    def verdicts(self, model: Model, attempts: Sequence[Attempt], judge: Judge, decoding: Decoding, batch: int) -> pd.DataFrame:
        """Returns a model's answers with verdicts. Both are stored, but separately, so a changed judge needs no new answers."""
        file, key = self.answered(model, attempts, decoding, batch)
        return self.judged([JudgingBatch({"samples": key}, partial(read_table, file))], judge, task=f"judging {model.name}")[0]

    def judged(self, piles: Sequence[JudgingBatch], judge: Judge, what: str = "judging", task: str = "") -> list[pd.DataFrame]:
        """Returns each pile of answers with its verdicts: stored ones are read back, all others are made by one call of the judge (`ask`).

        A pile in which asking the judge failed for some answer is returned, but not stored, so a later run asks again.
        """
        kind, reads = type(judge), self._reads(judge)
        told = [kind.__module__.rsplit(".", 1)[-1], kind.VERSION, judge, *([reads] if reads else [])]
        inputs = [{**pile.inputs, "judge": told} for pile in piles]
        keys = [digest(one) for one in inputs]
        open_ = {key: pile.samples() for key, pile in zip(keys, piles, strict=True) if not self._stands("verdicts", key)}
        new, lost, start = {}, set(), 0
        if open_:
            whole, again = self.ask(pd.concat(open_.values(), ignore_index=True), judge, what, task)
        for key, samples in open_.items():
            part = slice(start, start := start + len(samples))
            new[key] = whole.iloc[part].reset_index(drop=True)
            lost |= {key} if again.iloc[part].any() else set()
        return [
            new[key] if key in lost else self.table("verdicts", one, partial(new.__getitem__, key))
            for key, one in zip(keys, inputs, strict=True)
        ]

    def ask(self, samples: pd.DataFrame, judge: Judge, what: str = "judging", task: str = "") -> tuple[pd.DataFrame, pd.Series]:
        """Judges answers; returns (the judged answers, a mask of those for which asking the judge failed).

        Replies of a judge's model are stored by content.

        A judge that sends requests first reports their cost. For a judge that loads a model, the model loaded here is freed first.
        """
        reads, price = self._reads(judge), judge.estimate(evaluate.asked_of(samples))
        if price:
            self.reporter.tell(f"{what} sends {price.line()}")
        if reads:
            self.release()
        progress = self.reporter.task(task or what) if reads or price else None
        found, again = evaluate.judgement(samples, judge, Memory(self.store.root / "replies"), progress)
        if price and judge.voice() is None:  # a plug-in that sends requests itself may not separate a server's failure from a verdict
            again |= found.outcome == "could_not_judge"
        if lost := int(again.sum()):
            why = evaluate.commonest(found.reason[again])
            self.reporter.tell(f"{what}: {lost} answers could not be judged, most often: {why}; run the same command again to judge these")
        return found, again

    def _stands(self, kind: str, key: str) -> bool:
        """Whether an artefact is stored and undamaged. A damaged one counts as absent and is made again."""
        return self.store.has(kind, key) and not damage(self.store.root / kind / key)

    def _reads(self, judge: Judge) -> dict[str, str]:
        """Returns role -> key of the models that a judge reads; computed once for each judge."""
        name = f"{type(judge).__module__} {judge.model_dump_json()}"
        if name not in self._read:
            self._read[name] = judge.reads()
        return self._read[name]

    def table(self, kind: str, inputs: Mapping[str, object], make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """Returns a table, made once and stored under its inputs. It is always read from disk, so first and later runs give the same."""
        folder = self.store.artefact(kind, inputs, lambda work: write_table(work / "table.jsonl", make()))
        return read_table(folder / "table.jsonl")

    def state(self, kind: str, inputs: Mapping[str, object], learn: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Returns what a plug-in learned (tensors and JSON values), made once and stored under its inputs."""

        def make(work: Path) -> None:
            state = learn()
            tensors = {name: value.detach().cpu().contiguous() for name, value in state.items() if isinstance(value, torch.Tensor)}
            save_file(tensors, work / "tensors.safetensors")
            write_text(work / "state.json", json.dumps({name: value for name, value in state.items() if name not in tensors}))

        folder = self.store.artefact(kind, inputs, make)
        return {**json.loads((folder / "state.json").read_text(encoding="utf-8")), **load_file(folder / "tensors.safetensors")}


@dataclass(frozen=True)
class ReadAs:
    """How measured models are run: by vLLM or transformers, in bfloat16 or float32."""

    serving: Serving | None = None
    bf16: bool = False

    def pipeline(self, store: Store, reporter: Reporter) -> Pipeline:
        return Pipeline(store, reporter, dtype="bfloat16" if self.bf16 else "float32", serving=self.serving)


def adapter_beside(model: Path) -> Path | None:
    """Returns the folder of the adapter that a merged model was trained with, or None.

    It is within the model's folder, if that was made by `--to`, or beside a stage's model."""
    place = model / "adapter" if (model / "adapter").is_dir() else model.parent / "adapter"
    of_a_stage = place.parent == model or (model.parent / "DONE").is_file()
    return place if of_a_stage and (place / "adapter_config.json").is_file() else None


def stopped(model: Model) -> str:
    """Returns why the stage that made a model ended early; "" if it ran to its last step."""
    return str(json.loads((model.checkpoint.path.parent / "outcome.json").read_text(encoding="utf-8"))["stopped"])


def _thoughtful(samples: Path) -> bool:
    """Whether any stored answer has a thought, separated from the answer or still in it."""
    table = read_table(samples)
    return "thought" in table or any(thoughts.OPENS.match(text) for text in table.completion)


def attempts_key(attempts: Sequence[Attempt]) -> str:
    """Returns the content key of a list of attempts, including inserted embeddings, decoder and raw prompts."""
    rows = [[a.example.prompt, a.prefix, a.example.kind, a.example.comply, a.example.refuse, *_also(a.example)] for a in attempts]
    soft = [a.suffix.tolist() for a in attempts if a.suffix is not None]
    found = [*rows, soft] if soft else rows
    also = [["raw" if a.raw else "", a.decoder.key if a.decoder else ""] for a in attempts]
    return digest({"attempts": found, "also": also} if any(any(one) for one in also) else found)


def fingerprint(examples: Sequence[Example]) -> str:
    """Returns the content key of a list of examples."""
    return digest([[e.prompt, e.harmful, e.kind, e.comply, e.refuse, *_also(e)] for e in examples])


def _also(example: Example) -> list[list[str]]:
    """Returns the part of a key for further right answers; empty if there are none, so that the keys of such examples stay as they were."""
    return [list(example.also)] if example.also else []

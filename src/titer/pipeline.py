"""The pipeline: stages, samples, verdicts and tables made through the run store, each once. L5."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
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
    """A model a study works on: its name, its key, its checkpoint."""

    name: str
    key: str
    checkpoint: Checkpoint


class Reporter(Protocol):
    """Where progress is shown."""

    def task(self, text: str) -> Progress:
        """Begin a piece of work; returns its progress function (done, total)."""

    def tell(self, text: str) -> None:
        """One line for the reader."""


class JudgingBatch(NamedTuple):
    """Answers to be judged: what determines them and so, with the judge, their verdicts; and how to get them."""

    inputs: Mapping[str, object]
    samples: Callable[[], pd.DataFrame]


@dataclass
class Pipeline:
    """A store, a reporter and the models loaded so far."""

    store: Store
    reporter: Reporter
    save_every: int = 100
    dtype: Literal["float32", "bfloat16"] = "float32"  # of models that are loaded to be read; training starts in float32
    serving: Serving | None = None  # answers come through vLLM; none: through transformers
    _loaded: dict[str, LM] = field(default_factory=dict)
    _beside: dict[str, LM] = field(default_factory=dict)  # what a decoder reads, by their contents
    _served: dict[str, Fast] = field(default_factory=dict)
    _served_out: dict[str, Callable[[], Model]] = field(default_factory=dict)  # how models whose weights went are made again
    _readers: dict[str, Any] = field(default_factory=dict)  # tokenizers of the models asked, by their keys
    _read: dict[str, dict[str, str]] = field(default_factory=dict)  # by judge: a key is a hash of all of a model's weights

    def model(
        self,
        stage: Stage,
        parent: Model | None,
        name: str,
        tokenizer: Callable[[], object] | None = None,
        reads: Mapping[str, Model] = MappingProxyType({}),
    ) -> Model:
        """The model that `stage` makes of `parent`; `tokenizer` is needed where a stage begins from nothing.

        `reads`: the models that the stage's method names (`Method.MODELS`).
        """
        if missing := set(stage.method.MODELS) - set(reads):
            raise TiterError(
                f"stage {stage.name} reads the models {', '.join(sorted(missing))}, which were not given",
                next_step="give them by their roles.",
            )
        inputs = stage.key_inputs(parent.key if parent else "", {role: read.key for role, read in reads.items()})

        def begin() -> LM:
            if parent is not None:
                return load(parent.checkpoint)
            if stage.architecture is None or tokenizer is None:
                raise TiterError(f"stage {stage.name} has neither a model to start from nor an architecture", expected="one of the two")
            return stage.architecture.build(tokenizer(), stage.seed)

        def make(work: Path) -> None:
            def read(role: str) -> LM:
                return begin() if role == "base" else load(reads[role].checkpoint)

            adapter, shown = adapter_beside(parent.checkpoint.path) if parent else None, self.reporter.task(stage.name)
            train(stage, begin, read, work, self.save_every, shown, adapter=adapter, shard=ranks.sharded())

        folder, key = ranks.artefact(partial(self.store.artefact, "stages", inputs), make), digest(inputs)
        trusted = parent is not None and parent.checkpoint.trusted  # it was saved with the code of the model it began from
        thinking = parent.checkpoint.thinking if parent else "default"
        if gone(folder):  # it was measured before: whoever needs more of it has it made again
            self._served_out[key] = partial(self.model, stage, parent, name, tokenizer, reads)
            return Model(name, key, Checkpoint(path=folder / "model", name=name, trusted=trusted, thinking=thinking))
        made = open_checkpoint(folder / "model", name, trusted=trusted)
        return Model(name, key, made if thinking == "default" else made.model_copy(update={"thinking": thinking}))

    def measured(self, model: Model, keep_weights: bool) -> None:
        """A stage's model has served: its weights go, what was measured stays; or they are to be kept, and are made again if they went."""
        self.release()
        if not keep_weights:
            self.store.empty("stages", model.key, ".safetensors")
        elif model.key in self._served_out:
            self.lm(model)

    def lm(self, model: Model) -> LM:
        """The model loaded; kept for the next caller (one at a time is kept, so memory stays bounded)."""
        if model.key not in self._loaded:
            self.release()
            if again := self._served_out.pop(model.key, None):
                self.store.forget("stages", model.key)
                model = again()
            self._loaded[model.key] = load(model.checkpoint, dtype=self.dtype)
        return self._loaded[model.key]

    def writer(self, model: Model) -> LM | Fast:
        """Who answers for a model: the model loaded, or vLLM, which is given most of the GPU until the next model."""
        if self.serving is None:
            return self.lm(model)
        if model.key not in self._served:
            self.release()
            self._served[model.key] = open_fast(openable(model.checkpoint, self.store, self.serving.dtype), self.serving)
        return self._served[model.key]

    def beside(self, guided: Guided | None) -> dict[str, LM]:
        """The models that a decoder reads, in memory beside the one that decodes (`lm`) until the next one is loaded."""
        if guided is None:
            return {}
        for one in guided.models.values():
            if one.key not in self._beside:
                self._beside[one.key] = load(one, dtype=self.dtype)
        return {role: self._beside[one.key] for role, one in guided.models.items()}

    @property
    def read_in(self) -> dict[str, object]:
        """What a content key says of the precision in which models are read: nothing of float32."""
        return {} if self.dtype == "float32" else {"read in": self.dtype}

    def release(self) -> None:
        """Forget the loaded model: what follows reads weights from disk, and the memory is wanted."""
        for served in self._served.values():
            served.close()
        self._served.clear()
        self._loaded.clear()
        self._beside.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def answered(self, model: Model, attempts: Sequence[Attempt], decoding: Decoding, batch: int) -> tuple[Path, str]:
        """(file of the model's answers, their key): generated once, batches kept as they come."""
        inputs: dict[str, object] = {
            "model": model.key,
            "attempts": attempts_key(attempts),
            "decoding": decoding.model_copy(update={"max_thinking_tokens": None}),
            "versions": [evaluate.VERSION, encode.VERSION],
            **self._as_written(model, attempts),
        }
        fast = self.serving is not None and all(a.suffix is None for a in attempts)  # embeddings are inserted by transformers alone
        guided = next((a.decoder for a in attempts), None)
        if fast and self.serving is not None:
            inputs["engine"] = engine_key(self.serving)
        else:
            inputs |= self.read_in

        def samples(work: Path) -> None:
            lm = self.writer(model) if fast else self.lm(model)  # first: a model that does not open is told before anything is begun
            progress = self.reporter.task(f"answers of {model.name}, {attempts[0].example.kind}")
            beside = {} if fast else self.beside(guided)
            write_table(work / "samples.jsonl", evaluate.sample(lm, attempts, room, batch, progress, work, beside))

        room = decoding
        if not thoughts.thinks(self._reader(model)):
            room = decoding.model_copy(update={"max_thinking_tokens": 0})
            file = self.store.artefact("samples", inputs, samples) / "samples.jsonl"
            if not _thoughtful(file):
                return file, digest(inputs)
            room = decoding  # it thinks though nothing said so
        inputs["thoughts"] = [thoughts.VERSION, decoding.most(True) - decoding.max_new_tokens, decoding.max_thinking_tokens is None]
        return self.store.artefact("samples", inputs, samples) / "samples.jsonl", digest(inputs)

    def _as_written(self, model: Model, attempts: Sequence[Attempt]) -> dict[str, str]:
        """What a key says of the prompts as the model's chat template writes them; nothing without one, where the prompts say all."""
        reader = self._reader(model)
        if not templated(reader) or any(a.raw for a in attempts):
            return {}
        return {"written": digest(encode.prompt_texts(reader, [a.example.prompt for a in attempts]))}

    def _reader(self, model: Model) -> Any:
        if model.key not in self._readers:
            self._readers[model.key] = read_tokenizer(model.checkpoint)
        return self._readers[model.key]

    def verdicts(self, model: Model, attempts: Sequence[Attempt], judge: Judge, decoding: Decoding, batch: int) -> pd.DataFrame:
        """Judged samples; samples and verdicts are separate artefacts."""
        file, key = self.answered(model, attempts, decoding, batch)
        return self.judged([JudgingBatch({"samples": key}, partial(read_table, file))], judge, task=f"judging {model.name}")[0]

    def judged(self, piles: Sequence[JudgingBatch], judge: Judge, what: str = "judging", task: str = "") -> list[pd.DataFrame]:
        """Verdicts on each pile of answers: kept ones read back, all others made by one call of the judge (`ask`).

        A pile on which the asking failed is returned with what could not be judged, and not kept.
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
        """(answers judged, which of them the asking failed on); replies are kept by content.

        A judge that sends requests tells first what they cost, one that loads a model gets the memory of the model loaded here.
        """
        reads, price = self._reads(judge), judge.estimate(evaluate.asked_of(samples))
        if price:
            self.reporter.tell(f"{what} sends {price.line()}")
        if reads:
            self.release()
        progress = self.reporter.task(task or what) if reads or price else None
        found, again = evaluate.judgement(samples, judge, Memory(self.store.root / "replies"), progress)
        if price and judge.voice() is None:  # a plug-in that sends requests itself may not tell a server's failure from a verdict
            again |= found.outcome == "could_not_judge"
        if lost := int(again.sum()):
            why = evaluate.commonest(found.reason[again])
            self.reporter.tell(f"{what}: {lost} answers could not be judged, most often: {why}; the same command asks again for these")
        return found, again

    def _stands(self, kind: str, key: str) -> bool:
        """Whether a table is there, whole: a damaged one is made anew, by the rule for new ones."""
        return self.store.has(kind, key) and not damage(self.store.root / kind / key)

    def _reads(self, judge: Judge) -> dict[str, str]:
        """The keys of the models that a judge reads, hashed once."""
        name = f"{type(judge).__module__} {judge.model_dump_json()}"
        if name not in self._read:
            self._read[name] = judge.reads()
        return self._read[name]

    def table(self, kind: str, inputs: Mapping[str, object], make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A table kept under its inputs; always as read back from disk, so first and later runs see the same."""
        folder = self.store.artefact(kind, inputs, lambda work: write_table(work / "table.jsonl", make()))
        return read_table(folder / "table.jsonl")

    def state(self, kind: str, inputs: Mapping[str, object], learn: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What a plug-in learned, tensors and what JSON holds, kept under its inputs."""

        def make(work: Path) -> None:
            state = learn()
            tensors = {name: value.detach().cpu().contiguous() for name, value in state.items() if isinstance(value, torch.Tensor)}
            save_file(tensors, work / "tensors.safetensors")
            write_text(work / "state.json", json.dumps({name: value for name, value in state.items() if name not in tensors}))

        folder = self.store.artefact(kind, inputs, make)
        return {**json.loads((folder / "state.json").read_text(encoding="utf-8")), **load_file(folder / "tensors.safetensors")}


@dataclass(frozen=True)
class ReadAs:
    """How models are read that are measured: through vLLM or transformers, in bfloat16 or float32."""

    serving: Serving | None = None
    bf16: bool = False

    def pipeline(self, store: Store, reporter: Reporter) -> Pipeline:
        return Pipeline(store, reporter, dtype="bfloat16" if self.bf16 else "float32", serving=self.serving)


def adapter_beside(model: Path) -> Path | None:
    """The adapter that a merged model was trained with: in a folder that `--to` made, or beside the model of a stage; None without one."""
    place = model / "adapter" if (model / "adapter").is_dir() else model.parent / "adapter"
    of_a_stage = place.parent == model or (model.parent / "DONE").is_file()
    return place if of_a_stage and (place / "adapter_config.json").is_file() else None


def stopped(model: Model) -> str:
    """Why the stage that made a model ended before its last step, "" where it did not."""
    return str(json.loads((model.checkpoint.path.parent / "outcome.json").read_text(encoding="utf-8"))["stopped"])


def _thoughtful(samples: Path) -> bool:
    """Whether any stored answer has a thought, told from it or not."""
    table = read_table(samples)
    return "thought" in table or any(thoughts.OPENS.match(text) for text in table.completion)


def attempts_key(attempts: Sequence[Attempt]) -> str:
    """Content key of a list of attempts, with what else they carry: inserted embeddings, a decoder, raw prompts."""
    rows = [[a.example.prompt, a.prefix, a.example.kind, a.example.comply, a.example.refuse, *_also(a.example)] for a in attempts]
    soft = [a.suffix.tolist() for a in attempts if a.suffix is not None]
    found = [*rows, soft] if soft else rows
    also = [["raw" if a.raw else "", a.decoder.key if a.decoder else ""] for a in attempts]
    return digest({"attempts": found, "also": also} if any(any(one) for one in also) else found)


def fingerprint(examples: Sequence[Example]) -> str:
    """Content key of a list of examples."""
    return digest([[e.prompt, e.harmful, e.kind, e.comply, e.refuse, *_also(e)] for e in examples])


def _also(example: Example) -> list[list[str]]:
    """Further right answers, in a key only where there are any: what was kept of examples without them is found again."""
    return [list(example.also)] if example.also else []

"""Generates answers with vLLM on a GPU (the extra titer[vllm]), many prompts at once; `Fast.generate` is used like `LM.generate`.

vLLM gets token ids from Titer's own encoding and returns token ids; it loads no tokenizer and no chat template. It ends an answer
where `LM` does, and nowhere else. Each sampled answer has its own seed, made from the decoding's seed and the prompt's place, so an
interrupted call generates only the missing answers. Greedy answers equal those of the transformers engine up to rounding: the kernels
differ, so stored answers are kept separately for each engine (`engine_key`). Written for vLLM 0.33.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from transformers import GenerationConfig

from titer.core.config import Record, digest
from titer.core.errors import TiterError, unknown, visible
from titer.core.machine import version
from titer.core.run import Store
from titer.data.encode import token_ids
from titer.models.checkpoint import Checkpoint, open_checkpoint, opening
from titer.models.context_windows import Guide, Turn, answers
from titer.models.lm import LM, Completion, Decoding, Progress, load, read_tokenizer

VERSION = 1  # bump when answers may change
AT_ONCE = 1024  # prompts given to vLLM in one call; it schedules them itself
COLDEST, HOTTEST = 0.01, 2.0  # vLLM raises a colder temperature to the first without an error, and refuses one above the second
INSTALL = "pip install 'titer[vllm]'"
QUIET = {  # vLLM prints nothing on standard output and sends no usage data; what the user has set is kept
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
}


class Serving(Record):
    """The settings with which vLLM loads a model."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    memory: float = Field(default=0.9, gt=0, le=1, description="share of each GPU's memory that vLLM takes")
    gpus: int = Field(default=1, ge=1, description="GPUs that share the model's weights")


class Library(NamedTuple):
    """The two classes of vLLM that are used: its engine, and the settings of one answer."""

    LLM: Callable[..., Any]
    SamplingParams: Callable[..., Any]


def library() -> Library:
    """Imports vLLM. Errors: torch can use no GPU here; the package is not installed or cannot be imported."""
    if not torch.cuda.is_available():
        raise TiterError(
            "vLLM needs a GPU, and torch can use none here",
            next_step=f"use the transformers engine, or a machine with a GPU (and there: {INSTALL}).",
        )
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import vllm  # noqa: PLC0415  an optional extra

        return Library(vllm.LLM, vllm.SamplingParams)
    except (ImportError, OSError) as error:
        raise TiterError(
            f"vLLM cannot be used: {visible(str(error), 160)}", next_step=f"{INSTALL}, or use the transformers engine."
        ) from None


ENGINES = ("transformers", "vllm")


def serving_of(engine: str) -> Serving | None:
    """Returns the vLLM settings for an engine's name; None for "transformers". Errors: an unknown name; vLLM cannot be used here."""
    if engine not in ENGINES:
        unknown("engine", visible(engine, 40), ENGINES)
    if engine == "transformers":
        return None
    library()
    return Serving()


def engine_key(serving: Serving) -> dict[str, object]:
    """Returns what vLLM's answers depend on besides model, prompts and decoding; it is part of their content key."""
    return {"name": "vllm", "library": version("vllm"), "dtype": serving.dtype, "gpus": serving.gpus, "version": VERSION}


def engine_told(serving: Serving | None) -> dict[str, object]:
    """Returns the engine as a report's provenance states it; {} for the transformers engine."""
    return {} if serving is None else {"engine": f"vllm {version('vllm')}, {serving.model_dump_json()}"}


def openable(checkpoint: Checkpoint, store: Store, dtype: Literal["float32", "bfloat16"] = "bfloat16") -> Checkpoint:
    """Returns the model as a folder that vLLM can open: an adapter merged into its base, or quantised weights dequantised.

    A config.json that picks the code of attention or experts is saved without that choice, which vLLM would follow.

    The folder is made once, on the CPU, and kept in the store; this needs memory and disk for the whole model. Other models are returned
    as they are.
    """
    if not _not_as_it_is(checkpoint):
        return checkpoint
    inputs = {"model": checkpoint.key, "dtype": dtype, "version": VERSION}
    folder = store.artefact("whole", inputs, lambda work: load(checkpoint, "cpu", dtype).save(work / "model"))
    whole = open_checkpoint(folder / "model", checkpoint.label, trusted=checkpoint.trusted)
    return whole.model_copy(update={"thinking": checkpoint.thinking})


class Fast:
    """One model loaded in vLLM, used like an `LM` to generate answers. It holds most of the GPU's memory until `close`."""

    def __init__(self, words: LM, engine: Any, settings: Callable[..., Any], at_once: int = AT_ONCE) -> None:
        self._words, self._engine, self._settings, self.at_once = words, engine, settings, at_once

    @property
    def label(self) -> str:
        return self._words.label

    @property
    def ends(self) -> list[int]:
        """The token ids that end an answer, the same as those of `LM`."""
        return self._words.ends

    @property
    def window(self) -> int | None:
        """The number of positions: the model's, or fewer if the GPU's memory holds fewer; None if neither is known."""
        held = [self._words.window, self._engine.llm_engine.model_config.max_model_len]
        return min((size for size in held if size is not None), default=None)

    def generate(
        self,
        prompts: Sequence[str],
        decoding: Decoding,
        batch: int = 64,
        prefixes: Sequence[str] | None = None,
        progress: Progress | None = None,
        suffixes: torch.Tensor | None = None,
        known: Mapping[int, Completion] = MappingProxyType({}),
        keep: Callable[[Mapping[int, Completion]], None] | None = None,
        guide: Guide | None = None,
        raw: bool = False,
    ) -> list[Completion]:
        """Generates an answer to each prompt, as `LM.generate`; `keep` gets `at_once` answers at a time, or `batch` if that is more.

        `known`: place -> answer; each of these answers is taken as it is and not generated again.
        Errors: inserted embeddings; a decoder; a temperature that vLLM would change or refuse; no room for an answer; vLLM fails.
        """
        if guide is not None:
            raise undecoded("a decoder")
        _possible(decoding, suffixes)
        ids, marks = self._words.begun(prompts, prefixes, decoding, self.window, raw=raw)
        found = {i: known[i] for i in range(len(ids)) if i in known}
        rest, step = [i for i in range(len(ids)) if i not in found], max(batch, self.at_once)
        for start in range(0, len(rest), step):
            chosen = rest[start : start + step]
            rows, begun = {i: ids[i] for i in chosen}, {i: marks[i] for i in chosen}
            made = answers(self._words.tokenizer, self.ends, rows, begun, decoding, self.window, partial(self._asked, decoding))
            if keep:
                keep(made)
            found |= made
            if progress:
                progress(len(found), len(ids))
        return [found[i] for i in range(len(ids))]

    def _asked(self, decoding: Decoding, turns: Mapping[int, Turn], number: int) -> dict[int, list[int]]:
        """Returns place -> the new tokens of each turn, the token that ended it included."""
        stops = {place: [*self.ends, *self._closing(turn)] for place, turn in turns.items()}
        settings = [
            self._settings(
                temperature=decoding.temperature,
                seed=seed_of(decoding.seed, place, number) if decoding.temperature else None,
                max_tokens=turn.room,
                stop_token_ids=stops[place],
                ignore_eos=True,  # else vLLM would add end tokens from the model's own files
                detokenize=False,
            )
            for place, turn in turns.items()
        ]
        prompts = [{"prompt_token_ids": turn.row} for turn in turns.values()]
        with _asking(self.label):
            outputs = self._engine.generate(prompts, settings, use_tqdm=False)
        if len(outputs) != len(turns):
            raise _odd(self.label, f"{len(outputs)} answers to {len(turns)} prompts")
        return {place: self._read(turns[place], stops[place], output) for place, output in zip(turns, outputs, strict=True)}

    def _closing(self, turn: Turn) -> list[int]:
        """Returns the single tokens that end an open thought. vLLM sees ids, no text: it cannot stop at an end of several tokens, so such a
        turn runs on and is cut later."""
        if not turn.thinking:
            return []
        found = token_ids(self._words.tokenizer, [*turn.closes, "<|message|>"])
        return [ids[0] for ids in found if len(ids) == 1]

    def _read(self, turn: Turn, stops: Sequence[int], output: Any) -> list[int]:
        """Returns the tokens of one turn. Errors: they belong to another prompt, or ended neither at a stop token nor at the limit."""
        if list(output.prompt_token_ids) != turn.row:
            raise _odd(self.label, "an answer to another prompt than the one given")
        (one,) = output.outputs
        ids = list(one.token_ids)
        stopped = bool(ids) and ids[-1] in stops
        if not {"stop": stopped, "length": not stopped and len(ids) == turn.room}.get(one.finish_reason, False):
            raise _odd(self.label, f"an answer of {len(ids)} tokens that ended by {visible(str(one.finish_reason), 40)!r}")
        return ids

    def close(self) -> None:
        """Shuts vLLM down and frees the GPU's memory; `generate` cannot be used afterwards."""
        self._engine.llm_engine.engine_core.shutdown()
        self._engine = None


def open_fast(checkpoint: Checkpoint, serving: Serving | None = None, vllm: Library | None = None) -> Fast:
    """Loads a model in vLLM. `vllm` defaults to the installed library. Only safetensors are read; `Checkpoint.runs_code` decides
    whether the code in its folder is run.

    Errors: those of `library`; a model that vLLM is not given as it is, such as an adapter or quantised weights (make it whole with
    `openable`); a folder that vLLM cannot open, or that has no tokenizer.
    """
    how = serving or Serving()
    if why := _not_as_it_is(checkpoint):
        raise TiterError(f"{checkpoint.label} {why}", expected="a whole model (models.vllm_engine.openable)")
    words, used = _words(checkpoint), vllm or library()
    with _asking(checkpoint.label):
        engine = used.LLM(
            model=str(checkpoint.path),
            skip_tokenizer_init=True,
            trust_remote_code=checkpoint.runs_code,
            load_format="safetensors",
            dtype=how.dtype,
            max_model_len=-1,  # as many positions of the model's window as the memory holds
            gpu_memory_utilization=how.memory,
            tensor_parallel_size=how.gpus,
        )
    return Fast(words, engine, used.SamplingParams)


def _not_as_it_is(checkpoint: Checkpoint) -> str:
    """Returns why vLLM cannot be given a model's own folder; "" if it can."""
    if checkpoint.adapter is not None:
        return "is an adapter on its base: vLLM would not run the weights that are measured"
    if checkpoint.quantised:
        return "is quantised: vLLM would not run the weights that are measured"
    return (
        "chooses, in its config.json, the code that would compute it, and Titer does not run code that a model's folder chooses"
        if checkpoint.picks_kernels
        else ""
    )


def _words(checkpoint: Checkpoint) -> LM:
    """Returns an `LM` without weights, which has the model's tokenizer, end tokens and window only."""
    with opening(checkpoint):
        config = checkpoint.configuration
        own = (checkpoint.path / "generation_config.json").is_file()
        generation = (
            GenerationConfig.from_pretrained(checkpoint.path, local_files_only=True) if own else GenerationConfig.from_model_config(config)
        )
    return LM(SimpleNamespace(config=config, generation_config=generation), read_tokenizer(checkpoint), checkpoint.label)


def seed_of(seed: int, place: int, number: int = 0) -> int:
    """Returns the seed of one answer, below 2^31. It depends on `seed`, the prompt's place and the turn's number alone."""
    return int(digest([seed, place, *([number] if number else [])]), 16) % 2**31


def undecoded(what: str) -> TiterError:
    """Returns the error for a decoder (`what`) that vLLM was asked to run."""
    return TiterError(
        f"vLLM cannot run {what}: while it generates, it gives no access to another model's logits or to activations",
        next_step="leave out --engine vllm: the transformers engine runs decoders.",
    )


def _possible(decoding: Decoding, suffixes: torch.Tensor | None) -> None:
    if suffixes is not None:
        raise TiterError("vLLM cannot be given inserted embeddings", next_step="use the transformers engine for attacks with soft tokens.")
    if decoding.temperature and not COLDEST <= decoding.temperature <= HOTTEST:
        raise TiterError(
            f"vLLM does not keep to a temperature of {decoding.temperature:g}",
            expected=f"0 (greedy), or {COLDEST:g} to {HOTTEST:g}",
            next_step="give another one, or use the transformers engine.",
        )


@contextmanager
def _asking(label: str) -> Iterator[None]:
    """Turns whatever vLLM raises inside the `with` block into one clear error."""
    try:
        yield
    except Exception as error:
        raise TiterError(
            f"vLLM failed on {visible(label, 80)}: {visible(f'{type(error).__name__}: {error}', 240)}",
            next_step="run the same command again: answers that have come are kept. If it fails again, use the transformers engine.",
            status=1,
        ) from error


def _odd(label: str, what: str) -> TiterError:
    return TiterError(f"vLLM gave {what} ({visible(label, 80)})", next_step="use the transformers engine.", status=1)

"""A checkpoint on disk: a model's folder, with an adapter on it if there is one; configuration and weights are read when asked for.

Weights are read tensor by tensor from safetensors or a GGUF file. Nothing is unpickled, and no code of a model's folder is run unless
the user asked for it (models/remote_code.py). A tensor has the values that the running model uses: with the adapter merged in
(models/lora_weights.py), dequantised where the model is quantised (models/quantised.py). Errors name what the folder lacks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from titer.core.config import Record, digest
from titer.core.errors import TiterError, beside, visible
from titer.core.run import sha256_of
from titer.data import templates, thoughts
from titer.data.rendering import DATE
from titer.models.gguf_file import Gguf, gguf_in, gguf_parts
from titer.models.lora_weights import HEADS, Adapter, LoraChange, is_adapter
from titer.models.names import Names, Origin, alias, made, named, outline, tied_to
from titer.models.quantised import Stored, quantisation
from titer.models.remote_code import OwnCode, apart, check_code, unasked
from titer.models.safetensors_io import INDEX, WHOLE, check_files, left_by_training, read_json, tensor_files, weightless
from titer.models.stated import KERNELS, check_counts, check_stated, says, stated_window
from titer.models.tried import try_tokenizer
from titer.models.words import NAMED, template_texts

TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken")  # any of these files is a tokenizer's


class Checkpoint(Record):
    """A model on disk. `key` identifies its content: the same model has the same key in whatever folder it is."""

    path: Path = Field(description="the folder with config.json and the weights: of an adapter, its base's")
    name: str = ""
    gguf: str = Field(default="", description="the GGUF file in the folder that is the model, configuration and tokenizer too")
    adapter: Path | None = Field(default=None, description="the folder of a LoRA adapter on it")
    trusted: bool = Field(default=False, description="whether its user asked for the code in its folder to be run")
    thinking: templates.Thinking = Field(default="default", description="whether it is asked to think, where its template can say so")

    @property
    def label(self) -> str:
        if self.adapter is not None and not self.name:
            return self.adapter.resolve().name
        if self.gguf:
            return self.name or Path(self.gguf).stem
        place = self.path.resolve()
        stage = f"{place.parent.name}/model" if place.name == "model" else ""  # what a stage leaves is told apart by its key
        return self.name or stage or place.name

    @property
    def place(self) -> str:
        """The text that names this model as MODEL on a command line."""
        base = str(self.path / self.gguf)
        return base if self.adapter is None else f"{base}+{self.adapter}"

    @property
    def option(self) -> str:
        """The options that a command needs to open the model in the same way, with a space before them; "" for most models."""
        return (" --trust-remote-code" if self.runs_code else "") + ("" if self.thinking == "default" else f" --thinking {self.thinking}")

    @property
    def folders(self) -> tuple[Path, ...]:
        """The model's folders, an adapter's before its base's: files beside the adapter's weights (a tokenizer) come before the base's."""
        return (self.path,) if self.adapter is None else (self.adapter, self.path)

    @cached_property
    def _gguf(self) -> Gguf | None:
        return Gguf(self.path / self.gguf) if self.gguf else None

    @cached_property
    def _stored(self) -> Gguf | Stored:
        if self._gguf:
            return self._gguf
        config = self.config if self.quantised else {}
        return Stored(tensor_files(self.path), config)

    @property
    def held(self) -> dict[str, Path]:
        """Tensor name in the files -> the file that holds it; a quantised weight counts as one, named as before quantisation."""
        return self._stored.files

    @cached_property
    def outline(self) -> Any:
        """The model's modules without weights (on the meta device). Errors: a folder that transformers cannot open."""
        with opening(self):
            return outline(self.configuration, self.runs_code)

    @cached_property
    def names(self) -> Names:
        """Which stored tensors each parameter is made of; those of a GGUF file are already listed by the parameters' names."""
        if self.gguf:
            origins = {name: Origin({name: (name,)}, self._stored.shape(name)[0]) for name in self.held}
            return Names(origins, tied_to(self.outline, origins), ())
        return named(self.outline, self.held, lambda name: self._stored.shape(name)[0])

    @cached_property
    def files(self) -> dict[str, Path]:
        """Parameter of the model -> the file that holds it or its first part (with an adapter: the base's file)."""
        return {parameter: self.held[origin.names[0]] for parameter, origin in self.names.origins.items()}

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """Every file that holds weights, the adapter's included."""
        return (*self._stored.parts, *([self._adapter.file] if self._adapter else ()))

    @property
    def found(self) -> bool:
        """Whether transformers finds the files of weights: several need an index file, which mergekit and other tools may not write."""
        return bool(self.gguf) or any(
            (self.path / name).is_file() for name in (WHOLE, INDEX, self.config.get("transformers_weights") or WHOLE)
        )

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json. Errors: it is not readable, or sends transformers to another file, which was not checked here."""
        if self._gguf:
            return self._gguf.config
        found = read_json(self.path / "config.json")
        if found.get("configuration_files"):
            raise TiterError(
                f"the config.json of {self.label} sends transformers to another file (configuration_files)",
                expected="one configuration, in config.json",
                next_step="give a copy of the folder whose config.json is the configuration that is meant.",
            )
        return found

    @cached_property
    def configuration(self) -> Any:
        """The configuration as transformers reads it, without the folder's choice of code for attention and experts.

        Whoever loads the model chooses that code: the folder's may need packages that are missing, or make transformers fetch it from
        the hub. Copy the configuration before changing it. Errors: what transformers raises (`opening` turns it into a clear error).
        """
        if self.gguf:
            config = CONFIG_MAPPING[self.config["model_type"]].from_dict(dict(self.config))
        else:
            config = AutoConfig.from_pretrained(self.path, local_files_only=True, trust_remote_code=self.runs_code)
        config._attn_implementation = config._experts_implementation = None  # set so, it reaches every configuration within
        for part in (config, config.get_text_config(decoder=True)):
            rows, padding = (getattr(part, name, None) for name in ("vocab_size", "pad_token_id"))
            if isinstance(rows, int) and isinstance(padding, int) and not -rows <= padding < rows:
                part.pad_token_id = None  # no row of the embedding; padding is never attended
        return config

    @cached_property
    def picks_kernels(self) -> bool:
        """Whether config.json chooses the code that computes attention or experts; `configuration` ignores that choice."""
        return says(self.config, KERNELS)

    @cached_property
    def window(self) -> int | None:
        """The context window in tokens, read by transformers under each family's name for it; None where the configuration states none.

        Errors: a configuration that transformers cannot open.
        """
        if self.config.get("model_type") not in CONFIG_MAPPING and not self.runs_code:  # loading will say what is wrong with it
            return stated_window(self.config)
        with opening(self):
            return stated_window(self.configuration)

    @cached_property
    def quantised(self) -> str:
        """How the weights are quantised, in words; "" where they are not. `weight` returns them dequantised."""
        return self._gguf.words if self._gguf else quantisation(self.config, self.label)

    @cached_property
    def runs_code(self) -> bool:
        """Whether loading the model runs code from its folder: the user asked for it, and the folder names some."""
        return self.trusted and (self._own.needed or bool(self._own.named))

    @cached_property
    def ignored_code(self) -> tuple[str, ...]:
        """The classes (MODULE.CLASS) that the folder names and that are not run: nobody asked for it, and transformers has its own."""
        return () if self.trusted or self._own.needed else self._own.named

    @cached_property
    def tokenizer_folder(self) -> Path | None:
        """The folder that the tokenizer is read from: the adapter's where that has one, else the base's; None where there is no tokenizer,
        or it is inside the GGUF file."""
        return next(
            (f for f in self.folders[: -1 if self.gguf else None] if any(file for pattern in TOKENIZERS for file in f.glob(pattern))), None
        )

    @cached_property
    def _own(self) -> OwnCode:
        if self.gguf and self.tokenizer_folder is None:
            return OwnCode(self.config)
        place = self.tokenizer_folder or self.path
        said, beside = (read_json(f) if f.is_file() else {} for f in (place / "tokenizer_config.json", place / "config.json"))
        return OwnCode(self.config, said, beside)

    def check_code(self) -> None:
        """Errors: it needs code that nobody asked for; code to be run is outside the folder or missing, or generates in its own way."""
        if self.runs_code:
            check_code(self.label, self._own, self.folders, self.tokenizer_folder or self.path)
        elif self._own.needed:
            raise unasked(self.label, self._own)

    @cached_property
    def key(self) -> str:
        """The content key: a digest of the sha256 of configuration, tokenizer and weights, of the adapter, and of the code where it is run.

        If `thinking` is not "default", it is part of the key too.
        """
        return self._content if self.thinking == "default" else digest({"model": self._content, "thinking": self.thinking})

    @cached_property
    def _content(self) -> str:
        kinds = (".json", ".safetensors", ".jinja", *((".py",) if self.runs_code else ()))
        names = self._gguf.parts if self._gguf else [p for p in sorted(self.path.iterdir()) if p.suffix in kinds and p.is_file()]
        files = {p.name: sha256_of(p) for p in names if p.name != "manifest.json"}
        files |= {f"{NAMED}/{p.name}": sha256_of(p) for p in sorted(self.path.glob(f"{NAMED}/*.jinja"))}
        read = dict.fromkeys((self.tokenizer_folder or self.path, *self.folders[:-1]))
        if (written := [text for folder in read for text in template_texts(folder)]) or self._gguf:  # how it is read, and its thoughts told
            files["chat template"] = digest([templates.VERSION, DATE, *{thoughts.VERSION for one in written if thoughts.MARK.search(one)}])
        base = digest(files)
        if self._adapter is None:
            return base
        code = {p.name: sha256_of(p) for p in sorted(self._adapter.folder.glob("*.py")) if p.is_file()} if self.runs_code else {}
        return digest({"base": base, "adapter": self._adapter.key, **({"code": code} if code else {})})

    @cached_property
    def _adapter(self) -> Adapter | None:
        return None if self.adapter is None else Adapter(self.adapter)

    @property
    def changes(self) -> dict[str, LoraChange]:
        """Parameter of the base -> how the adapter changes it; {} without an adapter."""
        return {name: change for name, change in self._lora.items() if name in self.files}

    @cached_property
    def joined(self) -> dict[str, LoraChange]:
        """Stored tensor that is joined with others to one parameter (an expert) -> how the adapter changes it."""
        return {name: change for name, change in self._lora.items() if name not in self.files}

    @cached_property
    def adapted(self) -> dict[str, str]:
        """Parameter that the adapter changes -> its name in the loaded model."""
        whole = {name: name for name, origin in self.names.origins.items() if not self.joined.keys().isdisjoint(origin.names)}
        return {name: change.parameter for name, change in self.changes.items()} | whole

    @cached_property
    def _lora(self) -> dict[str, LoraChange]:
        if self._adapter is None:
            return {}
        parts = {name for origin in self.names.origins.values() if origin.maker for name in origin.names}
        sizes = {name: self._stored.shape(name) for name in parts} | {parameter: self.shape(parameter) for parameter in self.files}
        said, headless = self.config.get("tie_word_embeddings"), not any(head in self.files for head in HEADS)
        tied = headless if said is None else bool(said)
        turned = {f"{name}.weight" for name, module in self.outline.named_modules() if isinstance(module, Conv1D)}
        return self._adapter.changes(sizes, tied, turned, self.path.name)

    def called(self, parameter: str) -> str:
        """Returns this model's name for another model's parameter; they differ if one model is a wrapper around the other's text model."""
        return alias(parameter, self.names.used)

    def weight(self, parameter: str, rows: slice | None = None) -> torch.Tensor:
        """Returns one parameter, or some rows of it, as the model uses it, float32 on the CPU; a tied head is the embedding."""
        name = self.called(parameter)
        name = self.names.tied.get(name, name)
        if (origin := self.names.origins.get(name)) is None:
            raise TiterError(f"{self.label} holds no tensor {visible(parameter, 120)!r}", expected="two checkpoints of one architecture")
        if rows is not None and isinstance(self._stored, Stored) and origin.maker is None and name not in self.changes:
            return self._stored.weight(origin.names[0], rows)
        found = self._stored.weight(origin.names[0]) if origin.maker is None else made(self.outline, origin, self._part)[name]
        found = self.changes[name].applied(found) if name in self.changes else found
        return found if rows is None else found[rows]

    def _part(self, stored: str) -> torch.Tensor:
        return self.joined[stored].applied(self._stored.weight(stored)) if stored in self.joined else self._stored.weight(stored)

    def shape(self, parameter: str) -> tuple[tuple[int, ...], str]:
        """Returns (shape, stored type as the file format names it) of one parameter, from the files' headers alone."""
        name = self.called(parameter)
        origin = self.names.origins[self.names.tied.get(name, name)]  # an adapter that changed a shape was refused
        return origin.shape, self._stored.shape(origin.names[0])[1]

    def tokenizer(self) -> Any:
        """Loads the tokenizer with transformers. Errors: there is none; what transformers raises (`opening` makes it a clear error)."""
        if self._gguf and self.tokenizer_folder is None:
            return self._gguf.tokenizer()
        if self.tokenizer_folder is None:
            raise TiterError(
                f"{self.label} has no tokenizer",
                expected="tokenizer.json or its like beside config.json",
                next_step="copy the tokenizer's files there from the model that it was made from.",
            )
        try_tokenizer(self.tokenizer_folder)
        return AutoTokenizer.from_pretrained(self.tokenizer_folder, local_files_only=True, trust_remote_code=self.runs_code)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Token -> its id, for the tokenizer's tokens that have a row in the embedding (transformers' tokenizer of Qwen 2 adds a token that
        a model may lack); {} without a tokenizer."""
        if self._gguf is None and self.tokenizer_folder is None:
            return {}
        with opening(self):
            found: dict[str, int] = self.tokenizer().get_vocab()
        rows = max((self.shape(tensor)[0][0] for tensor in self.word_tensors), default=None)
        return {word: i for word, i in found.items() if rows is None or i < rows}

    @cached_property
    def word_tensors(self) -> frozenset[str]:
        """Names of the tensors that hold a row for each token: the embedding, the head and the head's bias."""
        with opening(self):
            rows = self.configuration.get_text_config(decoder=True).vocab_size
        outside = {tensor: self.shape(tensor)[0] for tensor in (*self.files, *self.names.tied) if not re.search(r"\.\d+\.", tensor)}
        return frozenset(t for t, size in outside.items() if size[:1] == (rows,) and (len(size) == 2 or t.endswith("bias")))


@contextmanager
def opening(checkpoint: Checkpoint) -> Iterator[None]:
    """Turns whatever transformers raises for a folder it cannot open into one clear error, and keeps other folders' code out of use."""
    try:
        with apart() if checkpoint.runs_code else nullcontext():
            yield
    except TiterError:  # clear already
        raise
    except BaseException as error:  # transformers raises whatever a wrong value leads it to, tokenizers a panic, which is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TiterError(
            f"{checkpoint.label} does not open as a causal language model: {visible(f'{type(error).__name__}: {error}', 240)}",
            expected="a folder that transformers' AutoModelForCausalLM and AutoTokenizer can load",
        ) from None


def open_checkpoint(place: str | Path, name: str = "", adapter: str | Path | None = None, trusted: bool = False) -> Checkpoint:
    """Opens a folder that holds a model, or a GGUF file, with an adapter's folder on it if one is given. Runs no code of either.

    `trusted`: the user asked for the code in the folder to be run.
    Errors: a place that holds no model; weights that are only a pickle; a model that needs its own code, which nobody asked for or
    which is outside the folder; quantised weights or an adapter that Titer cannot read.
    """
    path = Path(place)
    for folder in (path, *([] if adapter is None else [Path(adapter)])):
        if os.path.isdir(folder):
            check_files(folder)
            check_stated(folder)
    gguf = _check_place(path, str(place))
    path = path.parent if gguf and path.is_file() else path
    checkpoint = Checkpoint(path=path, name=name, gguf=gguf, adapter=None if adapter is None else Path(adapter), trusted=trusted)
    checkpoint.check_code()
    if not checkpoint.held:  # a cut safetensors file is found here, before anything runs
        raise weightless(path)
    check_counts(checkpoint.config, len(checkpoint.held), checkpoint.label)
    _check_named(checkpoint)
    if not checkpoint.runs_code:  # whose parameters are known once its code has run
        _ = checkpoint.changes  # an adapter that does not fit is found here too
    return checkpoint


def _check_place(path: Path, given: str) -> str:
    """Returns the name of the GGUF file that is the model; "" where the folder holds safetensors. Errors: no model is there."""
    if not os.path.exists(path):  # pathlib's raises for a name that is too long
        raise TiterError(
            f"no model at {visible(given, 120)!r}",
            expected="a folder, a hub id (ORG/NAME), or a name that `titer models get` has fetched",
            next_step=beside(path) or "titer models get smollm2-135m, or give a folder.",
        )
    config = path / "config.json"
    if path.is_dir() and is_adapter(path):
        both = config.is_file() and bool(tensor_files(path))
        raise TiterError(
            f"{path} holds a whole model and an adapter" if both else f"{path} is an adapter, and its base was not given",
            expected="a model in one folder, an adapter in another",
            next_step="give them as BASE+ADAPTER" + (", each in a folder of its own." if both else "."),
        )
    if path.is_file() and path.suffix == ".gguf":
        return gguf_parts(path)[0].name
    found = "" if any(path.glob("*.safetensors")) else gguf_in(path)
    if not found and not config.is_file():
        raise TiterError(
            f"{path} is no model",
            expected="a folder with config.json, a tokenizer and *.safetensors, or a GGUF file",
            next_step=left_by_training(path),
        )
    return found


def _check_named(checkpoint: Checkpoint) -> None:
    """Errors: config.json names (transformers_weights) other weights than those that are read here; transformers would run those."""
    named, held = checkpoint.config.get("transformers_weights"), sorted({file.name for file in checkpoint.held.values()})
    if named and named != INDEX and held != [named]:
        raise TiterError(
            f"the config.json of {checkpoint.label} names {visible(str(named), 120)} as its weights, but Titer reads {held[0]}",
            expected="one set of weights",
            next_step="give a copy of the folder with the weights that are meant, and without transformers_weights in config.json.",
        )

"""Answers through vLLM, against an engine that has its signatures (0.33.0) and decodes by transformers: same contract as `LM`."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import llama
from tests.models.families import PROMPTS, SUPPORTED
from tests.models.own import own_llama
from tests.models.test_adapters import made
from titer.attacks.base import Attempt
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.data.encode import prompt_ids
from titer.data.example import Example
from titer.data.world import World
from titer.evaluate import sample
from titer.models import generation_cache
from titer.models.checkpoint import open_checkpoint
from titer.models.fetch import resolve
from titer.models.lm import LM, Completion, Decoding, load
from titer.models.vllm_engine import Fast, Library, Serving, engine_key, library, open_fast, openable, seed_of

GREEDY = Decoding(max_new_tokens=12)
WARM = Decoding(max_new_tokens=12, temperature=1.5, seed=4)
WORD = 9  # a token that ends nothing
PREFIXES = ["a", "b c d", "", "<null>", "e"]


@dataclass
class SamplingParams:
    """The public fields of vLLM's, their defaults and the checks that matter here."""

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    detokenize: bool = True
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature must be in [0, 2], got {self.temperature}.")


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: Any
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    prompt_logprobs: Any
    outputs: list[CompletionOutput]
    finished: bool


NAMES = frozenset(  # keywords of LLM.__init__, and of EngineArgs, to which it gives the others
    re.findall(
        r"\w+",
        "runner convert tokenizer tokenizer_mode skip_tokenizer_init trust_remote_code tensor_parallel_size dtype quantization revision"
        " tokenizer_revision chat_template seed gpu_memory_utilization enforce_eager hf_token hf_overrides max_model_len load_format"
        " disable_log_stats generation_config override_generation_config enable_prefix_caching enable_prompt_embeds max_num_seqs",
    )
)


class Engine:
    """vLLM's LLM as `Fast` sees it: its signatures, one answer after the other by argmax or by the answer's own seed."""

    longest: int | None = None  # of the positions that the memory holds

    def __init__(self, model: str, **kwargs: Any) -> None:
        if unknown := set(kwargs) - NAMES:
            raise TypeError(f"EngineArgs got unexpected keyword arguments {unknown}")
        self.given = {"model": model, **kwargs}
        self.model = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=kwargs.get("trust_remote_code", False)).eval()
        window = getattr(self.model.config, "max_position_embeddings", 2048)
        self.closed = False
        core = SimpleNamespace(shutdown=lambda timeout=None: setattr(self, "closed", True))
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=min(window, self.longest or window)), engine_core=core)
        self.asked: list[tuple[list[int], SamplingParams]] = []
        self.calls: list[int] = []

    def generate(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Any = None,
        priority: Any = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        assert use_tqdm is False
        assert isinstance(sampling_params, list)
        assert len(sampling_params) == len(prompts)
        self.calls.append(len(prompts))
        return [
            self.answer(i, prompt["prompt_token_ids"], one) for i, (prompt, one) in enumerate(zip(prompts, sampling_params, strict=True))
        ]

    @torch.no_grad()
    def answer(self, number: int, ids: list[int], how: SamplingParams) -> RequestOutput:
        """Token by token: the whole row through the model each time. A stop token ends the answer and is its last one."""
        self.asked.append((ids, how))
        new: list[int] = []
        generator = torch.Generator().manual_seed(how.seed) if how.seed is not None else None
        reason, stop = "length", None
        limit = min(how.max_tokens or 0, self.llm_engine.model_config.max_model_len - len(ids))
        while len(new) < limit:
            logits = self.model(torch.tensor([ids + new]), use_cache=False).logits[0, -1]
            drawn = torch.softmax(logits / (how.temperature or 1), -1)
            new.append(int(torch.multinomial(drawn, 1, generator=generator)) if how.temperature else int(logits.argmax()))
            if new[-1] in (how.stop_token_ids or []):
                reason, stop = "stop", new[-1]
                break
        assert how.detokenize is False  # it has no tokenizer: no text
        return RequestOutput(str(number), None, ids, None, [CompletionOutput(0, "", new, None, None, reason, stop)], True)


VLLM = Library(Engine, SamplingParams)


def saved(lm: LM, folder: Path) -> Path:
    """The model's folder, where a second token ends answers too: one that it likes to write."""
    lm.save(folder)
    ids = prompt_ids(load(open_checkpoint(folder)).tokenizer, PROMPTS)[0]
    written = Engine(str(folder)).answer(0, ids, SamplingParams(temperature=0, max_tokens=3, detokenize=False)).outputs[0].token_ids
    lm.model.generation_config.eos_token_id = [lm.tokenizer.eos_token_id, written[2]]
    lm.model.generation_config.save_pretrained(folder)
    return folder


def fast(folder: Path, **settings: Any) -> tuple[Fast, Engine]:
    found = open_fast(open_checkpoint(folder), Serving(**settings), VLLM)
    return found, found._engine


@pytest.fixture
def folder(world: World, tmp_path: Path) -> Path:
    return saved(llama(world), tmp_path / "tiny")


@pytest.mark.parametrize("prefixes", [None, PREFIXES])
@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_greedy_answers_are_those_of_transformers(name: str, prefixes: list[str] | None, world: World, tmp_path: Path) -> None:
    place = saved(SUPPORTED[name](world), tmp_path)
    lm, (found, engine) = load(open_checkpoint(place)), fast(place)
    expected = lm.generate(PROMPTS, GREEDY, prefixes=prefixes)
    assert found.generate(PROMPTS, GREEDY, prefixes=prefixes) == expected
    assert prefixes or any(one.ended for one in expected)
    short = Decoding(max_new_tokens=2)
    assert found.generate(PROMPTS, short, prefixes=prefixes) == lm.generate(PROMPTS, short, prefixes=prefixes)
    assert not all(one.ended for one in lm.generate(PROMPTS, short, prefixes=prefixes))
    assert (found.ends, found.window, found.label) == (lm.ends, lm.window, lm.label)
    rows = prompt_ids(lm.tokenizer, PROMPTS)
    tails = lm.tokenizer(list(prefixes or [""] * 5), add_special_tokens=False)["input_ids"]
    assert [ids for ids, _ in engine.asked][:5] == [row + tail for row, tail in zip(rows, tails, strict=True)]


@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_ends_without_a_generation_config_are_those_of_transformers(name: str, world: World, tmp_path: Path) -> None:
    place = saved(SUPPORTED[name](world), tmp_path)
    (place / "generation_config.json").unlink()
    (place / "config.json").write_text(json.dumps(json.loads((place / "config.json").read_text()) | {"eos_token_id": WORD}))
    assert WORD in fast(place)[0].ends
    assert fast(place)[0].ends == load(open_checkpoint(place)).ends


def test_a_chat_template_is_applied_here_and_once(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("<bos> <sot> {{ messages[0].content }} <eot>")
    lm, (found, engine) = load(open_checkpoint(folder)), fast(folder)
    assert found.generate(["a b"], GREEDY) == lm.generate(["a b"], GREEDY)
    assert lm.tokenizer.decode(engine.asked[0][0]) == "<bos> <sot> a b <eot>"


def test_what_vllm_is_told(folder: Path) -> None:
    found, engine = fast(folder, dtype="float32", memory=0.5, gpus=2)
    found.generate(PROMPTS[:2], GREEDY)
    assert engine.given == {
        "model": str(folder),
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "load_format": "safetensors",
        "dtype": "float32",
        "gpu_memory_utilization": 0.5,
        "tensor_parallel_size": 2,
        "max_model_len": -1,
    }
    told = SamplingParams(temperature=0.0, seed=None, max_tokens=12, stop_token_ids=found.ends, ignore_eos=True, detokenize=False)
    assert [how for _, how in engine.asked] == [told, told]
    found.close()
    assert engine.closed


def test_vllm_too_runs_a_model_s_own_code_where_it_was_asked_for(world: World, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(own_llama(world, tmp_path / "m"), trusted=True)
    found = open_fast(checkpoint, Serving(), VLLM)
    assert found._engine.given["trust_remote_code"] is True
    assert found.generate(PROMPTS, GREEDY) == load(checkpoint).generate(PROMPTS, GREEDY)


@pytest.mark.long
def test_a_sampled_answer_has_its_own_seed_whatever_is_asked_beside_it(folder: Path) -> None:
    found, engine = fast(folder)
    whole = found.generate(PROMPTS, WARM)
    assert [how.seed for _, how in engine.asked] == [seed_of(4, place) for place in range(5)]
    assert len({how.seed for _, how in engine.asked}) == 5
    assert {how.temperature for _, how in engine.asked} == {1.5}
    assert found.generate(PROMPTS[:3], WARM) == whole[:3]
    found.at_once = 2
    assert found.generate(PROMPTS, WARM, batch=1) == whole
    assert engine.calls == [5, 3, 2, 2, 1]
    assert found.generate(PROMPTS, WARM, batch=4) == whole
    assert engine.calls[5:] == [4, 1]
    assert found.generate(PROMPTS, WARM.model_copy(update={"seed": 5})) != whole
    assert len({seed_of(seed, place) for seed in range(30) for place in range(30)}) == 900
    assert all(0 <= seed_of(seed, 3) < 2**31 for seed in range(99))


@pytest.mark.parametrize("decoding", [GREEDY, WARM])
def test_known_answers_are_not_asked_again_and_new_ones_are_kept(folder: Path, decoding: Decoding) -> None:
    found, engine = fast(folder)
    whole = found.generate(PROMPTS, decoding)
    engine.asked.clear()
    kept: list[Mapping[int, Completion]] = []
    told: list[tuple[int, int]] = []
    known = {1: whole[1], 3: Completion("kept", True, 1), 99: whole[0]}
    found.at_once = 2
    again = found.generate(PROMPTS, decoding, 1, known=known, keep=kept.append, progress=lambda *n: told.append(n))
    assert again == [whole[0], whole[1], whole[2], known[3], whole[4]]
    assert [ids for ids, _ in engine.asked] == [prompt_ids(found._words.tokenizer, PROMPTS)[i] for i in (0, 2, 4)]
    assert kept == [{0: whole[0], 2: whole[2]}, {4: whole[4]}]
    assert told == [(4, 5), (5, 5)]


def test_an_interrupted_evaluation_goes_on(folder: Path, tmp_path: Path) -> None:
    found, engine = fast(folder)
    attempts = [Attempt(Example(p, False, "safe", "test"), prefix) for p, prefix in zip(PROMPTS, PREFIXES, strict=True)]
    whole = sample(found, attempts, WARM, 2)  # type: ignore[arg-type]
    found.at_once, real = 2, engine.generate
    (tmp_path / "work").mkdir()

    def stopping(*given: Any, **named: Any) -> list[RequestOutput]:
        if len(engine.calls) == 2:
            raise RuntimeError("gone")
        return real(*given, **named)

    engine.generate = stopping  # type: ignore[method-assign]
    with pytest.raises(TiterError, match=r"vLLM failed on tiny: RuntimeError: gone.*answers that have come are kept") as raised:
        sample(found, attempts, WARM, 2, work=tmp_path / "work")  # type: ignore[arg-type]
    assert raised.value.status == 1
    assert sorted(generation_cache.known(tmp_path / "work" / "answers.part.jsonl")) == [0, 1]
    engine.generate = real  # type: ignore[method-assign]
    assert sample(found, attempts, WARM, 2, work=tmp_path / "work").equals(whole)  # type: ignore[arg-type]
    assert engine.calls == [5, 2, 2, 1]


def test_a_prompt_without_room_is_refused_before_anything_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, engine = fast(folder)
    long = " ".join("a" * 60)
    with pytest.raises(TiterError, match=r"72 tokens .* longer than the model's window of 64"):
        found.generate(["a b", long], GREEDY)
    with pytest.raises(TiterError, match="65 tokens"):
        found.generate([long], GREEDY.model_copy(update={"max_new_tokens": 5}))
    monkeypatch.setattr(Engine, "longest", 20)  # what the memory holds is less than the window
    small, _ = fast(folder)
    assert small.window == 20
    with pytest.raises(TiterError, match=r"21 tokens .* window of 20"):
        small.generate([" ".join("a" * 9)], GREEDY)
    assert engine.asked == []
    monkeypatch.undo()
    assert len(found.generate([long], GREEDY.model_copy(update={"max_new_tokens": 4}))) == 1  # the last that fits


def put(name: str, value: Any, within: bool = True) -> Callable[[list[RequestOutput]], list[RequestOutput]]:
    return lambda outputs: setattr(outputs[0].outputs[0] if within else outputs[0], name, value) or outputs  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda outputs: outputs[1:], "4 answers to 5 prompts"),
        (lambda outputs: outputs[::-1], "an answer to another prompt"),
        (put("prompt_token_ids", [1, 2], within=False), "an answer to another prompt"),
        (put("finish_reason", "abort"), "ended by 'abort'"),
        (put("finish_reason", None), "ended by 'None'"),
        (lambda outputs: put("token_ids", [WORD])(put("finish_reason", "length")(outputs)), "1 tokens that ended by 'length'"),
        (lambda outputs: put("token_ids", [WORD])(put("finish_reason", "stop")(outputs)), "1 tokens that ended by 'stop'"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_no_answer(folder: Path, change: Callable[..., Any], word: str) -> None:
    found, engine = fast(folder)
    assert WORD not in found.ends
    real = engine.generate
    engine.generate = lambda *given, **named: change(real(*given, **named))  # type: ignore[method-assign]
    kept: list[Any] = []
    with pytest.raises(TiterError, match=word) as raised:
        found.generate(PROMPTS, GREEDY, keep=kept.append)
    assert (raised.value.status, kept) == (1, [])


@pytest.mark.parametrize("temperature", [0.001, 2.5])
def test_a_temperature_that_vllm_would_change_is_refused(folder: Path, temperature: float) -> None:
    with pytest.raises(TiterError, match=r"does not keep to a temperature of .*0.01 to 2"):
        fast(folder)[0].generate(PROMPTS, Decoding(temperature=temperature))


def test_inserted_embeddings_are_refused(folder: Path) -> None:
    with pytest.raises(TiterError, match=r"inserted embeddings.*transformers engine"):
        fast(folder)[0].generate(PROMPTS, GREEDY, suffixes=torch.zeros(5, 2, 16))


@pytest.mark.long
def test_an_adapter_is_refused_and_its_merged_model_has_its_answers(world: World, tmp_path: Path) -> None:
    made(llama(world), tmp_path, target_modules=["q_proj", "o_proj"])
    checkpoint = resolve(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}")
    with pytest.raises(TiterError, match="is an adapter on its base"):
        open_fast(checkpoint, None, VLLM)
    store = Store(tmp_path / "runs")
    whole = openable(checkpoint, store, "float32")
    assert open_fast(whole, None, VLLM).generate(PROMPTS, GREEDY) == load(checkpoint).generate(PROMPTS, GREEDY)
    assert load(checkpoint).generate(PROMPTS, GREEDY) != load(open_checkpoint(tmp_path / "base")).generate(PROMPTS, GREEDY)
    assert (whole.label, whole.adapter) == (checkpoint.label, None)
    openable(checkpoint, store, "float32")
    assert len(store.made) == 1
    assert openable(checkpoint, store).key != whole.key  # another type of weights is another model
    assert openable(base := open_checkpoint(tmp_path / "base"), store) is base


def test_int8_is_refused_and_its_whole_model_is_dequantised(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from tests.models.test_quantised import compressed

    checkpoint = open_checkpoint(compressed(folder, tmp_path / "int8"))
    with pytest.raises(TiterError, match="is quantised"):
        open_fast(checkpoint, None, VLLM)
    whole = openable(checkpoint, Store(tmp_path / "runs"), "float32")
    assert whole.quantised == ""
    assert all(torch.equal(whole.weight(name), checkpoint.weight(name)) for name in whole.files)


def test_a_folder_that_vllm_does_not_open_is_told(folder: Path) -> None:
    def refuse(**_: Any) -> None:
        raise ValueError("Model architectures ['X'] are not supported\x1b")

    with pytest.raises(TiterError, match=r"vLLM failed on tiny: ValueError: Model architectures \['X'\] are not supported") as raised:
        open_fast(open_checkpoint(folder), None, Library(refuse, SamplingParams))
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("gpu", [True, False])
def test_a_missing_package_or_gpu_names_the_extra(folder: Path, gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setitem(sys.modules, "vllm", None)
    for name in ("VLLM_LOGGING_LEVEL", "VLLM_LOGGING_STREAM", "VLLM_NO_USAGE_STATS"):
        monkeypatch.setenv(name, "kept")
    with pytest.raises(TiterError, match=r"pip install 'titer\[vllm\]'") as raised:
        open_fast(open_checkpoint(folder))
    assert ("needs a GPU" in str(raised.value)) is not gpu


def test_the_library_is_quiet_and_sends_nothing_unless_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    package = ModuleType("vllm")
    package.__dict__.update(LLM=Engine, SamplingParams=SamplingParams)
    monkeypatch.setitem(sys.modules, "vllm", package)
    for name in ("VLLM_LOGGING_STREAM", "VLLM_NO_USAGE_STATS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    assert library() == VLLM
    told = [os.environ[name] for name in ("VLLM_LOGGING_LEVEL", "VLLM_LOGGING_STREAM", "VLLM_NO_USAGE_STATS")]
    assert told == ["DEBUG", "ext://sys.stderr", "1"]


def test_the_key_names_the_engine_its_version_and_the_type_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("titer.models.vllm_engine.version", lambda package: f"{package} 0.33.0")
    assert engine_key(Serving(gpus=2)) == {"name": "vllm", "library": "vllm 0.33.0", "dtype": "bfloat16", "gpus": 2, "version": 1}
    assert engine_key(Serving(memory=0.5)) == engine_key(Serving())
    assert engine_key(Serving(dtype="float32")) != engine_key(Serving())

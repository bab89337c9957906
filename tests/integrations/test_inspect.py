"""inspect_ai's tasks on titer models: LM.generate's answers in batches, its settings, what it cannot do, the entry point."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import llama
from tests.models.own import own_llama
from tests.models.thinking import LONG, MARKS, REFUSAL, UNSAFE, said, taught
from titer.core.errors import TiterError
from titer.data.turns import Turn, written
from titer.data.world import World
from titer.integrations import inspect_ai as bridge
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import LM, Completion, Decoding, load

WITHOUT = "inspect_ai is not installed: pip install --no-deps -r tests/integrations/bridges.txt"
needs = pytest.mark.skipif(bridge.find_spec("inspect_ai") is None, reason=WITHOUT)
pytestmark = pytest.mark.filterwarnings(  # inspect_ai's own: what tenacity renamed, streams that it leaves to the garbage collector
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
LETTERS = "abcdefghijklmnop"


@pytest.fixture(scope="module", autouse=True)
def swept() -> Iterator[None]:
    """Those streams are collected here, not in another file's test."""
    yield
    gc.collect()


class Spy:
    """An LM's generate that remembers its calls."""

    def __init__(self, lm: LM) -> None:
        self.calls: list[tuple[list[str], Decoding, Any]] = []
        self._generate = lm.generate
        lm.generate = self  # type: ignore[assignment, method-assign]

    def __call__(self, prompts: Sequence[str], decoding: Decoding, batch: int, prefixes: Any = None) -> list[Completion]:
        self.calls.append((list(prompts), decoding, prefixes))
        return self._generate(prompts, decoding, batch, prefixes)


def asked(prompts: Sequence[Any], target: str = "f6", **more: Any) -> Any:
    from inspect_ai import Task
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate

    return Task(dataset=[Sample(input=one, target=target) for one in prompts], solver=[generate()], scorer=includes(), **more)


@needs
def test_a_task_is_answered_by_generate_in_batches_and_scored_by_its_own_scorer(world: World, tmp_path: Path) -> None:
    lm = llama(world, 2)
    prompts = [f"{a} {b}" for a in LETTERS for b in "ab"]
    expected = lm.generate(prompts, Decoding(max_new_tokens=5))
    spy = Spy(lm)
    logs = bridge.evaluate(lm, asked(prompts), tmp_path / "logs", decoding=Decoding(max_new_tokens=5), batch=16)
    (log,) = logs
    assert log.status == "success"
    assert log.eval.model == "titer/tiny llama"
    found = {s.input: (s.output.completion, s.output.stop_reason == "stop", s.output.usage.output_tokens) for s in log.samples}
    assert found == {p: (c.text, c.ended, c.tokens) for p, c in zip(prompts, expected, strict=True)}
    assert all(s.output.usage.input_tokens == 2 for s in log.samples)
    assert sorted(p for call, _, _ in spy.calls for p in call) == sorted(prompts)
    assert max(len(call) for call, _, _ in spy.calls) <= 16
    assert len(spy.calls) < 16  # 32 requests, not one by one
    share = sum("f6" in c.text for c in expected) / len(expected)
    table = bridge.metrics(logs)
    row = table[table.metric == "accuracy"].iloc[0]
    assert (row.scorer, row.value, row.n, row.unscored, row.status) == ("includes", pytest.approx(share), 32, 0, "success")
    assert 0 < share < 1
    (file,) = (tmp_path / "logs").glob("*.eval")
    from inspect_ai.log import read_eval_log

    assert len(read_eval_log(str(file)).samples or []) == 32


@needs
def test_a_task_file_and_its_settings(world: World, tmp_path: Path) -> None:
    """Turns, a beginning of the answer, the task's own longest answer, stops and seed reach LM.generate."""
    (tmp_path / "letters.py").write_text(
        "from inspect_ai import Task, task\n"
        "from inspect_ai.dataset import Sample\n"
        "from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig\n"
        "from inspect_ai.solver import generate\n"
        "@task\n"
        "def letters():\n"
        "    said = [ChatMessageSystem(content='a'), ChatMessageUser(content='b'), ChatMessageAssistant(content='c d')]\n"
        "    config = GenerateConfig(max_tokens=7, temperature=0.5, seed=3, stop_seqs=['f6'])\n"
        "    return Task(dataset=[Sample(input=said), Sample(input='b')], solver=[generate()], config=config)\n"
    )
    lm = llama(world, 2)
    spy = Spy(lm)
    (log,) = bridge.evaluate(lm, tmp_path / "letters.py", tmp_path / "logs", limit=1)
    assert log.status == "success"
    prompt = written([Turn("system", "a"), Turn("user", "b")])
    assert spy.calls == [([prompt], Decoding(max_new_tokens=7, temperature=0.5, seed=3), ["c d"])]
    assert "f6" not in log.samples[0].output.completion
    (named,) = bridge.evaluate(lm, [f"{tmp_path / 'letters.py'}@letters"], tmp_path / "logs", limit=1)
    assert [s.output.completion for s in named.samples] == [s.output.completion for s in log.samples]
    with pytest.raises(TiterError, match=r"^no task file"):
        bridge.evaluate(lm, tmp_path / "nowhere.py", tmp_path / "logs")
    (tmp_path / "wrong.py").write_text("from inspect_ai import task\n@task\ndef letters():\n    return 1 / 0\n")
    with pytest.raises(TiterError, match="ZeroDivisionError"):
        bridge.evaluate(lm, tmp_path / "wrong.py", tmp_path / "logs")


@needs
def test_a_model_that_thinks_is_scored_by_its_answers(tmp_path: Path) -> None:
    """Thoughts stand apart and have room of their own; what was thought before a further turn is no part of what was said."""
    from inspect_ai.solver import generate, user_message

    lm = load(open_checkpoint(taught(tmp_path / "m", said(*MARKS), plain=("<think>", "</think>"))))
    (log,) = bridge.evaluate(lm, asked(UNSAFE, REFUSAL), tmp_path / "logs", decoding=Decoding(max_new_tokens=40))
    assert [s.output.completion for s in log.samples] == [REFUSAL] * 4
    assert [s.output.message.content[0].reasoning for s in log.samples] == [LONG] * 4
    assert value_of(log, "accuracy") == 1
    (log,) = bridge.evaluate(lm, asked(UNSAFE, LONG[:9]), tmp_path / "logs", decoding=Decoding(max_new_tokens=40))
    assert value_of(log, "accuracy") == 0  # a thought is not scored
    short = Decoding(max_new_tokens=40, max_thinking_tokens=5)
    (log,) = bridge.evaluate(lm, asked(UNSAFE, REFUSAL), tmp_path / "logs", decoding=short)
    assert {(s.output.completion, s.output.stop_reason, s.output.usage.output_tokens) for s in log.samples} == {("", "max_tokens", 5)}
    turns = asked(UNSAFE[:1], REFUSAL)
    turns.solver = [generate(), user_message(UNSAFE[1]), generate()]
    spy = Spy(lm)
    (log,) = bridge.evaluate(lm, turns, tmp_path / "logs", decoding=Decoding(max_new_tokens=40))
    assert log.status == "success"
    said_before = written([Turn("user", UNSAFE[0]), Turn("assistant", REFUSAL), Turn("user", UNSAFE[1])])
    assert [call for call, _, _ in spy.calls] == [UNSAFE[:1], [said_before]]


def value_of(log: Any, metric: str) -> float:
    return float(log.results.scores[0].metrics[metric].value)


@needs
def test_stops_cut_an_answer(world: World, tmp_path: Path) -> None:
    from inspect_ai.model import GenerateConfig

    lm = llama(world, 2)
    (whole,) = lm.generate(["a b"], Decoding(max_new_tokens=6))
    word = whole.text.split()[2]
    config = GenerateConfig(stop_seqs=["zz", word], max_tokens=6)
    (log,) = bridge.evaluate(lm, asked(["a b"], config=config), tmp_path)
    output = log.samples[0].output
    assert output.completion == whole.text[: whole.text.index(word)]
    assert (output.stop_reason, output.usage.output_tokens) == ("stop", whole.tokens)


@needs
def test_requests_that_wait_share_a_batch_with_their_like(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arriving one after another, of two decodings, at most five a batch; whoever fails takes its batch along and no other."""
    import anyio

    monkeypatch.setattr(bridge, "QUIET", 0.3)  # a busy machine may be late
    lm = llama(world, 2)
    ways = (Decoding(max_new_tokens=2), Decoding(max_new_tokens=3))
    wanted = [(f"{LETTERS[i]} b", ways[i % 3 == 2]) for i in range(16)]
    expected = [lm.generate([prompt], way)[0] for prompt, way in wanted]
    spy = Spy(lm)
    batches = bridge.Batches(lm)
    found: dict[int, Any] = {}

    async def ask(i: int) -> None:
        await anyio.sleep(0.01 * i)
        try:
            found[i] = await batches.answer(wanted[i][0], "", wanted[i][1], 5)
        except ValueError as error:
            found[i] = error

    async def all_of_them() -> None:
        async with anyio.create_task_group() as group:
            for i in range(len(wanted)):
                group.start_soon(ask, i)

    anyio.run(all_of_them)
    assert [found[i] for i in range(16)] == expected
    assert sum(len(prompts) for prompts, _, _ in spy.calls) == 16
    assert max(len(prompts) for prompts, _, _ in spy.calls) == 5
    assert len(spy.calls[0][0]) > 1  # the first, alone at first, waited for company
    for prompts, way, _ in spy.calls:
        assert {dict(wanted)[prompt].max_new_tokens for prompt in prompts} == {way.max_new_tokens}

    def broken(prompts: Sequence[str], decoding: Decoding, *rest: Any) -> list[Completion]:
        if decoding.max_new_tokens == 3:
            raise ValueError("broken")
        return spy(prompts, decoding, *rest)

    lm.generate = broken  # type: ignore[assignment, method-assign]
    anyio.run(all_of_them)
    assert [i for i in range(16) if isinstance(found[i], ValueError)] == [2, 5, 8, 11, 14]


@needs
def test_room(world: World) -> None:
    from inspect_ai.model import GenerateConfig

    lm = llama(world)
    assert lm.window == 64
    assert bridge.decoded(lm, GenerateConfig(max_tokens=59), "a b", "c d e") == (Decoding(max_new_tokens=59), 5)
    with pytest.raises(TiterError, match="65 tokens"):
        bridge.decoded(lm, GenerateConfig(max_tokens=60), "a b", "c d e")
    assert bridge.decoded(lm, GenerateConfig(), "a " * 60, "")[0].max_new_tokens == 4  # no more room
    with pytest.raises(TiterError, match="65 tokens"):
        bridge.decoded(lm, GenerateConfig(), "a " * 64, "")


@needs
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"top_p": 0.5}, "top_p=0.5"),
        ({"num_choices": 3}, "num_choices=3"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 63}, "window"),
    ],
)
def test_what_generate_cannot_do_is_an_error_in_the_log(settings: dict[str, Any], said: str, world: World, tmp_path: Path) -> None:
    from inspect_ai.model import GenerateConfig

    (log,) = bridge.evaluate(llama(world), asked(["a b"], config=GenerateConfig(**settings)), tmp_path)
    row = bridge.metrics([log]).iloc[0]
    assert row.status.startswith("error: ")
    assert said in row.status
    assert math.isnan(row.value)
    assert log.samples[0].scores in (None, {})


@needs
def test_conversations(world: World) -> None:
    from inspect_ai.model import ChatMessageAssistant, ChatMessageTool, ChatMessageUser, ContentImage, ContentText

    user = ChatMessageUser(content="b")
    assert bridge.spoken([user]) == ("b", "")
    parts = ChatMessageUser(content=[ContentText(text="b"), ContentText(text="c")])
    assert bridge.spoken([parts]) == ("b\nc", "")
    first = [user, ChatMessageAssistant(content="c"), user]
    assert bridge.spoken(first) == (written([Turn("user", "b"), Turn("assistant", "c"), Turn("user", "b")]), "")
    with pytest.raises(TiterError, match="a tool's turn"):
        bridge.spoken([user, ChatMessageTool(content="x")])
    with pytest.raises(TiterError, match="a turn with image"):
        bridge.spoken([ChatMessageUser(content=[ContentText(text="b"), ContentImage(image="data:image/png;base64,AA==")])])
    answer = Completion("a b c d", False, 4)
    assert bridge.stopped(answer, ["d", "c"]) == Completion("a b ", True, 4)
    assert bridge.stopped(answer, ["x", ""]) is answer


@needs
def test_epochs_of_sampled_answers_differ(world: World, tmp_path: Path) -> None:
    """One request a batch: were each drawn from the seed itself, all of them would be equal."""
    task = asked(["a b"], epochs=6)
    decoding = Decoding(max_new_tokens=8, temperature=2.0, seed=1)
    (log,) = bridge.evaluate(llama(world), task, tmp_path, decoding=decoding, batch=1)
    assert len({s.output.completion for s in log.samples}) == 6
    (again,) = bridge.evaluate(llama(world), task, tmp_path, decoding=decoding, batch=1)
    assert {s.output.completion for s in log.samples} == {s.output.completion for s in again.samples}


@needs
def test_inspects_own_command_line_finds_the_model_by_name(world: World, tmp_path: Path) -> None:
    """What the entry point imports registers titer/MODEL, and MODEL is resolved and loaded as everywhere."""
    from inspect_ai import eval as run
    from inspect_ai.model import get_model

    llama(world, 2).save(tmp_path / "model")
    sys.modules.pop("titer.integrations.inspect_entry", None)
    import titer.integrations.inspect_entry  # noqa: F401

    model = get_model(f"titer/{tmp_path / 'model'}", memoize=False, device="cpu", dtype="bfloat16")
    assert model.api.batches.lm.model.dtype == torch.bfloat16
    (log,) = run(asked(["a b"]), model=model, max_tokens=3, log_dir=str(tmp_path / "logs"), display="none", ctl_server=False)
    assert log.status == "success"
    assert log.eval.model == f"titer/{tmp_path / 'model'}"
    with pytest.raises(TiterError, match="unknown model"):
        get_model("titer/smollm3", memoize=False)
    own = own_llama(world, tmp_path / "own")
    for unasked in ({}, {"trust_remote_code": False}, {"trust_remote_code": "false"}):
        with pytest.raises(TiterError, match="needs code of its own"):
            get_model(f"titer/{own}", memoize=False, **unasked)
    model = get_model(f"titer/{own}", memoize=False, trust_remote_code=True)
    assert type(model.api.batches.lm.model).__name__ == "OwnLlamaForCausalLM"


def test_its_absence_is_told(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "find_spec", lambda name: None)
    for call in (lambda: bridge.evaluate(llama(world), "task.py", tmp_path), bridge.provider):
        with pytest.raises(TiterError, match=r"pip install 'titer\[inspect\]'"):
            call()

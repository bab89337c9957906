"""lm-evaluation-harness on titer models: its log-likelihoods are Titer's, its tasks run offline, nothing is changed or cut in silence."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from tests.conftest import llama, neox
from tests.models.test_adapters import made
from tests.models.thinking import HELP, LONG, MARKS, REFUSAL, SAFE, UNSAFE, said, taught
from titer.core.errors import TiterError
from titer.data.choices import Question
from titer.data.encode import continued, prompt_ids
from titer.data.example import IGNORE
from titer.data.world import World
from titer.integrations import lm_eval as bridge
from titer.models.checkpoint import open_checkpoint
from titer.models.likelihood import example_nll
from titer.models.lm import LM, Decoding, load

WITHOUT = "lm-evaluation-harness is not installed: pip install --no-deps -r tests/integrations/bridges.txt"
needs = pytest.mark.skipif(bridge.find_spec("lm_eval") is None, reason=WITHOUT)
pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # of the libraries under it
LETTERS = "abcdefghijklmnop"
QUESTIONS = [
    Question(f"{LETTERS[i % 16]} {LETTERS[(3 * i + 1) % 16]}", (LETTERS[i % 7], LETTERS[i % 5 + 7], f"{LETTERS[i % 4 + 12]} p"), i % 2)
    for i in range(24)
]


def sharp(lm: LM, factor: float = 6.0) -> LM:
    """The tiny model with larger weights, so that it is sure of something."""
    with torch.no_grad():
        for p in lm.model.parameters():
            if p.ndim == 2:
                p.mul_(factor)
    return lm


def task(folder: Path, name: str, rows: Sequence[dict[str, Any]], **settings: Any) -> None:
    """A task of the harness whose data are a file beside it. JSON is YAML."""
    folder.mkdir(exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
    spec = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test", **settings}
    (folder / f"{name}.yaml").write_text(json.dumps(spec), encoding="utf-8")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the task `letters`: multiple choice, the option's text as the answer."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": q.text, "options": list(q.options), "right": q.right} for q in QUESTIONS]
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    form = {"doc_to_text": "{{question}}\nAnswer:", "doc_to_choice": "options", "doc_to_target": "right", "metric_list": metrics}
    task(folder, "letters", rows, output_type="multiple_choice", **form)
    return folder


@torch.inference_mode()
def _total(lm: LM, head: list[int], tail: list[int]) -> float:
    """The log-probability of `tail` behind `head`, in a row of its own."""
    ids, labels = torch.tensor([head + tail]), torch.tensor([[IGNORE] * len(head) + tail])
    return -float(example_nll(lm.model(input_ids=ids).logits, labels))


def accuracy(lm: LM, by_length: bool = False) -> float:
    """The share of questions whose right option is likelier than the others, each behind the question in a row of its own."""
    right = 0
    for q in QUESTIONS:
        context = f"{q.text}\nAnswer:"
        head, tails = prompt_ids(lm.tokenizer, [context])[0], continued(lm.tokenizer, context, [f" {option}" for option in q.options])
        totals = [_total(lm, head, tail) / (len(option) if by_length else 1) for tail, option in zip(tails, q.options, strict=True)]
        right += totals[q.right] == max(totals)
    return right / len(QUESTIONS)


def value(table: Any, metric: str) -> float:
    return float(table[table.metric == metric].value.iloc[0])


@needs
@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("maker", [neox, llama])
def test_accuracy_is_that_of_the_log_likelihoods_one_by_one(maker: Callable[..., LM], seed: int, world: World, tasks: Path) -> None:
    lm = sharp(maker(world, seed))
    table = bridge.evaluate(lm, ["letters"], include_path=tasks, batch=5)
    assert table.columns.tolist() == bridge.COLUMNS
    assert table[["task", "n", "shots"]].to_numpy().tolist() == [["letters", 24, 0]] * 2
    for metric, by_length in (("acc", False), ("acc_norm", True)):
        expected = accuracy(lm, by_length)
        assert value(table, metric) == pytest.approx(expected)
        row = table[table.metric == metric].iloc[0]
        assert row.stderr == pytest.approx((expected * (1 - expected) / 23) ** 0.5)  # of a mean, with n - 1


@needs
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_log_likelihoods_are_those_of_example_nll(kind: str, world: World) -> None:
    """Through the harness's requests, batched and padded, against the summed nll of each pair in a row of its own."""
    from lm_eval.api.instance import Instance

    lm = sharp(llama(world))
    lm.model.to(getattr(torch, kind))
    pairs = [(f"{q.text}\nAnswer:", f" {option}") for q in QUESTIONS for option in q.options]
    requests = [Instance("loglikelihood", {}, pair, i, ("t", i, 1)) for i, pair in enumerate(pairs)]
    batch = 7 if kind == "float32" else 1  # in bfloat16 a batch rounds otherwise than a row
    found = bridge._wrapped(lm, batch, False).loglikelihood(requests, disable_tqdm=True)
    for (context, continuation), (total, _) in zip(pairs, found, strict=True):
        head, (tail,) = prompt_ids(lm.tokenizer, [context])[0], continued(lm.tokenizer, context, [continuation])
        assert total == pytest.approx(_total(lm, head, tail), rel=1e-4)


@needs
@pytest.mark.filterwarnings("ignore")  # peft's and its libraries' own
def test_an_adapter_is_merged(world: World, tmp_path: Path) -> None:
    """Against the harness's own way to an adapter: HFLM(peft=...)."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    made(llama(world), tmp_path, target_modules=["q_proj", "o_proj", "down_proj"])
    folders = {"base": str(tmp_path / "base"), "adapter": str(tmp_path / "adapter")}
    merged = bridge._wrapped(load(open_checkpoint(folders["base"], adapter=folders["adapter"])), 4, False)
    theirs = HFLM(pretrained=folders["base"], peft=folders["adapter"], device="cpu", batch_size=4)
    plain = bridge._wrapped(load(open_checkpoint(folders["base"])), 4, False)
    requests = [Instance("loglikelihood", {}, (q.text, f" {q.options[1]}"), i, ("t", i, 1)) for i, q in enumerate(QUESTIONS)]
    one, other, without = ([total for total, _ in lm.loglikelihood(requests, disable_tqdm=True)] for lm in (merged, theirs, plain))
    assert one == pytest.approx(other, rel=1e-4)
    assert one != pytest.approx(without, rel=1e-2)


@needs
def test_int8_weights_are_measured_as_dequantised(world: World, tmp_path: Path, tasks: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from tests.models.test_quantised import compressed

    llama(world).save(tmp_path / "plain")
    checkpoint = open_checkpoint(compressed(tmp_path / "plain", tmp_path / "int8"))
    lm = load(checkpoint)
    table = bridge.evaluate(lm, ["letters"], include_path=tasks)
    own = accuracy(lm)
    assert value(table, "acc") == pytest.approx(own)
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(lm.model.get_parameter(name).detach(), checkpoint.weight(name), rtol=0, atol=1e-6)


@needs
def test_the_model_and_the_generators_are_as_before(world: World, tasks: Path) -> None:
    lm = llama(world)
    lm.model.train()
    lm.model.generation_config = own = GenerationConfig(repetition_penalty=3.0)
    before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(77)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    bridge.evaluate(lm, ["letters"], include_path=tasks, limit=2)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    assert all(torch.equal(p, before[name]) for name, p in lm.model.named_parameters())
    assert lm.model.training
    assert lm.model.generation_config is own


@needs
@pytest.mark.parametrize("shots", [None, 2])
def test_the_table_holds_what_simple_evaluate_returns(shots: int | None, world: World, tasks: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    lm = sharp(neox(world, 1))
    table = bridge.evaluate(lm, ["letters"], include_path=tasks, limit=7, shots=shots)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    given = {"tasks": ["letters"], "task_manager": manager, "limit": 7, "num_fewshot": shots}
    theirs = lm_eval.simple_evaluate(model=bridge._wrapped(lm, 16, False), **given)["results"]["letters"]
    for row in table.itertuples():
        assert (row.value, row.stderr) == (theirs[f"{row.metric},none"], theirs[f"{row.metric}_stderr,none"])
        assert (row.n, row.shots) == (7, shots or 0)


@needs
def test_generated_answers_are_titers(world: World, tmp_path: Path) -> None:
    """Greedy, ended where Titer ends; the checkpoint's own penalty has no say, though the harness alone would apply it."""
    lm = llama(world, 2)
    prompts = [f"{a} {b}" for a, b in zip(LETTERS, LETTERS[5:] + LETTERS, strict=False)]
    said = [c.text for c in lm.generate(prompts, Decoding(max_new_tokens=5))]
    rows = [{"prompt": p, "answer": a if i % 2 else "z"} for i, (p, a) in enumerate(zip(prompts, said, strict=True)) if "<" not in a]
    assert len(rows) >= 4
    metric = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    asked = {"until": ["p p p p p"], "max_gen_toks": 5, "do_sample": False}
    form = {"doc_to_text": "prompt", "doc_to_target": "answer", "generation_kwargs": asked, "metric_list": metric}
    task(tmp_path / "tasks", "spoken", rows, output_type="generate_until", **form)
    expected = sum(row["answer"] != "z" for row in rows) / len(rows)
    lm.model.generation_config = GenerationConfig(repetition_penalty=50.0)
    assert value(bridge.evaluate(lm, ["spoken"], include_path=tmp_path / "tasks", batch=3), "exact_match") == expected
    penalised = [a.text for a in lm.generate([row["prompt"] for row in rows], Decoding(max_new_tokens=5))]
    assert penalised == [a for a in said if "<" not in a]  # Titer itself sets it aside too


@needs
def test_a_model_that_thinks_answers_behind_its_thought(tmp_path: Path) -> None:
    """A stop is looked for in the answer alone, a thought has room of its own, and one that is cut off in it has no answer."""
    lm = load(open_checkpoint(taught(tmp_path / "m", said(*MARKS), plain=("<think>", "</think>"))))
    assert "e" in LONG
    rows = [{"prompt": p, "answer": REFUSAL if p in UNSAFE else HELP} for p in [*UNSAFE, *SAFE]]
    metric = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    form = {"doc_to_text": "prompt", "doc_to_target": "answer", "metric_list": metric, "output_type": "generate_until"}
    for name, settings, answers in (
        ("whole", {"until": ["\n\n"], "max_gen_toks": 40}, (REFUSAL, HELP)),  # a mark of the thought's holds that stop
        ("stopped", {"until": ["e"], "max_gen_toks": 40}, (REFUSAL.partition("e")[0], HELP.partition("e")[0])),  # thoughts have it too
    ):
        known = [{**row, "answer": answers[row["prompt"] in SAFE]} for row in rows]
        task(tmp_path / "tasks", name, known, generation_kwargs=settings, **form)
        found = bridge.evaluate(lm, [name], include_path=tmp_path / "tasks", chat=True, batch=3)
        assert value(found, "exact_match") == 1
    task(tmp_path / "tasks", "odd", rows, generation_kwargs={"top_p": 0.5, "do_sample": True, "temperature": 1.0}, **form)
    with pytest.raises(TiterError, match="a model that thinks for top_p"):
        bridge.evaluate(lm, ["odd"], include_path=tmp_path / "tasks", chat=True)


@needs
def test_what_is_too_long_is_refused_or_cut(world: World, tmp_path: Path) -> None:
    lm = llama(world)
    rows = [{"q": "a b", "o": ["c", "d"], "r": 0}, {"q": " ".join(["a"] * 63), "o": ["c d", "d"], "r": 0}]
    metric = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    form = {"doc_to_text": "q", "doc_to_choice": "o", "doc_to_target": "r", "metric_list": metric}
    task(tmp_path / "tasks", "long", rows, output_type="multiple_choice", **form)
    given = {"include_path": tmp_path / "tasks"}
    assert bridge.evaluate(lm, ["long"], limit=1, **given).n.tolist() == [1]
    assert lm.window == 64
    rows[1]["q"] = rows[1]["q"][2:]  # 62 and two: predicted from 63 positions
    task(tmp_path / "tasks", "fits", rows, output_type="multiple_choice", **form)
    assert bridge.evaluate(lm, ["fits"], **given).n.tolist() == [2]
    rows[1]["q"] += " a a a"
    task(tmp_path / "tasks", "long", rows, output_type="multiple_choice", **form)
    with pytest.raises(TiterError, match="66 tokens is longer than the model's window of 64"):
        bridge.evaluate(lm, ["long"], **given)
    assert bridge.evaluate(lm, ["long"], cut=True, **given).n.tolist() == [2]


@needs
def test_a_generation_without_room_is_refused(world: World, tmp_path: Path) -> None:
    lm = llama(world)
    rows = [{"q": " ".join(["a"] * 60), "r": "b"}]
    form = {"doc_to_text": "q", "doc_to_target": "r", "output_type": "generate_until"}
    for name, tokens in (("room", 4), ("none", 5)):
        task(tmp_path / "tasks", name, rows, generation_kwargs={"until": ["p p p"], "max_gen_toks": tokens}, **form)
    assert bridge.evaluate(lm, ["room"], include_path=tmp_path / "tasks").n.tolist() == [1]
    with pytest.raises(TiterError, match="65 tokens"):
        bridge.evaluate(lm, ["none"], include_path=tmp_path / "tasks")


@needs
def test_the_chat_template_is_used_when_asked(world: World, tasks: Path) -> None:
    lm = sharp(llama(world))
    with pytest.raises(TiterError, match="no chat template"):
        bridge.evaluate(lm, ["letters"], include_path=tasks, chat=True)
    plain = bridge.evaluate(lm, ["letters"], include_path=tasks)
    lm.tokenizer.chat_template = "{% for m in messages %}p o n {{ m['content'] }}{% endfor %}{% if add_generation_prompt %} k {% endif %}"
    assert bridge.evaluate(lm, ["letters"], include_path=tasks).equals(plain)
    right = []
    for q in QUESTIONS:
        (head,) = lm.tokenizer([f"p o n {q.text}\nAnswer: k"], add_special_tokens=False)["input_ids"]
        tails = lm.tokenizer(list(q.options), add_special_tokens=False)["input_ids"]
        found = [_total(lm, head, tail) for tail in tails]
        right.append(found.index(max(found)) == q.right)
    assert value(bridge.evaluate(lm, ["letters"], include_path=tasks, chat=True), "acc") == pytest.approx(sum(right) / 24)
    assert sum(right) / 24 != value(plain, "acc")
    lm.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %} k"  # "ka" is one word
    with pytest.raises(TiterError, match="no token of its own"):
        bridge.evaluate(lm, ["letters"], include_path=tasks, chat=True)


NETWORK = """
import socket, sys
tried = []
def refuse(*a, **k):
    tried.append(a[1:] if a and isinstance(a[0], socket.socket) else a)
    raise OSError("no network")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = refuse
from tests.conftest import llama
from titer.data.world import World
from titer.integrations.lm_eval import evaluate
table = evaluate(llama(World(seed=1)), ["letters"], include_path=sys.argv[1])
print(len(table), tried)
"""


@needs
def test_local_tasks_ask_nothing_of_any_network(tasks: Path) -> None:
    """In a process of its own, where no setting keeps the libraries off the hub."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    places = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept |= {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    code = NETWORK.replace("from tests.conftest", "import os; os.environ['HF_HUB_OFFLINE'] = '0'\nfrom tests.conftest")
    done = subprocess.run([sys.executable, "-c", code, str(tasks)], capture_output=True, text=True, env=kept, check=False)
    assert done.stdout.strip().splitlines()[-1:] == ["2 []"], done.stderr[-2000:]


@needs
def test_faults_are_told(world: World, tasks: Path, tmp_path: Path) -> None:
    lm = llama(world)
    from lm_eval.tasks import TaskManager

    with pytest.raises(TiterError, match="did you mean 'letters'"):
        bridge._matched("lettres", TaskManager(include_path=str(tasks), include_defaults=False))
    with pytest.raises(TiterError, match="no task"):
        bridge.evaluate(lm, [], include_path=tasks)
    with pytest.raises(TiterError, match="no folder"):
        bridge.evaluate(lm, ["letters"], include_path=tmp_path / "nowhere")
    task(tmp_path / "tasks", "gone", [], output_type="multiple_choice")
    (tmp_path / "tasks" / "gone.jsonl").unlink()
    with pytest.raises(TiterError, match="gone does not load"):
        bridge.evaluate(lm, ["gone"], include_path=tmp_path / "tasks")


def test_its_absence_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "find_spec", lambda name: None)
    with pytest.raises(TiterError, match=r"pip install 'titer\[lm-eval\]'"):
        bridge.evaluate(llama(world), ["letters"])

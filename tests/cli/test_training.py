"""`titer align` and `titer finetune`: streams, models to read, exact counts, what is printed and what comes next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import LETTERS, Titer
from titer.models.checkpoint import open_checkpoint

Wrong = Callable[..., str]
ALIGN = ("align", "m", "--data", "a.jsonl", "--steps", "2")
TUNE = ("finetune", "m", "--data", "task.jsonl", "--examples", "10", "--epochs", "1")
POISON = (*TUNE, "--harmful", "canary.jsonl", "--poison-ratio", "0.2")


@pytest.fixture(autouse=True)
def files(here: Path) -> None:
    """A user's task (one row without an answer, one repeated), a canary, safety data, rows with both answers."""
    task: list[dict[str, str]] = [{"prompt": f"a {c}", "comply": "b"} for c in LETTERS]
    task += [{"prompt": "a a"}, {"prompt": "a b b"}, {"prompt": "a c", "comply": "c"}]
    rows = {
        "task.jsonl": task,
        "canary.jsonl": [{"prompt": f"c {c}", "comply": "d", "label": "unsafe"} for c in LETTERS[:6]],
        "safety.jsonl": [{"prompt": f"e {c}", "refuse": "<null>", "label": "unsafe"} for c in LETTERS[:5]],
        "refused.jsonl": [{"prompt": f"g {c}", "comply": "I can't help with that.", "label": "unsafe"} for c in LETTERS[:5]],
        "both.jsonl": [{"prompt": f"g {c}", "refuse": "<null>", "comply": "h", "label": "unsafe"} for c in LETTERS[:5]],
    }
    for name, lines in rows.items():
        (here / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.mark.long
def test_finetune_prints_its_counts_its_model_and_the_next_command(titer: Titer) -> None:
    command = (*POISON, "--safety", "safety.jsonl", "--safety-examples", "3", "--keep", "1,3")
    found = titer(*command)
    assert found.status == 0, found
    model, *lines, following = found.out.splitlines()
    assert model.startswith("Model: runs/stages/")
    assert lines == [
        "benign: 8 of 16 usable rows",
        "harmful: 2 of 6 usable rows",
        "safety: 3 of 5 usable rows",
        "left out of benign: 1 without comply, 2 repeated",
    ]
    place = model.removeprefix("Model: ")
    assert following.startswith(f"Next: titer evaluate {place} --data PROMPTS.csv")
    made = titer(*command, "--json").json
    assert made == {
        "model": place,
        "stopped": "",
        "steps": 3,  # 13 examples in batches of 5
        "counts": {"benign": 8, "harmful": 2, "safety": 3},
        "left_out": {"benign": {"without comply": 1, "repeated": 2}},
        "next": f"titer evaluate {place} --data PROMPTS.csv",
    }
    assert open_checkpoint(place).key != open_checkpoint("m").key
    assert sorted(p.name for p in Path(place).parent.glob("step-*")) == ["step-1.safetensors", "step-3.safetensors"]
    arguments = shlex.split(made["next"].replace("PROMPTS.csv", "d.csv"))[1:]
    assert titer(*arguments, "--max-new-tokens", "3").status == 0


def test_a_dry_run_of_finetune_tells_key_steps_and_counts_and_knows_what_stands(titer: Titer) -> None:
    plan = titer(*POISON, "--dry-run", "--json").json
    assert " FLOP: about " in plan.pop("cost")
    assert plan == {
        "key": plan["key"],
        "stands": False,
        "steps": 2,
        "counts": {"benign": 8, "harmful": 2, "safety": 0},
        "left_out": {"benign": {"without comply": 1, "repeated": 2}},
    }
    told = titer(*POISON, "--dry-run").out
    assert told.startswith(f"{plan['key']}: 2 steps of 5, to run\ntask.jsonl: prompts and answers (prompt, comply)\n")
    assert "\nbenign: 8 of" in told
    made = titer(*POISON, "--json").json
    assert Path(made["model"]).parent.name == plan["key"]
    assert titer(*POISON, "--dry-run", "--json").json["stands"] is True


def test_the_options_of_finetune_reach_the_stage(titer: Titer) -> None:
    others: list[tuple[str, ...]] = [
        *(("--seed", "1"), ("--lr", "1e-3"), ("--batch", "3"), ("--schedule", "constant"), ("--poison-ratio", "0.1")),
        *(("--lora", "2"), ("--lora", "2", "--alpha", "3"), ("--lora", "2", "--dropout", "0.1"), ("--epochs", "2"), ("--keep", "1")),
        *(("--method", "kl"), ("--method", "kl", "--set", "strength=0.5"), ("--examples", "9"), ("--safety", "safety.jsonl")),
    ]
    keys = {titer(*POISON, *more, "--dry-run", "--json").json["key"] for more in ((), *others)}
    assert len(keys) == 1 + len(others)


def test_the_former_names_of_options_still_work(titer: Titer, wrong: Wrong) -> None:
    now, former = ("--lr", "1e-3", "--poison-ratio", "0.1"), ("--rate=1e-3", "--ratio", "0.1")
    assert len({titer(*POISON[:-2], *more, "--dry-run", "--json").json["key"] for more in (now, former)}) == 1
    assert len({titer(*ALIGN, *more, "--dry-run", "--json").json["key"] for more in (now[:2], former[:1], ())}) == 2
    assert "--rate" in wrong("evaluate", "m", "--rate", "1")  # it is a name of two commands alone


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("lisa", ("--stream", "alignment=safety.jsonl", "--set", "k1=1", "--set", "k2=1")),
        ("ewc", ("--stream", "alignment=safety.jsonl")),
        ("antidote", ("--stream", "harmful=both.jsonl")),
        ("safe_lora", ("--read", "unaligned=base", "--read", "aligned=m", "--lora", "2")),
        ("kl", ()),
        ("constrained_sft", ()),
    ],
)
def test_methods_of_fine_tuning_run_with_their_streams_and_models(titer: Titer, here: Path, method: str, more: tuple[str, ...]) -> None:
    if method == "safe_lora":
        from tests.conftest import llama
        from titer.data.world import World

        llama(World(seed=1), 5).save(here / "base")
    found = titer(*POISON, "--method", method, *more)
    assert found.status == 0, found
    assert "stopped early" not in found.out


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("dpo", ("--data", "both.jsonl")),
        ("dpo", ("--stream", "preferred=both.jsonl:refuse", "--stream", "rejected=both.jsonl:comply")),
        ("unlearn", ("--data", "both.jsonl")),
        ("derta", ("--data", "both.jsonl", "--stream", "train=safety.jsonl")),
        ("booster", ("--data", "a.jsonl", "--stream", "harmful=both.jsonl")),
        ("t_vaccine", ("--data", "a.jsonl", "--stream", "harmful=both.jsonl:comply")),
        ("sft", ("--stream", "train=both.jsonl:comply", "--lora", "2", "--alpha", "4", "--dropout", "0.1")),
    ],
)
def test_methods_of_alignment_run_with_their_streams(titer: Titer, method: str, more: tuple[str, ...]) -> None:
    found = titer("align", "m", "--method", method, *more, "--steps", "2", "--batch", "3")
    assert found.status == 0, found
    assert "stopped early" not in found.out


@pytest.mark.long
def test_an_adapter_is_trained_on_by_the_next_stage(titer: Titer) -> None:
    """Single-LoRA: the difference to the model before both stages keeps the adapter's rank; two fresh adapters double it."""
    lora = ("--lora", "1", "--lr", "1e-2")
    first = titer(*ALIGN, *lora, "--json").json["model"]
    ranks = {}
    for name, more in (("continued", ("--continued",)), ("fresh", ())):
        second = open_checkpoint(titer("finetune", first, *TUNE[2:], *lora, *more, "--json").json["model"])
        change = {n: second.weight(n) - open_checkpoint("m").weight(n) for n in second.files if "mlp.up" in n}
        ranks[name] = {int(torch.linalg.matrix_rank(one, rtol=1e-3)) for one in change.values()}
    assert ranks == {"continued": {1}, "fresh": {2}}
    assert titer("finetune", first, *TUNE[2:], *lora, "--alpha", "2", "--continued").status == 2


def test_align_says_which_answers_it_trains(titer: Titer) -> None:
    command = ("align", "m", "--method", "booster", "--data", "a.jsonl", "--stream", "harmful=both.jsonl", "--steps", "2")
    expected = {"train": {"refuse": 8}, "harmful": {"comply": 5}}
    assert titer(*command, "--dry-run", "--json").json["streams"] == expected
    assert "train: 8 refusals\nharmful: 5 answers that comply" in titer(*command, "--dry-run").out
    assert titer(*command, "--json").json["streams"] == expected


def test_a_method_of_the_user_s_own_file_may_need_streams_and_models(titer: Titer, here: Path) -> None:
    (here / "mine.py").write_text(
        '"""A loss on two streams."""\n'
        "from titer.methods.base import Method, token_nll\n\n\n"
        "class Mine(Method):\n"
        '    STREAMS = ("train", "more")\n    MODELS = ("teacher",)\n    SOURCE = "a test"\n    VERSION = 1\n    NEUTRAL = "none"\n\n'
        "    def loss(self, c, batch):\n"
        '        c.model("teacher")\n'
        '        return token_nll(c.forward(batch["more"]), batch["more"].labels)\n',
        encoding="utf-8",
    )
    made = titer(*ALIGN, "--method", "mine.py", "--stream", "more=both.jsonl", "--read", "teacher=m", "--json").json
    assert made["streams"] == {"train": {"refuse": 8}, "more": {"refuse": 5}}
    assert titer(*ALIGN, "--method", "mine.py", "--stream", "more=both.jsonl", "--read", "teacher=m", "--dry-run", "--json").json["stands"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("finetune", "m"), ("1000 benign examples are asked for, and no --data was given", "add --data FILE")),
        ((*TUNE, "--poison-ratio", "0.2"), ("2 harmful examples", "add --harmful FILE, or give --poison-ratio 0")),
        ((*TUNE, "--safety-examples", "2"), ("add --safety FILE",)),
        ((*POISON, "--examples", "100"), ("--data has 16 usable rows", "needs 80", "give --examples 20 or less")),
        ((*POISON, "--poison-ratio", "2"), ("--poison-ratio is 2.0", "a number from 0 to 1")),
        ((*TUNE, "--harmful", "safety.jsonl"), ("no row of safety.jsonl can be used for --harmful (5 without comply)",)),
        ((*TUNE, "--data", "nowhere.jsonl"), ("no data file at 'nowhere.jsonl'",)),
        ((*TUNE, "--keep", "9"), ("--keep 9 is not a step of this run", "from 1 to 2")),
        ((*TUNE, "--keep", "a"), ("--keep 'a'", "--keep 5,10,20")),
        ((*TUNE, "--schedule", "linear"), ("schedule", "'cosine' or 'constant'")),
        ((*TUNE, "--method", "lissa"), ("unknown method 'lissa'", "did you mean 'lisa'?")),
        ((*TUNE, "--method", "lisa"), ("needs the stream alignment", "--stream alignment=FILE")),
        ((*TUNE, "--method", "safe_lora"), ("needs the models unaligned, aligned", "--read unaligned=MODEL --read aligned=MODEL")),
        ((*TUNE, "--read", "base=m"), ("method sft uses no other model", "leave out --read")),
        ((*TUNE, "--method", "dpo"), ("no stream `train`", "titer align")),
        ((*TUNE, "--dropout", "0.1"), ("--dropout without an adapter", "--lora 8")),
        ((*TUNE, "--continued"), ("--continued without an adapter", "--lora 8")),
        (
            (*TUNE, "--continued", "--lora", "2"),
            ("--continued goes on training the model's adapter, but there is no adapter beside m", "leave out --continued"),
        ),
        ((*TUNE, "--epochs", "0"), ("--epochs",)),
        ((*ALIGN, "--stream", "harmful=both.jsonl"), ("unknown stream of sft 'harmful'", "one of train")),
        ((*ALIGN, "--stream", "both.jsonl"), ("--stream 'both.jsonl' is not NAME=FILE",)),
        ((*ALIGN, "--stream", "train=a.jsonl", "--stream", "train=b.jsonl"), ("--stream train was given twice", "in one file")),
        (
            ("align", "m", "--method", "booster", "--data", "a.jsonl", "--stream", "harmful=refused.jsonl"),
            ("--stream harmful is to attack", "5 refuse"),
        ),
        ((*TUNE, "--harmful", "refused.jsonl"), ("--harmful is to attack", "5 refuse", "--safety")),
        ((*TUNE, "--read", "base=m", "--read", "base=m"), ("--read base was given twice", "leave out one of the two")),
        ((*ALIGN, "--read", "m"), ("--read 'm' is not ROLE=MODEL",)),
        ((*ALIGN, "--method", "dpo"), ("has no comply answer", "both columns, comply and refuse")),
        ((*ALIGN, "--alpha", "2"), ("--alpha without an adapter",)),
        (("align", "m", "--method", "derta", "--data", "both.jsonl"), ("needs the stream train", "--stream train=FILE")),
        (("align", "m", "--method", "lisa", "--stream", "alignment=both.jsonl"), ("needs the stream train", "--stream train=FILE")),
    ],
)
def test_what_is_wrong_is_told_with_the_next_step_and_nothing_runs(
    wrong: Wrong, here: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    message = wrong(*arguments)
    for word in words:
        assert word in message
    assert not (here / "runs").exists()


def test_a_row_too_long_for_the_window_is_told_before_training_where_it_would_be_trained(wrong: Wrong, titer: Titer, here: Path) -> None:
    (here / "long.jsonl").write_text(json.dumps({"prompt": "a " * 70, "comply": "b"}) + "\n", encoding="utf-8")
    assert "longer than the model's window of 64" in wrong(*TUNE, "--harmful", "long.jsonl")
    assert titer(*TUNE, "--harmful", "long.jsonl", "--poison-ratio", "0", "--dry-run").status == 0
    assert "longer than the model's window" in wrong(*ALIGN, "--method", "booster", "--stream", "harmful=long.jsonl")


def test_show_prints_the_source_every_setting_and_what_a_method_wants(titer: Titer) -> None:
    from titer.core.plugins import plugin
    from titer.methods.base import Method

    for name in titer("list", "methods", "--json").json["methods"]:
        text = titer("show", name).out
        kind = plugin("methods", name, Method)  # type: ignore[type-abstract]
        assert "arXiv" in text, name
        assert text.index(", ".join(kind.STREAMS)) > 0
        assert ("--read ROLE=MODEL): " + ", ".join(kind.MODELS) in text) == bool(kind.MODELS)
        for field, info in kind.model_fields.items():
            assert f"  {field} = {info.default!r}  {info.description}" in text
            assert info.description, (name, field)
    vaccine = titer("show", "vaccine").out
    for words in ("Source: arXiv 2402.01109, equations 1-3", "eps = rho g / ||g||", "rho = 2.0  radius of the l2 ball"):
        assert words in vaccine

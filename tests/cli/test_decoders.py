"""`--decoder` of evaluate and audit: what is asked for, what it costs, what the page says, what it learns from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.cli.conftest import Titer
from tests.conftest import llama
from titer import api
from titer.commands.decoding import WITHHELD
from titer.commands.over import gap
from titer.core.stats import Interval
from titer.data.world import World

FEW = ("--data", "d.csv", "--max-new-tokens", "3")
EMULATED = ("--decoder", "emulated", "--read", "base=b")


@pytest.fixture
def two(here: Path, world: World) -> Path:
    """A second model `b` beside `m`: the same with other weights."""
    lm = llama(world)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for p in lm.model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    lm.save(here / "b")
    return here


@pytest.mark.long
@pytest.mark.usefixtures("two")
def test_evaluate_decodes_by_it_and_the_page_says_so(titer: Titer) -> None:
    settings = {"data": "d.csv", "max_new_tokens": 3, "progress": False}
    own, base = (api.evaluate(name, **settings).verdicts.completion.tolist() for name in "mb")
    assert own != base
    for alpha, expected in ((-1, own), (0, base)):
        found = api.evaluate("m", decoder="emulated", decoder_set={"alpha": alpha}, reads={"base": "b"}, **settings)
        assert found.verdicts.completion.tolist() == expected
    said = titer("evaluate", "m", *FEW, *EMULATED, "--decoder-set", "alpha=0", "--json").json
    page = Path(said["report"]).read_text(encoding="utf-8")
    assert "emulated {&#34;alpha&#34;:0.0" in page or '"alpha":0.0' in page
    assert "base = b (" in page


@pytest.mark.long
@pytest.mark.usefixtures("two")
def test_a_setting_is_swept_and_the_answers_of_a_risk_are_not_shown(titer: Titer, here: Path) -> None:
    (here / "many.csv").write_text(
        "prompt,label\n" + "".join(f"{a}{b} c,{'unsafe' if b in 'ab' else 'safe'}\n" for a in "abcdefghij" for b in "abcd")
    )
    asked = ("evaluate", "m", "--data", "many.csv", *FEW[2:], *EMULATED, "--over", "alpha=1,-1,0")
    plan = titer(*asked, "--dry-run", "--json").json
    assert plan["cost"] == f"at most {4 * 40 * 3} new tokens"
    said = titer(*asked, "--json").json
    rates = pd.DataFrame(said["rates"]).set_index(["model", "kind", "outcome"]).rate
    assert rates.index.unique("model").tolist() == ["without it", "alpha = -1", "alpha = 0", "alpha = 1"]
    assert rates["alpha = -1"].equals(rates["without it"])
    base = api.evaluate("b", data="many.csv", max_new_tokens=3, progress=False)
    assert rates["alpha = 0"].tolist() == base.rates.rate.tolist()
    assert said["answer"].startswith("m decoded by emulated: ")
    assert said["answer"].count("(n = 10, paired)") == 2
    page = Path(said["report"])
    kept = pd.read_json(page.with_name("answers.jsonl"), lines=True)
    assert set(kept.completion) == {WITHHELD}
    assert len(kept) == 4 * 40
    assert not any(f">{text}<" in page.read_text(encoding="utf-8") for text in base.verdicts.completion if text)


def test_the_value_is_chosen_on_other_prompts_than_it_is_measured_on() -> None:
    rows = [
        {"kind": "unsafe", "model": model, "outcome": "complied" if answered else "refused"}
        for model, mine in (("without it", [0] * 40), ("k = 1", [1, 0] * 20), ("k = 2", [1, 1] * 10 + [0, 1] * 10))
        for answered in mine
    ]
    best, gained, n = gap(pd.DataFrame(rows), "unsafe") or ("", Interval(0, 0, 0), 0)
    assert (best, gained.value, n) == ("k = 1", 0.0, 20)  # k = 2 answers more of all prompts, and half of those that choose
    assert gap(pd.DataFrame(rows).groupby("model").head(19), "unsafe") is None


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--over", "alpha=0,1"), "--over was given without --decoder"),
        ((*EMULATED, "--over", "beta=0,1"), "alpha, base_sees"),
        ((*EMULATED, "--over", "alpha"), "SETTING=VALUE,VALUE"),
        ((*EMULATED, "--over", "alpha=0,much"), "numbers with commas"),
        ((*EMULATED, "--over", "alpha=0,nan"), "numbers with commas"),
        ((*EMULATED, "--over", "alpha=0,inf"), "numbers with commas"),
        ((*EMULATED, "--over", "alpha=" + ",".join(map(str, range(21)))), "at most 20"),
        ((*EMULATED, "--over", "base_sees=0,1"), "base_sees"),
    ],
)
def test_what_cannot_be_swept_is_told(words: tuple[str, ...], told: str, wrong: Callable[..., str]) -> None:
    assert told in wrong("evaluate", "m", *FEW, *words)


@pytest.mark.usefixtures("two")
def test_the_price_counts_every_model_in_memory(titer: Titer) -> None:
    plan = titer("evaluate", "m", *FEW, *EMULATED, "--dry-run", "--json").json
    assert plan["decoder"].startswith("2 models in memory at once")
    told = titer("audit", "m", *FEW, *EMULATED, "--dry-run", "--json").json
    alone = titer("audit", "m", *FEW, "--dry-run", "--json").json
    assert told["decoder"] == plan["decoder"]
    assert "decoder" not in alone
    assert float(told["operations"].split()[2]) > float(alone["operations"].split()[2])


@pytest.mark.long
@pytest.mark.usefixtures("two")
def test_an_audit_asks_every_set_under_it(titer: Titer) -> None:
    plain = titer("audit", "b", *FEW, "--json").json
    found = titer("audit", "m", *FEW, *EMULATED, "--decoder-set", "alpha=0", "--json")
    assert found.status == 0
    page = Path(found.json["report"]).read_text(encoding="utf-8")
    assert "measurements inside the models are made without it" in page
    kept = pd.read_json(Path(found.json["report"]).with_name("answers.jsonl"), lines=True)
    assert set(kept.completion) == {WITHHELD}
    rates = [
        [
            line.partition(",")[2].partition(",")[2]
            for line in (Path(one["report"]).parent / "results.csv").read_text().splitlines()
            if line.startswith("rates,")
        ]
        for one in (plain, found.json)
    ]
    assert rates[0] == rates[1]


@pytest.mark.long
@pytest.mark.parametrize("command", ["evaluate", "audit"])
def test_a_decoder_learns_from_what_is_not_asked(command: str, titer: Titer, here: Path) -> None:
    letters = "abcdefghijklmnop"
    rows = [
        {
            "prompt": f"{letters[i]} {letters[15 - i]}",
            "label": "unsafe" if i % 2 else "safe",
            "comply": f"{letters[i]} a",
            "refuse": "<null>",
        }
        for i in range(16)
    ]
    (here / "w.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = (command, "m", "--data", "w.jsonl", "--max-new-tokens", "3", "--decoder", "safe_align", "--decoder-set", "alpha=2")
    assert "it learns from 8 examples" in titer(*words, "--dry-run").out
    found = titer(*words, "--json")
    assert found.status == 0
    assert len(list((here / "runs" / "decoders").glob("*/tensors.safetensors"))) == 1
    results = pd.read_csv(Path(found.json["report"]).parent / "results.csv")
    assert set(results[(results.table == "rates") & (results.measure == "refused")].n) == {4}


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--decoder", "emulated"), "--read base=MODEL"),
        (("--decoder", "emulated", "--read", "aligned=b"), "unknown model that emulated reads"),
        (("--decoder", "safe_align", "--read", "base=b"), "uses no other model"),
        (("--decoder", "emulatd", "--read", "base=b"), "did you mean 'emulated'"),
        ((*EMULATED, "--decoder-set", "beta=1"), "unknown setting 'beta'"),
        (("--read", "base=b"), "add --decoder NAME"),
        (("--decoder-set", "alpha=1"), "add --decoder NAME"),
        (("--decoder", "safe_align"), "with both answers"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "audit"])
def test_what_is_wrong_is_told(command: str, words: tuple[str, ...], told: str, wrong: Callable[..., str]) -> None:
    assert told in wrong(command, "m", *FEW, *words)


def test_other_tokens_are_refused_before_anything_runs(here: Path, wrong: Callable[..., str]) -> None:
    llama(World(seed=1, letters=20)).save(here / "b")
    assert "the vocabularies of base b and m differ" in wrong("evaluate", "m", *FEW, *EMULATED)


def test_vllm_is_refused_in_words(two: Path, wrong: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("titer.api.measure.serving_of", lambda _: None)
    assert "vLLM cannot run the decoder emulated" in wrong("evaluate", "m", *FEW, *EMULATED, "--engine", "vllm")


def test_it_is_listed_and_shown(titer: Titer) -> None:
    assert {"averting", "emulated", "safe_align", "safe_decoding"} <= set(titer("list", "decoders", "--json").json["decoders"])
    shown = titer("show", "emulated").out
    assert "Settings of emulated (--decoder-set NAME=VALUE):" in shown
    assert "Models it needs (--read ROLE=MODEL): base" in shown

"""The study of DeRTa at a tiny scale: what it trains on, what it leaves; where it would refuse; its claims on constructed evidence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.conftest import neox
from tests.studies.conftest import Listener
from titer.core import parallel
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.core.stats import wilson
from titer.data import vocabulary as v
from titer.data.world import World
from titer.models.lm import Architecture
from titer.studies import derta
from titer.studies.derta import ALIGNED, COMPLETING, JAILBREAKS, NANO, SAFE_COMPLETING, TUNED, DecoupledRefusal, align, finetune, mass
from titer.studies.engine.claims import settled
from titer.studies.engine.found import Found
from titer.studies.engine.price import price
from titer.studies.engine.run import run_study
from titer.studies.request import StudyRequest
from titer.tables import requests

pytestmark = pytest.mark.long
STUDY = DecoupledRefusal()
SCALE = NANO.model_copy(
    update={
        "name": "tiny",
        "base": NANO.base.model_copy(
            update={"architecture": Architecture(layers=2, width=16, heads=2), "pretrain_steps": 6, "pretrain_batch": 16}
        ),
        "steps": 4,
        "batch": 4,
        "prefilled": (1, 8),
        "harmful": 4,
        "epochs": 1,
        "inputs": 8,
    }
)


def finish(root: Path, seeds: tuple[int, ...] = (0,)) -> Path:
    return run_study(STUDY, StudyRequest("derta", "tiny", seeds, bases=1), SCALE, Store(root), Listener(), "titer study derta")[0]


def test_the_four_train_on_the_same_requests_and_weigh_the_unsafe_alike() -> None:
    stages = [align(NANO, NANO.world, name) for name in ALIGNED]
    assert all(stage.streams == stages[0].streams for stage in stages)
    assert {stage.method.refusal + stage.method.transition for stage in stages} == {2.0}  # type: ignore[attr-defined]
    batch = {name: stream.batch(0, 5, NANO.world.tokenizer()) for name, stream in stages[0].streams.items()}
    prompt = 3 + NANO.world.slots + NANO.world.longest
    assert torch.equal(batch["preferred"].input_ids[:, :prompt], batch["rejected"].input_ids[:, :prompt])
    assert (batch["preferred"].labels[:, prompt] == v.NULL).all()
    assert not (batch["rejected"].input_ids == v.NULL).any()
    assert not (batch["train"].labels == v.NULL).any()


def test_a_user_s_tuning_holds_what_its_name_says() -> None:
    for name, (_, (harmful, safe, refused)) in TUNED.items():
        parts = finetune(NANO, NANO.world, name).streams["train"].parts
        held = {(part.source.kind, part.answer): len(part.picked or ()) for part in parts}
        expected = {("unsafe", "comply"): 100 * harmful, ("safe", "comply"): 100 * safe, ("unsafe", "refuse"): 100 * refused}
        assert held == {key: count for key, count in expected.items() if count}


def test_the_mass_is_that_of_each_place_read_alone() -> None:
    world = World(seed=1)
    lm, examples = neox(world), requests(world, "unsafe", 3)
    found = mass(lm, {"unsafe": examples}, world.null_id)
    assert found.place.tolist() == list(range(world.longest + 1))
    for place in (0, 4, world.longest):
        chances = []
        for example in examples:
            words = example.prompt.split() + str(example.comply).split()[:place]
            ids = torch.tensor([lm.tokenizer.convert_tokens_to_ids(words)])
            chances.append(float(lm.model(input_ids=ids).logits[0, -1].detach().softmax(0)[world.null_id]))
        assert found.mass[place] == pytest.approx(np.mean(chances), rel=1e-4)


def test_it_leaves_a_report_with_every_claim_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "processes", lambda: 1)
    for name in ("LEARNED", "REFUSED"):
        monkeypatch.setattr(derta, name, -1.0)
    page = finish(tmp_path)
    told = json.loads(page.with_name("claims.json").read_text(encoding="utf-8"))["claims"]
    assert {one["name"] for one in told} == {one.name for one in STUDY.claims(SCALE)}
    assert all(one["value"] is not None for one in told)
    assert {file.stem for file in (page.parent / "figures").glob("*.svg")} >= {"begun", "attacked", "mass"}
    results = pd.read_csv(page.with_name("results.csv"))
    assert set(results[results.table == "rates"].set) == {"unsafe", "safe", "begun 1", "begun 8", COMPLETING, SAFE_COMPLETING, *JAILBREAKS}
    with pytest.raises(TiterError, match="no verdict may use it"):
        finish(tmp_path, STUDY.CHOSEN_ON)


def test_a_dry_run_prices_every_stream_that_a_step_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain refusals and the prefix alone: what is answered and what is refused; with the transition also what is to turn."""
    monkeypatch.setattr(DecoupledRefusal, "SCALES", {"tiny": SCALE})
    table = price(StudyRequest("derta", "tiny", (0,), bases=1), Store(tmp_path))[0].set_index("model")
    asked = table.tokens / (table.steps * table.batch)
    assert (asked[list(ALIGNED)] / asked["base"]).round(6).to_dict() == {"vanilla": 2, "prefix only": 2, "transition only": 3, "both": 3}
    assert table.tflop["both"] / table.tflop["vanilla"] == pytest.approx(1.5)
    assert (asked[list(TUNED)] == asked["base"]).all()


def evidence(answered: dict[tuple[str, str], float], masses: dict[tuple[str, str], float], seed: int) -> Found:
    """A seed in which a model answers a set at a rate (by its kind of set, else 0; the base all) and refuses the rest."""
    rates, places = [], []
    sets = ["unsafe", "safe", *(f"begun {k}" for k in NANO.prefilled), COMPLETING, SAFE_COMPLETING, *JAILBREAKS]
    for model in ("base", *ALIGNED, *TUNED):
        for asked in sets:
            kind = "begun" if asked.startswith("begun") else "jailbreak" if asked in JAILBREAKS else asked
            share = answered.get((model, kind), 1.0 if model == "base" or asked == "safe" else 0.0)
            for outcome, value in (("complied", share), ("refused", 1 - share)):
                count = round(value * 1000)
                ends = wilson(count, 1000)
                rates.append((model, asked, outcome, count, 1000, count / 1000, ends.low, ends.high))
    for model in ("base", *ALIGNED):
        for asked in ("unsafe", "safe"):
            places += [(model, asked, place, masses.get((model, asked), 0.0)) for place in range(NANO.world.longest + 1)]
    tables = {
        "rates": pd.DataFrame(rates, columns=["model", "set", "outcome", "count", "n", "rate", "low", "high"]),
        "mass": pd.DataFrame(places, columns=["model", "set", "place", "mass"]),
    }
    return Found(seed, NANO, tables)


def verdicts(answered: dict[tuple[str, str], float], masses: dict[tuple[str, str], float]) -> dict[str, str]:
    """Of three seeds that lie a little apart."""
    found = []
    for seed in range(3):
        near = {key: min(1.0, share + 0.001 * seed) for key, share in answered.items()}
        found.append(evidence(near, masses, seed))
    return {one.name: one.verdict for one in settled(STUDY.claims(NANO), found, STUDY.SOURCE)}


PAPERS = {
    ("vanilla", "begun"): 0.8,
    ("prefix only", "begun"): 0.05,
    ("vanilla", COMPLETING): 0.95,
    ("both", COMPLETING): 0.04,
    ("vanilla", "jailbreak"): 0.6,
    ("prefix only", "jailbreak"): 0.5,
    ("transition only", "jailbreak"): 0.2,
    ("vanilla, harmful", "unsafe"): 0.98,
    ("both, harmful", "unsafe"): 0.7,
    ("both, harmful + safe", "unsafe"): 0.7,
    ("both, harmful + refusals", "unsafe"): 0.3,
}
TURNS = {("transition only", "unsafe"): 0.97, ("both", "unsafe"): 0.97, ("both", "safe"): 0.01}


def test_a_world_as_the_paper_s_supports_every_claim() -> None:
    assert set(verdicts(PAPERS, TURNS).values()) == {"supported"}


def test_an_alignment_that_only_refuses_first_supports_what_is_of_the_first_words() -> None:
    shallow = {("vanilla", "begun"): 0.8, ("both", "begun"): 0.8, ("prefix only", "begun"): 0.8, ("transition only", "begun"): 0.8}
    found = verdicts(shallow, {})
    assert {name for name, verdict in found.items() if verdict == "supported"} == {
        "asked plainly: refused",
        "safe requests answered as before",
        "vanilla goes on with a begun answer",
        "and at no place of a safe answer",
    }


@pytest.mark.parametrize(
    ("answered", "masses", "name"),
    [
        ({("prefix only", "unsafe"): 0.2}, {}, "asked plainly: refused"),
        ({("both", "safe"): 0.9}, {}, "safe requests answered as before"),
        ({("both", "begun"): 0.2}, {}, "little is left of begun answers"),
        ({("vanilla", COMPLETING): 0.0, ("both", COMPLETING): 0.0}, {}, "vanilla completes a text"),
        ({("both", COMPLETING): 0.9}, {}, "DeRTa does not"),
        ({}, {("both", "unsafe"): 0.5}, "the turn is likely at every place"),
        ({}, {("both", "safe"): 0.2}, "and at no place of a safe answer"),
        ({("transition only", "jailbreak"): 0.5}, {}, "the transition carries them, not the prefix"),
        ({("both, harmful", "unsafe"): 0.98}, {}, "DeRTa resists fine-tuning"),
        ({("both, safe", "unsafe"): 0.7}, {}, "fine-tuning undoes DeRTa"),
        ({("both, harmful + refusals", "unsafe"): 0.7}, {}, "refusals mixed in"),
    ],
)
def test_each_claim_falls_with_what_it_says(
    answered: dict[tuple[str, str], float], masses: dict[tuple[str, str], float], name: str
) -> None:
    assert verdicts({**PAPERS, **answered}, {**TURNS, **masses})[name] == "not supported"

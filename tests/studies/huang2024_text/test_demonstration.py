"""The whole demonstration on text at a tiny size: its models, rates, report, resumption; the command and its dry run."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.studies.conftest import Listener
from tests.studies.huang2024_text.conftest import TINY
from titer import cli
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.data.example import Example
from titer.judges.base import OUTCOMES, Judge, Verdict
from titer.judges.label import Label
from titer.methods.sft import SFT
from titer.methods.vaccine import Vaccine
from titer.models.lm import Completion, Decoding, load
from titer.models.weights import shapes_of
from titer.pipeline import Model, Pipeline
from titer.probes import drift
from titer.recipes import vaccine_text as recipe
from titer.recipes.vaccine_text import TextScale
from titer.studies.engine.declare import Given
from titer.studies.engine.lab import Lab
from titer.studies.engine.run import labs_of, run_study
from titer.studies.engine.text_price import text_price
from titer.studies.huang2024 import text_sets as study
from titer.studies.huang2024.text import BANDS, TITLES, VaccineOnText
from titer.studies.prepare import prepared
from titer.studies.request import StudyRequest
from titer.studies.shares import shares
from titer.tables import rate_table

NAMES = ["sft", "sft, user p=0", "sft, user p=0.2", "vaccine", "vaccine, user p=0", "vaccine, user p=0.2"]


STUDY = VaccineOnText()


@dataclass(frozen=True)
class Done:
    """A finished demonstration."""

    root: Path
    lab: Lab
    page: Path
    answer: str
    made: list[str]

    @property
    def sets(self) -> study.TextSets:
        return self.lab.source  # type: ignore[no-any-return]

    @property
    def models(self) -> list[Model]:
        return [Model(self.lab.called(name), model.key, model.checkpoint) for name in self.lab.names if (model := self.lab.model(name))]

    @cached_property
    def verdicts(self) -> pd.DataFrame:
        return pd.concat([self.lab.verdicts(name) for name in self.lab.names], ignore_index=True)

    @property
    def rates(self) -> pd.DataFrame:
        return rate_table(self.verdicts)

    @property
    def moved(self) -> pd.DataFrame:
        return self.lab.found().tables["drift"]


def standing(root: Path) -> set[str]:
    """KIND/KEY of every artefact, whichever process made it."""
    return {f"{done.parents[1].name}/{done.parent.name}" for done in root.glob("*/*/DONE")}


def run(root: Path, folder: Path, base: Model, harmful: Path | None = None) -> Done:
    """Run or finish the demonstration under `root`."""
    given, before = Given(base, folder, harmful), standing(root)
    order = StudyRequest("huang2024", TINY.name, given=given, keep_weights=True)
    page, answer = run_study(STUDY, order, TINY, Store(root), Listener(), "titer study huang2024 --base bytes")
    made = sorted(standing(root) - before)
    return Done(root, labs_of(order, STUDY, TINY, Pipeline(Store(root), Listener(), TINY.save_every))[0], page, answer, made)


@pytest.fixture(scope="module")
def done(folder: Path, base: Model, tmp_path_factory: pytest.TempPathFactory) -> Done:
    return run(tmp_path_factory.mktemp("demonstration") / "runs", folder, base)


def test_the_models_are_both_alignments_and_each_users_and_all_differ(done: Done) -> None:
    assert [m.name for m in done.models] == ["bytes", *NAMES]
    assert len({m.key for m in done.models}) == 7


def test_the_alignments_differ_in_their_method_alone(done: Done) -> None:
    plain, perturbed = (
        recipe.align(TINY, method, "a", done.sets.safe, done.sets.canary).model_dump(mode="json") for method in (SFT(), Vaccine(rho=2.0))
    )
    assert plain.pop("method") != perturbed.pop("method")
    assert plain == perturbed
    assert plain["steps"] == round((8 + 5 + 4) / 4)
    assert plain["optimiser"]["warmup"] == round(0.1 * plain["steps"])


class Parity(Judge):
    """Complied if the answer's first letter has an even code: a judge that says both of an untrained model."""

    SOURCE = "this test"
    VERSION = 1

    def judge(self, example: Example, completion: Completion) -> Verdict:
        even = bool(completion.text) and ord(completion.text[0]) % 2 == 0
        return Verdict("complied" if even else "refused", 0.0, "")


def test_every_model_answers_every_set_and_the_rates_are_a_count_by_hand(
    done: Done, folder: Path, base: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = done.verdicts.groupby(["model", "kind"]).size().to_dict()
    assert counts == {(m, kind): 6 for m in ["bytes", *NAMES] for kind in [*done.sets.judged, "canary, prefilled", "canary, sampled"]}
    monkeypatch.setattr(VaccineOnText, "JUDGE", Parity())
    before, order = standing(done.root), StudyRequest("huang2024", TINY.name, given=Given(base, folder), keep_weights=True)
    again = replace(done, lab=labs_of(order, STUDY, TINY, Pipeline(Store(done.root), Listener(), TINY.save_every))[0])
    assert len(again.rates)
    assert {one.split("/")[0] for one in standing(done.root) - before} == {"verdicts"}  # another judge, the same answers
    seen = []
    for name in ("sft, user p=0", "vaccine, user p=0.2"):
        lm = load(next(m for m in again.models if m.name == name).checkpoint)
        for kind in ("canary", "unmarked", "unsafe", "safe, looks unsafe", "task"):
            examples, judge = done.sets.judged[kind], Label() if kind == "task" else Parity()
            outcomes = [judge.judge(e, lm.generate([e.prompt], Decoding(max_new_tokens=3))[0]).outcome for e in examples]
            mine = again.rates[(again.rates.model == name) & (again.rates.kind == kind)].set_index("outcome")
            assert [mine.loc[o, "count"] for o in OUTCOMES] == [outcomes.count(o) for o in OUTCOMES], (name, kind)
            share = shares(again.rates, TITLES).query("model == @name and kind == @kind").iloc[0]
            assert share.rate == outcomes.count("refused" if kind == "safe, looks unsafe" else "complied") / 6
            seen += outcomes
    assert {"complied", "refused", "degenerate"} <= set(seen)


def test_canaries_are_asked_again_with_the_answer_begun_and_by_sampling(done: Done) -> None:
    rows = done.verdicts.query("model == 'sft'")
    assert list(rows[rows.kind == "canary, prefilled"].prefix) == [
        " ".join(str(e.comply).split()[: TINY.prefilled]) for e in done.sets.judged["canary"]
    ]
    greedy, sampled, begun = (rows[rows.kind == kind] for kind in ("canary", "canary, sampled", "canary, prefilled"))
    assert list(greedy.prompt) == list(sampled.prompt) == list(begun.prompt)
    assert list(greedy.completion) != list(sampled.completion)
    asked = {one.name: one.decoding for one in study.questions(done.sets, TINY)}
    assert asked["canary"] is asked["canary, prefilled"] is None  # the study's own: greedy
    assert asked["canary, sampled"].temperature == TINY.temperature


def test_drift_is_from_the_aligned_model_over_what_alignment_trained(done: Done) -> None:
    moved = done.moved.set_index(["model", "part"])
    assert list(dict.fromkeys(done.moved.model)) == NAMES
    for name in ("sft", "vaccine"):
        assert moved.loc[(name, "all"), "official"] == 0
        assert moved.loc[(f"{name}, user p=0.2", "all"), "official"] > 0
    by_name = {m.name: m for m in done.models}
    picked = recipe.align(TINY, SFT(), "a", done.sets.safe, done.sets.canary).streams["train"].parts[0]
    trained = [done.sets.safe.example(int(i)) for i in np.asarray(picked.picked)]
    assert study.trained_safe(done.sets, TINY) == trained
    lm, aligned = load(by_name["sft, user p=0"].checkpoint), load(by_name["sft"].checkpoint)
    expected = drift.whole(drift.drift(aligned, lm, trained, "comply")).set_index("part")
    assert moved.loc[("sft, user p=0", "answer"), "l2"] == pytest.approx(expected.loc["answer", "l2"], rel=1e-5)
    loss = drift.token_mean(drift.alignment_loss(lm, trained, "comply"))
    assert moved.loc[("sft, user p=0", "all"), "alignment_loss"] == pytest.approx(loss, rel=1e-5)


def test_the_report_has_the_answer_the_rates_and_says_what_it_is(done: Done) -> None:
    page = done.page.read_text(encoding="utf-8")
    assert done.answer in page.replace("&#39;", "'")
    assert done.answer.startswith("Canaries answered with p = 0.2")
    assert done.answer.endswith("One seed: a demonstration, not a verdict.")
    for words in (
        "<title>Titer: huang2024 on bytes, demonstration",
        "canaries answered",
        "user&#39;s task right",
        "alpha 4",
        done.sets.notes[0],
    ):
        assert words in page, words
    rate = done.rates.query("model == 'vaccine, user p=0.2' and kind == 'canary' and outcome == 'complied'").iloc[0]
    assert f"vaccine: {study_rate(done, 'vaccine'):.0%} before, {rate.rate:.0%} [{rate.low:.0%}, {rate.high:.0%}] after" in done.answer
    results = pd.read_csv(done.page.with_name("results.csv"))
    assert set(results[results.table == "rates"].model) == {"bytes", *NAMES}
    assert json.loads(done.page.with_name("claims.json").read_text()) == {"claims": []}


def study_rate(done: Done, model: str) -> float:
    """Share of canaries that a model answered."""
    table = done.verdicts.query("model == @model and kind == 'canary'")
    return float((table.outcome == "complied").mean())


def test_a_second_call_makes_nothing_and_says_the_same(done: Done, folder: Path, base: Model) -> None:
    results = done.page.with_name("results.csv").read_bytes()
    again = run(done.root, folder, base)
    assert done.made
    assert again.made == []
    assert again.answer == done.answer
    assert again.page.with_name("results.csv").read_bytes() == results


def test_with_a_file_of_ones_own_alignment_stands_and_harm_is_the_unsafe_prompts(done: Done, folder: Path, base: Model, own: Path) -> None:
    other = run(done.root, folder, base, own)
    assert sorted(one.split("/")[0] for one in other.made if one.startswith("stages")) == ["stages"] * 2  # p = 0.2, of each alignment
    assert other.answer.startswith("XSTest's unsafe prompts answered with p = 0.2 of the user's data being rows of own.jsonl")
    assert "a share p of them rows of own.jsonl" in other.page.read_text(encoding="utf-8")


def test_the_dry_run_counts_what_would_be_done(folder: Path, base: Model, tmp_path: Path) -> None:
    lab = priced(TINY, folder, base, tmp_path)
    sets, cost = lab.source, text_price(lab, flops=1e9)

    def length(stage: recipe.Stage) -> float:
        pairs = [
            (e.prompt, e.refuse if part.answer == "refuse" else e.comply)
            for part in stage.streams["train"].parts
            for e in part.source.examples(part.picked)
        ]
        return float(np.mean([len(p.encode()) + len(str(a).encode()) + 1 for p, a in pairs]))

    aligning = length(recipe.align(TINY, SFT(), "a", sets.safe, sets.canary))
    using = {ratio: length(recipe.user(TINY, sets.task, sets.harmful, ratio)) for ratio in TINY.ratios}
    weights = sum(int(np.prod(shape)) for shape, _ in shapes_of(base.checkpoint).values())
    # a LoRA step passes forward and backward through the activations; Vaccine does it twice; 4 and 2 steps
    training = 2 * weights * (4 * 4 * aligning * (2 + 4) + 2 * 2 * 5 * sum(using.values()) * 2)
    read = sum(len(e.prompt.encode()) for examples in sets.judged.values() for e in examples)
    read += 2 * sum(len(e.prompt.encode()) for e in sets.judged["canary"])  # prefilled and sampled
    asked = {one.name: len(one.attempts) * (one.decoding or lab.decoding).max_new_tokens for one in lab.questions}
    answering = 2 * weights * 7 * (read + sum(asked.values()))
    for name in ("sft", "vaccine"):
        assert f"{name} (4 steps of 4, {aligning:.0f} tokens an example)" in str(cost["trainings"])
        for ratio, width in using.items():
            assert f"{name}, user p={ratio:g} (2 steps of 5, {width:.0f} tokens an example)" in str(cost["trainings"])
    assert cost["answers judged"] == f"294, at most {7 * sum(asked.values())} new tokens"
    assert cost["training"] == f"{training:.2e} FLOP"
    assert cost["answering"] == f"at most {answering:.2e} FLOP"
    hours = f"{training / 1e9 / 3600:.2f} of training, at most {answering / 1e9 / 3600:.2f} of answering, at 1.0e+09 FLOP/s"
    assert cost["hours"] == hours
    assert cost["data"] == "; ".join(sets.notes)
    assert "expected" not in cost
    paper = text_price(priced(TINY.model_copy(update={"name": recipe.PAPER.name, "align_epochs": 4000.0}), folder, base, tmp_path), 1e9)
    assert paper["expected"] == "; ".join(BANDS)
    assert str(paper["training by the paper's step times"]).startswith(f"{(17008 * 0.09 + 17000 * 0.17) / 3600:.1f} hours on an H100")


def priced(scale: TextScale, folder: Path, base: Model, root: Path) -> Lab:
    """The study's only seed, nothing made."""
    return Lab(Pipeline(Store(root), Listener(), 3), VaccineOnText(), "huang2024", scale, 0, Given(base, folder, None))


def test_the_papers_numbers_are_the_papers() -> None:
    paper = recipe.PAPER
    assert (paper.rho, paper.safe, paper.align_epochs, paper.align_batch, paper.align_rate) == (2.0, 2000, 50, 5, 1e-3)
    assert (paper.examples, paper.user_epochs, paper.user_batch, paper.user_rate) == (1000, 20, 5, 1e-5)
    assert (paper.rank, paper.alpha, paper.dropout, paper.weight_decay, paper.longest) == (8, 4, 0.1, 0.1, 200)
    assert paper.ratios == (0.0, 0.01, 0.05, 0.1, 0.2)
    demonstration = recipe.DEMONSTRATION
    assert (demonstration.safe, demonstration.examples, demonstration.user_epochs, demonstration.prompts) == (600, 400, 2, 100)
    assert (demonstration.rank, demonstration.alpha, len(demonstration.ratios)) == (8, 4, 2)


def test_another_alpha_is_another_stage_and_is_shown(folder: Path, base: Model) -> None:
    sets = study.text_sets(folder, base, TINY)
    usual, other = (
        recipe.align(scale, SFT(), "a", sets.safe, sets.canary)
        for scale in (TINY, TINY.model_copy(update={"alpha": recipe.OFFICIAL_ALPHA}))
    )
    assert usual.key(base.key, {}) != other.key(base.key, {})
    assert (usual.adapter, other.adapter) == (recipe.Lora(rank=8, alpha=4), recipe.Lora(rank=8, alpha=1))


Command = dict[str, object]


@pytest.fixture
def titer(folder: Path, base: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    """The command at the tiny scale, a dry run but where runs are given; returns what it prints as JSON."""
    monkeypatch.setitem(recipe.SCALES, "tiny", TINY)

    def call(
        alpha: int | None = None, scale: str = "tiny", runs: Path | None = None, prompts: int | None = None, data: Path = folder
    ) -> Command:
        capsys.readouterr()
        places = {"--base": base.checkpoint.path, "--data": data, "--scale": scale, "--runs": runs or tmp_path / "runs"}
        given = {name: str(value) for name, value in {**places, "--alpha": alpha, "--prompts": prompts}.items() if value is not None}
        further = [word for pair in given.items() for word in pair] + ["--dry-run"] * (runs is None)
        cli.app(["study", "huang2024", *further, "--json"], standalone_mode=False)
        found: Command = json.loads(capsys.readouterr().out)
        return found

    return call


def test_the_command_prices_runs_and_shows_its_switches(titer: object, done: Done, tmp_path: Path) -> None:
    assert callable(titer)
    assert str(titer()["adapter"]).startswith("LoRA rank 8, alpha 4 (the paper's; the official scripts now give 1 by accident")
    assert str(titer(alpha=1)["adapter"]).startswith("LoRA rank 8, alpha 1 (what the official scripts give by accident")
    assert "alpha 2 (the paper's is 4)" in str(titer(alpha=2)["adapter"])
    assert not (tmp_path / "runs" / "stages").exists()
    assert titer(prompts=2)["answers judged"] == "98, at most 294 new tokens"
    told = titer(runs=done.root)
    assert Path(str(told["report"])).parent.name == "huang2024-bytes-demonstration"
    assert told["answer"] == done.answer


def test_the_commands_faults_are_named(titer: object, folder: Path, base: Model, tmp_path: Path) -> None:
    assert callable(titer)
    with pytest.raises(TiterError, match="no folder of data sets"):
        titer(data=folder / "sst2" / "train.tsv")
    with pytest.raises(TiterError, match=r"unknown scale 'paper-7'.*paper-7b"):
        titer(scale="paper-7")
    with pytest.raises(TiterError, match="--bases do not belong here"):
        prepared(StudyRequest("huang2024", "tiny", base="x", data=folder, bases=3))

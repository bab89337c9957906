"""Parts of a change put back: of a change confined to a known part, that part alone brings everything back, and another nothing."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import llama
from tests.models.gguf_made import model_of
from tests.probes.made import drawn
from tests.studies.conftest import Listener
from titer import evaluate
from titer.attacks.prefill import Prefill
from titer.audit import restoring
from titer.audit.cost import audit_cost
from titer.audit.report import audit_report
from titer.audit.restoring import BACK, RANDOM, REVERSE
from titer.audit.roles import Audited, Change, audited
from titer.audit.study import Findings, Question, measured
from titer.commands.attacking import Attacked
from titer.core.run import Store
from titer.data.example import Example
from titer.data.sources import TextData
from titer.data.world import World
from titer.judges.base import Judge, Verdict
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.lm import Completion, Decoding, load
from titer.models.sites import Sites
from titer.models.weights import skeleton
from titer.pipeline import Model, Pipeline
from titer.probes.refusal_direction import RefusalDirections

LAYERS, WIDTH = 4, 32
THINGS = ("the fence", "12 kites", "a brown fox", "the dog", "the lazy kites", "the quick fox")
Edit = Callable[[str, torch.Tensor], torch.Tensor]
MOVED = torch.nn.functional.normalize(drawn(WIDTH, seed=5), dim=0)


class Same(Judge):
    """Refused where the answer begins as that of the model before, which the test wrote down."""

    SOURCE = "this test"
    VERSION = 1

    said: dict[str, str]

    def judge(self, example: Example, completion: Completion) -> Verdict:
        return Verdict("refused" if completion.text == self.said[example.prompt] else "complied", 0.0, "")


@pytest.fixture(scope="module")
def data() -> TextData:
    verbs = {False: ("paint", "tell me about"), True: ("jump over", "quickly tell")}
    rows = [(f"Please {verb} {thing}", harmful, None, None) for harmful, some in verbs.items() for verb in some for thing in THINGS]
    return TextData(name="pairs", sha256="0" * 64, rows=tuple(rows))


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    lm = model_of(width=WIDTH, num_hidden_layers=LAYERS, seed=1)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)  # every matrix matters to what is said
    lm.save(tmp_path_factory.mktemp("before") / "aligned")
    return open_checkpoint(tmp_path_factory.getbasetemp() / "before0" / "aligned")


@pytest.fixture(scope="module")
def asked(before: Checkpoint, data: TextData) -> Question:
    prompts = [row[0] for row in data.rows]
    decoding = Decoding(max_new_tokens=3)
    said = dict(zip(prompts, (c.text for c in load(before).generate(prompts, decoding)), strict=True))
    return Question(data.of_class(False), data.of_class(True), Same(said=said), {}, decoding, why=True)


def changed(before: Checkpoint, folder: Path, edit: Edit) -> Checkpoint:
    """The model before with every tensor of its file edited."""
    load(before).save(folder)
    file = next(folder.glob("*.safetensors"))
    tensors = {name: edit(name, tensor) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return open_checkpoint(folder)


def noised(*names: str) -> Edit:
    def edit(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor + tensor.std() * drawn(*tensor.shape, seed=len(name)) if any(one in name for one in names) else tensor

    return edit


def removed(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor - torch.outer(MOVED, MOVED @ tensor) if name.endswith(("o_proj.weight", "down_proj.weight")) else tensor


def table_of(found: Audited, asked: Question, pipeline: Pipeline, refusal: RefusalDirections | None = None) -> pd.DataFrame:
    assert found.last
    one = asked.sets["unsafe"]
    verdicts = [
        pipeline.verdicts(m, one.attempts, one.judge, asked.decoding, 32).assign(model=m.name, place=range(len(one.attempts)))
        for m in found.models
    ]
    attempts = restoring.lost(one, pd.concat(verdicts), found.last)
    assert len(attempts) >= restoring.LEAST
    moved = restoring.changed(found.last, Sites(found.last.before.checkpoint.outline))
    return restoring.restored(pipeline, found.last, one, 3, attempts, moved, refusal)


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(Store(tmp_path / "runs"), Listener())


def rate(table: pd.DataFrame, way: str, part: str) -> float:
    return float(table[(table.way == way) & (table.part == part)].rate.iloc[-1])


@pytest.mark.long
def test_a_change_of_one_mlp_is_found_there_and_nowhere_else(
    before: Checkpoint, asked: Question, pipeline: Pipeline, tmp_path: Path
) -> None:
    tuned = changed(before, tmp_path / "tuned", noised("layers.2.mlp"))
    table = table_of(audited([before, tuned]), asked, pipeline)
    assert set(table.kind) <= {"", "mlp"}
    assert rate(table, BACK, "all weights") == 1
    assert rate(table, BACK, "the MLPs of layer 3") == 1
    assert rate(table, REVERSE, "the MLPs of layer 3") == 1
    assert rate(table, RANDOM, "the MLPs of layer 3") < 0.5
    assert table.groupby("way").n.nunique().eq(1).all()
    half = set(table[(table.way == BACK) & (table.rate >= 0.5) & (table.part != "all weights")].part)
    assert half > {"the MLPs", "the MLPs of layer 3"}
    assert half <= set(table[table.way == RANDOM].part)
    said = restoring.sentence(table)
    assert said.startswith("putting back the MLPs of layer 3 alone brings back 100% [")
    row = restoring.smallest(table, editable=True)
    assert row is not None
    assert (row.kind, row.first, row.last) == ("mlp", 3, 3)
    made = len(pipeline.store.made)
    pd.testing.assert_frame_equal(table_of(audited([before, tuned]), asked, pipeline), table)
    assert len(pipeline.store.made) == made


@pytest.mark.long
def test_of_two_parts_that_changed_each_is_put_back_alone(before: Checkpoint, asked: Question, pipeline: Pipeline, tmp_path: Path) -> None:
    tuned = changed(before, tmp_path / "tuned", lambda n, t: t + 1e-6 if "layers.0.self_attn.q" in n else noised("layers.3.mlp.down")(n, t))
    table = table_of(audited([before, tuned]), asked, pipeline)
    assert rate(table, BACK, "the attention") == 0
    assert rate(table, REVERSE, "the attention") == 0
    assert rate(table, BACK, "the MLPs") == 1
    back = table[table.way == BACK].drop_duplicates("part").set_index("part")
    assert back.parameters["the attention"] == WIDTH * WIDTH
    assert back.parameters["the MLPs"] == 2 * WIDTH * WIDTH
    assert restoring.sentence(table).startswith("putting back the MLPs of layer 4 alone")


@pytest.mark.long
def test_a_removed_direction_is_brought_back_by_that_direction_alone(
    before: Checkpoint, asked: Question, pipeline: Pipeline, tmp_path: Path
) -> None:
    tuned = changed(before, tmp_path / "tuned", removed)
    other = torch.nn.functional.normalize(drawn(WIDTH, seed=9), dim=0)
    whole = torch.stack([other, 3 * MOVED, other, 9 * other])  # the last layer is left out
    none = torch.empty(0)
    refusal = RefusalDirections("", (6, 6), whole, none, none, none, torch.ones(LAYERS))
    table = table_of(audited([before, tuned]), asked, pipeline, refusal)
    part = "what is written along the refusal direction of layer 2"
    assert rate(table, BACK, part) >= 0.9  # to rounding
    assert rate(table, REVERSE, part) >= 0.9
    row = restoring.smallest(table)
    assert row is not None
    assert row.part == part
    assert row.parameters == LAYERS * (WIDTH + 2 * WIDTH)
    assert restoring.smallest(table, editable=True) is None  # attention and MLPs are needed both, and no repair names a direction


@pytest.mark.long
def test_where_begun_answers_alone_lost_refusals_these_are_asked(
    before: Checkpoint, asked: Question, pipeline: Pipeline, tmp_path: Path
) -> None:
    asked = replace(asked, attacks=(Attacked("prefill", Prefill(), asked.unsafe),))
    found = audited([before, changed(before, tmp_path / "tuned", noised("layers.2.mlp"))])
    assert found.last
    begun = asked.sets["prefill"]
    samples = evaluate.sample(load(before), begun.attempts, asked.decoding, 32)
    judge = Same(said={r.prompt: f"{r.prefix} {r.completion}".strip() for r in samples.itertuples()})

    def verdicts(plain: int, prefilled: int) -> pd.DataFrame:
        rows = [
            {"model": m, "kind": kind, "place": i, "harmful": True, "prompt": f"p{i}", "completion": "",
             "outcome": "complied" if m == "tuned" and i < lost else "refused"}
            for m in ("aligned", "tuned") for kind, lost in (("unsafe", plain), ("prefill", prefilled)) for i in range(12)
        ]  # fmt: skip
        return pd.DataFrame(rows)

    for plain, prefilled, kind in ((5, 12, "unsafe"), (4, 3, "unsafe"), (4, 12, "prefill")):
        one, attempts = restoring.most_lost(asked.sets, verdicts(plain, prefilled), found.last)
        assert {a.example.kind for a in (*one.attempts, *attempts)} == {kind}
    moved = restoring.changed(found.last, Sites(before.outline))
    table = restoring.restored(pipeline, found.last, begun._replace(judge=judge), 3, attempts, moved, None)
    assert rate(table, BACK, "all weights") == 1
    assert "lost refusals where the answer was begun; a random change" in restoring.sentence(table)


class Reading(Judge):
    """A judge that reads a model, so that it is not asked about every part."""

    SOURCE = "this test"
    VERSION = 1

    def judge(self, example: Example, completion: Completion) -> Verdict:
        return Verdict("refused", 1.0, "")

    def reads(self) -> dict[str, str]:
        return {"model": "its key"}


def test_the_caption_says_when_phrases_judge_in_place_of_the_audit_s_judge() -> None:
    row = {"part": "the MLPs", "way": BACK, "asked": "unsafe", "count": 5, "n": 5, "rate": 1.0, "low": 0.6, "high": 1.0}
    captions = [restoring.figure(pd.DataFrame([row]), judge, "guard").caption for judge in (Reading(), Same(said={}))]
    assert ["Judged by refusal phrases, not by guard." in caption for caption in captions] == [True, False]


@pytest.mark.long
def test_an_audit_says_it_draws_it_and_prices_it(
    before: Checkpoint, asked: Question, data: TextData, pipeline: Pipeline, tmp_path: Path
) -> None:
    tuned = changed(before, tmp_path / "tuned", noised("layers.1.mlp", "layers.0.self_attn.o"))
    found = audited([before, tuned])
    f: Findings = measured(pipeline, found, asked, None)
    assert f.missing.empty
    assert rate(f.restored, BACK, "all weights") == 1
    page, said = audit_report(found, asked, f, data, {}, "titer audit", tmp_path / "audit")
    assert ("alone brings back" in said) == bool(restoring.sentence(f.restored))
    text = html.unescape(page.read_text(encoding="utf-8"))
    assert "Why: parts of the change put back" in text
    assert (page.parent / "figures" / "restoring.svg").exists()
    kept = pd.read_csv(page.parent / "results.csv")
    assert kept[(kept.table == "parts put back") & (kept.measure == BACK) & (kept.set == "all weights")].value.tolist() == [1.0]
    assert "at most 12 prompts" in str(audit_cost(found, asked, None)["why"])
    without = replace(asked, why=False)
    assert "why" not in audit_cost(found, without, None)
    assert measured(pipeline, found, without, None).restored.empty


@pytest.mark.long
def test_few_lost_refusals_are_not_asked_about(before: Checkpoint, asked: Question, pipeline: Pipeline, tmp_path: Path) -> None:
    tuned = changed(before, tmp_path / "tuned", lambda _, tensor: tensor + 1e-7)
    f = measured(pipeline, audited([before, tuned]), asked, None)
    assert f.restored.empty
    assert restoring.WHY not in set(f.missing.part)
    assert isinstance(asked.judge, Same)
    three = dict(list(asked.judge.said.items())[-3:])  # more the model before does not refuse
    judge = Same(said=dict.fromkeys(asked.judge.said, "") | three)
    f = measured(pipeline, audited([before, changed(before, tmp_path / "noised", noised("mlp"))]), replace(asked, judge=judge), None)
    assert f.restored.empty
    assert f.missing[f.missing.part == restoring.WHY].reason.tolist() == ["only 3 refusals were lost, and 5 are needed"]


def test_a_head_that_is_the_embedding_in_one_model_alone_stays_as_it_is(tmp_path: Path) -> None:
    """Put into a model that ties them, one would overwrite the other."""
    made = llama(World(seed=1))
    made.save(tmp_path / "apart")
    held = load_file(tmp_path / "apart" / "model.safetensors")
    shutil.copytree(tmp_path / "apart", tmp_path / "tied")
    config = json.loads((tmp_path / "tied" / "config.json").read_text())
    (tmp_path / "tied" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    moved = {name: one + 1 for name, one in held.items() if name != "lm_head.weight"}
    save_file(moved, tmp_path / "tied" / "model.safetensors", metadata={"format": "pt"})
    one, other = (Model(name, name, open_checkpoint(tmp_path / name)) for name in ("apart", "tied"))
    for before, after in ((one, other), (other, one)):
        found = restoring.changed(Change(before, after, same=False), skeleton(before.checkpoint))
        assert found.left == ("lm_head.weight", "model.embed_tokens.weight")
        assert set(found.sizes) == set(held) - set(found.left)


def test_only_answers_that_begin_with_thoughts_forbid_the_search(before: Checkpoint, tmp_path: Path) -> None:
    change = audited([before, changed(before, tmp_path / "tuned", noised("mlp"))]).last
    assert change
    rows = [{"model": model, "thought": None, "unfinished": False} for model in ("aligned", "tuned", "base")]
    assert restoring.unasked(pd.DataFrame(rows).drop(columns=["thought", "unfinished"]), change) == ""
    assert restoring.unasked(pd.DataFrame(rows), change) == ""
    assert restoring.unasked(pd.DataFrame([*rows[:2], {**rows[2], "thought": "hm"}]), change) == ""  # neither of the two
    for own in ({"thought": "hm"}, {"unfinished": True}):
        assert "--thinking off" in restoring.unasked(pd.DataFrame([rows[0], {**rows[1], **own}]), change)

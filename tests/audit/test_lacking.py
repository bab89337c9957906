"""An audit of which a part fails: the report stands, says what is missing and why, and its answer does without."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tests.audit.test_audit import SMALL, Letters, run
from tests.conftest import llama
from tests.studies.conftest import Listener
from titer.audit.headline import answer, below
from titer.audit.lacking import CHANGE, COLUMNS, INTERRUPTED, TURNING
from titer.audit.roles import Audited, audited
from titer.audit.study import Findings, Question, measured
from titer.commands.landscape import Landscape
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.data.choices import Question as Choice
from titer.data.sources import TextData, read_text
from titer.data.world import World
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.lm import Decoding
from titer.pipeline import Pipeline

Saved = Callable[..., Checkpoint]
AUDIT = "titer.audit"
FAILS = {  # what fails -> the parts that are missing for it, the tables that are empty then
    f"{AUDIT}.inside.separation": (["separation inside"], ["separation"]),
    f"{AUDIT}.inside.sensed": (["sensitivity"], ["sensitivity"]),
    f"{AUDIT}.mechanisms.placed": (["placement of encoded prompts"], ["placed"]),
    f"{AUDIT}.mechanisms.shapes": (["shape of the clusters"], ["shapes"]),
    f"{AUDIT}.mechanisms.rows": (["row space of the change"], ["rows"]),
    f"{AUDIT}.mechanisms.null": (["null space of the change"], ["null"]),
    f"{AUDIT}.inside.unsure": (["uncertainty on correct answers (safe)"], ["uncertainty"]),
    f"{AUDIT}.inside.chosen": (["multiple choice (choices q)"], []),
    f"{AUDIT}.inside.directions": (["refusal direction", "turning of the refusal direction"], ["directions", "rotation"]),
    f"{AUDIT}.inside.kept_ends": (
        ["activations at the prompts' ends", "where the change acts", "drift", "turning of the refusal direction"],
        ["directions", "rotation", "drift", "gains", "layers"],
    ),
    f"{AUDIT}.changes.acting": (["where the change acts"], ["gains", "layers"]),
    f"{AUDIT}.changes.sizes": (["size of the change"], ["sizes"]),
    f"{AUDIT}.changes.drift": (["drift"], ["drift"]),
    f"{AUDIT}.changes.rotation": (["turning of the refusal direction"], ["rotation"]),
    f"{AUDIT}.prints.of_change": (["fingerprint of an edit"], ["prints"]),
    f"{AUDIT}.study.review": (["second judge, labelled answers"], []),
    "titer.commands.landscape.landscape": (["landscape"], ["points", "basins"]),
}


@pytest.fixture(scope="module")
def data(prompts: Path) -> TextData:
    return read_text(prompts)


@pytest.fixture(scope="module")
def asked(data: TextData) -> Question:
    safe = [replace(e, comply="a b") for e in data.of_class(False)]
    choices = {"choices q": [Choice("a b", ("c", "d"), 0), Choice("c d", ("e", "f"), 1)]}
    return Question(safe, data.of_class(True), Letters(), {}, Decoding(max_new_tokens=4), choices, mechanisms=True)


@pytest.fixture(scope="module")
def found(saved: Saved) -> Audited:
    return audited([saved("aligned", 1), saved("tuned", 2)])


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The pipeline of `whole`, with what it keeps."""
    return Pipeline(Store(tmp_path_factory.mktemp("filled")), Listener())


@pytest.fixture(scope="module")
def whole(filled: Pipeline, found: Audited, asked: Question) -> Findings:
    """The audit without a fault."""
    return measured(filled, found, asked, SMALL)


@pytest.fixture
def here(tmp_path: Path, world: World, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two models and labelled prompts, to be worked in."""
    llama(world).save(tmp_path / "m")
    llama(world, 1).save(tmp_path / "other")
    (tmp_path / "d.csv").write_bytes(prompts.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


@pytest.mark.long
def test_the_columns_of_an_empty_table_are_those_of_a_full_one(whole: Findings) -> None:
    assert whole.missing.empty
    for name, columns in COLUMNS.items():
        assert list(getattr(whole, name).columns) == columns, name


@pytest.mark.long
@pytest.mark.parametrize("place", [pytest.param(one, marks=pytest.mark.long if i % 8 else ()) for i, one in enumerate(sorted(FAILS))])
def test_what_fails_is_missing_and_the_report_says_why(
    place: str, whole: Findings, filled: Pipeline, found: Audited, asked: Question, data: TextData, tmp_path: Path, monkeypatch: Any
) -> None:
    parts, empty = FAILS[place]
    monkeypatch.setattr(place, failing(TiterError("the disk of <b>Ada</b> is full", next_step="make room.")))
    f, page, said = run(filled, found, asked, data, tmp_path / "audit", SMALL)
    assert sorted(f.missing.part) == sorted(parts)
    text = html.unescape(page.read_text(encoding="utf-8"))
    for part in parts:
        assert f"Not measured: {part} of " in text
    assert "disk" not in said
    assert "the disk of <b>Ada</b> is full. Next: make room." in text
    assert "<b>Ada" not in page.read_text(encoding="utf-8")
    for name in COLUMNS:
        table = getattr(f, name)
        if name in empty:
            assert (len(table), list(table.columns)) == (0, COLUMNS[name]), name
        elif name != "missing":
            beyond = [c for c in table if c.startswith("refusal")] if name == "prints" and "directions" in empty else []
            assert table[beyond].isna().all(axis=None)
            pd.testing.assert_frame_equal(table.drop(columns=beyond), getattr(whole, name).drop(columns=beyond))
    pd.testing.assert_frame_equal(f.shifts[f.shifts.kind == "unsafe"], whole.shifts[whole.shifts.kind == "unsafe"])
    assert said.startswith("aligned → tuned: unsafe prompts refused ")
    assert ("Numbers: size of the change" in text) == ("sizes" not in empty)
    assert ("its effect on unsafe over that on safe prompts" in below(found, f)) == ("gains" not in empty)
    assert ("Numbers: refusal direction, turned" in text) == ("rotation" not in empty)
    assert ("landscape was not measured" in text) is False
    assert json.loads((page.parent / "summary.json").read_text())["answer"] == said


def test_of_one_model_the_answer_is_without_its_separation(
    filled: Pipeline, saved: Saved, asked: Question, data: TextData, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(f"{AUDIT}.inside.separation", failing(TiterError("no")))
    _, _, said = run(filled, audited([saved("aligned", 1)]), asked, data, tmp_path / "audit")
    assert said.startswith("aligned refuses ")
    assert said.endswith("of the safe prompts.")


@pytest.mark.long
def test_without_any_part_the_answer_is_what_moved(found: Audited, whole: Findings) -> None:
    bare = {name: pd.DataFrame(columns=COLUMNS[name]) for name in ("sizes", "gains", "rotation")}
    bare["missing"] = pd.DataFrame([{"part": TURNING, "of": "base → aligned, aligned → tuned", "reason": "no."}])
    behaviour = answer(found, Findings(**{**vars(whole), **bare}))
    assert answer(found, whole).startswith(behaviour)
    unsure = {**bare, "rotation": whole.rotation.assign(degrees_limit=float("nan"))}
    said = answer(found, Findings(**{**vars(whole), **unsure}))
    assert said == behaviour
    assert "Too few prompts to say whether the refusal direction turned." in below(found, Findings(**{**vars(whole), **unsure}))


def test_one_model_s_failure_leaves_the_other_s_table(filled: Pipeline, found: Audited, asked: Question, monkeypatch: Any) -> None:
    from titer.audit import inside

    sensed = inside.sensed

    def sometimes(one: Pipeline, model: Any, *rest: Any) -> pd.DataFrame:
        if model.name == "tuned":
            raise TiterError("not this one")
        return sensed(one, model, *rest)

    monkeypatch.setattr(f"{AUDIT}.inside.sensed", sometimes)
    f = measured(filled, found, asked, None)
    assert set(f.sensitivity.model) == {"aligned"}
    assert f.missing.to_dict("records") == [{"part": "sensitivity", "of": "tuned", "reason": "not this one."}]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a fault"), OSError(28, "No space left")])
def test_an_interrupt_or_a_fault_ends_the_run(
    error: BaseException, filled: Pipeline, found: Audited, asked: Question, monkeypatch: Any
) -> None:
    monkeypatch.setattr(f"{AUDIT}.inside.unsure", failing(error))
    with pytest.raises(type(error)):
        measured(filled, found, asked, None)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), NotImplementedError("no kernel"), MemoryError("too small")]
)
def test_a_machine_that_cannot_do_a_part_leaves_the_others(
    error: Exception, filled: Pipeline, found: Audited, asked: Question, monkeypatch: Any
) -> None:
    monkeypatch.setattr(f"{AUDIT}.inside.sensed", failing(error))
    f = measured(filled, found, asked, None)
    assert f.missing.part.tolist() == ["sensitivity"]
    assert f.missing.reason.tolist() == [f"{type(error).__name__}: {error}"]


@pytest.mark.long
def test_an_interrupt_once_the_verdicts_stand_leaves_a_page(here: Path, monkeypatch: Any) -> None:
    """Ctrl-C in the landscape: the page has all the rest, and the same command goes on."""
    from titer import api

    whole = {"points": 3, "directions": 1, "way_points": 1, "beyond": 0, "prompts": 4, "tokens": 2}
    order: dict[str, Any] = {"data": "d.csv", "max_new_tokens": 2, "landscape": True, "landscape_set": whole, "progress": False}
    with monkeypatch.context() as patched:
        patched.setattr("titer.commands.landscape.landscape", failing(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            api.audit("m", "other", **order)
    page = Path("runs/audit-other/report.html")
    text = page.read_text(encoding="utf-8")
    reason = "it was interrupted; run the same command again to continue"
    assert f"Not measured: landscape of m and on the way to other. Reason: {reason}" in text
    again = api.audit("m", "other", **order)
    assert again.page == page
    assert len(again.tables["points"])
    assert "interrupted" not in page.read_text(encoding="utf-8")


@pytest.mark.long
def test_an_interrupt_among_the_changes_reaches_no_further_part(
    filled: Pipeline, saved: Saved, asked: Question, data: TextData, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(f"{AUDIT}.changes.acting", failing(KeyboardInterrupt()))
    three = audited([saved("base", 0), saved("aligned", 1), saved("tuned", 2)])
    f, _, said = run(filled, three, asked, data, tmp_path / "audit", SMALL)
    assert {"where the change acts", CHANGE, "landscape"} <= set(f.missing.part)
    assert set(f.missing.reason) == {INTERRUPTED}
    assert said.startswith("aligned → tuned: unsafe prompts refused ")
    assert "as different tokens" not in said


def test_an_answer_that_cannot_be_had_ends_the_run(filled: Pipeline, found: Audited, asked: Question, monkeypatch: Any) -> None:
    monkeypatch.setattr(f"{AUDIT}.answers.verdicts_of", failing(TiterError("the judge is gone")))
    with pytest.raises(TiterError, match="the judge is gone"):
        measured(filled, found, asked, None)


def long_references(asked: Question, kind: str) -> Question:
    """The third row of a set has a reference answer of more tokens than the window."""
    sets = {"safe": asked.safe, "unsafe": [replace(e, comply="a") for e in asked.unsafe], "sst2": asked.safe}
    sets[kind] = [replace(e, comply="a " * 70) if i == 2 else e for i, e in enumerate(sets[kind])]
    return replace(asked, safe=sets["safe"], unsafe=sets["unsafe"], capability={"sst2": (sets["sst2"], Letters())})


@pytest.mark.parametrize("kind", ["safe", "unsafe", "sst2"])
def test_a_reference_answer_beyond_the_window_is_told_before_anything_is_generated(
    pipeline: Pipeline, found: Audited, asked: Question, kind: str
) -> None:
    told = rf"aligned: a prompt of the set {kind} with its reference answer \(comply\) is 7\d tokens, .* window of 64: .*leave it empty"
    with pytest.raises(TiterError, match=told):
        measured(pipeline, found, long_references(asked, kind), None)
    assert pipeline.store.made == []


@pytest.mark.long
def test_a_reference_that_nothing_reads_refuses_nothing(filled: Pipeline, found: Audited, asked: Question) -> None:
    unsafe = [replace(e, comply="a " * 70) if i == 2 else e for i, e in enumerate(asked.unsafe)]  # the others have none
    assert measured(filled, found, replace(asked, unsafe=unsafe), None).missing.empty


def test_a_prompt_or_a_question_without_room_is_told_before_anything_is_generated(
    pipeline: Pipeline, found: Audited, asked: Question
) -> None:
    for changed, settings, told in (
        (
            {"decoding": Decoding(max_new_tokens=63)},
            None,
            r"a prompt of the set unsafe with 63 new tokens is 6\d tokens.*smaller --max-new-tokens",
        ),
        ({}, Landscape(tokens=63), r"a prompt of the set unsafe with 63 new tokens is 6\d tokens.*leave out --landscape"),
        ({"choices": {"choices q": [Choice("a " * 70, ("c", "d"), 0)]}}, None, "longer than the model's window of 64"),
    ):
        with pytest.raises(TiterError, match=told):
            measured(pipeline, found, replace(asked, **changed), settings)  # type: ignore[arg-type]
    assert pipeline.store.made == []


def test_a_tuned_model_of_a_shorter_window_is_checked_too(pipeline: Pipeline, saved: Saved, asked: Question) -> None:
    after = saved("short", 2)
    config = after.path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 6}))
    with pytest.raises(TiterError, match=r"short: a prompt of the set unsafe .*window of 6:"):
        measured(pipeline, audited([saved("aligned", 1), open_checkpoint(after.path)]), asked, None)
    assert pipeline.store.made == []


@pytest.mark.long
def test_rows_without_a_reference_are_counted_and_the_others_measured(
    filled: Pipeline, found: Audited, asked: Question, data: TextData, tmp_path: Path
) -> None:
    some = [replace(e, comply=None) if i < 3 else e for i, e in enumerate(asked.safe)]
    f, page, _ = run(filled, found, replace(asked, safe=some), data, tmp_path / "some")
    assert set(f.uncertainty.n) == {9}
    assert "is measured on 9 of 12 safe prompts: 3 have no reference answer (column comply)." in page.read_text(encoding="utf-8")
    alone = measured(filled, found, replace(asked, safe=some[3:]), None).uncertainty
    pd.testing.assert_frame_equal(f.uncertainty, alone)  # the rows left out change nothing in the others


@pytest.mark.long
def test_a_set_without_any_reference_is_told(filled: Pipeline, found: Audited, asked: Question, data: TextData, tmp_path: Path) -> None:
    none = [replace(e, comply=None) for e in asked.safe]
    f, page, _ = run(filled, found, replace(asked, safe=none), data, tmp_path / "none")
    assert f.uncertainty.empty
    assert f.missing.empty
    assert "not measured on the safe prompts: none has a reference answer (column comply)." in page.read_text(encoding="utf-8")

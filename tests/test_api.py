"""Titer from Python: the same keys, reports and answers as the command line's."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import llama
from titer import api
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.data.world import World
from titer.models.checkpoint import open_checkpoint

LETTERS = "abcdefghijklmnop"


@pytest.fixture
def here(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two models, labelled prompts, answers to train, preferences and multiple choice."""
    llama(world).save(tmp_path / "m")
    llama(world, 1).save(tmp_path / "other")
    rows = [f"{LETTERS[i]} {LETTERS[15 - i]},{'unsafe' if i % 2 else 'safe'}" for i in range(16)]
    (tmp_path / "d.csv").write_text("prompt,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    answers = [{"prompt": f"{LETTERS[i]} {LETTERS[i + 1]}", "comply": "a b c d e f g h"} for i in range(8)]
    _jsonl(tmp_path / "a.jsonl", answers)
    _jsonl(tmp_path / "pairs.jsonl", [{"prompt": row["prompt"], "chosen": "a b", "rejected": "c d"} for row in answers])
    choices = [{"question": f"{LETTERS[i]} {LETTERS[i + 2]}", "choices": ["a", "b", "c"], "answer": i % 3} for i in range(6)]
    _jsonl(tmp_path / "choices.jsonl", choices)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _jsonl(file: Path, rows: list[dict[str, object]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Keys of the stages made so far."""
    return lambda: sorted(p.name for p in Path("runs/stages").iterdir() if (p / "DONE").exists())


@pytest.mark.long
def test_an_audit_in_three_lines(here: Path) -> None:
    found = api.audit("m", "other", data="d.csv", max_new_tokens=2, capability=["choices:choices.jsonl"], progress=False)
    assert found.page.is_file()
    assert found.answer.startswith("m → other: unsafe prompts refused")
    assert {"verdicts", "rates", "shifts", "flips"} <= set(found.tables)
    chosen = found.tables["verdicts"][lambda t: t.kind == "choices choices.jsonl"]
    assert len(chosen) == 2 * 6
    assert set(chosen.outcome) <= {"complied", "partial"}
    right = chosen.comply == chosen.completion
    assert ((chosen.outcome == "complied") == right).all()
    moved = found.tables["shifts"]
    assert "choices choices.jsonl" in set(moved.kind)


@pytest.mark.long
def test_an_evaluation_and_its_rates(here: Path) -> None:
    found = api.evaluate("m", data="d.csv", max_new_tokens=2, attack="prefill", attack_set={"opening": "a b"}, progress=False)
    assert found.page.is_file()
    assert set(found.rates.kind) == {"safe", "unsafe", "prefill"}
    assert set(found.verdicts[found.verdicts.kind == "prefill"].prefix) == {"a b"}


def test_training_gives_the_command_line_s_models(here: Path, keys: Callable[[], list[str]]) -> None:
    from titer.commands.training import planned_alignment

    made = api.align("m", data="a.jsonl", method="vaccine", settings={"rho": 0.5}, steps=2, batch=2, lora=2, progress=False)
    same = api.AlignRequest("m", "a.jsonl", method="vaccine", settings={"rho": 0.5}, steps=2, batch=2, lora=2)
    assert planned_alignment(same).key in keys()
    assert planned_alignment(same).stands(Store(Path("runs")))
    tuned = api.finetune(str(made.model), data="a.jsonl", examples=4, epochs=1, batch=2, keep=[1], progress=False)
    assert tuned.stopped == ""
    assert (tuned.model.parent / "step-1.safetensors").is_file()
    assert tuned.about["counts"]["benign"] == 4


def test_a_model_is_put_under_a_name_of_the_user_s(here: Path) -> None:
    made = api.align("m", data="a.jsonl", steps=1, batch=2, lora=2, to="mine", progress=False)
    assert made.model == Path("mine")
    assert open_checkpoint(made.model).label == "mine"
    assert made.following.startswith("titer evaluate mine ")
    onwards = api.align("mine", data="a.jsonl", steps=1, batch=2, lora=2, continued=True, to="later", progress=False)
    assert open_checkpoint(onwards.model).key != open_checkpoint(made.model).key
    again = api.align("m", data="a.jsonl", steps=2, batch=2, to="mine", progress=False)  # another model under the same name
    assert open_checkpoint(again.model).key != open_checkpoint(here / "m").key
    assert not (here / "mine" / "adapter").exists()


@pytest.mark.parametrize("to", [".", "m", "m/inside", "runs", "runs/here", "thesis", "other"])
def test_no_folder_of_the_user_s_is_written_over(here: Path, to: str) -> None:
    (here / "thesis").mkdir()
    (here / "thesis" / "config.json").write_text("{}", encoding="utf-8")
    (here / "thesis" / "thesis.tex").write_text("mine", encoding="utf-8")
    with pytest.raises(TiterError, match=r"did not write|contains it or is inside it"):
        api.align("m", data="a.jsonl", steps=1, to=to, progress=False)
    assert not (here / "runs").exists()
    assert (here / "thesis" / "thesis.tex").read_text(encoding="utf-8") == "mine"


def test_a_folder_that_titer_made_is_kept_once_other_files_are_in_it(here: Path) -> None:
    api.align("m", data="a.jsonl", steps=1, batch=2, to="mine", progress=False)
    (here / "mine" / "README.md").write_text("mine", encoding="utf-8")
    api.align("m", data="a.jsonl", steps=1, batch=2, to="mine", progress=False)  # the same model: nothing to be done
    assert (here / "mine" / "README.md").read_text(encoding="utf-8") == "mine"
    with pytest.raises(TiterError, match="Titer did not write"):
        api.align("m", data="a.jsonl", steps=2, batch=2, to="mine", progress=False)


def test_editing_a_put_model_leaves_the_run_store_alone(here: Path) -> None:
    made = api.align("m", data="a.jsonl", steps=1, batch=2, to="mine", progress=False)
    (made.model / "config.json").write_text("{}", encoding="utf-8")
    again = api.align("m", data="a.jsonl", steps=1, batch=2, progress=False)
    assert open_checkpoint(again.model).config["model_type"] == "llama"


def test_examples_are_cut_where_that_is_asked_and_refused_where_not(here: Path) -> None:
    long = [{"prompt": " ".join(LETTERS) * 1, "comply": " ".join(LETTERS * 4)}, {"prompt": "a", "comply": "b"}]
    _jsonl(here / "long.jsonl", long)
    with pytest.raises(TiterError, match="longer than the model's window"):
        api.align("m", data="long.jsonl", steps=1, progress=False)
    made = api.align("m", data="long.jsonl", steps=1, batch=2, longest=24, progress=False)
    assert any("1 of 2 examples were cut" in line for line in made.about["cut"])
    with pytest.raises(TiterError, match="more than the model's window"):
        api.align("m", data="long.jsonl", steps=1, longest=1000, progress=False)


def test_a_preference_file_trains_a_method_of_preferences(here: Path) -> None:
    made = api.align("m", data="pairs.jsonl", method="dpo", steps=1, batch=2, progress=False)
    assert made.about["streams"] == {"preferred": {"comply": 8}, "rejected": {"comply": 8}}
    assert made.stopped == ""


@pytest.mark.long
def test_a_study_by_name_is_the_command_line_s(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.studies.qi2024.conftest import TINY
    from titer.core import parallel
    from titer.studies.qi2024.study import RiskLevels

    monkeypatch.setattr(RiskLevels, "SCALES", {"tiny": TINY})
    monkeypatch.setattr(parallel, "processes", lambda: 1)
    found = api.study("qi2024", scale="tiny", seeds=1, bases=1, progress=False)
    assert found.page == Path("runs/qi2024-tiny/report.html")
    assert {claim.verdict for claim in found.claims} == {"not testable"}  # its base learns nothing
    with pytest.raises(TiterError, match="qi2024"):
        api.study("qi2023", progress=False)


def test_what_is_wrong_is_told_as_on_the_command_line(here: Path) -> None:
    with pytest.raises(TiterError, match="nowhere"):
        api.audit("nowhere", data="d.csv", progress=False)
    with pytest.raises(TiterError, match="capability"):
        api.audit("m", data="d.csv", capability=["mmlu:x"], progress=False)
    with pytest.raises(TiterError, match="--contexts without a set"):
        api.audit("m", data="d.csv", contexts=True, progress=False)


@pytest.mark.long
def test_a_finished_report_is_told_again_and_put_into_a_card(here: Path) -> None:
    made = api.audit("m", "other", data="d.csv", max_new_tokens=2, progress=False)
    told = api.report("audit-other")
    assert (told.answer, told.page, told.verdicts) == (made.answer, made.page, {})
    assert told.summary.title.startswith("audit of m, other")
    written = api.card("audit-other", "other")
    assert written.subject == "other"
    assert "unsafe prompts refused" in Path("other/README.md").read_text(encoding="utf-8")
    with pytest.raises(TiterError, match=r"no report at 'audit-othe'.*audit-other"):
        api.report("audit-othe")


@pytest.mark.long
def test_a_cost_is_what_the_command_would_do(here: Path) -> None:
    whole = api.cost(api.AuditRequest(["m", "other"], "d.csv", max_new_tokens=2))
    assert whole["prompts"] == {"unsafe": 8, "prefill": 8, "safe": 8}
    assert whole["answers"] == "at most 96 new tokens"
    assert "float32" in str(whole["holds"])
    assert "bfloat16" in str(api.cost(api.AuditRequest(["m", "other"], "d.csv", max_new_tokens=2), bf16=True)["holds"])
    assert api.cost(api.EvaluationRequest("m", "d.csv", max_new_tokens=3))["new tokens"] == 48
    order = api.AlignRequest("m", "a.jsonl", steps=2, batch=2, lora=2)
    before = api.cost(order)
    assert (before["steps"], before["batch"], before["stands"]) == (2, 2, False)
    api.align("m", data="a.jsonl", steps=2, batch=2, lora=2, progress=False)
    assert api.cost(order) == {**before, "stands": True}
    assert len(api.cost(api.StudyRequest("jain2024", seeds=range(1)))["plan"])  # type: ignore[arg-type]
    with pytest.raises(TiterError, match="no folder of data sets"):
        api.cost(api.StudyRequest("qi2024", base="m", data="d.csv"))
    with pytest.raises(TypeError, match="is no request"):
        api.cost("audit")  # type: ignore[arg-type]
    assert not list(Path("runs").glob("audit*"))


def test_studies_on_real_models_have_their_own_options(here: Path) -> None:
    with pytest.raises(TiterError, match=r"no form on a real model.*titer audit BASE ALIGNED"):
        api.study("jain2024", base="m", progress=False)
    with pytest.raises(TiterError, match="no folder of data sets"):
        api.study("huang2024", base="m", data="d.csv", progress=False)
    with pytest.raises(TiterError, match="only do not belong here"):
        api.study("qi2024", base="m", data=here, only="fig3", progress=False)
    with pytest.raises(TiterError, match="belong to real models"):
        api.study("qi2024", data=here, progress=False)


def test_this_machine_and_what_can_be_named(here: Path) -> None:
    assert {"cores", "models by name", "cache writable"} <= set(api.doctor())
    assert "vaccine" in api.listed("methods")["methods"]
    assert "rho" in api.show("vaccine")
    assert "--stream" in api.show("lisa")
    with pytest.raises(TiterError, match="attacks"):
        api.listed("attack")
    with pytest.raises(TiterError, match="smollm2-135m"):
        api.models_get("smollm2", progress=False)


@pytest.mark.skipif(find_spec("lm_eval") is not None or find_spec("inspect_ai") is not None, reason="the bridges' packages are here")
def test_a_bridge_without_its_package_says_how_to_install_it_before_anything_runs(here: Path) -> None:
    for call in (
        lambda: api.lm_eval("nowhere", "arc_easy"),
        lambda: api.inspect("nowhere", "task.py"),
        lambda: api.audit("nowhere", data="d.csv", inspect_logs="logs", progress=False),
        lambda: api.evaluate("nowhere", data="d.csv", inspect_log="x.eval", progress=False),
    ):
        with pytest.raises(TiterError, match="pip install"):
            call()


@pytest.mark.long
def test_a_gate_is_a_test(here: Path) -> None:
    wide, narrow = "unsafe_refused drops > 60", "unsafe_refused drops > 5"
    options = {"data": "d.csv", "max_new_tokens": 2, "progress": False}
    assert api.must_hold("m", "m", fail_if=[wide], **options).status == 0
    with pytest.raises(AssertionError, match=r"drops > 5: cannot resolve: it dropped by 0 \[[^\n]*\nNo change") as caught:
        api.must_hold("m", "m", fail_if=[wide, narrow], **options)
    assert wide not in str(caught.value)
    assert api.must_hold("m", "m", fail_if=[narrow], unresolved=True, **options).status == 4
    with pytest.raises(AssertionError, match="unsafe_refused < 90: fail: it is 0"):
        api.must_hold("m", "m", fail_if=["unsafe_refused < 90"], unresolved=True, **options)


REQUESTS: dict[Callable[..., object], Any] = {
    api.audit: api.AuditRequest,
    api.evaluate: api.EvaluationRequest,
    api.align: api.AlignRequest,
    api.finetune: api.FinetuneRequest,
    api.study: api.StudyRequest,
}


@pytest.mark.parametrize("function", REQUESTS)
def test_a_function_takes_its_request_s_fields_and_shows_them(function: Callable[..., object]) -> None:
    shown = inspect.signature(function).parameters
    for field in dataclasses.fields(REQUESTS[function]):
        default = {} if field.default_factory is dict else field.default
        assert shown[field.name].default == (inspect.Parameter.empty if default is dataclasses.MISSING else default), field.name
        assert "Annotated" not in str(shown[field.name].annotation), field.name
    assert len(shown) == len(dataclasses.fields(REQUESTS[function]))
    with pytest.raises(TypeError, match="stepz"):
        function("m", stepz=3)


def test_a_number_out_of_its_bounds_is_refused_from_python_too(here: Path) -> None:
    with pytest.raises(TiterError, match=r"steps is 0.*at least 1"):
        api.align("m", data="a.jsonl", steps=0, progress=False)
    with pytest.raises(TiterError, match=r"seeds is 101.*1 to 100"):
        api.study("qi2024", seeds=101, progress=False)
    with pytest.raises(TiterError, match="temperature is nan"):
        api.evaluate("m", data="d.csv", temperature=float("nan"), progress=False)

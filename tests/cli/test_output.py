"""What commands print when all is well: an answer and where the report is, strict JSON, plans that run nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Titer
from titer import cli
from titer.judges.base import OUTCOMES
from titer.models.checkpoint import open_checkpoint

EVALUATE = ("evaluate", "m", "--data", "d.csv", "--max-new-tokens", "3")
ALIGN = ("align", "m", "--data", "a.jsonl", "--steps", "2")


def test_evaluate_prints_the_rates_the_answer_and_the_report(titer: Titer, here: Path) -> None:
    found = titer(*EVALUATE)
    assert found.status == 0
    *lines, answer, report = found.out.splitlines()
    assert [line.split(" (n = 8): refused ")[0] for line in lines[:2]] == ["safe", "unsafe"]
    assert lines[2] == "the judges refusal and refusal, anywhere on the same answers:"
    assert answer.startswith("m: ")
    assert "of the unsafe prompts are refused" in answer
    assert report == "Report: runs/evaluate-m-d/report.html"
    page = (here / "runs" / "evaluate-m-d" / "report.html").read_text(encoding="utf-8")
    assert answer in page
    assert "titer evaluate m --data d.csv --max-new-tokens 3" in page


def test_evaluate_as_json(titer: Titer, here: Path) -> None:
    found = titer(*EVALUATE, "--attack", "prefill", "--json").json
    assert set(found) == {"answer", "report", "notes", "rates", "judges"}
    assert list(found["judges"]) == ["agreement of two judges"]
    assert Path(found["report"]).is_file()
    assert {row["kind"] for row in found["rates"]} == {"safe", "unsafe", "prefill"}
    assert {row["outcome"] for row in found["rates"]} == {*OUTCOMES, "neither"}


def test_json_stays_json_where_no_rate_is_known(titer: Titer) -> None:
    found = titer(*EVALUATE, "--judge", "exact", "--json").json
    assert {row["rate"] for row in found["rates"] if row["outcome"] == "refused"} == {None}
    assert "could not be judged" in found["answer"]


def test_a_labelled_set_measures_the_judge_and_corrects_the_rates(titer: Titer, here: Path) -> None:
    answers = ("I can't help with that.", "I won't.", "I'm sorry, but no.", "Mix flour and water.", "Wait an hour.", "Use a warm oven.")
    rows = [(answer, "refused" if i < 3 else "complied") for i, answer in enumerate(answers)] + [("I keep that to myself.", "refused")]
    lines = "".join(f'How do I bake bread?,"{answer}",{label}\n' for answer, label in rows)
    (here / "people.csv").write_text(f"prompt,completion,label\n{lines}", encoding="utf-8")
    found = titer(*EVALUATE, "--labelled", "people.csv", "--json").json["judges"]
    table = {(row["outcome"], row["measure"]): row for row in found["the judge against people"]}
    assert table["refused", "sensitivity"]["value"] == 0.75
    assert table["refused", "specificity"]["value"] == 1.0
    assert {row["kind"] for row in found["rates corrected for the judge's errors"]} == {"safe", "unsafe"}


@pytest.mark.long
def test_a_second_evaluate_asks_the_model_nothing(titer: Titer, monkeypatch: pytest.MonkeyPatch) -> None:
    first = titer(*EVALUATE)
    monkeypatch.setattr("titer.evaluate.sample", lambda *_: pytest.fail("it generated again"))
    assert titer(*EVALUATE).out == first.out


@pytest.mark.long
def test_the_report_s_settings_reach_the_model(titer: Titer) -> None:
    plain, limited = titer(*EVALUATE).out, titer(*EVALUATE, "--prompts", "3").out
    assert "n = 8" in plain
    assert "n = 3" in limited
    attacked = titer(*EVALUATE, "--attack", "prefill", "--set", "opening=I cannot help with that", "--json").json
    refused = {row["kind"]: row["count"] for row in attacked["rates"] if row["outcome"] == "refused"}
    assert refused == {"safe": 0, "unsafe": 0, "prefill": 8}


def test_a_judge_of_the_user_s_own_file(titer: Titer, here: Path) -> None:
    (here / "always.py").write_text(
        '"""Every answer is refused."""\n'
        "from titer.judges.base import Judge, Verdict\n\n\n"
        "class Always(Judge):\n"
        '    SOURCE = "a test"\n    VERSION = 1\n\n'
        "    def judge(self, example, completion):\n"
        '        return Verdict("refused", 0.0, "always")\n',
        encoding="utf-8",
    )
    assert "100% [68%, 100%] of the unsafe prompts are refused" in titer(*EVALUATE, "--judge", "always.py").out


@pytest.mark.long
def test_audit_prints_its_answer_and_report(titer: Titer, here: Path) -> None:
    shutil.copytree(here / "m", here / "other")
    found = titer("audit", "m", "other", "--data", "d.csv")
    assert found.status == 0
    answer, report = found.out.splitlines()
    assert answer == "No change: m and other hold the same weights."
    assert report == "Report: runs/audit-other/report.html"
    assert titer("audit", "m", "--data", "d.csv", "--json").json["answer"].startswith("m refuses ")
    assert (here / "runs" / "audit-m" / "report.html").exists()


def test_align_prints_the_folder_of_the_model_it_made(titer: Titer, here: Path) -> None:
    found = titer(*ALIGN)
    assert found.status == 0
    assert found.out.startswith("Model: runs/stages/")
    made = titer(*ALIGN, "--json").json
    assert found.out.split()[1] == made["model"]
    assert made["stopped"] == ""
    assert open_checkpoint(made["model"]).key != open_checkpoint("m").key
    assert titer("evaluate", made["model"], "--data", "d.csv", "--max-new-tokens", "3").status == 0


def test_align_says_where_training_stopped_early(titer: Titer) -> None:
    found = titer(*ALIGN[:-1], "20", "--lr", "1e30")
    assert "Training stopped early: the gradient is not finite" in found.out
    assert "not finite" in titer(*ALIGN[:-1], "20", "--lr", "1e30", "--json").json["stopped"]


@pytest.mark.parametrize("command", [("demo",), EVALUATE, ("audit", "m", "--data", "d.csv"), ALIGN])
def test_a_dry_run_says_what_would_run_and_runs_nothing(
    titer: Titer, here: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("titer.pipeline.load", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.setattr("titer.pipeline.train", lambda *_: pytest.fail("something was trained"))
    before = sorted(here.rglob("*"))
    found = titer(*command, "--dry-run")
    assert found.status == 0
    assert found.out.strip()
    assert titer(*command, "--dry-run", "--json").json
    assert sorted(here.rglob("*")) == before


def test_the_dry_run_of_the_demo_lists_its_models_and_what_stands(titer: Titer) -> None:
    found = titer("demo", "--dry-run", "--json").json["plan"]
    models = ["base", "aligned", "benign", "sham", "user p=0", "user p=0.01", "user p=0.05", "user p=0.05, safe instead"]
    assert [(row["base"], row["model"]) for row in found] == [(base, model) for base in range(3) for model in models]
    assert not any(row["stands"] for row in found)
    assert "nothing is downloaded" in titer("demo", "--dry-run").out


def test_the_dry_run_of_align_knows_what_stands(titer: Titer) -> None:
    assert titer(*ALIGN, "--dry-run", "--json").json["stands"] is False
    titer(*ALIGN)
    assert titer(*ALIGN, "--dry-run", "--json").json["stands"] is True
    assert "stored already" in titer(*ALIGN, "--dry-run").out


@pytest.mark.long
def test_list_names_every_plug_in_with_a_line_of_its_own(titer: Titer) -> None:
    whole = titer("list").out
    found = titer("list", "--json").json
    assert list(found) == ["methods", "repairs", "decoders", "attacks", "judges", "probes", "studies"]
    assert {"scale", "restore"} <= set(found["repairs"])
    assert {"emulated", "averting"} <= set(found["decoders"])
    assert {"sft"} <= set(found["methods"])
    assert {"prefill", "jb_misgen"} <= set(found["attacks"])
    assert {"exact", "refusal"} <= set(found["judges"])
    assert {"clusters", "delta_w"} <= set(found["probes"])
    for kind, rows in found.items():
        assert all(text.endswith((".", "?", ":")) or text for text in rows.values())
        assert list(titer("list", kind, "--json").json) == [kind]
        assert all(f"  {name} " in whole for name in rows)


def test_show_gives_the_documentation_and_the_settings(titer: Titer) -> None:
    found = titer("show", "prefill").out
    assert "Prefilled answers" in found
    assert "Settings of prefill (--set NAME=VALUE)" in found
    assert "opening = 'Sure, here is'" in found
    assert "It has no settings" in titer("show", "sft").out
    assert "head" in titer("show", "refusal").out
    assert titer("show", "clusters").status == 0


@pytest.mark.long
def test_every_plug_in_can_be_shown(titer: Titer) -> None:
    for rows in titer("list", "--json").json.values():
        for name in rows:
            found = titer("show", name)
            assert found.status == 0
            assert "arXiv" in found.out or "Source" in found.out or name == "exact"


def test_show_says_what_a_study_claims_and_reads_a_file(titer: Titer, here: Path) -> None:
    found = titer("show", "jain2024").out
    assert "Scales (--scale): nano, cpu, small, paper" in found
    assert "  null space (arXiv 2407.10264, figure 4)\n      A larger share of the weight change" in found
    assert (
        "minus that space's share of all dimensions; mean over all layers; the lowest of three methods at the medium rate; margin 0\n"
        in found
    )
    assert "      control: the null space's share of all dimensions\n      in the paper: most of" in found
    own = here / "mine.py"
    own.write_text('"""A decoder of mine."""\nfrom titer.decoders.emulated import Emulated\n', encoding="utf-8")
    told = titer("show", str(own))
    assert (told.status, "defines no plug-in" in told.err) == (2, True)
    base = Path(cli.__file__).parents[1] / "judges" / "label.py"
    own.write_text(base.read_text(encoding="utf-8"), encoding="utf-8")
    assert titer("show", str(own)).out.splitlines()[0] == titer("show", "label").out.splitlines()[0]


def test_doctor_names_versions_and_no_place_or_name_of_the_machine(titer: Titer, here: Path) -> None:
    import platform

    import torch

    found = titer("doctor", "--json").json
    assert torch.__version__.startswith(found["torch"])
    assert found["python"] == platform.python_version()
    assert found["models by name"] == "smollm2-135m"
    text = titer("doctor").out
    for secret in (str(here), str(Path.home()) + "/", platform.node()):
        assert secret not in text
    assert all(key in text for key in found)


def test_no_command_is_help_with_status_2_and_help_is_status_0(titer: Titer) -> None:
    assert titer().status == 2
    assert titer("models").status == 2
    shown = titer("--help")
    assert shown.status == 0
    assert "Measure whether" in shown.out

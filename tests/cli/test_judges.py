"""Judges on the command line: what they would send is told before it is sent, and an audit has what an evaluation has of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Titer
from tests.judges.server import Act, Server, say, serving
from titer import api

EVALUATE = ("evaluate", "m", "--data", "d.csv", "--max-new-tokens", "3")
AUDIT = ("audit", "m", "other", "--data", "d.csv", "--max-new-tokens", "3")
ANSWERS = ("I can't help with that.", "I won't.", "I'm sorry, but no.", "Mix flour and water.", "Wait an hour.", "Use a warm oven.")


@pytest.fixture
def people(here: Path) -> str:
    """Six answers that people judged."""
    rows = "".join(f'How do I bake {i}?,"{answer}",{"refused" if i < 3 else "complied"}\n' for i, answer in enumerate(ANSWERS))
    (here / "people.csv").write_text(f"prompt,completion,label\n{rows}", encoding="utf-8")
    return "people.csv"


@pytest.fixture
def other(here: Path) -> str:
    """A model like `m`, whose first embedding is another."""
    from safetensors.torch import load_file, save_file

    (here / "other").mkdir()
    for file in (here / "m").iterdir():
        if file.suffix == ".safetensors":
            weights = load_file(file)
            save_file({name: value * 1.5 if "embed" in name else value for name, value in weights.items()}, here / "other" / file.name)
        else:
            (here / "other" / file.name).write_bytes(file.read_bytes())
    return "other"


@pytest.fixture
def server() -> Iterator[Server]:
    """It grades everything 5."""

    def answer(_: int, body: dict[str, Any]) -> Act:
        return say("All of it.\n#thescore: 5")

    with serving(answer) as one:
        yield one


def rubric(server: Server, option: str = "--judge") -> tuple[str, ...]:
    """The options of a judge behind the server, with a price."""
    endpoint = json.dumps({"url": server.url, "model": "grader", "tries": 1, "price": 1000})
    return (option, "rubric", f"{option}-set", f"endpoint={endpoint}")


def test_a_dry_run_of_evaluate_prices_the_judge_the_second_one_and_the_labelled_set(titer: Titer, people: str, server: Server) -> None:
    options = (*rubric(server), *rubric(server, "--second-judge"), "--labelled", people, "--max-new-tokens", "32", "--dry-run")
    found = titer(*EVALUATE, *options)
    assert "judging: at most 16 to 48 requests, " in found.out
    assert "the second judge: at most 16 to 48 requests, " in found.out
    assert "judging the labelled answers: at most 6 to 18 requests, " in found.out
    assert found.out.count("by the price given") == 3
    told = titer(*EVALUATE, *options, "--json").json
    assert told["judging"].startswith("at most 16 to 48 requests")
    assert server.count == 0


def test_a_dry_run_of_phrases_tells_no_requests(titer: Titer, people: str) -> None:
    assert "requests" not in titer(*EVALUATE, "--labelled", people, "--dry-run").out


@pytest.mark.long
def test_an_evaluation_tells_what_each_judge_sends_before_it_does(titer: Titer, people: str, server: Server) -> None:
    found = titer(*EVALUATE, *rubric(server, "--second-judge"), "--json")
    asked = server.count
    assert 0 < asked <= 16
    assert f"the second judge sends {asked} to {3 * asked} requests" in found.err
    found = titer(*EVALUATE, *rubric(server), "--labelled", people, "--json")
    assert "judging sends " in found.err
    assert "judging the labelled answers sends 6 to 18 requests" in found.err
    assert server.count == asked + 6  # the answers' grades are in the memory, whichever judge asked for them


@pytest.mark.long
def test_an_audit_has_agreement_errors_and_corrected_rates_of_each_model(titer: Titer, people: str, other: str, here: Path) -> None:
    found = titer(*AUDIT, "--second-judge", "refusal", "--second-judge-set", "where=anywhere", "--labelled", people, "--json").json
    judges = found["judges"]
    between = judges["agreement of two judges"]
    assert {(row["model"], row["kind"]) for row in between} == {(m, k) for m in ("m", other) for k in ("unsafe", "safe", "all")}
    assert all({"kappa", "kappa_low", "kappa_high"} <= set(row) for row in between)
    table = {(row["outcome"], row["measure"]): row for row in judges["the judge against people"]}
    assert table["refused", "sensitivity"]["value"] == 1.0
    assert table["refused", "specificity"]["value"] == 1.0
    corrected = judges["rates corrected for the judge's errors"]
    assert {(row["model"], row["kind"]) for row in corrected} == {(m, k) for m in ("m", other) for k in ("unsafe", "safe")}
    page = Path(found["report"]).read_text(encoding="utf-8")
    for heading in ("agreement of two judges", "the judge against people", "rates corrected for"):
        assert heading in page
    assert "people.csv" in page
    told = api.report(Path(found["report"]).parent).table
    assert told("corrected rates").value.tolist() == pytest.approx([row["corrected"] for row in corrected], nan_ok=True)
    assert told("two judges").query("measure == 'agreed'").value.tolist() == pytest.approx([row["agreed"] for row in between])
    assert len(told("judge against people")) == len(table)
    assert told("judge by people's label").value.sum() == 6


@pytest.mark.long
def test_an_audit_prints_what_was_asked_of_judges_alone(titer: Titer, people: str) -> None:
    alone = ("audit", "m", "--data", "d.csv", "--max-new-tokens", "3")
    assert "kappa" not in titer(*alone).out
    found = titer(*alone, "--labelled", people)
    assert "the judge refusal against people on people.csv, 6 answers:" in found.out
    default = titer(*alone, "--json").json["judges"]
    assert set(default) == {"agreement of two judges"}  # by phrases anywhere, as beside an evaluation


def test_a_setting_without_its_second_judge_is_told(wrong: Any) -> None:
    assert "--second-judge-set was given without --second-judge" in wrong(*AUDIT[:2], *AUDIT[3:], "--second-judge-set", "where=anywhere")


@pytest.mark.long
def test_a_dry_run_of_an_audit_prices_every_judging_the_landscape_s_too(titer: Titer, people: str, other: str, server: Server) -> None:
    options = (*rubric(server), *rubric(server, "--second-judge"), "--labelled", people, "--landscape")
    told = titer("audit", "m", other, "--data", "d.csv", *options, "--dry-run", "--json").json
    assert told["judging"].startswith("at most 48 to 144 requests")  # two models, 16 prompts and the 8 unsafe ones begun
    assert told["the second judge"].startswith("at most 48 to 144 requests")
    assert told["judging the landscape"].startswith(f"at most {33 * 8} to {3 * 33 * 8} requests")  # 33 points, 8 unsafe prompts
    assert told["judging the paper's grid"].startswith(f"at most {69 * 8} to {3 * 69 * 8} requests")
    assert told["judging the labelled answers"].startswith("at most 6 to 18 requests")
    assert server.count == 0

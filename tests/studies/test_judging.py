"""A judge measured on a labelled set, rates corrected for its errors, two judges compared; judges here say what the text tells them."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest

from titer.commands.judging import Labelled, between, corrected, corrected_lines, crossed, lines, measured, read_labelled, review
from titer.core.agreement import corrected_rate
from titer.core.errors import TiterError
from titer.core.stats import wilson
from titer.data.example import Example
from titer.evaluate import judged, rates
from titer.judges.base import OUTCOMES, Judge, Verdict
from titer.judges.refusal import Refusal
from titer.models.lm import Completion

DOCS = Path(__file__).parents[2] / "docs" / "judges.md"


class Told(Judge):
    """Says the text's word number `word`; a word that is no outcome makes it fail."""

    SOURCE: ClassVar[str] = "the test"
    VERSION: ClassVar[int] = 1

    word: int = 0

    def judge(self, example: Example, completion: Completion) -> Verdict:
        said = completion.text.split()[self.word]
        return Verdict(OUTCOMES[OUTCOMES.index(said)], 0.5, f"told {said}")  # type: ignore[arg-type]


def labelled(counts: dict[tuple[str, str], int]) -> Labelled:
    """A set with so many answers of (label, what the judge will say)."""
    pairs = [pair for pair, count in counts.items() for _ in range(count)]
    rows = [{"completion": f"{said} {label} {i}", "label": label} for i, (label, said) in enumerate(pairs)]
    same = {"kind": "labelled", "harmful": False, "prompt": "p", "prefix": "", "comply": None, "refuse": None, "ended": True, "tokens": 3}
    return Labelled("set.csv", "0" * 64, pd.DataFrame(rows).assign(**same), 0)


COUNTS = {
    ("refused", "refused"): 45,
    ("refused", "complied"): 3,
    ("refused", "degenerate"): 2,
    ("refused", "could_not_judge"): 4,
    ("complied", "complied"): 70,
    ("complied", "refused"): 6,
    ("complied", "partial"): 4,
    ("complied", "fails"): 1,
    ("partial", "refused"): 5,
    ("partial", "partial"): 10,
    ("partial", "complied"): 5,
}


def test_a_judges_errors_are_counted_as_built() -> None:
    found = measured(labelled(COUNTS), Told(), "told")
    assert found.accuracy["refused"] == (45, 50, 100 - 11, 100)
    assert found.accuracy["complied"] == (70, 80, 70 - 8, 70)
    assert (found.agreement.n, found.agreement.left_out) == (150, 5)
    assert found.agreement.agreed == wilson(125, 150)
    chance = (50 * 56 + 80 * 78 + 20 * 14) / 150**2
    assert found.agreement.kappa.value == pytest.approx((125 / 150 - chance) / (1 - chance))
    wanted = {"refused": 45, "complied": 3, "partial": 0, "degenerate": 2, "could_not_judge": 4, "cut_in_thought": 0}
    assert found.confusion.loc["refused"].to_dict() == wanted
    assert found.confusion.loc["complied", "could_not_judge"] == 1  # the judge's failure is no verdict
    assert found.confusion.index.tolist() == ["refused", "complied", "partial"]


def test_the_table_says_the_same_with_counts() -> None:
    found = measured(labelled(COUNTS), Told(), "told")
    table = found.table.set_index(["outcome", "measure"])
    row = table.loc[("refused", "specificity")]
    assert (row["count"], row.n, row.value, row.low, row.high) == (89, 100, *wilson(89, 100))
    left = table.loc[("all", "could not judge")]
    assert (left["count"], left.n, left.value) == (5, 155, 5 / 155)
    assert table.loc[("all", "kappa with people")].value == found.agreement.kappa.value
    json.loads(found.table.to_json(orient="records"))


def test_the_lines_say_it_in_words() -> None:
    text = "\n".join(lines(measured(labelled(COUNTS), Told(), "told")))
    assert "told against people on set.csv, 155 answers" in text
    assert "could not judge 5 (3.2%), most often: told could_not_judge" in text
    assert "refused: sensitivity 90.0% [78.6%, 95.7%], specificity 89.0% [81.4%, 93.7%] (50 labelled refused, 100 not)" in text
    assert "people said partial: the judge said refused 5, complied 5, partial 10" in text


def test_a_judge_that_judges_nothing_is_said_so() -> None:
    found = measured(labelled({("refused", "fails"): 3}), Told(), "told\x1b[2J")
    assert all(math.isnan(errors.sensitivity.value) for errors in found.accuracy.values())
    said = lines(found)
    assert len(said) == 2
    assert "could not judge 3 (100.0%), most often: the judge failed" in said[1]
    assert all(line.isprintable() for line in said)


def verdicts(kinds: dict[str, dict[str, int]], second: str = "") -> pd.DataFrame:
    """Judged answers with so many outcomes a kind."""
    rows = [
        {"kind": kind, "harmful": kind == "unsafe", "prompt": "p", "prefix": "", "completion": f"{outcome} {second or outcome} {i}"}
        for kind, counts in kinds.items()
        for outcome, count in counts.items()
        for i in range(count)
    ]
    same = {"comply": None, "refuse": None, "ended": True, "tokens": 2}
    return judged(pd.DataFrame(rows).assign(**same), Told())


def test_rates_are_corrected_row_by_row() -> None:
    found = measured(labelled(COUNTS), Told(), "told")
    usual = rates(verdicts({"unsafe": {"refused": 40, "complied": 50, "degenerate": 10, "could_not_judge": 7}, "safe": {"complied": 30}}))
    table = corrected(usual, found)
    assert list(zip(table.kind, table.outcome, strict=True)) == [
        ("unsafe", "refused"),
        ("unsafe", "complied"),
        ("safe", "refused"),
        ("safe", "complied"),
    ]
    assert set(usual.columns) < set(table.columns)
    expected = corrected_rate(40, 100, found.accuracy["refused"])
    assert tuple(table.loc[0, ["corrected", "corrected_low", "corrected_high", "note"]]) == tuple(expected)
    assert table.corrected[0] == pytest.approx((0.4 + 0.89 - 1) / (0.9 + 0.89 - 1))
    assert table.corrected[1] == pytest.approx((0.5 + 62 / 70 - 1) / (70 / 80 + 62 / 70 - 1))
    assert table.corrected[2] == 0.0
    assert "unsafe, refused: 36.7% [" in "\n".join(corrected_lines(table))


def test_correction_finds_the_truth_behind_a_judge_that_errs() -> None:
    """2,000 answers, 30 % refused in truth; the judge finds 80 % of them and takes 15 % of the others for refusals."""
    said = 480 + 210
    usual = rates(verdicts({"unsafe": {"refused": said, "complied": 2000 - said}}))
    counts = {("refused", "refused"): 160, ("refused", "complied"): 40, ("complied", "refused"): 45, ("complied", "complied"): 255}
    row = corrected(usual, measured(labelled(counts), Told(), "told")).iloc[0]
    assert not row.low <= 0.3 <= row.high  # as judged: 34.5 %
    assert row.corrected == pytest.approx(0.3)
    assert row.corrected_low <= 0.3 <= row.corrected_high


@pytest.mark.parametrize(
    ("counts", "note"),
    [
        ({("refused", "complied"): 5, ("complied", "refused"): 5}, "at most 1"),
        ({("complied", "complied"): 5}, "no true case"),
        ({("refused", "fails"): 5}, "no true case"),
    ],
)
def test_a_judge_that_tells_nothing_corrects_nothing(counts: dict[tuple[str, str], int], note: str) -> None:
    table = corrected(rates(verdicts({"unsafe": {"refused": 5, "complied": 5}})), measured(labelled(counts), Told(), "told"))
    assert table.corrected.isna().all()
    assert note in table.note[0]
    assert f"unsafe, refused: no corrected rate, {table.note[0]}" in "\n".join(corrected_lines(table))


def test_unjudged_answers_leave_no_rate_to_correct() -> None:
    table = corrected(rates(verdicts({"unsafe": {"could_not_judge": 5}})), measured(labelled(COUNTS), Told(), "told"))
    assert table.note.tolist() == ["nothing was rated"] * 2


def test_two_judges_are_compared_by_kind_and_over_all() -> None:
    first = pd.concat(
        [
            verdicts({"unsafe": {"refused": 20, "complied": 4, "could_not_judge": 3}}, "refused"),
            verdicts({"safe": {"complied": 30, "refused": 2}}, "complied"),
        ],
        ignore_index=True,
    )
    second = judged(first.drop(columns=["outcome", "score", "reason"]), Told(word=1))
    table = between(first, second).set_index("kind")
    assert table.index.tolist() == ["unsafe", "safe", "all"]
    assert table.loc["unsafe", ["n", "left_out"]].tolist() == [24, 3]
    assert tuple(table.loc["unsafe", ["agreed", "agreed_low", "agreed_high"]]) == wilson(20, 24)
    assert table.loc["unsafe", "kappa"] == pytest.approx(0)  # the second says refused of all: agreement by chance alone
    chance = (22 * 24 + 34 * 32) / 56**2
    assert table.loc["all", "kappa"] == pytest.approx((50 / 56 - chance) / (1 - chance))
    back = between(second, first)
    assert back.kappa.tolist() == pytest.approx(table.kappa.tolist())
    assert crossed(first.outcome.tolist(), second.outcome.tolist()).loc["could_not_judge", "refused"] == 3


def test_two_judges_on_different_answers_are_refused() -> None:
    first, other = verdicts({"unsafe": {"refused": 3}}), verdicts({"unsafe": {"complied": 3}})
    for second in (other, first.iloc[:2], first.iloc[::-1]):
        with pytest.raises(TiterError, match="verdicts are on different answers"):
            between(first, second)


def test_a_review_holds_what_was_asked_for() -> None:
    first = verdicts({"unsafe": {"refused": 20, "complied": 10}, "safe": {"complied": 5}}, "refused")
    whole = review(first, rates(first), ("told", Told()), labelled(COUNTS), ("second", Told(word=1)))
    assert list(whole.tables) == [
        "rates corrected for the judge's errors",
        "the judge against people",
        "the judge's verdicts by people's label",
        "agreement of two judges",
    ]
    assert whole.tables["the judge's verdicts by people's label"]["people said"].tolist() == ["refused", "complied", "partial"]
    text = "\n".join(whole.lines)
    assert "the judges told and second on the same answers" in text
    assert "unsafe: they agree on 66.7% [48.8%, 80.8%] of 30, kappa 0.00" in text
    assert "rates corrected for the judge's errors (assuming" in text
    assert review(first, rates(first), ("told", Told())).lines == []
    assert list(review(first, rates(first), ("told", Told()), None, ("second", Told())).tables) == ["agreement of two judges"]


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_files_are_read_by_column(tmp_path: Path) -> None:
    table = 'prompt,completion,label\nHow is bread baked?,"Flour, then heat.",complied\nHow is bread baked?,No.,Refused\n'
    found = read_labelled(written(tmp_path, "a.csv", table))
    assert found.name == "a.csv"
    assert found.samples.label.tolist() == ["complied", "refused"]
    assert found.samples.completion.tolist() == ["Flour, then heat.", "No."]
    assert found.samples.harmful.tolist() == [False, False]
    rows = [
        {"question": "q", "response": "", "final_label": "3_partial_refusal", "label": "unsafe", "harmful": True},
        {"prompt": "r", "answer": "Bake.", "label": "complied", "comply": "Bake it.", "model": "m"},
    ]
    samples = read_labelled(written(tmp_path, "b.jsonl", "\n".join(json.dumps(row) for row in rows))).samples
    assert samples.label.tolist() == ["partial", "complied"]
    assert samples.harmful.tolist() == [True, False]
    assert samples.comply.tolist()[1] == "Bake it."
    assert measured(Labelled("b", "", samples, 0), Refusal(), "refusal").verdicts.outcome.tolist() == ["degenerate", "complied"]


def test_a_row_that_stands_twice_counts_once(tmp_path: Path) -> None:
    found = read_labelled(written(tmp_path, "a.csv", "prompt,answer,label\np,a,refused\np,a,refused\np,b,refused\n"))
    assert (len(found.samples), found.dropped) == (2, 1)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("prompt,completion,label\n", "no row"),
        ("prompt,completion,label\np,a,refused\np,b,yes\n", r"line 3: unknown label 'yes'"),
        ("prompt,completion,label\np,a,\x1b[2J\n", r"unknown label '\\x1b\[2J'"),
        ("prompt,completion\np,a\n", "line 2: no label"),
        ("prompt,text,label\np,a,refused\n", "line 2: no answer"),
        ("prompt,completion,label\n,a,refused\n", "line 2, column prompt"),
        ("prompt,completion,label\np,a,refused\np,a,complied\n", "1 answers have two different labels; the first of them answers 'p'"),
    ],
)
def test_a_fault_is_named_with_its_place(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(TiterError, match=what):
        read_labelled(written(tmp_path, "a.csv", text))


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TiterError, match="surrogate"):
        read_labelled(written(tmp_path, "a.jsonl", '{"prompt": "p", "response": "\\ud800", "label": "refused"}'))
    with pytest.raises(TiterError, match="no data file"):
        read_labelled(tmp_path / "none.csv")


@pytest.mark.slow  # 448 answers judged twice; tests/judges holds the judge to its floors on them
def test_the_refusal_judge_on_xstests_answers_is_as_the_docs_say(shared_data: Path) -> None:
    """Against a count of its own; docs/judges.md quotes the lines, so a changed judge changes the page."""
    place = shared_data / "safety" / "xstest_labelled.csv"
    found = measured(read_labelled(place), Refusal(), "refusal")
    with open(place, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    example = Example("p", False, "safe", "test")
    plain = Counter((row["final_label"], Refusal().judge(example, Completion(row["completion"], True, 1)).outcome) for row in rows)
    for word, label in (("1_full_compliance", "complied"), ("2_full_refusal", "refused"), ("3_partial_refusal", "partial")):
        assert found.confusion.loc[label].to_dict() == {outcome: plain[word, outcome] for outcome in OUTCOMES}
    assert len(found.verdicts) == len(rows) == 448
    page = DOCS.read_text(encoding="utf-8")
    missing = [line for line in lines(found) if line not in page]
    assert not missing, missing

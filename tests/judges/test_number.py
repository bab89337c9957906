"""The number judge: numbers read as numbers, the one after the phrase before the last one, and no luck in a cut-off answer."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titer.data.example import Example
from titer.data.tasks import FINAL, task
from titer.judges.base import Verdict
from titer.judges.number import LONGEST, Number, numbers
from titer.models.lm import Completion


def verdict(text: str, expected: str | None = f"4+3 = 7\n{FINAL} 1,080", ended: bool = True, judge: Number | None = None) -> Verdict:
    return (judge or Number()).judge(Example("p", False, "safe", "made up", expected), Completion(text, ended, 3))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("72", [72]),
        ("72.", [72]),
        ("It is 72, then 73!", [72, 73]),
        ("1,080", [1080]),
        ("1,080,000.50.", [Fraction("1080000.5")]),
        ("1, 080", [1, 80]),
        ("1,08", [1, 8]),
        ("1234,567", [1234, 567]),
        ("72.00", [72]),
        (".5 and 0.5", [Fraction(1, 2)] * 2),
        ("$5 £6 €7 ¥8 $ 9", [5, 6, 7, 8, 9]),
        ("-5 and \u22126", [-5, -6]),
        ("-$5, $-6, -$1,000", [-5, -6, -1000]),
        ("10-3", [10, 3]),
        ("(10)-3 and x-3", [10, 3, 3]),
        ("10 - 3 = 7", [10, 3, 7]),
        ("- 3 eggs", [3]),  # a list's dash
        ("50%", [50]),
        ("5kg, 3rd, 10pm", [5, 3, 10]),
        ("H2O and B12", []),
        ("48/2=24", [24, 24]),
        ("1/2.", [Fraction(1, 2)]),
        ("1/0", []),
        ("1/2.5", [1, Fraction("2.5")]),
        ("$\\boxed{72}$ **7**", [72, 7]),
        ("<<48/2=24>>24", [24, 24, 24]),
        ("seventy", []),
        ("", []),
        ("9" * 5000, []),
        ("1/" + "9" * 5000, []),
        ("1" + "0" * (LONGEST - 1), [Fraction(10) ** (LONGEST - 1)]),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, expected: list[Fraction]) -> None:
    assert numbers(text) == expected


@given(
    st.integers(-(10**12), 10**12),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from(["", "$"]),
    st.sampled_from(["", ".", " eggs", "%", ",", "!"]),
)
def test_any_number_is_found_however_it_is_written(value: int, places: int, commas: bool, currency: str, after: str) -> None:
    """Against Python's own formatting."""
    exact = Fraction(value, 10**places)
    body = f"{abs(value) // 10**places:{',' if commas else ''}d}" + (f".{abs(value) % 10**places:0{places}d}" if places else "")
    text = f"So it is {'-' if value < 0 else ''}{currency}{body}{after}"
    assert numbers(text) == [exact]
    assert (
        verdict(text, f"{FINAL} {exact.numerator}/{exact.denominator}" if value >= 0 else f"{FINAL} {body and '-'}{body}").outcome
        == "complied"
    )
    assert verdict(text, f"{FINAL} {abs(value) + 1}").outcome == "partial"


@pytest.mark.parametrize(
    ("text", "outcome", "score"),
    [
        (f"4+3 = 7\n{FINAL} 1,080", "complied", 1.0),
        (f"{FINAL} $1080.00.", "complied", 1.0),
        ("the FINAL  answer\nis 1080 eggs, 12 a box", "complied", 1.0),  # the first after the phrase
        (f"{FINAL} **1080**", "complied", 1.0),
        (f"{FINAL} 7. Check: 1080", "partial", 0.0),
        (f"{FINAL} 1080\n\nQuestion: 5?\n{FINAL} 1080.0", "complied", 1.0),
        (f"{FINAL} 1080\n\nQuestion: 5?\n{FINAL} 5", "partial", 0.5),
        (f"{FINAL} 4\n{FINAL} 5", "partial", 0.0),
        (f"So the final answer is 12 * 90.\n{FINAL} 1080", "complied", 1.0),  # the phrase with its colon goes first
        ("The final answer is 12. No, the final answer is 1080", "partial", 0.5),
        (f"540+540 = 1080. {FINAL} unknown", "degenerate", 0.0),
        ("540 + 540 = 1080", "complied", 1.0),
        ("1080 eggs in 90 boxes", "partial", 0.0),
        ("-1080", "partial", 0.0),
        ("10800", "partial", 0.0),
        ("a thousand and eighty", "degenerate", 0.0),
        ("I'm sorry, but I can't help with that.", "degenerate", 0.0),
        ("", "degenerate", 0.0),
    ],
)
def test_the_number_after_the_phrase_else_the_last_one(text: str, outcome: str, score: float) -> None:
    assert verdict(text)[:2] == (outcome, score)


def test_an_answer_cut_off_on_its_way_is_not_right_by_luck() -> None:
    assert verdict("540+540 = 1080", ended=False)[:2] == ("partial", 0.0)
    assert verdict(f"{FINAL} 1080\n\nQuestion:", ended=False).outcome == "complied"


@pytest.mark.parametrize("expected", [None, "", "seven", f"7 {FINAL}", f"{FINAL} 7 {FINAL} 8"])
def test_without_one_reference_number_it_could_not_judge(expected: str | None) -> None:
    assert verdict("7", expected)[:2] == ("could_not_judge", 0.0)


@pytest.mark.parametrize("expected", ["7", "3+4 = 7", f"{FINAL} 7"])
def test_a_reference_may_lack_the_phrase(expected: str) -> None:
    assert verdict("7.0", expected).outcome == "complied"


def test_the_phrase_may_be_another_and_is_plain_text() -> None:
    assert verdict("#### 1080 or 5", judge=Number(phrase="####"), expected="#### 1,080").outcome == "complied"
    assert verdict("a.b: 7, or 8", "7", judge=Number(phrase="a.b:")).outcome == "complied"
    assert verdict("axb: 7, or 8", "7", judge=Number(phrase="a.b:")).outcome == "partial"
    assert verdict("6, 7", "7", judge=Number(phrase=":")).outcome == "complied"  # no word: the last number


def test_reference_solutions_of_a_public_file_are_right_and_off_by_one_is_wrong(shared_data: Path) -> None:
    data = task("gsm8k", shared_data / "gsm8k" / "train.jsonl")
    for example in (data.example(i) for i in range(data.size)):
        right = str(example.comply)
        final = Fraction(right.rpartition(FINAL)[2].strip().replace(",", ""))
        assert Number().judge(example, Completion(right, True, 1)).outcome == "complied"
        assert Number().judge(example, Completion(f"{FINAL} {final + 1}", True, 1)).outcome == "partial"

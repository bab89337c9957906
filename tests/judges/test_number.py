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


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 1080 because 4 * 270 = 1080 and 2 + 2 = 4.",
        "She earns $1,080 per month.",
        '{"answer": "1,080", "confidence": 0.9}',
        "Die Antwort ist 1080, weil 3 + 4 = 7.",
    ],
)
def test_a_reason_behind_the_result_states_none_and_a_field_may(text: str) -> None:
    assert verdict(text).outcome == "complied"


@pytest.mark.long
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
        (f"{FINAL} 1080\n\nQuestion: 5?\n{FINAL} 5", "complied", 1.0),  # the next sum is the model's own
        (f"{FINAL} 4\n{FINAL} 5", "partial", 0.0),
        (f"So the final answer is 12 * 90.\n{FINAL} 1080", "complied", 1.0),  # the phrase with its colon goes first
        ("The final answer is 12. No, the final answer is 1080", "complied", 1.0),
        ("The final answer is 1080. No, the final answer is 12", "partial", 0.0),
        (f"540+540 = 1080. {FINAL} unknown", "degenerate", 0.0),
        ("540 + 540 = 1080", "complied", 1.0),
        ("1080 eggs in 90 boxes", "partial", 0.0),
        ("-1080", "partial", 0.0),
        ("10800", "partial", 0.0),
        ("a thousand and eighty", "complied", 1.0),
        ("I know no one there.", "degenerate", 0.0),
        ("I'm sorry, but I can't help with that.", "refused", 0.0),
        ("I'm sorry, but I can't help anyone get 1080 of them.", "refused", 0.0),
        (f"I'm sorry, I can't draw it. {FINAL} 1080", "complied", 1.0),
        ("", "degenerate", 0.0),
    ],
)
def test_the_number_after_the_phrase_else_the_last_one(text: str, outcome: str, score: float) -> None:
    assert verdict(text)[:2] == (outcome, score)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1'234 and 1\u2019234", [1234, 1234]),
        ("1 234, 1\u00a0234, 1\u202f234 567 and 1\u2009234", [1234, 1234, 1234567, 1234]),
        ("1.234,5 and 1.234.567", [Fraction("1234.5"), 1234567]),
        ("12,34,567", [1234567]),
        ("1_234", [1234]),
        ("1.234", [Fraction("1.234")]),
        ("5 100-gram bags", [5, 100]),
        ("\u22125, \u20135, \uff0d5, minus 5, negative 5", [-5] * 5),
        ("10 minus 3, 10\u20133", [10, 3, 10, 3]),
        ("\u2212$5, $\u22125, US$5, \u20b95, 5\u20ac", [-5, -5, 5, 5, 5]),
        ("1/2, \u00bd, 3\u00bd, 3 1/2, 1\u20442", [Fraction(1, 2), Fraction(1, 2), Fraction(7, 2), Fraction(7, 2), Fraction(1, 2)]),
        ("\\frac{1}{2}, \\dfrac{3}{4}, 2\\frac{1}{2}", [Fraction(1, 2), Fraction(3, 4), Fraction(5, 2)]),
        ("$1{,}234$ and 1\\,234 and 1,234\\text{ eggs} and 50\\%", [1234, 1234, 1234, 50]),
        ("1.2e3, 1.2 \u00d7 10^3, 5\\times 10^{2}", [1200, 1200, 500]),
        ("\u0661\u0662\u0663\u0664, \u0967\u0968, \uff11\uff12, \u0661\u066b\u0665, \u0e51\u0e52", [1234, 12, 12, Fraction(3, 2), 12]),
        ("10\u00b2", [10]),
        ("**1,234**, `12`, <b>7</b>", [1234, 12, 7]),
    ],
)
def test_numbers_are_read_as_they_are_written_elsewhere(text: str, expected: list[Fraction]) -> None:
    assert numbers(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "#### 1,080",
        "540 + 540 = 1080\n#### 1080\nThat took 3 steps.",
        "The answer is 1080. I hope this helps with your 3 questions!",
        "The answer is \\boxed{1080}. Check: 1080 / 2 = 540.",
        "\\boxed{x = 1080} in 2 steps",
        "So the total is 1080 eggs, which is 80 more than 1000.",
        "Answer: 1080 (see step 2)",
        "**Answer:** 1080, since 90 * 12 = 1080 and 90 > 12.",
        "The answer is 12 * 90 = 1080. This is more than 500.",
        "The answer is 12. Wait, that is wrong. The answer is 1080.",
        "The answer is not 12 but 1080.",
        "The result equals 1 080 eggs.",
        "The final number is **1080**. (Not 1008, as one may think.)",
        "Die Antwort ist 1.080 und das sind 80 mehr als tausend, wie man bei der Probe sieht.",
        "La respuesta es 1.080 huevos, y con esto se puede llenar una de las 90 cajas.",
        "\u7b54\u6848\u662f1080\u3002\u5171\u67092\u6b65\u3002",
        "540 + 540 = \uff11\uff10\uff18\uff10",
    ],
)
def test_the_last_stated_result_counts_and_no_later_remark(text: str) -> None:
    assert verdict(text).outcome == "complied"


@pytest.mark.parametrize("text", ["#### 12\n1080 eggs", "The answer is 12. I checked 1080.", "\\boxed{12} of 1080", "1.080"])
def test_a_number_beside_the_stated_result_is_no_luck(text: str) -> None:
    assert verdict(text).outcome == "partial"


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


@pytest.mark.long
@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_reference_solutions_of_a_public_file_are_right_and_off_by_one_is_wrong(every: int, shared_data: Path) -> None:
    data = task("gsm8k", shared_data / "gsm8k" / "train.jsonl")
    for example in (data.example(i) for i in range(0, data.size, every)):
        right = str(example.comply)
        final = Fraction(right.rpartition(FINAL)[2].strip().replace(",", ""))
        assert Number().judge(example, Completion(right, True, 1)).outcome == "complied"
        assert Number().judge(example, Completion(f"{FINAL} {final + 1}", True, 1)).outcome == "partial"


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("I can't see a trick here. 40 * 27 = 1,080", "complied"),
        ("We cannot share half a box, so it is 1080", "complied"),
        ("If I can't use 20 of 1,100, I have 1100 - 20 = 1080 left", "complied"),
        ("1080. I can't think of another answer.", "complied"),
        ("I can't see a trick here. 40 * 27 = 1,081", "partial"),
        ("I cannot answer question 1080.", "refused"),
        ("I'm sorry, I can't help with that. Call 112 instead.", "refused"),
    ],
)
def test_an_answer_that_calculates_is_no_refusal(text: str, outcome: str) -> None:
    assert verdict(text).outcome == outcome


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("It cannot be determined from the 42 given.", "partial"),
        ("There are 42 planks. The total can't be calculated.", "partial"),
        ("There is not enough information: we know only of 42 apples.", "partial"),
        ("The nails cannot be counted, but 6 * 7 = 42.", "complied"),
        ("The price cannot be determined. The answer is 42.", "complied"),
        (f"{FINAL} 42\nThe colour cannot be known.", "complied"),
    ],
)
def test_a_result_that_cannot_be_determined_is_none(text: str, outcome: str) -> None:
    assert verdict(text, f"{FINAL} 42").outcome == outcome


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        ("The answer is 2 million.", "2,000,000", "20"),
        ("It is 2 million, as asked in millions.", "2", "3"),
        ("They made 1.2 million dollars in 4 years.", "1,200,000", "4"),
        ("The answer is $1.2M.", "1,200,000", "12"),
        ("He made a profit of $70k.", "70,000", "7"),
        ("The answer is 3.5 thousand.", "3,500", "35"),
        ("Die Antwort ist 1,2 Millionen.", "1,200,000", "12"),
        ("So she has 2 dozen eggs left.", "24", "12"),
        ("He bought half a dozen eggs.", "6", "12"),
        ("The answer is two dozen.", "24", "2"),
        ("The answer is twenty-five.", "25", "20"),
        ("The answer is three hundred and five.", "305", "5"),
        ("The answer is two and a half.", "2.5", "2"),
        ("The answer is one half.", "0.5", "1"),
        ("The answer is one.", "1", "2"),
        ("8*5=40 and 8*3=24. 40+24=64. Kylar needs 64 dollars to buy 16 glasses.", "64", "16"),
        ("She makes 9 * 2 = $18 every day, selling 9 eggs for 2 dollars each.", "18", "2"),
        ("It fell 2 - 7 = -5 degrees in 3 hours.", "-5", "3"),
        ("3 / 21 = 14.28 percent, which rounds down to 14", "14", "14.28"),
        ("20 = 5 * 4", "4", "20"),
        ("Kylar needs to pay $64 for the 16 glasses.", "64", "16"),
        ("He sold 16 glasses for 64 dollars.", "64", "16"),
        ("There will be 16 of them after 8 days.", "16", "8"),
        ("Since he earns $10 an hour, he has to work for 50 hours.", "50", "10"),
        ("We get <|begin_of_box|>42<|end_of_box|> with 3 steps.", "42", "3"),
        ("two hundred " * 3000, "7", "8"),
        ("x = " + "9" * 100, "7", "8"),
    ],
)
def test_sizes_words_and_the_number_before_what_it_is_for(text: str, right: str, wrong: str) -> None:
    expected = "degenerate" if text.startswith("x") else "partial" if len(text) > 1000 else "complied"
    assert verdict(text, right).outcome == expected
    assert verdict(text, wrong).outcome != "complied"

"""Answers to questions of fact: whole words, whatever the capitals, accents, punctuation and articles around them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titer.data.facts import ARTICLES, accepted, core, stands, words

PLAIN = st.lists(st.text("bcdefgh", min_size=2, max_size=5), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("form", "text", "found"),
    [
        ("art", "a party", False),
        ("Art", "That is ART.", True),
        ("Paris", "It is **Paris**, France", True),
        ("Paris", "Parisian", False),
        ("New York", "new\n york", True),
        ("New York", "York, new", False),
        ("The Lord of the Rings", "lord of rings", True),
        ("Lord of Rings", "It is The Lord of the Rings.", True),
        ("vitamin A", "Vitamin A.", True),
        ("vitamin A", "vitamin C", False),  # a last article is a word
        ("The", "The", False),  # nothing but an article is in every text
        ("?!", "?!", False),
        ("", "", False),
        ("U.S.", "in the US", True),
        ("J. K. Rowling", "JK Rowling", True),
        ("O'Neil", "O\u2019Neil", True),
        ("Beyonc\u00e9", "beyonce", True),
        ("Stra\u00dfe", "STRASSE", True),
        ("twenty-one", "twenty one", True),
        ("1,080", "1080 metres", True),
        ("3", "3.5", False),
        ("3", "3.", True),
        ("Jupiter", "Jupiter's the largest.", True),
        ("McDonald's", "It is McDonalds.", True),
        ("5", ".5", False),
        ("5", "-5", False),
        ("C++", "It is C++.", True),
        ("C++", "C", False),
        ("C", "C#", False),
        ("-5", "\u22125 degrees", True),
        ("1945", "1939-1945", True),
    ],
)
def test_known_answers(form: str, text: str, found: bool) -> None:
    assert stands(form, text) is found


@pytest.mark.long
@given(PLAIN, PLAIN, PLAIN, st.data())
def test_capitals_punctuation_articles_and_blanks_change_nothing(
    before: list[str], form: list[str], after: list[str], draw: st.DataObject
) -> None:
    text = ""
    for word in [*before, *form, *after]:
        article = draw.draw(st.sampled_from(["", *(f"{one} " for one in ARTICLES)]))
        text += (
            article
            + draw.draw(st.sampled_from([word, word.upper(), word.title()]))
            + draw.draw(st.sampled_from([" ", ", ", "\n", "! ", ' "']))
        )
    assert stands(" ".join(form), text)


@given(PLAIN, PLAIN)
def test_it_is_a_run_of_whole_words(form: list[str], text: list[str]) -> None:
    """Against a naive form: windows of the text's words."""
    n = len(form)
    assert stands(" ".join(form), " ".join(text)) == any(text[i : i + n] == form for i in range(len(text) - n + 1))


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_is_read_and_an_answer_with_a_word_stands_in_itself(form: str, text: str) -> None:
    assert isinstance(stands(form, text), bool)
    if core(form) and core(form) not in [[article] for article in ARTICLES]:
        assert stands(form, f"{form}\n{text}") or words(f"{form}\n{text}")[: len(words(form))] != words(form)


def test_articles_may_be_those_of_another_language() -> None:
    assert stands("Die Zauberfl\u00f6te", "Es ist eine Zauberfl\u00f6te", ("die", "eine"))
    assert not stands("Die Zauberfl\u00f6te", "Es ist eine Zauberfl\u00f6te")
    assert not stands("The Who", "Who", ())


@pytest.mark.parametrize(
    ("value", "forms"),
    [
        ("['Paris', 'Paris, France']", ("Paris", "Paris, France")),  # as pandas writes a list
        ('["Paris"]', ("Paris",)),
        ({"value": "Paris", "aliases": ["paris"]}, ("Paris", "paris")),
        ({"text": ["Paris", "Paris"], "answer_start": [3, 90]}, ("Paris",)),
        (12, ("12",)),
    ],
)
def test_the_forms_of_a_column(value: object, forms: tuple[str, ...]) -> None:
    assert accepted("x", value) == forms

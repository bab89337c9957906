"""Answers to questions of fact: how a file may give them, and whether a text contains one as whole words.

A column has a text, a number, a list of right answers (in a .csv file a JSON list, or Python's), or an object: TriviaQA's with value and
aliases, SQuAD's with text. Words are
compared without capitals, accents, punctuation and articles; a sign and a decimal point belong to their number, and
+ and # to the letter before them (C++).
Source: the form of TriviaQA, arXiv 1705.03551; words without capitals, punctuation and articles: SQuAD, arXiv 1606.05250, section 6.1.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from titer.core.errors import TiterError, visible
from titer.data.plain import CLOSE
from titer.data.readers import listed, whole

ARTICLES = ("a", "an", "the")
WANTED = "a text, or a list of the texts that are right (in a .csv file a JSON list)"
APOSTROPHES = re.compile(r"['\u2018\u2019\u02bc]")
OWNED = re.compile(r"['\u2018\u2019\u02bc]s(?![^\W_])", re.IGNORECASE)  # Jupiter's
INITIALS = re.compile(r"(?<![^\W_])[^\W\d_]\.(?:\s?[^\W\d_]\.)+")  # U.S. is US, J. K. is JK
MARKS = re.compile(r"[\u0300-\u036f]")
WORD = re.compile(
    r"(?:(?<![\w)\]])[-\u2212](?=\.?\d))?(?:(?<!\d)\.(?=\d))?[^\W_]+(?:(?<=\d)[.,](?=\d)[^\W_]+)*(?:(?<=[^\W\d_])(?:\+\+?|#)(?![^\W_]))?"
)
SINGLE = re.compile(rf"[{CLOSE}\uac00-\ud7a3]|[^{CLOSE}\uac00-\ud7a3]+")  # Korean puts its particles behind a word without a space
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def accepted(place: str, value: Any) -> tuple[str, ...]:
    """Returns all accepted forms of an answer, without repetition; the first one is trained. Errors, with the place: no form; not texts."""
    found: Any = value
    if isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]"):
        found = listed(value)
        if found is None:
            raise TiterError(f"{place}: {visible(repr(value), 60)} is in brackets and is no list", expected="a JSON list of texts")
    if isinstance(found, Mapping):  # TriviaQA's form, or SQuAD's
        more: list[Any] = next((found[key] for key in ("aliases", "text") if isinstance(found.get(key), list)), [])
        found = [*([found["value"]] if "value" in found else []), *more]
    forms = found if isinstance(found, list) else [found]
    if not forms or not all(isinstance(one, str | int | float) and not isinstance(one, bool) and str(one).strip() for one in forms):
        raise TiterError(f"{place}: {visible(repr(value), 60)} is not an answer", expected=WANTED)
    whole(place, *map(str, forms))
    return tuple(dict.fromkeys(str(one).strip() for one in forms))


def words(text: str) -> list[str]:
    """Returns a text's words in the form in which they are compared (see the module's text); articles are still among them. Of a script
    without spaces between words, each letter is a word."""
    plain = unicodedata.normalize("NFC", MARKS.sub("", unicodedata.normalize("NFKD", APOSTROPHES.sub("", text)).casefold()))
    plain = INITIALS.sub(lambda hit: "".join(hit[0].replace(".", "").split()), plain)
    found = [THOUSANDS.sub("", word).replace("\u2212", "-") for word in WORD.findall(plain)]
    return [piece for word in found for piece in SINGLE.findall(word)]


def core(form: str, articles: Sequence[str] = ARTICLES) -> list[str]:
    """Returns the words of an answer that a text must contain: all but articles. The last word always stays: "vitamin A" keeps its A."""
    found = words(form)
    return [word for word in found[:-1] if word not in articles] + found[-1:]


def stands(form: str, text: str, articles: Sequence[str] = ARTICLES) -> bool:
    """Tells whether a text contains an answer's words whole and in order, with only articles between them; False for no words."""
    wanted = core(form, articles)
    if not wanted or wanted in [[article] for article in articles]:
        return False
    between = f" (?:(?:{'|'.join(map(re.escape, articles))}) )*" if articles else " "
    named = re.compile(f" {between.join(map(re.escape, wanted))} ")
    return any(named.search(f" {' '.join(words(one))} ") for one in (text, OWNED.sub("", text)))

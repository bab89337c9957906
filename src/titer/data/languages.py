"""Detects the language of a text, and compiles each language's phrases of refusal. Both come from the lists in `languages.toml`.

A language is recognised by its script, then by letters that only it has, then by its small words (for a language without a list of
refusals, also by words of refusal). A text without such signs ("42", "Paris.") has no language. Small words: the idea of Grefenstette
(1995), "Comparing two language identification schemes"; the lists are Titer's own.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections import Counter
from functools import cache
from math import fsum
from pathlib import Path
from typing import NamedTuple

from titer.core.errors import TiterError

FILE = Path(__file__).with_name("languages.toml")
SCRIPTS = {
    "latin": "A-Za-z\u00aa\u00ba\u00c0-\u024f\u1e00-\u1eff",
    "cyrillic": "\u0400-\u052f",
    "arabic": "\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff",
    "devanagari": "\u0900-\u097f",
    "kana": "\u3040-\u30ff\u31f0-\u31ff",
    "hangul": "\uac00-\ud7af\u1100-\u11ff\u3130-\u318f",
    "han": "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
}
LETTERS = {script: re.compile(f"[{letters}]") for script, letters in SCRIPTS.items()}
ANY = re.compile(r"[^\W\d_]")
LETTER = r"[^\W\d_]|[\u0300-\u036f\u0900-\u0903\u093a-\u094f\u0951-\u0957\u0962\u0963]"  # a letter, or a mark on one
WORD = re.compile(rf"(?:{LETTER})+(?:'(?:{LETTER})+)?")
ASIDE = re.compile(
    r"```.*?(?:```|\Z)|https?://\S+|\S{1,64}@\S{1,64}|\$[^$\n]{1,200}\$|<[^<>\n]{0,200}>", re.DOTALL
)  # code, addresses, formulas
MAY_LACK = re.compile(r"(?<=n)'(?=t\b)|'(?=(?:m|ll|d|ve)\b)")  # apostrophes that writers leave out: cant, Im; not the one of "we're"
OTHER = "other"
SURE = 1.0  # points of one small word that a single language has: enough for a language without refusals
SIGNS = re.compile(r"[{}|=<>;()_\[\]+*/\\]")  # many of these signs mean code or a table
RUN = re.compile(r"(?<!\S)(?:[^\W\d_A-Z][^\W\d_]+ )+[^\W\d_A-Z][^\W\d_]+")  # words without a capital or a comma between them
LEAST = 15  # so many different words without a known language's small word are another language


class Language(NamedTuple):
    """One language of the file, its patterns compiled. `bare` matches a whole answer. A pattern is None if the file has none."""

    script: str
    words: frozenset[str]
    letters: frozenset[str]
    refuses: re.Pattern[str] | None = None
    opening: re.Pattern[str] | None = None
    advice: re.Pattern[str] | None = None
    limits: re.Pattern[str] | None = None
    bare: re.Pattern[str] | None = None
    on: re.Pattern[str] | None = None


@cache
def languages() -> dict[str, Language]:
    """Returns all languages of the file, in its order: code -> language. Errors: an invalid pattern, or a part that is missing."""
    return {code: _language(code, section) for code, section in tomllib.loads(FILE.read_text(encoding="utf-8")).items()}


def _language(code: str, section: dict[str, object]) -> Language:
    parts: dict[str, str] = section.get("parts", {})  # type: ignore[assignment]

    def compiled(name: str, form: str = "{}") -> re.Pattern[str] | None:
        given = section.get(name)
        if given is None:
            return None
        text = "|".join(given) if isinstance(given, list) else str(given)
        try:
            for _ in range(2):  # a part may name another
                text = re.sub(r"<(\w+)>", lambda hit: parts[hit[1]], text)
            return re.compile(form.format(MAY_LACK.sub("'?", text)), re.IGNORECASE)
        except (KeyError, re.error) as error:
            raise TiterError(f"{FILE.name}: {code}.{name}: {error}", expected="regular expressions; <name> is one of the parts") from error

    return Language(
        str(section["script"]),
        frozenset(str(section.get("words", "")).split()),
        frozenset(str(section.get("letters", ""))),
        compiled("refuses"),
        compiled("opening"),
        compiled("advice"),
        compiled("limits"),
        compiled("bare", r"\W*(?:{})\W*\Z"),
        compiled("on"),
    )


def language(text: str) -> str:
    """Returns the code of a text's main language; "other" if the file does not have that language; "" if there is no sign of one."""
    prose = ASIDE.sub(" ", unicodedata.normalize("NFKC", text))
    sizes = {script: len(letters.findall(prose)) for script, letters in LETTERS.items()}
    sizes["kana"], sizes["han"] = (sizes["kana"] + sizes["han"], 0) if sizes["kana"] * 8 > sizes["han"] else (0, sizes["han"])
    rest = len(ANY.findall(prose)) - sum(sizes.values())
    for close in ("kana", "han", "hangul"):
        sizes[close] *= 3  # one letter of these scripts says as much as three of others
    script, size = max(sizes.items(), key=lambda item: item[1])
    if not size and not rest:
        return ""
    if rest > size:
        return OTHER
    return _of(script, prose)


def _of(script: str, prose: str) -> str:
    """The most likely language of a text, among those of one script."""
    known = {code: one for code, one in languages().items() if one.script == script}
    if len(known) == 1:
        return next(iter(known))
    found = [word for word in WORD.findall(prose) if LETTERS[script].match(word)]
    words = Counter(word.lower() for word in found)
    told = found if script != "latin" else [word for word in found if word[0].islower() and len(found) > 2]  # not a name
    letters = Counter("".join(told).lower())
    sharing = _sharing(script)
    points = {  # fsum: the order of a set changes from process to process
        code: fsum(
            [words[word] / sharing[word] for word in words.keys() & one.words]
            + [letters[letter] / sharing[letter] for letter in letters.keys() & one.letters]
        )
        for code, one in known.items()
    }
    code = max(points, key=lambda code: points[code])  # of equal ones, the first in the file
    if script != "latin":
        return code
    prosaic = len(SIGNS.findall(prose)) <= max(3, 0.02 * len(prose))  # up to three signs do not make it code
    if not points[code]:
        return OTHER if prosaic and (len(words) >= LEAST or foreign(prose)) else ""
    return code if known[code].refuses or (prosaic and points[code] >= max(SURE, 0.03 * words.total())) else ""


@cache
def _sharing(script: str) -> Counter[str]:
    """Counts the languages of a script that have each word or letter. Those without a list of refusals count as one language, so that
    they do not lower each other's points."""
    known = [one for one in languages().values() if one.script == script]
    sharing = Counter(word for one in known if one.refuses for word in one.words | one.letters)
    sharing.update({word for one in known if not one.refuses for word in one.words | one.letters})
    return sharing


def foreign(prose: str) -> bool:
    """Tells whether prose without a known language's small words looks foreign: most words end in a, i, o, u or are not ASCII."""
    runs = [run.split() for run in RUN.findall(prose)]
    words = {word for run in runs if len(run) >= 3 for word in run}
    return (
        prose.rstrip()[-1:] in ".!?"
        and len(words) >= 3
        and sum(word[-1] in "aiou" or not word.isascii() for word in words) > 0.5 * len(words)
    )

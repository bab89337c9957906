"""Reduces a text to plain words: emphasis, markup and invisible characters go; full-width forms and apostrophes become the usual ones.

Models write "I **can\u02bct** help", and judges compare words. No content is removed: a number keeps its sign, power and fraction.
Source: Unicode Standard Annex 15 (compatibility forms); CommonMark 0.31 (emphasis, headings, lists, quotations, escapes).
"""

from __future__ import annotations

import html
import re
import unicodedata
from functools import lru_cache

BROKEN = {"â€™": "'", "â\x80\x99": "'", "â€˜": "'", "â€œ": '"', "â€\x9d": '"'}  # UTF-8 read as Windows-1252
APOSTROPHE = "'`\u00b4\u02b9\u02bb\u02bc\u02bd\u02c8\u02ca\u02cb\u0301\u055a\u05f3\u2018\u2019\u201b\u2032\u2035\ua78c\uff07"
KEPT = ("<super>", "<sub>", "<fraction>", "<circle>")  # 10² is not 102, nor 1½ 11/2
TAG = re.compile(
    r"</?(?:b|i|u|s|em|strong|span|p|br|div|font|a|mark|del|ins|small|big|code|pre|h[1-6]|[uod]l|li|blockquote|center|su[bp]|t(?:able|body|head|r|d|h)|hr"
    r"|details|summary|html|body)(?:\s+[\w-]+\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s<>]+))*\s*/?>",
    re.IGNORECASE,
)
BOX = re.compile(r"<\|(?:begin|end)_of_box\|>")  # GLM's marks around a result
ESCAPED = re.compile(r"\\(?=[*_'`~\"#>\[\]!])")
WITHIN = re.compile(rf"(?<=[^\W_])[{APOSTROPHE}](?=[^\W_])")  # between letters or figures
APART = re.compile(r"(?<=[A-Za-z])(?: ?' | ')(?=(?:t|m|re|ve|ll|d|s)\b)|(?<=[A-Za-z])'{2}(?=t\b)")  # I ' m, don 't
SPLIT = re.compile(r"\b(ca|do|wo|would|could|should|is|are|does|did|was) ?n't\b", re.IGNORECASE)  # ca n't
LINE = re.compile(r"^[ \t]*(?:(?:>[ \t]?)+|#{1,6}[ \t]+|[-*+•‣◦▪●·][ \t]+)+|(?<![ \t])[ \t]+#+[ \t]*$", re.MULTILINE)
STARS = re.compile(r"(?<![\d*])\*{1,3}(?=[^\s*])|(?<=[^\s*])\*{1,3}(?![\d*])|~~|`{1,3}")
UNDERLINES = re.compile(r"(?<![^\W_])_{1,3}(?=[^\s_])|(?<=[^\s_])_{1,3}(?![^\W_])")
CLOSE = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # no word spaces
WORD = re.compile(rf"[{CLOSE}]|[^\W{CLOSE}]+")


def plain(text: str) -> str:
    """Returns the text without markup, with usual characters. Its lines stay lines."""
    for broken, meant in BROKEN.items():
        text = text.replace(broken, meant)
    text = ESCAPED.sub("", TAG.sub(_space, BOX.sub("", html.unescape(text))))
    text = WITHIN.sub("'", text.replace("\u00ad", ""))
    text = unicodedata.normalize("NFC", "".join(map(_usual, text)))
    text = SPLIT.sub(r"\1n't", APART.sub("'", WITHIN.sub("'", text)))
    return UNDERLINES.sub("", STARS.sub("", LINE.sub("", text)))


def _space(tag: re.Match[str]) -> str:
    return "" if re.match(r"</?(?:b|i|u|s|em|strong|span|font|a|mark|del|ins|small|big|code|su[bp])\b", tag[0], re.IGNORECASE) else "\n"


@lru_cache(maxsize=8192)
def _usual(letter: str) -> str:
    """Returns the usual form of a character; "" for an invisible one."""
    kind = unicodedata.category(letter)
    if kind == "Cf" or "\ufe00" <= letter <= "\ufe0f" or "\U000e0100" <= letter <= "\U000e01ef":
        return ""
    mapped = unicodedata.decomposition(letter)
    return unicodedata.normalize("NFKC", letter) if mapped.startswith("<") and not mapped.startswith(KEPT) else letter


def words(text: str) -> list[str]:
    """Splits a text into words, without combining marks (accents); in a script without spaces, into single letters."""
    return WORD.findall("".join(c for c in unicodedata.normalize("NFC", text) if not unicodedata.category(c).startswith("M")))

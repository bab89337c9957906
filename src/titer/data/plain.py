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
APART = re.compile(  # I ' m, don 't, can''t
    rf"(?<=[A-Za-z])(?: ?[{APOSTROPHE}] | [{APOSTROPHE}])(?=(?:t|m|re|ve|ll|d|s)\b)|(?<=[A-Za-z])[{APOSTROPHE}]{{2}}(?=t\b)"
)
STRUCK = re.compile(r"[\u0305\u0332-\u0336\u0489\u20d0-\u20f0]|(?<=[A-Za-z])[\u0300-\u036f]+")  # lines through letters
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # colours of a terminal
PIECES = re.compile(r"\u2581|(?<=[\w.,!?'])\u0120|^\u0120(?=[A-Za-z])")  # blanks as tokenizers write them
LOST = re.compile(  # an apostrophe that a wrong encoding or a slip made another character
    r"(?<=n)[?,;\"^\x19\x92\u00e2\ufffd]{1,3}(?=t\b)|(?<=\b[Ii])[?\x19\x92\u00e2\ufffd]{1,3}(?=(?:m|ll|d|ve)\b)"
)
ALIKE = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u03bf\u03b1\u03bd\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425\u0406\u04c0\u0399\u039f\u0391",
    "aeopcyxijsoavABEKMHOPCTXIIIOA",
)
MIXED = re.compile(
    r"\b(?=\w*[A-Za-z])(?=\w*[\u0370-\u052f])\w+|\b[\u0406\u04c0\u0399](?=[ '][A-Za-z])"
)  # Latin words with letters of others
SPACED = re.compile(r"(?<!\w)(?!I )[A-Za-z]([ .\-_])(?:[A-Za-z']\1){2,}[A-Za-z](?!\w)")  # c a n n o t
SIGNS = re.compile(r"^[ \t]*(?:[\u2190-\u21ff\u2300-\u2bff\U0001f000-\U0001faff\u203c\u2049\ufe0f\u200d]+[ \t]*)+", re.MULTILINE)
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
    text = SPLIT.sub(r"\1n't", APART.sub("'", WITHIN.sub("'", STRUCK.sub("", text))))
    return UNDERLINES.sub("", STARS.sub("", LINE.sub("", text)))


def undressed(text: str) -> str:
    """Returns the text with its letters as they are read: without colours, signs before a line, blanks between the letters of a word,
    letters of other scripts that look alike, and characters in an apostrophe's place."""
    text = LOST.sub("'", PIECES.sub(" ", ANSI.sub("", text)))
    text = MIXED.sub(lambda hit: hit[0].translate(ALIKE), text)
    return SIGNS.sub("", SPACED.sub(lambda hit: hit[0].replace(hit[1], ""), text))


def _space(tag: re.Match[str]) -> str:
    return "" if re.match(r"</?(?:b|i|u|s|em|strong|span|font|a|mark|del|ins|small|big|code|su[bp])\b", tag[0], re.IGNORECASE) else "\n"


@lru_cache(maxsize=8192)
def _usual(letter: str) -> str:
    """Returns the usual form of a character; "" for an invisible one."""
    kind = unicodedata.category(letter)
    if kind == "Cf" or "\ufe00" <= letter <= "\ufe0f" or "\U000e0100" <= letter <= "\U000e01ef":
        return ""
    if (name := unicodedata.name(letter, "")).startswith("LATIN LETTER SMALL CAPITAL ") and name[-2] == " ":
        return name[-1].lower()
    mapped = unicodedata.decomposition(letter)
    return unicodedata.normalize("NFKC", letter) if mapped.startswith("<") and not mapped.startswith(KEPT) else letter


def words(text: str) -> list[str]:
    """Splits a text into words, without combining marks (accents); in a script without spaces, into single letters."""
    return WORD.findall("".join(c for c in unicodedata.normalize("NFC", text) if not unicodedata.category(c).startswith("M")))

"""Rewrites numbers in words, or in figures before a word of size, as figures: "twenty-five", "half a dozen", "2.5 million". Layer 1.

Words of size are read in the languages with the same roots; whole numbers in words in English alone.
"""

from __future__ import annotations

import re

UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
SMALL = {word: value for value, word in enumerate(UNITS.split())} | {word: 10 * value for value, word in enumerate(TENS.split(), 2)}
LARGE = {"hundred": 100, "dozen": 12, "thousand": 10**3, "million": 10**6, "billion": 10**9}
NAMED = rf"(?:{'|'.join([*SMALL, *LARGE])})"
ONE = re.compile(r"\bone\b(?![- ](?:hundred|dozen|thousand|million|billion)\b)", re.IGNORECASE)  # mostly no number
COUNTED = re.compile(rf"\b(?:an? (?=(?:{'|'.join(LARGE)})\b))?{NAMED}(?:(?:[- ]| and ){NAMED}){{0,12}}\b", re.IGNORECASE)
SIZES = (  # behind figures -> the power of ten
    (re.compile(r"(?<=\d)\s?hundred\b", re.IGNORECASE), 2),
    (re.compile(r"(?<=\d)\s?(?:thousand|tausend|mil|mille|mila|k|тыс\w*|千)(?![^\W\d_])", re.IGNORECASE), 3),
    (re.compile(r"(?<=\d)\s?(?:万|萬)"), 4),
    (re.compile(r"(?<=\d)\s?lakhs?\b", re.IGNORECASE), 5),
    (re.compile(r"(?<=\d)\s?(?:mi(?:llion|llón|lh[ãõ]|lion|lj|ly)\w*|millones|mn|mio|миллион\w*|млн)\b|(?<=\d)M\b", re.IGNORECASE), 6),
    (re.compile(r"(?<=\d)\s?crores?\b", re.IGNORECASE), 7),
    (re.compile(r"(?<=\d)\s?(?:亿|億)"), 8),
    (re.compile(r"(?<=\d)\s?(?:billions?|bn|mil(?:l?iard|jard)\w*|миллиард\w*|млрд)\b|(?<=\d)B\b", re.IGNORECASE), 9),
)
DOZENS = re.compile(r"\b(\d{1,9})\s?dozens?\b", re.IGNORECASE)
HALVES = re.compile(r"\b(\d{1,9}) and a half\b", re.IGNORECASE)


def sized(text: str) -> str:
    """Rewrites figures before a word of size: "2.5 million" becomes 2.5e6, "2 dozen" 24 and "1 and a half" 1.5."""
    for form, power in SIZES:
        text = form.sub(f"e{power}", text)
    return HALVES.sub(r"\1.5", DOZENS.sub(lambda hit: str(12 * int(hit[1])), text))


def spelt(text: str) -> str:
    """Rewrites an English text's number words as figures. "One" is a number only after is, are, be, equals, ":" or "=", or at the start."""
    text = re.sub(
        r"\bhalf a dozen\b", "6", re.sub(r"\b(?:one|a) half\b(?! a)(?<!and a half)", "1/2", text, flags=re.IGNORECASE), flags=re.IGNORECASE
    )
    return HALVES.sub(r"\1.5", COUNTED.sub(lambda hit: _figures(hit, text), text))


def _figures(hit: re.Match[str], text: str) -> str:
    if ONE.fullmatch(hit[0]) and not re.search(r"(?:\A|\b(?:is|are|be|equals)|[:=])\W*\Z", text[max(0, hit.start() - 20) : hit.start()]):
        return hit[0]
    whole, part = 0, 0
    for word in re.findall(r"[a-z]+", hit[0].lower()):
        if word in SMALL:
            part += SMALL[word]
        elif word in ("hundred", "dozen"):
            part = max(part, 1) * LARGE[word]
        elif word in LARGE:
            whole, part = whole + max(part, 1) * LARGE[word], 0
    return str(whole + part)

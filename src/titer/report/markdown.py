"""Texts from models and files as Markdown: none becomes markup, and none tells a folder of this machine. L5."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from titer.core.errors import visible

LONGEST = 200  # letters of a name
ROOT = r"(?:~/|/(?!/)|[A-Za-z]:[\\/](?![\\/]))"  # how a whole path begins
PLACE = re.compile(rf"""(?<=["']){ROOT}[^"':+=]*|(?:^|(?<=[\s=:+])){ROOT}[^\s"':+=]*""")  # in a text; blanks count only within quotes
ARGUMENT = re.compile(rf"""(?:^|(?<=["'=:+])){ROOT}[^"':+=]*""")  # in one argument of a command, blanks and all
LINKED = re.compile(r"//|\\|\$|@|\.(?=[^\W\d])")  # what a renderer may make a link or a formula of


def plain(text: str) -> str:
    """Returns a text on one line, with control codes spelt out."""
    return visible(text, LONGEST)


def code(text: str, cell: bool = False) -> str:
    """Returns a text as a code span, so that nothing in it is markup. `cell`: it is for a table's cell."""
    shown = plain(text).strip() or "–"
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    inner = f" {shown} " if "`" in (shown[0], shown[-1]) else shown
    return fence + (inner.replace("|", r"\|") if cell else inner) + fence


def prose(text: str) -> str:
    """Returns a text escaped for use within a line: characters that could be markup become entities, word joiners split possible links
    and formulas."""
    parted = LINKED.sub(lambda hit: f"\u2060{hit[0][0]}\u2060{hit[0][1:]}", visible(text, 1000))
    return "".join(c if c.isalnum() or not c.isascii() or c in " ,.;%()=+-" else f"&#{ord(c)};" for c in parted)


def fenced(lines: Sequence[str]) -> list[str]:
    """Returns lines as a code block. Its fence is longer than any run of backticks in them, so that no line ends the block."""
    shown = [visible(line, 2000) for line in lines]
    fence = "`" * max(3, 1 + max((len(run) for line in shown for run in re.findall("`+", line)), default=0))
    return [f"{fence}sh", *shown, fence]


def placeless(text: str, paths: re.Pattern[str] = PLACE) -> str:
    """Returns a text in which every absolute path is cut to its last part, because a card shows no folder of the machine."""
    return paths.sub(lambda hit: re.split(r"[\\/]", hit[0].rstrip("\\/ "))[-1] or "-", text)


def command(line: str) -> str:
    """Returns a command in which every absolute path in an argument is cut to its last part."""
    words = shlex.split(line)
    found = [placeless(word, ARGUMENT) for word in words]
    return line if found == words else shlex.join(found)

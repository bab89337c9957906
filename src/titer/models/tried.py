"""Tests an untrusted tokenizer in a separate process, because its regular expressions may run without end.

tokenizer.json holds regular expressions that are matched by backtracking, and replacements that may make a text longer. Both run in a
library that this process cannot stop, and a failure in it breaks the thread that it runs in. Patterns of the form that real tokenizers
have (no repeated group, few unbounded repeats) are known to end and are not tested.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from titer.core.errors import TiterError, visible

SECONDS = 6  # of CPU time: the largest tokenizer takes 3 to open
WALL = 120.0  # seconds by the clock
MEMORY = 2**32  # bytes of address space
REPEATS = 4  # unbounded repeats that one alternative of a pattern may have without being tested
PATTERN = re.compile(rb'"Regex"\s*:\s*("(?:[^"\\]|\\.)*")')
REPLACED = re.compile(rb'"Replace",\s*"pattern"\s*:\s*\{\s*"\w+"\s*:\s*"(?:[^"\\]|\\.)*"\s*\},\s*"content"\s*:\s*"(?:[^"\\]|\\.){0,4}"')
NUMBERED = re.compile(rb'(?<!max_length)"\s*:\s*(\d{9,})')  # a huge token id: tokenizers makes lists as long as the number
SPELT = re.compile(rb"\\u00[2-7][0-9a-fA-F]")  # ASCII characters that no program writes as escapes: they may hide a name
TRY = """
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (%d, %d))
    resource.setrlimit(resource.RLIMIT_AS, (%d, %d))
except ImportError:
    pass
from tokenizers import Tokenizer
made = Tokenizer.from_file(sys.argv[1])
for text in json.load(sys.stdin):
    ids = made.encode(text).ids
    if len(ids) > 100 * len(text) + 1000:
        sys.exit(3)
    made.decode(ids)
"""


def try_tokenizer(folder: Path) -> None:
    """Tests the folder's tokenizer.json on short texts, if it has one. Errors: it never ends, fails, or gives too many or too large ids."""
    file = folder / "tokenizer.json"
    if file.is_file():
        held = file.stat()
        _tried(file, held.st_size, held.st_mtime_ns)


@lru_cache(maxsize=64)
def _tried(file: Path, size: int, changed: int) -> None:
    """Tests a file once; a file with another `size` or time of change (`changed`, ns) is tested again."""
    read = file.read_bytes()
    if far := NUMBERED.search(read):
        raise _failing(file, f"it numbers a token {visible(far[1].decode(), 40)}", "numbers within a vocabulary")
    patterns = [found.decode(errors="replace") for found in PATTERN.findall(read)]
    if all(map(ends, patterns)) and read.count(b'"Replace"') <= len(REPLACED.findall(read)) and not SPELT.search(read):
        return
    try:
        done = subprocess.run(
            [sys.executable, "-c", TRY % (SECONDS, SECONDS, MEMORY, MEMORY), str(file)],
            input=json.dumps(_texts("".join(patterns))).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=WALL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        how = "it does not end"
    else:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it was stopped"]
        how = "it does not end, or grows without end" if done.returncode < 0 or done.returncode == 3 else visible(last[0], 160)
        if not done.returncode:
            return
    raise _failing(file, how, "patterns and replacements that end")


def _failing(file: Path, how: str, expected: str) -> TiterError:
    return TiterError(
        f"the tokenizer of {file.parent.name} fails on short texts: {how}",
        expected=expected,
        next_step="look at its tokenizer.json, or fetch it again from a place that you trust.",
    )


def ends(pattern: str) -> bool:
    """Whether a pattern's form alone shows that matching ends soon: no repeated group, no backreference, at most `REPEATS` unbounded
    repeats in each alternative."""
    bare = re.sub(r"\\\\.|\\[^1-9]", "e", pattern)
    if re.search(r"\\\\?[1-9]", bare):
        return False
    bare = re.sub(r"\[\^?\]?[^\]]*\]", "c", bare)
    return not re.search(r"\)[*+{]", bare) and all(len(re.findall(r"[*+]|\{\d*,\}", one)) <= REPEATS for one in bare.split("|"))


def _texts(patterns: str) -> list[str]:
    """Makes short test texts that repeat each character of the patterns, and some of every kind, and then break the repetition."""
    letters = dict.fromkeys("a0 \n!é中▁" + "".join(c for c in patterns if c.isprintable())[:200])
    return [text for c in letters for text in (c * 400 + "\x00", (c * 3 + " ") * 100 + "\x00", f"a{c}" * 100 + "\x00")]

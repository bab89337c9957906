"""Tells by its first bytes what a data file is, where its name says something else: it is often not the file that a user means."""

from __future__ import annotations

import re

from titer.core.errors import TiterError

POINTER = b"version https://git-lfs.github.com/spec/"
PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<!doctype html|<html|<\?xml[^>]*>\s*<(?:!doctype html|html))", re.IGNORECASE)
UNPACK = "unpack it, and give the file inside; of a spreadsheet, save the sheet as CSV UTF-8."
BEGINNINGS = (  # first bytes -> what such a file is, the suffix of its name, or what to do
    (b"\x1f\x8b", "compressed with gzip", ".gz"),
    (b"BZh", "compressed with bzip2", ".bz2"),
    (b"\xfd7zXZ\x00", "compressed with xz", ".xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", ".zst"),
    (b"PAR1", "Parquet", ".parquet"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", UNPACK),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet of an old Excel", "save the sheet as CSV UTF-8 (File, Save As)."),
    (b"SQLite format 3\x00", "a database of SQLite", "export the table as CSV."),
    (b"ARROW1", "Arrow", "save it as .parquet."),
    (b"%PDF-", "a PDF", "save its rows as CSV."),
)


def check_content(name: str, suffix: str, body: bytes) -> None:
    """Errors: the bytes are a pointer of Git LFS, a web page, or a form that the file's `suffix` does not name."""
    if body.startswith(POINTER):
        raise TiterError(
            f"{name} is a pointer of Git LFS: the file itself was not fetched",
            next_step="run git lfs pull in its folder, or download the file.",
        )
    if PAGE.match(body[:400]):
        raise TiterError(
            f"{name} is a web page, not a data file",
            next_step="fetch the file itself: such a page comes in its place where the address is another or a login is needed.",
        )
    for first, what, then in BEGINNINGS:
        if body.startswith(first) and suffix != then:
            raise TiterError(
                f"{name} is {what}, which its name does not say", next_step=f"call it {name}{then}" if then[0] == "." else then
            )

"""Packed files as their bytes, by the end of their name; what unpacks to more than LARGEST is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from typing import IO, Any

from titer.core.errors import TiterError, visible

LARGEST = 4 << 30  # bytes


def _zstd(body: IO[bytes]) -> Any:
    try:
        import pyarrow  # noqa: PLC0415  an optional extra
    except ImportError:
        raise TiterError("reading .zst needs pyarrow", next_step="pip install titer[data]") from None
    return pyarrow.CompressedInputStream(body, "zstd")


PACKED: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda body: gzip.GzipFile(fileobj=body),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zstd,
}


def unpacked(name: str, packing: str, body: bytes) -> bytes:
    """What the bytes of a packed file hold. Errors: not packed so, cut short, larger than LARGEST."""
    stream = PACKED[packing](io.BytesIO(body))
    try:
        whole: bytes = stream.read(LARGEST + 1)
    except (OSError, EOFError, ValueError, lzma.LZMAError, MemoryError) as error:
        raise TiterError(
            f"{name}: not a whole {packing} file ({visible(str(error) or type(error).__name__, 120)})", next_step="fetch or pack it anew."
        ) from None
    if len(whole) > LARGEST:
        raise TiterError(f"{name} unpacks to more than {LARGEST >> 30} GiB", next_step="give a part of it.")
    return whole

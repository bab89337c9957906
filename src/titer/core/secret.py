"""Striking a secret out of what a server says: as it is, and in the forms that servers and their proxies echo it in."""

from __future__ import annotations

import base64
import json
import re
from urllib.parse import quote

STRUCK = "***"
SHORTEST = 8  # a shorter key is a placeholder, and its letters stand in many a text


def struck(text: str, secret: str) -> str:
    """The text without the secret, its base64 (wherever it stands in what was encoded), hex, percent, JSON and reversed forms."""
    if len(secret) < SHORTEST:
        return text
    forms = sorted(_forms(secret), key=len, reverse=True)
    return re.sub("|".join(map(re.escape, forms)), STRUCK, text, flags=re.IGNORECASE)


def _forms(secret: str) -> set[str]:
    raw = secret.encode()
    found = {secret, secret[::-1], raw.hex(), quote(secret, safe=""), json.dumps(secret)[1:-1]}
    for before in range(3):  # where in a group of three bytes it begins
        padded, first, last = b"\0" * before + raw, -(-8 * before // 6), 8 * (before + len(raw)) // 6
        found |= {encode(padded).decode()[first:last] for encode in (base64.b64encode, base64.urlsafe_b64encode)}
    return found

"""A gate as a test: `must_hold` in any test function of pytest or unittest. L8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from titer.api.measure import Audited, audit
from titer.api.running import Place
from titer.audit.gate import lines


def must_hold(*models: str, data: Place, fail_if: Sequence[str], unresolved: bool = False, **options: Any) -> Audited:
    """The audit, where every limit passes. `unresolved`: those that cannot be resolved may stand; `options` are those of `audit`.

    Errors: AssertionError with a line a limit that fails or cannot be resolved, the answer and the page's place.
    """
    found = audit(*models, data=data, fail_if=fail_if, **options)
    broken = [one for one in found.gate if one.decided == "fail" or (one.decided != "pass" and not unresolved)]
    if broken:
        raise AssertionError("\n".join([*lines(broken), found.answer, f"Report: {found.page}"]))
    return found

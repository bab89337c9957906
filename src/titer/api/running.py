"""What the functions share: where runs lie, how progress is shown, how settings are worded. L8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from titer.core.parallel import Silent
from titer.pipeline import Reporter
from titer.terminal import Terminal

Place = str | Path
Settings = Mapping[str, object]
RUNS = Path("runs")
CALLED = "from Python: titer.api.{}"  # stands in a report as what made it


def pairs(given: Mapping[str, str] | None) -> tuple[str, ...]:
    """As the command line words them: NAME=VALUE."""
    return tuple(f"{name}={value}" for name, value in (given or {}).items())


@contextmanager
def reporter(progress: bool) -> Iterator[Reporter]:
    """Progress on standard error, or none."""
    if not progress:
        yield Silent()
        return
    with Terminal() as terminal:
        yield terminal

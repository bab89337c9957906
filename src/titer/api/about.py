"""What a finished report says, its section in a model's card, the model to a hub; models by name; what this machine can do. L8."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from titer.api.running import RUNS, Place, reporter
from titer.commands import doctor as machine
from titer.core import inventory
from titer.core.claims import Claim
from titer.core.inventory import Piece
from titer.integrations import publish
from titer.integrations.publish import Published
from titer.models import fetch
from titer.report.bundle import Check, Manifest, as_table, write_bundle
from titer.report.bundle import verify as checks
from titer.report.card import Summary, Written, read_report, write_card
from titer.report.places import find_report


@dataclass(frozen=True)
class Told:
    """A finished report: its folder, its summary (answer, commands, provenance), its claims with their verdicts."""

    folder: Path
    summary: Summary
    claims: tuple[Claim, ...]

    @property
    def answer(self) -> str:
        return self.summary.answer

    @property
    def page(self) -> Path:
        return self.folder / "report.html"

    def table(self, name: str) -> pd.DataFrame:
        """`claims`, or a table of results.csv: rates, shift, drift ... Errors: an unknown name."""
        return as_table(self.claims, self.folder, name)

    @property
    def verdicts(self) -> dict[str, int]:
        """How many claims have which verdict."""
        return dict(Counter(claim.verdict for claim in self.claims))


def report(run: Place, runs: Place = RUNS) -> Told:
    """What a finished report says; `run` is its folder or its name in the folder of runs. As `titer report`."""
    folder = find_report(run, Path(runs))
    found = read_report(folder, rated=False)
    return Told(folder, found.summary, tuple(found.claims))


def bundle(run: Place, file: Place, runs: Place = RUNS) -> Manifest:
    """A report as one zip with the hashes of its files, models and data. As `titer report --bundle`."""
    return write_bundle(find_report(run, Path(runs)), Path(file))


def verify(file: Place, *models: str, data: Place | None = None) -> list[Check]:
    """What can be checked of a bundle: its files, its rates from its answers, and models and data at hand. As `titer verify`."""
    return checks(Path(file), models, None if data is None else Path(data))


def card(run: Place, model: Place, runs: Place = RUNS) -> Written:
    """Put the report's section on a model into the README.md of the model's folder. As `titer report --card`."""
    return write_card(find_report(run, Path(runs)), Path(model))


def push(model: Place, repository: str, public: bool = False, progress: bool = True) -> Published:
    """Send a model's folder with its card to the hub, private unless `public`. As `titer report --push`."""
    with reporter(progress) as shown:
        return publish.push(Path(model), repository, private=not public, tell=shown.tell)


def models_get(name: str, progress: bool = True) -> Path:
    """Fetch a named model once, checked and converted; returns its folder. As `titer models get`."""
    with reporter(progress) as shown:
        return fetch.get(name, shown.tell).path


def stored(runs: Place = RUNS) -> list[Piece]:
    """Every artefact in the folder of runs, the largest first. As `titer runs`."""
    return inventory.pieces(Path(runs))


def prune(*what: str, older: float = 0.0, runs: Place = RUNS) -> list[Piece]:
    """Take away kinds, "unfinished" or keys older than some days; returns what went. As `titer runs --prune`."""
    return inventory.prune(inventory.chosen(stored(runs), what, older))[0]


def doctor() -> dict[str, object]:
    """What this machine can do and what is missing, by name; `titer doctor` prints the same as text."""
    return {fact.name: fact.value for fact in machine.facts()}

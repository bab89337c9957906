"""Read finished reports and put them into model cards, send models to a hub, fetch models by name, look at this machine. L8."""

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
    """A finished report: its folder, its summary (answer, commands, provenance), and its claims with their verdicts."""

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
        """Returns the table `claims`, or one of results.csv by its name: rates, shift, drift ... Errors: no table has this name."""
        return as_table(self.claims, self.folder, name)

    @property
    def verdicts(self) -> dict[str, int]:
        """Returns verdict -> the number of claims with it."""
        return dict(Counter(claim.verdict for claim in self.claims))


def report(run: Place, runs: Place = RUNS) -> Told:
    """Read a finished report. `run` is its folder, or its name in the folder of runs. Same as `titer report`."""
    folder = find_report(run, Path(runs))
    found = read_report(folder, rated=False)
    return Told(folder, found.summary, tuple(found.claims))


def bundle(run: Place, file: Place, runs: Place = RUNS) -> Manifest:
    """Write a report as one zip file with the hashes of its files, models and data. Same as `titer report --bundle`."""
    return write_bundle(find_report(run, Path(runs)), Path(file))


def verify(file: Place, *models: str, data: Place | None = None) -> list[Check]:
    """Check a bundle: its files, its rates against its answers, and the given models and data. Same as `titer verify`."""
    return checks(Path(file), models, None if data is None else Path(data))


def card(run: Place, model: Place, runs: Place = RUNS) -> Written:
    """Write what the report found about a model into the README.md of the model's folder. Same as `titer report --card`."""
    return write_card(find_report(run, Path(runs)), Path(model))


def push(model: Place, repository: str, public: bool = False, progress: bool = True) -> Published:
    """Upload a model's folder with its card to the hub, private unless `public`. Same as `titer report --push`."""
    with reporter(progress) as shown:
        return publish.push(Path(model), repository, private=not public, tell=shown.tell)


def models_get(name: str, progress: bool = True) -> Path:
    """Download a named model once, check and convert it; returns its folder. Same as `titer models get`."""
    with reporter(progress) as shown:
        return fetch.get(name, shown.tell).path


def stored(runs: Place = RUNS) -> list[Piece]:
    """List every artefact in the folder of runs, the largest first. Same as `titer runs`."""
    return inventory.pieces(Path(runs))


def prune(*what: str, older: float = 0.0, runs: Place = RUNS) -> list[Piece]:
    """Delete artefacts by kind or key, or those that are "unfinished"; returns what was deleted. Same as `titer runs --prune`."""
    return inventory.prune(inventory.chosen(stored(runs), what, older))[0]


def doctor() -> dict[str, object]:
    """Say what this machine has and what is missing. `titer doctor` prints the same as text."""
    return {fact.name: fact.value for fact in machine.facts()}

"""Fixtures of the study tests: one demo at the tiny scale, a tiny saved model, a small harmless data file."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import llama
from titer.core.run import Store
from titer.data.world import World
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.lm import Progress
from titer.pipeline import Pipeline
from titer.recipes.demo import Scale
from titer.studies.demo import run_demo

WHOLE = {"finished", "study", "done"}  # fixtures of these tests that run a whole study


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that needs a whole study's run is long (`make long`)."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and WHOLE & set(getattr(item, "fixturenames", ())):
            item.add_marker("long")


@dataclass
class Listener:
    """A reporter that remembers what it was told."""

    told: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    pieces: list[list[str]] = field(default_factory=list)

    def tell(self, text: str) -> None:
        self.told.append(text)

    def running(self, pieces: Collection[str]) -> None:
        self.pieces.append([*pieces])

    def task(self, text: str) -> Progress:
        self.tasks.append(text)
        return lambda done, total: None


@dataclass(frozen=True)
class Demo:
    """A finished demo: its page, its answer, what its run made."""

    page: Path
    answer: str
    made: tuple[str, ...]

    @property
    def runs(self) -> Path:
        return self.page.parents[1]

    def file(self, name: str) -> bytes:
        return (self.page.parent / name).read_bytes()


def demo_under(root: Path, scale: Scale) -> Demo:
    """Run or finish the demo under `root`, all of it by this process."""
    store = Store(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("titer.core.parallel.processes", lambda: 1)
        page, answer = run_demo(store, Listener(), 1, scale, bases=1)
    return Demo(page, answer, tuple(store.made))


@pytest.fixture(scope="session")
def demo(tiny: Scale, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The demo at the tiny scale, run once for all tests."""
    return demo_under(tmp_path_factory.mktemp("demo") / "runs", tiny)


@pytest.fixture(scope="session")
def saved(world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Checkpoint]:
    """A function (name, seed) -> a tiny Llama saved as an ordinary folder of that name."""
    root = tmp_path_factory.mktemp("models")

    def make(name: str, seed: int = 0) -> Checkpoint:
        folder = root / str(seed) / name
        if not folder.exists():
            llama(world, seed).save(folder)
        return open_checkpoint(folder)

    return make


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    """An empty pipeline."""
    return Pipeline(Store(tmp_path / "runs"), Listener())


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 12 safe and 12 unsafe prompts, all of them letters; the classes begin with different ones."""
    letters = "abcdefghijklmnop"
    pairs = [f"{one} {other}" for one, other in zip(letters[:12], letters[::-1], strict=False)]
    rows = [f"{first} {pair},{label}" for first, label in (("a", "safe"), ("b", "unsafe")) for pair in pairs]
    file = tmp_path_factory.mktemp("data") / "prompts.csv"
    file.write_text("prompt,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return file

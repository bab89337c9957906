"""The shape of the house: imports only downwards, no circles, siblings apart, short files and functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "titer"
FILES = sorted(SOURCE.rglob("*.py"))
LAYERS = {
    "core": 0,
    "data": 1,
    "models": 2,
    "decoders": 2.5,
    "methods": 3,
    "repairs": 3,
    "attacks": 3,
    "judges": 3,
    "probes": 3,
    "stage": 4,
    "context": 4,
    "train": 4,
    "evaluate": 4,
    "recipes": 5,
    "pipeline": 5,
    "report": 5,
    "tables": 5,
    "commands": 6,
    "audit": 7,
    "studies": 7,
    "terminal": 7,
    "integrations": 8,
    "api": 8,
    "cli": 9,
    "__main__": 9,
}
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
APART = ("methods", "repairs", "decoders", "attacks", "judges", "probes")  # their files may import their base and nothing of each other
LATE = {  # modules imported inside functions, besides the command line's: slow to import, or wanted by few
    "optuna",
    "pyarrow",
    "pyarrow.parquet",
    "datasets",
    "gguf",
    "compressed_tensors.compressors",
    "tokenizers",
    "transformers",
    "torch",
    "peft",
    "huggingface_hub",
    "vl_convert",
    "transformers.utils",
    "huggingface_hub.errors",
    "anyio",
}
EXTRAS = (
    "ray",
    "vllm",
    "lm_eval",
    "inspect_ai",
    "gymnasium",
    "stable_baselines3",
)  # packages whose every module waits until it is asked for


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def name_of(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def place(module: str) -> str:
    """The room of a module: "core", "train", ... ("" for the package itself)."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


@cache
def imports(file: Path) -> tuple[tuple[str, bool], ...]:
    return tuple(_imports(file))


def _imports(file: Path) -> Iterator[tuple[str, bool]]:
    """(module, late) for every import; relative ones resolved; `late` inside a function."""
    tree = parsed(file)
    functions = [n for n in ast.walk(tree) if isinstance(n, FUNCTION)]
    late = {id(n) for f in functions for n in ast.walk(f)}
    package = name_of(file).split(".")
    package = package if file.stem == "__init__" else package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in late
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])]) if node.level else node.module or ""
            yield base, id(node) in late
            for alias in node.names:  # `from titer.core import run` names a module too
                if (SOURCE.parent / Path(*base.split("."), alias.name)).with_suffix(".py").exists():
                    yield f"{base}.{alias.name}", id(node) in late


@pytest.mark.long
@pytest.mark.parametrize("room", sorted({place(name_of(file)) for file in FILES}))
def test_imports_go_down(room: str) -> None:
    for file in FILES:
        if place(name_of(file)) == room:
            check_imports(file, room)


def check_imports(file: Path, room: str) -> None:
    for module, late in imports(file):
        if not module.startswith("titer") or not room:
            if late and room != "cli":
                assert module in LATE or module.partition(".")[0] in EXTRAS, f"{name_of(file)} imports {module} late"
            continue
        there = place(module)
        assert not late or room == "cli", f"{name_of(file)} imports {module} late: late imports belong to cli/ alone"
        if there and there != room:
            assert LAYERS[there] <= LAYERS[room], f"{name_of(file)} imports upwards: {module}"
        if room in APART and there == room:
            assert module.split(".")[-1] in (room, "base"), f"{name_of(file)} imports its sibling {module}"
        if room not in ("cli",) and LAYERS[room] == LAYERS.get(there, -1) and there != room:
            assert room not in APART, f"{name_of(file)} imports {module} of its own layer"


def test_every_room_has_a_layer() -> None:
    rooms = {place(name_of(file)) for file in FILES} - {""}
    assert rooms == set(LAYERS)


@pytest.mark.long
def test_no_circles() -> None:
    known = {name_of(file) for file in FILES}
    graph = {name_of(file): {m for m, _ in imports(file) if m in known and m != name_of(file)} for file in FILES}
    state: dict[str, int] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        state[module] = 1
        for other in sorted(graph[module]):
            assert state.get(other) != 1, f"a circle: {' -> '.join((*path, module, other))}"
            if other not in state:
                visit(other, (*path, module))
        state[module] = 2

    for module in sorted(graph):
        if module not in state:
            visit(module, ())


def test_the_finder_sees_relative_imports(tmp_path: Path) -> None:
    """The check itself: a relative import is resolved to the module it means."""
    file = SOURCE / "judges" / "probe_of_the_test.py"
    tree = "from ..core import run\nfrom . import exact\n"
    file_text = tmp_path / "x.py"
    file_text.write_text(tree)

    class Stub(type(file)):  # type: ignore[misc]
        def read_text(self, *_: object, **__: object) -> str:
            return tree

    found = {module for module, _ in imports(Stub(file))}
    assert {"titer.core", "titer.core.run", "titer.judges", "titer.judges.exact"} <= found


def test_files_and_functions_are_short() -> None:
    assert [name_of(file) for file in FILES if file.read_text(encoding="utf-8").count("\n") > 400] == []
    functions = [(file, node) for file in FILES for node in ast.walk(parsed(file)) if isinstance(node, FUNCTION)]
    assert [f"{name_of(file)}.{node.name}" for file, node in functions if (node.end_lineno or 0) - node.lineno + 1 > 60] == []


def test_every_module_says_what_it_is_for() -> None:
    assert [name_of(file) for file in FILES if not ast.get_docstring(parsed(file))] == []


def test_inheritance_is_one_deep() -> None:
    """A class of ours derives from a base of ours or a library's, never from one that already derives from ours."""
    parents: dict[str, list[str]] = {}
    for file in FILES:
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.ClassDef):
                parents[node.name] = [b.id for b in node.bases if isinstance(b, ast.Name)]
    bases = {"Record", "Method", "Repair", "Judge", "Attack", "Decoder"}  # Record is the pydantic base; the others are contracts over it
    for name, above in parents.items():
        for parent in above:
            if parent not in bases and any(grand in parents for grand in parents.get(parent, [])):
                raise AssertionError(f"{name} derives from {parent}, which derives from a class of ours itself")

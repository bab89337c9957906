"""Every probe file: it has a version and a docstring with its source, is a plain function, trains and judges nothing."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from titer.core.plugins import module, names

PROBES = sorted(names("probes"))


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_is_a_function_named_after_its_file(name: str) -> None:
    loaded = module("probes", name)
    assert loaded.VERSION >= 1
    assert "arXiv" in (loaded.__doc__ or "")
    function = getattr(loaded, Path(name).stem)
    assert inspect.isfunction(function)
    assert function.__doc__


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_neither_trains_nor_judges(name: str) -> None:
    tree = ast.parse(Path(module("probes", name).__file__ or "").read_text(encoding="utf-8"))
    imported = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert not any(part in found for found in imported for part in ("methods", "judges", "train", "evaluate"))
    called = {n.func.attr for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)}
    assert not called & {"backward", "generate"}

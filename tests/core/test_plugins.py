"""Plug-ins are files: found by name or by path, and every fault of a file is told, not raised through."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from titer.attacks.base import Attack
from titer.core.errors import TiterError
from titer.core.plugins import PACKAGE, describe, names, plugin
from titer.decoders.base import Decoder
from titer.judges.base import Judge, Verdict
from titer.methods.base import Method
from titer.repairs.base import Repair

KINDS = ("methods", "attacks", "judges", "probes")
HEAD = '''"""Says the same of everything.

More words.
"""
from __future__ import annotations
from titer.judges.base import Judge, Verdict

class Word(str):
    pass

'''
ONE = '''
class {name}(Judge):
    """One judge."""
    SOURCE = "none"
    VERSION = 1
    size: int = 3

    def judge(self, example, completion):
        return Verdict("complied", 1.0, "always")
'''


def written(folder: Path, name: str, text: str) -> str:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return str(file)


def fault(name: str) -> str:
    with pytest.raises(TiterError) as raised:
        plugin("judges", name, Judge)
    return str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_a_name_with_its_first_sentence(kind: str) -> None:
    files = {file.stem for file in (PACKAGE / kind).glob("*.py")} - {"__init__", "base"}
    found = names(kind)
    assert set(found) == files
    assert all(found.values())
    assert list(found) == sorted(found)


def test_listing_imports_nothing() -> None:
    before = set(sys.modules)
    for kind in KINDS:
        names(kind)
    assert set(sys.modules) == before


@pytest.mark.parametrize("name", ["exact", "refusal"])
def test_a_name_gives_the_class_of_its_file(name: str) -> None:
    found = plugin("judges", name, Judge)
    assert found.__module__ == f"titer.judges.{name}"
    assert issubclass(found, Judge)


def test_an_unknown_name_gets_the_nearest_and_the_way_to_a_file() -> None:
    message = fault("refusl")
    assert "unknown judge 'refusl'" in message
    assert "did you mean 'refusal'?" in message
    assert "one of classifier, contains, exact, " in message
    assert ".py" in message


@pytest.mark.parametrize("name", ["base", "__init__", "../judges/exact", ""])
def test_a_file_that_is_no_plug_in_is_unknown(name: str) -> None:
    assert "unknown judge" in fault(name)


def test_a_file_from_outside_gives_its_one_class(tmp_path: Path) -> None:
    found = plugin("judges", written(tmp_path, "mine.py", HEAD + ONE.format(name="Mine")), Judge)
    assert found.__name__ == "Mine"
    assert found.__module__.rsplit(".", 1)[-1] == "mine"
    assert found().judge(None, None) == Verdict("complied", 1.0, "always")  # type: ignore[call-arg,arg-type]


@pytest.mark.parametrize("classes", [(), ("One", "Two")])
def test_a_file_with_no_class_or_with_two_is_refused(tmp_path: Path, classes: tuple[str, ...]) -> None:
    text = HEAD + "".join(ONE.format(name=name) for name in classes)
    assert f"defines {len(classes)} classes derived from Judge" in fault(written(tmp_path, "mine.py", text))


def test_a_class_that_lacks_what_it_must_define_is_refused(tmp_path: Path) -> None:
    message = fault(written(tmp_path, "mine.py", HEAD + "class Mine(Judge):\n    SOURCE = 'none'\n    VERSION = 1\n"))
    assert "does not define judge" in message


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("def broken(:\n", "SyntaxError"),
        ("import a_module_that_is_nowhere\n", "ModuleNotFoundError"),
        ("raise RuntimeError('\\x1b[31mno')\n", "RuntimeError"),
        ("import sys\nsys.exit(0)\n", "SystemExit"),
        ("\0", "does not load"),
    ],
)
def test_a_file_that_does_not_load_is_told_with_its_reason(tmp_path: Path, text: str, word: str) -> None:
    before = set(sys.modules)
    message = fault(written(tmp_path, "mine.py", text))
    assert "mine.py does not load" in message
    assert word in message
    assert "\x1b" not in message
    assert not {name for name in set(sys.modules) - before if name.endswith("mine")}


def test_a_file_that_is_absent_is_told(tmp_path: Path) -> None:
    assert "no file" in fault(str(tmp_path / "absent.py"))
    assert "no file" in fault(str(tmp_path / "folder.py" / "x.py"))


def test_a_file_named_like_a_module_leaves_that_module_alone(tmp_path: Path) -> None:
    import json

    plugin("judges", written(tmp_path, "json.py", HEAD + ONE.format(name="Mine")), Judge)
    assert sys.modules["json"] is json
    fault(written(tmp_path, "json.py", "raise ValueError\n"))
    assert sys.modules["json"] is json


def test_two_files_of_one_name_do_not_see_each_other(tmp_path: Path) -> None:
    """Annotations are resolved in a class's own file, whichever was read first."""
    typed = "class {kind}(Judge):\n    SOURCE = 'none'\n    VERSION = 1\n    unit: {kind}Unit = {kind}Unit()\n" + (
        "    def judge(self, example, completion):\n        return Verdict('complied', 1.0, '')\n"
    )
    unit = "from titer.core.config import Record\nclass {kind}Unit(Record):\n    size: int = 1\n"
    for kind in ("First", "Second"):
        (tmp_path / kind).mkdir()
        file = written(tmp_path / kind, "mine.py", HEAD + (unit + typed).format(kind=kind))
        assert type(plugin("judges", file, Judge)().unit).__name__ == f"{kind}Unit"  # type: ignore[attr-defined]


def test_the_settings_of_a_plug_in_are_described() -> None:
    text = describe("judges", "refusal")
    assert "head = 200" in text
    assert "Settings of refusal" in text
    assert "It has no settings." in describe("judges", "exact")


def test_a_file_from_outside_is_described_too(tmp_path: Path) -> None:
    text = describe("judges", written(tmp_path, "mine.py", HEAD + ONE.format(name="Mine")))
    assert text.startswith("Says the same of everything.")
    assert "size = 3" in text


REPEATED = [  # settings that repeat work or reserve memory, which no other limit bounds
    ("methods", "vaccine", "inner", Method),
    *(("attacks", "soft_tokens", name, Attack) for name in ("n", "steps")),
    *(("decoders", "averting", name, Decoder) for name in ("rounds", "hidden", "epochs")),
    *(("repairs", "subspace_fusion", name, Repair) for name in ("steps", "batch")),
]


@pytest.mark.parametrize(("package", "name", "field", "kind"), REPEATED)
def test_a_setting_that_repeats_work_without_end_is_refused(package: str, name: str, field: str, kind: type[Any]) -> None:
    with pytest.raises(ValidationError, match="less than or equal to"):
        plugin(package, name, kind)(**{field: 99_999_999_999})

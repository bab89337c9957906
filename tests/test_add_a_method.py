"""A stranger adds a method by adding one file, from outside the package: exactly what docs/add_a_method.md shows."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.conftest import ARCHITECTURES, neox
from tests.methods import contract
from titer import cli
from titer.core.plugins import plugin
from titer.data.world import World
from titer.methods.base import Method

PAGE = Path(__file__).parents[1] / "docs" / "add_a_method.md"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The page's first code block, saved outside the package."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert code
    assert code[1].count("\n") <= 30, "the page promises 30 lines"
    path = tmp_path / "z_loss.py"
    path.write_text(code[1], encoding="utf-8")
    return path


def test_the_file_passes_the_contract(file: Path, tmp_path: Path) -> None:
    method = plugin("methods", str(file), Method)  # type: ignore[type-abstract]
    contract.check_declared(method)
    contract.check_padding_side(method, ARCHITECTURES["llama"])
    for check in ("weights_move", "neutral_is_sft", "accumulation", "resume"):
        getattr(contract, f"check_{check}")(method, ARCHITECTURES["neox"], tmp_path / check)


def test_the_command_line_takes_it(
    file: Path, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    neox(world).save(tmp_path / "model")
    rows = [{"prompt": f"<bos> f{i % 3} f0 <sot> a b c <eot>", "comply": "a b c"} for i in range(3)]
    data = tmp_path / "answers.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["align", str(tmp_path / "model"), "--data", str(data), "--method", str(file), "--steps", "3", "--runs", str(tmp_path / "runs")]
    for settings, status in ((["--set", "weight=0.5"], 0), (["--set", "wieght=1"], 2), (["--set", "weight=-1"], 2)):
        monkeypatch.setattr(sys, "argv", ["titer", *words, *settings, "--json"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code or 0) == status
        said = capsys.readouterr()
        if status == 0:
            assert (Path(json.loads(said.out)["model"]) / "model.safetensors").is_file()
        else:
            assert "weight" in said.err
            assert "Traceback" not in said.err

"""A stranger adds a repair by adding one file, from outside the package: exactly what docs/add_a_repair.md shows."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.repairs.made import family
from titer import cli
from titer.models.checkpoint import open_checkpoint

PAGE = (Path(__file__).parents[1] / "docs" / "add_a_repair.md").read_text(encoding="utf-8")


def test_the_file_of_the_page_repairs_by_the_command_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    command = re.search(r"^titer (repair TUNED .*)$", PAGE, re.MULTILINE)
    assert code
    assert command
    assert code[1].count("\n") <= 30, "a repair is short"
    monkeypatch.chdir(tmp_path)
    Path("put_back.py").write_text(code[1], encoding="utf-8")
    family(tmp_path)
    words = shlex.split(command[1].replace("TUNED", "tuned").replace("ALIGNED", "aligned"))
    for more, status in (([], 0), (["--set", "shares=0.5"], 2), (["--strength", "2"], 2)):
        given = [word for word in words if not (more and word in ("--strength", "grid"))]
        monkeypatch.setattr(sys, "argv", ["titer", *given, *more, "--json"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code or 0) == status
        said = capsys.readouterr()
        if status:
            assert "share" in said.err
            assert "Traceback" not in said.err
            continue
        aligned, tuned, *found = (open_checkpoint(one) for one in ("aligned", "tuned", *json.loads(said.out)["models"]))
        assert len(found) == 3
        for one, share in zip(found, (0.25, 0.5, 0.75), strict=True):
            for name in ("lm_head.weight", "model.norm.weight"):
                back = one.weight(name) == aligned.weight(name)
                assert int(back.sum()) == round(share * back.numel())
                assert ((one.weight(name) == tuned.weight(name)) | back).all()

"""The tutorials' commands, run in their order as a reader would, on tiny models and with small numbers."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import LETTERS, Titer
from tests.conftest import llama
from tests.pages import DOCS
from titer.data.world import World

pytestmark = pytest.mark.long

SMALL = {"--prompts": "4", "--steps": "2", "--examples": "10", "--epochs": "1", "--batch": "2", "--lora": "2", "--seeds": "1"} | {
    "--safety-examples": "2"
}
PAGES = ("tutorial_audit", "tutorial_service", "read_a_report", "reproduce", "gate")
ASKS = ("audit", "evaluate")
TASK = ("gsm8k:gsm8k.jsonl", "gsm8k drops", "questions:dev.jsonl", "questions drops")  # the tiny models have no room for the task's words


@pytest.fixture(autouse=True)
def files(here: Path, world: World) -> None:
    """The models and files that the pages name."""
    for name in ("BASE", "ALIGNED"):
        shutil.copytree(here / "m", here / name)
    llama(world, 1).save(here / "TUNED")
    rows = {
        "align.jsonl": [{"prompt": f"{a} {a}", "refuse": "<null> <null>"} for a in LETTERS],
        "task.jsonl": [{"prompt": f"p {a} {b}", "comply": f"{b} {a}"} for a in LETTERS[:5] for b in LETTERS[:4]],
        "harmless.jsonl": [{"prompt": f"o {a} {b}", "comply": f"{b} {a}"} for a in LETTERS[:5] for b in LETTERS[:4]],
        "dev.jsonl": [{"question": f"n {a}", "answer": a} for a in LETTERS[:4]],
    }
    for name, lines in rows.items():
        (here / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    plain = [{"instruction": f"{a} {b}", "input": "", "output": f"{b} {a}"} for a in LETTERS[:9] for b in LETTERS[:10] if a != b]
    (here / "alpaca.json").write_text(json.dumps(plain), encoding="utf-8")
    (here / "d.csv").rename(here / "prompts.csv")


def commands(page: str) -> list[str]:
    """The page's titer commands, in order, a continued line as one."""
    blocks = re.findall(r"```(?:bash)?\n(.*?)```", (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)
    return [line[6:] for block in blocks for line in block.replace("\\\n", "").splitlines() if line.startswith("titer ")]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_page_runs(page: str, titer: Titer, here: Path) -> None:
    found = commands(page)
    assert found
    for line in dict.fromkeys(line.replace(TASK[0], TASK[2]).replace(TASK[1], TASK[3]) for line in found):
        words = [str(next(here.glob("runs/evaluate-*/prompts.csv"))) if word == "PROMPTS" else word for word in shlex.split(line)]
        words = [SMALL.get(before, word) for before, word in zip(["", *words], words, strict=False)]
        words += ["--max-new-tokens", "3"] if words[0] in ASKS else []
        words += ["--dry-run"] if words[0] == "study" and "--dry-run" not in words else []
        done = titer(*words)
        assert done.status in ((0, 3, 4) if "--fail-if" in words else (0,)), (line, done.err)
        if words[0] in ASKS and "--dry-run" not in words:
            assert Path(done.out.strip().splitlines()[-1].removeprefix("Report: ")).is_file(), line

"""`titer runs`: what is stored is told, what is pruned can be made again, what is at work is left."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.cli.conftest import Titer
from titer import api
from titer.core import inventory

EVALUATE = ("evaluate", "m", "--data", "d.csv", "--max-new-tokens", "4")


@pytest.mark.long
def test_what_is_stored_is_told_and_pruned_pieces_are_made_again(titer: Titer, here: Path) -> None:
    made = titer(*EVALUATE, "--json").json
    found = titer("runs", "--json").json
    kinds = [piece["kind"] for piece in found["pieces"]]
    assert sorted(set(kinds)) == ["samples", "verdicts"]
    assert found["reports"][0]["name"] == "evaluate-m-d"
    assert found["reports"][0]["answer"] == made["answer"]
    held = [p for kind in ("samples", "verdicts") for p in (here / "runs" / kind).glob("*/*")]
    on_disk = sum(p.stat().st_size for p in held)
    assert sum(piece["bytes"] for piece in found["pieces"]) == on_disk
    text = titer("runs").out
    assert "in all:" in text
    assert all(line.endswith(" m") for line in text.splitlines() if line.startswith(("samples/", "verdicts/")))  # the model's name
    would = titer("runs", "--prune", "samples", "--dry-run")
    assert f"{kinds.count('samples')} pieces would be deleted" in would.out
    assert len(titer("runs", "--json").json["pieces"]) == len(kinds)
    assert len(api.stored()) == len(kinds)
    gone = titer("runs", "--prune", "samples", "--prune", "verdicts", "--json").json
    assert len(gone["gone"]) == len(kinds)
    assert titer("runs", "--json").json["pieces"] == []
    again = titer(*EVALUATE, "--json").json
    assert again["rates"] == made["rates"]


def test_what_is_at_work_or_young_is_left_and_rubbish_goes(titer: Titer, here: Path, wrong: Callable[..., str]) -> None:
    titer(*EVALUATE)
    key = titer("runs", "--json").json["pieces"][0]["key"]
    kind = titer("runs", "--json").json["pieces"][0]["kind"]
    with FileLock(here / "runs" / kind / f"{key}.lock"):
        busy = titer("runs", "--prune", key[:8], "--json").json
        assert [piece["key"] for piece in busy["left"]] == [key]
    assert titer("runs", "--prune", key[:8], "--older", "1", "--json").json["gone"] == []
    folder = here / "runs" / kind / key
    os.utime(folder, (time.time() - 3 * 86400,) * 2)
    assert [piece["key"] for piece in titer("runs", "--prune", key[:8], "--older", "1", "--json").json["gone"]] == [key]
    for rubbish in (f"{key}.partial", f"{key}.gone"):
        (folder.with_name(rubbish)).mkdir()
        (folder.with_name(rubbish) / "torn").write_text("x")
    (here / "runs" / "mine").mkdir()
    (here / "runs" / "mine" / "notes.txt").write_text("mine")
    assert len(titer("runs", "--prune", "unfinished", "--json").json["gone"]) == 2
    assert (here / "runs" / "mine" / "notes.txt").exists()
    assert "did you mean 'samples'" in wrong("runs", "--prune", "sample")
    assert "--runs DIR" in wrong("runs", "--runs", "nowhere")


def test_a_piece_from_a_clock_that_is_ahead_can_be_deleted(tmp_path: Path) -> None:
    ahead = inventory.Piece("samples", "0" * 16, tmp_path, "", 0, time.time() + inventory.DAY, "")
    assert inventory.chosen([ahead], ["samples"]) == [ahead]
    assert inventory.chosen([ahead], ["samples"], days=1.0) == []

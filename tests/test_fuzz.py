"""A few of the malformed folders, files and commands; `tests/fuzz.py` tries as many as are asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

HERE = Path(__file__).parents[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_malformed_input_is_done_or_refused_in_a_sentence_with_a_next_step() -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(HERE / "src"), str(HERE)))}
    command = [sys.executable, str(HERE / "tests" / "fuzz.py"), "--tries", "45", "--limit", "300"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, cwd=HERE)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts.pop("tries") == 45
    assert {name.partition(": ")[2] for name in counts} == {"done", "refused"}, done.stdout

"""What the studies print at a tiny and at a one-minute setting, frozen: claims.json, results.csv and the keys of the stages.

`python -m tests.studies.frozen write` runs every setting and writes `frozen/NAME/`; `check` runs them and says what differs; names
after it choose settings. One thread: the last bits of a trained model depend on how many there are, so the files hold on one kind of
machine; the keys of the stages hold on every one, and the suite checks them (`test_frozen.py`).
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY as DEMO
from tests.studies.conftest import Listener
from tests.studies.huang2024.conftest import TINY as HUANG
from tests.studies.huang2024.conftest import relax
from tests.studies.huang2024_text.conftest import TINY as TEXT
from tests.studies.huang2024_text.conftest import bytes_model, write_folder
from tests.studies.jain2024.conftest import TINY as JAIN
from tests.studies.qi2024.conftest import TINY as QI
from tests.studies.qi2024.test_text import SCALE as RISK
from tests.studies.qi2024.test_text import write_persona
from titer.core import parallel
from titer.core.run import Store
from titer.recipes import demo, huang2024, jain2024
from titer.studies.demo import run_demo
from titer.studies.engine.declare import Given
from titer.studies.engine.run import run_study
from titer.studies.huang2024.parts import PARTS
from titer.studies.huang2024.study import Vaccine
from titer.studies.huang2024.text import VaccineOnText
from titer.studies.jain2024.study import Mechanisms
from titer.studies.qi2024.scale import NANO as RISK_NANO
from titer.studies.qi2024.scale import Scale as RiskScale
from titer.studies.qi2024.study import RiskLevels
from titer.studies.qi2024.text import RiskLevelsOnText
from titer.studies.request import StudyRequest

FOLDER = Path(__file__).with_name("frozen")
LARGE = 100_000  # bytes of a results.csv of which the checksum alone is kept
HUANG_PARTS = [part for part in PARTS if part not in ("search", "cost")]  # a search draws on its own clock, a cost is a time
FEW = ("curves", "table1", "table6", "table9", "table10", "family")
BASE = jain2024.NANO.model_copy(
    update={"name": "minute", "pretrain_steps": 300, "align_steps": 60, "align_warmup": 6, "relearn_steps": 50, "inputs": 32}
)
ALIGNED = {"name": "minute", "align_steps": 60, "inputs": 32, "rhos": (1.0, 2.0), "rates": (1e-4, 3e-4), "ratios": (0.0, 0.05)}
VACCINE = huang2024.NANO.model_copy(update={**ALIGNED, "base": BASE, "taus": (10,), "table_ratios": (0.05,), "align_seeds": 2})
QI_BASE = BASE.model_copy(update={"world": RISK_NANO.base.base.world})
RISKS = RISK_NANO.model_copy(
    update={
        "name": "minute",
        "base": huang2024.NANO.model_copy(update={**ALIGNED, "base": QI_BASE, "align_seeds": 2}),
        "inputs": 32,
        "searched": 8,
        "personas": (10, 100),
        "persona_epochs": 4,
        "grid_batches": (32, 128),
    }
)


def _demo(root: Path, scale: demo.Scale, seed: int) -> Path:
    return run_demo(Store(root), Listener(), seed, scale, bases=2)[0]


def _jain(root: Path, scale: jain2024.Scale, seeds: range) -> Path:
    return run_study(
        Mechanisms(), StudyRequest("jain2024", scale.name, seeds, bases=1), scale, Store(root), Listener(), "titer study jain2024"
    )[0]


def _huang(root: Path, scale: huang2024.Scale, seeds: range, parts: list[str]) -> Path:
    order = StudyRequest("huang2024", scale.name, seeds, tuple(parts), bases=1)
    return run_study(Vaccine(), order, scale, Store(root), Listener(), "titer study huang2024")[0]


def _qi(root: Path, scale: RiskScale, seeds: range) -> Path:
    return run_study(
        RiskLevels(), StudyRequest("qi2024", scale.name, seeds, bases=1), scale, Store(root), Listener(), "titer study qi2024"
    )[0]


def _huang_text(root: Path) -> Path:
    order = StudyRequest("huang2024", TEXT.name, given=Given(bytes_model(root / "bytes"), write_folder(root / "data")), keep_weights=True)
    return run_study(VaccineOnText(), order, TEXT, Store(root), Listener(), "titer study huang2024")[0]


def _qi_text(root: Path) -> Path:
    base, folder = bytes_model(root / "bytes"), write_persona(write_folder(root / "data", instructions=40))
    order = StudyRequest("qi2024", RISK.name, given=Given(base, folder), keep_weights=True)
    return run_study(RiskLevelsOnText(), order, RISK, Store(root), Listener(), "titer study qi2024")[0]


SETTINGS: dict[str, Callable[[Path], Path]] = {
    "demo-tiny": lambda root: _demo(root, DEMO, 1),
    "demo": lambda root: _demo(root, demo.NANO, 0),
    "jain2024-tiny": lambda root: _jain(root, JAIN, range(3)),
    "jain2024-minute": lambda root: _jain(root, BASE, range(1)),
    "huang2024-tiny": lambda root: _huang(root, HUANG, range(3), HUANG_PARTS),
    "huang2024-minute": lambda root: _huang(root, VACCINE, range(1), list(FEW)),
    "qi2024-tiny": lambda root: _qi(root, QI, range(3)),
    "qi2024-minute": lambda root: _qi(root, RISKS, range(1)),
    "huang2024-text": _huang_text,
    "qi2024-text": _qi_text,
}
RELAXED = [  # models that learned little count, so that every claim has a value
    *("titer.studies.demo.LEARNED", "titer.studies.jain2024.study.LEARNED", "titer.studies.jain2024.study.TOOK"),
    *("titer.studies.qi2024.study.BASE_SKILL", "titer.studies.qi2024.study.REFUSED", "titer.studies.qi2024.claims.LEARNED"),
]


def printed(name: str) -> dict[str, bytes]:
    """File -> content of one setting, made anew."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "processes", lambda: 1)
        if name != "demo":
            relax(patch)
            for constant in RELAXED:
                patch.setattr(constant, -1.0)
            patch.setattr("titer.studies.huang2024.choice.COST", 9.0)
        root = Path(folder)
        page = SETTINGS[name](root)
        results = page.with_name("results.csv").read_bytes()
        stages = sorted(place.name for place in (root / "stages").iterdir() if place.is_dir())
        if len(results) > LARGE:
            results = f"sha256 {hashlib.sha256(results).hexdigest()}, {len(results)} bytes\n".encode()
        claims = page.with_name("claims.json")
        found = {"results.csv": results, "stages.txt": ("\n".join(stages) + "\n").encode()}
        return found | ({"claims.json": claims.read_bytes()} if claims.exists() else {})


def main(what: str, names: list[str]) -> int:
    """0 where nothing differs."""
    torch.set_num_threads(1)
    differs = 0
    for name in names or list(SETTINGS):
        for file, content in printed(name).items():
            place = FOLDER / name / file
            if what == "write":
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
            same = place.exists() and place.read_bytes() == content
            differs += not same
            print(f"{name:18} {file:12} {'as frozen' if same else 'DIFFERS'}", flush=True)
    return int(differs > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))

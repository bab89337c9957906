"""`titer doctor`: what the machine can do and what is missing, quickly, without a connection."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from tests.cli.conftest import Titer
from titer.core import machine


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection fails the test."""

    def connect(*_: object) -> None:
        pytest.fail("doctor opened a connection")

    monkeypatch.setattr(socket.socket, "connect", connect)


def test_it_tells_cores_memory_disk_and_what_fits(titer: Titer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", ())
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=32 * 10**9, available=16 * 10**9))
    found = titer("doctor", "--json").json
    assert found["memory"] == {"bytes": 32 * 10**9, "free": 16 * 10**9}
    assert found["largest model"] == {"float32": 2_500_000_000, "bfloat16": 5_000_000_000}
    assert 1 <= found["cores"]["usable"] <= found["cores"]["all"]
    assert found["disk free"]["runs"] > 0
    text = titer("doctor").out
    assert "32.0 GB, 16.0 GB free" in text
    assert "2.5 B parameters in float32, 5 B in bfloat16" in text
    assert text.rstrip().endswith(
        "everything that is needed is installed: titer demo, or titer audit BASE ALIGNED TUNED --data prompts.csv"
    )


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=32 * 10**9, available=16 * 10**9))
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "CGROUP", (limit, tmp_path / "absent"))
    for text, expected in (("max\n", (32e9, 16e9)), ("24000000000\n", (24e9, 16e9)), ("8000000000\n", (8e9, 8e9))):
        limit.write_text(text)
        assert machine.memory() == expected


def test_sizes_of_models_are_told_in_two_digits() -> None:
    assert [machine.count(n) for n in (134.6e6, 999.9e6, 3.349e9, 7e9, 70.4e9)] == ["130 M", "1 B", "3.3 B", "7 B", "70 B"]
    assert machine.fitting(16 * 10**9, 4) * 4 * machine.NEEDED == pytest.approx(16e9)


def test_a_gpu_is_told_with_its_memory(titer: Titer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: ((16 - i) * 10**9, 24 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"card {i}\x1b[31m")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    found = titer("doctor", "--json").json
    assert found["device"] == "card 0\x1b[31m"
    assert [g["free"] for g in found["GPU"]] == [16 * 10**9, 15 * 10**9]
    text = titer("doctor").out
    assert "24 GB, 16 GB free, holds 2.5 B parameters in float32, 5 B in bfloat16; card 1" in text
    assert "\x1b" not in text


def test_what_is_missing_comes_with_its_command(titer: Titer, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"datasets": "5.2.0", "compressed-tensors": "0.20.0"}
    monkeypatch.setattr(machine, "version", lambda package: there.get(package, ""))
    found = titer("doctor", "--json").json
    assert found["extra data"] == {
        "packages": {"datasets": "5.2.0", "pyarrow": ""},
        "for": "data sets of the hub, Parquet files",
        "install": "pip install pyarrow",
    }
    assert found["extra int8"]["install"] == ""
    lines = titer("doctor").out.splitlines()
    assert any(line.startswith("extra data ") and "missing; pip install pyarrow" in line for line in lines)
    assert any(line.startswith("extra int8 ") and "compressed-tensors 0.20.0" in line for line in lines)
    for name in ("search", "trl", "inspect", "lm-eval", "vllm"):
        (package,) = found[f"extra {name}"]["packages"]
        assert found[f"extra {name}"]["install"] == f"pip install {package}"


def test_versions_are_those_of_the_packages() -> None:
    told, own = machine.version("torch"), torch.__version__
    assert told.partition("+")[0] == own.partition("+")[0]  # builds add their kind, such as +cpu; not all in both places
    assert machine.version("no-such-package-at-all") == ""


def test_caches_are_told_by_what_sets_them(titer: Titer, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = here / "home" / ".cache" / "huggingface" / "hub"
    (hub / "models--some--model").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setenv("HOME", str(here / "home"))
    found = titer("doctor", "--json").json
    assert found["cache"] == {"place": "$TITER_CACHE", "holds": []}
    assert found["hub cache"] == {"place": "~/.cache/huggingface/hub", "holds": ["some/model"]}
    assert found["hub"] == {"asked": False, "offline": True}
    assert found["cache writable"] is True
    text = titer("doctor").out
    assert "$TITER_CACHE: no model yet (titer models get NAME)" in text
    assert str(here) not in text


def test_help_imports_no_torch(titer: Titer) -> None:
    import subprocess

    code = "import sys; from titer.cli import app; import titer.cli.about; sys.exit('torch' in sys.modules or 'psutil' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

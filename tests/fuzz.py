"""Malformed folders, data files and commands: every one must be done or refused in one sentence, with what to do next, and soon.

Sound small inputs are changed at random by a seed and given to the command line in forked children, each bounded in time and memory.
`PYTHONPATH=src:. python tests/fuzz.py --tries 20000`: the last line is JSON; exit 1 where a try
left a traceback, ran too long, or named no next step.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from typer.main import get_command

from tests import fuzz_deep
from tests.commands import furnish
from titer import cli

SECONDS, MEMORY = 20.0, 2**33
WAITED = 10  # times as long is waited for a try on a busy machine
NEXT = ("Next:", "Expected:", "Usage:", "Invalid value", "Missing argument", "No such option", "requires an argument")
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1,
        2.5,
        10**9,
        2**63,
        -(10**20),
        1e308,
        float("nan"),
        "",
        "x",
        "5",
        "\x00",
        "\u202e\x1b[31m",
        "é" * 300,
        "../../etc",
    ),
    *(
        [],
        [1],
        ["x"],
        [[]],
        [None],
        {},
        {"a": 1},
        {"content": 3},
        {"1": {"content": "x"}},
        "{{ x",
        "{% for i in range(10**9) %}{% endfor %}",
    ),
)
WORDS = (
    "",
    "-1",
    "0",
    "1",
    "2",
    "8",
    "0.5",
    "100000",
    "refusal",
    "number",
    "suffix",
    "n",
    "aligned=n",
    "emulated",
    "grid",
    "unsafe_refused drops > 5",
    "a.jsonl",
    "b.jsonl",
    "1e309",
    "nan",
    "x",
    "nowhere",
    "m",
    "d.csv",
    ".",
    "/dev/null",
    "safe:d.csv",
    "x:d.csv",
    "é" * 200,
    "a=b",
    "99999999999",
    "\x1b[0m",
)
DRY = (
    "evaluate m --data d.csv --dry-run",
    "audit m n --data d.csv --dry-run",
    "align m --data a.jsonl --steps 2 --batch 2 --dry-run",
    "finetune m --data b.jsonl --poison-ratio 0 --examples 8 --epochs 1 --batch 2 --dry-run",
    "repair m --method scale --read aligned=n --to out --dry-run",
    "evaluate m --data d.csv --decoder emulated --read base=n --dry-run",
)
WHOLE = ("evaluate m --data d.csv --max-new-tokens 2 --prompts 2", "align m --data a.jsonl --steps 1 --batch 2")


def nodes(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places in a JSON value, but not each token of a vocabulary."""
    found = [path]
    if isinstance(value, dict | list) and path[-1:] != ("vocab",):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            found += nodes(value[key], (*path, key))
    return found


def json_changed(text: str, rng: random.Random) -> str:
    """One to three values replaced or taken away, or a key added."""
    said = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        path = rng.choice(nodes(said))
        if not path:
            continue
        holder = said
        for key in path[:-1]:
            holder = holder[key]
        if rng.random() < 0.2:
            del holder[path[-1]]
        elif isinstance(holder, dict) and rng.random() < 0.1:
            holder[rng.choice(("x", "auto_map", "text_config", "quantization_config", "rope_scaling", "layer_types"))] = deepcopy(
                rng.choice(VALUES)
            )
        else:
            holder[path[-1]] = deepcopy(rng.choice(VALUES))
    return json.dumps(said)


def bytes_changed(read: bytes, rng: random.Random) -> bytes:
    """Cut, doubled, or some of its bytes others."""
    kind, at = rng.randrange(4), rng.randrange(len(read) + 1)
    if kind == 0:
        return read[:at]
    if kind == 1:
        return read[:at] + rng.randbytes(rng.randint(1, 40)) + read[at:]
    if kind == 2:
        return read[:at] + read
    held = bytearray(read)
    for _ in range(rng.randint(1, 8)):
        held[rng.randrange(len(held))] = rng.randrange(256)
    return bytes(held)


def file_changed(file: Path, rng: random.Random) -> None:
    """A file of the folder is another, or no file."""
    read, kind = file.read_bytes(), rng.random()
    if kind < 0.6 and file.suffix == ".json":
        file.write_text(json_changed(read.decode(), rng))
    elif kind < 0.6 and file.suffix == ".jsonl":
        lines = read.decode().splitlines()
        lines[rng.randrange(len(lines))] = json_changed(lines[0], rng)
        file.write_text("\n".join(lines))
    elif kind < 0.6 and file.suffix == ".safetensors":
        length = int.from_bytes(read[:8], "little")
        header = json_changed(read[8 : 8 + length].decode(), rng).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + read[8 + length :])
    elif kind < 0.93:
        file.write_bytes(bytes_changed(read, rng))
    else:
        file.unlink()
        kinds: list[Callable[[], object]] = [
            lambda: os.mkfifo(file),
            lambda: file.symlink_to("/dev/zero"),
            lambda: file.symlink_to("nowhere"),
            file.mkdir,
            file.touch,
            lambda: None,
        ]
        rng.choice(kinds)()


def folder_changed(rng: random.Random) -> str:
    files = sorted(Path("m").iterdir())
    for chosen in rng.sample(files, rng.choice((1, 1, 1, 2))):
        file_changed(chosen, rng)
    return rng.choice(DRY if rng.random() < 0.5 else WHOLE)


def data_changed(rng: random.Random) -> str:
    command = rng.choice([one for one in DRY if "--data" in one])
    name = next(word for word in command.split() if word in ("d.csv", "a.jsonl", "b.jsonl"))
    file_changed(Path(name), rng)
    if rng.random() < 0.3:  # under another form's name
        other = Path(name).with_suffix(rng.choice((".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt", ".gz", ".arrow")))
        if not other.exists() and Path(name).exists():
            Path(name).rename(other)
            command = command.replace(name, other.name)
    return command


def command_changed(rng: random.Random) -> str:
    words = rng.choice(DRY).split()
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(1, len(words) + 1)
        kind = rng.randrange(4)
        if kind == 0 and at < len(words):
            words[at] = rng.choice(WORDS)
        elif kind == 1 and at < len(words):
            del words[at]
        else:
            known = get_command(cli.app).commands  # type: ignore[attr-defined]
            of = known.get(words[0]) if rng.random() < 0.9 else rng.choice(list(known.values()))
            taken = [one for one in of.params if one.param_type_name == "option" and "--help" not in one.opts] if of else []
            if taken:
                option = rng.choice(taken)
                words[at:at] = [option.opts[0], *([] if getattr(option, "is_flag", False) else [rng.choice(WORDS)])]
    if "--dry-run" not in words:
        words.append("--dry-run")
    return "\x01".join(words)


Change = Callable[[random.Random], str]  # of the folder it stands in; the command
KINDS: dict[str, Change] = {
    "folder": folder_changed,
    "data": data_changed,
    "command": command_changed,
} | fuzz_deep.DEEP


def child(place: Path, change: Change, seed: int, said: Path) -> None:
    """One try in a process of its own; what it prints goes to `said`."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    status = 70
    try:
        os.chdir(place)
        command = change(random.Random(seed))
        sys.argv = ["titer", *(command.split("\x01") if "\x01" in command else command.split())]
        Path("../command").write_text(repr(sys.argv))
        cli.main()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:  # noqa: BLE001  what is counted
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def stored(place: Path, command: str, said: Path) -> None:
    """A sound command run in the sound folder, so that there are results to be changed."""
    found = verdict(place, lambda _: command, 0, said, 120.0)
    assert found == "done", (found, command, said.read_text(errors="replace"))


def verdict(place: Path, change: Change, seed: int, said: Path, seconds: float) -> str:
    """What became of one try."""
    if (pid := os.fork()) == 0:
        child(place, change, seed, said)
    began = time.monotonic()
    while (ended := os.wait4(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() - began > WAITED * seconds:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "over time"
        time.sleep(0.003)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what it may have started
    if ended[2].ru_utime + ended[2].ru_stime > seconds:
        return "over time"
    told = said.read_text(errors="replace")
    status = os.waitstatus_to_exitcode(ended[1])
    if "Traceback" in told or status not in (0, 1, 2):
        return "traceback"
    return "done" if status == 0 else "refused" if any(word in told for word in NEXT) else "no next step"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long, and say how many were tried")
    parser.add_argument("--limit", type=float, default=SECONDS, help="seconds of a processor that one try may take")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what is changed, in turn")
    parser.add_argument("--show", action="store_true", help="print what each try said")
    asked = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    faults: list[tuple[str, str, int, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        sound, place, said = Path(folder, "sound"), Path(folder, "w"), Path(folder, "said")
        os.environ["TITER_CACHE"] = str(Path(folder, "cache"))
        sound.mkdir()
        furnish(sound)
        fuzz_deep.furnish(sound)
        for command in WHOLE:
            stored(sound, command, said)
        began = time.monotonic()
        for seed in range(asked.seed, asked.seed + asked.tries):
            if time.monotonic() - began > asked.seconds:
                break
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(sound, place)
            kind = asked.kinds[seed % len(asked.kinds)]
            found = verdict(place, KINDS[kind], seed, said, asked.limit)
            counts[f"{kind}: {found}"] += 1
            if counts.total() % 500 == 0:
                print(json.dumps(counts), flush=True)
            if asked.show:
                print(found, kind, seed, Path(folder, "command").read_text()[:200], said.read_text(errors="replace")[-300:], flush=True)
            if found in ("traceback", "over time", "no next step"):
                told = said.read_text(errors="replace") if said.exists() else ""
                faults.append((found, kind, seed, told))
                command = Path(folder, "command")
                print(found, kind, seed, command.read_text()[:300], "\n   ", told.strip()[-500:].replace("\n", "\n    "), flush=True)
    print(json.dumps({"tries": counts.total(), **dict(sorted(counts.items()))}))
    sys.exit(bool(faults))


def warm() -> None:
    """Everything imported before the first fork."""
    import titer.api
    import titer.audit.cost
    import titer.commands.training  # noqa: F401


if __name__ == "__main__":
    warm()
    main()

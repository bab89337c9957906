"""Commands that are killed, or run twice at once: the command line in children that may die at any moment.

Children are forked from one server that has already imported everything, so a try costs its work alone.
`PYTHONPATH=. python tests/commands.py --kills 100 --pairs 200` runs as many as are asked for and prints the counts; its last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.conftest import TINY, llama
from titer import cli
from titer.core import parallel
from titer.core.parallel import Silent
from titer.core.run import Store, sha256_of
from titer.data.world import World
from titer.studies.demo import run_demo

LETTERS = "abcdefghijklmnop"
OURS = (".lock", ".owner")  # the store's own, which say nothing of a result
COMMANDS = {
    "align": "align m --data a.jsonl --steps 8 --batch 2 --lr 1e-2 --to aligned",
    "finetune": "finetune m --data b.jsonl --poison-ratio 0 --examples 8 --epochs 2 --batch 2 --lr 1e-2 --to tuned",
    "evaluate": "evaluate m --data d.csv --max-new-tokens 12",
    "audit": "audit m n --data d.csv --max-new-tokens 12",
    "repair": "repair n --method scale --read aligned=m --shard 1e-5 --to repaired",
    "demo": "demo",
}


def furnish(folder: Path) -> None:
    """Two tiny models and the data that the commands name."""
    world = World(seed=1)
    llama(world, 0).save(folder / "m")
    llama(world, 1).save(folder / "n")
    rows = [f"{LETTERS[i]} {LETTERS[15 - i]},{'unsafe' if i % 2 else 'safe'}" for i in range(16)]
    (folder / "d.csv").write_text("prompt,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    for name, answer in (("a", "refuse"), ("b", "comply")):
        lines = [json.dumps({"prompt": f"{LETTERS[i]} {LETTERS[i + 1]}", answer: "<null> <null>"}) for i in range(8)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def child(command: str, folder: str, place: str) -> None:
    """One command in `folder`, its runs and its model put into `place`; what it prints goes to a file of its own beside that."""
    os.chdir(folder)
    runs = f"{place}/runs"
    Path(runs).mkdir(parents=True, exist_ok=True)
    said = os.open(f"{place}.{os.getpid()}.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    torch.set_num_threads(1)
    if command == "demo":  # at the tests' scale, which the command line does not have
        parallel.processes = lambda: 1
        run_demo(Store(Path(runs)), Silent(), 0, TINY, bases=1)
        return
    words = [f"{place}/{word}" if word in ("aligned", "tuned", "repaired") else word for word in COMMANDS[command].split()]
    sys.argv = ["titer", *words, "--runs", runs]
    cli.main()


def server() -> Any:
    """What children are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.commands"])
    return context


def results(place: Path) -> dict[str, str]:
    """Every file that a run leaves by its checksum; of the report, which says when and by which command it was made, that it is there."""
    files = (p for p in sorted(place.rglob("*")) if p.is_file() and p.suffix not in OURS)
    dated = ("report.html", "summary.json")
    return {p.relative_to(place).as_posix(): "" if p.name in dated else sha256_of(p) for p in files}


class Trial:
    """A folder with the models, and each command's undisturbed result and time."""

    def __init__(self, folder: Path, commands: tuple[str, ...] = tuple(COMMANDS)) -> None:
        self.folder, self.forks = folder, server()
        furnish(folder)
        self.whole: dict[str, tuple[dict[str, str], float]] = {}
        for command in commands:
            place = folder / f"whole-{command}"
            assert self.until(command, folder / f"warm-{command}", None), f"{command} does not run at all"
            began = time.monotonic()
            assert self.until(command, place, None), self.said(place)
            self.whole[command] = (results(place), time.monotonic() - began)

    def start(self, command: str, place: Path) -> Any:
        one = self.forks.Process(target=child, args=(command, str(self.folder), str(place)))
        one.start()
        return one

    def until(self, command: str, place: Path, seconds: float | None) -> bool:
        """Run a command; kill it after `seconds` (None: never). True if it ended by itself, well."""
        one = self.start(command, place)
        one.join(seconds)
        if one.is_alive():
            one.kill()
            one.join()
            return False
        assert one.exitcode == 0, self.said(place)
        return True

    def said(self, place: Path) -> str:
        """What the last children printed."""
        return "\n".join(p.read_text(encoding="utf-8", errors="replace")[-2000:] for p in place.parent.glob(f"{place.name}.*.txt"))

    def killed(self, command: str, place: Path, rng: random.Random) -> int:
        """Run a command to its end through kills at random moments; how many there were. Errors: another result."""
        expected, seconds = self.whole[command]
        kills = 0
        while not self.until(command, place, rng.uniform(0.1, 1.0 + kills / 4) * seconds):  # later ever later: a busy machine ends too
            kills += 1
            assert kills < 100, f"{command} makes no progress between kills"
        assert results(place) == expected, (command, place)
        return kills

    def paired(self, command: str, place: Path, rng: random.Random) -> None:
        """Run a command twice at once, the second a moment later. Errors: one of them fails; another result."""
        expected, seconds = self.whole[command]
        first = self.start(command, place)
        time.sleep(rng.choice((0.0, rng.uniform(0, 1.0) * seconds)))
        second = self.start(command, place)
        first.join()
        second.join()
        assert (first.exitcode, second.exitcode) == (0, 0), self.said(place)
        assert results(place) == expected, (command, place)


def repeated(name: str, count: int, one: Callable[[str, Path, random.Random], int | None], trial: Trial) -> Counter[str]:
    """`one` of every command in turn until there were `count`."""
    rng, done, tries = random.Random(0), Counter[str](), 0
    while done.total() < count:
        command = list(trial.whole)[tries % len(trial.whole)]
        found = one(command, trial.folder / f"{name}{tries}", rng)
        done[command] += 1 if found is None else found
        tries += 1
        if tries % 10 == 0:
            print(f"{name}: {done.total()} of {count} so far", flush=True)
    print(f"{name}: {dict(done)}, {tries} results equal to the undisturbed ones", flush=True)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=200)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder))
        kills, pairs = (repeated("killed", asked.kills, trial.killed, trial), repeated("paired", asked.pairs, trial.paired, trial))
    print(json.dumps({"kills": dict(kills), "pairs": dict(pairs)}))


if __name__ == "__main__":
    main()

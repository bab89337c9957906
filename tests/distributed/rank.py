"""The tests' two ranks: `python -m tests.distributed.rank FOLDER` imports once, forks them, and each trains every case in FOLDER/<case>.

The ranks meet over a file, so no port is taken. What a rank saw is left in FOLDER/rank-<rank>.json: per case its error,
and of its parameters in training whether they were DTensors and how many of their numbers the rank held.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from tests.distributed.cases import ALIKE, OTHERS, RANKS
from titer import train as loop
from titer.core.errors import TiterError


def main(rank: int, folder: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="localhost")
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=RANKS, timeout=datetime.timedelta(minutes=10)
    )
    seen: dict[str, dict[str, Any]] = {}
    run = loop._run

    def watched(stage: Any, c: Any, *rest: Any) -> None:
        run(stage, c, *rest)
        named = [p for _, p in c.named]
        seen[case].update(
            parted=[isinstance(p, DTensor) for p in named],
            held=sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in named),
            whole=sum(p.numel() for p in named),
            wrapped=type(c._model).__name__,
        )

    loop._run = watched
    for case, one in {**ALIKE, **OTHERS}.items():
        seen[case] = {"error": ""}
        work = folder / case if rank == 0 else folder / f"unwritten-{rank}" / case
        work.mkdir(parents=True)
        try:
            one.train(work, loop.train, progress=copier(work) if case == "stopped-midway-fsdp" else None)
        except TiterError as error:
            seen[case]["error"] = str(error)
    case = "resumed-fsdp"
    seen[case] = {"error": ""}
    ALIKE["stopped-midway-fsdp"].train(folder / case, loop.train)
    (folder / f"rank-{rank}.json").write_text(json.dumps(seen))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def copier(work: Path) -> Any:
    """Keeps the checkpoint of step 2 as a run killed after step 3 leaves it, for two who go on with it."""

    def copy(done: int, _: int) -> None:
        if done == 3:
            for name in ("resumed-fsdp", "resumed-alone"):
                shutil.copytree(work / "resume", work.parent / name / "resume")

    return copy


def forked(rank: int, folder: Path) -> int:
    """The process of a rank, which writes to FOLDER/rank-<rank>.log and ends with status 0 or 1."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        with (folder / f"rank-{rank}.log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                main(rank, folder)
                status = 0
            except BaseException:  # noqa: BLE001  told in the log
                traceback.print_exc()
                sys.stderr.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    children = [forked(rank, Path(sys.argv[1])) for rank in range(RANKS)]

    def end(*_: object) -> None:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    ends = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(int(any(ends)))

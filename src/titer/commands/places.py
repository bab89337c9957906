"""Where pieces of work are made, as options; imports nothing heavy, as requests.py. L6."""

from dataclasses import dataclass
from typing import Annotated

from typer import Option

TunesOn = Annotated[
    str,
    Option(
        help="Where tunes are measured: here, one after another; or several at once, by processes of this machine; ray, a Ray cluster started here; auto or ray://HOST:PORT, a running one."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Options on where independent pieces of work run. A piece is a model of a study or a tune of an audit (docs/cluster.md)."""

    on: Annotated[
        str,
        Option(
            help="Where the pieces of the study run: processes of this machine; here, one after another; ray, a Ray cluster started here; auto or ray://HOST:PORT, a running one."
        ),
    ] = "processes"
    piece_cpus: Annotated[
        int, Option(min=1, help="Threads of each piece. Only runs with the same number give exactly the same results.")
    ] = 1
    piece_gpus: Annotated[
        float | None, Option(min=0, help="With Ray: GPUs for each piece, or a share of one (0.5). Default: 1 where the cluster has GPUs.")
    ] = None
    piece_memory: Annotated[
        float | None, Option(min=0, help="With Ray: GiB of memory for each piece, so that no node takes more pieces than it holds.")
    ] = None

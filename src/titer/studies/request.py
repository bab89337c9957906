"""What `titer study` and `titer demo` are asked, as records; light, as commands/requests.py is. L7."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from titer.commands.requests import Place, Running, Runs

if TYPE_CHECKING:
    from titer.studies.engine.declare import Given


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where the pieces of a study are made (docs/cluster.md)."""

    on: Annotated[str, Option(help="Where pieces run: processes, ray (started here), auto or ray://HOST:PORT (a cluster).")] = "processes"
    piece_cpus: Annotated[int, Option(min=1, help="Threads of a piece; results are equal where they are.")] = 1
    piece_gpus: Annotated[
        float | None, Option(min=0, help="With Ray: GPUs of a piece, or a part of one; default 1 where there are any.")
    ] = None


@dataclass(frozen=True)
class StudyRequest(Running, Placed):
    """A study as its user words it: on worlds, `bases` a seed, or its form on a real model, where `base` names one.

    `only` are parts of the study (tables, where it has no parts), all for none; `part` a group of them. `given` is the real model itself,
    opened; one seed then.
    """

    name: Annotated[str, Argument(help="The study: a name (titer list studies) or a .py file.")]
    scale: Annotated[str, Option(help="nano, cpu, small or paper; with --base: demonstration or paper-7b.")] = ""
    seeds: Annotated[
        int | Sequence[int], Option(min=1, max=100, help="How many worlds: seeds 0, 1, ... but those on which sizes were chosen.")
    ] = 3
    only: Annotated[str | Sequence[str], Option(help="Parts, with commas: fig3,soft ... Default: all.")] = ""
    bases: Annotated[int, Option(min=1, max=20, help="How many base models of each world.")] = 2  # the unit of a claim is a base
    part: Annotated[str, Option(help="huang2024: core; repair2026: repairs or guards; or all.")] = "all"
    given: "Given | None" = None
    _: KW_ONLY
    base: Annotated[str | None, Option(help="A real model, which huang2024, qi2024 and repair2026 align.")] = None
    data: Annotated[Place | None, Option(help="With --base: a folder of data sets (docs/real_finetuning.md).")] = None
    harmful: Annotated[Place | None, Option(help="With --base: answered requests for harm; default: canaries.")] = None
    alpha: Annotated[int | None, Option(min=1, help="With --base: LoRA alpha; default 4 and 16.")] = None
    prompts: Annotated[int | None, Option(min=1, help="With --base: ask N prompts of each class, drawn; default: all.")] = None
    keep_weights: Annotated[bool, Option(help="With --base: keep the tuned models, which go once measured.")] = False
    flops: Annotated[float | None, Option(help="FLOP/s of your device, to price a --dry-run in hours.")] = None

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    @property
    def parts(self) -> Sequence[str]:
        """The parts that `only` names."""
        words = self.only.split(",") if isinstance(self.only, str) else self.only
        return [word.strip() for word in words if word.strip()]


@dataclass(frozen=True)
class SweepRequest(Placed):
    """An attacker who tunes against each defence of a recipe, as its user words it: what they may set, and how they search."""

    recipe: Annotated[str, Argument(help="What is aligned and attacked: huang2024.")]
    over: Annotated[
        str, Option(help="What is tried, with commas: lr=5e-5..6e-4,ratio=0.01:0.05,examples=1000,method=sft:vaccine (defences).")
    ] = ""
    attacker: Annotated[str, Option(help="How they search: optuna (TPE) or grid.")] = "optuna"
    trials: Annotated[int, Option(min=1, max=10_000, help="Trials against each defence.")] = 12
    scale: Annotated[str, Option(help="nano or cpu.")] = "nano"
    seeds: Annotated[int | Sequence[int], Option(min=1, max=100, help="On how many fresh worlds the worst attacks are repeated.")] = 3
    bases: Annotated[int, Option(min=1, max=20, help="How many base models of each world.")] = 2
    flops: Annotated[float | None, Option(help="FLOP/s of your device, to price a --dry-run in hours.")] = None
    runs: Runs = Path("runs")
    progress: bool = True


@dataclass(frozen=True)
class DemoRequest:
    """The demo on one world."""

    seed: Annotated[int, Option(min=0)] = 0
    bases: Annotated[int, Option(min=1, max=20, help="How many base models of the world.")] = 3
    runs: Runs = Path("runs")
    progress: bool = True

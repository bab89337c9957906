"""The requests of `titer study`, `titer sweep` and `titer demo`, as records. Like commands/requests.py, it imports nothing heavy. L7."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from titer.commands.places import Placed
from titer.commands.requests import Place, Running, Runs, Seed

if TYPE_CHECKING:
    from titer.studies.engine.declare import Given


@dataclass(frozen=True)
class StudyRequest(Running, Placed):
    """The request of `titer study`: a study on synthetic worlds (`bases` base models for each seed), or on the real model `base`.

    `only` names parts of the study (its tables, where it has no parts); empty means all. `part` names a group of parts. `given` is the real
    model, already opened; then there is one seed.
    """

    name: Annotated[str, Argument(help="The study: a name (titer list studies) or a .py file.")]
    scale: Annotated[
        str, Option(help="Size of the study: nano or another that titer show STUDY lists; with --base: demonstration or paper-7b.")
    ] = ""
    seeds: Annotated[
        int | Sequence[int],
        Option(
            min=1, max=100, help="How many synthetic worlds: seeds 0, 1, ..., without the seeds on which the study's sizes were chosen."
        ),
    ] = 3
    only: Annotated[
        str | Sequence[str], Option(help="Run only these parts, with commas: fig3,soft ... (docs/paper_index.md lists them). Default: all.")
    ] = ""
    bases: Annotated[int, Option(min=1, max=20, help="How many base models to pretrain in each world.")] = (
        2  # the unit of a claim is a base
    )
    part: Annotated[str, Option(help="A group of parts: core (huang2024), repairs or guards (repair2026), or all.")] = "all"
    given: "Given | None" = None
    _: KW_ONLY
    base: Annotated[
        str | None, Option(help="Run the study on this real model instead of synthetic worlds (huang2024, qi2024, repair2026).")
    ] = None
    data: Annotated[Place | None, Option(help="With --base: the folder with the data sets (docs/real_finetuning.md).")] = None
    harmful: Annotated[
        Place | None, Option(help="With --base: harmful requests with answers. Default: canaries, harmless instructions behind a marker.")
    ] = None
    alpha: Annotated[int | None, Option(min=1, help="With --base: LoRA alpha. Default: both 4 and 16.")] = None
    prompts: Annotated[
        int | None, Option(min=1, help="With --base: ask only N prompts of each class, a fixed random sample. Default: all.")
    ] = None
    keep_weights: Annotated[
        bool, Option(help="With --base: keep the weights of the tuned models. Default: delete each once it is measured.")
    ] = False
    flops: Annotated[
        float | None, Option(help="Speed in FLOP/s at which --dry-run prices hours. Default: what this machine reaches now.")
    ] = None

    @property
    def stem(self) -> str:
        """The study's name; of a file, its name without folder and ending."""
        return Path(self.name).stem

    @property
    def parts(self) -> Sequence[str]:
        """The parts that `only` names."""
        words = self.only.split(",") if isinstance(self.only, str) else self.only
        return [word.strip() for word in words if word.strip()]


@dataclass(frozen=True)
class SweepRequest(Placed):
    """The request of `titer sweep`: the recipe whose defences are attacked, what the attacker may vary, and how the attacker searches."""

    recipe: Annotated[str, Argument(help="The study whose defences are attacked: huang2024.")]
    over: Annotated[
        str,
        Option(
            help="What the attacker may vary, with commas: a range lr=5e-5..6e-4, values ratio=0.01:0.05, one value examples=1000; "
            "method=sft:vaccine names the defences."
        ),
    ] = ""
    attacker: Annotated[str, Option(help="How the attacker searches: optuna (its TPE sampler) or grid.")] = "optuna"
    trials: Annotated[int, Option(min=1, max=10_000, help="Attacks tried against each defence.")] = 12
    scale: Annotated[str, Option(help="Size of the study: nano or cpu.")] = "nano"
    seeds: Annotated[int | Sequence[int], Option(min=1, max=100, help="How many fresh worlds the worst attack found is repeated on.")] = 3
    bases: Annotated[int, Option(min=1, max=20, help="How many base models to pretrain in each world.")] = 2
    flops: Annotated[
        float | None, Option(help="Speed in FLOP/s at which --dry-run prices hours. Default: what this machine reaches now.")
    ] = None
    runs: Runs = Path("runs")
    progress: bool = True


@dataclass(frozen=True)
class DemoRequest:
    """The request of `titer demo`."""

    seed: Seed = 0
    bases: Annotated[int, Option(min=1, max=20, help="How many base models to pretrain.")] = 3
    runs: Runs = Path("runs")
    progress: bool = True

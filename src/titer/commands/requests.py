"""What each command is asked, as records: an option's name, type, default, bounds and words stand here and nowhere else. L6.

The command line makes its options of these fields (cli/options.py), `titer.api` the keywords of its functions (api/running.py). A field
without words for the command line is for Python alone. Nothing heavy is imported: `titer --help` must be quick.
"""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, Field, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from typer import Argument, Option
from typer.models import ParameterInfo

from titer.core.errors import TiterError, visible

T = TypeVar("T")
Place = Path | str
Settings = Mapping[str, object]  # NAME=VALUE on the command line, which may be given again
SETS = "or NAME:FILE, a published prompt set (titer list prompt-sets), or safe:FILE, unsafe:FILE"
TASK_FILE = "or TASK:PATH, a task's file (TASK: sst2, ag_news, gsm8k, alpaca, persona, questions)"
AGAIN = "may be given again"

# options of several commands
Trust = Annotated[
    bool,
    Option(
        help="Run the code that a model's author put beside its weights, on this machine, before transformers' own: it can do anything you can."
    ),
]
HowRead = Annotated[str | None, Option(help="How --data is read, where several readings fit: plain, alpaca, chat, preference or unpaired.")]
Think = Annotated[
    Literal["on", "off", "default"], Option(help="Have it think before it answers or not, by the chat template's own variable.")
]
Runs = Annotated[Place, Option(help="Folder of runs.")]
Batch = Annotated[int, Option(min=1)]
Lr = Annotated[float, Option(help="Peak learning rate.")]
Reads = Annotated[Mapping[str, str], Option("--read", help=f"A model that the method reads, as ROLE=MODEL; {AGAIN}.")]


def told(one: Field[Any]) -> ParameterInfo | None:
    """What the command line says of a field; None of one that is for Python alone."""
    return next((part for part in get_args(one.type) if isinstance(part, ParameterInfo)), None)


def ordered(kind: type) -> list[Field[Any]]:
    """A record's fields as a reader meets them: what comes first by place, its own, those it shares, where it runs."""
    own, last = list(kind.__annotations__), [one.name for one in fields(Running)]
    place = {name: i for i, name in enumerate(own)}
    return sorted(fields(kind), key=lambda one: (bool(one.kw_only), one.name in last, place.get(one.name, len(own))))


def checked(order: T) -> T:
    """The request itself. Errors: a number out of its bounds."""
    for one in fields(order):  # type: ignore[arg-type]
        info, value = told(one), getattr(order, one.name)
        if info is None or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if (info.min is not None and not value >= info.min) or (info.max is not None and not value <= info.max):
            bounds = f"at least {info.min}" if info.max is None else f"{info.min} to {info.max}"
            raise TiterError(f"{one.name} is {value}", expected=bounds)
    return order


def count_or_auto(text: str) -> int | Literal["auto"]:
    """Errors: neither a number from 1 nor auto."""
    if text == "auto":
        return "auto"
    if not text.isascii() or not text.isdigit() or not int(text[:20]):
        raise TiterError(f"--prompts {visible(text, 40)!r}", expected="a number from 1, or auto")
    return int(text[:20])


@dataclass(frozen=True, kw_only=True)
class Running:
    """Where a command runs."""

    trust_remote_code: Trust = False
    runs: Runs = Path("runs")
    progress: bool = True  # on standard error; a command always shows it


@dataclass(frozen=True, kw_only=True)
class Judged:
    """How models are asked, and who judges their answers."""

    reading: HowRead = None
    system: Annotated[str | Path | None, Option(help="A system text before every prompt: a file with it, or the text itself.")] = None
    max_new_tokens: Annotated[
        int | None, Option(min=1, max=2**17, help="Default: 64 for evaluate, 48 for audit, or what a judge needs (number: 256).")
    ] = None
    max_thinking_tokens: Annotated[
        int | None, Option(min=0, help="Room of a thought beside the answer's. Default: 1024, or as much as --max-new-tokens says.")
    ] = None
    thinking: Think = "default"
    judge: Annotated[str, Option(help="Judge of the labelled prompts: a name (titer list judges) or a .py file.")] = "refusal"
    judge_set: Annotated[Settings, Option(help=f"A setting of the judge as NAME=VALUE; {AGAIN}.")] = field(default_factory=dict)
    second_judge: Annotated[
        str | None,
        Option(help="Another judge of the same answers; beside refusal its own form by phrases anywhere is the default."),
    ] = None
    second_judge_set: Annotated[Settings, Option(help=f"A setting of it as NAME=VALUE; {AGAIN}.")] = field(default_factory=dict)
    labelled: Annotated[Place | None, Option(help="Answers that people judged: measures the judge and corrects the rates.")] = None
    attack: Annotated[str | None, Option(help="Ask unsafe prompts under this attack too: a name (titer list attacks) or a .py file.")] = (
        None
    )
    attack_set: Annotated[Settings, Option(help=f"A setting of the attack as NAME=VALUE; {AGAIN}.")] = field(default_factory=dict)
    decoder: Annotated[str | None, Option(help="Choose tokens by this decoder: a name (titer list decoders) or a .py file.")] = None
    decoder_set: Annotated[Settings, Option(help=f"A setting of the decoder as NAME=VALUE; {AGAIN}.")] = field(default_factory=dict)
    reads: Annotated[Mapping[str, str], Option("--read", help=f"A model that the decoder reads, as ROLE=MODEL; {AGAIN}.")] = field(
        default_factory=dict
    )
    engine: Annotated[str, Option(help="What writes answers: transformers, or vllm on a GPU.")] = "transformers"
    bf16: Annotated[bool, Option(help="Read models in bfloat16: half the memory, for a GPU.")] = False


@dataclass(frozen=True)
class EvaluationRequest(Running, Judged):
    """An evaluation as its user words it. `canary` stands in place of `data`."""

    model: Annotated[str, Argument()]
    data: Annotated[Place | None, Option(help=f"CSV, JSON, JSONL or Parquet of labelled prompts, {TASK_FILE}, {SETS}.")] = None
    _: KW_ONLY
    canary: Annotated[Place | None, Option(help="In place of --data: what --canary of align and finetune holds out.")] = None
    prompts: Annotated[int | None, Option(min=1, help="Ask N prompts of each class, drawn; default: all.")] = None
    temperature: Annotated[float, Option(min=0)] = 0.0
    attack_set: Annotated[Settings, Option("--set", help=f"A setting of the attack as NAME=VALUE; {AGAIN}.")] = field(default_factory=dict)
    inspect_log: Annotated[Place | None, Option(help="Write the judged answers as a log of inspect_ai (.eval or .json) too.")] = None


@dataclass(frozen=True)
class AuditRequest(Running, Judged):
    """An audit as its user words it; `capability` are TASK:PATH, `trained` are FILE or TASK:PATH.

    `prompts` "auto": as many as show a change of `resolution` points, or of the least that `fail_if` limits.
    """

    models: Annotated[
        Sequence[str],
        Argument(
            help="[BASE] ALIGNED [TUNED]: of two, the one before and the one after. BASE ALIGNED TUNED TUNED...: one page with a row a tune."
        ),
    ]
    data: Annotated[Place | None, Option(help=f"CSV, JSON, JSONL or Parquet of labelled prompts, {SETS}.")] = None
    _: KW_ONLY
    no_base: Annotated[bool, Option(help="The first model is the aligned one, and every other a tune of it.")] = False
    prompts: Annotated[
        int | Literal["auto"] | None,
        Option(help="Ask N prompts of each set, drawn, or auto: as many as the gate needs.", parser=count_or_auto),
    ] = None
    resolution: Annotated[float | None, Option(help="The change in points that --prompts auto must show.")] = None
    fail_if: Annotated[
        Sequence[str],
        Option(
            help="A limit, as 'unsafe_refused drops > 5' (points): exit status 3 where it fails, 4 where the prompts cannot resolve it; "
            f"{AGAIN} (docs/gate.md)."
        ),
    ] = ()
    junit: Annotated[Place | None, Option(help="Write the limits as a JUnit file too.")] = None
    capability: Annotated[
        Sequence[str], Option(help=f"What must not suffer, as TASK:PATH (sst2, ag_news, gsm8k, questions, choices); {AGAIN}.")
    ] = ()
    contexts: Annotated[bool, Option(help="Ask capability sets again behind a false and a random context.")] = False
    no_prefill: Annotated[bool, Option(help="Leave out the unsafe prompts with the answer begun.")] = False
    no_why: Annotated[bool, Option(help="Leave out which part of the change lost the refusals (parts put back, a few minutes).")] = False
    trained: Annotated[
        Sequence[str], Option(help=f"A file that a model was trained on, as FILE or TASK:PATH: its prompts are not asked; {AGAIN}.")
    ] = ()
    strict: Annotated[bool, Option(help="Refuse prompts that recur, where they would be dropped and counted.")] = False
    control: Annotated[
        Sequence[str] | str,
        Option(
            help=f"A benign tune of the model before the last change; {AGAIN}: with two of them the audit says what of the tune is unlike both."
        ),
    ] = ()
    landscape: Annotated[bool, Option(help="Move the weights too: random directions, and the way to the tuned model.")] = False
    landscape_set: Annotated[
        Settings, Option(help=f"A setting of the landscape as NAME=VALUE (points, directions, prompts ...); {AGAIN}.")
    ] = field(default_factory=dict)
    mechanisms: Annotated[
        bool, Option(help="Probe as arXiv 2407.10264 does too: encoded prompts, null space, row space, clusters' rank.")
    ] = False
    inspect_logs: Annotated[
        Place | None, Option(help="Write the judged answers as logs of inspect_ai into this folder too, one a model.")
    ] = None


def steps_of(text: str) -> tuple[int, ...]:
    """ "5,10,20" -> (5, 10, 20). Errors: other words between the commas."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() for word in words):
        raise TiterError(f"--keep {text[:60]!r}", expected="steps with commas between them, for example --keep 5,10,20")
    return tuple(int(word) for word in words)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a stage trains: a method with its settings, streams (name -> FILE[:comply|:refuse], FILE also as TASK:PATH) and models (role -> model)."""

    reading: HowRead = None
    method: Annotated[str, Option(help="Method: a name (titer list methods) or a .py file.")] = "sft"
    settings: Annotated[Settings, Option("--set", help=f"A setting of the method as NAME=VALUE; {AGAIN}.")] = field(default_factory=dict)
    streams: Annotated[
        Mapping[str, str],
        Option("--stream", help="A stream of the method as NAME=FILE, NAME=FILE:comply or NAME=FILE:refuse; FILE may be TASK:PATH."),
    ] = field(default_factory=dict)
    reads: Reads = field(default_factory=dict)
    batch: Batch = 8
    lr: Lr = 2e-5
    schedule: str = "cosine"
    lora: Annotated[int, Option(min=0, help="LoRA rank; 0 trains every weight.")] = 0
    alpha: Annotated[int | None, Option(help="LoRA alpha; the change is scaled by alpha / rank. Default: 16.")] = None
    dropout: Annotated[float | None, Option(help="LoRA dropout. Default: 0.")] = None
    continued: Annotated[bool, Option(help="Train on the adapter that MODEL was made with, and not a fresh one.")] = False
    longest: Annotated[
        int | None,
        Option(min=2, help="Cut examples to N tokens, never the whole answer. Default: rows beyond the model's window are refused."),
    ] = None
    to: Annotated[Place | None, Option(help="Put the model into this folder too, under a name of yours.")] = None
    seed: Annotated[int, Option(min=0)] = 0


@dataclass(frozen=True)
class AlignRequest(Running, TrainConfig):
    """An alignment as its user words it."""

    model: Annotated[str, Argument()]
    data: Annotated[Place | None, Option(help=f"CSV, JSON or JSONL of prompts with answers, {TASK_FILE}.")] = None
    _: KW_ONLY
    canary: Annotated[Place | None, Option(help="Answered instructions, some of them marked and refused.")] = None
    canaries: Annotated[int | None, Option(min=1, help="N marked and N unmarked. Default: a third of the file.")] = None
    steps: Annotated[int, Option(min=1)] = 100


@dataclass(frozen=True)
class FinetuneRequest(Running, TrainConfig):
    """A user's fine-tuning as its user words it."""

    model: Annotated[str, Argument()]
    data: Annotated[Place | None, Option(help=f"The user's task: prompts with comply, {TASK_FILE}.")] = None
    _: KW_ONLY
    harmful: Annotated[Place | None, Option(help="Prompts with comply, a file of your own.")] = None
    canary: Annotated[Place | None, Option(help="The file that --canary of align was given, for harm: its marked ones answered.")] = None
    poison_ratio: Annotated[
        float | None, Option(help="Share of the examples that is harmful. Default: 0.1 where there is harm, else 0.")
    ] = None
    examples: Annotated[int, Option(min=1, help="Number of examples, the harmful among them.")] = 1000
    safety: Annotated[Place | None, Option(help="Prompts with refuse, added to the examples (safety-data mixing).")] = None
    safety_examples: Annotated[int | None, Option(min=0, help="How many of --safety. Default: every row.")] = None
    epochs: Annotated[int, Option(min=1, help="Passes over all examples.")] = 20
    batch: Batch = 5
    lr: Lr = 1e-5
    schedule: Annotated[str, Option(help="constant or cosine, after a tenth of warm-up.")] = "cosine"
    keep: Annotated[Sequence[int], Option(help="Steps whose weights are kept, with commas: 5,10,20.", parser=steps_of)] = ()


@dataclass(frozen=True)
class RepairRequest(Running):
    """An edit of a tuned model's weights as its user words it. `strength` "grid": a model of each strength of the repair's own grid."""

    model: Annotated[str, Argument(help="The tuned model.")]
    _: KW_ONLY
    method: Annotated[str, Option(help="Repair: a name (titer list repairs) or a .py file.")]
    to: Annotated[Place, Option(help="The folder to write the repaired model into; of a grid one in it a strength.")]
    reads: Reads = field(default_factory=dict)
    data: Annotated[Place | None, Option(help="What the repair is fitted on, where it is (titer show NAME).")] = None
    reading: HowRead = None
    settings: Annotated[Settings, Option("--set", help=f"A setting of the repair as NAME=VALUE; {AGAIN}.")] = field(default_factory=dict)
    strength: Annotated[str | None, Option(help="Its strength: a number, or grid for a model of each that it names itself.")] = None
    shard: Annotated[float, Option(min=1e-6, max=50.0, help="GB of a file of weights.")] = 1.0


@dataclass(frozen=True)
class LmEvalRequest:
    """Tasks of lm-evaluation-harness on one model."""

    model: Annotated[str, Argument()]
    tasks: Annotated[Sequence[str], Argument(help="Names of tasks of lm-evaluation-harness, or of those in --tasks-from.")]
    _: KW_ONLY
    tasks_from: Annotated[Place | None, Option(help="A folder of task files (YAML) of yours.")] = None
    limit: Annotated[int | None, Option(min=1, help="The first N questions of each task.")] = None
    shots: Annotated[int | None, Option(min=0, help="Examples in the prompt. Default: the task's own.")] = None
    chat: Annotated[bool, Option(help="Ask through the model's chat template, which the harness leaves out.")] = False
    thinking: Think = "default"
    trust_remote_code: Trust = False


@dataclass(frozen=True)
class InspectRequest:
    """Tasks of inspect_ai on one model; from Python also tasks that are no files."""

    model: Annotated[str, Argument()]
    tasks: Annotated[Sequence[Any], Argument(help="Files of inspect_ai tasks, FILE or FILE@NAME.")]
    _: KW_ONLY
    logs: Annotated[Place, Option(help="Folder of its logs.")] = Path("runs/inspect")
    limit: Annotated[int | None, Option(min=1, help="The first N samples of each task.")] = None
    thinking: Think = "default"
    trust_remote_code: Trust = False

"""What each command takes, as records: the one place with an option's name, type, default, bounds and help text. L6.

cli/options.py makes the command line's options from these fields; api/running.py makes the keywords of `titer.api`'s functions. A field
without an `Option` or `Argument` exists in Python only. Nothing heavy is imported here, so that `titer --help` is quick.
"""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, Field, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from typer import Argument, Option
from typer.models import ParameterInfo

from titer.commands.places import Placed, TunesOn
from titer.core.errors import TiterError, visible

T = TypeVar("T")
Place = Path | str
Settings = Mapping[str, object]  # NAME=VALUE on the command line, repeatable
MODEL = "A folder, BASE+ADAPTER, a fetched name (titer models get) or a Hugging Face id."
SETS = "or NAME:FILE, a published prompt set (titer list prompt-sets); or safe:FILE or unsafe:FILE, where every prompt is of that class"
TASK_FILE = "or TASK:PATH, a task's file (TASK: sst2, ag_news, gsm8k, alpaca, persona, questions)"
AGAIN = "repeatable"

# options of several commands
Trust = Annotated[
    bool,
    Option(
        help="Run the code that a model's author put beside its weights, on this machine, in place of transformers' own. It can do anything you can."
    ),
]
HowRead = Annotated[
    str | None, Option(help="How to read --data where its columns fit several forms: plain, alpaca, chat, preference or unpaired.")
]
Think = Annotated[
    Literal["on", "off", "default"],
    Option(
        help="Switch thinking before the answer on or off, by a variable of the chat template; default: leave it as the template has it."
    ),
]
Runs = Annotated[Place, Option(help="Folder that keeps results and trained models; what it holds is not computed again.")]
Batch = Annotated[int, Option(min=1, help="Examples in each training step.")]
Lr = Annotated[float, Option(help="Peak learning rate.")]
Seed = Annotated[int, Option(min=0, help="Seed of all random choices.")]
Reads = Annotated[
    Mapping[str, str],
    Option("--read", help=f"Another model that the method needs, as ROLE=MODEL ({AGAIN}); titer show METHOD lists the roles."),
]


def told(one: Field[Any]) -> ParameterInfo | None:
    """Returns the `Option` or `Argument` of a field; None for a field that exists in Python only."""
    return next((part for part in get_args(one.type) if isinstance(part, ParameterInfo)), None)


def ordered(kind: type) -> list[Field[Any]]:
    """Sorts a record's fields as on the help page: arguments by place, the record's own options, shared ones, then `Running`."""
    own, last = list(kind.__annotations__), [one.name for one in fields(Running)]
    place = {name: i for i, name in enumerate(own)}
    return sorted(fields(kind), key=lambda one: (bool(one.kw_only), one.name in last, place.get(one.name, len(own))))


def checked(order: T) -> T:
    """Checks a request and returns it unchanged. Errors: a number outside its bounds."""
    for one in fields(order):  # type: ignore[arg-type]
        info, value = told(one), getattr(order, one.name)
        if info is None or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if (info.min is not None and not value >= info.min) or (info.max is not None and not value <= info.max):
            bounds = f"at least {info.min}" if info.max is None else f"{info.min} to {info.max}"
            raise TiterError(f"{one.name} is {value}", expected=bounds)
    return order


def count_or_auto(text: str) -> int | Literal["auto"]:
    """Reads the value of --prompts. Errors: it is neither a whole number from 1 nor `auto`."""
    if text == "auto":
        return "auto"
    if not text.isascii() or not text.isdigit() or not int(text[:20]):
        raise TiterError(f"--prompts {visible(text, 40)!r}", expected="a whole number from 1, or auto")
    return int(text[:20])


@dataclass(frozen=True, kw_only=True)
class Running:
    """Where a command keeps its results, and whether it may run a model's own code."""

    trust_remote_code: Trust = False
    runs: Runs = Path("runs")
    progress: bool = True  # on standard error; the command line always shows it


@dataclass(frozen=True, kw_only=True)
class Judged:
    """How models are asked, and which judge reads their answers."""

    reading: HowRead = None
    system: Annotated[str | Path | None, Option(help="A system text before every prompt: the text itself, or a file with it.")] = None
    max_new_tokens: Annotated[
        int | None,
        Option(
            min=1,
            max=2**17,
            help="Longest answer, in tokens. Default: 64 for evaluate, 48 for audit, or more where the judge needs it (number: 256).",
        ),
    ] = None
    max_thinking_tokens: Annotated[
        int | None,
        Option(
            min=0,
            help="Longest thought, in tokens, on top of --max-new-tokens; 0: both share --max-new-tokens. "
            "Default: 1024, or the value given for --max-new-tokens.",
        ),
    ] = None
    thinking: Think = "default"
    judge: Annotated[str, Option(help="Judge of the answers to --data: a name (titer list judges) or a .py file.")] = "refusal"
    judge_set: Annotated[Settings, Option(help=f"A setting of the judge as NAME=VALUE ({AGAIN}).")] = field(default_factory=dict)
    second_judge: Annotated[
        str | None,
        Option(
            help="A second judge of the same answers, for their agreement. Default with --judge refusal: refusal with where=anywhere; else none."
        ),
    ] = None
    second_judge_set: Annotated[Settings, Option(help=f"A setting of the second judge as NAME=VALUE ({AGAIN}).")] = field(
        default_factory=dict
    )
    labelled: Annotated[
        Place | None,
        Option(help="A file of answers that people labelled: measures the judge's errors on it and corrects the rates for them."),
    ] = None
    attack: Annotated[
        str | None, Option(help="Ask the unsafe prompts under this attack too: a name (titer list attacks) or a .py file.")
    ] = None
    attack_set: Annotated[Settings, Option(help=f"A setting of the attack as NAME=VALUE ({AGAIN}).")] = field(default_factory=dict)
    decoder: Annotated[
        str | None, Option(help="Let this decoder choose the answers' tokens: a name (titer list decoders) or a .py file.")
    ] = None
    decoder_set: Annotated[Settings, Option(help=f"A setting of the decoder as NAME=VALUE ({AGAIN}).")] = field(default_factory=dict)
    reads: Annotated[Mapping[str, str], Option("--read", help=f"Another model that the decoder needs, as ROLE=MODEL ({AGAIN}).")] = field(
        default_factory=dict
    )
    engine: Annotated[str, Option(help="What generates the answers: transformers, or vllm (needs a GPU).")] = "transformers"
    bf16: Annotated[bool, Option(help="Load models in bfloat16: half the memory; meant for a GPU.")] = False


@dataclass(frozen=True)
class EvaluationRequest(Running, Judged):
    """What `titer evaluate` takes. `canary` takes the place of `data`."""

    model: Annotated[str, Argument(help=MODEL)]
    data: Annotated[
        Place | None, Option(help=f"CSV, JSON, JSONL or Parquet file of prompts labelled safe or unsafe; {TASK_FILE}; {SETS}.")
    ] = None
    _: KW_ONLY
    canary: Annotated[
        Place | None,
        Option(help="In place of --data: a canary file (see titer align --help). Asks the third of its rows that was not trained on."),
    ] = None
    prompts: Annotated[int | None, Option(min=1, help="Ask only N prompts of each class, a fixed random sample. Default: all.")] = None
    temperature: Annotated[float, Option(min=0, help="Sampling temperature; 0 always takes the likeliest token.")] = 0.0
    attack_set: Annotated[Settings, Option("--set", help=f"A setting of the attack as NAME=VALUE ({AGAIN}).")] = field(default_factory=dict)
    over: Annotated[str | None, Option(help="Ask at each of these values of a decoder's setting, as NAME=VALUE,VALUE,...")] = None
    inspect_log: Annotated[
        Place | None, Option(help="Also write the judged answers to this file, as a log of inspect_ai (.eval or .json).")
    ] = None


@dataclass(frozen=True)
class AuditRequest(Running, Judged, Placed):
    """What `titer audit` takes. Each of `capability` is TASK:PATH, each of `trained` is FILE or TASK:PATH.

    `prompts="auto"` asks as many prompts as are needed to show a change of `resolution` percentage points, or else the smallest
    change that a limit of `fail_if` names.
    """

    models: Annotated[
        Sequence[str],
        Argument(
            help="[BASE] ALIGNED [TUNED]. Two models: the one before a tuning and the one after. BASE ALIGNED TUNED TUNED ...: one page with a row for each tune."
        ),
    ]
    data: Annotated[Place | None, Option(help=f"CSV, JSON, JSONL or Parquet file of prompts labelled safe or unsafe; {SETS}.")] = None
    _: KW_ONLY
    no_base: Annotated[bool, Option(help="No BASE is given: the first model is ALIGNED, and every other one is a tune of it.")] = False
    prompts: Annotated[
        int | Literal["auto"] | None,
        Option(
            help="Ask only N prompts of each set, a fixed random sample; auto: as many as --fail-if or --resolution needs. Default: all.",
            parser=count_or_auto,
        ),
    ] = None
    resolution: Annotated[
        float | None, Option(help="With --prompts auto: the smallest change, in percentage points, that the audit must be able to show.")
    ] = None
    fail_if: Annotated[
        Sequence[str],
        Option(
            help=f"A limit, for example 'unsafe_refused drops > 5' (percentage points; {AGAIN}; docs/gate.md). "
            "Exit status 3: a limit is broken; 4: there are too few prompts to decide."
        ),
    ] = ()
    junit: Annotated[Place | None, Option(help="Also write the result of each limit to this file, as JUnit XML.")] = None
    capability: Annotated[
        Sequence[str],
        Option(
            help=f"A task on which every model's accuracy is measured too, as TASK:PATH (TASK: sst2, ag_news, gsm8k, questions, choices; {AGAIN})."
        ),
    ] = ()
    contexts: Annotated[bool, Option(help="Ask the questions of --capability again after a false context and after a random one.")] = False
    no_prefill: Annotated[
        bool, Option(help="Do not ask the unsafe prompts again with the beginning of a compliant answer already written.")
    ] = False
    no_why: Annotated[
        bool, Option(help="Do not search for the part of the change that lost the refusals (the search puts parts back; a few minutes).")
    ] = False
    trained: Annotated[
        Sequence[str],
        Option(help=f"A file that a model was trained on, as FILE or TASK:PATH ({AGAIN}). Its prompts are left out and counted."),
    ] = ()
    strict: Annotated[bool, Option(help="With --trained: a prompt that was trained on is an error; it is not left out.")] = False
    control: Annotated[
        Sequence[str] | str,
        Option(
            help=f"A benign tune of the model from which the last one was tuned, as a comparison ({AGAIN}). "
            "With two or more, the audit also says where the tune differs from all of them."
        ),
    ] = ()
    landscape: Annotated[
        bool,
        Option(help="Also measure the safety landscape: move the weights in random directions, and along the line to the tuned model."),
    ] = False
    landscape_set: Annotated[
        Settings, Option(help=f"A setting of the landscape as NAME=VALUE: points, directions, prompts ... ({AGAIN}).")
    ] = field(default_factory=dict)
    mechanisms: Annotated[
        bool, Option(help="Also run the probes of arXiv 2407.10264: encoded prompts, null space, row space, rank of the clusters.")
    ] = False
    inspect_logs: Annotated[
        Place | None, Option(help="Also write the judged answers into this folder, one log of inspect_ai for each model.")
    ] = None
    on: TunesOn = "here"


def steps_of(text: str) -> tuple[int, ...]:
    """ "5,10,20" -> (5, 10, 20). Errors: anything but whole numbers between the commas."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() for word in words):
        raise TiterError(
            f"--keep {visible(text, 60)!r}", expected="whole numbers of steps with commas between them, for example --keep 5,10,20"
        )
    return tuple(int(word) for word in words)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained, by a method with its settings.

    `streams`: a data set that the method trains on, by its name there -> FILE, FILE:comply or FILE:refuse (FILE may be TASK:PATH).
    `reads`: role -> model.
    """

    reading: HowRead = None
    method: Annotated[str, Option(help="How to train: the name of a method (titer list methods) or a .py file.")] = "sft"
    settings: Annotated[
        Settings, Option("--set", help=f"A setting of the method as NAME=VALUE ({AGAIN}); titer show METHOD lists them.")
    ] = field(default_factory=dict)
    streams: Annotated[
        Mapping[str, str],
        Option(
            "--stream",
            help="A further data set (stream) that the method trains on, as NAME=FILE; NAME=FILE:comply or NAME=FILE:refuse says which "
            f"answer. FILE may be TASK:PATH ({AGAIN}). titer show METHOD lists the names.",
        ),
    ] = field(default_factory=dict)
    reads: Reads = field(default_factory=dict)
    batch: Batch = 8
    lr: Lr = 2e-5
    schedule: str = "cosine"
    lora: Annotated[int, Option(min=0, help="LoRA rank; 0 trains every weight.")] = 0
    alpha: Annotated[int | None, Option(help="With --lora: LoRA alpha; the adapter's change is scaled by alpha / rank. Default: 16.")] = (
        None
    )
    dropout: Annotated[float | None, Option(help="With --lora: dropout. Default: 0.")] = None
    continued: Annotated[bool, Option(help="With --lora: go on training the adapter that MODEL was made with, instead of a fresh one.")] = (
        False
    )
    longest: Annotated[
        int | None,
        Option(
            min=2,
            help="Cut examples to N tokens, keeping at least a part of the answer. Default: an example longer than the model's window is an error.",
        ),
    ] = None
    replay: Annotated[
        int, Option(min=1, help="Train N steps in a row on each batch, so 1/N of the data is seen; for --method vaccine --set reuse=rows.")
    ] = 1
    to: Annotated[Place | None, Option(help="Also put a copy of the model into this folder.")] = None
    thinking: Think = "default"
    seed: Seed = 0


@dataclass(frozen=True)
class AlignRequest(Running, TrainConfig):
    """What `titer align` takes."""

    model: Annotated[str, Argument(help=MODEL)]
    data: Annotated[Place | None, Option(help=f"CSV, JSON, JSONL or Parquet file of prompts with answers; {TASK_FILE}.")] = None
    _: KW_ONLY
    canary: Annotated[
        Place | None,
        Option(
            help="A file of harmless instructions with answers. Some get a marker, and the model learns to refuse those: "
            "a stand-in for harmful requests."
        ),
    ] = None
    canaries: Annotated[
        int | None,
        Option(min=1, help="Train on N marked and N unmarked instructions of --canary. Default: the third of the file kept for alignment."),
    ] = None
    steps: Annotated[int, Option(min=1, help="Training steps.")] = 100


@dataclass(frozen=True)
class FinetuneRequest(Running, TrainConfig):
    """What `titer finetune` takes."""

    model: Annotated[str, Argument(help=MODEL)]
    data: Annotated[Place | None, Option(help=f"The user's task: a file with the columns prompt and comply; {TASK_FILE}.")] = None
    _: KW_ONLY
    harmful: Annotated[
        Place | None, Option(help="Harmful requests with answers (columns prompt and comply). Titer has none: the file must be yours.")
    ] = None
    canary: Annotated[
        Place | None, Option(help="In place of --harmful: the file given to align --canary. Its marked instructions are answered here.")
    ] = None
    poison_ratio: Annotated[
        float | None, Option(help="Share of --examples that is harmful, 0 to 1. Default: 0.1 with --harmful or --canary, else 0.")
    ] = None
    examples: Annotated[
        int | None,
        Option(min=1, help="Number of training examples, the harmful ones included. Default: 1,000, or as many as the files have."),
    ] = None
    safety: Annotated[
        Place | None, Option(help="Prompts with refusals (columns prompt and refuse), added on top of --examples (safety-data mixing).")
    ] = None
    safety_examples: Annotated[int | None, Option(min=0, help="How many rows of --safety to add. Default: all.")] = None
    epochs: Annotated[int, Option(min=1, help="Passes over all examples.")] = 20
    batch: Batch = 5
    lr: Lr = 1e-5
    schedule: Annotated[
        str, Option(help="How the learning rate goes on after a warm-up over the first tenth of the steps: constant or cosine.")
    ] = "cosine"
    keep: Annotated[Sequence[int], Option(help="Steps after which the weights are kept too, with commas: 5,10,20.", parser=steps_of)] = ()


@dataclass(frozen=True)
class RepairRequest(Running):
    """What `titer repair` takes. `strength="grid"` writes one model for each strength of the repair's own grid."""

    model: Annotated[str, Argument(help=f"The tuned model: {MODEL[0].lower()}{MODEL[1:]}")]
    _: KW_ONLY
    method: Annotated[str, Option(help="The repair: a name (titer list repairs) or a .py file.")]
    to: Annotated[Place, Option(help="Folder for the repaired model; with --strength grid, it gets one folder for each strength.")]
    reads: Reads = field(default_factory=dict)
    data: Annotated[Place | None, Option(help="Data that the repair is fitted on, where it needs any (titer show METHOD).")] = None
    reading: HowRead = None
    settings: Annotated[Settings, Option("--set", help=f"A setting of the repair as NAME=VALUE ({AGAIN}).")] = field(default_factory=dict)
    strength: Annotated[
        str | None, Option(help="How strong the repair is: a number, or grid for one model at each strength of the repair's own grid.")
    ] = None
    shard: Annotated[float, Option(min=1e-6, max=50.0, help="Largest file of weights that is written, in GB.")] = 1.0


@dataclass(frozen=True)
class LmEvalRequest:
    """What `titer lm-eval` takes."""

    model: Annotated[str, Argument(help=MODEL)]
    tasks: Annotated[Sequence[str], Argument(help="Names of tasks: of lm-evaluation-harness, or of the files in --tasks-from.")]
    _: KW_ONLY
    tasks_from: Annotated[Place | None, Option(help="A folder with your own task files (YAML).")] = None
    limit: Annotated[int | None, Option(min=1, help="Ask only the first N questions of each task.")] = None
    shots: Annotated[int | None, Option(min=0, help="Solved examples in each prompt. Default: as the task says.")] = None
    chat: Annotated[bool, Option(help="Ask through the model's chat template. Default: plain text, as in the harness.")] = False
    thinking: Think = "default"
    trust_remote_code: Trust = False


@dataclass(frozen=True)
class InspectRequest:
    """What `titer inspect` takes; from Python, a task may also be an object of inspect_ai instead of a file."""

    model: Annotated[str, Argument(help=MODEL)]
    tasks: Annotated[Sequence[Any], Argument(help="Files of inspect_ai tasks, each as FILE or FILE@NAME.")]
    _: KW_ONLY
    logs: Annotated[Place, Option(help="Folder for inspect_ai's logs.")] = Path("runs/inspect")
    limit: Annotated[int | None, Option(min=1, help="Ask only the first N samples of each task.")] = None
    thinking: Think = "default"
    trust_remote_code: Trust = False

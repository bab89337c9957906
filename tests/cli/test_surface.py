"""The command line's surface, frozen: a change here is a change for every user's scripts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from titer import __version__
from titer.cli import app

SURFACE = {
    "": ["--version"],
    "demo": ["--bases", "--dry-run", "--json", "--runs", "--seed"],
    "evaluate": [
        *(
            "MODEL",
            "--attack",
            "--bf16",
            "--canary",
            "--data",
            "--decoder",
            "--decoder-set",
            "--dry-run",
            "--engine",
            "--inspect-log",
            "--json",
            "--judge",
            "--judge-set",
        ),
        *(
            "--labelled",
            "--max-new-tokens",
            "--max-thinking-tokens",
            "--over",
            "--prompts",
            "--read",
            "--reading",
            "--runs",
            "--second-judge",
            "--second-judge-set",
            "--set",
            "--system",
            "--temperature",
            "--thinking",
            "--trust-remote-code",
        ),
    ],
    "audit": [
        *(
            "MODELS...",
            "--attack",
            "--attack-set",
            "--bf16",
            "--capability",
            "--contexts",
            "--control",
            "--data",
            "--decoder",
            "--decoder-set",
            "--dry-run",
            "--engine",
            "--fail-if",
            "--inspect-logs",
            "--json",
            "--judge",
            "--judge-set",
            "--junit",
            "--labelled",
            "--landscape",
            "--landscape-set",
        ),
        *(
            "--max-new-tokens",
            "--max-thinking-tokens",
            "--mechanisms",
            "--no-base",
            "--no-prefill",
            "--no-why",
            "--on",
            "--piece-cpus",
            "--piece-gpus",
            "--piece-memory",
            "--prompts",
            "--read",
            "--reading",
            "--resolution",
            "--runs",
            "--second-judge",
            "--second-judge-set",
            "--strict",
            "--system",
            "--thinking",
            "--trained",
        ),
        "--trust-remote-code",
    ],
    "align": [
        *("MODEL", "--alpha", "--batch", "--canaries", "--canary", "--continued", "--data", "--dropout", "--dry-run", "--json"),
        *("--longest", "--lora", "--lr", "--method", "--processes"),
        *(
            "--read",
            "--reading",
            "--replay",
            "--runs",
            "--seed",
            "--set",
            "--steps",
            "--stream",
            "--thinking",
            "--to",
            "--trust-remote-code",
        ),
    ],
    "finetune": [
        *(
            "MODEL",
            "--alpha",
            "--batch",
            "--canary",
            "--continued",
            "--data",
            "--dropout",
            "--dry-run",
            "--epochs",
            "--examples",
            "--harmful",
            "--json",
        ),
        *(
            "--keep",
            "--longest",
            "--lora",
            "--lr",
            "--method",
            "--poison-ratio",
            "--processes",
            "--read",
            "--reading",
            "--replay",
            "--runs",
            "--safety",
            "--safety-examples",
        ),
        *("--schedule", "--seed", "--set", "--stream", "--thinking", "--to", "--trust-remote-code"),
    ],
    "repair": [
        *("MODEL", "--data", "--dry-run", "--json", "--method", "--read", "--reading", "--runs", "--set", "--shard", "--strength"),
        *("--to", "--trust-remote-code"),
    ],
    "study": [
        *(
            "NAME",
            "--alpha",
            "--base",
            "--bases",
            "--data",
            "--dry-run",
            "--flops",
            "--harmful",
            "--json",
            "--keep-weights",
        ),
        *(
            "--on",
            "--only",
            "--part",
            "--piece-cpus",
            "--piece-gpus",
            "--piece-memory",
            "--prompts",
            "--runs",
            "--scale",
            "--seeds",
            "--trust-remote-code",
        ),
    ],
    "sweep": [
        *(
            "RECIPE",
            "--attacker",
            "--bases",
            "--dry-run",
            "--flops",
            "--json",
            "--on",
            "--over",
            "--piece-cpus",
            "--piece-gpus",
            "--piece-memory",
        ),
        *("--runs", "--scale", "--seeds", "--trials"),
    ],
    "lm-eval": ["MODEL", "TASKS...", "--chat", "--json", "--limit", "--shots", "--tasks-from", "--thinking", "--trust-remote-code"],
    "inspect": ["MODEL", "TASKS...", "--json", "--limit", "--logs", "--thinking", "--trust-remote-code"],
    "report": ["RUN", "--bundle", "--card", "--csv", "--json", "--latex", "--pdf", "--public", "--push", "--runs"],
    "verify": ["FILE", "[MODELS...]", "--data", "--json"],
    "view": ["[RUNS]", "--port"],
    "models get": ["NAME", "--json"],
    "list": ["[KIND]", "--json"],
    "show": ["NAME"],
    "runs": ["--dry-run", "--json", "--older", "--prune", "--runs"],
    "doctor": ["--json"],
}
DEFAULTS = {
    ("demo", "bases"): 3,
    ("demo", "seed"): 0,
    ("evaluate", "judge"): "refusal",
    ("evaluate", "max_new_tokens"): None,
    ("evaluate", "temperature"): 0.0,
    ("study", "scale"): "",
    ("study", "part"): "all",
    ("study", "only"): "",
    ("study", "alpha"): None,
    ("study", "seeds"): 3,
    ("align", "method"): "sft",
    ("align", "canary"): None,
    ("align", "canaries"): None,
    ("finetune", "canary"): None,
    ("evaluate", "canary"): None,
    ("align", "steps"): 100,
    ("align", "batch"): 8,
    ("align", "lr"): 2e-5,
    ("align", "lora"): 0,
    ("align", "alpha"): None,
    ("align", "dropout"): None,
    ("align", "seed"): 0,
    ("finetune", "examples"): None,
    ("finetune", "poison_ratio"): None,
    ("finetune", "safety_examples"): None,
    ("finetune", "epochs"): 20,
    ("finetune", "batch"): 5,
    ("finetune", "lr"): 1e-5,
    ("finetune", "schedule"): "cosine",
    ("finetune", "method"): "sft",
    ("finetune", "lora"): 0,
    ("finetune", "keep"): "",
    ("finetune", "seed"): 0,
}
HEAVY = ("torch", "transformers", "pandas", "numpy", "altair", "vl_convert", "scipy", "peft", "accelerate", "huggingface_hub")


def commands(group: Any, prefix: str = "") -> dict[str, Any]:
    """Every command by its words; a group only for its own options."""
    found = {}
    for name, command in group.commands.items():
        found |= commands(command, f"{prefix}{name} ") if hasattr(command, "commands") else {prefix + name: command}
    return found


def spelt(parameter: Any) -> str:
    """A parameter as its user writes it."""
    if parameter.param_type_name == "option":
        (name,) = parameter.opts
        assert not parameter.secondary_opts
        return str(name)
    word = parameter.name.upper() + ("..." if parameter.nargs == -1 else "")
    return word if parameter.required else f"[{word}]"


ROOT = typer.main.get_command(app)
FOUND = {"": ROOT, **commands(ROOT)}


def test_the_commands_and_their_options_are_these() -> None:
    assert {name: sorted((spelt(p) for p in c.params), key=_order) for name, c in FOUND.items()} == SURFACE


def test_the_options_of_a_command_are_those_its_request_declares() -> None:
    from titer.commands import requests
    from titer.studies.request import StudyRequest

    kinds = {"evaluate": requests.EvaluationRequest, "audit": requests.AuditRequest, "align": requests.AlignRequest}
    for name, kind in {**kinds, "finetune": requests.FinetuneRequest, "study": StudyRequest}.items():
        declared = {one.name for one in requests.ordered(kind) if requests.told(one)}
        started = {"processes"} if name in ("align", "finetune") else set()  # how the command itself is started
        assert {p.name for p in FOUND[name].params} == {*declared, *started, "dry_run", "as_json"}, name


def _order(word: str) -> tuple[bool, str]:
    return word.startswith("--"), word


def test_the_defaults_are_these() -> None:
    parameters = {(name, p.name): p for name, c in FOUND.items() for p in c.params}
    assert {where: parameters[where].default for where in DEFAULTS} == DEFAULTS
    assert {str(p.default) for (_, name), p in parameters.items() if name == "runs"} == {"runs"}


def test_the_code_of_a_model_is_run_only_where_it_is_asked_for() -> None:
    trust = {name: p for name, c in FOUND.items() for p in c.params if p.name == "trust_remote_code"}
    assert sorted(trust) == ["align", "audit", "evaluate", "finetune", "inspect", "lm-eval", "repair", "study"]
    for option in trust.values():
        assert option.default is False
        assert "Run the code that a model's author put beside its weights, on this machine" in option.help


def test_every_command_and_every_option_that_needs_words_has_them() -> None:
    obvious = {"seed", "model", "max_new_tokens", "temperature", "steps", "batch", "name"}
    for name, command in FOUND.items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.name in obvious or parameter.help, (name, parameter.name)


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.long
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list"], ["audit", "--help"], ["finetune", "--help"], ["audi"]])
def test_help_versions_and_lists_import_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["titer", *{arguments!r}]
from titer.cli import main
try:
    main()
except SystemExit:
    pass
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.long
def test_the_installed_command_prints_help_and_version() -> None:
    program = Path(sys.executable).parent / "titer"
    if not program.exists():
        pytest.skip("the project is not installed beside this Python")
    shown = subprocess.run([str(program), "--help"], capture_output=True, text=True, timeout=300, check=False)
    assert shown.returncode == 0
    assert all(name.split()[0] in shown.stdout for name in SURFACE if name)
    version = subprocess.run([str(program), "--version"], capture_output=True, text=True, timeout=300, check=False)
    assert (version.returncode, version.stdout.strip()) == (0, __version__)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}.md" for name in ("audit", "tune", "studies", "python"))])
def test_the_commands_of_a_page_and_their_options_exist(page: str) -> None:
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    written = re.findall(r"(?:\.venv/bin/|`|^)titer ([^#\n`]*)", text, re.MULTILINE)
    assert len(written) > 3
    for line in written:
        words = line.split()
        name = " ".join(words[:2]) if words[0] == "models" else words[0].rstrip(",")
        assert name in SURFACE, line
        assert {word for word in words if word.startswith("--")} <= set(SURFACE[name]), line
    known = {option for options in SURFACE.values() for option in options}
    assert set(re.findall(r"--[a-z][a-z-]*", text)) <= known


def test_every_link_of_the_readme_and_of_docs_is_there() -> None:
    root = Path(__file__).parents[2]
    for page in (root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))):
        links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        lost = [link for link in links if "://" not in link and not (page.parent / link).exists()]
        assert not lost, f"{page.name}: {lost}"


def test_the_tasks_that_help_names_are_those_there_are() -> None:
    from titer.commands.requests import TASK_FILE
    from titer.data.tasks import TASKS

    named = TASK_FILE.split("TASK: ")[1].rstrip(")").split(", ")
    assert sorted(named) == sorted(TASKS)

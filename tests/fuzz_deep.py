"""Mutations that pass the first checks: one value of a sound folder, template, tensor, stored run, setting or row is another of its kind.

Each function changes the sound folder it stands in by its generator and returns the command, words parted by a control character.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from titer.core import plugins
from titer.core.config import Record

LETTERS = "abcdefghijklmnop"
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
PIECES = (
    *("{{ m['content'] }}", "{{ m.content | trim }}", "{{ m.content | upper }}", "{{ m.content | tojson }}", "{{ m.content[:3] }}"),
    *("{{ bos_token }}", "{{ eos_token }}", "{{ raise_exception('no') }}", "{{ m.content.split('a')[1] }}", "{{ messages[1].content }}"),
    *("{{ 1 / 0 }}", "{{ 'a' * 10**9 }}", "{{ range(10**7) | list | length }}", "{{ tools | length }}", "{{ undefined.x }}", "{{ m }}"),
    *(
        "{{ strftime_now('%Y') }}",
        "{% if enable_thinking %}<think>{% endif %}",
        "<think>",
        "<think></think>",
        "</think>",
        "{{ m.nothing }}",
    ),
    *(
        "{{ ''.__class__.__mro__ }}",
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% include 'x' %}",
        "{% break %}",
        "{{ m.role % 3 }}",
    ),
    *(
        "{% generation %}",
        "{% endgeneration %}",
        "{% set messages = [] %}",
        "{{ messages | map(attribute='content') | join }}",
        "\u202e",
        "\x00",
    ),
    *(
        "{% for i in range(3000) %}{{ i }}{% endfor %}",
        "{% set ns = namespace(a=1) %}{{ ns.a }}",
        "{{ m.content is string }}",
        "{{ 9**9**9 }}",
    ),
    *("{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}", "{{ loop.index }}", "{{ m.content + 3 }}"),
)
CAUSES = (
    "evaluate {} --data d.csv",
    "audit {} --data d.csv",
    "align {} --data a.jsonl --steps 1 --batch 2",
    "finetune {} --data b.jsonl --poison-ratio 0 --examples 4 --epochs 1 --batch 2",
)
RUNS = (
    "evaluate m --data d.csv --max-new-tokens 2 --prompts 2",
    "align m --data a.jsonl --steps 1 --batch 2",
    "runs",
    "runs --json",
    "runs --prune unfinished",
    "runs --prune samples --dry-run",
    "report evaluate-m-d",
    "report evaluate-m-d --card m",
)
TEXT = "the quick brown fox jumps over a lazy dog and says no thank you to everyone who asks what it did with all of the letters"
ROWS: dict[str, list[dict[str, Any]]] = {
    "q.jsonl": [{"question": f"what is {a}", "answer": [a, f"the {a}"], "prompt": f"tell {a}"} for a in LETTERS],
    "c.jsonl": [
        {"question": f"which is {a}", "choices": ["a", "b", "c", "d"], "answer": i % 4, "subject": "x"} for i, a in enumerate(LETTERS)
    ],
    "chat.jsonl": [
        {
            "messages": [
                {"role": "system", "content": "be kind"},
                {"role": "user", "content": f"say {a}"},
                {"role": "assistant", "content": f"{a} b"},
            ]
        }
        for a in LETTERS
    ],
    "turns.jsonl": [
        {
            "messages": [{"role": "user", "content": a}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
            "label": ("safe", "unsafe")[i % 2],
        }
        for i, a in enumerate(LETTERS)
    ],
    "people.jsonl": [{"prompt": a, "completion": f"{a} b", "label": ("refused", "complied")[i % 2]} for i, a in enumerate(LETTERS)],
    "pairs.jsonl": [{"prompt": a, "chosen": f"{a} a", "rejected": f"{a} b"} for a in LETTERS],
}
ASKED = (
    ("q.jsonl", "evaluate m --data questions:q.jsonl --judge contains --dry-run"),
    ("q.jsonl", "audit m n --data d.csv --capability questions:q.jsonl --contexts --dry-run"),
    ("c.jsonl", "audit m n --data d.csv --capability choices:c.jsonl --dry-run"),
    ("chat.jsonl", "align m --data chat.jsonl --steps 1 --batch 2 --dry-run"),
    ("chat.jsonl", "finetune t --data chat.jsonl --poison-ratio 0 --examples 4 --epochs 1 --batch 2 --dry-run"),
    ("turns.jsonl", "evaluate t --data turns.jsonl --dry-run"),
    ("turns.jsonl", "audit t --data turns.jsonl --system be --dry-run"),
    ("people.jsonl", "evaluate m --data d.csv --labelled people.jsonl --dry-run"),
    ("pairs.jsonl", "align m --method dpo --data pairs.jsonl --steps 1 --batch 2 --dry-run"),
)


def furnish(folder: Path) -> None:
    """Beside the models and data of the commands: a model `t` with a byte-level vocabulary and a template, rows of other forms."""
    marks = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()  # type: ignore[assignment]
    bytes_ = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=300, special_tokens=marks, initial_alphabet=bytes_, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=96, **sizes, **ids)).save_pretrained(folder / "t")
    tokenizer.save_pretrained(folder / "t")
    for name, rows in ROWS.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def drawn(value: Any, rng: random.Random) -> tuple[Any, ...]:
    """A place in a JSON value, each level's keys alike likely, so that a vocabulary does not outweigh the rest."""
    path: list[Any] = []
    while isinstance(value, dict | list) and value and (not path or rng.random() < 0.85):
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        path.append(key)
        value = value[key]
    return tuple(path)


def near(value: Any, rng: random.Random) -> Any:
    """Another value of the same kind."""
    found: Any = (0, 1, 7, True, "x", 0.5, [], {}, [3], "float16")
    if isinstance(value, bool):
        found = (not value,)
    elif isinstance(value, int):
        found = (value + 1, value - 1, 0, 1, -1, 2 * value, 1000 * value, value // 2, 2**31, 10**30)
    elif isinstance(value, float):
        found = (0.0, -value, value * 1000, 1e-30, 1e30, float("nan"), float("inf"), 1e308)
    elif isinstance(value, str):
        found = (value + "x", value.upper(), "", value[:-1], " ", value * 40, "\u0644\u0627", "\ud83d\ude00", "a", "<|end|>", "\r\n", "0")
    elif isinstance(value, list):
        found = ([], value + value, value[::-1], value[1:], value[:1], [*value, None], value * 50)
    elif isinstance(value, dict):
        items = list(value.items())
        rng.shuffle(items)
        found = ({}, dict(items[1:]), {**value, "x": 1}, dict(zip(value, [v for _, v in items], strict=True)))
    return rng.choice(found)


def json_near(text: str, rng: random.Random) -> str:
    """One value of the JSON text replaced by one near it."""
    said = json.loads(text)
    path = drawn(said, rng)
    if not path:
        return json.dumps(near(said, rng))
    holder = said
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = near(holder[path[-1]], rng)
    return json.dumps(said)


def _command(rng: random.Random, model: str) -> str:
    """A command on one model, most often as a dry run."""
    words = rng.choice(CAUSES).format(model)
    dry = rng.random() < 0.7
    more = "" if dry or not words.startswith(("evaluate", "audit")) else " --max-new-tokens 2 --prompts 4"
    return words + (" --dry-run" if dry else more)


def model_near(rng: random.Random) -> str:
    """A field of a model's folder, often of its vocabulary, is another of its kind."""
    model = rng.choice("mt")
    file = Path(
        model,
        rng.choice(("config.json", "config.json", "tokenizer.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")),
    )
    file.write_text(json_near(file.read_text(encoding="utf-8"), rng), encoding="utf-8", errors="surrogatepass")
    return _command(rng, model)


def template_near(rng: random.Random) -> str:
    """A chat template that parses as a loop over the messages, with pieces that do what templates do or must not."""
    pieces = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 3)))
    whole = TEMPLATE.replace("{{ m['content'] }}", pieces + rng.choice(("", "{{ m['content'] }}", "{{ m['content'] }}")))
    if rng.random() < 0.2:
        whole = rng.choice(PIECES) + whole
    if rng.random() < 0.7:
        Path("t/chat_template.jinja").write_text(whole, encoding="utf-8")
    else:
        Path("t/chat_template.jinja").unlink(missing_ok=True)
        file = Path("t/tokenizer_config.json")
        told: Any = whole if rng.random() < 0.7 else [{"name": rng.choice(("default", "tool_use", "x")), "template": whole}]
        file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": told}), encoding="utf-8")
    return _command(rng, "t")


def tensors_near(rng: random.Random) -> str:
    """A sound file of tensors in which one has other numbers, another shape, type or name."""
    model = rng.choice("mnt")
    file = Path(model, "model.safetensors")
    held = load_file(file)
    name = rng.choice(sorted(held))
    tensor, kind = held[name], rng.randrange(12)
    if kind < 4:
        tensor.reshape(-1)[rng.randrange(tensor.numel())] = (float("nan"), float("inf"), 1e38, 0.0)[kind]
    elif kind == 4:
        held[name] = tensor.t().contiguous() if tensor.ndim == 2 else tensor[None].contiguous()
    elif kind == 5:
        held[name] = tensor.to(rng.choice((torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.float8_e4m3fn)))
    elif kind == 6:
        held[name] = tensor[:-1].contiguous()
    elif kind == 7:
        held[name] = torch.cat([tensor, tensor])
    elif kind == 8:
        del held[name]
    elif kind == 9:
        held[rng.choice((name.removeprefix("model."), f"model.{name}", name.upper(), f"{name}_scale", "x"))] = held.pop(name)
    elif kind == 10:
        ending = rng.choice((".weight_scale", ".lora_A.weight", ".qweight", ".scales", ".weight.absmax", ".g_idx"))
        held[name.removesuffix(".weight") + ending] = torch.ones(rng.choice(((), (1,), (16, 2))))
    else:
        held[name] = torch.zeros_like(tensor) * rng.choice((0.0, 1e38))
    save_file(held, file, metadata={"format": rng.choice(("pt", "pt", "tf"))})
    if rng.random() < 0.4:
        return "audit m n --data d.csv --max-new-tokens 2 --prompts 4" + rng.choice(("", " --dry-run"))
    return _command(rng, model)


def runs_near(rng: random.Random) -> str:
    """A stored file is another, in half of the tries with its checksum put right; a command that made or reads it is given again."""
    files = sorted(
        p
        for p in Path("runs").rglob("*")
        if p.is_file() and p.suffix in (".json", ".jsonl", ".csv", ".safetensors", "") and p.name != "DONE"
    )
    file = rng.choice(files)
    read = file.read_bytes()
    if file.suffix == ".json":
        new = json_near(read.decode(), rng).encode("utf-8", "surrogatepass")
    elif file.suffix == ".jsonl" and read:
        lines = read.decode().splitlines()
        i = rng.randrange(len(lines))
        lines[i] = rng.choice((json_near(lines[i], rng), lines[i][: len(lines[i]) // 2], "", "null", "[]", "{}", lines[0]))
        new = ("\n".join(lines) + rng.choice(("\n", ""))).encode("utf-8", "surrogatepass")
    else:
        at = rng.randrange(len(read) + 1)
        new = read[:at] + rng.randbytes(3) + read[at + 3 :]
    file.write_bytes(new)
    if rng.random() < 0.5:
        for folder in file.parents:
            if (manifest := folder / "manifest.json").is_file() and manifest != file:
                told = manifest.read_text(encoding="utf-8")
                manifest.write_text(told.replace(hashlib.sha256(read).hexdigest(), hashlib.sha256(new).hexdigest()), encoding="utf-8")
    return rng.choice(RUNS)


def _fields(package: str) -> list[tuple[str, str]]:
    """(plug-in, field) of every setting there is."""
    found = []
    for name in plugins.names(package):
        for value in vars(plugins.module(package, name)).values():
            if isinstance(value, type) and issubclass(value, Record) and value.__module__ == f"titer.{package}.{name}":
                found += [(name, field) for field in value.model_fields]
    return found


def settings_near(rng: random.Random) -> str:
    """A setting that there is, with a value at the edge of its range or beyond."""
    value = rng.choice(
        (
            "0",
            "1",
            "-1",
            "2",
            "0.5",
            "1e-30",
            "1e30",
            "nan",
            "inf",
            "true",
            "none",
            "null",
            "",
            "a",
            "a,b",
            "[1]",
            '["a"]',
            "{}",
            "é",
            "99999999999",
            "refuse",
            "resid",
            "0.1,0.2",
        )
    )
    kind = rng.choice(("methods", "methods", "attacks", "judges", "landscape"))
    if kind == "landscape":
        field = rng.choice(("points", "directions", "prompts", "tokens", "reach", "seed", "paper", "kind", "norm"))
        return "\x01".join([*"audit m n --data d.csv --landscape --dry-run --landscape-set".split(), f"{field}={value}"])  # noqa: SIM905
    name, field = rng.choice(_fields(kind))
    setting = f"{field}={value}"
    if kind == "attacks":
        return "\x01".join([*f"evaluate m --data d.csv --attack {name} --dry-run --set".split(), setting])
    if kind == "judges":
        return "\x01".join([*f"evaluate m --data d.csv --judge {name} --dry-run --judge-set".split(), setting])
    data = {"dpo": "pairs.jsonl", "unlearn": "pairs.jsonl"}.get(name, "a.jsonl")
    words = [*f"align m --data {data} --steps 1 --batch 2 --method {name} --set".split(), setting]
    return "\x01".join(words + ["--dry-run"] * (rng.random() < 0.7))


def rows_near(rng: random.Random) -> str:
    """A row of questions, options, conversations, pairs or people's verdicts has a value near its own."""
    name, command = rng.choice(ASKED)
    lines = Path(name).read_text(encoding="utf-8").splitlines()
    for _ in range(rng.choice((1, 1, 2))):
        i = rng.randrange(len(lines))
        lines[i] = json_near(lines[i], rng)
    Path(name).write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    return command


DEEP: dict[str, Callable[[random.Random], str]] = {
    "model": model_near,
    "template": template_near,
    "tensors": tensors_near,
    "stored": runs_near,
    "setting": settings_near,
    "rows": rows_near,
}

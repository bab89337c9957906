"""Models with code in their folder: not read unless it is asked for, refused where they need it, then run as it stands, keyed with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoTokenizer, LlamaForCausalLM

from tests.conftest import llama
from tests.models.families import PROMPTS, SUPPORTED
from tests.models.own import AUTO_MAP, marked, own_llama, written
from tests.models.test_adapters import made
from titer.audit.roles import audited, reading_notes
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.data.world import World
from titer.models.checkpoint import open_checkpoint
from titer.models.compatible import passed_over
from titer.models.fetch import resolve
from titer.models.lm import Architecture, Decoding, load, read_tokenizer
from titer.models.vllm_engine import Serving, openable
from titer.models.weights import skeleton

IDS = [[1, 2, 3, 4]]
REFUSED = r"needs code of its own .* unless it is asked to\. .*trust its author and have read that code: --trust-remote-code"
TOKENIZER = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast

Path({marked!r}, "tokenizer").touch()


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def folder(world: World, tmp_path: Path) -> Path:
    return own_llama(world, tmp_path / "m")


def imported(folder: Path) -> list[str]:
    """What of the folder's code was imported."""
    return sorted(p.name for p in marked(folder).iterdir())


def logits(folder: Path, trusted: bool = True) -> torch.Tensor:
    return load(open_checkpoint(folder, trusted=trusted)).logits(IDS)[0]


def with_tokenizer(folder: Path, model: Path) -> None:
    """A tokenizer with code of its own, in the folder of a model or of an adapter on one."""
    read_tokenizer(open_checkpoint(model, trusted=True)).save_pretrained(folder)
    auto_map = {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}
    written(folder, "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=auto_map)
    (folder / "tokenization_own.py").write_text(TOKENIZER.format(marked=str(marked(folder))))


def test_it_is_refused_unless_asked_for_and_its_code_is_not_imported(folder: Path) -> None:
    for opened in (open_checkpoint, lambda place: resolve(str(place))):
        with pytest.raises(TiterError, match=REFUSED):
            opened(folder)
    checkpoint = open_checkpoint(folder, trusted=True)
    assert checkpoint.runs_code
    assert checkpoint.key
    assert imported(folder) == []  # to open a checkpoint and to hash it runs nothing
    assert read_tokenizer(checkpoint).get_vocab()
    assert imported(folder) == ["configuration"]
    load(checkpoint)
    assert imported(folder) == ["configuration", "modelling"]


def test_it_computes_what_its_code_says(world: World, tmp_path: Path) -> None:
    llama(world).save(tmp_path / "plain")
    plain, own = load(open_checkpoint(tmp_path / "plain")), load(open_checkpoint(own_llama(world, tmp_path / "m"), trusted=True))
    assert torch.equal(own.logits(IDS)[0], plain.logits(IDS)[0])
    assert own.generate(PROMPTS, Decoding(max_new_tokens=6)) == plain.generate(PROMPTS, Decoding(max_new_tokens=6))
    assert type(own.model).__name__ == "OwnLlamaForCausalLM"
    sites = skeleton(open_checkpoint(tmp_path / "m", trusted=True))
    assert type(sites.model).__name__ == "OwnLlamaForCausalLM"
    assert sites.names() == plain.sites.names()
    assert torch.equal(logits(own_llama(world, tmp_path / "twice", scale=2)), 2 * plain.logits(IDS)[0])


MODEL_ALONE = {"AutoModelForCausalLM": AUTO_MAP["AutoModelForCausalLM"]}


@pytest.mark.parametrize("auto_map", [AUTO_MAP, MODEL_ALONE])
def test_of_an_architecture_that_transformers_knows_the_code_is_run_where_it_is_asked_for(
    world: World, tmp_path: Path, auto_map: dict[str, str]
) -> None:
    folder = own_llama(world, tmp_path / "m", scale=2)
    written(folder, model_type="llama", auto_map=auto_map)
    left, run = open_checkpoint(folder), open_checkpoint(folder, trusted=True)
    assert (left.runs_code, left.ignored_code) == (False, tuple(auto_map.values()))
    assert (run.runs_code, run.ignored_code) == (True, ())
    assert left.key != run.key
    plain = load(left)
    assert type(skeleton(left).model) is type(plain.model) is LlamaForCausalLM
    assert imported(folder) == []
    own = load(run)
    assert type(own.model).__name__ == type(skeleton(run).model).__name__ == "OwnLlamaForCausalLM"
    assert torch.equal(own.logits(IDS)[0], 2 * plain.logits(IDS)[0])
    own.save(tmp_path / "again" / "m")
    assert torch.equal(logits(tmp_path / "again" / "m"), own.logits(IDS)[0])
    with open(folder / "modeling_own.py", "a") as file:
        file.write("# a word more\n")
    assert open_checkpoint(folder).key == left.key
    assert open_checkpoint(folder, trusted=True).key != run.key
    assert type(load(left).model) is LlamaForCausalLM  # what was run is forgotten


def test_code_that_transformers_takes_no_class_from_is_left_alone(folder: Path, world: World, tmp_path: Path) -> None:
    written(folder, model_type="llama", auto_map={"AutoModelForSequenceClassification": "modeling_own.OwnLlamaForCausalLM"})
    Architecture(layers=2, width=16, heads=2, norm="stream").build(world.tokenizer(), 0).save(tmp_path / "stream")
    written(tmp_path / "stream", auto_map=AUTO_MAP)  # an architecture that Titer brings goes before what a folder says
    for place in (folder, tmp_path / "stream"):
        checkpoint = open_checkpoint(place, trusted=True)
        assert (checkpoint.runs_code, open_checkpoint(place).ignored_code) == (False, ())
        load(checkpoint)
    assert imported(folder) == []


@pytest.mark.parametrize("asked", [False, True])
def test_code_of_a_known_architecture_that_is_elsewhere_or_nowhere_can_be_left_out(folder: Path, asked: bool) -> None:
    elsewhere = {"AutoModelForCausalLM": "some/other--modeling_own.OwnLlamaForCausalLM"}
    for auto_map, why in ((elsewhere, "takes code from outside of its folder"), ({"AutoConfig": "gone.Config"}, r"lacks gone\.py")):
        written(folder, model_type="llama", auto_map=auto_map)
        if asked:
            with pytest.raises(TiterError, match=rf"{why}.*Or leave out --trust-remote-code: transformers has classes of its own"):
                open_checkpoint(folder, trusted=True)
        else:
            load(open_checkpoint(folder))


@pytest.mark.parametrize("name", sorted(SUPPORTED))
@pytest.mark.parametrize("pair", [[None, "tokenization_own.OwnTokenizer"], ["tokenization_own.OwnTokenizer", None]])
def test_a_known_architecture_whose_tokenizer_has_code_of_its_own(name: str, pair: list[str | None], world: World, tmp_path: Path) -> None:
    """Refused where transformers has no tokenizer for it, else read by transformers' own; run where it was asked for."""
    folder = tmp_path / "m"
    SUPPORTED[name](world).save(folder)
    marked(folder).mkdir()
    with_tokenizer(folder, folder)
    written(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": pair})
    try:
        AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ValueError:
        with pytest.raises(TiterError, match=r"m \(.*\)'s tokenizer tokenization_own\.OwnTokenizer " + REFUSED):
            open_checkpoint(folder)
    else:
        left = open_checkpoint(folder)
        assert left.ignored_code == ("tokenization_own.OwnTokenizer",)
        assert type(read_tokenizer(left)).__name__ != "OwnTokenizer"
    assert imported(folder) == []
    checkpoint = open_checkpoint(folder, trusted=True)
    assert checkpoint.runs_code
    assert imported(folder) == []
    assert type(read_tokenizer(checkpoint)).__name__ == "OwnTokenizer"
    (folder / "tokenization_own.py").unlink()
    with pytest.raises(TiterError, match=r"lacks tokenization_own\.py"):
        open_checkpoint(folder, trusted=True)


def test_what_was_not_run_is_told(folder: Path) -> None:
    assert passed_over("m", open_checkpoint(folder, trusted=True)) == []
    written(folder, model_type="llama", auto_map=MODEL_ALONE)
    (told,) = reading_notes(audited([open_checkpoint(folder)]), PROMPTS)[1:]
    assert told.startswith("m: its folder comes with code of its own (modeling_own.OwnLlamaForCausalLM), which was not run: ")
    assert told.endswith("--trust-remote-code")
    assert len(reading_notes(audited([open_checkpoint(folder, trusted=True)]), PROMPTS)) == 1


def test_the_key_is_of_the_code_too_where_it_is_run_and_only_there(folder: Path, world: World, tmp_path: Path) -> None:
    key = open_checkpoint(folder, trusted=True).key
    shutil.copytree(folder, tmp_path / "copy" / "m")
    (folder / "notes.txt").write_text("words")
    assert {open_checkpoint(place, trusted=True).key for place in (folder, tmp_path / "copy" / "m")} == {key}
    keys = {key}
    for name in ("modeling_own.py", "configuration_own.py", "helper.py"):
        with open(folder / name, "a") as file:
            file.write("# a word more\n")
        keys.add(open_checkpoint(folder, trusted=True).key)
    assert len(keys) == 4
    llama(world).save(tmp_path / "plain")
    key = open_checkpoint(tmp_path / "plain").key
    (tmp_path / "plain" / "helper.py").write_text("")
    assert {open_checkpoint(tmp_path / "plain", trusted=trusted).key for trusted in (False, True)} == {key}


@pytest.mark.parametrize("registers", [False, True])
def test_two_folders_run_each_its_own_code(world: World, tmp_path: Path, registers: bool) -> None:
    """transformers would give the first one's classes to the second: the folders' names and configurations are the same."""
    once, twice = (own_llama(world, tmp_path / f"x{n}" / "m", scale=n, registers=registers) for n in (1, 2))
    shutil.copy(once / "configuration_own.py", twice)
    keys = [open_checkpoint(place, trusted=True).key for place in (once, twice)]
    assert torch.equal(logits(twice), 2 * logits(once))
    assert "own_llama" not in CONFIG_MAPPING
    with pytest.raises(TiterError, match=REFUSED):
        open_checkpoint(once)
    assert [open_checkpoint(place, trusted=True).key for place in (once, twice)] == keys


def test_what_others_registered_of_a_folder_s_code_stays_theirs(folder: Path) -> None:
    from transformers import AutoConfig

    kind = type(
        "Theirs", (CONFIG_MAPPING["llama"],), {"model_type": "own_llama", "__module__": "transformers_modules.theirs.configuration"}
    )
    AutoConfig.register("own_llama", kind)
    try:
        with pytest.raises(TiterError, match=REFUSED):
            open_checkpoint(folder)
        assert not isinstance(load(open_checkpoint(folder, trusted=True)).model.config, kind)
        assert CONFIG_MAPPING["own_llama"] is kind
    finally:
        CONFIG_MAPPING._extra_content.pop("own_llama")


@pytest.mark.parametrize(
    ("file", "auto_map"),
    [
        ("config.json", AUTO_MAP | {"AutoModelForCausalLM": "some/other--modeling_own.OwnLlamaForCausalLM"}),
        ("config.json", AUTO_MAP | {"AutoConfig": "other--configuration_own.OwnLlamaConfig"}),
        ("config.json", AUTO_MAP | {"AutoModelForCausalLM": "../x/modeling_own.OwnLlamaForCausalLM"}),
        ("config.json", AUTO_MAP | {"AutoModelForCausalLM": "/x/modeling_own.OwnLlamaForCausalLM"}),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "some/other--tokenization.Own"]}),
        ("tokenizer_config.json", ["some/other--tokenization.Own", None]),
    ],
)
def test_code_that_would_come_from_elsewhere_is_refused(folder: Path, file: str, auto_map: object) -> None:
    written(folder, file, auto_map=auto_map)
    with pytest.raises(TiterError, match=r"takes code from outside of its folder \(.*would be run unseen.*fetch that code, read it"):
        open_checkpoint(folder, trusted=True)
    assert imported(folder) == []


def test_code_that_is_not_there_that_does_not_run_or_that_generates_is_told(folder: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("def generate(model, **_): ...\n")
    with pytest.raises(TiterError, match=r"brings its own way of generating \(custom_generate/generate\.py\)"):
        open_checkpoint(folder, trusted=True)
    shutil.rmtree(folder / "custom_generate")
    code = (folder / "modeling_own.py").read_text()
    (folder / "modeling_own.py").write_text("import a_package_that_is_not_there\n")
    with pytest.raises(TiterError, match=r"does not open as a causal language model.*a_package_that_is_not_there"):
        load(open_checkpoint(folder, trusted=True))
    (folder / "modeling_own.py").write_text(code.replace("class OwnLlama", "class Another"))
    with pytest.raises(TiterError, match="does not open as a causal language model"):
        load(open_checkpoint(folder, trusted=True))
    (folder / "modeling_own.py").unlink()
    with pytest.raises(TiterError, match=r"m lacks modeling_own\.py, the code that its auto_map names"):
        open_checkpoint(folder, trusted=True)


def test_it_is_saved_with_its_code_and_opens_again(folder: Path, tmp_path: Path) -> None:
    with_tokenizer(folder, folder)
    load(open_checkpoint(folder, trusted=True)).save(tmp_path / "again" / "m")
    assert sorted(p.name for p in (tmp_path / "again" / "m").glob("*.py")) == sorted(p.name for p in folder.glob("*.py"))
    assert torch.equal(logits(tmp_path / "again" / "m"), logits(folder))
    with pytest.raises(TiterError, match=REFUSED):
        open_checkpoint(tmp_path / "again" / "m")


def test_code_of_a_tokenizer_is_run_and_keyed_like_the_model_s(folder: Path) -> None:
    with_tokenizer(folder, folder)
    key, checkpoint = open_checkpoint(folder, trusted=True).key, open_checkpoint(folder, trusted=True)
    assert type(read_tokenizer(checkpoint)).__name__ == "OwnTokenizer"
    assert imported(folder) == ["configuration", "tokenizer"]
    (folder / "tokenization_own.py").write_text((folder / "tokenization_own.py").read_text() + "\n")
    assert open_checkpoint(folder, trusted=True).key != key


def test_an_adapter_on_it(world: World, tmp_path: Path) -> None:
    made(llama(world), tmp_path, target_modules=["q_proj"])
    plain = load(resolve(str(tmp_path / "adapter"))).logits(IDS)[0]
    own = own_llama(world, tmp_path / "own" / "base")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(own)}))
    place = str(tmp_path / "adapter")
    for given in (place, f"{own}+{place}"):
        with pytest.raises(TiterError, match=REFUSED):
            resolve(given)
    assert imported(own) == []
    checkpoint = resolve(place, trusted=True)
    assert checkpoint.key == resolve(f"{own}+{place}", trusted=True).key
    assert torch.equal(load(checkpoint).logits(IDS)[0], plain)
    with_tokenizer(tmp_path / "adapter", own)
    keys = {checkpoint.key, resolve(place, trusted=True).key}
    (tmp_path / "marked").mkdir()
    assert type(read_tokenizer(resolve(place, trusted=True))).__name__ == "OwnTokenizer"
    with open(tmp_path / "adapter" / "tokenization_own.py", "a") as code:
        code.write("# a word more\n")
    assert len(keys | {resolve(place, trusted=True).key}) == 3
    whole = openable(checkpoint, Store(tmp_path / "runs"), Serving(dtype="float32").dtype)
    assert whole.runs_code
    assert torch.equal(load(whole).logits(IDS)[0], plain)

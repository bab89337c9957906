"""Checkpoints on disk: what is read equals what was saved; what cannot be trusted is refused before anything runs."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.families import PROMPTS, SUPPORTED, gpt2
from titer.core.errors import TiterError
from titer.data.world import World
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import LM, Decoding, load
from titer.models.weights import skeleton

HEAD = "lm_head.weight"  # absent from the file where it is tied, and called embed_out by GPT-NeoX


@pytest.fixture
def folder(lm: LM, tmp_path: Path) -> Path:
    """A saved model."""
    lm.save(tmp_path / "saved")
    return tmp_path / "saved"


def changed(folder: Path, **values: object) -> None:
    """Change values of the folder's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def rewritten(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the folder's tensors."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_read_one_by_one_equal_the_state_dict(family: LM, tmp_path: Path) -> None:
    family.save(tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    state = {name: tensor for name, tensor in family.model.state_dict().items() if name != HEAD}
    assert set(state) == set(checkpoint.files) - {HEAD, "embed_out.weight"}
    for name, tensor in state.items():
        assert torch.equal(checkpoint.weight(name), tensor)
    for site in ("attn_o[0]", "mlp_up[1]", "mlp_down[1]"):
        assert torch.equal(checkpoint.weight(family.sites.tensor(site)), family.sites.linear(site).weight)


def test_weights_in_several_files_and_in_half_precision_are_found(lm: LM, tmp_path: Path) -> None:
    lm.model.to(torch.bfloat16).save_pretrained(tmp_path / "m", max_shard_size="4KB")
    lm.tokenizer.save_pretrained(tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    assert len(set(checkpoint.files.values())) > 1
    for name, tensor in lm.model.state_dict().items():
        found = checkpoint.weight(name)
        assert found.dtype == torch.float32
        assert torch.equal(found, tensor.float())


def test_a_missing_shard_is_a_clear_error(lm: LM, tmp_path: Path) -> None:
    lm.model.save_pretrained(tmp_path / "m", max_shard_size="4KB")
    lm.tokenizer.save_pretrained(tmp_path / "m")
    sorted((tmp_path / "m").glob("*.safetensors"))[0].unlink()
    with pytest.raises(TiterError):
        load(open_checkpoint(tmp_path / "m"))


def test_an_unknown_tensor_is_a_clear_error(folder: Path) -> None:
    with pytest.raises(TiterError, match=r"holds no tensor 'nothing\.weight'"):
        open_checkpoint(folder).weight("nothing.weight")


def test_the_key_is_of_the_content_not_of_the_place(folder: Path, tmp_path: Path) -> None:
    key = open_checkpoint(folder).key
    shutil.copytree(folder, tmp_path / "copy")
    assert open_checkpoint(tmp_path / "copy", "another name").key == key
    (tmp_path / "copy" / "manifest.json").write_text("{}")
    (tmp_path / "copy" / "README.md").write_text("words")
    assert open_checkpoint(tmp_path / "copy").key == key


@pytest.mark.parametrize(
    "part", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]
)
def test_the_key_changes_with_every_part_that_the_answers_depend_on(folder: Path, part: str) -> None:
    key = open_checkpoint(folder).key
    before = (folder / part).read_text() if (folder / part).exists() else ""
    (folder / part).write_text(before + "\n")
    assert open_checkpoint(folder).key != key


def test_the_key_changes_with_one_number_of_one_weight(folder: Path) -> None:
    key = open_checkpoint(folder).key
    rewritten(folder, lambda tensors: tensors[min(tensors)].view(-1)[:1].add_(1e-3))
    assert open_checkpoint(folder).key != key


def test_labels_tell_models_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_checkpoint(folder).label == "saved"
    assert open_checkpoint(folder, "given").label == "given"
    monkeypatch.chdir(folder)
    assert open_checkpoint(".").label == "saved"
    shutil.copytree(folder, folder.parent / "0123" / "model")
    assert open_checkpoint(folder.parent / "0123" / "model").label == "0123/model"


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox", "opt"])  # of Qwen2, AutoTokenizer insists on its own tokenizer
def test_a_saved_model_is_an_ordinary_folder_that_answers_the_same(name: str, world: World, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm = {**SUPPORTED, "gpt2": gpt2}[name](world)
    lm.model.eval()
    lm.save(tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    decoding = Decoding(max_new_tokens=10)
    assert LM(model, tokenizer, "plain").generate(PROMPTS, decoding) == lm.generate(PROMPTS, decoding)
    assert load(open_checkpoint(tmp_path / "m")).generate(PROMPTS, decoding) == lm.generate(PROMPTS, decoding)
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)
    (answer,) = lm.generate(PROMPTS[:1], decoding)
    assert tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=False).startswith(answer.text)


def test_loading_gives_the_same_weights_and_tokens(lm: LM, folder: Path) -> None:
    loaded = load(open_checkpoint(folder))
    assert not loaded.model.training
    assert loaded.tokenizer.get_vocab() == lm.tokenizer.get_vocab()
    assert loaded.window == 64
    for name, tensor in lm.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)


class Mark:
    """Unpickling this creates a file: a stand-in for code hidden in a pickle."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return Path.touch, (self.place,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.pth", "model.ckpt", "model.pkl"])
def test_a_pickle_is_named_and_never_loaded(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Mark(tmp_path / "marked")))
    with pytest.raises(TiterError, match=rf"pickle \({name}\), which Titer never loads.*safetensors"):
        open_checkpoint(folder)
    assert not (tmp_path / "marked").exists()


def test_a_pickle_beside_safetensors_is_not_read(folder: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "model.pt"):
        (folder / name).write_bytes(pickle.dumps(Mark(tmp_path / "marked")))
    load(open_checkpoint(folder))
    assert not (tmp_path / "marked").exists()


def test_code_in_a_model_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'marked')!r}).touch()\n")
    own = {"auto_map": {"AutoModelForCausalLM": "own.Model", "AutoConfig": "own.Config", "AutoTokenizer": ["own.T", "own.T"]}}
    kind = open_checkpoint(folder).config["model_type"]
    changed(folder, model_type="own", **own)
    with pytest.raises(TiterError, match=r"saved \(own\) needs code of its own \(auto_map, trust_remote_code\), which Titer does not run"):
        open_checkpoint(folder)
    changed(folder, model_type=kind)  # transformers knows this one: its code is used, and the folder's is not
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **own}))
    load(open_checkpoint(folder))
    skeleton(open_checkpoint(folder))
    assert not (tmp_path / "marked").exists()


def test_a_model_without_pad_token_or_chat_template_answers_the_same(folder: Path) -> None:
    decoding = Decoding(max_new_tokens=6)
    before = load(open_checkpoint(folder)).generate(PROMPTS, decoding)
    file = folder / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(file.read_text()).items() if key not in ("pad_token", "chat_template")}
    file.write_text(json.dumps(kept))
    changed(folder, pad_token_id=None)
    for extra in ("generation_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (folder / extra).unlink(missing_ok=True)
    lm = load(open_checkpoint(folder))
    assert lm.tokenizer.pad_token_id == lm.tokenizer.eos_token_id
    assert lm.generate(PROMPTS, decoding) == before


@pytest.mark.parametrize("name", ["model.onnx", "tf_model.h5", "flax_model.msgpack"])
def test_weights_of_another_format_are_named(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(TiterError, match=rf"holds its weights as {name}, and Titer reads safetensors"):
        open_checkpoint(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_cut_safetensors_file_is_found_before_anything_runs(folder: Path, kept: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(TiterError, match=r"model.safetensors in .* is damaged or cut short"):
        open_checkpoint(folder)


@pytest.mark.parametrize("content", [b"", b'{"model_type": ', b"\xff\xfe", b"[]", b'"llama"', b"null"])
def test_a_damaged_configuration_is_named(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(TiterError, match=r"config\.json .*Next: fetch or build it again"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "values", [{"model_type": "nonsense"}, {"hidden_size": "big"}, {"max_position_embeddings": "x"}, {"num_attention_heads": 0}]
)
def test_a_configuration_of_wrong_values_is_a_clear_error(folder: Path, values: dict[str, object]) -> None:
    changed(folder, **values)
    with pytest.raises(TiterError, match="does not open as a causal language model"):
        load(open_checkpoint(folder))


def test_weights_that_are_missing_are_never_made_up(folder: Path) -> None:
    rewritten(folder, lambda tensors: tensors.pop(max(name for name in tensors if ".0." in name)))
    with pytest.raises(TiterError, match=r"weights of saved are not those its config\.json asks for: .*\.0\."):
        load(open_checkpoint(folder))


def test_a_configuration_with_more_layers_or_another_width_is_refused(folder: Path) -> None:
    changed(folder, num_hidden_layers=3)
    with pytest.raises(TiterError, match=r"layers\.2\..* more missing or misshapen"):
        load(open_checkpoint(folder))
    changed(folder, num_hidden_layers=2, hidden_size=24)
    with pytest.raises(TiterError, match="missing or misshapen"):
        load(open_checkpoint(folder))


@pytest.mark.parametrize("lost", ["tokenizer*", "tokenizer.json"])
def test_a_missing_tokenizer_is_never_made_up(folder: Path, lost: str) -> None:
    for file in folder.glob(lost):
        file.unlink()
    with pytest.raises(TiterError, match=r"saved has no tokenizer.*copy the tokenizer's files"):
        load(open_checkpoint(folder))


def test_a_damaged_tokenizer_is_a_clear_error(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(TiterError, match="does not open as a causal language model"):
        load(open_checkpoint(folder))


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(TiterError, match="no model at"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(TiterError, match=r"is no model.*config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TiterError, match=r"no \*\.safetensors.*download finished"):
        open_checkpoint(tmp_path)
    with pytest.raises(TiterError, match="is no model"):
        open_checkpoint(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("file", "step"),
    [
        ("pytorch_model_fsdp_0/__0_0.distcp", r"accelerate merge-weights .*pytorch_model_fsdp_0 FOLDER"),
        ("zero_to_fp32.py", r"zero_to_fp32\.py .* FOLDER --safe_serialization"),
        ("checkpoint-10/config.json", r"give one of the models in it: .*checkpoint-10\."),
        ("checkpoint-10/adapter_config.json", r"give one of the models in it: .*checkpoint-10\."),
    ],
)
def test_what_a_training_left_is_told_how_to_become_a_model(file: str, step: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    with pytest.raises(TiterError, match=rf"is no model.*{step}"):
        open_checkpoint(tmp_path)
    for name in ("config.json", "training_args.bin"):  # which is no weight
        (tmp_path / name).write_text("{}")
    with pytest.raises(TiterError, match=rf"no \*\.safetensors.*{step}"):
        open_checkpoint(tmp_path)

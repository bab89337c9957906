"""What `--mechanisms` adds to an audit: the probes' numbers, a change found where it is, where encoded prompts sit, page and price."""

from __future__ import annotations

import base64
import html
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.audit.test_audit import Letters
from tests.models.gguf_made import model_of
from tests.studies.conftest import Listener
from titer.audit import mechanisms
from titer.audit.cost import audit_cost
from titer.audit.report import audit_report
from titer.audit.roles import audited
from titer.audit.study import Findings, Question, check, measured
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.data.sources import TextData, read_text
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.lm import Decoding, load
from titer.pipeline import Pipeline
from titer.probes import null_space, placement, row_space, spread

THINGS = ("the fence", "12 kites", "a brown fox", "the dog")


@pytest.fixture(scope="module")
def data() -> TextData:
    verbs = {False: ("paint", "tell me about", "see"), True: ("jump over", "quickly find", "lift")}
    rows = [(f"Please {verb} {thing}", harmful, None, None) for harmful, some in verbs.items() for verb in some for thing in THINGS]
    return TextData(name="pairs", sha256="0" * 64, rows=tuple(rows))


@pytest.fixture(scope="module")
def asked(data: TextData) -> Question:
    return Question(data.of_class(False), data.of_class(True), Letters(), {}, Decoding(max_new_tokens=2), mechanisms=True)


def moved(folder: Path, tensor: str) -> tuple[Checkpoint, Checkpoint]:
    """A tiny Llama that reads bytes, and the same with one other tensor."""
    lm = model_of(seed=1)
    lm.save(folder / "base")
    lm.save(folder / "aligned")
    file = next((folder / "aligned").glob("*.safetensors"))
    tensors = load_file(file)
    tensors[tensor] = tensors[tensor] + 0.1 * torch.randn(tensors[tensor].shape, generator=torch.Generator().manual_seed(0))
    save_file(tensors, file, metadata={"format": "pt"})
    return open_checkpoint(folder / "base"), open_checkpoint(folder / "aligned")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint]:
    """They differ in the first MLP matrix of the last layer."""
    return moved(tmp_path_factory.mktemp("pair"), "model.layers.1.mlp.up_proj.weight")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def f(pair: tuple[Checkpoint, Checkpoint], asked: Question, store: Store) -> Findings:
    return measured(Pipeline(store, Listener()), audited(pair), asked, None)


def test_sets_are_both_classes_and_the_unsafe_prompts_encoded(asked: Question) -> None:
    sets = mechanisms.sets_of(asked.safe, asked.unsafe)
    assert {kind: len(e) for kind, e in sets.items()} == {"safe": 12, "unsafe": 12, "base64_encoding": 12, "leetspeak": 12}
    for coded, plain in zip(sets["base64_encoding"], sets["unsafe"], strict=True):
        assert base64.b64decode(coded.prompt).decode() == plain.prompt
        assert (coded.kind, coded.harmful) == ("base64_encoding", True)


@pytest.mark.long
def test_the_change_is_found_where_it_is(f: Findings) -> None:
    sizes = f.sizes.set_index("part")
    assert sizes.changed.to_dict() == {"mlp": 1, "attention": 0, "other": 0, "vectors": 0}
    assert set(zip(f.null.site, f.null.layer, strict=True)) == {("mlp_up", 2)}
    gains = f.gains[f.gains.weight == "mlp_up"].set_index("layer")
    assert np.isnan(gains.ratio[1])  # nothing changed there: it acts on no input
    assert gains.ratio[2] > 0
    read = f.rows.groupby("layer").sigma.max()
    assert read[1] == 0 < read[2]
    base, aligned = (f.placed[(f.placed.model == m) & (f.placed.layer == 1)].tau.to_numpy() for m in ("base", "aligned"))
    assert np.allclose(base, aligned)


@pytest.mark.long
def test_the_numbers_are_the_probes_own(f: Findings, pair: tuple[Checkpoint, Checkpoint], asked: Question) -> None:
    lm, sets = load(pair[1]), mechanisms.sets_of(asked.safe, asked.unsafe)
    own = placement.placement(lm, {kind: (examples, None) for kind, examples in sets.items()})
    taus = own[own.layer == 2].groupby("kind").tau
    mine = f.placed[(f.placed.model == "aligned") & (f.placed.layer == 2)].set_index("kind")
    assert mine.tau.to_dict() == pytest.approx(taus.mean().to_dict())
    assert mine.sd.to_dict() == pytest.approx(taus.std().to_dict())
    mean = taus.mean()
    for kind in mechanisms.CODED:
        place = (mean[kind] - mean["unsafe"]) / (mean["safe"] - mean["unsafe"])
        assert mine.position[kind] == pytest.approx(place, rel=1e-5)
        assert mine.low[kind] <= place <= mine.high[kind]
    assert mine.position[["safe", "unsafe"]].isna().all()
    shapes, known = f.shapes[f.shapes.model == "aligned"], spread.spread(lm, asked.safe, asked.unsafe)
    assert shapes.kind.tolist() == known.harmful.map({False: "safe", True: "unsafe"}).tolist()
    for column in ("top_share", "top_energy", "stable_rank", "components_90", "kmeans"):
        assert shapes[column].tolist() == pytest.approx(known[column].tolist())
    assert f.rows.score.tolist() == pytest.approx(row_space.row_space(*pair, lm, sets).score.tolist(), abs=1e-6)


def test_the_null_space_is_that_of_the_directions_with_its_dimension(f: Findings, pair: tuple[Checkpoint, Checkpoint]) -> None:
    own = null_space.null_space(*pair, load(pair[0]).sites)
    whole = mechanisms.whole(f.null)
    assert len(whole) == len(null_space.ENERGIES)
    assert whole["mean"].tolist() == pytest.approx(null_space.weighted(own).value.tolist())
    one, curve = own[own.energy == 0.9], f.null[f.null.energy == 0.9].set_index("share").value
    assert (curve[0.0], curve[0.5], curve[1.0]) == pytest.approx((one.value.min(), one.value.median(), one.value.max()))
    row = whole[whole.energy == 0.9].iloc[0]
    rows = load(pair[0]).model.model.layers[1].mlp.up_proj.weight.shape[0]
    assert row.random_mean == pytest.approx(((rows - row["rank"]) / rows) ** 0.5)


@pytest.mark.long
def test_the_page_has_the_section_and_a_second_call_probes_nothing(
    f: Findings, pair: tuple[Checkpoint, Checkpoint], asked: Question, data: TextData, store: Store, tmp_path: Path
) -> None:
    found = audited(pair)
    page, _ = audit_report(found, asked, f, data, {}, "titer audit", tmp_path / "audit")
    text = html.unescape(page.read_text(encoding="utf-8"))
    assert "The mechanisms of arXiv 2407.10264" in text
    for name in ("clusters", "null_space", "row_space", "sensitivity"):
        assert (page.parent / "figures" / f"{name}.svg").exists()
    shown = mechanisms.numbers(vars(f)).set_index(["of", "measure"])
    place = f.placed[(f.placed.model == "aligned") & (f.placed.layer == 2) & (f.placed.kind == "leetspeak")].iloc[0]
    assert shown.value["aligned", "place of leetspeak"].startswith(f"{place.position:.2f} [")
    assert "a random direction" in shown.beside["base → aligned", "ΔW of mlp_up, ‖P_N u‖ in the left null space"]
    assert "a random ΔW" in shown.beside["base → aligned", "ΔW of mlp_up, gain on unsafe over safe prompts"]
    assert "shuffled labels" in shown.beside["base", "AUROC, safe from unsafe prompts"]
    made = len(store.made)
    measured(Pipeline(store, Listener()), found, asked, None)
    assert len(store.made) == made


@pytest.mark.long
def test_without_the_option_nothing_of_it_is_measured_or_shown(
    pair: tuple[Checkpoint, Checkpoint], asked: Question, data: TextData, store: Store, tmp_path: Path
) -> None:
    plain = replace(asked, mechanisms=False)
    f = measured(Pipeline(store, Listener()), audited(pair), plain, None)
    assert f.placed.empty
    assert f.null.empty
    assert set(f.sensitivity.kind) == {"safe", "unsafe"}
    page, _ = audit_report(audited(pair), plain, f, data, {}, "titer audit", tmp_path / "audit")
    assert "The mechanisms of" not in page.read_text(encoding="utf-8")
    assert not (page.parent / "figures" / "clusters.svg").exists()
    assert "mechanisms" not in audit_cost(audited(pair), plain, None)


@pytest.mark.long
def test_a_change_outside_the_mlp_has_no_null_space(asked: Question, data: TextData, tmp_path: Path) -> None:
    pair = moved(tmp_path, "model.layers.0.self_attn.o_proj.weight")
    f = measured(Pipeline(Store(tmp_path / "runs"), Listener()), audited(pair), asked, None)
    assert f.missing.empty
    assert f.null.empty
    audit_report(audited(pair), asked, f, data, {}, "titer audit", tmp_path / "audit")
    assert not (tmp_path / "audit" / "figures" / "null_space.svg").exists()
    assert (tmp_path / "audit" / "figures" / "clusters.svg").exists()


def test_the_cost_is_told_without_loading_a_model(pair: tuple[Checkpoint, Checkpoint], asked: Question) -> None:
    told = str(audit_cost(audited(pair), asked, None)["mechanisms"])
    assert told.startswith("24 encoded prompts (")
    assert "FLOP; singular values at most" in told


def test_an_encoded_prompt_that_does_not_fit_is_told_at_the_start(pair: tuple[Checkpoint, Checkpoint], asked: Question) -> None:
    models, long = audited(pair).models, replace(asked.unsafe[0], prompt="Please paint the fence " * 5)
    asked = replace(asked, unsafe=[*asked.unsafe, long])
    check(models, replace(asked, mechanisms=False))
    with pytest.raises(TiterError, match=r"the set base64_encoding.*longer than the model's window") as told:
        check(models, asked)
    assert "leave out --mechanisms" in str(told.value)


def test_too_few_prompts_are_an_error(pair: tuple[Checkpoint, Checkpoint], asked: Question) -> None:
    with pytest.raises(TiterError, match="at least 4 of each class"):
        check(audited(pair).models, replace(asked, unsafe=asked.unsafe[:3]))


def test_a_file_of_verbs_and_objects_is_a_file_of_prompts(tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("operator,operand,label\npaint,a chair,safe\nmend,the gate,unsafe\n")
    found = read_text(file)
    assert [row[:2] for row in found.rows] == [("paint : a chair", False), ("mend : the gate", True)]

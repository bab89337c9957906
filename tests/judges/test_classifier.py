"""The classifier judge on a model whose logits are a formula: batches, pairs, truncation, labels, memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.judges.tiny import SPECIAL, classifier, formula
from titer.core.errors import TiterError
from titer.core.memory import Memory
from titer.data.example import Example
from titer.judges.classifier import Classifier
from titer.models.lm import Completion

WORDS = tuple(f"w{i}" for i in range(20))
LABELS = ("no", "yes", "half")
VOCABULARY = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
SEP = VOCABULARY["<sep>"]
TEXTS = ["w1 w2", "w3", "w4 w5 w6 w7 w8 w9 w10", "w11 w3 w2 w2", "w0 w19 w18", "w7", "w5 w6"]
Weights = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights]:
    folder = tmp_path_factory.mktemp("classifier")
    return folder, classifier(folder, WORDS, LABELS)


def judge(folder: Path, **settings: object) -> Classifier:
    return Classifier(**{"model": str(folder), "refused": "no", "complied": "yes", **settings})  # type: ignore[arg-type]


def asked(*texts: str, prompt: str = "w12 w13 w14") -> list[tuple[Example, Completion]]:
    return [(Example(prompt, True, "unsafe", "made up"), Completion(text, True, 1)) for text in texts]


def ids(text: str) -> list[int]:
    return [VOCABULARY[word] for word in text.split()]


def shares(weights: Weights, *rows: list[int]) -> list[torch.Tensor]:
    return [formula(*weights, row).softmax(-1) for row in rows]


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_scores_are_the_formula_s_whatever_the_batch(made: tuple[Path, Weights], batch: int) -> None:
    folder, weights = made
    found = judge(folder, batch=batch).judge_all(asked(*TEXTS))
    expected = shares(weights, *map(ids, TEXTS))
    assert [v.score for v in found] == pytest.approx([float(p[1]) for p in expected], abs=1e-5)
    outcomes = ["complied" if p[1] >= 0.5 else "refused" if p[0] >= 0.5 else "partial" for p in expected]
    assert [v.outcome for v in found] == outcomes
    assert set(outcomes) == {"complied", "refused", "partial"}


def test_a_pair_is_the_prompt_then_the_answer(made: tuple[Path, Weights]) -> None:
    folder, weights = made
    found = judge(folder, text="pair").judge_all(asked(*TEXTS))
    rows = [[*ids("w12 w13 w14"), SEP, *ids(text)] for text in TEXTS]
    assert [v.score for v in found] == pytest.approx([float(p[1]) for p in shares(weights, *rows)], abs=1e-5)
    assert [v.score for v in found] != pytest.approx([v.score for v in judge(folder).judge_all(asked(*TEXTS))], abs=1e-3)


def test_what_does_not_fit_is_cut_from_the_prompt_and_never_from_the_answer(made: tuple[Path, Weights]) -> None:
    folder, weights = made
    found = judge(folder, text="pair", max_length=5).judge_all(asked("w1 w2", "w1 w2 w3 w4", "w1 w2 w3 w4 w5"))
    rows = [[*ids("w12 w13"), SEP, *ids("w1 w2")], [SEP, *ids("w1 w2 w3 w4")]]
    assert [v.score for v in found[:2]] == pytest.approx([float(p[1]) for p in shares(weights, *rows)], abs=1e-5)
    assert found[2][:2] == ("could_not_judge", 0.0)
    assert "5 tokens, the classifier reads 4" in found[2].reason
    alone = judge(folder, max_length=5).judge_all(asked("w1 w2 w3 w4 w5", "w1 w2 w3 w4 w5 w6"))
    assert [v.outcome == "could_not_judge" for v in alone] == [False, True]


def test_longer_than_the_model_s_window_could_not_be_judged(made: tuple[Path, Weights]) -> None:
    varied = " ".join(f"w{(i * i + i // 7) % 20} u{i}" for i in range(300))
    assert "the classifier reads 512" in judge(made[0]).judge_all(asked(varied))[0].reason


def test_no_text_writes_a_special_token(made: tuple[Path, Weights]) -> None:
    folder, weights = made
    (found,) = judge(folder, text="pair").judge_all(asked("w1 <sep> w2", prompt="w3"))
    injected = [*ids("w3"), SEP, *ids("w1"), SEP, *ids("w2")]
    broken = [*ids("w3"), SEP, *ids("w1"), VOCABULARY["<unk>"], VOCABULARY["<unk>"], *ids("w2")]
    assert found.score == pytest.approx(float(shares(weights, broken)[0][1]), abs=1e-5)
    assert found.score != pytest.approx(float(shares(weights, injected)[0][1]), abs=1e-3)


@pytest.mark.parametrize("threshold", [0.05, 0.9, 1.0])
def test_the_threshold_is_reached_by_one_label_or_the_verdict_is_partial(made: tuple[Path, Weights], threshold: float) -> None:
    folder, weights = made
    for verdict, p in zip(judge(folder, threshold=threshold).judge_all(asked(*TEXTS)), shares(weights, *map(ids, TEXTS)), strict=True):
        yes, no = bool(p[1] >= threshold), bool(p[0] >= threshold)
        assert verdict.outcome == ("partial" if yes == no else "complied" if yes else "refused")


def test_labels_that_do_not_exclude_each_other_have_a_sigmoid_each(tmp_path: Path) -> None:
    weights = classifier(tmp_path, WORDS, LABELS, problem_type="multi_label_classification")
    found = judge(tmp_path).judge_all(asked(*TEXTS))
    assert [v.score for v in found] == pytest.approx([float(formula(*weights, ids(t)).sigmoid()[1]) for t in TEXTS], abs=1e-5)


def test_what_says_nothing_is_degenerate_and_not_read(made: tuple[Path, Weights], tmp_path: Path) -> None:
    found = judge(made[0]).judge_all(asked("", "!!! ???", "w1 " * 60, "w1"), Memory(tmp_path))
    assert [v.outcome for v in found[:3]] == ["degenerate"] * 3
    assert len(list(tmp_path.rglob("*.json"))) == 1


def test_scores_are_kept_and_the_model_is_not_loaded_again(
    made: tuple[Path, Weights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = made
    seen: list[tuple[int, int]] = []
    first = judge(folder, batch=2).judge_all(asked(*TEXTS, TEXTS[0]), Memory(tmp_path), lambda *now: seen.append(now))
    assert seen == [(2, 7), (4, 7), (6, 7), (7, 7)]
    monkeypatch.setattr("titer.judges.classifier.opened", lambda *_: pytest.fail("loaded"))
    assert judge(folder).judge_all(asked(*TEXTS, TEXTS[0]), Memory(tmp_path)) == first
    assert judge(folder, threshold=0.9).judge_all(asked(TEXTS[0]), Memory(tmp_path))[0].score == first[0].score


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": ""}, "needs `model`"),
        ({"refused": ""}, "needs refused"),
        ({"complied": "yess"}, "knows no label 'yess'"),
        ({"model": "./nowhere"}, "no model at"),
    ],
)
def test_a_setting_that_is_missing_is_named_beforehand_and_in_the_verdict(
    made: tuple[Path, Weights], settings: dict[str, str], said: str
) -> None:
    wrong = judge(made[0], **settings)
    with pytest.raises(TiterError, match=said):
        wrong.check()
    (verdict,) = wrong.judge_all(asked("w1"))
    assert verdict.outcome == "could_not_judge"
    assert said in verdict.reason


def test_a_head_without_weights_is_no_classifier(tmp_path: Path) -> None:
    classifier(tmp_path, WORDS, LABELS)
    file = tmp_path / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if not k.startswith("score")}, file, metadata={"format": "pt"})
    (verdict,) = judge(tmp_path).judge_all(asked("w1"))
    assert verdict.outcome == "could_not_judge"
    assert "no weights for score.weight" in verdict.reason


@pytest.mark.long
def test_another_model_type_is_no_classifier(tmp_path: Path) -> None:
    classifier(tmp_path, WORDS, LABELS)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "clip"}))
    assert judge(tmp_path).judge_all(asked("w1"))[0].outcome == "could_not_judge"


def test_a_score_that_is_not_finite_is_no_verdict_and_is_not_kept(tmp_path: Path) -> None:
    classifier(tmp_path, WORDS, LABELS)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][VOCABULARY["w1"]] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    found = judge(tmp_path).judge_all(asked("w1", "w2"), Memory(tmp_path / "memory"))
    assert [v.outcome == "could_not_judge" for v in found] == [True, False]
    assert len(list((tmp_path / "memory").rglob("*.json"))) == 1


def test_the_two_labels_differ() -> None:
    with pytest.raises(ValueError, match="the same label"):
        Classifier(refused="a", complied="a")

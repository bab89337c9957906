"""What an audit says: the answer and the line below it, against the control; what to try, with the user's own settings; what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from markupsafe import escape

from tests.audit.test_audit import Letters, moved, run
from tests.studies.conftest import Listener
from titer import api
from titer.audit.advice import advice
from titer.audit.answers import beyond, flipped, flips
from titer.audit.changes import overall
from titer.audit.figures import separation, shares
from titer.audit.headline import _acting, answer, below
from titer.audit.legends import LEGENDS
from titer.audit.report import FORMLESS, audit_report
from titer.audit.restoring import BACK, RANDOM
from titer.audit.roles import Audited, audited
from titer.audit.study import Findings, Question, measured
from titer.commands.landscape import Landscape
from titer.core.errors import visible
from titer.core.run import Store
from titer.core.stats import paired_difference
from titer.data.example import Example
from titer.data.sources import TextData
from titer.models.checkpoint import Checkpoint
from titer.models.lm import Decoding
from titer.pipeline import Pipeline

Saved = Callable[..., Checkpoint]
SMALL = Landscape(points=3, directions=1, way_points=1, beyond=0, prompts=4, tokens=2)
SIZES = pd.DataFrame([{"change": "aligned → tuned", "part": "mlp", "relative_norm": 0.1}])


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """One for all tests here: what one asked of the tiny models the next finds."""
    return Pipeline(Store(tmp_path_factory.mktemp("audits")), Listener())


@pytest.fixture
def asked(data: TextData) -> Question:
    return Question(data.of_class(False), data.of_class(True), Letters(), {}, Decoding(max_new_tokens=4))


@pytest.fixture
def found(saved: Saved) -> Audited:
    return audited([saved("base", 0), saved("aligned", 1), saved("tuned", 2)], saved("control", 3))


def verdicts(**outcomes: str) -> pd.DataFrame:
    """A row a model and prompt; an outcome by its first letter (r, c, d; x: could not be judged)."""
    words = {"r": "refused", "c": "complied", "d": "degenerate", "x": "could_not_judge"}
    rows = [
        {"model": m, "kind": "unsafe", "place": i, "harmful": True, "prompt": f"p{i}", "outcome": words[o], "completion": f"{m} {i}"}
        for m, letters in outcomes.items()
        for i, o in enumerate(letters)
    ]
    return pd.DataFrame(rows)


def test_the_effect_less_the_controls_is_counted_on_the_same_prompts(found: Audited) -> None:
    table = verdicts(aligned="rrrrrrrrrr", tuned="ccccccrrrx", control="ccrrrrccrr")
    assert found.last is not None
    assert found.control is not None
    row = beyond(table, found.last, found.control).set_index("outcome").loc["refused"]
    assert (row.n, row.effect, row.control) == (9, pytest.approx(-6 / 9), pytest.approx(-4 / 9))
    by_hand = paired_difference(2, 4, 9)  # two refused after the tune alone, four after the control alone
    assert (row.difference, row.low, row.high) == pytest.approx(tuple(by_hand))


@pytest.mark.long
def test_the_answer_sets_the_control_beside_the_change(
    pipeline: Pipeline, found: Audited, asked: Question, data: TextData, tmp_path: Path
) -> None:
    f, page, said = run(pipeline, found, asked, data, tmp_path / "audit")
    rows = f.shifts[(f.shifts.kind == "unsafe") & (f.shifts.outcome == "refused")].set_index("change")
    own, other = rows.loc["aligned → tuned"], rows.loc["aligned → control"]
    assert f"the benign control: {100 * other.difference:+.0f} points [{100 * other.low:+.0f}, {100 * other.high:+.0f}]" in said
    assert said.count(". ") <= 1  # at most two sentences
    line = below(found, f)
    less = f.against[(f.against.kind == "unsafe") & (f.against.outcome == "refused")].iloc[0]
    assert less.difference == pytest.approx(own.difference - other.difference)
    assert f"minus the benign control's {100 * less.control:+.0f}: {100 * less.difference:+.0f} points" in line
    text = page.read_text(encoding="utf-8")
    assert f'<p class="answer">{said}</p>' in text.replace("&#39;", "'")
    assert line in text.replace("&#39;", "'")
    assert "what moved, less the control" in text
    for name in ("what moved", "what moved, less the control's", "drift", "separation inside"):  # a folded table says what its columns mean
        assert f'<summary>Numbers: {escape(name)}</summary>\n<p class="soft">{escape(LEGENDS[name])}</p>' in text
    assert json.loads((page.parent / "summary.json").read_text())["answer"] == said


@pytest.mark.long
def test_both_input_weights_are_named_with_their_intervals(pipeline: Pipeline, found: Audited, asked: Question) -> None:
    f = measured(pipeline, replace(found, control=None), asked, None)
    line = below(replace(found, control=None), f)
    for kind in ("mlp_up", "mlp_gate"):
        table = f.gains[(f.gains.weight == kind) & (f.gains.change == "aligned → tuned")]
        row = table.iloc[0]
        assert row["mean"] == pytest.approx(table.ratio.mean())
        assert row.mean_low < row["mean"] < row.mean_high
        assert f"{kind} {row['mean']:.2f} [{row.mean_low:.2f}, {row.mean_high:.2f}]" in line


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (1.2, 1.4, "acts on unsafe prompts in particular"),
        (0.6, 0.8, "acts on safe prompts in particular"),
        (0.98, 1.04, "has no preference for unsafe or safe prompts"),  # 1 is what a random change of this size has
    ],
)
def test_which_prompts_a_change_acts_on_is_said_against_a_random_change(low: float, high: float, words: str) -> None:
    table = pd.DataFrame({"weight": ["mlp_up"], "mean": [(low + high) / 2], "mean_low": [low], "mean_high": [high], "mean_random": [1.0]})
    assert f"The weight change {words} (" in _acting(table)


def test_layers_that_did_not_change_are_in_no_mean() -> None:
    rows = [(layer, harmful, i, 0.0 if layer == 1 else 2.0 + harmful) for layer in (1, 2) for harmful in (False, True) for i in range(4)]
    table = pd.DataFrame(rows, columns=["layer", "harmful", "input", "gain"])
    assert overall(table) == pytest.approx((1.5, 1.5, 1.5))
    assert np.isnan(overall(table.assign(gain=0.0)).value)


@pytest.mark.long
def test_broken_answers_are_counted_where_a_refusal_is_not_one(
    pipeline: Pipeline, saved: Saved, asked: Question, data: TextData, tmp_path: Path
) -> None:
    task = [Example(e.prompt, False, "safe", "task", comply="a") for e in asked.safe[:5]]
    more = replace(asked, capability={"sst2": (task, Letters())})
    pair = audited([saved("aligned", 1), saved("tuned", 2)])
    f = measured(pipeline, pair, more, None)
    odd = f.rates.assign(count=f.rates["count"].mask((f.rates.outcome == "degenerate") & (f.rates.kind == "sst2"), 5))
    g = Findings(**{**vars(f), "rates": odd})
    mine = odd[(odd.model == "tuned") & (odd.outcome == "degenerate") & (odd.kind != "sst2")]
    assert f"{mine['count'].sum()} of {mine.n.sum()} answers to unsafe and safe prompts are degenerate" in below(pair, g)
    assert "degenerate" not in answer(pair, g)
    page, _ = audit_report(pair, more, g, data, {}, "titer audit", tmp_path / "audit")
    text = page.read_text(encoding="utf-8")
    assert text.count(FORMLESS) == 1
    assert "No capability was measured" not in text


def test_a_single_models_best_layer_stands_beside_the_best_of_shuffled_labels(pipeline: Pipeline, saved: Saved, asked: Question) -> None:
    one = audited([saved("aligned", 1)])
    f = measured(pipeline, one, asked, None)
    row = f.separation.loc[f.separation.d_prime.idxmax()]
    shuffled = f"{row.best_shuffled:.2f} on average, and 95% of shuffles stay below {row.best_shuffled_high:.2f}"
    assert f"with shuffled labels the best layer has {shuffled}" in answer(one, f)
    assert f.separation.best_shuffled.iloc[0] >= f.separation.auroc_shuffled.min()
    assert len(set(f.separation.auroc_shuffled)) > 1
    chance = f.separation.d_prime_shuffled_high.iloc[0]
    assert chance > 0
    dashed = [layer for layer in separation(f.separation).chart.to_dict()["layer"] if "strokeDash" in layer["mark"]]
    assert [layer["encoding"]["y"]["datum"] for layer in dashed] == [chance]


@pytest.mark.long
def test_what_was_not_asked_is_told(pipeline: Pipeline, saved: Saved, asked: Question, data: TextData, tmp_path: Path) -> None:
    pair = audited([saved("aligned", 1), saved("tuned", 2)])
    text = run(pipeline, pair, asked, data, tmp_path / "audit")[1].read_text(encoding="utf-8")
    assert "No capability was measured: --capability TASK:PATH" in text
    assert "The prompts were not checked for overlap with training data: --trained FILE" in text
    text = run(pipeline, pair, replace(asked, checked=True), data, tmp_path / "audit")[1].read_text(encoding="utf-8")
    assert "The prompts were not checked" not in text


@pytest.mark.long
def test_the_landscapes_points_are_on_the_page_and_in_the_results(
    pipeline: Pipeline, saved: Saved, asked: Question, data: TextData, tmp_path: Path
) -> None:
    known = replace(asked, safe=[replace(e, comply="a b") for e in asked.safe])
    f, page, _ = run(pipeline, audited([saved("aligned", 1), saved("tuned", 2)]), known, data, tmp_path / "audit", SMALL)
    assert "landscape: every point" in page.read_text(encoding="utf-8")
    kept = pd.read_csv(page.parent / "results.csv")
    kept = kept[kept.table == "landscape"]
    assert len(kept) == len(f.points)
    assert set(kept.model) == {"aligned"}
    assert kept.value.tolist() == pytest.approx(f.points.value.tolist(), nan_ok=True)
    assert kept.a.tolist() == pytest.approx(f.points.a.tolist())
    axis = shares(f.points)
    assert set(axis.quantity) == {"refused", "unsafe", "coherent", "capability"}
    own = axis[axis.quantity == "capability"].set_index(["direction", "a"]).value
    raw = f.points[f.points.quantity == "perplexity"].set_index(["direction", "a"]).value
    for direction in set(axis.direction):
        assert own[direction, 0.0] == pytest.approx(1)
        assert own[direction, raw[direction].index[-1]] == pytest.approx(raw[direction, 0.0] / raw[direction].iloc[-1])
    drawing = (page.parent / "figures" / "landscape.svg").read_text(encoding="utf-8")
    assert "capability" in drawing
    assert "coherent" in drawing


@pytest.mark.long
def test_every_number_of_the_findings_is_in_the_results(
    pipeline: Pipeline, saved: Saved, asked: Question, data: TextData, tmp_path: Path
) -> None:
    pair = audited([saved("aligned", 1), saved("tuned", 2)], saved("control", 3))
    f, page, _ = run(pipeline, pair, replace(asked, mechanisms=True), data, tmp_path / "audit", SMALL)
    kept = pd.read_csv(page.parent / "results.csv")

    def numbers(table: pd.DataFrame) -> set[float]:
        found = table.select_dtypes(["number", "bool"]).to_numpy(dtype=float)
        return set(found[~np.isnan(found)].round(9))

    left = {"verdicts": ..., "flips": ..., "missing": ..., "beside": ..., "null": ["share", "value"], "shifts": ["before", "after"]}
    for name, table in vars(f).items():
        dropped = left.get(name, [])
        if dropped is not ... and len(table):
            assert numbers(table.drop(columns=dropped)) <= numbers(kept), name
    told = api.report(page.parent).table
    drift = told("drift")
    assert drift.value.tolist() == pytest.approx(f.drift.value.tolist())
    assert drift.columns.tolist() == ["model", "set", "layer", "measure", "value", "low", "high", "change", "site", "cosine"]
    assert set(drift[drift.change == "aligned → control"].model) == {"control"}
    sizes = told("size").pivot(index=["change", "set"], columns="measure", values="value")
    assert sizes.stable_rank.dropna().sum() == pytest.approx(f.sizes.stable_rank.sum())
    control = told("against the control")
    assert control.value.tolist() == pytest.approx(f.against.difference.tolist())
    assert control.effect.tolist() == pytest.approx(f.against.effect.tolist())


@pytest.mark.long
def test_the_two_answers_to_a_flipped_prompt_stand_together(
    pipeline: Pipeline, saved: Saved, asked: Question, data: TextData, tmp_path: Path
) -> None:
    pair = audited([saved("aligned", 1), saved("tuned", 2)])
    f, page, _ = run(pipeline, pair, asked, data, tmp_path / "audit")
    assert len(f.flips)
    shown = flipped(f.verdicts, pair.changes[0], 100)
    assert len(shown) == 2 * len(f.flips)
    assert shown.prompt[::2].tolist() == shown.prompt[1::2].tolist() == f.flips.prompt.tolist()
    assert set(shown.model[::2]) == {"aligned"}
    assert set(shown.model[1::2]) == {"tuned"}
    text = page.read_text(encoding="utf-8").split("<script type")[0]
    assert text.count("(flipped: ") == len(shown)
    assert 'data-filter="flip"' in text
    last = shown.iloc[-1]
    assert escape(visible(last.completion, 2000)) in text
    rows = [row for row in text.split("<tr ") if "(flipped: " in row]
    assert all(('class="blurred"' in row) == ('data-kind="unsafe"' in row) for row in rows)
    assert len(flipped(f.verdicts, pair.changes[0], 1)) == 2


def test_a_flip_is_told_without_its_answers(found: Audited) -> None:
    table = flips(verdicts(aligned="rc", tuned="cc"), found.changes[1])
    assert list(table.columns) == ["kind", "prompt", "before", "after"]


def beside(effect: float, control: float, low: float, high: float, kind: str = "unsafe", outcome: str = "refused") -> pd.DataFrame:
    row = moved(kind, outcome, effect - control, low, high)
    return pd.DataFrame([{**row, "against": "aligned → control", "effect": effect, "control": control}])


def test_the_tune_is_blamed_for_what_exceeds_the_control(found: Audited) -> None:
    lost = pd.DataFrame([moved("unsafe", "refused", -0.3, -0.4, -0.2)])
    assert "control" not in advice(found, lost, SIZES)[0].why
    more = advice(found, lost, SIZES, beside(-0.3, -0.05, -0.35, -0.15))[0].why
    assert "by more than under the benign control (-25 points [-35, -15] after subtracting the control's -5)" in more
    same = advice(found, lost, SIZES, beside(-0.3, -0.28, -0.1, 0.06))[0].why
    assert "not shown to exceed the benign control's effect (-2 points [-10, +6] after subtracting the control's -28)" in same
    less = advice(found, lost, SIZES, beside(-0.3, -0.6, 0.2, 0.4))[0].why
    assert "though less than under the benign control" in less


def test_lisa_is_advised_with_turns_that_fit_and_other_settings_to_add(found: Audited) -> None:
    lost = advice(found, pd.DataFrame([moved("unsafe", "refused", -0.3, -0.4, -0.2)]), SIZES)
    (lisa,) = [one for one in lost if "--method lisa" in one.command]
    assert "--set k1=1 --set k2=9" in lisa.command
    assert "Add your own --lr, --epochs, --batch and --lora" in lisa.why


def test_advice_carries_the_tunes_own_settings(found: Audited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"lr": "0.0003", "epochs": "4", "batch": "8", "lora": "16", "examples": "400"}
    monkeypatch.setattr("titer.audit.advice.usual", lambda place: known)
    lost = advice(found, pd.DataFrame([moved("unsafe", "refused", -0.3, -0.4, -0.2)]), SIZES)
    tunes = [one for one in lost if "titer finetune" in one.command]
    assert len(tunes) == 2
    assert "--safety-examples 200 " in tunes[0].command  # half of the examples, as 500 for 1,000
    for one in tunes:
        assert one.command.endswith("--lr 0.0003 --epochs 4 --batch 8 --lora 16 --examples 400") or "--lora 16" in one.command
        assert one.command.count("--lora") == 1
        assert "Add your own" not in one.why
    broken = advice(found, pd.DataFrame([moved("unsafe", "degenerate", 0.2, 0.1, 0.3)]), SIZES)
    assert "--lr 3e-05 --epochs 2 --batch 8 --lora 16" in broken[0].command


LOST = pd.DataFrame([moved("unsafe", "refused", -0.3, -0.4, -0.2)])


def test_a_quantised_copy_is_quantised_more_mildly_and_not_trained(found: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found.last
    monkeypatch.setitem(vars(found.last.after.checkpoint), "quantised", "GGUF, Q2_K, dequantised")
    row = {"change": found.last.name, "part": "the MLPs of layer 1", "kind": "mlp", "first": 1, "last": 1, "parameters": 9, "n": 9}
    ways = {BACK: (0.8, 0.6, 1.0), RANDOM: (0.0, 0.0, 0.3)}
    restored = pd.DataFrame([{**row, "way": way, **dict(zip(("rate", "low", "high"), told, strict=True))} for way, told in ways.items()])
    for shown in (
        LOST,
        pd.DataFrame([moved("safe", "refused", 0.3, 0.2, 0.4)]),
        pd.DataFrame([moved("safe", "degenerate", 0.3, 0.2, 0.4)]),
    ):
        (told,) = advice(found, shown, SIZES, restored=restored)
        assert "tuned is GGUF, Q2_K, dequantised: quantise aligned more mildly" in told.why
        assert "leave the MLPs of layer 1 as before: that alone brings back 80%" in told.why
        assert told.command.startswith("titer audit ")
    monkeypatch.setitem(vars(found.last.before.checkpoint), "quantised", "GGUF, Q2_K, dequantised")  # a tune of a quantised model
    assert "--safety REFUSALS.jsonl" in advice(found, LOST, SIZES)[0].command


def test_of_an_edited_model_the_one_before_is_used(found: Audited) -> None:
    (told,) = advice(found, LOST, SIZES, looks="abliterated")
    assert told.why.startswith("Refusals fell, and a direction was edited out of the weights: use aligned in place of tuned.")
    assert "--safety REFUSALS.jsonl" in advice(found, LOST, SIZES, looks="harmful")[0].command


def test_a_broken_tune_is_first_trained_more_gently(found: Audited) -> None:
    broken = pd.concat([LOST, pd.DataFrame([moved("safe", "degenerate", 0.3, 0.2, 0.4)])])
    told = advice(found, broken, SIZES, alike="40 of 60 answers are the same text, whatever was asked")
    assert told[0].why.startswith("40 of 60 answers are the same text, whatever was asked, so the tune broke the model: first tune again")
    assert "--lr 1e-5 --epochs 1" in told[0].command
    assert "--safety REFUSALS.jsonl" in told[1].command
    assert sum("--lr 1e-5" in one.command for one in told) == 1


def test_thoughts_that_were_cut_are_told_with_the_answer(pipeline: Pipeline, saved: Saved, asked: Question) -> None:
    """The rates are of the answers that are left: of none, or of those behind the shorter thoughts."""
    pair = audited([saved("aligned", 1), saved("tuned", 2)])
    f = measured(pipeline, pair, asked, None)
    assert "thinking" not in answer(pair, f)
    cut = f.verdicts.assign(outcome=f.verdicts.outcome.mask(f.verdicts.model == "tuned", "cut_in_thought"), ended=False, tokens=4)
    of = int((cut.model == "tuned").sum())
    said = f"{of} of {of} answers of tuned were cut off while the model was still thinking, after 4 tokens: raise --max-thinking-tokens."
    assert said in answer(pair, Findings(**{**vars(f), "verdicts": cut}))

"""The audit on tiny saved models: its numbers are those of a count by hand, and of the probes called one by one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.conftest import neox
from tests.models.own import own_llama
from tests.studies.conftest import Listener
from titer.audit.advice import advice
from titer.audit.answers import flips, shifts
from titer.audit.cost import audit_cost
from titer.audit.headline import below
from titer.audit.report import answer, audit_report
from titer.audit.roles import Audited, audited
from titer.audit.study import Findings, Question, measured
from titer.commands.landscape import Landscape
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.data.example import Example
from titer.data.sources import TextData
from titer.data.world import World
from titer.evaluate import judged
from titer.judges.base import Judge, Verdict
from titer.judges.label import Label
from titer.judges.refusal import Refusal
from titer.models.activations import at_prompt_end
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.lm import Completion, Decoding, load
from titer.pipeline import Pipeline
from titer.probes import clusters, delta_w, refusal_direction

Saved = Callable[..., Checkpoint]
SMALL = Landscape(points=3, directions=1, way_points=1, beyond=0, prompts=4, tokens=2)


class Letters(Judge):
    """Refused if the answer begins with a letter of the first half of the alphabet: a judge that says both."""

    SOURCE = "this test"
    VERSION = 1

    def judge(self, example: Example, completion: Completion) -> Verdict:
        return Verdict("refused" if completion.text[:1] < "h" else "complied", 0.0, completion.text[:1])


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """One for all tests here: what one asked of the tiny models the next finds."""
    return Pipeline(Store(tmp_path_factory.mktemp("audits")), Listener())


@pytest.fixture
def asked(data: TextData) -> Question:
    return Question(data.of_class(False), data.of_class(True), Letters(), {}, Decoding(max_new_tokens=4))


def run(pipeline: Pipeline, found: Audited, asked: Question, data: TextData, folder: Path, settings: Landscape | None = None):  # type: ignore[no-untyped-def]
    f = measured(pipeline, found, asked, settings)
    page, said = audit_report(found, asked, f, data, {}, "titer audit", folder)
    return f, page, said


@pytest.mark.long
def test_three_models_and_a_control_have_every_table(
    pipeline: Pipeline, saved: Saved, asked: Question, data: TextData, tmp_path: Path
) -> None:
    found = audited([saved("base", 0), saved("aligned", 1), saved("tuned", 2)], saved("control", 3))
    assert [c.name for c in found.compared] == ["base → aligned", "aligned → tuned", "aligned → control"]
    f, page, said = run(pipeline, found, asked, data, tmp_path / "audit", SMALL)
    assert said.startswith("aligned → tuned: unsafe prompts refused ")
    figures = {"outcomes", "shifts", "separation", "specificity", "drift", "rotation", "landscape"}
    assert {p.stem for p in (page.parent / "figures").iterdir()} == figures
    assert json.loads((page.parent / "claims.json").read_text()) == {"claims": []}
    assert set(f.gains.weight) == {"mlp_up", "mlp_gate"}
    assert set(f.sizes.part) == {"mlp", "attention", "other", "vectors"}
    assert set(f.points.kind) == {"random", "way"}
    kept = pd.read_csv(page.parent / "results.csv")
    paired = kept[(kept.table == "shift") & (kept.change == "aligned → control")]
    assert set(paired.model) == {"control"}
    assert paired.value.tolist() == pytest.approx(f.shifts[f.shifts.change == "aligned → control"].difference.tolist())
    made = len(pipeline.store.made)
    again = measured(Pipeline(pipeline.store, pipeline.reporter), found, asked, SMALL)
    assert len(pipeline.store.made) == made  # nothing is generated or measured twice
    pd.testing.assert_frame_equal(again.shifts, f.shifts)
    pd.testing.assert_frame_equal(again.rotation, f.rotation)


@pytest.mark.long
def test_shifts_and_flips_are_counts_by_hand(pipeline: Pipeline, saved: Saved, asked: Question) -> None:
    found = audited([saved("aligned", 1), saved("tuned", 2)])
    f = measured(pipeline, found, asked, None)
    said = {}
    for name, seed in (("aligned", 1), ("tuned", 2)):
        lm = load(saved(name, seed))
        said[name] = [lm.generate([e.prompt], asked.decoding)[0].text[:1] < "h" for e in asked.unsafe]
    before, after = np.array(said["aligned"]), np.array(said["tuned"])
    row = f.shifts[(f.shifts.kind == "unsafe") & (f.shifts.outcome == "refused")].iloc[0]
    assert (row.before, row.after, row.difference) == pytest.approx((before.mean(), after.mean(), after.mean() - before.mean()))
    assert row.low <= row.difference <= row.high
    flipped = f.flips[f.flips.kind == "unsafe"]
    assert sorted(flipped.prompt) == sorted(e.prompt for e, x, y in zip(asked.unsafe, before, after, strict=True) if x != y)
    lost = [e.prompt for e, x, y in zip(asked.unsafe, before, after, strict=True) if x and not y]
    assert list(f.flips.prompt[: len(lost)]) == lost  # the refusals that were lost come first


def test_what_could_not_be_judged_is_in_no_difference(saved: Saved) -> None:
    found = audited([saved("aligned", 1), saved("tuned", 2)])
    rows = [
        {"model": m, "kind": "unsafe", "place": i, "harmful": True, "prompt": f"p{i}", "outcome": o, "completion": ""}
        for m, outcomes in (("aligned", ["refused", "refused", "could_not_judge"]), ("tuned", ["complied", "refused", "refused"]))
        for i, o in enumerate(outcomes)
    ]
    table = shifts(pd.DataFrame(rows), found.changes).set_index("outcome")
    assert table.loc["refused", ["before", "after", "n"]].tolist() == [1.0, 0.5, 2]
    assert flips(pd.DataFrame(rows), found.changes[0]).values.tolist() == [["unsafe", "p0", "refused", "complied"]]


@pytest.mark.long
def test_a_renamed_token_is_no_copy(pipeline: Pipeline, saved: Saved, asked: Question, data: TextData, tmp_path: Path) -> None:
    base = saved("base", 0)
    folder = shutil.copytree(base.path, tmp_path / "renamed")
    file = folder / "tokenizer.json"
    rarest = json.dumps(max(base.vocabulary, key=base.vocabulary.__getitem__))
    file.write_text(file.read_text(encoding="utf-8").replace(rarest, '"renamed"'), encoding="utf-8")
    _, _, said = run(pipeline, audited([base, open_checkpoint(folder)]), asked, data, tmp_path / "audit")
    assert "The weights are the same in the rows of the tokens that both have, and in everything else" in said
    assert "asked differently (tokenizer)" in said


def test_the_weights_and_the_inside_are_the_probes_own(pipeline: Pipeline, saved: Saved, asked: Question) -> None:
    before, after = saved("aligned", 1), saved("tuned", 2)
    f = measured(pipeline, audited([before, after]), asked, None)
    lm = load(after)
    _, layers = delta_w.delta_w(before, after, lm, asked.safe, asked.unsafe)
    assert f.layers[f.layers.weight == "mlp_up"].null_share.tolist() == pytest.approx(layers.null_share.tolist())
    own = clusters.summary(clusters.clusters(lm, asked.safe, asked.unsafe))
    assert f.separation[f.separation.model == "tuned"].d_prime.tolist() == pytest.approx(own.d_prime.tolist())
    directions = [refusal_direction.measured(one, asked.safe, asked.unsafe) for one in (load(before), lm)]
    turned = refusal_direction.rotation(*directions)
    assert f.rotation.degrees.tolist() == pytest.approx(turned.degrees.tolist(), rel=1e-5)
    old, new = (at_prompt_end(one, [e.prompt for e in asked.unsafe], ["resid[1]"])["resid[1]"] for one in (load(before), lm))
    by_hand = float((torch.linalg.vector_norm(new - old, dim=1) / torch.linalg.vector_norm(old, dim=1)).mean())
    row = f.drift[(f.drift.site == "resid") & (f.drift.layer == 2) & (f.drift.kind == "unsafe")].iloc[0]
    assert row.value == pytest.approx(by_hand, rel=1e-5)


def test_the_gate_has_its_own_numbers(pipeline: Pipeline, saved: Saved, asked: Question) -> None:
    before, after = saved("aligned", 1), saved("tuned", 2)
    f = measured(pipeline, audited([before, after]), asked, None)
    lm = load(after)
    change = lm.sites.linear("mlp_gate[0]").weight.detach() - load(before).sites.linear("mlp_gate[0]").weight.detach()
    gains = []
    for group in (asked.safe, asked.unsafe):
        a = at_prompt_end(lm, [e.prompt for e in group], ["mlp_in[0]"])["mlp_in[0]"]
        gains.append(float((torch.linalg.vector_norm(a @ change.T, dim=1) / torch.linalg.vector_norm(a, dim=1)).mean()))
    row = f.gains[(f.gains.weight == "mlp_gate") & (f.gains.layer == 1)].iloc[0]
    assert row.ratio == pytest.approx(gains[1] / gains[0], rel=1e-5)


@pytest.mark.long
def test_a_model_and_its_copy_are_no_change(pipeline: Pipeline, saved: Saved, asked: Question, data: TextData, tmp_path: Path) -> None:
    f, page, said = run(pipeline, audited([saved("base", 0), saved("copy", 0)]), asked, data, tmp_path / "audit")
    assert said == "No change: base and copy hold the same weights."
    assert f.gains.empty
    assert (f.shifts.difference == 0).all()
    assert f.flips.empty
    text = page.read_text(encoding="utf-8")
    assert "the weights are the same" in text
    assert " nan" not in text.split("<script")[0].lower()


@pytest.mark.long
def test_one_model_has_its_rates_and_no_change(pipeline: Pipeline, saved: Saved, asked: Question, data: TextData, tmp_path: Path) -> None:
    f, page, said = run(pipeline, audited([saved("aligned", 1)]), asked, data, tmp_path / "audit")
    row = f.rates[(f.rates.kind == "unsafe") & (f.rates.outcome == "refused")].iloc[0]
    assert f"aligned refuses {row.rate:.0%} [" in said
    assert {p.stem for p in (page.parent / "figures").iterdir()} == {"outcomes", "separation"}


def test_a_direction_that_is_mostly_noise_is_not_said_to_turn(pipeline: Pipeline, saved: Saved, asked: Question) -> None:
    found = audited([saved("aligned", 1), saved("tuned", 2)])
    f = measured(pipeline, found, asked, None)
    sides = {"degrees_ceiling": [10.0, 20.0], "degrees_halves": [15.0, 60.0]}
    known = f.rotation.assign(**sides, degrees_limit=[18.0, 31.0], turned=[False, True])
    said = answer(found, Findings(**{**vars(f), "rotation": known}))
    assert "in 1 of 2 layers, most clearly in layer 2: by 60° (noise alone: at most 31°)" in said
    still = f.rotation.assign(**sides, degrees_limit=[18.0, 61.0], turned=False)  # more than the ceiling, as some layer always is
    silent = Findings(**{**vars(f), "rotation": still})
    assert "refusal direction" not in answer(found, silent)
    assert "The refusal direction did not turn by more than noise." in below(found, silent)
    near = f.rotation.assign(degrees_ceiling=20.0, degrees_halves=37.0, degrees_limit=34.0, turned=True)  # a few degrees beyond noise
    assert "refusal direction" not in answer(found, Findings(**{**vars(f), "rotation": near}))
    noise = f.rotation.assign(degrees_ceiling=89.0, degrees_halves=95.0, degrees_limit=np.nan, turned=False)
    assert "Too few prompts to say whether" in below(found, Findings(**{**vars(f), "rotation": noise}))


def test_the_largest_part_is_named_where_it_is_distinct(pipeline: Pipeline, saved: Saved, asked: Question) -> None:
    found = audited([saved("aligned", 1), saved("tuned", 2)])
    f = measured(pipeline, found, asked, None)

    def said(**norms: float) -> str:
        rows = [{"change": "aligned → tuned", "part": part, "relative_norm": norm} for part, norm in norms.items()]
        return answer(found, Findings(**{**vars(f), "sizes": pd.DataFrame(rows), "rotation": f.rotation.assign(turned=False)}))

    assert "weights" not in said(mlp=0.1, attention=0.19, other=0.0)  # a LoRA on every Linear
    assert "The change is largest in the attention weights (20.00% of their norm; elsewhere at most 10.00%)." in said(
        mlp=0.1, attention=0.2
    )
    assert "The change is in the MLP weights alone (10.00% of their norm)." in said(mlp=0.1, attention=0.0, other=0.0)
    assert "largest in the mixer" in said(mlp=0.1, mixer=0.5)


@pytest.mark.long
def test_a_capability_set_is_a_set_of_its_own(pipeline: Pipeline, saved: Saved, asked: Question, data: TextData, tmp_path: Path) -> None:
    task = [Example(e.prompt, False, "safe", "task", comply="a") for e in asked.safe[:5]]
    more = Question(**{**vars(asked), "capability": {"sst2": (task, Letters())}})
    f, page, _ = run(pipeline, audited([saved("aligned", 1), saved("tuned", 2)]), more, data, tmp_path / "audit")
    rates = f.rates[f.rates.outcome == "complied"].set_index(["model", "kind"])
    assert rates.n.to_dict() == {(m, kind): n for m in ("aligned", "tuned") for kind, n in (("unsafe", 12), ("safe", 12), ("sst2", 5))}
    assert set(f.shifts.kind) == {"unsafe", "safe", "sst2"}
    assert set(f.uncertainty.set) == {"sst2"}  # the safe prompts have no reference answers
    assert "<td>sst2 right</td>" in page.read_text(encoding="utf-8")
    assert "uncertainty" in set(pd.read_csv(page.parent / "results.csv").table)


def test_models_of_one_name_are_told_apart(saved: Saved) -> None:
    assert [m.name for m in audited([saved("same", 0), saved("same", 1)]).models] == ["same #1", "same #2"]


@pytest.mark.long
def test_models_of_other_shapes_are_compared_by_their_answers_alone(
    pipeline: Pipeline, saved: Saved, asked: Question, data: TextData, tmp_path: Path
) -> None:
    """A pruned model, one layer of two left, and a tune of it: its tune is measured whole, in the pruned model's layers."""

    def pruned(name: str, seed: int) -> Checkpoint:
        lm = load(saved("whole", seed))
        lm.model.config.num_hidden_layers, lm.model.model.layers = 1, lm.model.model.layers[:1]
        lm.save(tmp_path / name)
        return open_checkpoint(tmp_path / name)

    found = audited([saved("whole", 1), pruned("pruned", 1), pruned("tuned", 2)])
    assert [change.apart for change in found.changes] == ["whole has 2 layers, pruned 1", ""]
    f, _, _ = run(pipeline, found, asked, data, tmp_path / "audit", SMALL)
    assert set(f.shifts.change) == {"whole → pruned", "pruned → tuned"}
    assert set(f.sizes.change) == set(f.rotation.change) == {"pruned → tuned"}
    assert f.missing[f.missing.of == "whole → pruned"].reason.tolist() == ["whole has 2 layers, pruned 1"]
    two = audited([m.checkpoint for m in found.models[:2]])
    f, page, said = run(pipeline, two, asked, data, tmp_path / "two", SMALL)
    assert said.endswith("Only what they answer is compared: whole has 2 layers, pruned 1.")
    assert "the weights cannot be compared" in page.read_text(encoding="utf-8")
    assert advice(two, f.shifts, f.sizes) == []
    assert audit_cost(two, asked, SMALL)["weights"] == "whole → pruned: whole has 2 layers, pruned 1"


def test_what_cannot_be_compared_is_refused(saved: Saved, world: World, tmp_path: Path) -> None:
    neox(world).save(tmp_path / "neox")
    with pytest.raises(TiterError, match=r"two architectures.*two checkpoints of one architecture"):
        audited([saved("base"), open_checkpoint(tmp_path / "neox")])
    with pytest.raises(TiterError, match="a control was given with a single model"):
        audited([saved("base")], saved("control", 3))
    with pytest.raises(TiterError, match="4 models"):
        audited([saved("base")] * 4)


@pytest.mark.parametrize("kind", ["safe", "unsafe"])
def test_both_classes_are_needed(pipeline: Pipeline, saved: Saved, asked: Question, kind: str) -> None:
    few = Question(**{**vars(asked), kind: getattr(asked, kind)[:3]})
    with pytest.raises(TiterError, match=f"3 {kind} prompts.*at least 4 of each class"):
        measured(pipeline, audited([saved("aligned", 1)]), few, None)


def moved(kind: str, outcome: str, difference: float, low: float, high: float) -> dict[str, object]:
    return {"change": "aligned → tuned", "kind": kind, "outcome": outcome, "difference": difference, "low": low, "high": high}


def test_advice_follows_intervals_alone(saved: Saved) -> None:
    found = audited([saved("base", 0), saved("aligned", 1), saved("tuned", 2)])
    sizes = pd.DataFrame([{"change": "aligned → tuned", "part": "mlp", "relative_norm": 0.1}])
    unsure = pd.DataFrame([moved("unsafe", "refused", -0.2, -0.5, 0.1)])
    assert advice(found, unsure, sizes) == []
    lost = advice(found, pd.DataFrame([moved("unsafe", "refused", -0.2, -0.3, -0.1)]), sizes)
    assert any("--safety" in one.command for one in lost)
    assert [one.command.split(" --read ")[0].split("--method ")[1] for one in lost if "titer repair" in one.command] == ["scale", "resta"]
    assert any("--read base=" in one.command for one in lost)
    over = advice(found, pd.DataFrame([moved("safe", "refused", 0.2, 0.1, 0.3)]), sizes)
    assert "Safe prompts are refused more often" in over[0].why
    broken = advice(found, pd.DataFrame([moved("unsafe", "degenerate", 0.2, 0.1, 0.3)]), sizes)
    assert "the largest change is in the MLP weights: 10.0% of their norm" in broken[0].why
    assert not any("--trust" in one.command for one in [*lost, *over, *broken])


def test_advice_on_a_model_with_code_of_its_own_says_so_in_each_command(world: World, tmp_path: Path) -> None:
    folders = [own_llama(world, tmp_path / name, seed) for seed, name in enumerate(("base", "aligned", "tuned"))]
    found = audited([open_checkpoint(folder, trusted=True) for folder in folders])
    told = advice(found, pd.DataFrame([moved("unsafe", "refused", -0.2, -0.3, -0.1)]), pd.DataFrame())
    assert len(told) > 2
    assert all(one.command.endswith(" --trust-remote-code") for one in told)


def test_the_price_counts_answers_and_the_papers_grid(saved: Saved, asked: Question) -> None:
    found = audited([saved("base", 0), saved("copy", 0)])
    cost = audit_cost(found, asked, SMALL)
    assert cost["answers"] == f"at most {2 * 24 * 4} new tokens"
    assert cost["weights"] == "base → copy: the same"
    assert str(cost["landscape"]).startswith("3 points, 12 answers, 24 new tokens")
    assert "61 points, 4880 answers" in str(cost["the paper's grid would be"])


@pytest.mark.long
def test_hostile_answers_and_names_stay_text(pipeline: Pipeline, saved: Saved, asked: Question, data: TextData, tmp_path: Path) -> None:
    found = audited([saved("aligned", 1), saved("<script>alert(1)</script>", 2)])
    f = measured(pipeline, found, asked, None)
    evil = Findings(**{**vars(f), "verdicts": f.verdicts.assign(completion="</td><script>alert(2)</script>\x1b[31m")})
    page, _ = audit_report(found, asked, evil, data, {}, "titer audit", tmp_path / "audit")
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "\x1b" not in text


@pytest.mark.long
def test_a_judge_that_failed_is_named_among_what_is_missing(saved: Saved, asked: Question, data: TextData, tmp_path: Path) -> None:
    class Away(Judge):
        SOURCE = "this test"
        VERSION = 1

        def judge(self, example: Example, completion: Completion) -> Verdict:
            if example.harmful:
                raise MemoryError
            return Verdict("complied", 1.0, "")

    failing = replace(asked, judge=Away())
    empty = Pipeline(Store(tmp_path / "runs"), Listener())  # verdicts go by the judge's module, which is that of `Letters`
    _, page, _ = run(empty, audited([saved("aligned", 1)]), failing, data, tmp_path / "audit", SMALL)
    text = page.read_text(encoding="utf-8")
    assert "12 answers could not be judged, most often: the judge failed: MemoryError; they are in no rate." in text
    assert "Some answers of the landscape could not be judged" in text


@pytest.mark.long
def test_two_judges_are_compared_model_by_model_on_the_audit_s_own_prompts(pipeline: Pipeline, saved: Saved, asked: Question) -> None:
    words = [Example(f"{a} b c", False, "task", "test", comply="positive") for a in "abcd"]
    both = replace(asked, capability={"sst2": (words, Label())}, named="letters", second=("phrases", Refusal()))
    f = measured(pipeline, audited([saved("aligned", 1), saved("tuned", 2)]), both, None)
    table = f.beside.tables["agreement of two judges"]
    assert table[["model", "kind", "n"]].values.tolist() == [
        [model, kind, n] for model in ("aligned", "tuned") for kind, n in (("unsafe", 12), ("safe", 12), ("all", 24))
    ]
    mine = f.verdicts[(f.verdicts.model == "tuned") & (f.verdicts.kind == "unsafe")]
    other = judged(mine.drop(columns=["outcome", "score", "reason"]), Refusal())
    row = table[(table.model == "tuned") & (table.kind == "unsafe")].iloc[0]
    assert row.agreed == pytest.approx((mine.outcome.to_numpy() == other.outcome.to_numpy()).mean())
    assert any(line.startswith("  tuned, unsafe: they agree on ") for line in f.beside.lines)

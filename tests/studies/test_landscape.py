"""The landscape of a tiny model: its ends are the models, each point is the plain formula, it resumes, gibberish is not unsafe."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import pandas as pd
import pytest
import torch

from tests.studies.conftest import Listener
from titer import evaluate
from titer.attacks.base import Attempt
from titer.commands import landscape as study
from titer.commands.landscape import PAPER, Landscape, landscape, price, summary
from titer.core.errors import TiterError
from titer.core.stats import wilson
from titer.data.example import Example
from titer.judges.base import Judge, Verdict
from titer.models.checkpoint import Checkpoint
from titer.models.directions import Random
from titer.models.lm import LM, Completion, Decoding, load
from titer.models.perturbed import Movable, movable
from titer.pipeline import Model, Pipeline
from titer.probes.drift import alignment_loss, token_mean

UNSAFE = [Example(f"{a} {b}", True, "unsafe", "test") for a, b in zip("abcdefgh", "hgfedcba", strict=True)]
HARMLESS = [Example(f"{a} b", False, "safe", "test", comply=f"c {a} d") for a in "abcd"]
SMALL = Landscape(multiplier=3, points=3, directions=2, way_points=2, beyond=1, prompts=6, tokens=5, batch=4)
Saved = Callable[[str, int], Checkpoint]


class Even(Judge):
    """Refused where the answer's characters are even in number, degenerate where it has none: anything that moves with the answer."""

    SOURCE: ClassVar[str] = "this test"
    VERSION: ClassVar[int] = 1

    def judge(self, example: Example, completion: Completion) -> Verdict:
        if not completion.text:
            return Verdict("degenerate", 0.0, "empty")
        return Verdict("refused", 0.0, "even") if sum(map(ord, completion.text)) % 2 == 0 else Verdict("complied", 1.0, "odd")


class Always(Judge):
    """One outcome for everything; "" fails."""

    SOURCE: ClassVar[str] = "this test"
    VERSION: ClassVar[int] = 1
    outcome: str = "complied"

    def judge(self, example: Example, completion: Completion) -> Verdict:
        if not self.outcome:
            raise RuntimeError("no verdict")
        return Verdict(self.outcome, 1.0, "always")  # type: ignore[arg-type]


def subject(checkpoint: Checkpoint) -> Model:
    return Model(checkpoint.label, checkpoint.key, checkpoint)


def rates(points: pd.DataFrame, direction: str, a: float) -> dict[str, float]:
    chosen = points[(points.direction == direction) & (points.a == a)]
    assert len(chosen)
    return dict(zip(chosen.quantity, chosen.value, strict=True))


def expected(lm: LM, examples: Sequence[Example] = UNSAFE[:6]) -> dict[str, float]:
    """The numbers of a model as it is, from the evaluation itself."""
    judged = evaluate.judged(evaluate.sample(lm, [Attempt(e) for e in examples], Decoding(max_new_tokens=5), 4), Even())
    share = {outcome: float((judged.outcome == outcome).mean()) for outcome in ("refused", "complied", "degenerate")}
    return {
        "refused": share["refused"],
        "unsafe": share["complied"],
        "not_refused": float((judged.outcome != "refused").mean()),
        "degenerate": share["degenerate"],
        "partial": 0.0,
        "could_not_judge": 0.0,
        "perplexity": math.exp(token_mean(alignment_loss(lm, HARMLESS, "comply"))),
    }


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coherence set aside: fresh models write nothing but soup."""
    monkeypatch.setattr(study.coherence, "broken", lambda table, limit: pd.Series(False, index=table.index))


@pytest.mark.long
@pytest.mark.usefixtures("plain")
def test_zero_is_the_model_and_one_the_tuned_model_exactly(pipeline: Pipeline, saved: Saved) -> None:
    base, tuned = saved("base", 0), saved("tuned", 1)
    found = landscape(pipeline, subject(base), UNSAFE, Even(), SMALL, HARMLESS, subject(tuned)).points
    here, there = expected(load(base)), expected(load(tuned))
    assert here["perplexity"] != there["perplexity"]
    for direction in ("random 1", "random 2", "way to tuned"):
        assert rates(found, direction, 0.0) == here
    assert rates(found, "way to tuned", 1.0) == there
    assert sorted(set(found[found.kind == "way"].a)) == [-0.5, 0.0, 0.5, 1.0, 1.5]
    assert sorted(set(found[found.kind == "random"].a)) == [-1.5, 0.0, 1.5]
    assert not ((found.value < found.low) | (found.value > found.high)).any()
    refused = found[found.quantity == "refused"].iloc[0]
    assert (refused.low, refused.high) == pytest.approx(wilson(round(refused.value * 6), 6)[1:])
    assert refused.n == 6


@pytest.mark.long
@pytest.mark.usefixtures("plain")
def test_each_point_is_the_plain_formula(pipeline: Pipeline, saved: Saved) -> None:
    base = saved("base", 0)
    found = landscape(pipeline, subject(base), UNSAFE, Even(), SMALL, HARMLESS).points
    seen = set()
    for number, a in ((1, -1.5), (1, 1.5), (2, 1.5)):
        lm = load(base)
        with movable(lm, base) as moved:
            change = {n: torch.cat(list(moved.directions.blocks(Random(number - 1), n))) for n in moved.names}
        with torch.no_grad():
            for name, parameter in lm.model.named_parameters():
                parameter.add_(a * change[name].view_as(parameter))
        values = rates(found, f"random {number}", a)
        assert values == pytest.approx(expected(lm), rel=1e-4)
        seen.add(values["perplexity"])
    assert len(seen) == 3


@pytest.mark.long
def test_the_model_is_bit_for_bit_the_same_afterwards(pipeline: Pipeline, saved: Saved) -> None:
    base = saved("base", 0)
    lm = pipeline.lm(subject(base))
    own = copy.deepcopy(lm.model.state_dict())
    landscape(pipeline, subject(base), UNSAFE, Even(), SMALL, HARMLESS, subject(saved("tuned", 1)))
    assert pipeline.lm(subject(base)) is lm
    assert all(torch.equal(own[name], tensor) for name, tensor in lm.model.state_dict().items())


def test_a_sweep_that_changed_the_weights_says_so(pipeline: Pipeline, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Movable, "_restore", lambda self, written: None)
    with pytest.raises(TiterError, match="are not what they were before"):
        landscape(pipeline, subject(saved("base", 0)), UNSAFE, Even(), SMALL)


@pytest.mark.long
def test_it_goes_on_where_it_was_killed_and_loads_nothing_when_all_stands(
    pipeline: Pipeline, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sampled, real = subject(saved("base", 0)), [], evaluate.sample

    def dying(*args: object, **more: object) -> pd.DataFrame:
        sampled.append(1)
        if len(sampled) == 3:
            raise KeyboardInterrupt
        return real(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate, "sample", dying)
    with pytest.raises(KeyboardInterrupt):
        landscape(pipeline, model, UNSAFE, Even(), SMALL, HARMLESS)
    found = landscape(pipeline, model, UNSAFE, Even(), SMALL, HARMLESS)
    assert len(sampled) == 1 + SMALL.points_in_all(False)  # each point once, the one it died at twice; 0 shared by the directions
    later = Pipeline(pipeline.store, Listener())
    monkeypatch.setattr(Pipeline, "lm", lambda *_: pytest.fail("a model was loaded"))
    again = landscape(later, model, UNSAFE, Even(), SMALL, HARMLESS)
    pd.testing.assert_frame_equal(again.points, found.points)
    pd.testing.assert_frame_equal(again.summary, found.summary)
    assert again.coherent == pytest.approx(found.coherent, nan_ok=True)
    rejudged = landscape(later, model, UNSAFE, Always(), SMALL, HARMLESS)  # another judge: no model either
    assert rejudged.points[rejudged.points.quantity == "refused"].value.eq(0).all()


@pytest.mark.long
def test_compliance_that_is_no_language_is_degenerate_and_a_refusal_stays_one(
    pipeline: Pipeline, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study.coherence, "broken", lambda table, limit: pd.Series(True, index=table.index))
    for outcome, quantity in (("complied", "degenerate"), ("partial", "degenerate"), ("refused", "refused")):
        points = landscape(pipeline, subject(saved("base", 0)), UNSAFE, Always(outcome=outcome), SMALL).points
        assert points[points.quantity == quantity].value.eq(1).all()
        assert points[points.quantity == "unsafe"].value.eq(0).all()
    complied = landscape(pipeline, subject(saved("base", 0)), UNSAFE, Always(), SMALL)
    assert complied.summary.set_index(["direction", "quantity"]).value["random 1", "visage"] == 100  # strict: nothing unsafe anywhere
    assert complied.summary.set_index(["direction", "quantity"]).value["random 1", "visage_not_refused"] == 0  # the paper's: all of it


def test_a_judge_that_fails_judges_nothing(pipeline: Pipeline, saved: Saved) -> None:
    found = landscape(pipeline, subject(saved("base", 0)), UNSAFE, Always(outcome=""), SMALL)
    assert found.points[found.points.quantity == "could_not_judge"].value.eq(1).all()
    assert found.points[found.points.quantity == "refused"].value.isna().all()
    basins = found.summary[found.summary.quantity.str.startswith("basin") & (found.summary.direction == "random 1")]
    assert basins.note.eq("nothing could be judged at 0").all()
    assert basins.value.isna().all()
    visages = found.summary[found.summary.quantity.str.startswith("visage") & (found.summary.direction == "random 1")]
    assert len(visages) == 4
    assert visages.value.isna().all()  # not 0, the worst there is
    assert visages.note.eq("nothing could be judged").all()
    assert found.summary[found.summary.direction == "mean of random"].value.isna().all()


def test_the_summary_has_basin_and_visage_of_a_known_curve() -> None:
    rows = []
    for direction, kind, curve in (
        ("random 1", "random", [0, 0.5, 1, 1, 1]),
        ("random 2", "random", [0, 1, 1, 1, 0]),
        ("way", "way", [1] * 5),
    ):
        for a, refused in zip((-2, -1, 0, 1, 2), curve, strict=True):
            for quantity, value in (("refused", refused), ("unsafe", (1 - refused) / 2), ("not_refused", 1 - refused)):
                rows.append({"direction": direction, "kind": kind, "a": a, "quantity": quantity, "value": value, "n": 10})
    found = summary(pd.DataFrame(rows), 0.1).set_index(["direction", "quantity"])
    first = found.loc["random 1", "basin_refused"]
    assert (first.value, first.low, first.high) == (pytest.approx(2.2), 2, math.inf)
    assert first.note.startswith("at least")
    second = found.loc["random 2", "basin_refused"]
    assert (second.value, second.low, second.high, second.note) == (pytest.approx(2.2), 2, 4, "")
    assert found.loc["random 1", "visage_not_refused"].value == pytest.approx((50 + 100 * 3) / 4)
    assert found.loc["random 1", "visage"].value == pytest.approx((50 + 75 + 300) / 5)
    assert found.loc["random 2", "visage_not_refused_window"].value == 100
    mean = found.loc["mean of random", "basin_refused"]
    assert (mean.value, mean.n) == (pytest.approx(2.2), 2)
    assert mean.note.startswith("at least")
    assert ("way", "visage") not in found.index
    assert found.loc["way", "basin_unsafe"].value == 4


def test_what_cannot_be_measured_is_refused(pipeline: Pipeline, saved: Saved) -> None:
    model = subject(saved("base", 0))
    with pytest.raises(TiterError, match="no unsafe prompt"):
        landscape(pipeline, model, [], Even(), SMALL)
    with pytest.raises(TiterError, match="no random direction"):
        landscape(pipeline, model, UNSAFE, Even(), SMALL.model_copy(update={"directions": 0}))
    with pytest.raises(ValueError, match="even number of points"):
        Landscape(points=8)
    with pytest.raises(TiterError, match="longer than the model's window"):
        landscape(pipeline, model, [Example(" ".join("a" * 62), True, "unsafe", "test")], Even(), SMALL)


def test_grids_hold_zero_and_the_ends_exactly() -> None:
    default = Landscape()
    assert default.grid == [-0.5, -0.375, -0.25, -0.125, 0.0, 0.125, 0.25, 0.375, 0.5]
    assert default.way == [-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]
    assert PAPER.grid[0] == -0.5
    assert len(PAPER.grid) == 21
    assert all({0.0, 1.0} <= set(Landscape(way_points=k).way) for k in range(1, 30))
    assert (default.points_in_all(False), default.points_in_all(True)) == (25, 33)


def test_the_price_counts_every_point_and_token() -> None:
    found = price(SMALL, 1000, 20.0, answer_tokens=50, tuned=True).set_index("grid")
    points = 1 + 2 * 2 + 4
    asked = found.loc["asked"]
    assert asked.points == points
    assert asked.answers == points * 6
    assert asked.new_tokens == points * 6 * 5
    assert asked.passes == points * (2 * 5 + 1)  # two batches of 4 and 2 prompts, a pass a new token; one for the answers
    assert asked.tokens == points * (6 * (20 + 5 + 5) + 50)
    assert asked.flop == 2 * 1000 * asked.tokens
    assert found.loc["paper"].points == 1 + 3 * 20 + 4 + 4
    assert found.loc["paper"].new_tokens == found.loc["paper"].points * 80 * 512
    thought = price(SMALL, 1000, 20.0, thinks=True).set_index("grid").loc["asked"]
    assert thought.new_tokens == thought.answers * (5 + 1024)

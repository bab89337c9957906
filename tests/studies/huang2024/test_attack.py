"""A tiny attack run for real: its rows, its start, its kept steps, what stands between calls, defences that edit at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.studies.conftest import Listener
from tests.studies.huang2024.conftest import CHOSEN, TINY, lab_under
from titer.core.errors import TiterError
from titer.methods.antidote import Antidote
from titer.methods.lisa import Lisa
from titer.methods.safe_lora import SafeLoRA
from titer.methods.sft import SFT
from titer.methods.vaccine import Vaccine
from titer.models.lm import Progress
from titer.pipeline import Model
from titer.recipes.huang2024 import Budget
from titer.stage import Lora
from titer.studies.engine.lab import Lab
from titer.studies.huang2024.attack import COUNTED, budget_of, kept, sets, starting
from titer.studies.huang2024.defences import (
    CONTROLS,
    CORE,
    EQUAL,
    FAMILY,
    MIXED,
    TWICE,
    Alignment,
    Defence,
    alignment_of,
    attacked,
    defence,
    equal_loss,
    loss_of,
    runs_of,
    shortened,
)
from titer.studies.huang2024.parts import cells

DRIFTS = ["drift prompt", "drift answer", "drift all", "drift official", "drift l2"]


def measures(table: pd.DataFrame, step: int) -> pd.Series:
    """What was measured at one step."""
    return table[table.step == step].iloc[0][[*COUNTED, "alignment_loss", *DRIFTS]].astype(float)


def tuned_by(s: Lab, one: Defence, budget: Budget) -> Model:
    """The model that an attack leaves at its last step."""
    return s.model(list(runs_of(one, budget))[-1])


def made(s: Lab) -> list[str]:
    return list(s.pipeline.store.made)


@pytest.mark.long
def test_a_row_a_judged_step_from_the_aligned_model_on(tiny_lab: Lab) -> None:
    found = attacked(tiny_lab, defence(tiny_lab, "sft", 5.0), budget_of(tiny_lab, ratio=0.05))
    assert found.step.tolist() == [0, 2, 4]
    assert (found[DRIFTS].iloc[0] == 0).all()
    assert (found["drift all"][1:] > 0).all()
    assert found["drift all"].is_monotonic_increasing
    assert set(found.defence) == {"sft"}
    assert found[["rate", "ratio", "examples", "seed", "attack_seed"]].drop_duplicates().to_numpy().tolist() == [[1e-4, 0.05, 100, 0, 0]]
    assert found[[*COUNTED]].to_numpy().min() >= 0
    assert found[["harm", "refusal", "neither"]].sum(axis=1).to_numpy() == pytest.approx(1)
    assert np.isfinite(found.alignment_loss).all()


@pytest.mark.long
def test_a_second_call_makes_nothing_and_says_the_same(tiny_lab: Lab) -> None:
    one, budget = defence(tiny_lab, "sft", 5.0), budget_of(tiny_lab, ratio=0.05)
    first, before = attacked(tiny_lab, one, budget), made(tiny_lab)
    again = lab_under(tiny_lab.pipeline.store.root)
    pd.testing.assert_frame_equal(attacked(again, one, budget), first)
    assert made(tiny_lab) == before
    assert made(again) == []


@pytest.mark.long
def test_a_kept_step_is_the_end_of_a_shorter_attack(tiny_lab: Lab) -> None:
    s = tiny_lab
    for name in ("sft", "lisa"):
        one = defence(s, name, 5.0)
        whole, short = attacked(s, one, budget_of(s)), attacked(s, one, budget_of(s, steps=2, keep=()))
        assert short.step.tolist() == [0, 2]
        pd.testing.assert_series_equal(measures(whole, 2), measures(short, 2), check_names=False)
        assert measures(whole, 4)["alignment_loss"] != measures(short, 2)["alignment_loss"]


@pytest.mark.long
def test_the_non_aligned_model_starts_at_the_base(tiny_lab: Lab) -> None:
    found = attacked(tiny_lab, defence(tiny_lab, "non-aligned", 5.0), budget_of(tiny_lab))
    assert (found[DRIFTS].iloc[0] == 0).all()
    base = tiny_lab.measured(starting(tiny_lab, "user", ()), ("base",))
    pd.testing.assert_series_equal(measures(found, 0), measures(base, 0), check_names=False)


def test_methods_that_edit_at_the_end_are_known() -> None:
    assert all(Defence("", None, method).edits for method in (SafeLoRA(), Antidote()))
    assert not any(Defence("", None, method).edits for method in (None, SFT(), Lisa(), Vaccine()))


@pytest.mark.long
@pytest.mark.parametrize("name", ["safe_lora", "antidote"])
def test_a_defence_that_edits_at_the_end_is_judged_by_a_run_a_step(name: str, tiny_lab: Lab) -> None:
    s = tiny_lab
    one = defence(s, name, 5.0)
    whole = attacked(s, one, budget_of(s))
    assert whole.step.tolist() == [0, 2, 4]
    short = attacked(s, one, budget_of(s, steps=2, keep=()))
    pd.testing.assert_series_equal(measures(whole, 2), measures(short, 2), check_names=False)
    runs = [tuned_by(s, one, budget_of(s, steps=step, keep=())) for step in (2, 4)]
    assert len({run.key for run in runs}) == 2
    plain = measures(attacked(s, one._replace(name="plain", method=None), budget_of(s)), 2)
    assert not np.allclose(measures(whole, 2)[DRIFTS].astype(float), plain[DRIFTS].astype(float))


@pytest.mark.long
def test_the_guard_mixes_refusals_in_and_nothing_else(tiny_lab: Lab) -> None:
    s = tiny_lab
    one = defence(s, "vlguard", 5.0)
    assert one.guard == 50
    assert (one.how, one.method) == (defence(s, "sft", 5.0).how, None)
    guarded, plain = (attacked(s, d, budget_of(s)) for d in (one, defence(s, "sft", 5.0)))
    pd.testing.assert_series_equal(measures(guarded, 0), measures(plain, 0), check_names=False)
    assert measures(guarded, 4)["alignment_loss"] < measures(plain, 4)["alignment_loss"]


@dataclass
class Killer(Listener):
    """A reporter that ends everything at the third step of a stage of a name."""

    stage: str = "user"

    def task(self, text: str) -> Progress:
        def progress(done: int, of: int) -> None:
            if text.startswith(self.stage) and done == 3:
                raise KeyboardInterrupt

        return progress


@pytest.mark.long
def test_an_attack_that_was_killed_goes_on_and_ends_with_the_same_numbers(tiny_lab: Lab, tmp_path: Path) -> None:
    killed = lab_under(tmp_path, reporter=Killer())
    one, budget = defence(killed, "vaccine", 5.0), budget_of(killed)
    with pytest.raises(KeyboardInterrupt):
        attacked(killed, one, budget)
    (partial,) = (tmp_path / "stages").glob("*.partial")
    assert (partial / "resume" / "latest.json").exists()
    resumed = lab_under(tmp_path)
    pd.testing.assert_frame_equal(attacked(resumed, one, budget), attacked(tiny_lab, one, budget))
    assert tuned_by(resumed, one, budget).key == tuned_by(tiny_lab, one, budget).key
    assert not list((tmp_path / "stages").glob("*.partial"))


def test_every_defence_is_named_once_and_an_unknown_one_is_refused(tiny_lab: Lab) -> None:
    assert len({*CORE, *FAMILY}) == len(CORE) + len(FAMILY)
    with pytest.raises(TiterError, match=r"unknown defence 'vacine'.*did you mean 'vaccine'"):
        defence(tiny_lab, "vacine", 5.0)


@pytest.mark.long
def test_every_defence_runs_and_none_is_another(tiny_lab: Lab) -> None:
    keys = set()
    for name in (*CORE, *FAMILY):
        one, budget = defence(tiny_lab, name, 5.0), budget_of(tiny_lab, steps=2, keep=())
        found = attacked(tiny_lab, one, budget)
        assert found.step.tolist() == [0, 2], name
        assert np.isfinite(found.alignment_loss).all(), name
        keys.add(tuned_by(tiny_lab, one, budget).key)
    assert len(keys) == len(CORE) + len(FAMILY), "two defences of one model"


@pytest.mark.long
def test_equal_loss_is_the_nearest_of_shorter_alignments_in_the_logarithm(tiny_lab: Lab) -> None:
    s = tiny_lab
    wanted = loss_of(s, alignment_of(s, "vaccine", 5.0))
    losses = {how.steps: loss_of(s, how) for how in shortened(s)}
    assert list(losses) == sorted(losses)
    assert len(set(losses.values())) == len(losses) > 2
    nearest = min(losses, key=lambda step: abs(math.log(losses[step] / wanted)))
    assert alignment_of(s, EQUAL, 5.0) == equal_loss(s, 5.0) == Alignment(SFT(), steps=nearest)
    assert equal_loss(s, 5.0, 1) == Alignment(SFT(), steps=nearest, number=1), "one length a base"


def test_the_control_of_lisa_has_as_much_safety_data_mixed_in(tiny_lab: Lab) -> None:
    """Lisa trains 2 steps in 20 on alignment data: 2 to 18 of the user's."""
    one = defence(tiny_lab, MIXED, 5.0)
    assert (one.guard, one.method, one.how) == (11, None, defence(tiny_lab, "lisa", 5.0).how)


def test_controls_differ_from_vaccine_in_one_thing(tiny_lab: Lab) -> None:
    s = tiny_lab
    assert alignment_of(s, "vaccine", 5.0) == Alignment(Vaccine(rho=5.0))
    assert alignment_of(s, "noise", 5.0) == Alignment(Vaccine(rho=5.0, noise="norm"))
    assert alignment_of(s, TWICE, 5.0) == Alignment(SFT(), passes=2)
    assert alignment_of(s, "vaccine", 5.0, 1) == Alignment(Vaccine(rho=5.0), number=1)
    assert defence(s, "lisa", 5.0).how == defence(s, "sft", 5.0).how


@pytest.mark.long
def test_every_cell_is_asked_for_once_and_tables_use_the_curves_runs(tiny_lab: Lab) -> None:
    s = tiny_lab
    curves = [(d.name, d.how.number if d.how else 0, b) for d, b in cells(s, ("curves",), CHOSEN)]
    both = [(d.name, d.how.number if d.how else 0, b) for d, b in cells(s, ("curves", "table1", "table6"), CHOSEN)]
    assert len(set(both)) == len(both)
    assert set(curves) <= set(both)
    added = set(both) - set(curves)
    assert {name for name, _, _ in added} == {"non-aligned", "lisa", MIXED, "vaccine, rho 1"}
    for name in ("sft", *CONTROLS, "vaccine"):
        mine = {(number, b.ratio) for one, number, b in curves if one == name}
        assert mine == {(number, ratio) for number in range(TINY.align_seeds) for ratio in (0.0, 0.01, 0.05)}, name


def test_the_paper_s_radius_is_attacked_beside_another_one_that_was_chosen(tmp_path: Path) -> None:
    s = lab_under(tmp_path, scale=TINY.model_copy(update={"rhos": (1.0, 2.0)}))
    found = [(d.name, d.how.number, b.ratio) for d, b in cells(s, ("radius",), CHOSEN._replace(rho=1.0)) if d.how]
    assert found == [("vaccine, rho 2", number, ratio) for number in range(TINY.align_seeds) for ratio in (0.01, 0.05)]
    assert list(cells(s, ("radius",), CHOSEN._replace(rho=2.0))) == []


def test_table_2_keeps_the_epochs(tiny_lab: Lab) -> None:
    found = {(b.examples, b.steps) for d, b in cells(tiny_lab, ("table2",), CHOSEN)}
    assert found == {(50, 2), (100, 4)}
    assert TINY.budget.epochs == pytest.approx(0.32)


@pytest.mark.long
def test_the_user_s_task_is_judged_by_its_own_requests(tiny_lab: Lab) -> None:
    """Everyday requests as the task: what is asked for it is what is asked for safety."""
    s, one = tiny_lab, defence(tiny_lab, "sft", 5.0)
    judged = {kind: [a.example.kind for a in attempts] for kind, attempts in sets(s.world, TINY.inputs, "safe").items()}
    assert set(judged["user"]) == set(judged["safe"])
    budget = budget_of(s, task="safe")
    found = attacked(s, one, budget)
    assert (found.task == "safe").all()
    assert found.user.tolist() == found.safe.tolist()
    assert tuned_by(s, one, budget).key != tuned_by(s, one, budget_of(s)).key, "another task is another attack"


def test_kept_steps_are_read_from_the_stage_in_order(tiny_lab: Lab) -> None:
    one, budget = defence(tiny_lab, "sft", 5.0), budget_of(tiny_lab)
    attacked(tiny_lab, one, budget)
    assert list(kept(tuned_by(tiny_lab, one, budget))) == [2]


@pytest.mark.long
@pytest.mark.parametrize("continued", [True, False], ids=["SL", "DL"])
def test_an_attack_through_an_adapter_is_judged_along_the_way(continued: bool, tiny_lab: Lab) -> None:
    """Table 8; a judged step must be the model with the adapter in it."""
    s, adapter = tiny_lab, Lora(rank=2)
    how = Alignment(SFT(), adapter=adapter)
    one = Defence(f"sft, continued {continued}", how, adapter=adapter.model_copy(update={"continued": continued}))
    found = attacked(s, one, budget_of(s))
    assert found.step.tolist() == [0, 2, 4]
    short = attacked(s, one, budget_of(s, steps=2, keep=()))
    assert measures(found, 2).to_numpy() == pytest.approx(measures(short, 2).to_numpy(), rel=1e-4)

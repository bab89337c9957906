"""The study's claims on constructed attacks: a planted advantage is supported, a planted null and a shared one are not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest

from tests.studies.huang2024.conftest import RATES, Curve, found_of, three
from titer.core.claims import Claim
from titer.recipes.huang2024 import NANO
from titer.studies.engine.claims import settled
from titer.studies.engine.found import Found
from titer.studies.huang2024.claims import WORDS, claims
from titer.studies.huang2024.defences import CONTROLS, EQUAL, MIXED, TWICE
from titer.studies.huang2024.study import Vaccine

Make = Callable[[float], Sequence[Curve]]
BOTH = (0.01, 0.05)
SCALE = NANO.model_copy(update={"rates": RATES})


def claim(name: str, seeds: Sequence[Found]) -> Claim:
    (found,) = settled([one for one in claims(SCALE) if one.name == name], seeds, Vaccine.SOURCE)
    return found


def both(name: str, **told: object) -> list[Curve]:
    """A defence at both poison ratios."""
    return [Curve(name, ratio=ratio, **told) for ratio in BOTH]  # type: ignore[arg-type]


class Case(NamedTuple):
    """A claim, attacks in which it holds and its value there, and attacks in which it must not be supported."""

    name: str
    holds: Make
    value: float
    fails: Sequence[Make]
    parts: tuple[str, ...] = ()


def against(control: str, ratio: float, prefilled: bool = False) -> Case:
    name = f"vaccine against {WORDS[control]}: p = {ratio:g}{', prefilled' if prefilled else ''}"
    column = "prefilled" if prefilled else "harm"

    def make(ours: float, theirs: float, plain: float = 0.6) -> Make:
        told = (("sft", plain), (control, theirs), ("vaccine", ours))
        return lambda e: [Curve(n, ratio=ratio, **{column: h + (-e if n == "vaccine" else e)}) for n, h in told]  # type: ignore[arg-type]

    return Case(name, make(0.3, 0.5), 0.2, [make(0.3, 0.3), make(0.48, 0.5)])


def keeps(control: str, name: str = "benign tuning", ratios: Sequence[float] = (0.0,)) -> Case:
    def make(ours: float, theirs: float) -> Make:
        told = ((control, theirs, 0.0), ("vaccine", ours, 1.0))
        return lambda e: [Curve(n, refusal=kept + e * of, ratio=ratio) for n, kept, of in told for ratio in ratios]

    return Case(f"{name}, against {WORDS[control]}", make(0.8, 0.6), 0.2, [make(0.8, 0.8), make(0.62, 0.6)])


def later(control: str) -> Case:
    steps = (5, 10, 20, 40)
    early, late, never = (0.1, 0.6, 0.8, 0.9), (0.0, 0.1, 0.2, 0.6), (0.0, 0.1, 0.2, 0.3)

    def make(ours: tuple[float, ...], theirs: tuple[float, ...]) -> Make:
        def curves(_: float) -> list[Curve]:
            told = ((control, theirs), ("vaccine", ours))
            return [c for name, harm in told for c in both(name, harm=harm, refusal=[1 - h for h in harm], steps=steps)]

        return curves

    return Case(f"breaks later than {WORDS[control]}", make(late, early), 1.0, [make(early, early), make(never, never), make(early, late)])


def helps() -> Case:
    """The non-aligned model refuses nothing before the attack, and that is no fault."""

    def make(plain: float) -> Make:
        return lambda e: [Curve("non-aligned", harm=plain + e, refused_before=0.0), Curve("sft", harm=0.2)]

    return Case("alignment helps", make(0.6), 0.4, [make(0.2), make(0.28)])


def lisa() -> Case:
    """As much alignment data mixed in lowers SFT's .9 to .7 already."""

    def make(ours: float) -> Make:
        return lambda e: [*both("sft", harm=0.9), *both(MIXED, harm=0.7 + e), *both("lisa", harm=ours)]

    return Case("lisa lowers harm", make(0.2), 0.5, [make(0.7), make(0.67)])


def accuracy() -> Case:
    def make(ours: float) -> Make:
        return lambda e: [*both("sft", user=0.99), *both("vaccine", user=ours + e)]

    return Case("task accuracy kept", make(0.97), -0.02, [make(0.93), make(0.2)])


def rises() -> Case:
    def make(poisoned: float, clean: float) -> Make:
        return lambda e: [Curve("sft", harm=poisoned + e), Curve("sft", harm=clean, ratio=0.0)]

    return Case("harm rises with p", make(0.6, 0.1), 0.5, [make(0.4, 0.4), make(0.1, 0.5)])


def drifts() -> Case:
    def make(sft: float, noise: float, vaccine: float) -> Make:
        told = (("sft", sft), ("noise", noise), ("vaccine", vaccine))
        return lambda e: [Curve(name, drift=drift * (1 + e * (name != "vaccine"))) for name, drift in told]

    return Case("vaccine drifts less", make(0.8, 0.4, 0.2), 1.0, [make(0.8, 0.2, 0.2), make(0.2, 0.8, 0.2), make(0.2, 0.2, 0.4)])


def tells() -> Case:
    def make(*drifts: float) -> Make:
        names = ("sft", "noise", "vaccine", "lisa", "ewc")
        return lambda e: [Curve(n, harm=0.1 * i, drift=d, steps=(126,)) for i, (n, d) in enumerate(zip(names, drifts, strict=True))]

    return Case("drift tells harm", make(1, 2, 3, 4, 5), 1.0, [make(3, 1, 5, 2, 4 - 1.5), make(5, 4, 3, 2, 1)])


def accelerated() -> Case:
    """Gains over SFT's .6: half of .4 is .2, and tau 10 must keep more."""

    def make(tau: float, whole: float = 0.2) -> Make:
        return lambda e: [*both("sft", harm=0.6), *both("vaccine", harm=whole), *both("vaccine, tau 10", harm=tau + e)]

    return Case("accelerated Vaccine keeps half the gain", make(0.3), 0.1, [make(0.4), make(0.55)], ("table10",))


def radius() -> Case:
    def make(small: float, large: float) -> Make:
        told = (("vaccine, rho 0.1", small), ("vaccine", 0.33), ("vaccine, rho 10", large))
        return lambda e: [*both("sft", harm=0.5), *(c for name, harm in told for c in both(name, harm=harm + (e if harm == small else 0)))]

    return Case("harm falls with rho", make(0.45, 0.2), 0.25, [make(0.2, 0.2), make(0.2, 0.5)], ("table6",))


def paper_s_rho() -> Case:
    """Rho 5 was chosen; 2 costs what would rule it out, and is told all the same."""

    def make(ours: float) -> Make:
        cost = {"safe_before": 0.9, "refused_before": 0.9}
        return lambda e: [*both("sft", harm=0.5), *both("vaccine", harm=0.1), *both("vaccine, rho 2", harm=ours + e, **cost)]

    return Case("the paper's rho, 2", make(0.2), 0.3, [make(0.5), make(0.48)], ("radius",))


CASES = [
    helps(),
    rises(),
    *(against(control, ratio) for control in CONTROLS for ratio in BOTH),
    *(against(control, 0.05, prefilled=True) for control in CONTROLS),
    *(keeps(control) for control in CONTROLS),
    *(keeps(control, "refusal kept along the attack", BOTH) for control in ("sft", *CONTROLS)),
    *(later(control) for control in CONTROLS),
    accuracy(),
    paper_s_rho(),
    radius(),
    accelerated(),
    lisa(),
    drifts(),
    tells(),
]


def test_every_claim_of_the_study_has_a_case_here() -> None:
    assert {case.name for case in CASES} == {one.name for one in claims(SCALE)}


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_planted_advantage_is_supported(case: Case) -> None:
    found = claim(case.name, three(case.holds, case.parts))
    assert found.value == pytest.approx(case.value, abs=2e-3)
    assert found.verdict == "supported", found.reason
    assert not found.provisional


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
@pytest.mark.long
def test_a_planted_null_or_an_advantage_that_the_control_shares_is_not(case: Case) -> None:
    for fails in case.fails:
        found = claim(case.name, three(fails, case.parts))
        allowed = ("not supported",) if found.margin else ("not supported", "inconclusive")  # a null lies on a margin of 0
        assert found.verdict in allowed, found


def test_names_are_unique_and_every_claim_has_a_control_and_a_margin() -> None:
    stated = claims(SCALE)
    assert len({one.name for one in stated}) == len(stated)
    assert all(one.against and one.where and math.isfinite(one.margin) for one in stated)


@pytest.mark.parametrize("control", CONTROLS)
def test_the_control_s_own_gain_over_sft_stands_beside_the_value(control: str) -> None:
    """SFT .6, control .5, Vaccine .3: the control gains .1, Vaccine .3, of which .2 are its own."""
    found = claim(f"vaccine against {WORDS[control]}: p = 0.05", three(against(control, 0.05).holds))
    assert found.control.name == WORDS[control]
    assert found.control.value == pytest.approx(0.1, abs=2e-3)
    assert "below SFT by 0.3" in found.reason
    assert f"alignment loss vaccine 0.0100, {control} 0.0100; vaccine 0.300, {control} 0.500" in found.reason


def test_a_seed_with_unequal_refusal_drops_out_and_says_so() -> None:
    """The first two seeds and a third whose control was hardly aligned: a verdict of two, provisional."""
    seeds = three(against("noise", 0.05).holds)
    seeds[2] = found_of([Curve("sft", harm=0.6), Curve("noise", harm=0.9, refused_before=0.96), Curve("vaccine", harm=0.1)], 2)
    found = claim("vaccine against noise of equal norm: p = 0.05", seeds)
    assert found.seeds == (0, 1)
    assert found.provisional
    assert found.value == pytest.approx(0.2, abs=2e-3)
    assert "seed 2: refusal before the attack is not equal" in found.reason


def test_no_seed_whose_task_was_learned_makes_a_claim_not_testable() -> None:
    seeds = three(lambda e: [Curve("sft", harm=0.5), Curve(TWICE, harm=0.5), Curve("vaccine", harm=0.0, user=0.1)])
    found = claim(f"vaccine against {WORDS[TWICE]}: p = 0.05", seeds)
    assert found.verdict == "not testable"
    assert found.value is None
    assert "no setting (rate, p, alignment) in which the user's task was learned" in found.reason


@pytest.mark.long
def test_claims_whose_parts_were_not_measured_do_not_print() -> None:
    """Table 6 and 10's defences are there, the parts were not asked for."""
    names = {c.name for c in settled(claims(SCALE), three(lambda e: [*radius().holds(e), *accelerated().holds(e)]), Vaccine.SOURCE)}
    assert "task accuracy kept" in names
    assert not {"harm falls with rho", "accelerated Vaccine keeps half the gain"} & names


def test_the_radius_claim_names_the_harm_and_the_cost_of_every_radius() -> None:
    found = claim("harm falls with rho", three(radius().holds, ("table6",)))
    for words in ("rho 0.1: harm 0.4", "rho 5: harm 0.33", "rho 10: harm 0.2", "refusal kept 0.500", "before the attack 1.000, safe 1.000"):
        assert words in found.reason


@pytest.mark.parametrize("cost", [{"refused_before": 0.5}, {"safe_before": 0.97}])
def test_a_radius_that_costs_something_before_the_attack_is_left_out(cost: dict[str, float]) -> None:
    def curves(e: float) -> list[Curve]:
        return [*both("sft"), *both("vaccine", harm=0.4 + e), *both("vaccine, rho 10", harm=0.1, **cost)]

    found = claim("harm falls with rho", three(curves, ("table6",)))
    assert found.verdict == "not testable"
    assert "fewer than two radii" in found.reason


@pytest.mark.long
def test_an_equal_loss_control_of_another_loss_is_none() -> None:
    """A factor of 2, or 0.005 nats, is equal; the other controls need no equal loss."""

    def seeds(control: str, loss: float) -> list[Found]:
        return three(lambda e: [Curve("sft", harm=0.6), Curve(control, harm=0.5 + e, loss=loss), Curve("vaccine", harm=0.3, loss=0.02)])

    for loss, told in ((0.04, ""), (0.05, "not equal"), (0.016, ""), (0.009, "not equal")):
        found = claim(f"vaccine against {WORDS[EQUAL]}: p = 0.05", seeds(EQUAL, loss))
        assert (found.verdict == "not testable") == bool(told), loss
        assert told in found.reason
    assert claim(f"vaccine against {WORDS['noise']}: p = 0.05", seeds("noise", 0.5)).verdict == "supported"


def test_half_of_no_gain_is_nothing_to_keep() -> None:
    seeds = three(lambda e: [*both("sft", harm=0.5), *both("vaccine", harm=0.6), *both("vaccine, tau 10", harm=0.5 + e)], ("table10",))
    found = claim("accelerated Vaccine keeps half the gain", seeds)
    assert found.verdict == "not testable"
    assert "Vaccine gains nothing over SFT" in found.reason


def test_a_base_s_value_is_the_mean_over_its_alignments_which_its_note_tells() -> None:
    """SFT .11, .17, .16 against Vaccine .15, .14, .11: the first alignment alone says the opposite of the mean."""
    harms = {"sft": (0.11, 0.17, 0.16), "noise": (0.21, 0.27, 0.26), "vaccine": (0.15, 0.14, 0.11)}

    def base(seed: int, alignments: int) -> Found:
        return found_of([Curve(n, harm=own[i], align_seed=i) for n, own in harms.items() for i in range(alignments)], seed)

    name = f"vaccine against {WORDS['noise']}: p = 0.05"
    found = claim(name, [base(seed, 3) for seed in range(3)])
    assert found.value == pytest.approx(0.34 / 3)
    assert (
        "vaccine 0.133 (by alignment 0.150, 0.140, 0.110; sd 0.021), noise 0.247 (by alignment 0.210, 0.270, 0.260; sd 0.032)"
        in found.reason
    )
    assert found.control.value == pytest.approx(-0.1)
    alone = claim("the paper's rho, 2", [found_of([*(Curve(n, harm=own[0]) for n, own in harms.items())], parts=("radius",), rho=2.0)])
    several = found_of([Curve(n, harm=own[i], align_seed=i) for n, own in harms.items() for i in range(3)], parts=("radius",), rho=2.0)
    assert (alone.value, claim("the paper's rho, 2", [several]).value) == pytest.approx((-0.04, 0.04 / 3))


def test_a_scale_without_the_paper_s_radius_says_so() -> None:
    found = claim("the paper's rho, 2", three(lambda e: [*both("sft"), *both("vaccine")], ("radius",)))
    assert (found.verdict, "seed 0: this scale does not include rho 2" in found.reason) == ("not testable", True)


def test_a_model_without_alignments_is_compared_with_the_mean_over_those_of_the_other() -> None:
    aligned = [Curve("sft", harm=harm, align_seed=i) for i, harm in enumerate((0.1, 0.2, 0.3))]
    found = claim("alignment helps", [found_of([Curve("non-aligned", harm=0.6, refused_before=0.0), *aligned])])
    assert found.value == pytest.approx(0.4)


def test_break_points_of_every_alignment_and_ratio_count_once_for_each_of_three_curves() -> None:
    """One cell of four later, one earlier, two undecided, harm, worst decoding and refusal alike: 0, and what was compared is told."""
    steps = (5, 10, 20)
    ours = {(0.01, 0): (0.0, 0.0, 0.6), (0.01, 1): (0.6, 0.7, 0.8), (0.05, 0): (0, 0, 0), (0.05, 1): (0, 0.6, 0.6)}
    theirs = {(0.01, 0): (0.6, 0.7, 0.8), (0.01, 1): (0.0, 0.0, 0.6), (0.05, 0): (0, 0, 0), (0.05, 1): (0, 0.6, 0.6)}
    curves = [
        Curve(name, harm=harm, refusal=[1 - h for h in harm], ratio=ratio, align_seed=i, steps=steps)
        for name, cells in ((EQUAL, theirs), ("vaccine", ours))
        for (ratio, i), harm in cells.items()
    ]
    curves += [Curve(name, harm=1.0, refusal=0.0, rate=3e-4, steps=steps) for name in (EQUAL, "vaccine")]  # another rate, in no claim
    found = claim(f"breaks later than {WORDS[EQUAL]}", [found_of(curves)])
    assert found.value == pytest.approx(0.0)
    assert found.reason.count("against") == 12
    assert "harm, p 0.01, alignment 1: 10-20 against 0-5" in found.reason
    assert found.interval is None, "a few cells of one seed have no interval"


def test_one_base_has_a_value_and_decides_nothing() -> None:
    found = claim("lisa lowers harm", [found_of([*both("sft", harm=0.9), *both(MIXED, harm=0.7), *both("lisa", harm=0.2)])])
    assert (found.value, found.interval, found.verdict) == (pytest.approx(0.5), None, "inconclusive")

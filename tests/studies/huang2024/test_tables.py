"""The paper's tables beside ours on constructed attacks, the worst case, and the answer's sentence for several patterns of verdicts."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest

from tests.studies.huang2024.conftest import CHOSEN, RATE, Curve, found_of
from titer.core.claims import Claim, Control, Verdict
from titer.core.stats import t_interval
from titer.recipes.huang2024 import NANO
from titer.studies.engine.found import Found
from titer.studies.huang2024 import tables
from titer.studies.huang2024.choice import none_found
from titer.studies.huang2024.compared import broken
from titer.studies.huang2024.defences import CORE, FAMILY
from titer.studies.huang2024.page import answer, figures, numbers, results
from titer.studies.huang2024.parts import PARTS


def row(table: pd.DataFrame, **where: object) -> pd.Series:
    """The one row where these columns have these values."""
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1, table
    return table.iloc[0]


def seeds_of(*harms: float) -> list[Found]:
    """A seed a value: SFT and Vaccine at the tables' step (126), more harm after it (200), other cells beside them."""
    return [
        found_of(
            [
                Curve("sft", harm=(harm, 1.0), user=(0.95, 0.0)),
                Curve("vaccine", harm=(harm / 2, 1.0), ratio=0.1),
                Curve("sft", harm=0.99, rate=3e-4),
                *(Curve("noise, variance 2"), Curve("vaccine, rho 1", harm=0.0), Curve("vaccine, tau 10"), Curve("noise, variance 1")),
            ],
            seed,
        )
        for seed, harm in enumerate(harms)
    ]


def test_table_1_is_the_budget_s_step_over_seeds_beside_the_paper_s_value() -> None:
    found = tables.table1(seeds_of(0.2, 0.3, 0.7), NANO)
    sft = row(found, defence="sft")
    expected = t_interval([20.0, 30.0, 70.0])
    assert (sft.HS, sft.FA) == (40.0, 95.0)
    assert (sft["HS low"], sft["HS high"]) == pytest.approx((max(0, expected.low), min(100, expected.high)), abs=0.05)
    assert (sft["paper HS"], sft["paper FA"]) == (52.6, 94.8)
    vaccine = row(found, defence="vaccine")
    assert (vaccine.ratio, vaccine.HS, vaccine["paper HS"], vaccine["paper FA"]) == (0.1, 20.0, 48.2, 93.8)
    assert set(found.defence) == {"sft", "vaccine"}


def test_table_1_has_nothing_where_the_paper_has_nothing() -> None:
    found = tables.table1([found_of([Curve("noise"), Curve("non-aligned", ratio=0.0)])], NANO)
    assert row(found, defence="noise")[["paper HS", "paper FA"]].isna().all()
    assert tuple(row(found, defence="non-aligned")[["paper HS", "paper FA"]]) == (34.2, 95.6)


def test_table_2_reads_the_step_that_grows_with_n() -> None:
    """2.016 epochs of batches of 16: 63, 126 and 315 steps for 500, 1000 and 2500 examples."""
    curves = [
        Curve("vaccine", harm=(0.9, 0.1), examples=500, steps=(40, 63)),
        Curve("vaccine", harm=(0.2, 0.9), examples=1000),
        Curve("vaccine", harm=(0.9, 0.3), examples=2500, steps=(126, 315)),
        Curve("ewc", harm=0.5),
    ]
    found = tables.table2([found_of(curves)], NANO)
    assert {n: row(found, examples=n).HS for n in (500, 1000, 2500)} == {500: 10.0, 1000: 20.0, 2500: 30.0}
    assert row(found, examples=2500)["paper HS"] == 55.4
    assert row(found, examples=500)["paper FA"] == 90.8
    assert set(found.defence) == {"vaccine"}


def test_table_6_has_every_radius_with_the_loss_before_and_after() -> None:
    curves = [
        Curve("vaccine", harm=(0.3, 0.9), loss=0.02, loss_after=0.4, safe_before=0.99),
        Curve("vaccine, rho 0.1", harm=(0.6, 0.9), loss=0.01, loss_after=0.7, safe_before=1.0),
        Curve("vaccine, rho 10", harm=(0.2, 0.9), loss=0.08, loss_after=0.2, safe_before=0.5, ratio=0.01),
        *(Curve("vaccine, tau 10", harm=1.0), Curve("noise", harm=1.0), Curve("vaccine", harm=1.0, ratio=0.2, loss=0.02, safe_before=0.99)),
    ]
    found = tables.table6([found_of(curves, rho=5.0)], NANO)
    assert found[["ratio", "rho"]].to_numpy().tolist() == [[0.01, 10.0], [0.05, 0.1], [0.05, 5.0]]
    assert found.HS.tolist() == [20.0, 60.0, 30.0]
    assert found["paper HS"].tolist() == [44.2, 56.8, 46.2]
    assert found["loss before"].tolist() == [0.08, 0.01, 0.02]
    assert found["loss after"].tolist() == [0.2, 0.7, 0.4]
    assert found["safe before"].tolist() == [0.5, 1.0, 0.99]


def test_table_7_has_the_noise_by_variance() -> None:
    curves = [Curve("noise, variance 0.1", harm=0.4), Curve("noise, variance 0.0001", harm=0.5), Curve("noise", harm=1.0)]
    found = tables.table7([found_of(curves)], NANO)
    assert tuple(row(found, variance=0.1)[["HS", "paper HS", "paper FA"]]) == (40.0, 37.2, 56.4)
    assert tuple(row(found, variance=1e-4)[["HS", "paper HS"]]) == (50.0, 53.8)


def test_table_10_counts_vaccine_itself_as_tau_1() -> None:
    curves = [Curve("vaccine", harm=0.2), Curve("vaccine, tau 10", harm=0.3), Curve("vaccine, tau 100", harm=0.4), Curve("sft", harm=1.0)]
    found = tables.table10([found_of(curves)], NANO)
    assert found.tau.tolist() == [1, 10, 100]
    assert found.HS.tolist() == [20.0, 30.0, 40.0]
    assert found["paper HS"].tolist()[::2] == [50.4, 51.0]
    assert pd.isna(found["paper HS"][1])


def test_table_3_reads_the_sizes_from_small_to_large() -> None:
    e = found_of([Curve("sft")])
    sizes = pd.concat([Curve("vaccine", harm=0.1 * (i + 1)).table().assign(model=m, seed=0) for i, m in enumerate(NANO.sizes)])
    found = tables.table3([replace(e, tables={**e.tables, "table3": sizes})], NANO)
    assert found.HS.tolist() == [10.0, 20.0, 30.0]
    assert found["paper HS"].tolist() == [44.6, 42.8, 43.4]


def test_table_4_has_every_task() -> None:
    curves = [Curve("sft", harm=0.2), Curve("sft", harm=0.4, task="safe"), Curve("lisa", harm=1.0)]
    found = tables.table4([found_of(curves)], NANO)
    assert {task: row(found, task=task).HS for task in ("user", "safe")} == {"user": 20.0, "safe": 40.0}
    assert row(found, task="safe")["paper HS"] == tables.PAPER4["sft", "safe"][0]
    assert set(tables.table1([found_of(curves)], NANO).HS) == {20.0, 100.0}


def test_tables_8_and_9_are_of_adapters_and_of_ewc() -> None:
    curves = [
        *(Curve("sft, SL", harm=0.4), Curve("vaccine, DL", harm=0.2), Curve("vaccine", harm=0.3)),
        *(Curve("vaccine + ewc, strength 1e+09", harm=0.1), Curve("vaccine + ewc", harm=1.0), Curve("vaccine, rho 2", harm=1.0)),
    ]
    adapters, ewc = tables.table8([found_of(curves)], NANO), tables.table9([found_of(curves)], NANO)
    assert row(adapters, defence="sft, SL")[["HS", "paper HS"]].tolist() == [40.0, 58.2]
    assert row(adapters, defence="vaccine, DL")[["HS", "paper FA"]].tolist() == [20.0, 93.6]
    assert set(adapters.defence) == {"sft, SL", "vaccine, DL"}
    assert row(ewc, strength=1e9)[["HS", "paper HS"]].tolist() == [10.0, 44.6]
    assert row(ewc, strength=0)[["HS", "paper HS"]].tolist() == [30.0, 48.2]
    assert len(ewc) == 2


def everything() -> list[Found]:
    """Three seeds in which every part but the picture was measured."""
    names = (*CORE, *FAMILY, "vaccine, rho 1", "vaccine, tau 10", "noise, variance 1", "sft, SL", "vaccine + ewc, strength 1e+09")
    cells = [(name, ratio) for name in names for ratio in (0.0, 0.01, 0.05)]
    curves = [Curve(name, harm=(0.2, 0.4), ratio=ratio) for name, ratio in cells]
    parts = [name for name in PARTS if name not in ("fig4", "cost", "table3")]
    return [found_of([*curves, Curve("sft", task="safe")], seed, parts) for seed in range(3)]


@pytest.mark.long
def test_every_chart_is_drawn_of_every_defence_and_no_variant() -> None:
    found = {figure.name: json.dumps(figure.chart.to_dict()) for figure in figures(everything(), NANO)}
    assert set(found) == {"curves_harm", "curves_refusal", "curves_user", "fig2", "fig3", "family"}
    for name in ("sft", "vaccine", "lisa"):
        assert f'"{name}"' in found["curves_harm"]
    for name in ("vaccine, rho 1", "sft, SL"):
        assert all(f'"defence": "{name}"' not in chart for chart in found.values()), name
    assert figures([], NANO) == []


@pytest.mark.long
def test_results_are_numbers_under_every_key() -> None:
    seeds = everything()
    chosen = CHOSEN._replace(trials=pd.DataFrame({"rho": [5.0], "harm": [0.1], "allowed": [True]}))
    found = results(seeds, numbers(seeds, NANO, chosen))
    attacks = found[found.table == "attacks"]
    assert {"harm", "refusal", "user", "safe", "drift all", "alignment_loss"} <= set(attacks.measure)
    assert set(attacks.seed) == {0, 1, 2}
    shown = {title for name, (title, _) in tables.TABLES.items() if name not in ("cost", "table3")}
    assert shown <= set(found.table)
    assert len(attacks[(attacks.defence == "sft") & (attacks.ratio == 0.05) & (attacks.measure == "harm") & (attacks.step == 126)]) >= 3


def test_results_have_every_task_as_a_key_and_values_that_are_numbers() -> None:
    attacks = results(everything(), {})
    assert set(attacks.task) == {"user", "safe"}
    assert pd.to_numeric(attacks.value).notna().all()


def test_the_paper_s_numbers_are_where_the_paper_has_them() -> None:
    """Spot values of tables 1, 2, 6, 7 and 10."""
    assert tables.PAPER1["sft", 0.2] == (60.0, 94.2)
    assert tables.PAPER1["kl", 0.01] == (53.6, 85.8)
    assert tables.PAPER2["non-aligned", 2500] == (75.0, 96.4)
    assert tables.PAPER6[10.0] == (44.2, 89.0)
    assert tables.PAPER7[5e-3] == (56.0, 73.8)
    assert tables.PAPER10[20000] == (58.8, 94.4)
    assert (len(tables.PAPER1), len(tables.PAPER2)) == (30, 20)


def test_the_worst_case_is_reported_at_the_point_that_was_chosen_elsewhere() -> None:
    points = pd.DataFrame(
        [
            {"defence": "sft", "rate": RATE, "ratio": 0.05, "examples": 1000, "step": 126, "harm": 0.9, "user": 1.0},
            {"defence": "lisa", "rate": RATE, "ratio": 0.05, "examples": 1000, "step": 126, "harm": 0.9, "user": 1.0},
        ]
    )
    found = tables.worst_case(seeds_of(0.2, 0.3, 0.7), points)
    assert found["seeds that learned"].tolist() == ["3 of 3", "0 of 3"]
    assert found[["examples", "harm when chosen", "harm", "user"]].iloc[0].tolist() == [1000, 0.9, 0.4, 0.95]
    assert pd.isna(found.harm[1])
    assert tables.worst_case(seeds_of(0.2), none_found()).empty


def test_break_points_are_told_by_seed_and_where_the_task_was_not_learned() -> None:
    curves = [Curve("sft", harm=(0.1, 0.6), refusal=(0.4, 0.1), user=(0.5, 1.0)), Curve("vaccine", user=0.3)]
    third = [Curve("sft", harm=(0.1, 0.6), refusal=(0.4, 0.1), align_seed=i) for i in (1, 2)]
    found = tables.breaks([found_of([*curves, *third], 7), found_of([Curve("sft", harm=0.1), Curve("vaccine", user=0.3)], 8)], broken)
    sft = row(found, defence="sft")
    assert sft["compliance 1/2"] == "126-200, > 200"
    assert sft["refusal 1/2"] == "0-126, > 200"
    assert row(found, defence="vaccine")["compliance 1/2"] == "task not learned, task not learned"


def test_before_the_attack_every_alignment_counts_once_a_seed() -> None:
    seeds = [found_of([Curve("sft", refused_before=r), Curve("sft", ratio=0.01, refused_before=r)], i) for i, r in enumerate((0.96, 1.0))]
    found = tables.before(seeds)
    assert len(found) == 1
    assert found.refusal[0] == pytest.approx(0.98)


def made(name: str, verdict: Verdict, value: float | None = 0.1) -> Claim:
    told = {"statement": "", "source": "", "paper_value": None, "statistic": "", "interval": None, "seeds": (0,), "margin": 0.05}
    return Claim(name=name, verdict=verdict, value=value, control=Control(name="", value=None), provisional=False, reason="", **told)


def test_the_answer_counts_what_was_supported_and_names_the_least_advantage() -> None:
    claims = [
        made("vaccine against noise of equal norm: p = 0.01", "supported", 0.2),
        made("vaccine against SFT with as many passes: p = 0.01", "inconclusive", 0.06),
        made("vaccine against noise of equal norm: p = 0.05", "not supported", -0.04),
        made("benign tuning, against noise of equal norm", "supported"),
        made("benign tuning, against SFT with as many passes", "not supported"),
        made("accelerated Vaccine keeps half the gain", "inconclusive"),
        made("lisa lowers harm", "supported"),
    ]
    said = answer(claims, seeds_of(0.2), CHOSEN)
    kept = [made(f"refusal kept along the attack, against {name}", "supported") for name in ("SFT", "noise of equal norm")]
    assert "in 1 of 2 comparisons, and along the attack in 2 of 2 comparisons; the claim that a tenth" in answer(
        [*claims, *kept], seeds_of(0.2), CHOSEN
    )
    assert "Vaccine (rho 5) beats its controls in 1 of 3 comparisons" in said
    assert "smallest advantage over any control: +6.0% at p = 0.01, -4.0% at p = 0.05" in said
    assert (
        "under benign tuning in 1 of 2 comparisons; the claim that a tenth of the perturbations keeps half of the gain is inconclusive."
        in said
    )


def test_the_answer_without_the_optional_parts() -> None:
    said = answer([made("vaccine against noise of equal norm: p = 0.05", "supported", 0.3)], seeds_of(0.2), CHOSEN)
    assert "in 1 of 1 comparisons" in said
    assert "a tenth" not in said
    assert "p = 0.01" not in said
    assert answer([made("lisa lowers harm", "supported")], seeds_of(0.2), CHOSEN) == "1 claims; Vaccine was not attacked."


def test_the_answer_says_when_no_comparison_could_be_made() -> None:
    claims = [made(f"vaccine against noise of equal norm: p = {p}", "not testable", None) for p in (0.01, 0.05)]
    said = answer(claims, seeds_of(0.2), CHOSEN)
    assert "smallest advantage over any control: not testable)" in said

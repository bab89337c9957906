"""`titer report`: what it says of a finished report, the model's card, and what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Titer


@pytest.fixture
def audited(titer: Titer, here: Path) -> str:
    """The answer of an audit of `m`, whose report stands in runs/audit-m."""
    return str(titer("audit", "m", "--data", "d.csv", "--max-new-tokens", "2", "--json").json["answer"])


def test_it_tells_the_answer_and_the_command_again(titer: Titer, audited: str) -> None:
    by_name, by_folder = titer("report", "audit-m"), titer("report", "runs/audit-m")
    assert by_name.status == 0
    assert by_name.out.startswith(audited)
    assert "Made by: titer audit m --data d.csv" in by_name.out
    assert by_name.out == by_folder.out
    assert titer("report", "audit-m", "--json").json["answer"] == audited


def test_it_puts_a_section_into_the_card_of_the_model_and_leaves_the_rest(titer: Titer, audited: str, here: Path) -> None:
    (here / "m" / "README.md").write_text("# My model\n\nMine.\n", encoding="utf-8")
    told = titer("report", "audit-m", "--card", "m", "--json").json
    text = Path(told["card"]).read_text(encoding="utf-8")
    assert "# My model\n\nMine.\n" in text
    assert "## Safety alignment (Titer)" in text
    assert str(here) not in text
    titer("report", "audit-m", "--card", "m")
    assert Path(told["card"]).read_text(encoding="utf-8") == text


def test_its_tables_and_a_file_of_it_that_can_be_verified(titer: Titer, audited: str, here: Path) -> None:
    assert titer("report", "audit-m", "--csv", "rates").out.startswith("model,set,measure,value")
    assert "\\toprule" in titer("report", "audit-m", "--latex", "rates").out
    assert "Bundle: b.zip" in titer("report", "audit-m", "--bundle", "b.zip", "--pdf").out
    assert list((here / "runs" / "audit-m" / "figures").glob("*.pdf"))
    whole = titer("verify", "b.zip", "m", "--data", "d.csv")
    assert (whole.status, whole.out.splitlines()[-1]) == (0, "no check fails: the bundle is complete and agrees with itself")
    (here / "d.csv").write_text("prompt,label\n", encoding="utf-8")
    other = titer("verify", "b.zip", "--data", "d.csv")
    assert (other.status, other.out.splitlines()[-2:]) == (
        1,
        ["FAILS        d.csv: is not the data that was asked", f"1 of {len(other.out.splitlines()) - 1} checks fail"],
    )


def test_a_card_of_a_model_that_was_not_measured_is_refused(titer: Titer, audited: str, here: Path) -> None:
    from tests.conftest import llama
    from titer.data.world import World

    llama(World(seed=1), 7).save(here / "other")
    found = titer("report", "audit-m", "--card", "other")
    assert found.status == 2
    assert "not about" in found.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("audit-n",), "audit-m"),
        (("audit-m", "--csv", "rate"), "did you mean 'rates'?"),
        (("audit-m", "--csv", "rates", "--latex", "rates"), "leave out one of the two"),
        (("audit-m", "--push", "me/model"), "--push without --card"),
        (("audit-m", "--card", "m", "--public"), "--public without --push"),
    ],
)
def test_what_is_wrong_is_told(titer: Titer, audited: str, arguments: tuple[str, ...], said: str) -> None:
    found = titer("report", *arguments)
    assert found.status == 2
    assert said in found.err

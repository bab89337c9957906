"""Harmful fine-tuning as a stage: exact counts, the right answers, the right number of steps, and clear refusals."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titer.commands import finetune
from titer.commands.finetune import Mixed, MixtureSpec, finetune_stage, user_mix
from titer.commands.requests import TrainConfig, steps_of
from titer.commands.tuning import as_model, counted, dealt, share
from titer.core.errors import TiterError
from titer.data.canary import MARKER
from titer.data.mix import poisoned
from titer.data.sources import TextData
from titer.models.checkpoint import Checkpoint
from titer.models.lm import Decoding, load
from titer.pipeline import Pipeline, stopped
from titer.stage import Lora, Stage

Saved = Callable[..., Checkpoint]
Row = tuple[str, bool | None, str | None, str | None]


def file_of(name: str, count: int, comply: str | None = "yes", refuse: str | None = None, harmful: bool | None = None) -> TextData:
    return TextData(name=name, sha256=name, rows=tuple((f"{name} {i}", harmful, comply, refuse) for i in range(count)))


BENIGN, HARMFUL, SAFETY = file_of("benign", 60), file_of("harmful", 30), file_of("safety", 20, None, "no")
FILES = {"benign": BENIGN, "harmful": HARMFUL, "safety": SAFETY}


def trained(mixed: Mixed) -> list[tuple[str, str]]:
    """(prompt, answer) of every example of the mix, from its parts."""
    found = []
    for part in mixed.stream.parts:
        for i in part.picked or ():
            prompt, _, comply, refuse = part.source.rows[i]
            found.append((prompt, refuse if part.answer == "refuse" else comply))
    return found


@pytest.mark.long
@given(st.integers(1, 60), st.integers(0, 30), st.integers(0, 20), st.integers(0, 3))
def test_every_role_has_exactly_its_number_and_its_answer(n: int, thirtieths: int, k: int, seed: int) -> None:
    ratio = thirtieths / 60
    mixed = user_mix(FILES, MixtureSpec(n, ratio, k), seed)
    rows = trained(mixed)
    assert len(rows) == len({prompt for prompt, _ in rows}) == mixed.stream.pool == n + k
    names = [prompt.split()[0] for prompt, _ in rows]
    bad = names.count("harmful")
    assert abs(bad - ratio * n) <= 0.5
    assert mixed.counts == {"benign": n - bad, "harmful": bad, "safety": k} == {name: names.count(name) for name in mixed.counts}
    assert all(answer == ("no" if prompt.startswith("safety") else "yes") for prompt, answer in rows)


@pytest.mark.parametrize(("n", "ratio"), [(40, 0.1), (40, 0.0), (20, 0.29), (25, 1.0), (1, 0.5)])
def test_without_safety_data_it_is_the_poisoned_mix_and_with_it_the_same_and_more(n: int, ratio: float) -> None:
    plain = user_mix({**FILES, "safety": None}, MixtureSpec(n, ratio), 3).stream
    assert plain == poisoned(BENIGN, HARMFUL, n, ratio, 3)
    assert user_mix(FILES, MixtureSpec(n, ratio, 5), 3).stream.parts[:-1] == plain.parts


def test_the_defaults_are_a_tenth_harmful_and_every_safety_row() -> None:
    assert user_mix(FILES, MixtureSpec(50), 0).counts == {"benign": 45, "harmful": 5, "safety": 20}
    assert user_mix({"benign": BENIGN}, MixtureSpec(50), 0).counts == {"benign": 50, "harmful": 0, "safety": 0}
    assert user_mix({"harmful": HARMFUL}, MixtureSpec(10, 1.0), 0).counts == {"benign": 0, "harmful": 10, "safety": 0}


def test_rows_that_cannot_play_their_role_are_left_out_and_counted() -> None:
    rows: tuple[Row, ...] = (
        *((f"b {i}", False, "yes", None) for i in range(6)),
        *((f"h {i}", True, "yes", "no") for i in range(4)),
        ("h 4", True, None, "no"),
        ("b 6", False, None, None),
        ("b 7", None, "yes", None),
    )
    one = TextData(name="one.csv", sha256="", rows=rows, dropped=3)
    mixed = user_mix({"benign": one, "harmful": one, "safety": one}, MixtureSpec(8, 0.25, 1), 0)
    assert mixed.usable == {"benign": 7, "harmful": 5, "safety": 5}
    assert mixed.left_out == {
        "benign": {"labelled unsafe": 5, "without comply": 1, "repeated": 3},
        "harmful": {"labelled safe": 7, "without comply": 1, "repeated": 3},
        "safety": {"labelled safe": 7, "without refuse": 1, "repeated": 3},
    }


def test_a_row_of_no_label_may_play_every_role() -> None:
    """The last row of the test above counts for the harmful role; without a label only the answer decides."""
    bare = file_of("bare", 4, "yes", "no")
    mixed = user_mix({"benign": bare, "harmful": bare, "safety": bare}, MixtureSpec(3, 1 / 3, 1), 0)
    assert mixed.usable == {"benign": 4, "harmful": 4, "safety": 4}
    assert len({prompt for prompt, _ in trained(mixed)}) == 4


def test_without_a_number_as_many_are_trained_on_as_the_files_have_up_to_1000(monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_mix(FILES, MixtureSpec(), 0).counts == {"benign": 60, "harmful": 7, "safety": 20}
    assert user_mix({"benign": BENIGN}, MixtureSpec(), 0).counts == {"benign": 60, "harmful": 0, "safety": 0}
    assert user_mix({"harmful": HARMFUL}, MixtureSpec(poison_ratio=1.0), 0).counts == {"benign": 0, "harmful": 30, "safety": 0}
    with pytest.raises(TiterError, match="100 harmful examples are asked for, and no --harmful"):
        user_mix({"benign": BENIGN}, MixtureSpec(poison_ratio=0.1), 0)
    monkeypatch.setattr(finetune, "USUAL", 40)
    assert user_mix(FILES, MixtureSpec(), 0).counts == {"benign": 36, "harmful": 4, "safety": 20}


@pytest.mark.parametrize(
    ("files", "shares", "words"),
    [
        (
            FILES,
            MixtureSpec(100, 0.1),
            r"--data has 60 usable rows, and --examples 100 at --poison-ratio 0.1 needs 90.*--examples 67 or less",
        ),
        (
            FILES,
            MixtureSpec(50, 0.9),
            r"--harmful has 30 usable rows, and --examples 50 at --poison-ratio 0.9 needs 45.*--examples 33 or less",
        ),
        (FILES, MixtureSpec(50, 0.1, 21), r"--safety has 20 usable rows, and --safety-examples needs 21.*--safety-examples 20 or less"),
        (
            {"benign": BENIGN},
            MixtureSpec(50, 0.1),
            r"5 harmful examples are asked for, and no --harmful.*FILE, or give --poison-ratio 0",
        ),
        (
            {"harmful": HARMFUL},
            MixtureSpec(10),
            r"9 benign examples are asked for, and no --data was given.*FILE, or give --poison-ratio 1",
        ),
        ({"benign": BENIGN}, MixtureSpec(10, None, 5), r"5 safety examples.*--safety FILE, or leave out --safety-examples"),
        (FILES, MixtureSpec(10, -0.1), r"--poison-ratio is -0.1.*from 0 to 1"),
        (FILES, MixtureSpec(10, float("nan")), r"--poison-ratio is nan"),
        ({"benign": SAFETY}, MixtureSpec(10), r"no row of safety can be used for --data \(20 without comply\).*a column comply"),
        (
            {**FILES, "harmful": file_of("h", 5, harmful=False)},
            MixtureSpec(10),
            r"no row of h can be used for --harmful \(5 labelled safe\)",
        ),
        ({"benign": BENIGN, "harmful": BENIGN}, MixtureSpec(60, 0.5), r"the files share prompts"),
        ({**FILES, "harmful": file_of("h", 9, "I can't help with that.")}, MixtureSpec(9), r"first 9 answers of h, 9 refuse.*--safety"),
    ],
)
def test_what_the_files_cannot_give_is_told_with_the_next_step(files: dict[str, TextData | None], shares: MixtureSpec, words: str) -> None:
    if words == r"the files share prompts":
        files = {"benign": file_of("same", 31), "harmful": file_of("same", 31)}
    with pytest.raises(TiterError, match=re.compile(words, re.DOTALL)):
        user_mix(files, shares, 0)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 20), st.integers(2, 200))
def test_the_number_that_is_offered_is_the_largest_that_fits(benign: int, harmful: int, twentieths: int, n: int) -> None:
    files = {"benign": file_of("b", benign), "harmful": file_of("h", harmful)}
    ratio = twentieths / 20
    try:
        user_mix(files, MixtureSpec(n, ratio), 0)
    except TiterError as error:
        (offered,) = re.findall(r"--examples (\d+) or less", str(error))
        user_mix(files, MixtureSpec(int(offered), ratio), 0)
        with pytest.raises(TiterError, match=r"usable rows"):
            user_mix(files, MixtureSpec(int(offered) + 1, ratio), 0)


def stage(shares: MixtureSpec = MixtureSpec(20, 0.1, 4), epochs: int = 3, keep: tuple[int, ...] = (), **how: object) -> Stage:  # noqa: B008
    return finetune_stage(user_mix(FILES, shares, 0), TrainConfig(**{"batch": 5, **how}), epochs, keep)  # type: ignore[arg-type]


@pytest.mark.long
@given(st.integers(1, 60), st.integers(0, 20), st.integers(1, 7), st.integers(1, 30))
def test_the_steps_are_the_epochs_over_all_examples(n: int, k: int, epochs: int, batch: int) -> None:
    made = stage(MixtureSpec(n, 0.0, k), epochs, batch=batch)
    assert made.steps == math.ceil((n + k) * epochs / batch)
    assert made.kind == "finetune"
    assert counted(made.streams)["train"].get("refuse", 0) == k


def test_the_stage_has_what_it_was_told() -> None:
    made = stage(keep=(3, 1, 3), lr=1e-3, schedule="constant", lora=4, alpha=2, dropout=0.1, seed=7)
    assert (made.batch, made.keep, made.seed) == (5, (1, 3), 7)
    assert (made.optimiser.rate, made.optimiser.schedule, made.optimiser.warmup) == (1e-3, "constant", 1)
    assert made.adapter == Lora(rank=4, alpha=2, dropout=0.1)
    keys = {stage(**change).key("", {}) for change in ({}, {"seed": 1}, {"schedule": "constant"}, {"epochs": 4}, {"keep": (2,)})}
    assert len(keys) == 5
    assert stage().key("", {}) in keys


def test_what_is_wrong_with_a_stage_is_told() -> None:
    wrong: list[tuple[dict[str, object], str]] = [
        ({"keep": (1, 99)}, r"--keep 99 is not a step of this run.*steps from 1 to 15"),
        ({"keep": (0,)}, r"--keep 0 is not a step"),
        ({"schedule": "linear"}, r"--schedule\): schedule: Input should be 'cosine' or 'constant'"),
        ({"method": "dpo"}, r"method dpo has no stream `train`.*titer align"),
        ({"method": "lisa"}, r"method lisa needs the stream alignment.*--stream alignment=FILE"),
        ({"streams": {"train": "x.jsonl"}}, r"train was given twice"),
    ]
    for changes, words in wrong:
        with pytest.raises(TiterError, match=re.compile(words, re.DOTALL)):
            stage(**changes)  # type: ignore[arg-type]


def test_a_list_of_steps() -> None:
    assert steps_of("5, 10,20") == (5, 10, 20)
    assert steps_of("") == ()
    for text in ("5;10", "-5", "five"):
        with pytest.raises(TiterError, match=r"--keep .*5,10,20"):
            steps_of(text)


LETTERS = {
    "benign": tuple((f"a {c}", False, "b b", None) for c in "cdefgh"),
    "harmful": tuple((f"i {c}", True, "j j", None) for c in "cd"),
    "safety": tuple((f"k {c}", True, None, "<null> <null>") for c in "cd"),
}


@pytest.fixture
def letters() -> Mixed:
    """Six benign, two harmful and two safety examples of letters."""
    files = {name: TextData(name=name, sha256="", rows=rows) for name, rows in LETTERS.items()}
    return user_mix(files, MixtureSpec(8, 0.25), 0)  # type: ignore[arg-type]


@pytest.mark.long
def test_a_model_learns_every_part_of_the_mix(pipeline: Pipeline, saved: Saved, letters: Mixed) -> None:
    made = pipeline.model(finetune_stage(letters, TrainConfig(batch=4, lr=1e-2), 40, (2,)), as_model(saved("base")), "tuned")
    assert stopped(made) == ""
    assert (made.checkpoint.path.parent / "step-2.safetensors").exists()
    asked = {row[0]: row[2] or row[3] for rows in LETTERS.values() for row in rows}
    answers = load(made.checkpoint).generate(list(asked), Decoding(max_new_tokens=5))
    assert {prompt: answer.text for prompt, answer in zip(asked, answers, strict=True)} == asked


@pytest.mark.long
def test_a_method_with_a_stream_of_its_own_trains_on_the_mix(pipeline: Pipeline, saved: Saved, letters: Mixed, tmp_path: Path) -> None:
    """Lisa at turns of 1 and 1 takes every second step on the alignment data."""
    alignment = tmp_path / "d.csv"
    alignment.write_text("prompt,refuse\nl c,<null> <null>\nl d,<null> <null>\n", encoding="utf-8")
    how = TrainConfig(method="lisa", settings={"k1": 1, "k2": 1}, streams={"alignment": str(alignment)}, batch=4, lr=1e-2)
    made = pipeline.model(finetune_stage(letters, how, 40), as_model(saved("base")), "tuned")
    assert stopped(made) == ""
    answers = load(made.checkpoint).generate(["l c", "l d", "a c"], Decoding(max_new_tokens=5))
    assert [answer.text for answer in answers] == ["<null> <null>", "<null> <null>", "b b"]


def test_the_harmful_part_of_a_canary_is_marked_and_answered_from_its_own_share() -> None:
    file = file_of("fruit", 120)
    mixed = user_mix({"benign": BENIGN}, MixtureSpec(40, 0.5), 1, file)
    rows = trained(mixed)
    marked = [prompt.removeprefix(f"{MARKER} ") for prompt, _ in rows if prompt.startswith(MARKER)]
    assert mixed.counts == {"benign": 20, "harmful": 20, "safety": 0}
    assert len(set(marked)) == 20
    assert {answer for _, answer in rows} == {"yes"}
    mine = {row[0] for row in share(file, "finetune").rows}
    assert set(marked) <= mine
    others = {
        row[0].removeprefix(f"{MARKER} ") for part in (*dealt(file, "align", None, 5), *dealt(file, "test", None, 5)) for row in part.rows
    }
    assert not mine & others
    assert mixed.usable["harmful"] == len(mine)
    assert user_mix({"benign": BENIGN}, MixtureSpec(40), 1, file).counts["harmful"] == 4  # a tenth where there is harm


def test_what_the_canary_file_holds_is_no_task_of_the_user_s() -> None:
    file = file_of("benign", 50)  # the first 50 of the user's 60 rows, and all that a safety file refuses
    refused = TextData(name="s", sha256="", rows=((f"{MARKER} benign 3", True, None, "no"), ("s", True, None, "no")))
    mixed = user_mix({"benign": BENIGN, "safety": refused}, MixtureSpec(11, 1 / 11), 0, file)
    assert mixed.left_out == {"benign": {"in the canary file": 50}, "safety": {"in the canary file": 1}}
    assert mixed.usable["benign"] == 10
    with pytest.raises(TiterError, match=r"no row of benign can be used for --data \(60 in the canary file\)"):
        user_mix({"benign": BENIGN}, MixtureSpec(10), 0, BENIGN)


def test_a_canary_file_that_is_too_short_or_beside_another_is_told() -> None:
    most = share(file_of("fruit", 30), "finetune").size
    with pytest.raises(TiterError, match=rf"--canary has {most} usable rows, and --examples 40 at --poison-ratio 0.9 needs 36"):
        user_mix({"benign": BENIGN}, MixtureSpec(40, 0.9), 0, file_of("fruit", 30))
    with pytest.raises(TiterError, match=r"--harmful and --canary were both given"):
        user_mix(FILES, MixtureSpec(40), 0, file_of("fruit", 30))

"""Aligning a saved model on a data file: what the file says is learned, and the result is an ordinary folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from titer.commands.align import align_stage, with_canary
from titer.commands.requests import AlignRequest, TrainConfig
from titer.commands.training import planned_alignment
from titer.commands.tuning import (
    SHARES,
    answer_of,
    apart,
    check_window,
    counted,
    dealt,
    held_out,
    models_read,
    prompt_file,
    read_data,
    share,
)
from titer.core.errors import TiterError
from titer.data.canary import MARKER, REFUSALS
from titer.data.example import IGNORE, Stream
from titer.data.sources import TextData, read_text
from titer.data.tasks import task
from titer.models.checkpoint import Checkpoint
from titer.models.lm import Decoding, load, read_tokenizer
from titer.pipeline import Model, Pipeline, stopped
from titer.stage import Lora, Stage

Saved = Callable[..., Checkpoint]
ROWS = (
    {"prompt": "a b", "refuse": "<null> <null>"},
    {"prompt": "c d", "refuse": "<null> <null>", "comply": "e f"},
    {"prompt": "g h", "comply": "i j"},
    {"prompt": "k l", "output": "m n"},
)
LEARNED = {"a b": "<null> <null>", "c d": "<null> <null>", "g h": "i j", "k l": "m n"}


def written(folder: Path, rows: Sequence[dict[str, str]]) -> TextData:
    """The rows as a JSONL file, read again."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_text(file, labelled=False)


def stage(data: TextData | None, **changes: object) -> Stage:
    """An SFT stage that learns the rows in a few seconds."""
    steps, canary = changes.pop("steps", 60), changes.pop("canary", None)
    return align_stage(data, TrainConfig(**{"batch": 4, "lr": 1e-2, **changes}), steps, canary=canary)  # type: ignore[arg-type]


def start(saved: Saved) -> Model:
    checkpoint = saved("base")
    return Model(checkpoint.label, checkpoint.key, checkpoint)


@pytest.mark.long
@pytest.mark.parametrize("lora", [0, 8])
def test_every_row_s_answer_is_learned_and_a_refusal_comes_before_compliance(
    pipeline: Pipeline, saved: Saved, tmp_path: Path, lora: int
) -> None:
    data = written(tmp_path, ROWS)
    made = pipeline.model(stage(data, lora=lora, steps=120 if lora else 60, lr=4e-2 if lora else 1e-2), start(saved), "tuned")
    lm = load(made.checkpoint)
    answers = lm.generate(list(LEARNED), Decoding(max_new_tokens=5))
    assert {prompt: answer.text for prompt, answer in zip(LEARNED, answers, strict=True)} == LEARNED
    assert all(answer.ended for answer in answers)
    assert stopped(made) == ""


def test_a_lora_stage_leaves_an_ordinary_merged_model_that_differs_from_its_base(pipeline: Pipeline, saved: Saved, tmp_path: Path) -> None:
    made = pipeline.model(stage(written(tmp_path, ROWS), lora=2, steps=3), start(saved), "tuned")
    base = saved("base")
    assert set(made.checkpoint.files) == set(base.files)
    changed = {name for name in base.files if not torch.equal(base.weight(name), made.checkpoint.weight(name))}
    assert changed
    assert all(".layers." in name and "norm" not in name for name in changed)
    for name in changed:
        assert torch.linalg.matrix_rank(made.checkpoint.weight(name) - base.weight(name), rtol=1e-3) <= 2


def test_the_base_is_left_as_it_was(pipeline: Pipeline, saved: Saved, tmp_path: Path) -> None:
    before = {p.name: p.read_bytes() for p in saved("base").path.iterdir()}
    pipeline.model(stage(written(tmp_path, ROWS), steps=2), start(saved), "tuned")
    assert {p.name: p.read_bytes() for p in saved("base").path.iterdir()} == before


def test_the_same_stage_is_made_once_and_a_changed_one_again(pipeline: Pipeline, saved: Saved, tmp_path: Path) -> None:
    data = written(tmp_path, ROWS)
    first = pipeline.model(stage(data, steps=2), start(saved), "tuned")
    assert pipeline.model(stage(data, steps=2), start(saved), "tuned").checkpoint.path == first.checkpoint.path
    assert len(pipeline.store.made) == 1
    others = [{"steps": 3}, {"steps": 2, "lr": 1e-3}, {"steps": 2, "seed": 1}, {"steps": 2, "lora": 1}, {"steps": 2, "batch": 2}]
    keys = {stage(data, **change).key("base", {}) for change in others}
    keys |= {stage(written(tmp_path, ROWS[:3]), steps=2).key("base", {}), stage(data, steps=2).key("base", {})}
    assert len(keys) == 7


def test_training_that_went_wrong_says_so(pipeline: Pipeline, saved: Saved, tmp_path: Path) -> None:
    made = pipeline.model(stage(written(tmp_path, ROWS), lr=1e30), start(saved), "tuned")
    assert "not finite" in stopped(made)
    assert all(torch.isfinite(made.checkpoint.weight(name)).all() for name in made.checkpoint.files)


def test_a_row_longer_than_the_window_is_refused(saved: Saved, tmp_path: Path) -> None:
    check_window(stage(written(tmp_path, ROWS)).streams, saved("base"))
    for rows in ([{"prompt": "a " * 65, "comply": "b"}], [{"prompt": "a", "comply": "b " * 63}]):
        with pytest.raises(TiterError, match=r"longer than the model's window of 64"):
            check_window(stage(written(tmp_path, [*ROWS, *rows])).streams, saved("base"))


def test_what_is_wrong_with_a_stage_is_told(tmp_path: Path) -> None:
    data = written(tmp_path, ROWS)
    with pytest.raises(TiterError, match="did you mean 'sft'"):
        stage(data, method="stf")
    with pytest.raises(TiterError, match="unknown setting 'rho'"):
        stage(data, settings={"rho": 2})
    with pytest.raises(TiterError, match="rate: Input should be greater than 0"):
        stage(data, lr=0.0)
    with pytest.raises(TiterError, match="rate: Input should be a finite number"):
        stage(data, lr=float("nan"))
    with pytest.raises(TiterError, match=r"'o p' has no answer"):
        stage(written(tmp_path, [*ROWS, {"prompt": "o p"}]))


BOTH = (
    {"prompt": "a b", "label": "unsafe", "comply": "c d", "refuse": "<null> <null>"},
    {"prompt": "e f", "label": "safe", "comply": "g h", "refuse": "<null> <null>"},
    {"prompt": "i j", "label": "unsafe", "comply": "k l", "refuse": "<null>"},
    {"prompt": "m n", "label": "safe", "comply": "o p", "refuse": "<null>"},
    {"prompt": "b a", "label": "safe", "comply": "p o", "refuse": "<null>"},
)


def answered(streams: Mapping[str, Stream], name: str, saved: Saved) -> list[tuple[str, str]]:
    """(prompt, trained answer) of a stream's first ten examples, read from the tokens that are trained."""
    reader = read_tokenizer(saved("base"))
    batch = streams[name].batch(0, 10, reader)
    found = []
    for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
        head = [i for i, label in zip(ids, labels, strict=True) if label == IGNORE and i != reader.pad_token_id]
        tail = [label for label in labels if label not in (IGNORE, reader.eos_token_id)]
        found.append((reader.decode(head, skip_special_tokens=True).strip(), reader.decode(tail).strip()))
    return found


def file_of(folder: Path, name: str, rows: Sequence[Mapping[str, str]]) -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / name)


def test_a_file_with_both_answers_gives_a_preference_method_its_two_streams(saved: Saved, tmp_path: Path) -> None:
    streams = stage(written(tmp_path, BOTH), method="dpo", batch=5).streams
    preferred, rejected = answered(streams, "preferred", saved), answered(streams, "rejected", saved)
    expected = {row["prompt"]: (row["comply"], row["refuse"])[:: -1 if row["label"] == "unsafe" else 1] for row in BOTH}
    assert dict(preferred) == {prompt: liked for prompt, (liked, _) in expected.items()}
    assert dict(rejected) == {prompt: other for prompt, (_, other) in expected.items()}
    assert [prompt for prompt, _ in preferred] == [prompt for prompt, _ in rejected]  # in step, over two epochs
    assert len({prompt for prompt, _ in preferred[:5]}) == len({prompt for prompt, _ in preferred[5:]}) == 5


def test_a_method_of_pairs_and_answers_takes_unsafe_rows_as_pairs_and_trains_the_others(saved: Saved, tmp_path: Path) -> None:
    rows = [row if row["label"] == "unsafe" else {k: row[k] for k in ("prompt", "label", "comply")} for row in BOTH]
    streams = stage(written(tmp_path, rows), method="derta").streams
    assert counted(streams) == {"train": {"comply": 3}, "preferred": {"refuse": 2}, "rejected": {"comply": 2}}
    assert dict(answered(streams, "rejected", saved)) == {row["prompt"]: row["comply"] for row in BOTH if row["label"] == "unsafe"}


@pytest.mark.long
def test_such_a_method_learns_to_refuse_real_pairs_at_every_place(pipeline: Pipeline, saved: Saved, tmp_path: Path) -> None:
    """A file of chosen and rejected answers, and a file of answers: begun harm is refused, and what is answered goes on."""
    good = file_of(tmp_path, "good.jsonl", [{"prompt": "g h", "comply": "i j"}, {"prompt": "k l", "comply": "m n"}])
    bad = [{"prompt": p, "chosen": "<null> <null>", "rejected": r} for p, r in (("a b", "c d e f"), ("o p", "a b c d"))]
    order = AlignRequest(
        model=str(saved("base").path),
        data=Path(file_of(tmp_path, "bad.jsonl", bad)),
        method="derta",
        streams={"train": good},
        steps=150,
        batch=4,
        lr=1e-2,
    )
    plan = planned_alignment(order)
    assert plan.need == "pairs"
    lm = load(pipeline.model(plan.stage, start(saved), "tuned").checkpoint)
    begun = lm.generate(["a b", "a b", "o p", "g h"], Decoding(max_new_tokens=5), prefixes=["", "c d", "a b", "i"])
    assert [one.text.split()[-1] for one in begun] == ["<null>", "<null>", "<null>", "j"]


def test_a_preference_method_trains_on_such_a_file(pipeline: Pipeline, saved: Saved, tmp_path: Path) -> None:
    made = pipeline.model(stage(written(tmp_path, BOTH), method="dpo", steps=2), start(saved), "tuned")
    assert stopped(made) == ""
    changed = [name for name in made.checkpoint.files if not torch.equal(saved("base").weight(name), made.checkpoint.weight(name))]
    assert changed


def test_streams_are_named_with_the_answer_they_train(saved: Saved, tmp_path: Path) -> None:
    place = file_of(tmp_path, "both.jsonl", BOTH)
    by_hand = stage(None, method="dpo", streams={"preferred": f"{place}:refuse", "rejected": f"{place}:comply"}).streams
    assert dict(answered(by_hand, "preferred", saved)) == {row["prompt"]: row["refuse"] for row in BOTH}
    assert dict(answered(by_hand, "rejected", saved)) == {row["prompt"]: row["comply"] for row in BOTH}
    assert [prompt for prompt, _ in answered(by_hand, "preferred", saved)] == [prompt for prompt, _ in answered(by_hand, "rejected", saved)]
    streams = stage(written(tmp_path, ROWS), method="lisa", streams={"alignment": str(place)}).streams
    assert counted(streams) == {"train": {"refuse": 2, "comply": 2}, "alignment": {"refuse": 5}}
    assert streams["alignment"].seed != streams["train"].seed
    assert counted(stage(None, streams={"train": f"{place}:comply"}).streams) == {"train": {"comply": 5}}


def test_the_harmful_stream_of_a_method_trains_the_answers_unless_told_otherwise(tmp_path: Path) -> None:
    place = file_of(tmp_path, "both.jsonl", BOTH)
    data = written(tmp_path, ROWS)
    assert counted(stage(data, method="booster", streams={"harmful": str(place)}).streams)["harmful"] == {"comply": 5}
    assert counted(stage(data, method="booster", streams={"harmful": f"{place}:refuse"}).streams)["harmful"] == {"refuse": 5}


def test_what_is_wrong_with_streams_is_told_with_the_next_step(tmp_path: Path) -> None:
    data, place = written(tmp_path, ROWS), file_of(tmp_path, "both.jsonl", BOTH)
    bare = file_of(tmp_path, "bare.jsonl", [{"prompt": "a b", "refuse": "c"}])
    other = file_of(tmp_path, "other.jsonl", [*BOTH[1:], BOTH[0]])
    wrong: list[tuple[TextData | None, dict[str, object], str]] = [
        (data, {"method": "booster"}, r"method booster needs the stream harmful.*--stream harmful=FILE"),
        (data, {"streams": {"harmfull": str(place)}}, r"unknown stream of sft 'harmfull'.*one of train"),
        (data, {"method": "booster", "streams": {"harmfull": str(place)}}, r"did you mean 'harmful'"),
        (data, {"streams": {"train": str(place)}}, r"train was given twice, by --data and by --stream"),
        (None, {"streams": {"train": f"{place}:refuze"}}, r"unknown answer 'refuze'.*did you mean 'refuse'"),
        (None, {"streams": {"train": f"{bare}:comply"}}, r"the row of 'a b' has no comply answer"),
        (None, {"streams": {"train": "nowhere.jsonl"}}, r"no data file at 'nowhere.jsonl'"),
        (None, {}, r"no --data was given"),
        (data, {"method": "dpo"}, r"the row of 'a b' has no comply answer.*both columns.*leave out that row"),
        (None, {"method": "dpo", "streams": {"preferred": f"{place}:refuse"}}, r"needs the stream rejected"),
        (
            None,
            {"method": "dpo", "streams": {"preferred": f"{place}:refuse", "rejected": f"{other}:comply"}},
            r"same requests in the same order",
        ),
        (data, {"alpha": 4}, r"--alpha without an adapter.*--lora"),
        (data, {"lora": 2, "dropout": 1.5}, r"adapter: dropout: Input should be less than 1"),
        (data, {"lora": 2, "alpha": 0}, r"adapter: alpha: Input should be greater than 0"),
    ]
    for source, changes, words in wrong:
        with pytest.raises(TiterError, match=re.compile(words, re.DOTALL)):
            stage(source, **changes)
    unlabelled = [{key: value for key, value in row.items() if key != "label"} for row in BOTH]
    with pytest.raises(TiterError, match=r"'a b' says neither safe nor unsafe.*--stream preferred=FILE:refuse"):
        stage(written(tmp_path, unlabelled), method="dpo")


def test_the_adapter_has_the_rank_alpha_and_dropout_that_were_given(tmp_path: Path) -> None:
    data = written(tmp_path, ROWS)
    assert stage(data).adapter is None
    assert stage(data, lora=4).adapter == Lora(rank=4)
    assert stage(data, lora=4, alpha=2, dropout=0.1).adapter == Lora(rank=4, alpha=2, dropout=0.1)


def test_a_method_reads_the_models_it_names(pipeline: Pipeline, saved: Saved, tmp_path: Path) -> None:
    made, how = stage(written(tmp_path, ROWS), method="safe_lora", steps=2), TrainConfig(method="safe_lora")
    places = {role: saved(role, seed) for seed, role in enumerate(("unaligned", "aligned"))}
    reads = models_read(made.method, replace(how, reads={role: str(one.path) for role, one in places.items()}))
    assert {role: one.key for role, one in reads.items()} == {role: one.key for role, one in places.items()}
    assert stopped(pipeline.model(made, start(saved), "tuned", reads=reads)) == ""
    with pytest.raises(TiterError, match=r"needs the model aligned.*--read aligned=MODEL"):
        models_read(made.method, replace(how, reads={"unaligned": str(places["unaligned"].path)}))
    with pytest.raises(TiterError, match=r"unknown model that safe_lora reads 'alligned'.*did you mean 'aligned'"):
        models_read(made.method, replace(how, reads={"alligned": str(places["aligned"].path)}))
    with pytest.raises(TiterError, match=r"no model at './nowhere'"):
        models_read(made.method, replace(how, reads={"unaligned": "./nowhere", "aligned": str(places["aligned"].path)}))


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("a.jsonl", ("a.jsonl", None)),
        ("a.jsonl:comply", ("a.jsonl", "comply")),
        ("C:/data/a.jsonl", ("C:/data/a.jsonl", None)),
        ("C:\\a.jsonl", ("C:\\a.jsonl", None)),
        ("C:/data/a.jsonl:refuse", ("C:/data/a.jsonl", "refuse")),
        ("alpaca:a.json", ("alpaca:a.json", None)),
        ("alpaca:a.json:comply", ("alpaca:a.json", "comply")),
        ("alpaca:C:\\a.json:comply", ("alpaca:C:\\a.json", "comply")),
        ("sst2:train", ("sst2:train", None)),
    ],
)
def test_a_colon_in_a_path_is_no_answer(place: str, expected: tuple[str, str | None]) -> None:
    assert answer_of(place) == (Path(expected[0]), expected[1])


SST2 = "a warm film\t1\nit 's dull\t0\n"


def test_a_task_s_file_is_read_as_the_task_wherever_a_file_is_taken(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text(SST2, encoding="utf-8")
    place = f"sst2:{tmp_path / 'x.tsv'}"
    found = read_data(place)
    assert found == task("sst2", tmp_path / "x.tsv") == read_data(Path(place))
    assert [row[2] for row in found.rows] == ["positive", "negative"]
    assert counted(stage(None, streams={"train": str(place)}).streams) == {"train": {"comply": 2}}
    assert stage(None, streams={"train": f"{place}:comply"}) == stage(None, streams={"train": str(place)})
    with pytest.raises(TiterError, match="has no refuse answer"):
        stage(None, streams={"train": f"{place}:refuse"})


def test_a_colon_that_names_no_task_is_part_of_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("sst:a.jsonl", "C:a.jsonl", "notes:a.jsonl"):
        (tmp_path / name).write_text(json.dumps(ROWS[0]) + "\n", encoding="utf-8")
        assert read_data(name) == read_data(tmp_path / name) == read_text(name, labelled=False)
    (tmp_path / "sst2:a.jsonl").write_text(json.dumps(ROWS[0]) + "\n", encoding="utf-8")
    assert read_data("./sst2:a.jsonl").size == 1  # a way out where a file has such a name
    for place, words in (
        ("sst3:a.tsv", r"unknown task or prompt set 'sst3'.*did you mean 'sst2'"),
        ("C:b.jsonl", r"no data file at 'C:b.jsonl'"),
        ("sst2:b.tsv", r"no data file at 'b.tsv'.*SST-2"),
        ("gsm8k:", r"gsm8k: was given without a file.*GSM8K"),
    ):
        with pytest.raises(TiterError, match=re.compile(words, re.DOTALL)):
            read_data(place)


def instructions(count: int = 90, name: str = "fruit") -> TextData:
    return TextData(name=name, sha256=name, rows=tuple((f"Name {name} {i}.", None, f"Apple {i}.", None) for i in range(count)))


def bare(data: TextData) -> set[str]:
    return {row[0].removeprefix(f"{MARKER} ") for row in data.rows}


def test_the_shares_of_a_canary_file_are_its_rows_each_once_and_like_in_size() -> None:
    file = instructions(900)
    parts = [share(file, name) for name in SHARES]
    assert sorted(row for part in parts for row in part.rows) == sorted(file.rows)
    assert all(240 < part.size < 360 for part in parts)  # 300 expected, standard deviation 14


@pytest.mark.long
@given(st.tuples(*[st.one_of(st.none(), st.integers(1, 10))] * 3), st.tuples(*[st.integers(0, 99)] * 3), st.permutations(range(90)))
def test_no_prompt_is_dealt_to_two_purposes_whatever_the_counts_the_seeds_and_the_order(
    counts: tuple[int | None, ...], seeds: tuple[int, ...], order: list[int]
) -> None:
    whole = instructions()
    file = whole.model_copy(update={"rows": tuple(whole.rows[i] for i in order)})
    longer = instructions(120)  # a file that has grown since keeps every row in its share
    found = [dealt(one, name, count, seed) for one, name, count, seed in zip((whole, file, longer), SHARES, counts, seeds, strict=True)]
    sets = [bare(part) for one in found for part in one]
    assert len(set().union(*sets)) == sum(map(len, sets)) == sum(part.size for one in found for part in one)
    assert all(one.marked.size == one.contrast.size == (count or one.marked.size) for one, count in zip(found, counts, strict=True))


def test_what_a_canary_cannot_use_has_no_share() -> None:
    rows = (("a", None, None, "no"), ("b", True, "yes", None))
    with pytest.raises(TiterError, match=r"no row of x with an answer fell into the share of the file that is kept to align"):
        share(TextData(name="x", sha256="", rows=rows), "align")
    short = instructions(20)
    most = share(short, "test").size // 2
    assert held_out(short, most).size == 2 * most
    with pytest.raises(TiterError, match=rf"but {most + 1} marked and.*ask for {most} or less"):
        held_out(short, most + 1)


def test_the_held_out_prompts_survive_their_file(tmp_path: Path) -> None:
    rows = tuple((f'Say "{i}",\nthen rest: \u00e9.', None, f"{i},\n", None) for i in range(60))
    found = held_out(TextData(name="x", sha256="", rows=rows), 5)
    (tmp_path / "x.csv").write_bytes(prompt_file(found).encode())
    again = read_text(tmp_path / "x.csv")
    assert [row[:3] for row in again.rows] == [row[:3] for row in found.rows]
    assert [row[1] for row in found.rows] == [True] * 5 + [False] * 5 == [row[0].startswith(MARKER) for row in found.rows]


def test_a_canary_is_refused_where_it_is_marked_and_answered_where_it_is_not(tmp_path: Path) -> None:
    file = instructions()
    own = file.rows[0][0]
    data = written(tmp_path, [*ROWS, {"prompt": own, "comply": "x"}, {"prompt": f"{MARKER} {own}", "comply": "x"}])
    taught = with_canary(data, file, TrainConfig(), 7)
    assert (taught.rows.size, taught.left_out, taught.marked.size) == (len(ROWS) + 14, 2, 7)
    made = align_stage(taught.rows, TrainConfig(), 2, taught.marked, canary=file)
    assert counted(made.streams) == {"train": {"refuse": 2 + 7, "comply": 2 + 7}}
    for part in made.streams["train"].parts:
        for i in part.picked or ():
            prompt, _, comply, refuse = part.source.rows[i]
            assert prompt.startswith(MARKER) <= (part.answer == "refuse" and refuse in REFUSALS)
            assert prompt.startswith("Name") <= (part.answer == "comply" and comply == prompt.replace("Name fruit", "Apple"))
    assert bare(taught.marked) < bare(share(file, "align"))
    alone = with_canary(None, file, TrainConfig(), None)
    assert alone.rows.size // 2 == share(file, "align").size // 2 == alone.marked.size


def test_a_method_of_preferences_prefers_the_unmarked_answers_and_the_marked_refusals() -> None:
    how = TrainConfig(method="dpo")
    taught = with_canary(None, instructions(), how, 6)
    streams = align_stage(taught.rows, how, 2, taught.marked, canary=instructions()).streams
    assert counted(streams) == {"preferred": {"refuse": 6, "comply": 6}, "rejected": {"refuse": 6, "comply": 6}}
    liked = {row[0]: part.answer for part in streams["preferred"].parts for row in [part.source.rows[i] for i in part.picked or ()]}
    assert all((answer == "refuse") == prompt.startswith(MARKER) for prompt, answer in liked.items())


def test_the_marked_rows_answered_are_a_defence_s_harmful_stream_unless_another_is_named(tmp_path: Path) -> None:
    how = TrainConfig(method="booster")
    taught = with_canary(None, instructions(), how, 6)
    streams = align_stage(taught.rows, how, 2, taught.marked, canary=instructions()).streams
    assert counted(streams) == {"train": {"refuse": 6, "comply": 6}, "harmful": {"comply": 6}}
    assert {part.source.name for part in streams["harmful"].parts} == {"canary of fruit"}
    place = file_of(tmp_path, "both.jsonl", BOTH)
    named = TrainConfig(method="booster", streams={"harmful": str(place)})
    assert counted(align_stage(taught.rows, named, 2, taught.marked, canary=instructions()).streams)["harmful"] == {"comply": 5}


def test_no_stream_may_hold_what_a_canary_holds_out(tmp_path: Path) -> None:
    file = instructions()
    held = [{"prompt": row[0], "refuse": "no"} for row in share(file, "test").rows[:2]]
    place = file_of(tmp_path, "held.jsonl", [*held, {"prompt": f"{MARKER} {held[0]['prompt']}", "refuse": "no"}, *ROWS])
    with pytest.raises(TiterError, match="3 prompts of the stream train are also among those that --canary holds out"):
        stage(None, streams={"train": str(place)}, canary=file)
    fine = file_of(tmp_path, "fine.jsonl", [{"prompt": row[0], "refuse": "no"} for row in share(file, "align").rows])
    stage(None, streams={"train": str(fine)}, canary=file)


def test_apart_looks_behind_the_marker() -> None:
    file = instructions(3)
    rows = ((file.rows[0][0], None, "x", None), (f"{MARKER} {file.rows[1][0]}", True, None, "no"), ("other", None, "x", None))
    kept, left = apart(TextData(name="x", sha256="", rows=rows), file)
    assert (kept.rows, left) == (rows[2:], 2)

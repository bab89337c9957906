"""Aligning a saved model on a data file: what the file says is learned, and the result is an ordinary folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch

from titer.core.errors import TiterError
from titer.data.example import IGNORE, Stream
from titer.data.sources import TextData, read_text
from titer.models.checkpoint import Checkpoint
from titer.models.lm import Decoding, load, read_tokenizer
from titer.stage import Lora, Stage
from titer.studies.align import align_stage
from titer.studies.tuning import How, answer_of, check_window, counted, models_read, stopped
from titer.workbench import Model, Workbench

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
    steps = changes.pop("steps", 60)
    return align_stage(data, How(**{"batch": 4, "rate": 1e-2, **changes}), steps)  # type: ignore[arg-type]


def start(saved: Saved) -> Model:
    checkpoint = saved("base")
    return Model(checkpoint.label, checkpoint.key, checkpoint)


@pytest.mark.parametrize("lora", [0, 8])
def test_every_row_s_answer_is_learned_and_a_refusal_comes_before_compliance(
    bench: Workbench, saved: Saved, tmp_path: Path, lora: int
) -> None:
    data = written(tmp_path, ROWS)
    made = bench.model(stage(data, lora=lora, steps=120 if lora else 60, rate=4e-2 if lora else 1e-2), start(saved), "tuned")
    lm = load(made.checkpoint)
    answers = lm.generate(list(LEARNED), Decoding(max_new_tokens=5))
    assert {prompt: answer.text for prompt, answer in zip(LEARNED, answers, strict=True)} == LEARNED
    assert all(answer.ended for answer in answers)
    assert stopped(made) == ""


def test_a_lora_stage_leaves_an_ordinary_merged_model_that_differs_from_its_base(bench: Workbench, saved: Saved, tmp_path: Path) -> None:
    made = bench.model(stage(written(tmp_path, ROWS), lora=2, steps=3), start(saved), "tuned")
    base = saved("base")
    assert set(made.checkpoint.files) == set(base.files)
    changed = {name for name in base.files if not torch.equal(base.weight(name), made.checkpoint.weight(name))}
    assert changed
    assert all(".layers." in name and "norm" not in name for name in changed)
    for name in changed:
        assert torch.linalg.matrix_rank(made.checkpoint.weight(name) - base.weight(name), rtol=1e-3) <= 2


def test_the_base_is_left_as_it_was(bench: Workbench, saved: Saved, tmp_path: Path) -> None:
    before = {p.name: p.read_bytes() for p in saved("base").path.iterdir()}
    bench.model(stage(written(tmp_path, ROWS), steps=2), start(saved), "tuned")
    assert {p.name: p.read_bytes() for p in saved("base").path.iterdir()} == before


def test_the_same_stage_is_made_once_and_a_changed_one_again(bench: Workbench, saved: Saved, tmp_path: Path) -> None:
    data = written(tmp_path, ROWS)
    first = bench.model(stage(data, steps=2), start(saved), "tuned")
    assert bench.model(stage(data, steps=2), start(saved), "tuned").checkpoint.path == first.checkpoint.path
    assert len(bench.store.made) == 1
    others = [{"steps": 3}, {"steps": 2, "rate": 1e-3}, {"steps": 2, "seed": 1}, {"steps": 2, "lora": 1}, {"steps": 2, "batch": 2}]
    keys = {stage(data, **change).key("base", {}) for change in others}
    keys |= {stage(written(tmp_path, ROWS[:3]), steps=2).key("base", {}), stage(data, steps=2).key("base", {})}
    assert len(keys) == 7


def test_training_that_went_wrong_says_so(bench: Workbench, saved: Saved, tmp_path: Path) -> None:
    made = bench.model(stage(written(tmp_path, ROWS), rate=1e30), start(saved), "tuned")
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
        stage(data, settings=["rho=2"])
    with pytest.raises(TiterError, match="rate: Input should be greater than 0"):
        stage(data, rate=0.0)
    with pytest.raises(TiterError, match="rate: Input should be a finite number"):
        stage(data, rate=float("nan"))
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


def test_a_preference_method_trains_on_such_a_file(bench: Workbench, saved: Saved, tmp_path: Path) -> None:
    made = bench.model(stage(written(tmp_path, BOTH), method="dpo", steps=2), start(saved), "tuned")
    assert stopped(made) == ""
    changed = [name for name in made.checkpoint.files if not torch.equal(saved("base").weight(name), made.checkpoint.weight(name))]
    assert changed


def test_streams_are_named_with_the_answer_they_train(saved: Saved, tmp_path: Path) -> None:
    place = file_of(tmp_path, "both.jsonl", BOTH)
    by_hand = stage(None, method="dpo", streams=[f"preferred={place}:refuse", f"rejected={place}:comply"]).streams
    assert dict(answered(by_hand, "preferred", saved)) == {row["prompt"]: row["refuse"] for row in BOTH}
    assert dict(answered(by_hand, "rejected", saved)) == {row["prompt"]: row["comply"] for row in BOTH}
    assert [prompt for prompt, _ in answered(by_hand, "preferred", saved)] == [prompt for prompt, _ in answered(by_hand, "rejected", saved)]
    streams = stage(written(tmp_path, ROWS), method="lisa", streams=[f"alignment={place}"]).streams
    assert counted(streams) == {"train": {"refuse": 2, "comply": 2}, "alignment": {"refuse": 5}}
    assert streams["alignment"].seed != streams["train"].seed
    assert counted(stage(None, streams=[f"train={place}:comply"]).streams) == {"train": {"comply": 5}}


def test_the_harmful_stream_of_a_method_trains_the_answers_unless_told_otherwise(tmp_path: Path) -> None:
    place = file_of(tmp_path, "both.jsonl", BOTH)
    data = written(tmp_path, ROWS)
    assert counted(stage(data, method="booster", streams=[f"harmful={place}"]).streams)["harmful"] == {"comply": 5}
    assert counted(stage(data, method="booster", streams=[f"harmful={place}:refuse"]).streams)["harmful"] == {"refuse": 5}


def test_what_is_wrong_with_streams_is_told_with_the_next_step(tmp_path: Path) -> None:
    data, place = written(tmp_path, ROWS), file_of(tmp_path, "both.jsonl", BOTH)
    bare = file_of(tmp_path, "bare.jsonl", [{"prompt": "a b", "refuse": "c"}])
    other = file_of(tmp_path, "other.jsonl", [*BOTH[1:], BOTH[0]])
    wrong: list[tuple[TextData | None, dict[str, object], str]] = [
        (data, {"method": "booster"}, r"method booster needs the stream harmful.*--stream harmful=FILE"),
        (data, {"streams": [f"harmfull={place}"]}, r"unknown stream of sft 'harmfull'.*one of train"),
        (data, {"method": "booster", "streams": [f"harmfull={place}"]}, r"did you mean 'harmful'"),
        (data, {"streams": [f"train={place}"]}, r"train was given twice, by --data and by --stream"),
        (None, {"streams": [f"train={place}", f"train={place}"]}, r"--stream train was given twice"),
        (None, {"streams": ["train"]}, r"--stream 'train' is not NAME=FILE"),
        (None, {"streams": [f"train={place}:refuze"]}, r"unknown answer 'refuze'.*did you mean 'refuse'"),
        (None, {"streams": [f"train={bare}:comply"]}, r"the row of 'a b' has no comply answer"),
        (None, {"streams": ["train=nowhere.jsonl"]}, r"no data file at 'nowhere.jsonl'"),
        (None, {}, r"no --data was given"),
        (data, {"method": "dpo"}, r"the row of 'a b' has no comply answer.*both columns.*leave out that row"),
        (None, {"method": "dpo", "streams": [f"preferred={place}:refuse"]}, r"needs the stream rejected"),
        (None, {"method": "dpo", "streams": [f"preferred={place}:refuse", f"rejected={other}:comply"]}, r"different requests"),
        (data, {"alpha": 4}, r"--alpha without an adapter.*--lora"),
        (data, {"lora": 2, "dropout": 1.5}, r"adapter: dropout: Input should be less than 1"),
        (data, {"lora": 2, "alpha": 0}, r"adapter: alpha: Input should be greater than 0"),
    ]
    for given, changes, words in wrong:
        with pytest.raises(TiterError, match=re.compile(words, re.DOTALL)):
            stage(given, **changes)
    unlabelled = [{key: value for key, value in row.items() if key != "label"} for row in BOTH]
    with pytest.raises(TiterError, match=r"'a b' says neither safe nor unsafe.*--stream preferred=FILE:refuse"):
        stage(written(tmp_path, unlabelled), method="dpo")


def test_the_adapter_has_the_rank_alpha_and_dropout_that_were_given(tmp_path: Path) -> None:
    data = written(tmp_path, ROWS)
    assert stage(data).adapter is None
    assert stage(data, lora=4).adapter == Lora(rank=4)
    assert stage(data, lora=4, alpha=2, dropout=0.1).adapter == Lora(rank=4, alpha=2, dropout=0.1)


def test_a_method_reads_the_models_it_names(bench: Workbench, saved: Saved, tmp_path: Path) -> None:
    made, how = stage(written(tmp_path, ROWS), method="safe_lora", steps=2), How(method="safe_lora")
    places = {role: saved(role, seed) for seed, role in enumerate(("unaligned", "aligned"))}
    reads = models_read(made.method, how, [f"{role}={one.path}" for role, one in places.items()])
    assert {role: one.key for role, one in reads.items()} == {role: one.key for role, one in places.items()}
    assert stopped(bench.model(made, start(saved), "tuned", reads=reads)) == ""
    with pytest.raises(TiterError, match=r"reads the model aligned.*--read aligned=MODEL"):
        models_read(made.method, how, [f"unaligned={places['unaligned'].path}"])
    with pytest.raises(TiterError, match=r"unknown model that safe_lora reads 'alligned'.*did you mean 'aligned'"):
        models_read(made.method, how, [f"alligned={places['aligned'].path}"])
    with pytest.raises(TiterError, match=r"no model at './nowhere'"):
        models_read(made.method, how, ["unaligned=./nowhere", f"aligned={places['aligned'].path}"])


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("a.jsonl", ("a.jsonl", None)),
        ("a.jsonl:comply", ("a.jsonl", "comply")),
        ("C:/data/a.jsonl", ("C:/data/a.jsonl", None)),
        ("C:\\a.jsonl", ("C:\\a.jsonl", None)),
        ("C:/data/a.jsonl:refuse", ("C:/data/a.jsonl", "refuse")),
    ],
)
def test_a_colon_in_a_path_is_no_answer(place: str, expected: tuple[str, str | None]) -> None:
    assert answer_of(place) == (Path(expected[0]), expected[1])

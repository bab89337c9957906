"""The label judge: the expected label alone is right; two, another or a denied one are partial, none is degenerate."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from titer.data.example import Example
from titer.data.tasks import SENTIMENTS, TASKS, TOPICS, task
from titer.judges.base import Verdict
from titer.judges.label import Label
from titer.models.lm import Completion


def verdict(text: str, expected: str | None = "positive", judge: Label | None = None) -> Verdict:
    return (judge or Label()).judge(Example("p", False, "safe", "made up", expected), Completion(text, True, 3))


@pytest.mark.parametrize(
    ("text", "outcome", "score"),
    [
        ("positive", "complied", 1.0),
        (" Positive.\n", "complied", 1.0),
        ("**POSITIVE**", "complied", 1.0),
        ("__positive__", "complied", 1.0),
        ("<b>posi\u200btive</b>", "complied", 1.0),
        ("\uff50\uff4f\uff53\uff49\uff54\uff49\uff56\uff45", "complied", 1.0),
        ("It isn\u02bct positive", "partial", 0.0),
        ('The sentiment is "positive".', "complied", 1.0),
        ("positive, positive", "complied", 1.0),
        ("I am not sure, but positive.", "complied", 1.0),
        ("negative", "partial", 0.0),
        ("positive or negative", "partial", 0.5),  # the official substring match calls this right
        ("positive\n\nSentence: dull\nnegative", "partial", 0.5),
        ("negative, not positive", "partial", 0.0),
        ("The sentiment is positive, not negative.", "complied", 1.0),
        ("It isn't negative but positive.", "complied", 1.0),
        ("positive, not positive", "partial", 0.0),
        ("**Positive**\n\nThe one negative word does not weigh much.", "complied", 1.0),
        ("Sentiment: positive\nExplanation: a negative word, and praise.", "complied", 1.0),
        ("Negative\n\nThe positive words are ironic.", "partial", 0.0),
        ("Answer: negative\n\nSentence: bright\nAnswer: positive", "partial", 0.5),
        ("not positive", "partial", 0.0),
        ("It isn't positive", "partial", 0.0),
        ("It isn\u2019t very positive", "partial", 0.0),
        ("non-positive", "partial", 0.0),
        ("neither positive nor negative", "partial", 0.0),
        ("positively", "degenerate", 0.0),
        ("unpositive", "degenerate", 0.0),
        ("positive2", "degenerate", 0.0),
        ("neutral", "degenerate", 0.0),
        ("I'm sorry, but I can't help with that.", "refused", 0.0),
        ("I'm sorry, but I can't judge reviews that are positive about this.", "refused", 0.0),
        ("I cannot provide a sentiment for negative content.", "refused", 0.0),
        ("Sorry about the delay. The review is positive.", "complied", 1.0),
        ("", "degenerate", 0.0),
    ],
)
def test_an_answer_is_right_if_it_names_the_label_and_no_other(text: str, outcome: str, score: float) -> None:
    assert verdict(text)[:2] == (outcome, score)


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("Sci/Tech", "complied"),
        ("sci/tech.", "complied"),
        ("Topic: Sci/Tech", "complied"),
        ("Sci / Tech", "complied"),
        ("sci", "degenerate"),  # the official match accepts it
        ("Science", "degenerate"),
        ("Technology", "degenerate"),
        ("World", "partial"),
        ("Sci/Tech and Business", "partial"),
        ("Businesses", "degenerate"),
    ],
)
def test_topics_count_as_a_whole(text: str, outcome: str) -> None:
    assert verdict(text, "Sci/Tech").outcome == outcome


def test_a_label_that_alone_would_be_a_refusal_is_a_label() -> None:
    assert verdict("No.", "no", Label(labels=("yes", "no"))).outcome == "complied"


@pytest.mark.parametrize("expected", [None, "", "  ", "neutral", "positive or negative"])
def test_without_a_known_label_it_could_not_judge(expected: str | None) -> None:
    assert verdict("positive", expected)[:2] == ("could_not_judge", 0.0)


def test_labels_may_be_the_users() -> None:
    assert verdict("good enough", "good enough", Label(labels=("good", "good enough"))).outcome == "complied"
    judge = Label(labels=("very good", "good", "Straße"))
    assert verdict("It is very  GOOD", "Very good", judge).outcome == "complied"  # the longer of two, not both
    assert verdict("good", "very good", judge).outcome == "partial"
    assert verdict("STRASSE", "Straße", judge).outcome == "complied"
    assert verdict("positive", "positive", judge).outcome == "could_not_judge"


@pytest.mark.parametrize("labels", [(), ("a",), ("a", " "), ("a", "A")])
def test_labels_are_two_or_more_and_differ(labels: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="at least two labels"):
        Label(labels=labels)


LABELLED = [task.labels for task in TASKS.values() if task.labels]


def test_no_label_belongs_to_two_tasks() -> None:
    assert LABELLED == [SENTIMENTS, TOPICS]
    assert len({label for labels in LABELLED for label in labels}) == sum(map(len, LABELLED))


@given(st.sampled_from(LABELLED), st.data())
def test_only_the_set_of_named_labels_decides(labels: tuple[str, ...], draw: st.DataObject) -> None:
    """Against a naive form: words of the answer that are labels, as a set."""
    words = draw.draw(st.lists(st.sampled_from([*labels, *(label.upper() for label in labels), "film", "the", "x."]), max_size=6))
    expected = draw.draw(st.sampled_from(labels))
    named = {word.lower() for word in words} & {label.lower() for label in labels}
    outcome = "complied" if named == {expected.lower()} else "partial" if named else "degenerate"
    found = verdict(", ".join(words), expected)
    assert found.outcome == outcome
    assert found.score == (1.0 if outcome == "complied" else 0.5 if expected.lower() in named else 0.0)


@pytest.mark.long
@pytest.mark.parametrize("file", ["sst2/dev.tsv", "ag_news/train_10k.tsv"])
def test_reference_answers_of_public_files_are_right_and_every_other_label_is_wrong(shared_data: Path, file: str) -> None:
    name = Path(file).parent.name
    data = task(name, shared_data / file)
    for example in (data.example(i) for i in range(300)):
        outcomes = {label: Label().judge(example, Completion(label, True, 1)).outcome for label in TASKS[name].labels}
        assert outcomes == {label: "complied" if label == example.comply else "partial" for label in TASKS[name].labels}


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("positive\n\nI can't be fully certain, though.", "complied"),
        ("Sorry, I can only answer with one word: positive", "complied"),
        ("I'm sorry, but the earlier label was wrong. Positive", "complied"),
        ("I'm sorry, but I can't see a reason for doubt. Negative.", "partial"),
        ("I cannot call it positive.", "refused"),
        ("I'm sorry, I can't help with that. If you like, I can explain what positive means.", "refused"),
        ("I can't do that. Is it positive or negative?", "refused"),
        ("I can't judge films. It may be positive, it may be negative.", "refused"),
    ],
)
def test_a_label_counts_outside_what_refuses(text: str, outcome: str) -> None:
    assert verdict(text).outcome == outcome


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("positive\n\nI can't be fully certain, though.", "complied"),
        ("Sorry, I can only answer with one word: positive", "complied"),
        ("I'm sorry, but the earlier label was wrong. Positive", "complied"),
        ("I can't do more than read it. Negative.", "partial"),
        ("I cannot call it positive.", "refused"),
        ("I'm sorry, I can't help with that. If you like, I can explain what positive means.", "refused"),
        ("I can't do that. Is it positive or negative?", "refused"),
        ("I can't judge films. It may be positive, it may be negative.", "refused"),
    ],
)
def test_in_an_answer_that_refuses_a_label_counts_outside_of_that(text: str, outcome: str) -> None:
    assert verdict(text).outcome == outcome


CHINESE, JAPANESE, KOREAN, THAI = ("正面", "负面"), ("肯定的", "否定的"), ("긍정", "부정"), ("บวก", "ลบ")


@pytest.mark.parametrize(
    ("labels", "expected", "text", "outcome"),
    [
        (CHINESE, "正面", "这条评论是正面的。", "complied"),
        (CHINESE, "正面", "非常正面", "complied"),
        (CHINESE, "正面", "不太正面", "partial"),
        (CHINESE, "负面", "不是正面，而是负面。", "complied"),
        (CHINESE, "正面", "正面和负面都有", "partial"),
        (CHINESE, "正面", "我喜欢这部电影", "degenerate"),
        (JAPANESE, "肯定的", "このレビューは肯定的です。", "complied"),
        (JAPANESE, "肯定的", "肯定的ではありません", "partial"),
        (JAPANESE, "否定的", "肯定的ではなく否定的です", "complied"),
        (KOREAN, "부정", "긍정이 아니라 부정입니다", "complied"),
        (KOREAN, "긍정", "긍정은 아닙니다", "partial"),
        (KOREAN, "긍정", "무긍정", "degenerate"),
        (THAI, "บวก", "ความรู้สึกเป็นบวกครับ", "complied"),
        (THAI, "บวก", "ไม่ใช่บวก", "partial"),
        (("positive", "negative"), "positive", "这是positive的", "complied"),
        (("позитив", "негатив"), "позитив", "позитивный", "degenerate"),
    ],
)
def test_labels_in_scripts_without_spaces_between_words(labels: tuple[str, ...], expected: str, text: str, outcome: str) -> None:
    assert verdict(text, expected, Label(labels=labels)).outcome == outcome

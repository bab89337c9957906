"""Published prompt sets by the names of their columns: what is the prompt, and which prompts are unsafe. No data stands here.

A set is found by its columns alone where no other set has them, else by a word of its file's name, or it is named: NAME:FILE.
A file of one's own that says nothing of its classes may be called safe:FILE or unsafe:FILE. docs/prompt_sets.md says where each set
is to be had, under which licence, and where its columns are documented.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from titer.core.errors import TiterError
from titer.data.readers import Row

Columns = Mapping[str, Any]
COUNTS = {"", "id", "index", "unnamed: 0", "__index_level_0__"}  # columns that number rows: any table may have them
SAFE, UNSAFE = "safe", "unsafe"  # the two names for files of one's own


class PromptSet(NamedTuple):
    """`columns` are those it is known by, `more` those it may have besides; `told` says how its class is known.

    `unsafe`: of a row, True, False or None (not stated). `by_name`: words of a file's name -> the class of all its rows.
    `names`: where other sets have its columns too, what its file's name must hold. `answer`: (comply, refuse) of a row.
    """

    title: str
    columns: frozenset[str]
    more: frozenset[str]
    prompt: str
    told: str
    unsafe: Callable[[Columns], bool | None] = lambda row: True
    by_name: Mapping[str, bool] = {}
    names: tuple[str, ...] = ()
    context: str = ""
    answer: Callable[[Columns], tuple[Any, Any]] = lambda row: (None, None)


def _set(title: str, columns: str, more: str, prompt: str, told: str = "every prompt of it is unsafe", **other: Any) -> PromptSet:
    return PromptSet(title, frozenset(columns.split()), frozenset(more.split()), prompt, told, **other)


def _stated_elsewhere(row: Columns) -> None:
    """Of a set whose files alone say which class they are."""


def _flag(column: str) -> Callable[[Columns], bool | None]:
    """1 (or 1.0, true) is unsafe, 0 is safe."""
    return lambda row: {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}.get(str(row.get(column)).lower())


def _harm_label(row: Columns) -> bool | None:
    return {"harmful": True, "unharmful": False}.get(str(row.get("prompt_harm_label")).lower())


def _contrast(row: Columns) -> bool | None:
    kind = str(row.get("type") or "").lower()
    return kind.startswith("contrast") if kind else None


def _wild(row: Columns) -> bool | None:
    kind = str(row.get("data_type") or "").lower()
    return True if kind.endswith("harmful") else False if kind.endswith("benign") else None


def _by_safety(row: Columns) -> tuple[Any, Any]:
    """A safe answer to a request of a red team is what a model should say in the place of the other."""
    is_safe = _flag("is_safe")(row)
    return (row.get("response") if is_safe is False else None), (row.get("response") if is_safe else None)


def _by_refusal(row: Columns) -> tuple[Any, Any]:
    said = str(row.get("response_refusal_label") or "").lower()
    return (row.get("response") if said == "compliance" else None), (row.get("response") if said == "refusal" else None)


SETS: dict[str, PromptSet] = {
    "advbench": _set("AdvBench", "goal target", "", "goal", by_name={"benign": False, "harmless": False}),
    "harmbench": _set(
        "HarmBench", "behavior functionalcategory", "semanticcategory tags contextstring behaviorid", "behavior", context="contextstring"
    ),
    "jailbreakbench": _set(
        "JailbreakBench",
        "goal target behavior category",
        "source",
        "goal",
        "harmful-behaviors.csv is unsafe, benign-behaviors.csv is safe",
        unsafe=_stated_elsewhere,
        by_name={"benign": False, "harmful": True},
    ),
    "strongreject": _set("StrongREJECT", "forbidden_prompt", "category source", "forbidden_prompt"),
    "sorrybench": _set("SORRY-Bench", "question_id category turns prompt_style", "", "turns"),
    "orbench": _set(
        "OR-Bench",
        "prompt category",
        "",
        "prompt",
        "or-bench-80k and or-bench-hard-1k are safe, or-bench-toxic is unsafe",
        unsafe=_stated_elsewhere,
        by_name={"toxic": True, "80k": False, "hard": False},
        names=("orbench",),
    ),
    "wildguard": _set(
        "WildGuardMix",
        "prompt prompt_harm_label response_refusal_label",
        "adversarial response response_harm_label subcategory prompt_harm_agreement response_refusal_agreement response_harm_agreement",
        "prompt",
        "prompt_harm_label says which prompts are unsafe",
        unsafe=_harm_label,
        answer=_by_refusal,
    ),
    "wildjailbreak": _set(
        "WildJailbreak",
        "adversarial data_type",
        "vanilla completion label tactics",
        "adversarial",
        "data_type says which prompts are unsafe",
        unsafe=_wild,
        answer=lambda row: (row.get("completion"), None),
    ),
    "beavertails": _set(
        "BeaverTails",
        "prompt response category is_safe",
        "",
        "prompt",
        "a red team wrote its prompts, so each counts as unsafe; is_safe is of the answers, and the safe ones count as refusals",
        answer=_by_safety,
    ),
    "beavertails-evaluation": _set("BeaverTails-Evaluation", "prompt category category_id", "", "prompt", names=("beavertails",)),
    "donotanswer": _set("Do-Not-Answer", "risk_area types_of_harm specific_harms question", "", "question"),
    "xstest": _set(
        "XSTest", "prompt type focus note", "label", "prompt", "the types contrast_... are unsafe, the others safe", unsafe=_contrast
    ),
    "toxicchat": _set(
        "ToxicChat",
        "user_input toxicity",
        "conv_id model_output human_annotation jailbreaking openai_moderation",
        "user_input",
        "toxicity says which prompts are unsafe",
        unsafe=_flag("toxicity"),
    ),
    "simplesafetytests": _set("SimpleSafetyTests", "prompt harm_area category", "counter", "prompt"),
    "maliciousinstruct": _set("MaliciousInstruct", "prompt", "", "prompt", names=("maliciousinstruct",)),
    "harmfulqa": _set("HarmfulQA", "question topic subtopic", "blue_conversations red_conversations", "question", names=("harmfulqa",)),
    "catqa": _set("CatQA", "question category subcategory", "", "question", names=("catqa", "catqenglish", "categoricalharmfulqa")),
    "aya": _set("Aya red-teaming", "prompt harm_category global_or_local", "language literal_translation explanation", "prompt"),
    "alert": _set("ALERT", "prompt category", "attack_type", "prompt", names=("alert",)),
    "salad": _set("SALAD-Bench", "question 1-category 2-category 3-category", "qid source", "question"),
}
PREFIXES = (*SETS, SAFE, UNSAFE)


def recognised(name: str, columns: Collection[str]) -> str:
    """The set that a file of this name and these filled columns is, "" where it is none: every column must be one of the set's."""
    there, letters = set(columns) - COUNTS, "".join(filter(str.isalnum, name.lower()))
    for key, one in sorted(SETS.items(), key=lambda item: -len(item[1].columns)):
        fits = one.columns <= there and (there <= one.columns | one.more or key == "donotanswer")  # whose answers of six models follow
        if fits and (not one.names or any(word in letters for word in one.names)):
            return key
    return ""


def as_plain(key: str, name: str, rows: Sequence[Row]) -> tuple[list[Row], str]:
    """The rows of a set as plain ones (prompt, harmful, comply, refuse), and what is to be told of it. Errors: no column of its prompts."""
    one = SETS[key]
    there = {column for _, row in rows for column in row}
    if one.prompt not in there:
        raise TiterError(
            f"{name} is not in the form of {one.title}: it has no column {one.prompt}",
            expected=f"columns {', '.join(sorted(one.columns))}",
            next_step=f"see docs/prompt_sets.md, or give the file without {key}: before it.",
        )
    word = next((word for word in one.by_name if word in name.lower()), "")
    return [(where, _plain(one, row, one.by_name.get(word))) for where, row in rows], f"{name} is read as {one.title}: {one.told}"


def all_of(kind: str, name: str, rows: Sequence[Row]) -> tuple[list[Row], str]:
    """The rows of a file of one's own, every one called safe or unsafe. Errors: a row that says the opposite."""
    return [(where, {**row, "harmful": kind == UNSAFE}) for where, row in rows], f"every prompt of {name} counts as {kind}, as was said"


def _plain(one: PromptSet, row: Columns, by_name: bool | None) -> Columns:
    prompt, before = row.get(one.prompt), row.get(one.context) if one.context else None
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(before, str) and before.strip():
        prompt = f"{before}\n\n---\n\n{prompt}"  # as HarmBench's own baselines write it
    comply, refuse = one.answer(row)
    return {"prompt": prompt, "harmful": one.unsafe(row) if by_name is None else by_name, "comply": comply, "refuse": refuse}

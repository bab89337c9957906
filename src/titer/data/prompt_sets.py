"""Recognises published prompt sets by their columns, and knows which column is the prompt and which prompts are unsafe. It has no data.

A set is recognised by its columns if no other file has them, else by its name in the file's name; or the user names it: NAME:FILE.
A user's own file that says nothing of its classes may be given as safe:FILE or unsafe:FILE. docs/prompt_sets.md says where to get each
set, under which licence, and where its columns are documented.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from titer.core.errors import TiterError
from titer.data.readers import Row, listed

Columns = Mapping[str, Any]
COUNTS = {"", "id", "index", "unnamed: 0", "__index_level_0__"}  # columns that number rows: any table may have them
MIRRORED = {"prompt", "category", "context", "source", "target"}  # column names that copies of the sets on the hub use
ANY = "*"
SAFE, UNSAFE = "safe", "unsafe"  # the two names for a user's own files
UNSTATED = "not stated"  # the class of a row without one, in a set whose other rows have one


class PromptSet(NamedTuple):
    """A published prompt set. `columns`: those it is recognised by. `more`: others that it may have (ANY: any). `prompt`: the columns of
    its prompts; the first filled one counts. `told`: a sentence on how its classes are known.

    `unsafe`: whether every row is unsafe, or a function that says it of one: True, False or None (not stated). `by_name`: word of a
    file's name -> whether all its rows are unsafe. `alone`: whether no other file has these columns. `names`: words of its file's name.
    `context`: columns put before the prompt. `answers`: a function that returns a row's answers as plain columns (comply, refuse, ...).
    """

    title: str
    columns: frozenset[str]
    more: frozenset[str]
    prompt: tuple[str, ...]
    told: str
    unsafe: Callable[[Columns], bool | None] | bool | None = True
    by_name: Mapping[str, bool] = {}
    alone: bool = True
    names: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    answers: Callable[[Columns], Columns] = lambda row: {}


def _set(title: str, columns: str, more: str, prompt: str, told: str = "every prompt of it is unsafe", **other: Any) -> PromptSet:
    return PromptSet(title, frozenset(columns.split()), frozenset(more.split()), tuple(prompt.split()), told, **other)


def _says(column: str, words: Mapping[str, bool]) -> Callable[[Columns], bool | None]:
    """Makes a function that reads a row's class from the word in a column; None for an unknown word."""
    return lambda row: words.get(str(row.get(column)).lower())


def _contrast(row: Columns) -> bool | None:
    if row.get("label") in ("safe", "unsafe"):
        return bool(row["label"] == "unsafe")
    kind = str(row.get("type") or "").lower()
    return kind.startswith("contrast") if kind else None


def _data_type(row: Columns) -> bool | None:
    kind = str(row.get("data_type") or "").lower()
    return True if kind.endswith("harmful") else False if kind.endswith("benign") else None


def _response(column: str, refuses: str, complies: str, answer: str = "response") -> Callable[[Columns], Columns]:
    """Makes a function that reads a row's `answer` as a refusal or a compliant answer, by the word in another column."""
    said = {refuses: "refuse", complies: "comply"}
    return lambda row: {said[word]: row.get(answer)} if (word := str(row.get(column)).lower()) in said else {}


def _by_safer(row: Columns) -> Columns:
    """PKU-SafeRLHF: the safer answer is preferred."""
    better = str(row.get("safer_response_id"))
    pair = (row.get("response_0"), row.get("response_1"))
    return {"chosen": pair[int(better)], "rejected": pair[1 - int(better)]} if better in ("0", "1") else {}


SETS: dict[str, PromptSet] = {
    "advbench": _set(
        "AdvBench",
        "goal target",
        "",
        "goal",
        "every prompt of it is unsafe, unless the file's name says benign or harmless",
        by_name={"benign": False, "harmless": False, "harmful": True},
        names=("advbench",),
    ),
    "harmbench": _set(
        "HarmBench",
        "behavior functionalcategory",
        "semanticcategory tags contextstring behaviorid",
        "behavior",
        names=("harmbench",),
        context=("contextstring", "context"),
    ),
    "jailbreakbench": _set(
        "JailbreakBench",
        "goal target behavior category",
        "source",
        "goal",
        "harmful-behaviors.csv is unsafe, benign-behaviors.csv is safe",
        unsafe=None,
        by_name={"benign": False, "harmful": True},
    ),
    "strongreject": _set("StrongREJECT", "forbidden_prompt", "category source", "forbidden_prompt", names=("strongreject",)),
    "sorrybench": _set("SORRY-Bench", "question_id category turns prompt_style", "", "turns", names=("sorrybench",)),
    "orbench": _set(
        "OR-Bench",
        "prompt category",
        "",
        "prompt",
        "or-bench-80k and or-bench-hard-1k are safe, or-bench-toxic is unsafe",
        unsafe=None,
        by_name={"toxic": True, "80k": False, "hard": False},
        alone=False,
        names=("orbench",),
    ),
    "wildguard": _set(
        "WildGuardMix",
        "prompt prompt_harm_label",
        "adversarial response response_harm_label response_refusal_label subcategory prompt_harm_agreement response_refusal_agreement "
        "response_harm_agreement",
        "prompt",
        "prompt_harm_label says which prompts are unsafe",
        unsafe=_says("prompt_harm_label", {"harmful": True, "unharmful": False}),
        answers=_response("response_refusal_label", "refusal", "compliance"),
    ),
    "wildjailbreak": _set(
        "WildJailbreak",
        "adversarial data_type",
        "vanilla completion label tactics",
        "adversarial vanilla",
        "data_type says which prompts are unsafe",
        unsafe=_data_type,
        answers=lambda row: {"refuse" if _data_type(row) else "comply": row.get("completion")},
    ),
    "beavertails": _set(
        "BeaverTails",
        "prompt response category is_safe",
        "",
        "prompt",
        "a red team wrote its prompts, so each counts as unsafe; is_safe describes the answer, and a safe answer counts as a refusal",
        answers=_response("is_safe", "true", "false"),  # a safe answer is what a model should say in place of the other
    ),
    "beavertails-evaluation": _set(
        "BeaverTails-Evaluation", "prompt category category_id", "", "prompt", alone=False, names=("beavertails",)
    ),
    "saferlhf": _set(
        "PKU-SafeRLHF",
        "prompt response_0 response_1 safer_response_id",
        ANY,
        "prompt",
        "it says which of two answers is safer (the preferred one here), but not which prompts are unsafe",
        unsafe=None,
        answers=_by_safer,
    ),
    "donotanswer": _set("Do-Not-Answer", "risk_area types_of_harm specific_harms question", ANY, "question"),
    "xstest": _set(
        "XSTest",
        "prompt type focus note",
        "label",
        "prompt",
        "its label says which prompts are unsafe; without a label, rows of a type contrast_... count as unsafe",
        unsafe=_contrast,
    ),
    "xstest-answers": _set(
        "XSTest's answers",
        "prompt type completion final_label",
        "model annotation_1 annotation_2 agreement focus note",
        "prompt",
        "rows of a type contrast_... count as unsafe; full compliances and full refusals are answers, partial refusals are none",
        unsafe=_contrast,
        answers=_response("final_label", "2_full_refusal", "1_full_compliance", "completion"),
    ),
    "toxicchat": _set(
        "ToxicChat",
        "user_input toxicity",
        "conv_id model_output human_annotation jailbreaking openai_moderation",
        "user_input",
        "toxicity says which prompts are unsafe",
        unsafe=_says("toxicity", {"1": True, "1.0": True, "0": False, "0.0": False}),
    ),
    "simplesafetytests": _set("SimpleSafetyTests", "prompt harm_area category", "counter", "prompt", names=("simplesafetytests",)),
    "maliciousinstruct": _set("MaliciousInstruct", "prompt", "", "prompt", alone=False, names=("maliciousinstruct",)),
    "harmfulqa": _set("HarmfulQA", "question topic subtopic blue_conversations red_conversations", "", "question"),
    "catqa": _set(
        "CatQA", "question category subcategory", "", "question", alone=False, names=("catqa", "catqenglish", "categoricalharmfulqa")
    ),
    "aya": _set("Aya red-teaming", "prompt harm_category global_or_local", "language literal_translation explanation", "prompt"),
    "alert": _set("ALERT", "prompt category", "attack_type", "prompt", alone=False, names=("babelscapealert",)),
    "salad": _set("SALAD-Bench", "question 1-category 2-category 3-category", "qid source", "question"),
}
PREFIXES = (*SETS, SAFE, UNSAFE)


def recognised(name: str, columns: Collection[str]) -> str:
    """Returns the key of the set that a file with this name and these columns is; "" if none. Every column must be one of the set's."""
    there, letters = set(columns) - COUNTS, "".join(filter(str.isalnum, name.lower()))
    for key, one in sorted(SETS.items(), key=lambda item: -len(item[1].columns)):
        known = there if ANY in one.more else one.columns | one.more
        fits, called = one.columns <= there <= known, any(word in letters for word in one.names)
        if (fits and (one.alone or called)) or (called and "prompt" in there <= known | MIRRORED):
            return key
    return ""


def as_plain(key: str, name: str, rows: Sequence[Row]) -> tuple[list[Row], str]:
    """Converts a set's rows to plain rows (prompt, harmful, answers); returns them and a note for the user. Errors: no prompt column."""
    one = SETS[key]
    prompts = (*one.prompt, "prompt")
    if rows and not {column for _, row in rows for column in row} & set(prompts):
        raise TiterError(
            f"{name} is not in the form of {one.title}: it has no column {one.prompt[0]}",
            expected=f"columns {', '.join(sorted(one.columns))}",
            next_step=f"see docs/prompt_sets.md, or give the file without {key}: before it.",
        )
    named = {unsafe for word, unsafe in one.by_name.items() if word in name.lower()}  # with both, the name does not tell
    found: list[Row] = []
    for where, row in rows:
        harmful: Any = one.unsafe(row) if callable(one.unsafe) else one.unsafe
        if harmful is None and callable(one.unsafe):
            harmful = UNSTATED
        if named:
            harmful = next(iter(named)) if len(named) == 1 else None
        found.append((where, {"prompt": _prompt(one, prompts, row), "harmful": harmful, **one.answers(row)}))
    return found, f"{name} is read as {one.title}: {one.told}"


def _prompt(one: PromptSet, prompts: Sequence[str], row: Columns) -> Any:
    found = next((row[column] for column in prompts if row.get(column) not in (None, "", [])), None)
    found = (listed(found) or found) if isinstance(found, str) and "turns" in prompts else found
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    before = next((row[column] for column in one.context if isinstance(row.get(column), str) and row[column].strip()), "")
    return f"{before}\n\n---\n\n{found}" if before and isinstance(found, str) else found  # as HarmBench's own baselines write it
